"""evaluate.py from the outside: files on disk, the command line, the result file, the messages."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import fork
from PIL import Image

import evaluate
from studies.conventions import shots
from utils import __version__, errors
from utils.evaluation import pairs, scoring
from utils.image_io.files import read_array, resize
from utils.intrinsics import ALBEDO, INTRINSICS, NORMAL
from utils.kinds.axes import unit_vectors
from utils.kinds.base import Rules

RNG = np.random.default_rng(0)
SHAPE = (24, 32)


def save(path, array):
    """Writes .npy as it is and .png from uint8, uint16 or bool."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


def normals(angle=0.0, shape=SHAPE):
    """Normals `angle` degrees from the axis that `normals()` has everywhere."""
    radians = np.radians(angle)
    return np.broadcast_to(np.float32([np.sin(radians), 0, -np.cos(radians)]), (*shape, 3)).copy()


def random_normals(shape=SHAPE):
    return unit_vectors(RNG.normal(size=(*shape, 3))).astype(np.float32)


def depth(shape=SHAPE):
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    return (3 + np.sin(rows / 5) + np.cos(cols / 4) + 0.2 * RNG.normal(size=shape)).astype(np.float32)


def encode(normal_map):
    return np.rint(255 * (normal_map + 1) / 2).astype(np.uint8)


@pytest.fixture
def run(tmp_path, capsys):
    """run(*flags) -> (result, printed text) of `evaluate.py` on tmp_path/pred and tmp_path/gt; fails on an error."""

    def call(*flags, task="normal"):
        output = tmp_path / "metrics.json"
        output.unlink(missing_ok=True)
        argv = ["--task", task, "--pred_dir", tmp_path / "pred", "--output", output, "--workers", "1", *flags]
        if not {"--gt_dir", "--whdr"} & set(flags):
            argv += ["--gt_dir", tmp_path / "gt"]
        evaluate.main([str(word) for word in argv])
        printed = capsys.readouterr()
        return json.loads(
            output.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON")
        ), printed.out

    return call


@pytest.fixture
def fail(tmp_path, capsys):
    """fail(*flags) -> the message with which the command refuses; fails if it does not, or leaves a result file."""

    def call(*flags, task="normal"):
        argv = ["--task", task, "--pred_dir", tmp_path / "pred", "--output", tmp_path / "metrics.json", *flags]
        if not {"--gt_dir", "--whdr"} & set(flags):
            argv += ["--gt_dir", tmp_path / "gt"]
        with pytest.raises(SystemExit) as ended:
            errors.run(lambda: evaluate.main([str(word) for word in argv]))
        assert ended.value.code == 2
        assert not (tmp_path / "metrics.json").exists()
        return capsys.readouterr().err

    return call


# Normals


def test_pooled_and_per_image_differ_where_they_must(tmp_path, run):
    for name, angle, shape in (("a", 0, (10, 10)), ("sub/b", 40, (20, 15))):
        save(tmp_path / f"gt/{name}_normal.npy", normals(shape=shape))
        save(tmp_path / f"pred/{name}.npy", normals(angle, shape))
    pooled, _ = run()
    assert (pooled["task"], pooled["protocol"], pooled["images"], pooled["pixels"]) == ("normal", "pooled", 2, 400)
    assert pooled["metrics"]["mean"] == pytest.approx(30, rel=1e-6)
    assert pooled["metrics"]["median"] == pytest.approx(40, rel=1e-6)
    assert pooled["metrics"]["rmse"] == pytest.approx(np.sqrt(0.75) * 40, rel=1e-6)
    assert pooled["metrics"]["below_11.25"] == 25
    single, text = run("--protocol", "per_image")
    assert single["metrics"]["mean"] == pytest.approx(20, rel=1e-6)
    assert single["metrics"]["rmse"] == pytest.approx(20, rel=1e-6)
    assert single["metrics"]["below_11.25"] == 50
    assert [(image["name"], round(image["mean"], 4)) for image in single["per_image"]] == [("a", 0), ("sub/b", 40)]
    assert single["settings"]["resolution"] == {"10x10": 1, "20x15": 1}
    assert re.search(r"mean +20\.00 +\[", text) and "per_image" in text
    assert re.search(r"mean .*\] +degrees$", text, re.MULTILINE)
    assert re.search(r"below_30 .*\] +%$", text, re.MULTILINE)


def test_only_the_pooled_median_keeps_angles(tmp_path):
    pair = pairs.Pair("a", save(tmp_path / "p.npy", normals(7)), save(tmp_path / "g.npy", normals()))
    for protocol, kept in (("pooled", True), ("per_image", False)):
        score, _ = scoring.score_pair(pair, Rules(NORMAL, protocol))
        assert (score.angles is not None) == kept


def test_the_command_line_itself(tmp_path):
    save(tmp_path / "gt/a.npy", normals())
    save(tmp_path / "pred/a_normal.npy", normals(10))
    words = [
        "--task",
        "normal",
        "--protocol",
        "pooled",
        "--pred_dir",
        "pred",
        "--gt_dir",
        "gt",
        "--output",
        "out/m.json",
    ]
    fork("evaluate.py", *words, cwd=tmp_path)
    result = json.loads((tmp_path / "out/m.json").read_text())
    assert result["metrics"]["mean"] == pytest.approx(10, rel=1e-6)
    assert result["settings"]["version"] == __version__
    assert result["intervals"] is None  # one image: no resample differs
    (tmp_path / "pred/a_normal.npy").unlink()
    save(tmp_path / "pred/b_normal.npy", normals(10))
    done = fork("evaluate.py", *words, cwd=tmp_path, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "'b'" in done.stderr and "'a'" in done.stderr


def test_black_pixels_of_png_normals_are_unknown(tmp_path, run):
    gt = random_normals()
    black = encode(gt)
    black[:3] = 0
    save(tmp_path / "gt/a_normal.png", black)
    save(tmp_path / "pred/a_normal.png", encode(gt))
    result, _ = run()
    assert result["pixels"] == (SHAPE[0] - 3) * SHAPE[1]  # black is unknown in the truth
    assert result["metrics"]["mean"] == pytest.approx(0, abs=1e-9)
    save(tmp_path / "gt/a_normal.npy", gt)
    result, _ = run()  # now the .npy is the truth: only the rounding to 8 bits is left
    assert 0.05 < result["metrics"]["mean"] < 0.4
    save(tmp_path / "pred/a_normal.png", np.full((*SHAPE, 3), (255, 255, 0), np.uint8))  # n = (1, 1, -1) / sqrt(3)
    save(tmp_path / "gt/a_normal.npy", normals())
    result, _ = run()
    assert result["metrics"]["mean"] == pytest.approx(np.degrees(np.arccos(1 / np.sqrt(3))), rel=1e-5)


def test_npy_is_preferred_to_png_with_a_note(tmp_path, run):
    save(tmp_path / "gt/a_normal.npy", normals())
    save(tmp_path / "pred/a_normal.npy", normals(5))
    save(tmp_path / "pred/a_normal.png", encode(normals(50)))
    save(tmp_path / "pred/a_depth.npy", depth())  # another task in the same folder
    result, text = run()
    assert result["metrics"]["mean"] == pytest.approx(5, rel=1e-6)
    assert "1 predictions exist as .npy and .png: scored the .npy" in text


def test_frames_agree_after_conversion_and_a_flip_is_noticed(tmp_path, run):
    seen = random_normals()
    save(tmp_path / "gt/a.npy", seen * np.float32([1, -1, -1]))  # opengl
    save(tmp_path / "pred/a.npy", seen)
    result, _ = run("--gt_frame", "opengl")
    assert result["metrics"]["mean"] == pytest.approx(0, abs=1e-9) and result["warnings"] == []
    result, text = run()
    assert result["metrics"]["mean"] > 45
    assert "WARNING: flipping y and z of the predictions" in text and "--pred_frame" in text
    save(tmp_path / "pred/a.npy", -seen)
    result, _ = run("--gt_frame", "opengl", "--pred_frame", "dsine")
    assert result["metrics"]["mean"] == pytest.approx(0, abs=1e-9)
    for axis, letter in enumerate("xyz"):
        flipped = seen.copy()
        flipped[..., axis] *= -1
        save(tmp_path / "pred/a.npy", flipped)
        result, _ = run("--gt_frame", "opengl")
        assert f"flipping {letter} of the predictions" in result["warnings"][0]
    save(tmp_path / "pred/a.npy", random_normals())
    assert run("--gt_frame", "opengl")[0]["warnings"] == []  # bad everywhere is not flipped


def leaning_normals(count=4):
    """Normals that mostly face the viewer and lean up, of `count` images."""
    maps = [RNG.normal((0, -0.3, -1), 0.5, (*SHAPE, 3)) for _ in range(count)]
    return [unit_vectors(one).astype(np.float32) for one in maps]


@pytest.mark.parametrize(
    ("change", "words", "fix"),
    [
        (lambda n: n[..., ::-1], "swapping the axes x and z (red and blue: BGR channel order)", "RGB order"),
        (lambda n: n[..., [0, 2, 1]] * (1, 1, -1), "swapping the axes y and z", "pass --pred_frame blender"),
        (lambda n: n * (1, 1, -1), "flipping z", "pass --pred_frame directx, or --gt_frame directx"),
        (lambda n: n / 2 + 0.5, "are in [0,1] and were never shifted back", "re-export"),
    ],
)
def test_normals_in_another_convention_are_named_with_the_fix(tmp_path, run, change, words, fix):
    for number, n in enumerate(leaning_normals()):
        save(tmp_path / f"gt/{number}.npy", n)
        save(tmp_path / f"pred/{number}.npy", change(n).astype(np.float32))
    (warning,) = run()[0]["warnings"]
    assert words in warning and fix in warning and "4 of 4 images agree: sure" in warning
    flag = re.search(r"pass (--pred_frame \w+)", warning)
    if flag:  # and the flag puts it right
        result, _ = run(*flag[1].split())
        assert result["warnings"] == [] and result["metrics"]["mean"] == pytest.approx(0, abs=1e-3)


def test_truth_in_zero_to_one_is_named(tmp_path, run):
    for number, n in enumerate(leaning_normals()):
        save(tmp_path / f"gt/{number}.npy", n / 2 + np.float32(0.5))
        save(tmp_path / f"pred/{number}.npy", n)
    (warning,) = run()[0]["warnings"]
    assert warning.startswith("the ground truth's normals are in [0,1]")


def test_disparity_scored_as_depth_is_named_and_the_other_way_round(tmp_path, run):
    for number in range(4):
        truth = 1 + 0.2 * np.mgrid[: SHAPE[0], : SHAPE[1]].sum(0) * (1 + 0.2 * number) + 0.1 * RNG.random(SHAPE)
        save(tmp_path / f"gt/{number}.npy", truth.astype(np.float32))
        save(tmp_path / f"pred/{number}.npy", (5 / truth + 2).astype(np.float32))
    (warning,) = run(task="depth")[0]["warnings"]
    assert "reading disparity (1 / depth) out of the predictions" in warning and "--align disparity" in warning
    assert run("--align", "disparity", task="depth")[0]["warnings"] == []
    for number in range(4):
        save(tmp_path / f"pred/{number}.npy", 7 - np.load(tmp_path / f"gt/{number}.npy"))
    assert run(task="depth")[0]["warnings"] == []  # inverted depth: the fitted scale is negative
    assert "--align depth" in run("--align", "disparity", task="depth")[0]["warnings"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v**2.2, "pass --pred_space linear"),
        (lambda v: v**0.45, "pass --gt_space linear"),
        (lambda v: v[..., ::-1], "swapping red and blue"),
        (lambda v: 255 * v, "reach 255"),
    ],
)
def test_colours_in_another_convention_are_named(tmp_path, run, change, words):
    for number in range(4):
        albedo = np.kron(RNG.random((6, 8, 3)), np.ones((4, 4, 1))) * (0.9, 0.5, 0.2) + 0.02
        save(tmp_path / f"gt/{number}.npy", albedo.astype(np.float32))
        save(tmp_path / f"pred/{number}.npy", albedo.astype(np.float32))
    assert run(task="albedo")[0]["warnings"] == []
    for number in range(4):
        save(tmp_path / f"pred/{number}.npy", change(np.load(tmp_path / f"gt/{number}.npy")).astype(np.float32))
    (warning,) = run(task="albedo")[0]["warnings"]
    assert words in warning and "4 of 4 images agree: sure" in warning


def test_only_pixels_under_the_mask_are_scored(tmp_path, run, fail):
    gt, pred = normals(), normals()
    pred[:, :8] = normals(90)[:, :8]
    pred[:4] = np.nan
    gt[4:6] = 0
    save(tmp_path / "gt/s/a_normal.npy", gt)
    save(tmp_path / "pred/s/a_normal.npy", pred)
    mask = np.zeros(SHAPE, np.float64)
    mask[4:, 8:] = 1
    save(tmp_path / "masks/s/a.npy", mask)
    result, _ = run("--mask_dir", tmp_path / "masks")
    assert result["pixels"] == (24 - 6) * 24 and result["metrics"]["mean"] == pytest.approx(0, abs=1e-9)
    (tmp_path / "masks/s/a.npy").unlink()
    save(tmp_path / "masks/s/a_depth_mask.png", (255 * mask).astype(np.uint8))
    assert run("--mask_dir", tmp_path / "masks")[0]["pixels"] == (24 - 6) * 24
    (tmp_path / "metrics.json").unlink()
    save(tmp_path / "masks/s/a_depth_mask.png", np.ones((5, 5), np.uint8))
    assert "a_depth_mask.png: mask of shape (5, 5)" in fail("--mask_dir", tmp_path / "masks")
    save(tmp_path / "gt/s/a_depth_mask.npy", np.where(mask > 0, 1, np.nan))
    assert "a_depth_mask.npy: has NaN" in fail()
    assert "1 masks missing" in fail("--mask_dir", tmp_path)


def test_images_without_valid_pixels_are_left_out_and_counted(tmp_path, run, fail):
    for name in ("a", "b", "c"):
        save(tmp_path / f"gt/{name}.npy", normals() * (name == "a"))
        save(tmp_path / f"pred/{name}.npy", normals(20))
    result, text = run("--protocol", "per_image")
    assert result["images"] == 1 and result["metrics"]["mean"] == pytest.approx(20, rel=1e-6)
    assert [entry["name"] for entry in result["left_out"]] == ["b", "c"]
    assert "2 of 3 images left out: 2 (no valid pixel)" in text
    (tmp_path / "metrics.json").unlink()
    save(tmp_path / "gt/a.npy", normals() * 0)
    assert "none of 3 images can be scored" in fail()


def test_missing_and_unusable_predictions(tmp_path, run, fail):
    bad = {
        "nan.npy": np.where(np.arange(SHAPE[1])[None, :, None] == 3, np.nan, normals()),
        "inf.npy": np.full((*SHAPE, 3), np.inf),
        "zero.npy": normals() * 0,
        "grey.png": encode(normals())[..., 0],
        "shape.npy": normals().transpose(2, 0, 1),
        "integer.npy": encode(normals()).astype(np.int32),
        "strings.npy": np.full((*SHAPE, 3), "x"),
    }
    for name, array in bad.items():
        save(tmp_path / f"gt/{name.split('.')[0]}.npy", normals())
        save(tmp_path / f"pred/{name}", array)
    for name in ("good", "missing", "broken", "cut"):
        save(tmp_path / f"gt/{name}.npy", normals())
    save(tmp_path / "pred/good.npy", normals(15))
    (tmp_path / "pred/broken.npy").write_bytes(b"not an array")
    whole = save(tmp_path / "cut.png", encode(random_normals())).read_bytes()
    (tmp_path / "pred/cut.png").write_bytes(whole[: len(whole) // 2])
    message = fail()
    assert "10 of 11 images cannot be scored" in message and "--allow_missing" in message
    for name in (*bad, "broken.npy", "cut.png"):
        assert re.search(rf"pred/{name}: ", message), name
    assert "missing: no prediction" in message and "pred/good" not in message
    assert "nan.npy: NaN, inf or the zero vector on 24 of 768" in message
    assert "save it as" not in message and "(H, W, 3)" in message
    result, text = run("--allow_missing")
    assert result["images"] == 1 and result["metrics"]["mean"] == pytest.approx(15, rel=1e-6)
    assert len(result["left_out"]) == 10 and "10 (no usable prediction)" in text


@pytest.mark.parametrize("task", ["depth", "albedo"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_prediction_without_a_value_is_not_left_out_quietly(tmp_path, fail, task, bad):
    good = depth() if task == "depth" else RNG.uniform(0.1, 1, (*SHAPE, 3))
    for name in ("a", "b"):
        save(tmp_path / f"gt/{name}.npy", good)
        save(tmp_path / f"pred/{name}.npy", good)
    spoilt = good.copy()
    spoilt[3, 4] = bad
    save(tmp_path / "pred/b.npy", spoilt)
    assert re.search(r"pred/b.npy: NaN or inf on.*\n.*1 of 2 images cannot be scored", fail(task=task))


def test_bad_ground_truth_is_never_excused(tmp_path, fail):
    save(tmp_path / "gt/a.npy", normals()[..., 0])
    save(tmp_path / "gt/b.npy", normals())
    save(tmp_path / "pred/a.npy", normals())
    save(tmp_path / "pred/b.npy", normals())
    message = fail("--allow_missing")
    assert re.search(r"gt/a.npy: has shape \(24, 32\)", message) and "b.npy" not in message


def test_sets_that_do_not_match(tmp_path, run, fail):
    save(tmp_path / "gt/val/a_normal.npy", normals())
    save(tmp_path / "pred/a_normal.npy", normals())
    message = fail()
    assert "no prediction pairs" in message and "'val/a'" in message and "'a'" in message
    assert "--gt_dir: no folder" in fail("--gt_dir", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no .npy or .png normal map under" in fail("--gt_dir", tmp_path / "empty")
    save(tmp_path / "pred/val/a_normal.npy", normals())
    assert "1 predictions have no ground truth" in run()[1]


def test_two_files_with_one_name_are_an_error(tmp_path, fail):
    save(tmp_path / "gt/a.npy", normals())
    save(tmp_path / "pred/a.npy", normals())
    save(tmp_path / "pred/a_pred.npy", normals())
    assert "both claim the name a" in fail()


def test_resizing_keeps_normals_and_depth(tmp_path, run):
    save(tmp_path / "gt/a.npy", normals(shape=(48, 64)))
    save(tmp_path / "pred/a.npy", 3 * normals(12, (24, 32)))
    result, _ = run()
    assert result["metrics"]["mean"] == pytest.approx(12, rel=1e-5) and result["pixels"] == 48 * 64
    steps = np.concatenate([normals(0, (24, 16)), normals(60, (24, 16))], axis=1)
    save(tmp_path / "gt/a.npy", np.repeat(np.repeat(steps, 2, 0), 2, 1))
    save(tmp_path / "pred/a.npy", steps)
    expected = run()[0]["metrics"]
    steps[:, :16] *= 100  # a long vector must not outweigh its neighbours
    save(tmp_path / "pred/a.npy", steps)
    assert run()[0]["metrics"] == pytest.approx(expected, rel=1e-4)
    ramp = np.arange(8.0)[None] * np.ones((4, 1))
    doubled = resize(ramp, (8, 16))
    np.testing.assert_allclose(doubled[3, 1:-1], np.arange(14) / 2 + 0.25)  # pixel centres, not corners


def test_predictions_of_the_centre_square(tmp_path, run):
    gt = random_normals((24, 32))
    save(tmp_path / "gt/deep/a_normal.npy", gt)
    save(tmp_path / "pred/a_normal.npy", gt[:, 4:28])
    result, _ = run("--by_stem", "--center_crop")
    assert result["pixels"] == 24 * 24 and result["metrics"]["mean"] == 0 and result["warnings"] == []
    result, text = run("--by_stem")
    assert result["metrics"]["mean"] > 10 and "WARNING: 1 predictions do not have the proportions" in text
    save(tmp_path / "pred/a_normal.npy", gt)  # the whole image: cropped like the truth
    result, _ = run("--by_stem", "--center_crop")
    assert result["pixels"] == 24 * 24 and result["metrics"]["mean"] == 0 and result["warnings"] == []
    turning = np.concatenate([normals(angle, (24, 1)) for angle in range(0, 64, 2)], axis=1)
    save(tmp_path / "gt/deep/a_normal.npy", turning)
    save(tmp_path / "pred/a_normal.npy", np.repeat(np.repeat(turning, 2, 0), 2, 1))  # the whole, twice as large
    result, _ = run("--by_stem", "--center_crop")
    assert result["metrics"]["mean"] < 0.3 and result["warnings"] == []


def test_baseline_predicts_the_mean_normal(tmp_path, run):
    for name, sign in (("a", 1), ("b", -1)):
        save(tmp_path / f"gt/{name}.npy", normals(30 * sign))
        save(tmp_path / f"pred/{name}.npy", normals(30 * sign))
    result, text = run("--baseline", "mean")
    assert result["metrics"]["mean"] == pytest.approx(0, abs=1e-6)
    assert result["baseline"]["constant"] == pytest.approx([0, 0, -1], abs=1e-7)
    assert result["baseline"]["metrics"]["mean"] == pytest.approx(30, rel=1e-6)
    assert "constant: mean of truth" in text


def test_intervals_bracket_the_value_and_repeat(tmp_path, run):
    for index in range(12):
        save(tmp_path / f"gt/{index}.npy", normals())
        save(tmp_path / f"pred/{index}.npy", normals(3 + 2 * index))
    first, _ = run("--protocol", "per_image")
    low, high = first["intervals"]["mean"]
    assert first["metrics"]["mean"] == pytest.approx(14, rel=1e-5)
    assert 8 < low < 12 and 16 < high < 20  # 14 and about two standard errors of 2
    assert run("--protocol", "per_image")[0]["intervals"] == first["intervals"]
    assert run("--protocol", "per_image", "--seed", "1")[0]["intervals"] != first["intervals"]
    assert run("--workers", "3")[0]["per_image"] == first["per_image"]


# DIODE


@pytest.fixture
def diode(tmp_path):
    """A DIODE tree of 4 images, of which diode_meta.json lists 3; returns its root."""
    root = tmp_path / "DIODE"
    listed = {"val": {}}
    for index, kind in enumerate(("indoors", "indoors", "outdoor", "outdoor")):
        stem, scan = f"0000{index}_{kind}", f"val/{kind}/scene_0000{index}/scan_00001"
        mask = np.ones(SHAPE)
        mask[:, 20:] = 0
        metres = depth()
        save(root / f"depths/{scan}/{stem}_depth.npy", np.where(mask > 0, metres, 0)[..., None].astype(np.float32))
        save(root / f"depths/{scan}/{stem}_depth_mask.npy", mask.astype((float, bool, np.uint8, np.float32)[index]))
        save(root / f"depths/{scan}/{stem}.png", RNG.integers(0, 255, (*SHAPE, 3)).astype(np.uint8))
        look = random_normals()
        save(root / f"normals/{scan}/{stem}_normal.npy", look * 0.9)
        save(tmp_path / f"pred/{scan}/{stem}_normal.npy", look * np.float32([1, -1, -1]))
        error = np.where(mask > 0, (index + 1) * 0.2 * RNG.normal(size=SHAPE), 100)
        save(tmp_path / f"pred/{scan}/{stem}_depth.npy", -2 * (metres + error) + 7)
        if index != 3:
            listed["val"].setdefault(kind, {})[f"scene_0000{index}"] = {"scan_00001": [stem]}
    (root / "diode_meta.json").write_text(json.dumps(listed))
    return root


def test_the_diode_protocol_scores_scene_types_and_eroded_masks(diode, run, fail):
    flags = ("--gt_dir", diode / "depths", "--protocol", "diode")
    result, text = run(*flags, task="depth")
    assert [row["row"] for row in result["rows"]] == [
        *("all", "indoors", "outdoor"),
        *("all, eroded 5", "indoors, eroded 5", "outdoor, eroded 5"),
    ]
    assert [row["pixels"] for row in result["rows"]] == [4 * 480, 960, 960, 4 * 360, 720, 720]
    rows = {row["row"]: row["metrics"]["abs_rel"] for row in result["rows"]}
    assert rows["indoors"] < rows["all"] < rows["outdoor"] < 0.5
    assert rows["all"] == pytest.approx((rows["indoors"] + rows["outdoor"]) / 2)
    assert rows["all"] != rows["all, eroded 5"]
    assert result["settings"]["clip_prediction"] == [0.6, 350.0] and result["settings"]["align"] == "depth"
    assert "4 images asked for (all on disk); diode_meta.json lists 3" in text
    result, text = run(*flags, "--diode_set", "meta", "--erode", "0", task="depth")
    assert result["images"] == 3 and len(result["rows"]) == 3
    assert "3 images asked for (diode_meta.json)" in text
    one = next((diode / "depths").rglob("*_depth_mask.npy"))
    one.unlink()
    (diode.parent / "metrics.json").unlink()
    message = fail(*flags, task="depth")
    assert "1 have none" in message and one.name.replace("_depth_mask", "_depth") in message


def test_diode_normals_are_opengl_by_default(diode, run, fail):
    result, _ = run("--gt_dir", diode / "normals")
    assert result["settings"]["gt_frame"] == "opengl" and result["metrics"]["mean"] == pytest.approx(0, abs=1e-4)
    assert [row["row"] for row in result["rows"]] == ["all", "indoors", "outdoor"]
    result, _ = run("--gt_dir", diode / "normals", "--gt_frame", "opencv")
    assert result["warnings"]
    (diode.parent / "metrics.json").unlink()
    assert "no .npy or .png normal map" in fail("--gt_dir", diode / "depths")  # photographs are not normals
    assert "no diode_meta.json" in fail("--gt_dir", diode.parent / "pred", "--diode_set", "meta")
    (diode / "diode_meta.json").write_text("[1]")
    assert "diode_meta.json: not DIODE's list" in fail("--gt_dir", diode / "normals")


# Depth


def test_scaled_depth_is_perfect_in_either_space(tmp_path, run):
    gt = depth()
    save(tmp_path / "gt/a_depth.npy", gt)
    save(tmp_path / "pred/a.npy", 40 - 3 * gt.astype(float))
    result, _ = run(task="depth")
    assert result["protocol"] == "plain" and result["metrics"]["abs_rel"] == pytest.approx(0, abs=1e-10)
    save(tmp_path / "pred/a.npy", 40 - 3 / gt.astype(float))
    assert run(task="depth")[0]["metrics"]["abs_rel"] > 0.005
    result, _ = run("--align", "disparity", task="depth")
    assert result["metrics"]["abs_rel"] == pytest.approx(0, abs=1e-10) and result["metrics"]["delta1"] == 1


def test_a_16_bit_depth_png_needs_its_unit(tmp_path, run, fail):
    millimetres = np.rint(1000 * depth()).astype(np.uint16)
    save(tmp_path / "gt/a.png", millimetres)
    save(tmp_path / "pred/a_depth.png", (255 - millimetres // 32).astype(np.uint8))  # near is white, as we write it
    assert "a.png: is a 16-bit .png of unknown unit: give --gt_depth_scale" in fail(task="depth")
    result, _ = run("--gt_depth_scale", "1000", task="depth")
    assert 0 < result["metrics"]["abs_rel"] < 0.01
    save(tmp_path / "gt/b.npy", millimetres)
    save(tmp_path / "pred/b_depth.png", (255 - millimetres // 32).astype(np.uint8))
    result, _ = run("--gt_depth_scale", "1000", task="depth")
    assert result["per_image"][0]["rmse"] == pytest.approx(result["per_image"][1]["rmse"])
    (tmp_path / "metrics.json").unlink()
    save(tmp_path / "gt/a.png", (millimetres // 32).astype(np.uint8))
    assert "a.png: is an 8-bit image, too coarse" in fail("--gt_depth_scale", "50", task="depth")
    save(tmp_path / "gt/a.png", millimetres)
    save(tmp_path / "pred/a_depth.png", np.repeat((255 - millimetres // 32).astype(np.uint8)[..., None], 3, 2))
    save(tmp_path / "gt/a.png", millimetres)
    assert run("--gt_depth_scale", "1000", task="depth")[0]["metrics"] == result["metrics"]
    (tmp_path / "metrics.json").unlink()
    save(tmp_path / "pred/a_depth.png", encode(random_normals()))
    assert "pred/a_depth.png: has shape (24, 32, 3): depth needs one channel" in fail(
        "--gt_depth_scale", "1000", task="depth"
    )


def test_depth_without_enough_truth_is_left_out(tmp_path, run):
    few = np.zeros(SHAPE)
    few[0, :2] = 1, 2
    for name, gt in (("a", depth()), ("few", few), ("none", few * 0), ("nan", few * np.nan)):
        save(tmp_path / f"gt/{name}.npy", gt)
        save(tmp_path / f"pred/{name}.npy", depth())
    result, _ = run(task="depth")
    assert result["images"] == 1 and {entry["name"] for entry in result["left_out"]} == {"few", "none", "nan"}
    assert "fewer than 3" in result["left_out"][0]["reason"]


def test_kitti_and_nyu_crops(tmp_path, run, fail):
    full = depth((375, 1242))
    save(tmp_path / "gt/a.npy", full)
    save(tmp_path / "pred/a.npy", full + 0.1 * RNG.normal(size=full.shape))
    whole, _ = run("--protocol", "kitti", task="depth")
    assert whole["pixels"] == 204 * 1129
    save(tmp_path / "pred/a.npy", np.load(tmp_path / "pred/a.npy")[23:, 13 : 13 + 1216])
    cropped, _ = run("--protocol", "kitti", task="depth")
    assert cropped["metrics"] == whole["metrics"]
    (tmp_path / "metrics.json").unlink()
    assert "gt/a.npy: is 375x1242, but the crop of --protocol nyuv2" in fail("--protocol", "nyuv2", task="depth")


def test_eth3d_and_nyu_protocols(tmp_path, run):
    gt = depth((480, 640))
    gt[:240] = np.inf
    save(tmp_path / "gt/a.npy", gt)
    save(tmp_path / "pred/a.npy", np.where(np.isinf(gt), 0, gt) * -2)
    result, _ = run("--protocol", "eth3d", task="depth")
    assert result["pixels"] == 240 * 640 and result["metrics"]["rmse"] == pytest.approx(0, abs=1e-9)
    assert run("--protocol", "nyuv2", task="depth")[0]["pixels"] == (471 - 240) * 560


# Albedo and shading


def test_albedo_is_scored_in_the_colour_space_that_is_named(tmp_path, run, fail):
    linear = RNG.uniform(0.02, 1, (40, 48, 3))
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    save(tmp_path / "gt/a_albedo.npy", linear)
    save(tmp_path / "pred/a_albedo.png", np.rint(255 * srgb).astype(np.uint8))
    result, text = run("--pred_space", "srgb", "--gt_space", "linear", task="albedo")
    assert result["metrics"]["rmse"] < 0.003 and result["metrics"]["ssim"] > 0.999
    assert "pred_space: srgb" in text and "scored_in: linear" in text
    assert run(task="albedo")[0]["metrics"]["rmse"] > 0.05
    save(tmp_path / "pred/a_albedo.npy", linear * 0.4)
    result, _ = run("--gt_space", "linear", "--pred_space", "linear", task="albedo")
    assert result["metrics"]["si_mse"] == pytest.approx(0, abs=1e-20) and result["metrics"]["lmse_mit"] < 1e-20
    save(tmp_path / "gt/b_albedo.npy", np.ones((40, 48, 3)))
    save(tmp_path / "pred/b_albedo.npy", np.ones((40, 48, 3)))
    result, _ = run("--gt_space", "linear", "--pred_space", "linear", "--baseline", "mean", task="albedo")
    assert result["per_image"][1]["psnr"] is None  # infinite, and JSON has no infinity
    (tmp_path / "metrics.json").unlink()
    save(tmp_path / "pred/b_albedo.npy", np.ones((40, 48)))
    assert "b_albedo.npy: is grey" in fail(task="albedo")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_images_scale_to_one(kind, tmp_path):
    ends = np.array([[0, np.iinfo(kind).max]], kind)
    assert ALBEDO.map_kind.read_prediction(save(tmp_path / "a.png", ends)).values.tolist() == [[0, 1]]


def test_arrays_keep_their_values(tmp_path):
    stored = save(tmp_path / "a.npy", np.array([[0.25, 3.5]]))
    assert ALBEDO.map_kind.read_prediction(stored).values.tolist() == [[0.25, 3.5]]


def test_grey_shading_takes_the_mean_of_a_coloured_prediction(tmp_path, run):
    shading = RNG.uniform(0.1, 1, (40, 48))
    save(tmp_path / "gt/a_shading.npy", shading)
    save(tmp_path / "pred/a_shading.npy", shading[..., None] * [0.5, 1.0, 1.5])
    assert run(task="shading")[0]["metrics"]["rmse"] == pytest.approx(0, abs=1e-12)


def test_whdr_reads_iiw_judgements(tmp_path, run, fail):
    said = {
        "intrinsic_points": [{"id": i, "x": x, "y": 0.5, "opaque": True} for i, x in enumerate((0.1, 0.9))],
        "intrinsic_comparisons": [
            {"point1": 0, "point2": 1, "darker": "1", "darker_score": 3.0},
            {"point1": 0, "point2": 1, "darker": "E", "darker_score": 1.0},
        ],
    }
    (tmp_path / "iiw").mkdir()
    (tmp_path / "iiw/a.json").write_text(json.dumps(said))
    half = np.full((20, 20, 3), 100, np.uint8)
    half[:, 10:] = 104  # 9 % more linear light: counts as equal
    save(tmp_path / "pred/a_albedo.png", half)
    result, _ = run("--whdr", tmp_path / "iiw/a.json", "--baseline", "mean", task="albedo")
    assert result["protocol"] == "whdr" and result["metrics"] == {"whdr": pytest.approx(0.75)}
    half[:, 10:] = 108  # 18 % more linear light: brighter, though only 8 % in sRGB numbers
    save(tmp_path / "pred/a_albedo.png", half)
    result, _ = run("--whdr", tmp_path / "iiw", "--baseline", "mean", "--report", tmp_path / "report", task="albedo")
    assert result["metrics"]["whdr"] == pytest.approx(0.25)
    assert result["baseline"]["metrics"]["whdr"] == pytest.approx(0.75)
    save(tmp_path / "gt/a.png", half)
    both, _ = run("--whdr", tmp_path / "iiw", "--gt_dir", tmp_path / "gt", task="albedo")
    assert both["metrics"]["whdr"] == pytest.approx(0.25) and both["metrics"]["rmse"] == pytest.approx(0, abs=1e-12)
    (tmp_path / "metrics.json").unlink()
    save(tmp_path / "pred/b_albedo.png", half)
    (tmp_path / "iiw/a.json").write_text("{}")
    assert "iiw/a.json: not judgements" in fail("--whdr", tmp_path / "iiw", task="albedo")
    (tmp_path / "iiw/a.json").rename(tmp_path / "iiw/c.json")
    assert "one file for 2 predictions" in fail("--whdr", tmp_path / "iiw/c.json", task="albedo")


# Files that could mean two things


@pytest.mark.parametrize(("write", "words"), [
    (lambda pixels, path: Image.fromarray(pixels).convert("RGBA").save(path), "mode RGBA"),
    (lambda pixels, path: Image.fromarray(pixels).convert("P").save(path), "mode P"),
    (lambda pixels, path: Image.fromarray(pixels).save(path, format="JPEG"), "is a JPEG"),
    (lambda pixels, path: Image.fromarray(pixels).save(path, transparency=(0, 0, 0)), "a transparent colour"),
], ids=["rgba", "palette", "jpeg", "a transparent colour"])  # fmt: skip
def test_images_that_would_be_read_wrongly(write, words, tmp_path):
    write(encode(random_normals()), tmp_path / "a.png")
    with pytest.raises(ValueError, match=words):
        read_array(tmp_path / "a.png")


@pytest.mark.parametrize(("array", "words"), [
    (np.array([{}], dtype=object), "cannot be read"), (np.zeros((2, 4, 4, 3)), "one image as"),
], ids=["objects", "a batch"])  # fmt: skip
def test_arrays_that_would_be_read_wrongly(array, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        read_array(save(tmp_path / "a.npy", array))


def test_files_are_paired_by_name_without_suffixes(tmp_path):
    for name in (
        "a.npy",
        "s/b_depth.npy",
        "s/b.png",
        "s/b_depth_mask.npy",
        "s/c_pred.png",
        "s/d_normal.npy",
        "s/d.png",
    ):
        save(tmp_path / name, np.zeros((2, 2), np.uint8))
    (tmp_path / "e.txt").write_text("")
    found, doubles = pairs.find_maps(tmp_path, "depth", "--pred_dir")
    assert {name: path.name for name, path in found.items()} == {
        "a": "a.npy",
        "s/b": "b_depth.npy",
        "s/c": "c_pred.png",
    }
    assert not doubles


# Command line and report


@pytest.mark.parametrize(
    ("task", "flags", "words"),
    [
        ("normal", ["--align", "depth"], "--align means nothing for --task normal"),
        ("depth", ["--pred_frame", "opengl"], "--pred_frame means nothing for --task depth"),
        ("shading", ["--whdr", "x"], "--whdr means nothing"),
        ("normal", ["--protocol", "diode"], "has no protocol diode: use pooled, per_image"),
        ("depth", ["--gt_depth_scale", "0"], "positive number"),
        ("depth", ["--erode", "-1"], "must not be negative"),
    ],
)
def test_flags_without_meaning_are_refused(fail, task, flags, words):
    assert words in fail(*flags, task=task)


@pytest.mark.parametrize("task", ["normal", "depth", "albedo"])
def test_report_is_one_page_that_loads_nothing(tmp_path, run, task):
    make = {"normal": random_normals, "depth": depth, "albedo": lambda: RNG.uniform(0, 1, (*SHAPE, 3))}[task]
    for name in ("<i>a", "<i>b", "<i>c", "<i>d"):
        gt = make()
        save(tmp_path / f"gt/{name}.npy", gt)
        save(tmp_path / f"pred/{name}.npy", gt + np.float32(0.1) * make())
    result, _ = run("--report", tmp_path / "report", "--baseline", "mean", task=task)
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]
    page = (tmp_path / "report/index.html").read_text()
    assert page.count("data:image/png;base64,") == 9 and page.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    assert page.count("&lt;i&gt;") == 3 and "<i>a" not in page
    assert "constant: mean of truth, all" in page and all(f">{key}&nbsp;" in page for key in result["metrics"])
    headline = next(iter(INTRINSICS[task].scores))
    ranked = sorted(result["per_image"], key=lambda image: image[headline])
    titles = re.findall(r"<h3>(\w+) <span>(\S+) ·", page)
    names = [ranked[index]["name"].replace("<", "&lt;").replace(">", "&gt;") for index in (0, 1, -1)]
    assert titles == list(zip(("Best", "Median", "Worst"), names))


def test_a_report_that_cannot_be_written_is_refused_in_one_line(tmp_path, fail):
    save(tmp_path / "gt/a.npy", normals())
    save(tmp_path / "pred/a.npy", normals(10))
    (tmp_path / "report").write_text("a file")
    message = fail("--report", tmp_path / "report")
    assert f"error: --report: {tmp_path / 'report'} cannot be written" in message and "Traceback" not in message


@pytest.mark.parametrize("task", ["normal", "depth", "albedo"])
def test_mirrored_and_exchanged_predictions_are_named_in_every_space_and_frame(task, tmp_path):
    """The scores themselves do not change; colours are compared in linear light whatever the flags."""
    scenes = shots(task, 5, (0,))
    flags = [
        "--task",
        task,
        "--gt_dir",
        str(tmp_path / "gt"),
        "--bootstrap",
        "0",
        "--output",
        str(tmp_path / "m.json"),
    ]
    flags += ["--gt_space", "linear"] if task == "albedo" else []
    for folder, order, flip in (("gt", 0, 1), ("right", 0, 1), ("mirrored", 0, -1), ("exchanged", 1, 1)):
        (tmp_path / folder).mkdir()
        for number in range(5):
            shot = scenes[(number + order) % 5]
            values = shot.truth[..., 0] if task == "depth" else shot.truth
            values = values * np.where(shot.known, 1, np.nan).reshape(*shot.known.shape, *[1] * (values.ndim - 2))
            values = values if folder == "gt" else np.nan_to_num(values, nan=0.5)
            np.save(tmp_path / folder / f"{number}.npy", values[:, ::flip].astype(np.float32))
    for folder, words in (
        ("right", ""),
        ("mirrored", "mirroring left to right"),
        ("exchanged", "exchanging the images"),
    ):
        space = ["--pred_space", "linear"] if task == "albedo" else []
        (tmp_path / "m.json").unlink(missing_ok=True)
        evaluate.main([*flags, *space, "--pred_dir", str(tmp_path / folder)])
        warnings = json.loads((tmp_path / "m.json").read_text())["warnings"]
        assert [words in line for line in warnings] == ([True] if words else []), (folder, warnings)


def test_one_file_of_judgements_goes_to_the_one_prediction_of_its_name():
    named = [pairs.Pair(name, None, None) for name in ("a/x", "a/y", "b/y")]
    assert pairs.find_judgements(Path("x.json"), named) == {"a/x": Path("x.json")}
    for ambiguous in ("y.json", "z.json"):
        with pytest.raises(errors.InputError, match="one file for 3 predictions"):
            pairs.find_judgements(Path(ambiguous), named)
