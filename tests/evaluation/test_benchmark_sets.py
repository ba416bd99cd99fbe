"""evaluate_benchmarks.py on the field's test sets, tiny, in their own layouts, with predictions of a known error."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import eval_layouts as layouts
import numpy as np
import pytest
from eval_layouts import WRITERS, save, turned
from helpers import fork, run_here
from PIL import Image

import evaluate
import evaluate_benchmarks
from utils.benchmark_sets import sets
from utils.benchmark_sets.files import find_all
from utils.benchmark_sets.rows import read_image
from utils.errors import InputError
from utils.image_io.colour_space import to_srgb
from utils.image_io.files import read_array
from utils.intrinsics import ALBEDO, NORMAL
from utils.kinds.axes import to_frame
from utils.kinds.base import Rules
from utils.kinds.colour import albedo_metrics

ROOT = Path(evaluate_benchmarks.__file__).parent
LORAS = ROOT / "miniworld" / "mini-loras"
BY_NAME = {one.name: one for one in sets.SETS}


def known_error(one: sets.BenchmarkSet, truth: np.ndarray) -> np.ndarray:
    """A prediction of this project: normals turned by 5 degrees, depth scaled and shifted, colours times 0.7."""
    return {
        "normal": lambda: turned(truth, 5),
        "depth": lambda: 2 - 0.3 * truth,
        "albedo": lambda: 0.7 * truth,
        "shading": lambda: to_srgb(0.7 * truth),
    }[one.intrinsic.name]()


def predict(folder: Path, name: str, stored: list, make: Callable | None = None) -> Path:
    """Write predictions under the names of this project's inference."""
    one = BY_NAME[name]
    for image in stored:
        values = (make or (lambda truth: known_error(one, truth)))(image.truth)
        place = folder / image.image
        save(place.with_name(f"{place.stem}_{one.intrinsic.name}.npy"), values)
    return folder


@pytest.fixture
def score(tmp_path, capsys):
    """score(*flags) -> (results.json's results by set, printed text) of tmp_path/EVAL; tmp_path/pred unless --lora."""

    def call(*flags: object, keep: bool = False, **loras: object) -> tuple[dict[str, dict], str]:
        words = ["--data", tmp_path / "EVAL", "--output_dir", tmp_path / "out", "--workers", 1, *flags]
        if not {"--lora", "--pred_dir"} & set(flags):
            words += ["--pred_dir", tmp_path / "pred"]
        if not keep:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        run_here("evaluate_benchmarks.py", [str(word) for word in words])
        printed = capsys.readouterr()
        results = json.loads((tmp_path / "out/results.json").read_text())["results"]
        return {one["set"]: one for one in results}, printed.out + printed.err

    return call


@pytest.mark.parametrize("name", [one.name for one in sets.SETS])
def test_a_known_error_is_what_the_table_says(name, tmp_path, score):
    one = BY_NAME[name]
    stored = WRITERS[name](tmp_path / "EVAL")
    predict(tmp_path / "pred", name, stored)
    results, text = score()
    assert list(results) == [name]
    result = results[name]
    metrics = result["metrics"]
    assert result["images"] == len(stored) and result["published_images"] == one.count
    if one.intrinsic is NORMAL:
        assert metrics["mean"] == pytest.approx(5, abs=1e-5) and metrics["median"] == pytest.approx(5, abs=1e-5)
        assert (metrics["below_5"] < 100) and metrics["below_7.5"] == 100
        assert "5.00    5.00   100.0  100.0  100.0" in text
    elif one.intrinsic.name == "depth":
        assert metrics["abs_rel"] == pytest.approx(0, abs=1e-6) and metrics["delta1"] == 1  # float32 truth
    elif one.judged:
        assert metrics == {"whdr": pytest.approx(1 / 6)} and "16.7" in text
    elif one.intrinsic is ALBEDO:  # by Marigold's protocol the scale counts
        errors = [np.square(0.3 * image.truth)[image.valid].mean() for image in stored]
        assert metrics["psnr"] == pytest.approx(np.mean(-10 * np.log10(errors)), abs=1e-6)
        assert metrics["ssim"] < 0.95
    else:
        assert metrics["psnr"] is None or metrics["psnr"] > 100
        assert metrics["ssim"] == pytest.approx(1)
    if not one.judged:
        assert result["pixels"] == sum(int(image.valid.sum()) for image in stored)
    count = f"{len(stored)} images are here, {one.count:,} are published"
    assert result["warnings"] == [f"{count}: the scores are of another set"] and f"{count}\n" in text
    assert "nothing here reproduces its tables" in (tmp_path / "out/results.md").read_text()
    assert f"{name} · " in (tmp_path / "out/index.html").read_text()


def test_the_table_is_evaluate_pys(tmp_path, score):
    """Pooled and per image, of images of unlike sizes."""
    for name, protocol in (("dsine-ibims", "pooled"), ("marigold-ibims-normal", "per_image")):
        shutil.rmtree(tmp_path / "EVAL", ignore_errors=True)
        stored = WRITERS[name](tmp_path / "EVAL")
        first = stored[0]
        for place in (tmp_path / "EVAL").rglob(f"*{Path(first.image).stem.removesuffix('_img')}_normal.*"):
            save(place, read_array(place)[:20])
        stored[0] = first._replace(truth=first.truth[:20], valid=first.valid[:20])
        rng = np.random.default_rng(0)
        for number, image in enumerate(stored):
            values = turned(image.truth, 4 * number) + rng.normal(scale=0.1, size=image.truth.shape)
            stem = f"{Path(image.image).parent}/{Path(image.image).stem}"
            save(tmp_path / f"pred/{stem}_normal.npy", values)
            save(tmp_path / f"gt/{stem}_normal.npy", np.where(image.valid[..., None], image.truth, 0))
        ours = score()[0][name]
        words = ["--task", "normal", "--protocol", protocol, "--pred_dir", tmp_path / "pred"]
        words += ["--gt_dir", tmp_path / "gt", "--output", tmp_path / f"{protocol}.json"]
        evaluate.main([str(word) for word in words])
        theirs = json.loads((tmp_path / f"{protocol}.json").read_text())
        assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-6)
        assert ours["intervals"]["mean"] == pytest.approx(theirs["intervals"]["mean"], rel=1e-6)
        shutil.rmtree(tmp_path / "pred"), shutil.rmtree(tmp_path / "gt")


def least_squares(pred: np.ndarray, gt: np.ndarray) -> np.ndarray:
    columns = np.stack([pred, np.ones_like(pred)], axis=1)
    return columns @ np.linalg.lstsq(columns, gt, rcond=None)[0]


@pytest.mark.parametrize("name", ["nyuv2-depth", "kitti-depth", "diode-depth"])
def test_depth_errors_are_of_the_sets_own_pixels(name, tmp_path, score):
    """Range, crop and mask of each, by plain least squares."""
    stored = WRITERS[name](tmp_path / "EVAL")
    rng = np.random.default_rng(1)
    noise = [rng.uniform(0.8, 1.2, image.truth.shape) for image in stored]
    found = iter(noise)
    predict(tmp_path / "pred", name, stored, lambda truth: 3 + 2 * truth * next(found))
    expected = []
    for image, factor in zip(stored, noise, strict=True):
        gt = image.truth[image.valid]
        fitted = least_squares((3 + 2 * image.truth * factor)[image.valid], gt)
        low, high = {"nyuv2": (1e-3, 10), "kitti": (1e-5, 80), "diode": (0.6, 350)}[name.removesuffix("-depth")]
        expected.append((np.abs(fitted.clip(low, high) - gt) / gt).mean())
    assert score()[0][name]["metrics"]["abs_rel"] == pytest.approx(np.mean(expected), rel=1e-9)


def test_a_network_sees_the_part_of_an_image_that_is_scored(tmp_path):
    """KITTI's benchmark crop, the bottom centre, as Marigold predicts it."""
    WRITERS["kitti-depth"](tmp_path)
    one = BY_NAME["kitti-depth"]
    item = one.find(find_all(tmp_path, "--data"))[0]
    whole = np.asarray(Image.open(io.BytesIO(item.image.read())))
    assert whole.shape == (375, 1245, 3)
    assert np.array_equal(read_image(item, one.load(item, one.rules())), whole[23:, 14:1230])


def test_an_archive_that_was_cut_off_is_refused(tmp_path, score):
    predict(tmp_path / "pred", "scannet-depth", WRITERS["scannet-depth"](tmp_path / "EVAL"))
    archive = tmp_path / "EVAL/scannet/scannet_val_sampled_800_1.tar"
    whole = archive.read_bytes()
    for size in (1000, len(whole) - 12_000):
        archive.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"scannet_val_sampled_800_1.tar.*(copy it again|has the number|lack)"):
            score()


# Wrong conventions, one each -----------------------------------------------------------------------------------------


def rewrite(folder: Path, pattern: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in folder.rglob(pattern):
        save(path, change(read_array(path)))


def test_true_normals_in_another_frame_are_reported(tmp_path, score):
    stored = WRITERS["marigold-oasis-normal"](tmp_path / "EVAL")
    predict(tmp_path / "pred", "marigold-oasis-normal", stored)
    rewrite(tmp_path / "EVAL", "*_normal.npy", lambda values: values * np.float32([1, -1, -1]))  # opencv's
    result = score()[0]["marigold-oasis-normal"]
    assert any("100 % of the true normals face away from the camera" in text for text in result["warnings"])
    assert result["metrics"]["mean"] > 60


def test_predictions_in_another_frame_are_reported_by_the_axis(tmp_path, score):
    stored = WRITERS["dsine-ibims"](tmp_path / "EVAL")
    predict(tmp_path / "pred", "dsine-ibims", stored, lambda truth: turned(truth, 5) * (1, -1, 1))
    result = score()[0]["dsine-ibims"]
    (text,) = [one for one in result["warnings"] if "published:" not in one]
    assert "flipping y of the predictions would cut the mean error" in text and "pass the predictions' own" in text


def test_distance_in_the_place_of_planar_depth_changes_the_score(tmp_path, score):
    """A wall: all its planar depths are one number, its distances are not, and no scale and shift undo that."""
    stored = WRITERS["scannet-depth"](tmp_path / "EVAL")
    rows, columns = np.mgrid[:48, :64]
    longer = np.sqrt(((columns - 31.5) ** 2 + (rows - 23.5) ** 2) / 60**2 + 1)
    predict(tmp_path / "pred", "scannet-depth", stored, lambda truth: truth * longer)
    expected = [
        (np.abs(least_squares((i.truth * longer)[i.valid], i.truth[i.valid]) - i.truth[i.valid]) / i.truth[i.valid])
        for i in stored
    ]
    result = score()[0]["scannet-depth"]
    assert result["metrics"]["abs_rel"] == pytest.approx(np.mean([one.mean() for one in expected]), rel=1e-6)
    assert result["metrics"]["abs_rel"] > 0.01


def test_true_depth_in_centimetres_is_reported(tmp_path, score, monkeypatch):
    plain = layouts.save
    with monkeypatch.context() as patch:
        patch.setattr(layouts, "save", lambda path, array: plain(
            path, (array / 10).astype(np.uint16) if "/depth/" in path.as_posix() else array))  # fmt: skip
        stored = WRITERS["scannet-depth"](tmp_path / "EVAL")
    predict(tmp_path / "pred", "scannet-depth", stored)
    (text,) = [one for one in score()[0]["scannet-depth"]["warnings"] if "published" not in one]
    assert text.startswith("the median of the true depth is 0.") and "another unit than 1000 per metre" in text


def test_infinite_depth_is_not_scored(tmp_path, score):
    """ETH3D's truth is inf where nothing was measured: 7 of 64 columns."""
    stored = WRITERS["eth3d-depth"](tmp_path / "EVAL")
    predict(tmp_path / "pred", "eth3d-depth", stored)
    result = score()[0]["eth3d-depth"]
    assert result["pixels"] == 2 * 48 * 57 and result["unknown_truth"]["reasons"] == {"NaN or inf": 2 * 48 * 7}


@pytest.mark.parametrize(("name", "kept", "what"), [
    ("dsine-vkitti", np.uint8, "holds uint8, where dsine-vkitti has u2"),
    ("dsine-nyuv2", np.uint16, "holds uint16, where dsine-nyuv2 has u1"),
])  # fmt: skip
def test_normals_of_another_number_of_bits_are_refused(name, kept, what, tmp_path, score):
    stored = WRITERS[name](tmp_path / "EVAL")
    predict(tmp_path / "pred", name, stored)
    rewrite(tmp_path / "EVAL", "*_normal.png", lambda v: (v / np.iinfo(v.dtype).max * np.iinfo(kept).max).astype(kept))
    with pytest.raises(InputError, match=what):
        score()


def test_depth_of_another_size_than_its_image_is_refused(tmp_path, score):
    stored = WRITERS["eth3d-depth"](tmp_path / "EVAL")
    predict(tmp_path / "pred", "eth3d-depth", stored)
    archive = tmp_path / "EVAL/eth3d/eth3d.tar"
    images = [np.zeros((48, 60, 3), np.uint8)] * 2
    folder = tmp_path / "EVAL/eth3d/again"
    for name, file in find_all(tmp_path / "EVAL", "--data").items():
        path = folder / name.partition("eth3d.tar/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.read())
        if "/rgb/" in name:
            Image.fromarray(images.pop()).save(path, "JPEG")
    layouts.pack(folder, archive, [])
    with pytest.raises(InputError, match="12288 bytes are not 48x60 floats"):
        score()


def test_the_pickles_of_oasis_are_not_read(tmp_path, score, capsys):
    predict(tmp_path / "pred", "dsine-ibims", WRITERS["dsine-ibims"](tmp_path / "EVAL"))
    (tmp_path / "EVAL/dsine_eval/oasis/val").mkdir(parents=True)
    (tmp_path / "EVAL/dsine_eval/oasis/val/1.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    results, text = score()
    assert list(results) == ["dsine-ibims"] and "oasis: its pickles would run code and are not read" in text
    with pytest.raises(InputError, match="OASIS is there as pickles, which would run code"):
        score("--sets", "marigold-oasis-normal")


@pytest.mark.parametrize(("words", "message"), [
    (["--sets", "nyu"], "--sets nyu: no such set; choose from dsine-nyuv2"),
    (["--sets", "kitti-depth"], "--sets kitti-depth: not below --data"),
    (["--limit", 0], "--limit=0: must be at least 1"),
    (["--center_crop"], "--center_crop means nothing without --lora"),
    (["--steps", 3], "--steps means nothing without --lora"),
    (["--lora", LORAS / "normal", "--center_crop"], "--center_crop: the sets are scored on whole images"),
    (["--lora", LORAS / "normal", "--pred_frame", "dsine"], "--pred_frame means nothing without --pred_dir"),
])  # fmt: skip
def test_flags_that_cannot_work_are_refused(words, message, tmp_path, score):
    WRITERS["marigold-oasis-normal"](tmp_path / "EVAL")
    (tmp_path / "pred").mkdir()
    with pytest.raises(InputError, match=message):
        score(*words)


def test_two_copies_of_a_set_are_refused(tmp_path, score):
    WRITERS["dsine-ibims"](tmp_path / "EVAL")
    shutil.copytree(tmp_path / "EVAL/dsine_eval", tmp_path / "EVAL/copy/dsine_eval")
    with pytest.raises(InputError, match="2 copies of dsine-ibims"):
        score()


# Other people's predictions ------------------------------------------------------------------------------------------


def test_predictions_are_found_under_the_names_of_their_programs(tmp_path, score):
    """Marigold's with the channels first in opengl's axes, Lotus's as 8-bit .png in DSINE's, without a flag."""
    data = tmp_path / "EVAL"
    stored = WRITERS["dsine-scannet"](data), WRITERS["scannet-depth"](data), WRITERS["nyuv2-depth"](data)
    normals, scannet, nyuv2 = stored
    for image in normals:
        off, name = turned(image.truth, 5), Path(image.image)
        marigold = to_frame(off, "opengl").astype(np.float32).transpose(2, 0, 1)
        save(tmp_path / "marigold/scannet" / name.with_suffix(".npy"), marigold)
        eight = np.rint((to_frame(off, "dsine") + 1) / 2 * 255).astype(np.uint8)
        save(tmp_path / "lotus/scannet" / f"{name.parent}_{name.stem.removesuffix('_img')}_norm.png", eight)
    for image in scannet:
        name = Path(image.image)
        save(tmp_path / "marigold" / name.with_name(f"pred_{name.stem}.npy"), 1 + 0.1 * image.truth)
    for image in nyuv2:
        name = Path(image.image)
        save(tmp_path / "marigold" / name.with_name(f"pred_{name.stem[-4:]}.npy"), 1 + 0.1 * image.truth)
    results, _ = score("--pred_dir", tmp_path / "marigold")
    assert results["dsine-scannet"]["metrics"]["mean"] == pytest.approx(5, abs=1e-4)
    assert results["dsine-scannet"]["settings"]["pred_frame"] == "opengl"
    assert results["scannet-depth"]["metrics"]["abs_rel"] == pytest.approx(0, abs=1e-9)
    assert results["nyuv2-depth"]["metrics"]["abs_rel"] == pytest.approx(0, abs=1e-9)
    results, text = score("--pred_dir", tmp_path / "lotus")
    assert list(results) == ["dsine-scannet"] and "nyuv2-depth: not scored, no predictions of it" in text
    assert results["dsine-scannet"]["metrics"]["mean"] == pytest.approx(5, abs=0.1)  # 8 bits
    assert results["dsine-scannet"]["settings"]["pred_frame"] == "dsine"


def test_predictions_under_unknown_names_are_an_error_with_the_place_of_their_names(tmp_path, score):
    WRITERS["dsine-ibims"](tmp_path / "EVAL")
    save(tmp_path / "pred/mine.npy", np.zeros((4, 4, 3), np.float32))
    with pytest.raises(InputError, match=r"dsine-ibims: no predictions of it\); \S+/README.md lists .* names of pred"):
        score()


def test_a_missing_prediction_is_an_error(tmp_path, score):
    predict(tmp_path / "pred", "dsine-ibims", WRITERS["dsine-ibims"](tmp_path / "EVAL")[1:])
    with pytest.raises(InputError, match=r"1 of 4 images of dsine-ibims have no prediction, e.g. corridor_00"):
        score()


def test_a_prediction_that_could_be_of_two_sets_is_refused(tmp_path, score):
    for name in ("marigold-oasis-normal", "marigold-diode-normal"):
        stored = WRITERS[name](tmp_path / "EVAL")
    predict(tmp_path / "pred", "marigold-oasis-normal", stored)
    with pytest.raises(InputError, match=r"could be a prediction of diode and of oasis; pass --sets, or"):
        score()


# LoRAs, samples, and runs that continue ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "EVAL"
    for name in ("dsine-ibims", "scannet-depth"):
        WRITERS[name](folder)
    return folder


def of_loras(data: Path, out: Path, *more: object) -> list[str]:
    words = ["--lora", LORAS / "normal", LORAS / "depth", "--data", data, "--output_dir", out, "--workers", 1, *more]
    return [str(word) for word in words]


def results_of(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text())["results"]


@pytest.fixture(scope="module")
def at_once(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scores") / "out"
    run_here("evaluate_benchmarks.py", of_loras(data, out))
    return out


def test_a_lora_is_scored_on_what_it_predicts(data, at_once, tmp_path):
    """As by inference and evaluate.py, in two steps."""
    normal, depth = results_of(at_once)
    assert (normal["set"], depth["set"]) == ("dsine-ibims", "scannet-depth")
    folder = data / "dsine_eval/ibims/ibims"
    words = ["--lora", LORAS / "normal", "--input_dir", folder, "--output_dir", tmp_path, "--npy"]
    run_here("inference_sd_single.py", [str(word) for word in words])
    one = BY_NAME["dsine-ibims"]
    for item in one.find(find_all(data, "--data")):
        truth = one.load(item, one.rules())
        stem = Path(item.name).stem
        save(tmp_path / f"gt/{stem}_normal.npy", np.where(truth.valid[..., None], truth.gt, 0))
    words = ["--task", "normal", "--pred_dir", tmp_path / "normal/predicted", "--gt_dir", tmp_path / "gt"]
    evaluate.main([str(word) for word in (*words, "--output", tmp_path / "m.json")])
    theirs = json.loads((tmp_path / "m.json").read_text())
    assert theirs["images"] == 4 and normal["metrics"] == pytest.approx(theirs["metrics"], rel=1e-9)


def test_a_run_that_was_stopped_continues(data, at_once, tmp_path, monkeypatch):
    from utils.benchmark_sets import run as running

    written, write = [], running.write_record

    def stop(folder: Path, score: object, extra: dict) -> None:
        if len(written) == 5:  # all of the first set, one of the second
            raise KeyboardInterrupt
        written.append(score)
        write(folder, score, extra)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(running, "write_record", stop)
        run_here("evaluate_benchmarks.py", of_loras(data, tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(running, "write_record", lambda *args: (written.append(args[1]), write(*args)))
        run_here("evaluate_benchmarks.py", of_loras(data, tmp_path / "out"))
    assert len(written) == 6  # no image was scored twice
    assert results_of(tmp_path / "out") == results_of(at_once)
    assert (tmp_path / "out/index.html").read_text() == (at_once / "index.html").read_text()


@pytest.mark.slow
def test_two_processes_score_as_one(data, at_once, tmp_path):
    fork("evaluate_benchmarks.py", *of_loras(data, tmp_path / "out"), processes=2)
    assert results_of(tmp_path / "out") == results_of(at_once)


def test_an_incomplete_set_is_named_where_a_row_is_scored_on_it(data, tmp_path, capsys):
    words = ["--lora", LORAS / "normal", "--data", data, "--output_dir", tmp_path, "--limit", 1]
    run_here("evaluate_benchmarks.py", [str(word) for word in words])
    text = capsys.readouterr().err
    assert text.count("dsine-ibims: 4 images are here, 100 are published") == 1 and "scannet-depth" not in text


def test_results_of_other_settings_or_files_are_not_mixed(data, at_once, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(at_once, out)
    run_here("evaluate_benchmarks.py", of_loras(data, out))  # the same again: read
    with pytest.raises(InputError, match=r"holds results of other settings or files .resolution None, now 128"):
        run_here("evaluate_benchmarks.py", of_loras(data, out, "--resolution", 128))
    changed = tmp_path / "EVAL"
    shutil.copytree(data, changed)
    save(next(changed.rglob("*_img.png")), np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(InputError, match=r"holds results of other settings or files .data "):
        run_here("evaluate_benchmarks.py", of_loras(changed, out))


def test_a_sample_says_so(tmp_path, score):
    predict(tmp_path / "pred", "dsine-ibims", WRITERS["dsine-ibims"](tmp_path / "EVAL"))
    results, text = score("--limit", 2)
    result = results["dsine-ibims"]
    assert result["sample"] and result["images"] == 2 and "a sample (--limit), not the set" in text
    kept = json.loads(next((tmp_path / "out").rglob("result.json")).read_text())["per_image"]
    assert [one["name"] for one in kept] == ["corridor_00_img.png", "corridor_02_img.png"]


def test_a_run_with_fewer_sets_names_the_rows_that_the_files_lose(tmp_path, score):
    for name in ("dsine-ibims", "scannet-depth"):
        predict(tmp_path / "pred", name, WRITERS[name](tmp_path / "EVAL"))
    both, text = score()
    assert len(both) == 2 and "earlier run" not in text
    fewer, text = score("--sets", "dsine-ibims", keep=True)
    assert list(fewer) == ["dsine-ibims"]
    assert re.search(r"note: .*results.json: without 1 results of an earlier run \(.*pred on scannet-depth\)", text)


def test_published_rows_are_marked_and_name_source_and_protocol(tmp_path, score):
    predict(tmp_path / "pred", "dsine-nyuv2", WRITERS["dsine-nyuv2"](tmp_path / "EVAL"))
    _, text = score()
    (line,) = [line for line in text.splitlines() if "Lotus-2" in line]
    assert line.split() == ["Lotus-2", "(arXiv", "2512.01030)", "not", "stated", "†", "16.9", "-", "-", "-", "-"]
    published = json.loads((tmp_path / "out/results.json").read_text())["published"]
    assert all(row["source"] and row["protocol"] for row in published)
    assert "Intrinsic LoRA" not in [row["method"] for row in published]


def test_a_lora_is_not_scored_on_images_it_has_seen(data, tmp_path, capsys):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    lora = tmp_path / "lora"
    shutil.copytree(LORAS / "normal", lora)
    (lora / "recipe.txt").write_text(f"--train_data_dir={tmp_path / 'own'}\n--dataset=folder\n")
    (tmp_path / "own/images").mkdir(parents=True)
    seen = next(data.rglob("corridor_01_img.png"))
    (tmp_path / "own/images/a.png").hardlink_to(seen)
    words = ["--lora", lora, "--data", data, "--output_dir", tmp_path / "out", "--sets", "dsine-ibims"]
    with pytest.raises(InputError, match=r"its recipe.txt names 1 of these images as its training data"):
        run_here("evaluate_benchmarks.py", [str(word) for word in words])
    (lora / "recipe.txt").write_text("--train_data_dir=not/here\n")
    run_here("evaluate_benchmarks.py", [str(word) for word in (*words, "--limit", 1)])
    assert "not/here is not here, so whether it holds images of the sets is unknown" in capsys.readouterr().out
    (lora / "recipe.txt").unlink()
    file = next(lora.glob("*.safetensors"))
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    weights = load_file(file)
    save_file(weights, file, header | {"trained_on": "hypersim train,ibims"})
    with pytest.raises(InputError, match="its header has trained_on='ibims'"):
        run_here("evaluate_benchmarks.py", [str(word) for word in words])
    save_file(weights, file, header | {"trained_on": "hypersim train,ibims train"})
    capsys.readouterr()
    run_here("evaluate_benchmarks.py", [str(word) for word in (*words, "--limit", 1)])
    seen = "its header has trained_on='ibims train': this is not a zero-shot score"
    assert f"WARNING: {tmp_path.name}/lora on dsine-ibims: {seen}" in capsys.readouterr().out


def test_colours_can_be_scored_with_their_own_scale():
    rng = np.random.default_rng(0)
    gt, valid = rng.uniform(0.1, 1, (20, 20, 3)), np.ones((20, 20), bool)
    as_is = ALBEDO.map_kind.metrics(0.7 * gt, gt, valid, Rules(ALBEDO, "as_is"))
    assert as_is["rmse"] == pytest.approx(np.sqrt(np.square(0.3 * gt).mean()))
    assert as_is["si_mse"] == pytest.approx(0, abs=1e-20)
    assert ALBEDO.map_kind.metrics(0.7 * gt, gt, valid, Rules(ALBEDO, "scale_aligned")) == albedo_metrics(
        0.7 * gt, gt, valid
    )
    bright = np.percentile(gt @ (0.3, 0.59, 0.11), 90)
    mapped = (0.8 / bright * gt).clip(0, 1)
    off = gt + 0.1 * rng.normal(size=gt.shape)
    scale = np.vdot(off, gt) / np.vdot(off, off)
    found = ALBEDO.map_kind.metrics(off, gt, valid, Rules(ALBEDO, "tone_mapped"))
    assert found["mae"] == pytest.approx(np.abs((0.8 / bright * scale * off).clip(0, 1) - mapped).mean())
