"""mini-flow's pretraining: what the transformer learns, and that its folder is a StableDiffusion3Pipeline."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from miniworld import pretrain
from miniworld.pretraining import flow, flow_report
from miniworld.pretraining.editor import build_editor
from miniworld.pretraining.flow import (
    ABSENT,
    PlainJointAttention,
    Text,
    build_flow,
    encode_text,
    flow_loss,
    flow_times,
    sample_flow,
    velocity,
    with_projection,
)
from miniworld.pretraining.gates import unseen_scenes
from miniworld.pretraining.generator import Latents, build_generator, tokenize
from miniworld.pretraining.model_folder import save_editor, save_generator
from miniworld.pretraining.random_sd import build_text_encoder, build_unet
from miniworld.pretraining.vae import build_mini_vae
from utils.errors import InputError

SIDE = 16  # pixels of the tiny base
tiny_flow = partial(build_flow, width=16, layers=2, heads=2)


def randomised(transformer: nn.Module) -> nn.Module:
    """Without the zeros that make a new transformer's output 0."""
    for number, weight in enumerate(transformer.parameters()):
        nn.init.normal_(weight, std=0.2, generator=Generator().manual_seed(number))
    return transformer.eval()


# Attention and text


@pytest.mark.parametrize("absent", [False, True])
def test_one_counted_zero_does_the_work_of_all_of_the_pipelines(absent):
    transformer = randomised(tiny_flow(8, 4))
    z, states, pooled = (torch.randn(2, *shape) for shape in ((4, 4, 4), (5, 16), (16,)))
    with torch.no_grad():
        quick = velocity(transformer, z, torch.tensor([0.2, 0.9]), states, pooled, absent)
        transformer.set_attn_processor(JointAttnProcessor2_0())
        states = F.pad(states, (0, 0, 0, ABSENT if absent else 0))
        whole = transformer(z, states, pooled, torch.tensor([200.0, 900.0])).sample
    torch.testing.assert_close(quick, whole, atol=1e-5, rtol=1e-4)
    assert whole.std() > 0.1


def test_zeros_matter_unless_training_has_seen_them():
    """Otherwise half of the batches would not need them."""
    transformer = randomised(tiny_flow(8, 4))
    z, states, pooled, s = torch.randn(1, 4, 4, 4), torch.randn(1, 5, 16), torch.randn(1, 16), torch.tensor([0.5])
    with torch.no_grad():
        found = [velocity(transformer, z, s, states, pooled, absent) for absent in (False, True)]
    assert (found[0] - found[1]).abs().max() > 1e-3


# Training


class Oracle(nn.Module):
    """The exact velocity of images z0, which it recognises by their first latent; records what it was asked."""

    config = SimpleNamespace(sample_size=4)

    def __init__(self, z0: Tensor):
        super().__init__()
        self.z0, self.calls = z0, []

    def forward(self, hidden_states, encoder_hidden_states, pooled_projections, timestep, joint_attention_kwargs):
        image = pooled_projections[:, 0].round().long()
        s = (timestep / 1000).view(-1, 1, 1, 1)
        self.calls.append((image, timestep, encoder_hidden_states, joint_attention_kwargs["repeats"]))
        return SimpleNamespace(sample=(hidden_states - self.z0[image]) / s)


@pytest.fixture
def numbered() -> tuple[Latents, Text, Oracle]:
    """Eight images whose captions' states are their number, and "" with number 8. No posterior deviation."""
    mean = torch.randn(8, 4, 4, 4, generator=Generator().manual_seed(0))
    text = Text(torch.arange(9.0).view(-1, 1, 1).expand(-1, 3, 2), torch.arange(9.0).view(-1, 1).expand(-1, 2))
    data = Latents(mean, torch.zeros_like(mean), torch.zeros(8, 3), torch.zeros(3), scale=2.0)
    return data, text, Oracle(torch.cat([2 * mean, torch.zeros(1, 4, 4, 4)]))


def test_the_loss_is_that_of_the_velocity_of_each_image_under_its_own_caption(numbered, monkeypatch):
    data, text, oracle = numbered
    monkeypatch.setattr(flow, "DROPPED", 0.0)
    for step in range(10):
        assert flow_loss(oracle, data, text, 8, Generator().manual_seed(step)).item() < 1e-6
    for image, timestep, states, _ in oracle.calls:
        assert torch.equal(states[:, 0], image.float().view(-1, 1).expand(-1, 4))
        assert 0 <= timestep.min() < timestep.max() <= 1000
    oracle.z0 = oracle.z0 + 1
    assert flow_loss(oracle, data, text, 8, Generator().manual_seed(0)).item() > 1


def test_captions_are_dropped_and_zeros_appended_at_random(numbered):
    data, text, oracle = numbered
    for step in range(60):
        flow_loss(oracle, data, text, 16, Generator().manual_seed(step))
    images, repeats = torch.cat([call[0] for call in oracle.calls]), [call[3] for call in oracle.calls]
    assert 0.05 < (images == 8).double().mean() < 0.16
    assert {1, ABSENT} == set(repeats) and 15 < repeats.count(1) < 45
    for _, _, states, count in oracle.calls:
        assert states.shape[1] == 3 + (count == ABSENT) and (count == 1 or (states[:, -1] == 0).all())


def test_times_are_half_logit_normal_and_half_uniform():
    s = flow_times(40_000, Generator().manual_seed(0))
    bins = torch.histc(s, 5, 0, 1) / len(s)
    normal = torch.distributions.Normal(0, 1)
    edges = normal.cdf(torch.logit(torch.linspace(0, 1, 6)))
    torch.testing.assert_close(bins, 0.1 + 0.5 * edges.diff(), atol=0.01, rtol=0)


@pytest.mark.parametrize("guidance", [1, 3])
def test_the_sampler_ends_at_the_image_of_an_exact_velocity(numbered, guidance):
    _, text, oracle = numbered
    chosen = torch.tensor([2, 5])
    oracle.z0[8] = oracle.z0[2]  # guidance moves the second image away from it
    z = sample_flow(oracle, *text.take(chosen), *text.take(torch.tensor([-1])), steps=4, guidance=guidance)
    wanted = oracle.z0[8] + guidance * (oracle.z0[chosen] - oracle.z0[8])
    torch.testing.assert_close(z, wanted, atol=1e-4, rtol=1e-3)
    assert [call[1][0].item() for call in oracle.calls] == [1000, 750, 500, 250]


# The folder


@pytest.fixture
def tiny_generator(tmp_path) -> Path:
    torch.manual_seed(0)
    parts = build_generator()
    unet = build_unet(channels=(8, 8, 8), groups=4)
    unet.register_to_config(sample_size=SIDE // 4)
    parts = type(parts)(parts.tokenizer, build_text_encoder(parts.tokenizer), unet, parts.scheduler)
    save_generator(tmp_path / "mini-sd", parts, build_mini_vae((8, 8, 8), 4))
    save_editor(tmp_path / "mini-ip2p", tmp_path / "mini-sd", build_editor(unet))
    return tmp_path / "mini-sd"


@pytest.fixture
def words(tiny_generator, tmp_path, monkeypatch) -> list[str]:
    """The command that trains a tiny transformer for two steps and reports on it."""
    monkeypatch.setattr("miniworld.pretraining.image_cache.CHUNK", 16)
    monkeypatch.setattr(pretrain, "SIZE", SIDE)
    monkeypatch.setattr(pretrain, "build_flow", tiny_flow)
    for name, value in {"DRAWN": 4, "SHOWN": 2}.items():
        monkeypatch.setattr(flow_report, name, value)
    monkeypatch.setattr(flow_report, "unseen_scenes", partial(unseen_scenes, size=SIDE))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = ["--stage", "flow", "--generator", tiny_generator, "--out", tmp_path / "mini-flow"]
    found += ["--work", tmp_path / "work", "--sheet", tmp_path / "sheet.png"]
    return [str(word) for word in (*found, "--workers", 1, "--batch", 4, "--scenes", 16, "--flow_steps", 2)]


def test_the_stage_writes_a_folder_that_the_pipeline_opens_and_samples_from(words, tmp_path, capsys):
    pretrain.main(words)
    out = tmp_path / "mini-flow"
    pipeline = StableDiffusion3Pipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}

    def draw(pipeline, **more):
        return torch.from_numpy(
            pipeline("a red room", **settings, **more, generator=Generator().manual_seed(0)).images
        )

    image = draw(pipeline)
    assert image.shape == (1, SIDE, SIDE, 3) and image.isfinite().all() and image.std() > 0
    without = StableDiffusion3Pipeline.from_pretrained(out, text_encoder_3=None, tokenizer_3=None)
    without.set_progress_bar_config(disable=True)
    assert torch.equal(draw(without), image)
    assert not torch.equal(draw(without, max_sequence_length=0), image)

    links = {
        path.relative_to(out).as_posix(): path.readlink().as_posix() for path in out.rglob("*") if path.is_symlink()
    }
    weights = "diffusion_pytorch_model.safetensors"
    assert links == {
        "text_encoder_2": "text_encoder",
        **dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3"), "../mini-sd/tokenizer"),
        f"vae/{weights}": f"../../mini-sd/vae/{weights}",
    }
    assert str(tmp_path) not in "".join(path.read_text() for path in out.rglob("*.json"))
    assert json.loads((out / "recommended_settings.json").read_text())["resolution"] == SIDE

    card = (out / "README.md").read_text()
    for text in (
        "sliced Wasserstein distance",
        "| flow transformer | 2 |",
        "2 blocks of width 16",
        "(../mini-sd/README.md)",
    ):
        assert text in card
    assert (tmp_path / "sheet.png").exists()
    assert "sliced Wasserstein distance" in capsys.readouterr().out


def test_what_is_trained_on_is_what_the_pipeline_reads(words, tmp_path):
    """Captions' states, an image's latents and the sampler."""
    pretrain.main(words)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "mini-flow", text_encoder_3=None, tokenizer_3=None)
    captions = ["a red room", ""]
    states, _, pooled, _ = pipeline.encode_prompt(captions, None, None, do_classifier_free_guidance=False)
    text = encode_text(pipeline.text_encoder, tokenize(pipeline.tokenizer, captions))
    own_states, own_pooled = text.take(torch.tensor([0, 1]))
    assert torch.equal(states[:, : own_states.shape[1]], own_states) and (states[:, own_states.shape[1] :] == 0).all()
    assert states.shape[1] == own_states.shape[1] + ABSENT and torch.equal(pooled, own_pooled)

    z = torch.randn(1, 4, SIDE // 4, SIDE // 4, generator=Generator().manual_seed(3))
    pipeline.set_progress_bar_config(disable=True)
    randomised(pipeline.transformer)
    settings = {"latents": z, "guidance_scale": 3.0, "output_type": "latent", "max_sequence_length": 0}
    drawn = pipeline("a red room", sigmas=[1, 0.75, 0.5, 0.25], num_inference_steps=4, **settings).images
    pipeline.transformer.set_attn_processor(PlainJointAttention())
    one, none = (text.take(torch.tensor([index])) for index in (0, 1))
    own = sample_flow(pipeline.transformer, *one, *none, seed=3, steps=4, guidance=3)
    torch.testing.assert_close(own, drawn, atol=0.05, rtol=0.05)  # bfloat16


def test_a_text_encoder_with_a_projection_is_the_same_encoder():
    parts = build_generator()
    whole = with_projection(parts.text_encoder)
    tokens = tokenize(parts.tokenizer, ["a red room", "a yard"])
    with torch.no_grad():
        there, here = parts.text_encoder(tokens), whole(tokens)
    assert torch.equal(there.last_hidden_state, here.last_hidden_state)
    assert torch.equal(there.pooler_output, here.text_embeds)


def test_fewer_steps_than_are_done_write_the_folder_from_the_last_checkpoint(words, tmp_path, monkeypatch):
    pretrain.main(words)
    weights = tmp_path / "mini-flow" / "transformer" / "diffusion_pytorch_model.safetensors"
    first = weights.read_bytes()
    weights.unlink()
    monkeypatch.setattr(flow, "flow_loss", lambda *args: pytest.fail("trained on"))
    pretrain.main([*words[:-1], "1"])
    assert weights.read_bytes() == first


@pytest.mark.parametrize("more, message", [
    (["--velocity_from", "A"], "--velocity_from and --stage exclude each other"),
    (["--generator", "nosuch"], "--generator=nosuch: not a Stable Diffusion folder"),
    (["--vae_steps", "5"], "--vae_steps means nothing with .*--stage"),
    (["--unet_steps", "5"], "--unet_steps means nothing with .*--stage"),
    (["--until", "vae"], "--until means nothing with .*--stage"),
    (["--report", "--flow_steps", "5"], "--flow_steps means nothing with --report"),
])  # fmt: skip
def test_flags_that_mean_nothing_to_the_stage_are_refused(more, message, tiny_generator):
    with pytest.raises(InputError, match=message):
        pretrain.parse_args(["--stage", "flow", *(str(tiny_generator) if word == "A" else word for word in more)])


@pytest.mark.parametrize("flag, without", [("--flow_steps=5", "--stage flow"), ("--generator=other", "--stage")])
def test_the_stages_own_flags_are_refused_without_it(flag, without):
    with pytest.raises(InputError, match=f"without {without}"):
        pretrain.parse_args([flag])


def test_a_generator_is_not_replaced_by_its_own_transformer(tiny_generator):
    with pytest.raises(InputError, match=r"--out=.*is --generator's folder"):
        pretrain.parse_args(["--stage", "flow", "--generator", str(tiny_generator), "--out", str(tiny_generator)])
