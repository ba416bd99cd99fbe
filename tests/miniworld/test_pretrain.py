"""The small generator: what its training sees, that it resumes exactly, and that what is shipped is good enough."""

import importlib
import json
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline
from helpers import ROOT, SCRIPTS
from torch import Generator, nn

from miniworld import pretrain, scenes
from miniworld.pretraining import editor, generator, report
from miniworld.pretraining.augment import recolour, turn
from miniworld.pretraining.continued import velocity_stage
from miniworld.pretraining.editor import build_editor, editor_stage
from miniworld.pretraining.flow import build_flow, cached_text, flow_stage, with_projection
from miniworld.pretraining.gates import unseen_scenes, vae_gates
from miniworld.pretraining.generator import (
    Parts,
    build_generator,
    encode_images,
    generator_loss,
    generator_stage,
    quick,
)
from miniworld.pretraining.image_cache import cached_images
from miniworld.pretraining.model_folder import LEARNING_RATE, TIMESTEP, load_generator, save_editor, save_generator
from miniworld.pretraining.random_sd import build_text_encoder, build_unet
from miniworld.pretraining.report import BEGIN, END, VAE_SCENES, write_card
from miniworld.pretraining.stage import Stage, run_stage
from miniworld.pretraining.vae import (
    build_mini_vae,
    decoder_stage,
    enlarge,
    reconstruct,
    to_tensor,
    vae_batch,
    vae_stage,
)
from miniworld.pretraining.wasserstein import pyramid, sliced_wasserstein
from miniworld.render.diode_tree import encode_labels
from utils.base_model.stable_diffusion import load_base, load_donor, widen_conv_in
from utils.errors import InputError
from utils.lora import CONV_IN
from utils.objectives import zero_snr_scheduler

MINI_SD, MINI_IP2P = ROOT / "miniworld" / "mini-sd", ROOT / "miniworld" / "mini-ip2p"
PROMPTS = ("surface normal", "depth map", "albedo", "shading")
SIDE, COUNT = 16, 24


@pytest.fixture(scope="module")
def pairs():
    """Images (COUNT,SIDE,SIDE,3) and captions, straight from the stream."""
    rgb, captions = zip(*islice(scenes.stream(0, SIDE), COUNT))
    return np.stack(rgb), list(captions)


def tiny_parts() -> Parts:
    parts = build_generator()
    unet = quick(build_unet(channels=(8, 8, 8), groups=4))
    unet.register_to_config(sample_size=SIDE // 4)
    return Parts(parts.tokenizer, build_text_encoder(parts.tokenizer), unet, parts.scheduler)


def tiny_data(vae, parts: Parts, pairs, folder: Path) -> generator.Latents:
    return encode_images(vae, *pairs, parts.tokenizer, folder, half=False)


def tiny_stage(name: str, folder: Path, pairs, steps: int = 6):
    """One of the stages, on few images of few pixels; its weights are a function of its name."""
    torch.manual_seed(0)
    vae, parts = build_mini_vae((8, 8, 8), 4), tiny_parts()
    settings = {"steps": steps, "learning_rate": 1e-3, "log_every": 1, "save_every": 2, "sheet_every": 1000}
    if name == "vae":
        return vae_stage(vae, pairs[0], folder / name, 4, True, **settings)
    if name == "decoder":
        return decoder_stage(vae, pairs[0], folder / name, 4, True, **settings)
    vae.requires_grad_(False)
    data = tiny_data(vae, parts, pairs, folder)
    if name == "unet":
        return generator_stage(parts, data, vae, folder / name, 4, True, snapshots=(2, 6), **settings)
    if name == "velocity":
        return velocity_stage(parts, data, vae, folder / name, 4, True, **settings)
    parts.text_encoder.requires_grad_(False)
    if name == "flow":
        transformer, encoder = (
            build_flow(64, SIDE // 4, width=16, layers=2, heads=2),
            with_projection(parts.text_encoder),
        )
        text = cached_text(encoder, data, folder)
        return flow_stage(transformer, data, text, vae, folder / name, 4, True, snapshots=(2, 6), **settings)
    return editor_stage(build_editor(parts.unet), parts, vae, pairs[0], data, folder / name, 4, True, **settings)


# Training data


def test_the_cache_is_the_stream(tmp_path, monkeypatch):
    monkeypatch.setattr("miniworld.pretraining.image_cache.CHUNK", 4)
    cached_images(tmp_path, seed=3, count=4, size=SIDE)
    monkeypatch.setattr(scenes, "render", count_calls(scenes.render))
    rgb, captions = cached_images(tmp_path, seed=3, count=10, size=SIDE)
    assert scenes.render.calls == 2 * 4  # what was there is kept
    for index, (picture, caption) in enumerate(islice(scenes.stream(3, SIDE), 10)):
        assert np.array_equal(rgb[index], picture) and captions[index] == caption


def count_calls(function):
    def counted(*args, **kwargs):
        counted.calls += 1
        return function(*args, **kwargs)

    counted.calls = 0
    return counted


def test_no_stage_can_see_a_map(tmp_path, monkeypatch):
    """All stages, including further training, run on scenes with only an image and a caption."""

    def bare(*args):
        scene = render(*args)
        return SimpleNamespace(rgb=scene.rgb, caption=scene.caption)

    def refuse(*args):
        raise AssertionError("a map was asked for")

    render = scenes.render
    monkeypatch.setattr(scenes, "render", bare)
    monkeypatch.setattr("miniworld.render.diode_tree.encode_labels", refuse)
    monkeypatch.setattr("miniworld.pretraining.gates.encode_labels", refuse)
    monkeypatch.setattr("miniworld.pretraining.image_cache.CHUNK", 16)
    monkeypatch.setattr(pretrain, "SIZE", SIDE)
    monkeypatch.setattr(pretrain, "build_mini_vae", partial(build_mini_vae, (8, 8, 8), 4))
    monkeypatch.setattr(pretrain, "build_generator", tiny_parts)
    monkeypatch.setattr(pretrain, "build_flow", partial(build_flow, width=16, layers=2, heads=2))
    for name in ("report", "report_flow"):
        monkeypatch.setattr(pretrain, name, lambda *args: None)
    words = ["--out", tmp_path / "mini-sd", "--work", tmp_path / "work", "--workers", 1]
    words += ["--batch", 4, "--scenes", 16]
    vae_words = ["--vae_batch", 4, "--vae_scenes", 16, "--vae_steps", 2, "--decoder_steps", 2]
    unet_words, velocity_words = ["--unet_steps", 2, "--ip2p_steps", 2], ["--velocity_steps", 2]
    pretrain.main([str(word) for word in (*words, *vae_words, *unet_words)])
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "mini-sd", safety_checker=None)
    assert pipeline.unet.config.in_channels == 4 and pipeline.vae.config.scaling_factor == 0.18215
    edits = StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "mini-ip2p", safety_checker=None)
    assert edits.unet.config.in_channels == 8
    snapshots = sorted(path.name for path in (tmp_path / "work" / "unet").glob("ema-*.pt"))
    assert snapshots == ["ema-000002.pt"]

    base, on, velocity = tmp_path / "mini-sd", tmp_path / "on" / "mini-sd", tmp_path / "mini-sd-2"
    to_velocity = [*words, *velocity_words, "--velocity_from", base, "--out", velocity]
    for more in ([*words, *unet_words, "--continue_from", base, "--out", on], to_velocity):
        pretrain.main([str(word) for word in more])
    for folder in (on, velocity):
        assert (load_generator(folder)[0].unet.conv_in.weight != load_generator(base)[0].unet.conv_in.weight).any()
    assert (tmp_path / "on" / "mini-ip2p" / "text_encoder").resolve() == (on / "text_encoder").resolve()
    flow = ["--stage", "flow", "--generator", base, "--flow_steps", 2, *words, "--out", tmp_path / "mini-flow"]
    pretrain.main([str(word) for word in flow])
    assert (tmp_path / "mini-flow" / "model_index.json").exists()
    pretrain.main([str(word) for word in to_velocity])  # nothing left to do
    with pytest.raises(InputError, match="started from another generator"):  # it would end where the first one did
        pretrain.main([str(word) for word in (*words, *velocity_words, "--velocity_from", on, "--out", velocity)])


def test_the_vae_is_trained_on_crops(pairs, monkeypatch):
    monkeypatch.setattr("miniworld.pretraining.vae.vary", lambda rgb, rng: rgb)
    rgb = to_tensor(pairs[0]) * 2 - 1
    for side in (SIDE // 2, SIDE):
        windows = rgb.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        for piece in vae_batch(pairs[0], 8, Generator().manual_seed(side), side):
            assert (windows - piece).abs().amax(dim=(1, 2, 3)).min() < 1e-6


def test_enlarged_latents_are_the_same_vae(pairs):
    torch.manual_seed(0)
    vae = build_mini_vae((8, 8, 8), 4)
    rgb = to_tensor(pairs[0][:3]) * 2 - 1
    with torch.no_grad():
        before, drawn = vae.encode(rgb).latent_dist, reconstruct(vae, rgb)
        enlarge(vae, 5.0)
        after = vae.encode(rgb).latent_dist
    torch.testing.assert_close(after.mean, 5 * before.mean)
    torch.testing.assert_close(after.std, 5 * before.std)
    torch.testing.assert_close(reconstruct(vae, rgb), drawn, atol=1e-5, rtol=1e-4)


def test_recoloured_images_are_not_maps():
    """The images of VAE and editor are not close to the normals or the depth of their scenes."""
    found = [scenes.render(seed, kind, 64, 64) for seed in range(12) for kind in ("room", "yard")]
    rgb = to_tensor(np.stack([scene.rgb for scene in found]))
    varied = recolour(rgb, Generator().manual_seed(0))
    shown = editor.conditions(np.stack([scene.rgb for scene in found]), Generator().manual_seed(1))
    for task in ("normal", "depth"):
        maps = to_tensor(np.stack([encode_labels(scene)[task] for scene in found]))
        for pictures in (varied, shown):
            assert (pictures - maps).abs().mean(dim=(1, 2, 3)).min() > 0.08


def test_the_unet_is_trained_on_latents_of_images_and_captions(tmp_path, pairs):
    torch.manual_seed(0)
    vae, parts = build_mini_vae((8, 8, 8), 4).requires_grad_(False), tiny_parts()
    data = tiny_data(vae, parts, pairs, tmp_path)
    picture = (to_tensor(pairs[0][:4]) * 2 - 1).contiguous(memory_format=torch.channels_last)
    assert torch.allclose(data.mean[:4].float(), vae.encode(picture).latent_dist.mean, atol=2e-3)
    assert parts.tokenizer.batch_decode(data.tokens, skip_special_tokens=True) == [
        c.replace(",", " ,") for c in pairs[1]
    ]
    everything = data.draw(torch.arange(COUNT), Generator().manual_seed(0))
    assert everything.std().item() == pytest.approx(1, abs=0.05)

    clean, told = [], []
    data = replace(data, std=torch.zeros_like(data.std))
    add_noise = parts.scheduler.add_noise
    parts.scheduler.add_noise = lambda z0, eps, t: clean.append(z0) or add_noise(z0, eps, t)
    hook = parts.text_encoder.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    for step in range(40):
        with torch.no_grad():
            generator_loss(parts, data, 8, Generator().manual_seed(step))
    hook.remove()
    known = data.scale * data.mean.float()
    told, clean = torch.cat(told), torch.cat(clean)
    source = (clean[:, None] - known[None]).abs().amax(dim=(2, 3, 4)).min(dim=1)
    assert source.values.max() < 1e-6
    empty = (told == data.empty).all(dim=1)
    assert 0.04 < empty.double().mean() < 0.18  # one in ten
    assert torch.equal(told[~empty], data.tokens[source.indices[~empty]])  # each image with its own caption


def test_the_editors_condition_keeps_its_place():
    """Conditions are re-coloured, never turned: their edges match those of the target image."""
    rgb = np.zeros((32, 64, 64, 3), np.uint8)
    rgb[:, :, 40:] = 255
    shown = editor.conditions(rgb, Generator().manual_seed(0))
    across = (shown[..., 1:] - shown[..., :-1]).abs().sum(dim=(1, 2))
    assert (across.argmax(dim=1) - 39).abs().max() <= 4  # blurring spreads it a little
    turned = turn(to_tensor(rgb), Generator().manual_seed(0))
    assert (turned != to_tensor(rgb)).any()


# Velocity


@pytest.fixture
def tiny_folder(tmp_path) -> Path:
    """A generator's folder next to an editor's, with random weights."""
    torch.manual_seed(0)
    parts = tiny_parts()
    save_generator(tmp_path / "mini-sd", parts, build_mini_vae((8, 8, 8), 4))
    save_editor(tmp_path / "mini-ip2p", tmp_path / "mini-sd", build_editor(parts.unet))
    return tmp_path / "mini-sd"


def test_the_velocity_stage_descends_the_error_of_v_on_a_schedule_that_ends_in_noise(tmp_path, pairs, monkeypatch):
    stage = tiny_stage("velocity", tmp_path, pairs)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a = (1 - betas).cumprod(0).sqrt()
    a = (a - a[-1]) * a[0] / (a[0] - a[-1])  # arXiv 2305.08891, algorithm 1
    drawn = []
    diffuse = generator.diffuse
    monkeypatch.setattr(generator, "diffuse", lambda scheduler, z0, rng: keep(z0, *diffuse(scheduler, z0, rng)))

    def keep(z0, z_t, t, eps):
        scale = a[t].view(-1, 1, 1, 1)
        drawn.append((scale * eps - (1 - scale**2).sqrt() * z0).float())
        torch.testing.assert_close(z_t, (scale * z0 + (1 - scale**2).sqrt() * eps).float(), atol=1e-3, rtol=0)
        return z_t, t, eps

    monkeypatch.setattr(stage.modules["unet"], "forward", lambda z_t, t, text: SimpleNamespace(sample=z_t * 0))
    for step in range(3):
        loss = stage.loss(step, stage.rng(step))["loss"]
        assert loss.item() == pytest.approx(drawn[-1].pow(2).mean().item(), rel=1e-3)


@pytest.mark.parametrize("velocity", [False, True])
@pytest.mark.parametrize("guidance", [1, 3])
def test_the_sampler_finds_what_an_exact_prediction_points_at(velocity, guidance):
    """An oracle for the only image, predicting noise, and velocity from pure noise."""
    parts = build_generator()
    scheduler = zero_snr_scheduler(parts.scheduler) if velocity else parts.scheduler
    z0 = torch.randn(2, 4, 8, 8, generator=Generator().manual_seed(1))
    seen = []

    class Oracle(nn.Module):
        config = SimpleNamespace(sample_size=8)

        def forward(self, z_t, t, text):
            seen.append(int(t))
            a = scheduler.alphas_cumprod[t].sqrt()
            sigma, clean = (1 - a**2).sqrt(), z0.repeat(len(z_t) // 2, 1, 1, 1)
            return SimpleNamespace(sample=(a * z_t - clean if velocity else z_t - a * clean) / sigma)

    tokens = generator.tokenize(parts.tokenizer, ["a room", "a yard"])
    z = generator.sample(Oracle(), parts.text_encoder, scheduler, tokens, tokens[0], seed=0, guidance=guidance)
    assert (z - z0).abs().max() < 0.2  # the first step of the schedule keeps a little noise
    assert seen[0] == 999 or not velocity


def test_a_velocity_base_is_a_folder_that_diffusers_and_the_scripts_read(tiny_folder, tmp_path, monkeypatch):
    """Its VAE is the generator's by links that can be moved along; it says how it was made, and is measured."""
    monkeypatch.setattr("miniworld.pretraining.image_cache.CHUNK", 16)
    monkeypatch.setattr(pretrain, "SIZE", SIDE)
    for name, value in {"VAE_SCENES": 8, "DRAWN": 4, "SHOWN": 2}.items():
        monkeypatch.setattr(report, name, value)
    monkeypatch.setattr(report, "unseen_scenes", partial(unseen_scenes, size=SIDE))
    out = tmp_path / "mini-sd-2"
    words = ["--velocity_from", tiny_folder, "--out", out, "--work", tmp_path / "work"]
    words += ["--sheet", tmp_path / "sheet.png"]
    words += ["--workers", 1, "--batch", 4, "--scenes", 16, "--velocity_steps", 2]
    pretrain.main([str(word) for word in words])

    card = (out / "README.md").read_text()
    for text in ("2 more steps of 4 images", "sliced Wasserstein", "from noise to velocity | 2 |"):
        assert text in card
    assert "mini-ip2p's error" not in card  # it predicts noise
    assert (tmp_path / "sheet.png").exists()
    links = [(out / part).readlink().as_posix() for part in ("vae", "tokenizer")]
    assert links == ["../mini-sd/vae", "../mini-sd/tokenizer"]
    pipeline = StableDiffusionPipeline.from_pretrained(out, safety_checker=None)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.alphas_cumprod[-1] == 0 and pipeline.scheduler.config.timestep_spacing == "trailing"
    settings = {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "output_type": "np"}
    assert np.isfinite(pipeline("a room", **settings).images).all()
    recommended = json.loads((out / "recommended_settings.json").read_text())
    assert recommended == {"learning_rate": LEARNING_RATE, "augment_from": "../mini-ip2p", "resolution": SIDE}
    donor = tmp_path / "mini-ip2p"
    widen_conv_in(load_base(str(out)).unet, load_donor(str(donor)))  # AugUNet's start
    alone = load_donor(str(donor))
    (donor / CONV_IN).unlink()
    whole = load_donor(str(donor))  # from the whole UNet
    assert torch.equal(alone.weight, whole.weight) and torch.equal(alone.bias, whole.bias)


@pytest.mark.parametrize("words, message", [
    (["--continue_from", "A", "--velocity_from", "A"], "exclude each other"),
    (["--velocity_from", "nosuch"], "--velocity_from=nosuch: not a Stable Diffusion folder"),
    (["--velocity_from", "A", "--out", "A"], "must not change"),
    (["--continue_from", "A", "--out", "B"], "mini-ip2p next to --continue_from would be replaced"),
])  # fmt: skip
def test_what_would_spoil_a_generator_is_refused(words, message, tiny_folder):
    names = {"A": str(tiny_folder), "B": str(tiny_folder.parent / "B")}
    with pytest.raises(InputError, match=message):
        pretrain.parse_args([names.get(word, word) for word in words])


# Resuming


@pytest.mark.parametrize("name", ["vae", "decoder", "unet", "ip2p", "velocity", "flow"])
def test_a_resumed_stage_ends_where_an_uninterrupted_one_does(name, tmp_path, pairs):
    whole = tiny_stage(name, tmp_path / "whole", pairs)
    run_stage(whole)

    cut = tiny_stage(name, tmp_path / "cut", pairs)
    loss = cut.loss

    def interrupted(step, rng):
        if step == 3:
            raise KeyboardInterrupt
        return loss(step, rng)

    with pytest.raises(KeyboardInterrupt):
        run_stage(replace_loss(cut, interrupted))
    again = tiny_stage(name, tmp_path / "cut", pairs)
    run_stage(again)

    first, second = (torch.load(stage.checkpoint, weights_only=True) for stage in (whole, again))
    assert first["step"] == second["step"] == 6
    for kind in ("weights", "average"):
        assert all(torch.equal(a, b) for a, b in zip(first[kind], second[kind]))
    assert any(not torch.equal(a, b) for a, b in zip(first["weights"], first["average"]))
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, second["average"]))  # what is returned and saved
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds_per_step"}
            for line in path.read_text().splitlines()
        ]
        for path in (whole.folder / "log.jsonl", again.folder / "log.jsonl")
    ]
    assert logs[0] == logs[1] and [record["step"] for record in logs[0]] == [1, 2, 3, 4, 5, 6]
    assert (whole.folder / "sheet-000006.png").exists()


def replace_loss(stage, loss):
    stage.loss = loss
    return stage


def test_a_longer_run_shares_the_steps_before_the_descent(tmp_path, pairs):
    short, long = (tiny_stage("vae", tmp_path, pairs, steps) for steps in (1000, 2000))
    assert [short.rate(step) for step in range(700)] == [long.rate(step) for step in range(700)]
    assert short.rate(999) < 0.01 * short.rate(500) and short.rate(0) < 0.02 * short.rate(500)
    twice = Stage("twice", tmp_path, {}, None, None, steps=2000, learning_rate=1e-3, cycles=2)
    assert [twice.rate(step) for step in range(2000)] == 2 * [short.rate(step) for step in range(1000)]
    assert Stage("short", tmp_path, {}, None, None, steps=1, learning_rate=1e-3, cycles=2).rate(0) > 0


# Measuring


def test_sliced_wasserstein_separates_scenes_from_other_images():
    rgb = torch.stack([to_tensor(scenes.render(seed, "room").rgb[None])[0] for seed in range(64)]) * 2 - 1
    here, there = rgb[:32], rgb[32:]
    same = sliced_wasserstein(here, there)
    blurred = torch.nn.functional.avg_pool2d(there, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    noise = torch.randn(there.shape, generator=Generator().manual_seed(0))
    assert sliced_wasserstein(here, noise)[0] > 2 * same[0]
    assert sliced_wasserstein(here, blurred)[0] > 1.3 * same[0]
    levels = pyramid(here)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]


def test_the_report_replaces_its_own_part_of_the_card(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(f"by hand\n{BEGIN}\nold\n{END}\nmore\n")
    for text in ("new", "newer"):
        write_card(card, text)
    assert card.read_text() == f"by hand\n{BEGIN}\n\nnewer\n\n{END}\nmore\n"


# The shipped weights


@pytest.fixture(scope="module")
def shipped():
    return StableDiffusionPipeline.from_pretrained(MINI_SD, safety_checker=None)


@pytest.mark.slow
def test_the_shipped_vae_passes_its_gates(shipped):
    """All gates of the VAE, on the scenes that the card speaks of."""
    maps, seen, _ = unseen_scenes(seed=0, count=VAE_SCENES)
    gates = vae_gates(shipped.vae, maps, seen)
    assert [gate.name for gate in gates if gate.passed is False] == []
    assert len([gate for gate in gates if gate.passed]) == 6


@pytest.mark.slow
def test_the_shipped_generator_follows_its_caption(shipped):
    """Ground and walls have the colours asked for. (The sky's are not learned yet: it is always blue.)"""
    shipped.set_progress_bar_config(disable=True)
    settings = {"num_images_per_prompt": 2, "num_inference_steps": 12, "guidance_scale": 3.0, "output_type": "np"}

    def colour(prompt: str, rows: slice) -> np.ndarray:
        """Mean RGB in [0,1] of some rows."""
        pictures = shipped(prompt, height=64, width=64, generator=Generator().manual_seed(0), **settings).images
        assert pictures.shape == (2, 64, 64, 3)
        return pictures[:, rows].mean(axis=(0, 1, 2))

    red, blue = (colour(f"a room with {name} walls and a white box", slice(8, 32)) for name in ("red", "blue"))
    assert red[0] - red[2] > 0.2 and blue[2] - blue[0] > 0.2
    green = colour("a yard with green ground and two trees under a blue sky", slice(-16, None))
    assert green[1] - max(green[0], green[2]) > 0.15


def test_the_shipped_words_cover_captions_and_prompts(shipped):
    captions = [text for _, text in islice(scenes.stream(11, 16), 200)]
    for text in (*captions, *PROMPTS):
        words = text.replace(",", " ,").split()
        assert shipped.tokenizer.tokenize(text) == [f"{word}</w>" for word in words]
        assert len(words) + 2 <= shipped.tokenizer.model_max_length


def test_the_shipped_editor_is_a_trained_conv_in():
    """Channels 0-3 start as mini-sd's and 4-7 as 0; six hundred steps have moved both."""
    donor, own = load_donor(str(MINI_IP2P)), load_base(str(MINI_SD)).unet.conv_in
    assert donor.weight.shape == (64, 8, 3, 3) and donor.weight.dtype == torch.float32
    assert 0 < (donor.weight[:, :4] - own.weight).abs().mean() < 0.2 * own.weight.abs().mean()
    assert donor.weight[:, 4:].abs().mean() > 1e-3


def test_the_shipped_folders_are_small():
    for folder, most in ((MINI_SD, 16e6), (MINI_IP2P, 20e3)):
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= most


def test_the_shipped_settings_are_those_that_saving_writes():
    found = json.loads((MINI_SD / "recommended_settings.json").read_text())
    settings = {"learning_rate": LEARNING_RATE, "timestep": TIMESTEP, "augment_from": "../mini-ip2p", "resolution": 64}
    assert found == settings
    settings.pop("timestep")  # of noise, on a schedule that ends in it
    assert json.loads((MINI_SD.parent / "mini-sd-2" / "recommended_settings.json").read_text()) == settings


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_takes_the_shipped_settings(script, capsys):
    """AugUNet runs through all timesteps; a flag that is given wins."""
    module = importlib.import_module(script.removesuffix(".py"))
    words = ["--pretrained_model_name_or_path", MINI_SD, "--learning_rate", 1e-5]
    with pytest.raises(InputError, match="train_data_dir"):
        module.main([str(word) for word in words])
    note = capsys.readouterr()
    assert "--resolution 64" in note.out + note.err and "--learning_rate" not in note.out + note.err
    assert ("--timestep 400" in note.out + note.err) == script.startswith("sd_single")
    donor = f"--augment_from {MINI_IP2P}"
    assert (donor in note.out + note.err) == script.startswith("augunet")
