"""Your own data: folders and manifests, splits, truth. Its recipe: tests/docs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import losses, records, run_here
from PIL import Image
from safetensors import safe_open

from dataloaders.check import main as check
from dataloaders.diode import Diode
from dataloaders.folder import FolderMaps, open_folder
from dataloaders.listing import folder_samples, manifest_samples, split_samples
from utils.errors import InputError
from utils.intrinsics import ALBEDO, DEPTH, NORMAL
from utils.lora import SAFETENSORS


@pytest.fixture
def own(diode, tmp_path) -> Path:
    """12 of the mini world's training samples as a folder of one's own: labels, normals as gt, and masks."""
    root = tmp_path / "own"
    world = Diode(NORMAL, diode / "normals", diode / "pseudo" / "normal", "train")
    for i, stem in enumerate(world.stems[:12]):
        name = f"{'deep/er/' if i % 2 else ''}{i:02d}"
        for folder, source, ending in (
            ("images", diode / "depths" / f"{stem}.png", ".png"),
            ("labels", diode / "pseudo" / "normal" / f"{stem}.png", ".png"),
            ("gt", diode / "normals" / f"{stem}_normal.npy", ".npy"),
            ("masks", diode / "depths" / f"{stem}_depth_mask.npy", ".npy"),
        ):
            target = root / folder / f"{name}{ending}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return root


def opened(root, intrinsic=NORMAL, fraction=0.25, seed=3, **options):
    options = {"frame": "opengl", "resolution": 64, **options}
    return open_folder(folder_samples(root), intrinsic, fraction, seed, **options)


def manifest(root, **more) -> Path:
    """The same samples as `own`'s folder, as a manifest."""
    lines = []
    for sample in folder_samples(root):
        relative = [
            Path(path).relative_to(root.parent).as_posix()
            for path in (sample.rgb, sample.label, sample.gt, sample.mask)
        ]
        lines.append(
            json.dumps({**dict(zip(("image", "label", "gt", "mask"), relative)), "name": sample.stem, **more})
        )
    path = root.parent / "data.jsonl"
    path.write_text("\n".join([*lines, ""]))
    return path


def test_a_folder_gives_what_diode_gives(own, diode):
    train, validation = opened(own)
    assert len(train) == 9 and {name: len(items) for name, items in validation.items()} == {"train": 4, "val": 3}
    assert "9 samples to train on, 3 held out; 12 have ground truth" in train.notes
    world = Diode(NORMAL, diode / "normals", diode / "pseudo" / "normal", "train", resolution=64)
    for i in (0, 5):
        ours, theirs = train[i], world[int(train.stems[i][-2:])]
        for key in ("rgb", "target", "valid"):
            assert torch.equal(ours[key], theirs[key])
        torch.testing.assert_close(ours["gt"], theirs["gt"])
    assert train.measured and train.reference == "ground truth"


def test_masks_take_pixels_out(own):
    name = opened(own)[0].stems[0]
    mask = np.ones((72, 96), np.uint8)
    mask[:36] = 0
    np.save(own / "masks" / f"{name}.npy", mask)
    valid = opened(own)[0][0]["valid"][0]
    assert not valid[:32].any() and valid[32:].any()


def test_frames_of_true_normals_are_converted(own):
    gl, cv = opened(own)[0][0], opened(own, frame="opencv")[0][0]
    torch.testing.assert_close(gl["gt"] * torch.tensor([1.0, -1, -1])[:, None, None], cv["gt"])


def test_the_split_is_seeded_and_hardly_moves(own):
    first = {name: [s.stem for s in part] for name, part in split_samples(folder_samples(own), 0.25, 3).items()}
    assert first == {
        name: [s.stem for s in part] for name, part in split_samples(folder_samples(own), 0.25, 3).items()
    }
    others = [{s.stem for s in split_samples(folder_samples(own), 0.25, seed)["val"]} for seed in range(5)]
    assert len({frozenset(other) for other in others}) > 1
    shutil.copy(own / "images" / "00.png", own / "images" / "new.png")
    more = {s.stem for s in split_samples(folder_samples(own), 0.25, 3)["val"]}
    assert len(more & set(first["val"])) >= 2
    assert split_samples(folder_samples(own), 0, 3)["val"] == []


def test_folders_called_train_and_val_are_the_split(own):
    for folder in ("images", "labels", "gt", "masks"):
        (own / folder / "deep").rename(own / folder / "val")
        (own / folder / "train").mkdir()
        for path in [path for path in (own / folder).iterdir() if path.is_file()]:
            path.rename(own / folder / "train" / path.name)
    train, validation = opened(own)
    assert len(train) == 6 and all(stem.startswith("train/") for stem in train.stems)
    assert all(item["stem"].startswith("val/er/") for item in validation["val"])
    shutil.copy(own / "images" / "train" / "00.png", own / "images" / "stray.png")
    with pytest.raises(InputError, match=r"stray: images/ has train/ and val/"):
        folder_samples(own)


@pytest.mark.parametrize(("record", "folder", "stated"), [
    ({"set": "hypersim", "splits": "published"}, "train", "hypersim train"),
    ({"set": "vkitti", "splits": "own"}, "train", "vkitti"),
    ({"set": "hypersim", "splits": "published"}, "", "hypersim"),
    ({"task": "normal"}, "train", ""),
    (None, "train", ""),
])  # fmt: skip
def test_prepared_images_name_their_set_and_its_split(record, folder, stated, tmp_path):
    for role in ("images", "labels"):
        (tmp_path / role / folder).mkdir(parents=True)
        for name in ("a", "b"):
            pixels = np.random.default_rng(len(role)).integers(0, 255, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / role / folder / f"{name}.png")
    if record:
        (tmp_path / "provenance.json").write_text(json.dumps(record))
    train, _ = opened(tmp_path, fraction=0)
    assert train.trained_on == stated


def test_a_manifest_is_the_same_data(own):
    folder, _ = opened(own)
    samples = manifest_samples(manifest(own))
    listed, _ = open_folder(samples, NORMAL, 0.25, 3, frame="opengl", resolution=64)
    assert listed.fingerprint == folder.fingerprint
    assert all(torch.equal(listed[2][key], folder[2][key]) for key in ("rgb", "target", "gt", "valid"))


@pytest.mark.parametrize(("line", "message"), [
    ("{", r"data\.jsonl:2: not JSON"),
    ("[1]", r":2: expected an object of strings"),
    ('{"image": "a.png"}', r":2: no 'label'"),
    ('{"image": "a.png", "label": "b.png", "lable": "c"}', r":2: unknown key 'lable'"),
    ('{"image": "a.png", "label": "b.png", "split": "test"}', r"neither train nor val"),
    ('{"image": "x.png", "label": "b.png"}', r":2: a second sample called x"),
    ('{"image": "a.png", "label": "b.png", "split": "val"}', "some lines have a split"),
])  # fmt: skip
def test_wrong_manifests_name_the_line(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text('{"image": "x.png", "label": "y.png"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        manifest_samples(path)


def test_missing_and_double_files(own):
    (own / "labels" / "00.png").unlink()
    (own / "labels" / "deep" / "er" / "01.png").unlink()
    with pytest.raises(InputError, match=r"2 of 12 samples lack a file, e\.g\. .*labels/00\.png"):
        opened(own)
    train, _ = opened(own, skip_missing=True)
    assert len(train) == 8
    assert "left out 2 of 12" in train.notes[0]
    shutil.copy(own / "images" / "02.png", own / "images" / "02.jpg")
    with pytest.raises(InputError, match=r"02\.jpg and .*02\.png have one name"):
        opened(own)
    shutil.rmtree(own / "labels")
    with pytest.raises(InputError, match="labels: no such folder"):
        opened(own)


def test_truth_of_some_and_of_none(own):
    for path in sorted((own / "gt").rglob("*.npy"))[:6]:
        path.unlink()
    train, _ = opened(own, fraction=0)
    valid = [train[i]["valid"].any().item() for i in range(12)]
    assert sum(valid) == 6 and train.measured
    shutil.rmtree(own / "gt")
    train, _ = opened(own)
    assert not train.measured and "LABELS" in train.notes[-1]
    torch.testing.assert_close(train[0]["gt"], torch.nn.functional.normalize(train[0]["target"], dim=0))
    depth, _ = opened(own, intrinsic=DEPTH)
    assert not depth[0]["valid"].any() and "nothing is scored" in depth.notes[-1]


def test_truth_of_every_kind(own):
    stem = folder_samples(own)[0].stem
    gt, mask = own / "gt" / f"{stem}.npy", own / "masks" / f"{stem}.npy"

    def item(intrinsic):
        return FolderMaps(folder_samples(own)[:1], intrinsic, measured=True, resolution=64)[0]

    np.save(mask, np.ones((72, 96)))
    depth = np.full((72, 96), 3.0, np.float32)
    depth[:, :48] = np.nan
    np.save(gt, depth)
    found = item(DEPTH)
    assert found["gt"].shape == (1, 64, 64) and found["valid"].float().mean() == 0.5
    gt.unlink()
    Image.fromarray(np.full((72, 96, 3), 188, np.uint8)).save(gt.with_suffix(".png"))
    found = item(ALBEDO)
    assert found["gt"].shape == (3, 64, 64) and found["gt"].mean() == pytest.approx(0.503, abs=0.002)  # decoded sRGB
    with pytest.raises(InputError, match=r"\.png: ground truth depth is read from \.npy in metres only"):
        item(DEPTH)
    np.save(mask, np.ones((5, 5)))
    with pytest.raises(InputError, match=r"mask of shape \(5, 5\)"):
        item(ALBEDO)


@pytest.mark.parametrize("script", ["sd_single_diode_pseudo_normal.py", "augunet_diode_pseudo_depth.py"])
def test_training_on_own_data(script, own, flags, tmp_path):
    words = flags(script, tmp_path / "run", "--max_train_steps", 2, "--val_fraction", 0.25)
    for name in ("--train_data_dir", "--pseudo_root"):
        i = words.index(name)
        del words[i : i + 2]
    frame = ["--gt_frame", "opengl"] if script.endswith("normal.py") else []
    if frame:
        run_here(script, [*words, "--dataset", "folder", "--train_data_dir", str(own), *frame])
    else:
        lines = [json.dumps({"image": s.rgb, "label": s.label}) for s in folder_samples(own)]
        path = tmp_path / "plain.jsonl"
        path.write_text("\n".join(lines))
        own_labels = ["--dataset", "manifest", "--manifest", str(path), "--skip_label_check"]  # of normals, for depth
        run_here(script, [*words, *own_labels])
    assert sorted(losses(tmp_path / "run")) == [1, 2]
    names = {name for record in records(tmp_path / "run") for name in record if name.startswith("val/")}
    assert ("val/val/mean" in names) if frame else not names
    assert (tmp_path / "run" / "validation" / "000002_val.png").is_file()
    with safe_open(tmp_path / "run" / SAFETENSORS, framework="pt") as file:
        assert file.metadata()["validated_against"] == ("ground truth" if frame else "pseudo label")


def test_check_counts_missing_corrupt_and_mismatched_files(own, capsys):
    assert check(["--dataset", "folder", "--train_data_dir", str(own), "--gt_frame", "opengl"]) == 0
    assert "12 samples, 48 files" in capsys.readouterr().out
    (own / "labels" / "00.png").write_bytes(b"")
    np.save(own / "gt" / "02.npy", np.ones((5, 6, 3), np.float32))
    (own / "labels" / "deep" / "er" / "01.png").unlink()
    assert check(["--dataset", "folder", "--train_data_dir", str(own)]) == 1
    text = capsys.readouterr().out
    assert "1 missing, 1 corrupt, 1 mismatched" in text and "02.npy: 6x5, its image 96x72" in text
    path = own.parent / "m.jsonl"
    path.write_text(json.dumps({"image": "own/images/02.png", "label": "own/labels/02.png"}))
    assert check(["--dataset", "manifest", "--manifest", str(path)]) == 0


def test_a_forgotten_dataset_flag_is_named_where_images_are_there(flags, own, tmp_path):
    words = flags("sd_single_diode_pseudo_normal.py", tmp_path / "run")
    words[words.index("--train_data_dir") + 1] = str(own)
    with pytest.raises(InputError, match=r"holds images/, so it is not a DIODE tree; pass --dataset folder"):
        run_here("sd_single_diode_pseudo_normal.py", words)
    del words[words.index("--pseudo_root") : words.index("--pseudo_root") + 2]  # or without labels' folder
    with pytest.raises(InputError, match=r"pass --dataset folder"):
        run_here("sd_single_diode_pseudo_normal.py", words)
