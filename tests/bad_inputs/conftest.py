"""A tree of one sample, a small UNet and a LoRA to spoil; and the proof that no file ran code."""

import copy
import json
import shutil

import pytest
from bad_files import MARK
from helpers import random_lora

from miniworld.pretraining.random_sd import build_unet
from utils.lora import load_attn_procs, save_lora


@pytest.fixture(autouse=True)
def no_code_is_run():
    yield
    was_run = MARK.exists()
    if was_run:
        MARK.rmdir()
    assert not was_run, "code from a file was run"


@pytest.fixture
def tree(diode, tmp_path):
    """A DIODE of one training image, 96x72, and the stem of it."""
    root = tmp_path / "DIODE"
    meta = json.loads((diode / "diode_meta.json").read_text())
    scene, scans = next(iter(meta["train"]["indoors"].items()))
    scan, stems = next(iter(scans.items()))
    stem = f"train/indoors/{scene}/{scan}/{stems[0]}"
    for folder, suffix in (
        ("depths", ".png"), ("depths", "_depth.npy"), ("depths", "_depth_mask.npy"), ("normals", "_normal.npy"),
        ("pseudo/normal", ".png"), ("pseudo/depth", ".png"),
    ):  # fmt: skip
        (root / folder / stem).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(diode / folder / f"{stem}{suffix}", root / folder / f"{stem}{suffix}")
    meta = {"train": {"indoors": {scene: {scan: stems[:1]}}}}
    (root / "diode_meta.json").write_text(json.dumps(meta))
    return root, stem


@pytest.fixture(scope="session")
def unet():
    return build_unet(channels=(32, 64, 64))


@pytest.fixture(scope="session")
def weights(unet, bases, tmp_path_factory):
    """The output folder of a LoRA for the small random base."""
    folder, trained = tmp_path_factory.mktemp("lora"), copy.deepcopy(unet)
    load_attn_procs(trained, random_lora(unet))
    metadata = {"task": "normal", "prompt": "surface normal", "method": "single-step", "resolution": 32}
    save_lora(trained, folder, {**metadata, "base_model": bases["sd15"]}, with_bin=True)
    return folder
