"""The pretraining of mini-gan, mini-ar and mini-teacher, in small."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from helpers import ROOT
from PIL import Image

from generators.transformer import VQTokens
from miniworld.pretraining import autoregressive, gan, teacher
from miniworld.pretraining.gan import Discriminator, deviation
from miniworld.pretraining.stage import run_stage
from miniworld.pretraining.unconditional import sample_gates
from utils.labels.teachers import load_teacher

SHORT = {"learning_rate": 2e-3, "warmup": 1, "log_every": 1, "save_every": 2, "sheet_every": 1000}


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> np.ndarray:
    """8 scenes of 32 px: images and labels (8,5,32,32,3)."""
    folder = tmp_path_factory.mktemp("maps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "CHUNK", 8)
        return teacher.cached_maps(folder, 0, 8, 32)


@pytest.fixture
def networks(monkeypatch):
    monkeypatch.setattr(gan, "CHANNELS", {4: 8, 8: 8, 16: 8, 32: 8})
    torch.manual_seed(0)
    return gan.build_gan(32)


def test_each_players_loss_has_gradients_for_itself_alone(networks):
    generator, discriminator = networks
    real, z = torch.rand(4, 3, 32, 32) * 2 - 1, torch.randn(4, generator.style_dim)
    own = {"generator": generator, "fake": discriminator, "real": discriminator, "r1": discriminator}
    for name, network in own.items():
        fake = generator(generator.mapping(z))
        losses = gan.gan_losses(discriminator, real, fake, regularised=True)
        both = [*generator.parameters(), *discriminator.parameters()]
        slopes = torch.autograd.grad(losses[name], both, allow_unused=True)
        moved = {id(p) for p, slope in zip(both, slopes, strict=True) if slope is not None and slope.abs().max() > 0}
        assert moved and moved <= {id(p) for p in network.parameters()}, name


def test_r1_is_the_squared_slope_at_real_images(networks):
    _, discriminator = networks
    real = torch.rand(4, 3, 32, 32) * 2 - 1
    found = gan.gan_losses(discriminator, real.clone(), torch.zeros_like(real), regularised=True)["r1"]
    x = real.clone().requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(x).sum(), x)
    assert torch.allclose(found, gan.LAZY * gan.GAMMA / 2 * slope.square().sum((1, 2, 3)).mean())


def test_the_discriminator_uses_differences_within_a_group():
    same = torch.rand(1, 2, 4, 4).expand(8, -1, -1, -1)
    assert deviation(same).max() < 1e-3 < deviation(torch.rand(8, 2, 4, 4)).min()
    assert Discriminator({4: 8, 8: 8})(torch.rand(8, 3, 8, 8)).shape == (8,)


def test_a_gans_pretraining_resumes_to_the_same_bits(maps, monkeypatch, tmp_path):
    monkeypatch.setattr(gan, "CHANNELS", {4: 8, 8: 8, 16: 8, 32: 8})

    def trained(folder, *lengths: int) -> dict:
        for steps in lengths:
            torch.manual_seed(0)
            stage = gan.gan_stage(*gan.build_gan(32), maps[:, 0], tmp_path / folder, 4, steps=steps, **SHORT)
            stage.rate = lambda step: 1e-3  # the length of a run changes its rates at the end
            found = run_stage(stage)["generator"].state_dict()
        return found

    whole, cut = trained("whole", 4), trained("cut", 2, 4)
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_a_teacher_learns_and_its_folder_labels_images_of_any_size(maps, monkeypatch, tmp_path):
    torch.manual_seed(0)
    network = teacher.build_teacher(32)
    stage = teacher.teacher_stage(network, maps, tmp_path / "work", 8, steps=12, **SHORT)

    def total() -> float:
        rgb, labels = teacher.layers(maps)
        with torch.no_grad():
            return float(
                sum(teacher.teacher_losses(teacher.predict_maps(network, rgb, teacher.PATCH), labels).values())
            )

    before = total()
    run_stage(stage)
    assert total() < 0.9 * before
    teacher.save_teacher(tmp_path / "teacher", network, 32)
    picture = Image.fromarray(maps[0, 0]).resize((70, 50))
    for task in ("normal", "depth", "albedo", "shading"):
        loaded = load_teacher(task, str(tmp_path / "teacher"), None, torch.device("cpu"), torch.float32)
        values = loaded.predict(picture, [])
        assert loaded.quantity == task and values.shape == ((50, 70) if task == "depth" else (50, 70, 3))
        if task == "normal":
            assert np.allclose(np.linalg.norm(values, axis=2), 1)


def test_the_vq_model_is_mini_sds_vae_with_a_codebook(maps, monkeypatch):
    monkeypatch.setattr(autoregressive, "CODES", 32)
    vae = AutoencoderKL.from_pretrained(ROOT / "miniworld" / "mini-sd", subfolder="vae").float()
    vq = autoregressive.build_vq(vae, maps[:, 0])
    x = torch.from_numpy(maps[:2, 0]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        mean = vae.encode(x).latent_dist.mode()
        scaled = mean * vae.config.scaling_factor
        assert torch.allclose(vq.encode(x).latents, scaled, atol=1e-4)
        assert torch.allclose(vq.decode(scaled, force_not_quantize=True).sample, vae.decode(mean).sample, atol=1e-4)
    tokens = VQTokens(vq)
    assert tokens.encode(x).shape == (2, 64) and len(tokens.encode(x).unique()) > 8
    nearest = torch.cdist(scaled.permute(0, 2, 3, 1).reshape(-1, 4), vq.quantize.embedding.weight).argmin(1)
    assert torch.equal(tokens.encode(x).reshape(-1), nearest)


def test_the_transformer_learns_the_order_of_tokens(monkeypatch, tmp_path):
    monkeypatch.setattr(autoregressive, "CODES", 8)
    torch.manual_seed(0)
    tokens = (torch.arange(16)[None] + torch.arange(8)[:, None]).remainder(8).short()  # each is the last plus one
    whole = autoregressive.build_transformer(16)
    stage = autoregressive.transformer_stage(whole, None, tokens, tmp_path, 8, steps=40, **SHORT)
    stage.sheet = lambda modules, path: None
    before = stage.loss(0, stage.rng(0))["loss"].item()
    run_stage(stage)
    assert stage.loss(0, stage.rng(0))["loss"].item() < 0.3 * before


@pytest.mark.slow
def test_scenes_are_nearer_to_scenes_than_noise_is():
    noise = torch.rand(128, 3, 64, 64) * 2 - 1
    (far, floor) = sample_gates(noise, seed=0, ceiling=70)
    assert float(far.value) > 70 > float(floor.value) and far.passed is False
