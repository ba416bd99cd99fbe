"""Albedo and shading: exact truth if it is given, and a reported substitute if not."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import records, run_here
from PIL import Image
from safetensors import safe_open

from dataloaders.diode import Diode, validation_sets
from utils.errors import InputError
from utils.image_io.colour_space import to_linear
from utils.intrinsics import ALBEDO, SHADING
from utils.kinds.base import against_label, score_of
from utils.lora import SAFETENSORS

KINDS = {"albedo": ALBEDO, "shading": SHADING}


def dataset(root, task, truth, **options):
    folder = root / "truth" / task if truth else root / "depths"
    return Diode(KINDS[task], folder, root / "pseudo" / task, "train", resolution=72, **options)


@pytest.mark.parametrize("task", KINDS)
def test_truth_is_linear_and_fits_the_label(diode, task):
    """The label is the truth, sRGB-coded with 8 bits: decoded it is the same numbers, up to the label's resampling."""
    train = dataset(diode, task, truth=True)
    assert train.measured and not train.notes
    item = train[3]
    assert item["gt"].shape == (3, 72, 72) and item["valid"].all()
    label = to_linear(item["target"].double().numpy() / 2 + 0.5)
    assert np.abs(label - item["gt"].numpy()).max() < 0.01
    perfect = score_of(ALBEDO)(item["target"], item["gt"], item["valid"])
    assert perfect["rmse"] < 0.005 and perfect["ssim"] > 0.99
    assert score_of(ALBEDO)(-item["target"], item["gt"], item["valid"])["rmse"] > 0.05
    shown = KINDS[task].map_kind.truth_panel(item["gt"], item["valid"])
    assert (shown - item["target"]).abs().max() < 0.03


def test_the_image_is_albedo_times_shading(diode):
    albedo, shading = (dataset(diode, task, truth=True)[5] for task in KINDS)
    product = albedo["gt"] * shading["gt"]
    assert np.abs(to_linear(albedo["rgb"].double().numpy() / 2 + 0.5) - product.numpy()).max() < 0.01


def test_without_truth_validation_uses_the_label_and_reports_it(diode):
    train = dataset(diode, "albedo", truth=False)
    assert not train.measured and "PSEUDO LABELS" in train.notes[0]
    item = train[3]
    torch.testing.assert_close(item["gt"], torch.from_numpy(to_linear(item["target"].numpy() / 2 + 0.5)))
    scores = against_label(score_of(ALBEDO))(item["target"], item["gt"], item["valid"])
    assert scores["label_rmse"] < 1e-6 and all(name.startswith("label_") for name in scores)
    assert set(validation_sets(train)) == {"train", "indoors", "outdoor"}


def test_a_run_without_truth_cannot_be_mistaken(diode, flags, tmp_path):
    script = "sd_single_diode_pseudo_shading.py"
    words = flags(script, tmp_path / "run", "--max_train_steps", 1)
    words[words.index("--train_data_dir") + 1] = str(diode / "depths")
    run_here(script, words)
    names = {name for record in records(tmp_path / "run") for name in record if name.startswith("val/")}
    assert "val/outdoor/label_rmse" in names and all(name.split("/")[2].startswith("label_") for name in names)
    with safe_open(tmp_path / "run" / SAFETENSORS, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["validated_against"] == "pseudo label" and "sRGB" in metadata["colour_space"]
    assert metadata["trained_on"] == "miniworld train"
    page = np.asarray(Image.open(tmp_path / "run" / "validation" / "000001_indoors.png"))
    assert not page[16:, 32:64].any() and page[16:, 64:96].any()  # the ground-truth column is empty


@pytest.mark.parametrize(("values", "message"), [
    (np.zeros((72, 96, 3), np.uint8), "expected linear float"),
    (np.zeros((72, 96, 2), np.float32), "expected linear float"),
    (np.zeros((36, 48, 3), np.float32), "48x36 ground truth"),
])  # fmt: skip
def test_wrong_truth_names_the_file(diode, tmp_path, values, message):
    tree = shutil.copytree(diode, tmp_path / "DIODE")
    train = dataset(tree, "shading", truth=True)
    np.save(tree / "truth" / "shading" / f"{train.stems[0]}_shading.npy", values)
    with pytest.raises(InputError, match=rf"_shading\.npy: .*{message}"):
        train[0]


def test_holes_in_the_truth_do_not_count(diode, tmp_path):
    tree = shutil.copytree(diode, tmp_path / "DIODE")
    train = dataset(tree, "shading", truth=True)
    grey = np.full((72, 96), 0.5, np.float32)
    grey[:, :48] = np.nan
    np.save(tree / "truth" / "shading" / f"{train.stems[0]}_shading.npy", grey)
    item = train[0]
    assert item["valid"].float().mean() == 0.5 and (item["gt"][:, item["valid"][0]] == 0.5).all()
    assert score_of(ALBEDO)(torch.zeros(3, 72, 72), item["gt"], item["valid"])["rmse"] < 1e-9  # one scale fits it
    assert score_of(ALBEDO)(torch.zeros(3, 72, 72), item["gt"], torch.zeros_like(item["valid"])) is None


def test_a_folder_without_truth_is_refused(diode):
    with pytest.raises(InputError, match=r"_albedo\.npy"):
        Diode(ALBEDO, diode / "normals", diode / "pseudo" / "albedo", "train")


def test_written_values_are_what_the_evaluator_reads(diode, tmp_path):
    """--npy writes sRGB codes: `--pred_space srgb --gt_space linear` scores a perfect prediction as perfect."""
    import evaluate

    train = dataset(diode, "albedo", truth=True)
    for name in ("pred", "gt"):
        (tmp_path / name).mkdir()
    for i in range(2):
        item = train[i]
        np.save(tmp_path / "pred" / f"{i}_albedo.npy", ALBEDO.map_kind.values(item["target"]))
        np.save(tmp_path / "gt" / f"{i}_albedo.npy", item["gt"].permute(1, 2, 0).numpy())
    words = ["--task", "albedo", "--pred_dir", tmp_path / "pred", "--gt_dir", tmp_path / "gt", "--gt_space", "linear"]
    evaluate.main([*map(str, words), "--output", str(tmp_path / "m.json")])
    scored = json.loads((tmp_path / "m.json").read_text())["metrics"]
    ours = [score_of(ALBEDO)(train[i]["target"], train[i]["gt"], train[i]["valid"])["rmse"] for i in range(2)]
    assert scored["rmse"] == pytest.approx(np.mean(ours), rel=1e-4) and scored["rmse"] < 0.005
