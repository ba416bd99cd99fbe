"""Labels in another convention end a training before it starts, and `check` with status 1. Correct ones pass."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from helpers import losses, run_here
from PIL import Image

from dataloaders.__main__ import main
from dataloaders.diode import Diode
from dataloaders.label_check import check_labels, intrinsic_of
from utils.errors import InputError
from utils.intrinsics import DEPTH, NORMAL
from utils.kinds.axes import unit_vectors

SCRIPTS = {task: f"sd_single_diode_pseudo_{task}.py" for task in ("normal", "depth", "albedo", "shading")}


WRONG = {
    "opengl": ("normal", lambda a: np.stack([a[..., 0], 255 - a[..., 1], 255 - a[..., 2]], -1), "those of opengl"),
    "bgr": ("normal", lambda a: a[..., ::-1], "BGR"),
    "shifted": ("normal", lambda a: 128 + a // 2, "shifted back"),
    "far white": ("depth", lambda a: 255 - a, "inverted"),
    "colours": ("depth", lambda a: np.stack([a[..., 0], 255 - a[..., 1], a[..., 2] // 2], -1), "have colours"),
    "mirrored": ("normal", lambda a: a[:, ::-1], "mirroring left to right"),
    "upside down": ("depth", lambda a: a[::-1], "mirroring top to bottom"),
    "red and blue": ("albedo", lambda a: a[..., ::-1], "red and blue"),
}


def changed(diode, folder, task, change):
    """The tree's labels of `task`, each changed; 8-bit (H,W,3)."""
    source = diode / "pseudo" / task
    for path in source.rglob("*.png"):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(change(np.asarray(Image.open(path).convert("RGB"))))).save(target)
    return folder


def words_for(flags, task, output, labels, *more):
    words = flags(SCRIPTS[task], output, "--max_train_steps", 2, *more)
    words[words.index("--pseudo_root") + 1] = str(labels)
    return words


@pytest.mark.parametrize("name", WRONG)
def test_wrong_labels_end_a_training_and_a_check(name, flags, diode, tmp_path, capsys):
    task, change, words = WRONG[name]
    labels = changed(diode, tmp_path / "labels", task, change)
    with pytest.raises(InputError, match=words) as error:
        run_here(SCRIPTS[task], words_for(flags, task, tmp_path / "out", labels), whole=True)
    assert str(error.value).startswith(str(labels)) and "--skip_label_check" in str(error.value)
    assert "images agree: sure" in str(error.value)
    assert main(["check", "--root", str(diode), "--pseudo_root", str(labels), "--task", task]) == 1
    text = capsys.readouterr().out
    assert "convention: " in text and words in text and "all good" not in text


def test_normals_for_the_script_of_albedo_are_refused(flags, diode, tmp_path):
    with pytest.raises(InputError, match="are normals"):
        run_here(
            SCRIPTS["albedo"], words_for(flags, "albedo", tmp_path / "out", diode / "pseudo" / "normal"), whole=True
        )


@pytest.mark.parametrize("task", SCRIPTS)
def test_labels_under_the_names_of_other_images_end_a_training(task, flags, diode, tmp_path):
    labels = changed(diode, tmp_path / "labels", task, lambda a: a)
    files = sorted((labels / "train").rglob("*.png"))
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, contents[1:] + contents[:1]):
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"exchanging the images of the labels .* sure.*name of another image"):
        run_here(SCRIPTS[task], words_for(flags, task, tmp_path / "out", labels), whole=True)


def test_depth_for_the_script_of_normals_is_refused(flags, diode, tmp_path):
    with pytest.raises(InputError, match="are grey"):
        run_here(
            SCRIPTS["normal"], words_for(flags, "normal", tmp_path / "out", diode / "pseudo" / "depth"), whole=True
        )


def test_the_check_can_be_skipped(flags, diode, tmp_path, capsys):
    labels = changed(diode, tmp_path / "labels", *WRONG["far white"][:2])
    run_here(SCRIPTS["depth"], words_for(flags, "depth", tmp_path / "out", labels, "--skip_label_check"))
    assert "inverted" not in "".join(capsys.readouterr()) and len(losses(tmp_path / "out")) == 2


@pytest.mark.parametrize("task", SCRIPTS)
def test_right_labels_pass_and_train_to_the_same_bit(task, flags, diode, tmp_path, capsys):
    for name, more in (("with", ()), ("without", ("--skip_label_check",))):
        more = ("--no-center_crop", "--no_cache_latents", *more)
        run_here(SCRIPTS[task], words_for(flags, task, tmp_path / name, diode / "pseudo" / task, *more))
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert "agree: " not in "".join(capsys.readouterr())
    assert main(["check", "--root", str(diode), "--pseudo_root", str(diode / "pseudo" / task), "--task", task]) == 0


def test_no_random_state_changes_and_sixteen_labels_take_seconds(diode):
    dataset = Diode(NORMAL, diode / "normals", diode / "pseudo" / "normal", "train", resolution=512, center_crop=False)
    state, legacy, start = torch.get_rng_state(), np.random.get_state()[1].copy(), time.process_time()
    check_labels(dataset, skip=False)
    assert time.process_time() - start < 20
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == legacy).all()


def test_only_the_first_process_reads(diode, tmp_path, monkeypatch):
    labels = changed(diode, tmp_path / "labels", *WRONG["far white"][:2])
    dataset = Diode(DEPTH, diode / "depths", labels, "train", resolution=32)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_labels(dataset, skip=False)
    for rank, world in (("0", "2"), ("1", "1")):  # the latter from a scheduler
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(InputError, match="inverted"):
            check_labels(dataset, skip=False)


def test_few_images_are_a_warning_not_an_error(diode, tmp_path, capsys):
    labels = changed(diode, tmp_path / "labels", *WRONG["opengl"][:2])
    dataset = Diode(NORMAL, diode / "normals", labels, "train", resolution=32, first=2)
    check_labels(dataset, skip=False)
    assert "warning: " in (text := capsys.readouterr().err) and "agree: likely" in text and "opengl" in text


def disparity_labels(diode, folder):
    for path in (diode / "depths").rglob("*_depth.npy"):
        d = np.load(path)[..., 0]
        known = np.load(path.with_name(path.name.replace("_depth", "_depth_mask"))).reshape(d.shape) > 0
        low, high = np.percentile(d[known], [2, 98])
        near = (1 / np.clip(d, low, high) - 1 / high) / (1 / low - 1 / high)
        name = path.relative_to(diode / "depths").with_name(path.name.replace("_depth.npy", ".png"))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.repeat(np.round(255 * near)[..., None], 3, 2).astype(np.uint8)).save(folder / name)
    return folder


def test_disparity_is_refused_unless_the_record_of_the_labels_states_it(diode, tmp_path, capsys):
    labels = disparity_labels(diode, tmp_path / "labels")
    dataset = Diode(DEPTH, diode / "depths", labels, "train", resolution=64)
    with pytest.raises(InputError, match=r"reading disparity .* out of the labels"):
        check_labels(dataset, skip=False)
    assert main(["check", "--root", str(diode), "--pseudo_root", str(labels)]) == 1
    record = {"task": "depth", "conventions": {"labels": "near = white, linear in disparity"}}
    (labels / "provenance.json").write_text(json.dumps(record))
    check_labels(dataset, skip=False)
    assert "reading disparity" in capsys.readouterr().err
    assert main(["check", "--root", str(diode), "--pseudo_root", str(labels)]) == 0


def own_data(diode, folder, labels, with_truth):
    """Normals of the tree's first eight images as a folder of your own."""
    for number, path in enumerate(sorted((diode / "depths" / "train").rglob("*.png"))[:8]):
        stem = path.relative_to(diode / "depths").with_suffix("")
        for kind, source in (("images", path), ("labels", labels / f"{stem}.png")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / kind / f"{number}.png")
        if with_truth:
            (folder / "gt").mkdir(exist_ok=True)
            np.save(folder / "gt" / f"{number}.npy", np.load(diode / "normals" / f"{stem}_normal.npy"))
    return folder


def test_own_data_are_checked_with_the_axes_of_their_truth(diode, tmp_path, capsys):
    data = own_data(diode, tmp_path / "data", diode / "pseudo" / "normal", with_truth=True)
    command = ["check", "--dataset", "folder", "--train_data_dir", str(data)]
    assert main([*command, "--gt_frame", "opengl"]) == 0
    assert main(command) == 1  # gt/ has DIODE's axes
    assert "flipping y and z" in (text := capsys.readouterr().out) and "--gt_frame" in text


def test_labels_without_truth_are_judged_by_what_they_show(diode, tmp_path, capsys):
    grey = own_data(diode, tmp_path / "grey", diode / "pseudo" / "depth", with_truth=False)
    command = ["check", "--dataset", "folder", "--train_data_dir", str(grey)]
    assert main([*command, "--task", "normal"]) == 1 and "are grey" in capsys.readouterr().out
    assert main(command) == 0 and "taken for depth: there is no ground truth" in capsys.readouterr().out


def test_labels_are_depth_if_grey_and_normals_if_of_unit_length(tmp_path):
    """Grey: channels that differ by at most 3 levels, as JPEG leaves them, but on less than 1 % of the pixels."""

    def seen(pixels):
        Image.fromarray(np.round(pixels).astype(np.uint8)).save(tmp_path / "a.png")
        return intrinsic_of([tmp_path / "a.png"], None)

    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 250, (20, 30, 1)), 3, axis=2)
    green = np.array([0, 1, 0])
    assert seen(grey + 3 * green) == DEPTH and seen(grey + 4 * green) is None
    coloured = np.arange(600).reshape(20, 30, 1) < 5  # 0.8 %
    assert seen(grey + 9 * coloured * green) == DEPTH
    many = np.arange(600).reshape(20, 30, 1) < 6  # 1 %
    assert seen(grey + 9 * many * green) is None
    unit = unit_vectors(rng.normal(size=(20, 30, 3)))
    assert seen(255 * (unit / 2 + 0.5)) == NORMAL
    assert seen(255 * (0.94 * unit / 2 + 0.5)) == NORMAL and seen(255 * (0.7 * unit / 2 + 0.5)) is None


@pytest.mark.parametrize("task", SCRIPTS)
def test_what_labels_are_of_is_seen_or_asked_for(task, diode, capsys):
    assert main(["check", "--root", str(diode), "--pseudo_root", str(diode / "pseudo" / task)]) == 0
    text = capsys.readouterr().out
    assert (f"labels taken for {task}: " if task in ("normal", "depth") else "pass --task") in text
