"""A new intrinsic is one record and one script: nothing else of the project is touched, and everything takes it."""

import json
import shutil

import numpy as np
import pytest
from helpers import ROOT, fork
from PIL import Image

RECORD = """
ROUGHNESS = Intrinsic(
    name="roughness",
    kind="colour",
    prompt="roughness",
    convention=("range", "0 = smooth, 1 = rough, linear"),
    truth_folder="truth/roughness",
    scores=COLOUR_SCORES,
    coding="linear",
    grey=True,
)
"""
TABLE = "(NORMAL, DEPTH, ALBEDO, SHADING)"
SCRIPT = "sd_single_diode_pseudo_roughness.py"


RUN = """
import runpy, sys
for name in [name for name in sys.modules if name.partition(".")[0] in ("utils", "dataloaders")]:
    del sys.modules[name]  # the real project's
house, script, *words = sys.argv[1:]
sys.path.insert(0, house)
import utils
assert utils.__file__.startswith(house), utils.__file__
sys.argv = [script, *words]
runpy.run_path(f"{house}/{script}", run_name="__main__")
"""


def run_in(house, script: str, *words: object) -> None:
    """A script of the copy, with the copy's modules."""
    fork("-c", RUN, house, script, *words)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the project with the record and the script added."""
    house = tmp_path_factory.mktemp("house")
    for folder in ("utils", "dataloaders"):
        shutil.copytree(ROOT / folder, house / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("inference_sd_single.py", "evaluate.py"):
        shutil.copy(ROOT / name, house)
    records = (house / "utils" / "intrinsics.py").read_text()
    assert records.count(TABLE) == 1
    before, after = records.split("\nINTRINSICS = ")
    after = after.replace(TABLE, TABLE.replace(")", ", ROUGHNESS)"))
    (house / "utils" / "intrinsics.py").write_text(before + RECORD + "\nINTRINSICS = " + after)
    script = (ROOT / "sd_single_diode_pseudo_albedo.py").read_text()
    (house / SCRIPT).write_text(script.replace("ALBEDO", "ROUGHNESS"))
    return house


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images, grey labels, and the ground truth that those code: 8-bit, linear."""
    data, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for folder in ("images", "labels", "gt"):
        (data / folder).mkdir()
    for index in range(8):
        rough = np.linspace(0.1, 0.9, 48)[None].repeat(32, 0) * rng.uniform(0.5, 1)
        Image.fromarray(rng.integers(0, 255, (32, 48, 3), np.uint8)).save(data / "images" / f"{index}.png")
        Image.fromarray(np.round(255 * rough).astype(np.uint8)).save(data / "labels" / f"{index}.png")
        np.save(data / "gt" / f"{index}.npy", rough.astype(np.float32))
    return data


def test_a_fifth_intrinsic_is_one_record_and_one_script(house, data, bases, tmp_path):
    run = tmp_path / "run"
    words = ["--dataset", "folder", "--train_data_dir", data, "--pretrained_model_name_or_path", bases["sd15"]]
    words += ["--resolution", 32, "--max_train_steps", 2, "--train_batch_size", 2, "--report_to", "none"]
    run_in(house, SCRIPT, *words, "--output_dir", run)
    scores = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("val/val/rmse" in line for line in scores), "nothing was scored against gt/"

    out = tmp_path / "out"
    words = ["--lora", run, "--input_dir", data / "images", "--output_dir", out, "--npy"]
    run_in(house, "inference_sd_single.py", *words)
    predicted = out / "roughness" / "predicted"
    assert Image.open(predicted / "0_roughness.png").mode == "L" and np.load(predicted / "0_roughness.npy").ndim == 2

    flags = ["--task", "roughness", "--pred_dir", predicted, "--gt_dir", data / "gt", "--center_crop"]
    run_in(house, "evaluate.py", *flags, "--output", tmp_path / "metrics.json")
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["images"] == 8 and result["settings"]["pred_space"] == "linear"


def test_labels_and_truth_of_a_linear_intrinsic_agree(house, data):
    """The label, decoded, is the truth: no sRGB curve has come between them."""
    program = f"""
import sys
for name in [name for name in sys.modules if name.partition(".")[0] in ("utils", "dataloaders")]:
    del sys.modules[name]  # the real project's
sys.path.insert(0, {str(house)!r})
from pathlib import Path
from dataloaders.folder import open_folder
from dataloaders.listing import folder_samples
from utils.intrinsics import INTRINSICS
train, _ = open_folder(folder_samples(Path({str(data)!r})), INTRINSICS["roughness"], 0.0, 0, resolution=32)
item = train[0]
print(float((item["target"] / 2 + 0.5 - item["gt"]).abs().max()))
"""
    done = fork("-c", program)
    assert float(done.stdout) < 0.02
