"""miniworld/SHA256SUMS: it covers all shipped models, and every loader refuses one that has changed."""

import json
import re
import shutil
import subprocess
import time

import pytest
import torch
from helpers import ROOT

from generators.stylegan2 import load_gan
from generators.transformer import load_autoregressive
from utils.base_model.families import open_base
from utils.base_model.stable_diffusion import load_base, load_donor
from utils.errors import InputError
from utils.labels.teachers import load_supervised
from utils.lora import load_attn_procs, read_lora
from utils.system.atomic import SUMS, check_sums

WORLD = ROOT / "miniworld"
UPDATE = "cd miniworld && find mini-* -type f ! -name README.md | LC_ALL=C sort | xargs sha256sum > SHA256SUMS"


def test_sha256sum_itself_finds_every_shipped_model_unchanged():
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", SUMS], cwd=WORLD, check=True)
    listed = {line.split("  ", 1)[1] for line in (WORLD / SUMS).read_text().splitlines()}
    files = [path for path in WORLD.glob("mini-*/**/*") if path.is_file() and path.resolve() == path]  # not by a link
    shipped = {str(path.relative_to(WORLD)) for path in files}
    assert listed == {name for name in shipped if not name.endswith("README.md")}, f"new files? {UPDATE}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A copy of the shipped models with their sums."""
    copy = tmp_path_factory.mktemp("world")
    for path in WORLD.glob("mini-*"):
        shutil.copytree(path, copy / path.name, symlinks=True)
    shutil.copy(WORLD / SUMS, copy)
    return copy


def augunet(world):
    load_attn_procs(load_base(str(world / "mini-sd")).unet, world / "mini-loras/augunet/normal")


LOADED = {  # a shipped file -> what reads it
    "mini-sd/unet/diffusion_pytorch_model.safetensors": lambda world: load_base(str(world / "mini-sd")),
    "mini-sd/vae/config.json": lambda world: load_base(str(world / "mini-sd-2")),
    "mini-sd/tokenizer/merges.txt": lambda world: load_base(str(world / "mini-sd")),
    "mini-ip2p/conv_in.safetensors": lambda world: load_donor(str(world / "mini-ip2p")),
    "mini-loras/depth/pytorch_lora_weights.safetensors": lambda world: read_lora(world / "mini-loras/depth"),
    "mini-loras/augunet/normal/conv_in.safetensors": augunet,
    "mini-gan/generator.safetensors": lambda world: load_gan(str(world / "mini-gan")),
    "mini-ar/vq/diffusion_pytorch_model.safetensors": lambda world: load_autoregressive(str(world / "mini-ar")),
    "mini-flow/transformer/diffusion_pytorch_model.safetensors": lambda world: open_base(str(world / "mini-flow")),
    "mini-teacher/diffusion_pytorch_model.safetensors": lambda world: load_supervised(
        str(world / "mini-teacher"), "normal", "cpu", torch.float32
    ),
}


@pytest.mark.parametrize("name", LOADED)
def test_one_flipped_bit_is_refused(name, world):
    content = (world / name).read_bytes()
    try:
        (world / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(InputError, match=re.escape(f"{name}: has changed (its SHA-256 is in {world / SUMS}")):
            LOADED[name](world)
    finally:
        (world / name).write_bytes(content)
    LOADED[name](world)


def test_a_shipped_file_that_is_missing_is_named(world):
    path = world / "mini-teacher" / "intrinsics.json"
    content = path.read_text()
    path.unlink()
    try:
        with pytest.raises(InputError, match=r"intrinsics\.json: is missing"):
            check_sums(world / "mini-teacher")
    finally:
        path.write_text(content)


def test_a_copy_without_the_sums_may_be_changed(tmp_path):
    """A base or LoRA of one's own, which nobody has listed."""
    shutil.copytree(WORLD / "mini-sd", tmp_path / "mini-sd")
    config = json.loads((tmp_path / "mini-sd/unet/config.json").read_text())
    (tmp_path / "mini-sd/unet/config.json").write_text(json.dumps(config | {"sample_size": 32}))
    assert load_base(str(tmp_path / "mini-sd")).unet.config.sample_size == 32


def test_checking_a_shipped_base_takes_less_than_50_ms():
    begin = time.process_time()
    check_sums(WORLD / "mini-sd")
    assert time.process_time() - begin < 0.05
