"""A new kind of map is one module and one record: nothing else of the project is touched, and everything takes it."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image
from test_fifth_intrinsic import TABLE, run_in

MODULE = '''"""A mask: what is in it and what is not, 1 and 0, scored by intersection over union."""

import numpy as np

from utils.kinds.base import MapKind


class Mask(MapKind):
    truth_channels = 1
    protocols = ("plain_iou",)

    def decode(self, raw):
        return raw.array / (255 if raw.array.dtype == np.uint8 else 1)

    def merge(self, members):
        votes = (members.float().cpu().mean(1) > 0).float().mean(0)
        return (2 * (votes > 0.5).float() - 1).expand(3, -1, -1).clone(), 0.5 - (votes - 0.5).abs()

    def score(self, prediction, gt, valid, protocol):
        inside = valid[0].numpy()
        pred = prediction.mean(0).numpy()
        return {"iou": iou(pred[inside] > 0, gt[0].numpy()[inside] > 0.5)} if inside.any() else None

    def score_text(self, protocol):
        return "Intersection over union of what is above one half."

    def label_truth(self, target, valid):
        return target[:1] / 2 + 0.5, valid

    def metrics(self, pred, gt, valid, rules):
        return {"iou": iou(pred[valid] > 0.5, gt[valid] > 0.5)}


def iou(pred, gt):
    return float((pred & gt).sum() / max((pred | gt).sum(), 1))


KIND = Mask
'''
RECORD = """
SHADOW = Intrinsic(
    name="shadow",
    kind="mask",
    prompt="shadow",
    convention=("range", "white = in shadow, black = lit"),
    truth_folder="truth/shadow",
    scores={"iou": "IoU (higher is better)"},
    grey=True,
)
"""
SCRIPT = "sd_single_diode_pseudo_shadow.py"


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the project with the module, the record and a training script added."""
    house = tmp_path_factory.mktemp("house")
    for folder in ("utils", "dataloaders"):
        shutil.copytree(ROOT / folder, house / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("inference_sd_single.py", "evaluate.py"):
        shutil.copy(ROOT / name, house)
    (house / "utils" / "kinds" / "mask.py").write_text(MODULE)
    records = (house / "utils" / "intrinsics.py").read_text()
    before, after = records.split("\nINTRINSICS = ")
    after = after.replace(TABLE, TABLE.replace(")", ", SHADOW)"))
    (house / "utils" / "intrinsics.py").write_text(before + RECORD + "\nINTRINSICS = " + after)
    script = (ROOT / "sd_single_diode_pseudo_albedo.py").read_text()
    (house / SCRIPT).write_text(script.replace("ALBEDO", "SHADOW"))
    return house


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images, their masks as labels and, the same, as ground truth."""
    data, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for folder in ("images", "labels", "gt"):
        (data / folder).mkdir()
    for index in range(8):
        mask = np.zeros((32, 48), np.uint8)
        mask[: rng.integers(8, 24), : rng.integers(8, 40)] = 255
        Image.fromarray(rng.integers(0, 255, (32, 48, 3), np.uint8)).save(data / "images" / f"{index}.png")
        Image.fromarray(mask).save(data / "labels" / f"{index}.png")
        np.save(data / "gt" / f"{index}.npy", (mask / 255).astype(np.float32))
    return data


def test_a_fourth_kind_is_one_module_and_one_record(house, data, bases, tmp_path):
    run = tmp_path / "run"
    words = ["--dataset", "folder", "--train_data_dir", data, "--pretrained_model_name_or_path", bases["sd15"]]
    words += ["--resolution", 32, "--max_train_steps", 2, "--train_batch_size", 2, "--report_to", "none"]
    run_in(house, SCRIPT, *words, "--output_dir", run)
    scores = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(0 <= line["val/val/iou"] <= 1 for line in scores if "val/val/iou" in line), "nothing was scored"

    out = tmp_path / "out"
    words = ["--lora", run, "--input_dir", data / "images", "--output_dir", out, "--formats", "png,png16,npy"]
    run_in(house, "inference_sd_single.py", *words, "--flip_tta")
    predicted = out / "shadow" / "predicted"
    assert Image.open(predicted / "0_shadow.png").mode == "L" and np.load(predicted / "0_shadow.npy").ndim == 2

    np.save(predicted / "0_shadow.npy", np.load(data / "gt" / "0.npy"))  # a perfect one among them
    flags = ["--task", "shadow", "--pred_dir", predicted, "--gt_dir", data / "gt", "--report", tmp_path / "report"]
    run_in(house, "evaluate.py", *flags, "--output", tmp_path / "metrics.json", "--baseline", "mean")
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["images"] == 8 and result["protocol"] == "plain_iou"
    assert result["per_image"][0]["iou"] == 1
    assert "iou" in (tmp_path / "report" / "index.html").read_text()


def test_nothing_outside_utils_kinds_asks_for_the_kind():
    asks = re.compile(r"intrinsic\w*(\[\w+\])?\.kind (==|!=|in|not in) ", re.IGNORECASE)
    folders = [ROOT / name for name in ("utils", "dataloaders", "miniworld", "studies")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert not [path for path in files if asks.search(path.read_text())]
