"""evaluate.py and pixels without a value: codes, masks next to the truth, units, and files of every format."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from utils import errors
from utils.evaluation.report import charts
from utils.inference.output import Output
from utils.inference.prediction import Prediction
from utils.inference.write import write
from utils.intrinsics import INTRINSICS

SHAPE = (24, 32)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


def normals(seed=0):
    vectors = np.random.default_rng(seed).normal(0, 0.4, (*SHAPE, 3)) - np.array([0, 0, 1.0])
    return vectors / np.linalg.norm(vectors, axis=2, keepdims=True)


def metres(noise=0.0, seed=1):
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return 1.5 + 0.05 * columns + 0.03 * rows + noise * np.random.default_rng(seed).normal(size=SHAPE)


def encode(vectors):
    return np.round(255 * (vectors / 2 + 0.5)).astype(np.uint8)


@pytest.fixture
def run(tmp_path, capsys):
    """run(*flags, task=) -> (result or None, everything printed) of evaluate.py on tmp_path/pred and tmp_path/gt."""

    def call(*flags, task="normal", pred="pred", gt="gt"):
        output = tmp_path / "metrics.json"
        output.unlink(missing_ok=True)
        words = ["--task", task, "--pred_dir", tmp_path / pred, "--gt_dir", tmp_path / gt, "--output", output]
        words += ["--workers", 1, "--bootstrap", 0, *flags]
        try:
            errors.run(lambda: evaluate.main([str(word) for word in words]))
        except SystemExit as ended:
            assert ended.code == 2
        printed = capsys.readouterr()
        return (json.loads(output.read_text()) if output.exists() else None), printed.out + printed.err

    return call


@pytest.mark.parametrize("code", [127, 128])
def test_grey_truth_scores_as_black_truth_does_and_the_share_is_reported(code, tmp_path, run):
    for name, grey in (("black", 0), ("grey", code)):
        truth = encode(normals())
        truth[:, :8] = grey
        truth[:3] = 0
        save(tmp_path / name / "a.png", truth)
    save(tmp_path / "pred/a.npy", encode(normals(1)) / 127.5 - 1)
    black, _ = run(gt="black")
    grey, text = run(gt="grey")
    assert grey["metrics"] == black["metrics"] and grey["pixels"] == black["pixels"] == 21 * 24
    assert grey["unknown_truth"] == {"pixels": 768, "unknown": 264, "reasons": {"mid-grey": 168, "black": 96}}
    assert "34.4 % of the truth's pixels are unknown: 21.9 % mid-grey, 12.5 % black" in text


@pytest.mark.parametrize("code", [0, 127, 128, 255])
def test_a_png_prediction_without_a_direction_is_refused_as_the_zero_vector_is(code, tmp_path, run):
    save(tmp_path / "gt/a.npy", normals())
    spoilt = encode(normals(1))
    spoilt[:2] = code
    save(tmp_path / "pred/a.png", spoilt)
    result, text = run()
    assert result is None and "a.png: NaN, inf or the zero vector on 64 of 768" in text and "--allow_missing" in text
    save(tmp_path / "gt/a.npy", np.where(np.arange(SHAPE[0])[:, None, None] < 2, 0, normals()))
    assert run()[0]["pixels"] == 22 * 32  # where the truth has no value either, nothing is missing


def test_black_in_our_own_png_is_a_prediction(tmp_path, run):
    save(tmp_path / "gt/a_normal.npy", normals())
    map_ = torch.from_numpy(normals(1)).permute(2, 0, 1).float()
    map_[:, :2] = -1.5
    write(Prediction(INTRINSICS["normal"], map_), tmp_path / "pred/a_normal.png", Output(("png",)))
    assert run()[0]["pixels"] == 768


@pytest.mark.parametrize("code", [65535, 0])
def test_the_largest_number_of_16_bits_is_no_depth(code, tmp_path, run):
    truth = np.round(1000 * metres()).astype(np.uint16)
    truth[:, :4] = code
    save(tmp_path / "gt/a.png", truth)
    save(tmp_path / "pred/a.npy", metres(0.05))
    result, text = run("--gt_depth_scale", 1000, task="depth")
    assert result["pixels"] == 24 * 28 and result["metrics"]["abs_rel"] < 0.02
    assert "12.5 % of the truth's pixels are unknown: 12.5 % " + str(code) in text


@pytest.mark.parametrize("code", [65.535, 1e4, 1e10, -999])
def test_codes_in_metres_are_left_out_and_named(code, tmp_path, run):
    truth = metres()
    truth[:, :4] = code
    save(tmp_path / "gt/a.npy", truth.astype(np.float32))
    save(tmp_path / "pred/a.npy", metres(0.05))
    result, _ = run(task="depth")
    assert result["pixels"] == 24 * 28 and result["metrics"]["abs_rel"] < 0.02
    assert sum(result["unknown_truth"]["reasons"].values()) == 96


MASKS = [
    "a_mask",
    "a_depth_mask",
    "a_valid",
    "a_valid_mask",
    "a_depth_valid",
    "masks/a",
    "mask/a_depth",
    "masks/a_mask",
]


@pytest.mark.parametrize("ending", [".npy", ".png"])
@pytest.mark.parametrize("name", MASKS)
def test_masks_next_to_the_truth_are_used_under_their_usual_names(name, ending, tmp_path, run):
    mask = np.ones(SHAPE, np.uint8)
    mask[:, 20:] = 0
    save(tmp_path / "gt/s/a_depth.npy", np.where(mask > 0, metres(), 90.0))
    save(tmp_path / "pred/s/a.npy", metres(0.02))
    save(tmp_path / f"gt/s/{name}{ending}", 255 * mask if ending == ".png" else mask.astype(np.float32))
    result, text = run(task="depth")
    assert result["pixels"] == 24 * 20 and result["metrics"]["abs_rel"] < 0.01
    assert "37.5 % outside the mask" in text and f"{name}{ending}" in text


def test_two_masks_of_one_image_must_not_differ(tmp_path, run):
    mask = np.ones(SHAPE, bool)
    mask[:3] = False
    save(tmp_path / "gt/a.npy", metres())
    save(tmp_path / "pred/a.npy", metres(0.02))
    save(tmp_path / "gt/a_mask.npy", mask)
    save(tmp_path / "gt/a_valid.png", mask.astype(np.uint8))
    assert run(task="depth")[0]["pixels"] == 21 * 32
    save(tmp_path / "gt/a_valid.png", (~mask).astype(np.uint8))
    result, text = run(task="depth")
    assert result is None and "a_mask.npy and " in text and "two different masks" in text


def test_masks_that_are_not_used_or_exclude_nothing_or_everything_are_named(tmp_path, run):
    for name in "ab":
        save(tmp_path / f"gt/{name}.npy", metres())
        save(tmp_path / f"pred/{name}.npy", metres(0.02))
        save(tmp_path / f"masks/{name}.png", np.ones(SHAPE, np.uint8))
    assert f"--mask_dir {tmp_path / 'masks'} uses them" in run(task="depth")[1]
    result, _ = run("--mask_dir", tmp_path / "masks", task="depth")
    assert result["warnings"] == ["the masks of all 2 images exclude no pixel: only 0 means invalid"]
    save(tmp_path / "masks/b.png", np.zeros(SHAPE, np.uint8))
    result, _ = run("--mask_dir", tmp_path / "masks", task="depth")
    assert [entry["reason"] for entry in result["left_out"]] == ["the mask is empty: not zero must mean valid"]
    shutil.rmtree(tmp_path / "masks")
    save(tmp_path / "gt/a_mask.png", np.eye(*SHAPE, dtype=np.uint8))
    assert "1 of 2 images have a mask" in run(task="depth")[1]


def test_a_map_called_valid_is_a_map(tmp_path, run):
    save(tmp_path / "gt/room_valid.npy", normals())
    save(tmp_path / "pred/room_valid.npy", normals(1))
    assert run()[0]["per_image"][0]["name"] == "room_valid"


def test_depth_that_is_probably_not_in_metres_is_a_warning(tmp_path, run):
    save(tmp_path / "gt/a.npy", (1000 * metres()).astype(np.float32))
    save(tmp_path / "pred/a.npy", metres(0.05))
    result, _ = run(task="depth")
    assert "are these millimetres? --gt_depth_scale 1000" in result["warnings"][0]
    scaled, _ = run("--gt_depth_scale", 1000, task="depth")
    assert scaled["warnings"] == [] and scaled["metrics"]["rmse"] == pytest.approx(result["metrics"]["rmse"] / 1000)
    save(tmp_path / "gt/a.npy", metres().astype(np.float32))
    assert "is --gt_depth_scale 1000 right?" in run("--gt_depth_scale", 1000, task="depth")[0]["warnings"][0]
    assert run(task="depth")[0]["warnings"] == []


@pytest.mark.parametrize("task", ["normal", "depth", "albedo"])
def test_every_format_of_inference_is_scored_from_a_folder_of_its_own(task, tmp_path, run):
    kind = INTRINSICS[task].kind
    rng = np.random.default_rng(2)
    base = {
        "normals": normals(1),
        "depth": -metres(0.05)[..., None] / 10,
        "colour": rng.uniform(-0.9, 0.9, (*SHAPE, 3)),
    }
    map_ = torch.from_numpy(np.broadcast_to(base[kind], (*SHAPE, 3)).copy()).permute(2, 0, 1).float()
    prediction = Prediction(INTRINSICS[task], map_)
    truth = {"normals": normals(), "depth": metres(), "colour": rng.uniform(0, 1, (*SHAPE, 3))}[kind]
    save(tmp_path / "gt/a.npy", truth.astype(np.float32))
    scores = {}
    for name in ("npy", "exr", "png16", "png"):
        write(prediction, tmp_path / name / f"a_{task}.png", Output((name,)))
        scores[name] = run(task=task, pred=name)[0]["metrics"]
        write(prediction, tmp_path / "all" / f"a_{task}.png", Output((name,)))
    for name, tolerance in (("exr", 1e-5), ("png16", 1e-3), ("png", 0.02)):
        for metric in INTRINSICS[task].scores:
            assert scores[name][metric] == pytest.approx(scores["npy"][metric], rel=tolerance)
    together, text = run(task=task, pred="all")
    assert together["metrics"] == scores["npy"]
    assert "1 predictions exist as .npy, .exr, _16bit.png and .png: scored the .npy" in text


def test_archives_are_refused_with_what_to_do(tmp_path, run):
    save(tmp_path / "pred/a.npy", normals())
    (tmp_path / "gt").mkdir()
    np.savez(tmp_path / "gt/a.npz", normals=normals())
    result, text = run()
    assert result is None and "1 .npz files are there: save them as .npy" in text


@pytest.mark.parametrize(("task", "map_limit"), [("albedo", 0.3), ("shading", 0.3), ("depth", 0.5)])
def test_charts_have_a_hundred_bars_up_to_an_error_of_one(task, map_limit):
    """A bar of 0.01 for 10 bins of 0.001; the last bin holds what is above; marks at 0.05, 0.1 and 0.25."""
    axis = INTRINSICS[task].map_kind.axis
    counts = np.zeros(1001, int)
    counts[[0, 55, 999, 1000]] = 25
    histogram, cumulative = charts(axis, {"prediction": counts})
    assert [(round(a, 6), round(b, 6), share) for a, b, share in histogram.bars] == [
        (0.0, 0.01, 25.0), (0.05, 0.06, 25.0), (0.99, 1.0, 25.0),
    ]  # fmt: skip
    assert cumulative.marks == [(0.05, 25.0), (0.1, 50.0), (0.25, 50.0)]
    assert (axis.limit, axis.map_limit) == (1.0, map_limit)
