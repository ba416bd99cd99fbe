"""`python -m utils.base_model check`: passes for every family, and a wrong adapter fails in the row that names it."""

import pytest
import torch
from helpers import ROOT
from tiny_families import FAMILIES

from utils.base_model.__main__ import NAMES, main
from utils.base_model.parts import Family


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def rows(capsys, path) -> tuple[int, dict[str, str]]:
    """The status and, by name, the rows of a check: "pass" or "FAIL" and the figures."""
    status = main(["check", str(path)])
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    return status, {words[1]: " ".join((words[0], *words[2:])) for words in lines if words[0] in ("pass", "FAIL")}


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name != "z_image")) for name in FAMILIES]
)
def test_every_family_passes(family, tiny, capsys):
    status, found = rows(capsys, tiny(family))
    assert status == 0 and list(found) == list(NAMES)
    assert all(row.startswith("pass") for row in found.values())
    exempt = {"sd3": "blocks.2.attn.add_q_proj", "qwen_image": "blocks.1.txt_mlp.net.2"}
    exempt |= {"sd3_without_t5": exempt["sd3"]}
    assert found["gradients"].endswith(exempt.get(family, "tensors have one"))


@pytest.mark.slow
def test_mini_sd_passes(capsys):
    status, found = rows(capsys, ROOT / "miniworld" / "mini-sd")
    assert status == 0 and all(row.startswith("pass") for row in found.values()) and len(found) == len(NAMES)


def wrong_scale(patch):
    """Both ways without the shift: the one undoes the other, and only the pipeline shows it."""
    patch.setattr(Family, "scaled", lambda self, latents: self.vae.config.scaling_factor * latents)
    patch.setattr(Family, "decode", lambda self, z: self.vae.decode(z / self.vae.config.scaling_factor).sample)


def z_image():
    """Its class, imported late, because old versions of diffusers lack what its module imports."""
    from utils.base_model.z_image import ZImage

    return ZImage


def wrong_time(patch):
    right = z_image().predict
    patch.setattr(z_image(), "predict", lambda self, network, z, t, states: right(self, network, z, 1 - t, states))


def wrong_prompt(patch):
    right = z_image().states
    patch.setattr(z_image(), "states", lambda self, pipeline, prompt: right(self, pipeline, prompt + " "))


def no_gradient(patch):
    patch.setattr(z_image(), "predict", torch.no_grad()(z_image().predict))


def wrong_prefix(patch):
    patch.setattr("utils.lora.keys.place_of", lambda module: ("unet", "attention"))


@pytest.mark.parametrize(("fault", "row"), [
    (wrong_scale, "latents"),
    (wrong_time, "input"),
    (wrong_prompt, "input"),
    (no_gradient, "gradients"),
    (wrong_prefix, "file"),
])  # fmt: skip
def test_a_wrong_adapter_fails_in_its_row_alone(fault, row, tiny, monkeypatch, capsys):
    base = tiny("z_image")
    fault(monkeypatch)
    status, found = rows(capsys, base)
    assert status == 1 and [name for name in found if found[name].startswith("FAIL")] == [row], found
