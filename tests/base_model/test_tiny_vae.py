"""A tiny autoencoder for previews: the VAE's scale is kept, and one that was made for another base is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file, save_file

import predict
from miniworld.pretraining.stage import run_stage
from miniworld.pretraining.tiny import build_tiny_vae, save_tiny, tiny_stage
from utils.base_model.tiny_vae import load_tiny, put_in_decoder, put_in_encoder, use_tiny_vae
from utils.errors import InputError
from utils.inference.predictor import Predictor
from utils.paths import ROOT

BASE, TINY, LORAS = (ROOT / "miniworld" / name for name in ("mini-sd", "mini-sd-tiny-vae", "mini-loras"))
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(BASE / "vae")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(ROOT / "examples" / "coffee.jpg").convert("RGB").resize((64, 64))


def test_the_vae_with_tiny_parts_takes_and_returns_latents_that_are_not_scaled(vae):
    tiny, rgb = build_tiny_vae(vae, channels=8), torch.rand(2, 3, 16, 16) * 2 - 1
    put_in_encoder(vae, tiny)
    put_in_decoder(vae, tiny)
    with torch.no_grad():
        scaled, latents = tiny.encode(rgb).latents, vae.encode(rgb).latent_dist
        torch.testing.assert_close(latents.mode() * vae.config.scaling_factor, scaled)
        assert latents.std.max() < 1e-3
        torch.testing.assert_close(vae.decode(latents.mode()).sample, tiny.decode(scaled).sample)


@pytest.mark.parametrize("task", ["normal", "augunet/normal"])
@pytest.mark.parametrize("encodes", [False, True])
def test_its_maps_resemble_the_vaes(task, encodes, photo):
    """With the condition of AugUNet scaled by mistake, or latents scaled twice, they are further away."""
    more = {"steps": 3} if "augunet" in task else {}
    own = Predictor(LORAS / task, device="cpu", **more)(photo)["normal"]
    assert "vae" not in own.facts
    one = Predictor(LORAS / task, device="cpu", vae=TINY, vae_encodes=encodes, **more)(photo)["normal"]
    assert one.facts["vae"] == "miniworld/mini-sd-tiny-vae"
    assert 0 < np.abs(one.values - own.values).mean() < (0.2 if encodes else 0.1)


def damaged(folder, change):
    """A copy of the shipped tiny autoencoder with other weights."""
    shutil.copytree(TINY, folder)
    save_file(change(load_file(TINY / WEIGHTS)), folder / WEIGHTS)


def other_order(weights):
    """Latents in another order of channels: another base's."""
    return weights | {"decoder.layers.0.weight": weights["decoder.layers.0.weight"].flip(1).contiguous()}


def other_latents(weights):
    name = max(key for key in weights if key.startswith("encoder.layers.") and key.endswith("bias"))
    return weights | {key: -weights[key] for key in (name, name.replace("bias", "weight"))}


REFUSED = {
    "random weights": (
        lambda to: build_tiny_vae(AutoencoderKL(latent_channels=4)).save_pretrained(to),
        "decoder is at",
    ),
    "other latents": (lambda to: damaged(to, other_order), "decoder is at"),
    "other latents of the encoder": (lambda to: damaged(to, other_latents), "encoder is at"),
    "16 channels": (lambda to: build_tiny_vae(AutoencoderKL(latent_channels=16)).save_pretrained(to), "16 channels"),
    "8 pixels per latent": (lambda to: AutoencoderTiny().save_pretrained(to), "8 pixels per latent"),
    "not a tiny one": (lambda to: shutil.copytree(BASE / "vae", to), "it is an AutoencoderKL"),
    "no weights": (lambda to: damaged(to, lambda weights: dict(list(weights.items())[2:])), "not in the file"),
    "nothing": (lambda to: to.mkdir(), "not a readable AutoencoderTiny"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_one_that_does_not_fit_is_refused(what, vae, tmp_path):
    make, reason = REFUSED[what]
    make(tmp_path / "tiny")
    with pytest.raises(InputError, match=f"--vae=.*{reason}.*; pass "):
        use_tiny_vae(vae, str(tmp_path / "tiny"), encodes=True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["--vae_encodes"], "--vae_encodes .*without --vae"), (["--vae", "no/such/place"], "no/such/place: no such")],
)
def test_flags_that_cannot_work_are_refused_before_anything_is_loaded(words, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        predict.main([str(ROOT / "examples" / "coffee.jpg"), "--output_dir", str(tmp_path), *words])


def test_the_stage_trains_one_and_writes_it_with_its_card(vae, tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    tiny = build_tiny_vae(vae, channels=8)
    before = tiny.decoder.layers[0].weight.clone()
    settings = {"steps": 40, "learning_rate": 3e-3, "warmup": 1, "log_every": 1}
    run_stage(tiny_stage(tiny, vae, rgb, tmp_path / "work", 4, False, **settings))
    losses = [json.loads(line) for line in (tmp_path / "work" / "log.jsonl").read_text().splitlines()]
    for part in ("encoder", "decoder"):
        means = [np.mean([line[part] for line in some]) for some in (losses[:8], losses[-8:])]
        assert means[1] < means[0], (part, means)
    save_tiny(tmp_path / "tiny", BASE, tiny, 40)
    assert not torch.equal(load_tiny(str(tmp_path / "tiny")).decoder.layers[0].weight, before)
    assert "40 steps" in (tmp_path / "tiny" / "README.md").read_text()
