"""ComfyUI's workflows and the nodes' file formats, as far as they can be checked without ComfyUI (`make comfyui`)."""

import importlib.util
import io
import json
import tomllib

import numpy as np
import OpenEXR
import pytest
from helpers import ROOT, python
from PIL import Image

from integrations.comfyui.workflows import FOLDER, graph, sigma_of, text_of
from miniworld.pretraining.random_sd import build_scheduler
from utils.errors import InputError
from utils.intrinsics import INTRINSICS

PACK = ROOT / "integrations" / "comfyui" / "intrinsic_lora"


def pack_module(name: str):
    """A module of the pack that needs no ComfyUI."""
    found = importlib.util.spec_from_file_location(name, PACK / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("task", INTRINSICS)
def test_the_shipped_workflow_is_what_the_program_writes(task):
    text = (FOLDER / f"{task}.json").read_text()
    assert text == text_of(task)
    nodes = json.loads(text)
    kinds = [node["class_type"] for node in nodes.values()]
    assert "SetFirstSigma" not in kinds and "KSampler" not in kinds
    links = [value for node in nodes.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert all(number in nodes for number, _ in links)


@pytest.mark.parametrize("timestep", [0, 1, 400, 998, 999])
def test_sigmas_are_those_of_the_schedule(timestep):
    alpha = build_scheduler().alphas_cumprod[timestep].double().item()
    assert sigma_of(timestep) == pytest.approx(((1 - alpha) / alpha) ** 0.5, rel=1e-4)


def test_another_timestep_sets_the_first_sigma():
    nodes = graph("normal", "surface normal", 400)
    (setter,) = [number for number, node in nodes.items() if node["class_type"] == "SetFirstSigma"]
    assert nodes[setter]["inputs"]["sigma"] == 1.164
    (sampler,) = [node for node in nodes.values() if node["class_type"] == "SamplerCustomAdvanced"]
    assert sampler["inputs"]["sigmas"] == [setter, 0]
    with pytest.raises(InputError, match="0 to 999"):
        graph("normal", "surface normal", 1000)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_pngs_hold_the_values(channels):
    values = np.random.default_rng(0).uniform(-0.1, 1.1, (5, 7, channels))
    content = pack_module("maps").png16(values, {})
    image = Image.open(io.BytesIO(content))
    assert image.size == (7, 5)
    wanted = (values.clip(0, 1) * 65535).round()
    if channels == 1:
        assert (np.asarray(image) == wanted[..., 0]).all()
    else:  # Pillow shows colour by its upper bytes
        assert (np.asarray(image) == wanted.astype(int) >> 8).all()


def test_exr_files_hold_the_values():
    values = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)
    content = pack_module("maps").exr(values, "RGB", {})
    lines = content[-5 * (8 + 7 * 3 * 4) :]
    first = np.frombuffer(lines[8 : 8 + 84], "<f4").reshape(3, 7)
    assert (first == values[0].T[::-1]).all()  # B, G, R
    with OpenEXR.File(io.BytesIO(content)) as file:
        assert (file.channels()["RGB"].pixels == values).all()


def test_light_falls_where_it_should():
    light = pack_module("maps").light
    facing, right, up = (np.array(v, float) for v in ([0, 0, -1], [1, 0, 0], [0, -1, 0]))
    assert light(facing, 0, 0, 0) == 1 and light(facing, 180, 0, 0.3) == 0.3
    assert light(right, 90, 0, 0) == pytest.approx(1) and light(right, -90, 0, 0) == 0
    assert light(up, 0, 90, 0) == pytest.approx(1)


def test_the_pack_stands_alone():
    """It is copied into ComfyUI's folder: nothing of this project is imported there."""
    for file in PACK.glob("*.py"):
        assert not any(f"from {name}" in file.read_text() for name in ("utils", "dataloaders", "integrations"))
    project = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert project["project"]["name"] == "intrinsic-lora" and project["project"]["dependencies"] == []
    assert {"PublisherId", "DisplayName"} <= project["tool"]["comfy"].keys()


def test_without_comfyui_the_check_names_its_source():
    done = python("-m", "integrations.comfyui.check", check=False)
    assert done.returncode == 2 and "git clone https://github.com/comfyanonymous/ComfyUI" in done.stderr
