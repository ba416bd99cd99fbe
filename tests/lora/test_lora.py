"""LoRA: the released code's layers, start and scale; every key format; loading that does nothing is an error."""

import os

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers import ROOT, random_lora
from packaging.version import Version

from miniworld.pretraining.random_sd import build_unet
from utils.errors import InputError
from utils.lora import (
    BIN,
    CONV_IN,
    SAFETENSORS,
    add_lora,
    fuse_lora,
    load_attn_procs,
    lora_state,
    read_lora,
    save_lora,
)

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
SD21 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "sample_size": 96,
}


def forward(unet, channels=4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, channels, 16, 16, generator=generator)
    text = torch.randn(2, 77, 64, generator=generator)
    with torch.no_grad():
        return unet(z, 999, text).sample


def merged(unet, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """The output with format A weights added into the linears by hand: W + up down."""
    with torch.no_grad():
        for key in [key for key in state if ".down." in key]:
            layer, target = key.removesuffix("_lora.down.weight").rsplit(".processor.", 1)
            linear = unet.get_submodule(f"{layer}.{target.replace('to_out', 'to_out.0')}")
            linear.weight += state[key.replace(".down.", ".up.")] @ state[key]
    return forward(unet)


def unet(seed: int = 3, **options) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return build_unet(**options).eval()


def format_b(state):
    return {f"unet.{key}": value for key, value in state.items()}


def format_c(state, alpha: float | None = None):
    named = {
        f"unet.{key}".replace(".processor.", ".").replace("_lora.", ".lora.").replace("to_out.", "to_out.0."): value
        for key, value in state.items()
    }
    if alpha is not None:
        modules = {key.split(".lora.")[0] for key in named}
        named |= {f"{module}.alpha": torch.tensor(alpha) for module in modules}
    return named


def format_d(state, prefix=""):
    return {
        prefix
        + key.replace(".processor.", ".").replace("to_out_lora", "to_out.0_lora").replace("_lora.down", ".lora_A")
        .replace("_lora.up", ".lora_B"): value
        for key, value in state.items()
    }  # fmt: skip


@pytest.mark.parametrize(("architecture", "rank", "count"), [
    (SD15, 2, 398_592), (SD15, 8, 1_594_368), (SD21, 8, 1_659_904),
])  # fmt: skip
def test_parameter_counts_of_the_real_architectures(architecture, rank, count):
    with torch.device("meta"):
        real = UNet2DConditionModel(**architecture)
        parameters = add_lora(real, rank)
    assert len(real.attn_processors) == 32
    assert sum(parameter.numel() for parameter in parameters) == count
    assert len(parameters) == 32 * 4 * 2


def test_it_starts_as_the_identity_and_only_it_trains():
    model = unet()
    before = forward(model)
    parameters = add_lora(model, rank=8, seed=1)
    assert torch.equal(forward(model), before)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert len(trained) == len(parameters) == 2 * 4 * len(model.attn_processors)
    downs = torch.cat([value.flatten() for key, value in lora_state(model).items() if ".down." in key])
    ups = [value for key, value in lora_state(model).items() if ".up." in key]
    assert downs.std().item() == pytest.approx(1 / 8, rel=0.02) and abs(downs.mean()) < 0.002
    assert not any(up.any() for up in ups)


def test_its_start_depends_on_the_seed_alone():
    states = []
    for seed in (1, 1, 2):
        model = unet()
        torch.randn(seed)  # the global generator's position must not matter
        add_lora(model, rank=4, seed=seed)
        states.append(torch.cat([value.flatten() for value in lora_state(model).values()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.parametrize("convert", [
    dict, format_b, format_c, lambda state: format_c(state, alpha=4.0), format_d,
    lambda state: format_d(state, "unet."),
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", None])
def test_every_format_loads(convert, suffix, tmp_path):
    from safetensors.torch import save_file

    state = random_lora(unet())
    expected = merged(unet(), state)
    assert (expected - forward(unet())).abs().max() > 0.01, "this LoRA changes nothing, so it could prove nothing"
    source = converted = convert(state)
    if suffix:
        source = tmp_path / f"lora{suffix}"
        save_file(converted, source) if suffix == ".safetensors" else torch.save(converted, source)
    model = unet()
    load_attn_procs(model, source)
    torch.testing.assert_close(forward(model), expected, atol=1e-5, rtol=1e-5)


def test_alpha_scales():
    state = random_lora(unet(), rank=4)
    halved = {key: value / 2 if ".up." in key else value for key, value in state.items()}
    model = unet()
    load_attn_procs(model, format_c(state, alpha=2.0))
    torch.testing.assert_close(forward(model), merged(unet(), halved), atol=1e-5, rtol=1e-5)


def test_what_we_write_loads_by_diffusers_own_calls(tmp_path):
    """unet.load_attn_procs(torch.load(...)), the paper's line, also with a folder; gone since diffusers 0.40."""
    model = unet()
    load_attn_procs(model, random_lora(model))
    save_lora(model, tmp_path, {"task": "normal"}, with_bin=True)
    expected = forward(model)
    state = torch.load(tmp_path / BIN, weights_only=True)
    for source in (state, str(tmp_path)):
        fresh = unet()
        if Version(diffusers.__version__) < Version("0.40"):
            fresh.load_attn_procs(source)
            torch.testing.assert_close(forward(fresh), expected, atol=1e-5, rtol=1e-5)
        else:
            with pytest.raises(ValueError, match="Custom Diffusion"):
                fresh.load_attn_procs(source)
    fresh = unet()
    fresh.load_lora_adapter(state, prefix="unet")
    torch.testing.assert_close(forward(fresh), expected, atol=1e-5, rtol=1e-5)
    fresh = unet()
    assert load_attn_procs(fresh, tmp_path)["task"] == "normal"
    assert torch.equal(forward(fresh), expected)
    assert all(key.startswith("unet.") and ".processor." in key for key in read_lora(tmp_path / SAFETENSORS)[0])


def test_a_widened_conv_in_travels_with_the_lora(tmp_path):
    from utils.base_model.stable_diffusion import widen_conv_in

    wide, donor = unet(), unet(seed=9, in_channels=8)
    widen_conv_in(wide, donor.conv_in)
    load_attn_procs(wide, random_lora(wide))
    save_lora(wide, tmp_path, {})
    fresh = unet()
    load_attn_procs(fresh, tmp_path)
    assert (tmp_path / CONV_IN).is_file() and fresh.config.in_channels == 8
    assert torch.equal(forward(fresh, channels=8), forward(wide, channels=8))


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda state: dict(list(state.items())[:8]), "layers are not in it"),
    (lambda state: dict(list(state.items())[:-1]), "not both down and up"),
    (lambda state: state | {"conv_in.lora_down.weight": torch.zeros(4, 4)}, "conv_in"),
    (lambda state: {key.replace("mid_block", "middle"): value for key, value in state.items()}, "not in this UNet"),
    (lambda state: random_lora(build_unet(channels=(32, 64, 64))), "another base model"),
    (lambda state: {}, "not a LoRA"),
], ids=["some", "half a layer", "another key", "another block", "another width", "nothing"])  # fmt: skip
def test_nothing_loads_halfway(spoil, message):
    model = unet()
    before = forward(model)
    with pytest.raises(InputError, match=message):
        load_attn_procs(model, spoil(random_lora(model)))
    assert torch.equal(forward(model), before)


def test_another_rank_does_not_load():
    model = unet()
    state = random_lora(model)
    add_lora(model, rank=8)
    with pytest.raises(InputError, match="rank 4, but the UNet's LoRA has rank 8"):
        load_attn_procs(model, state)


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['EVIL_FILE']}",)


@pytest.mark.parametrize(("name", "said"), [
    ("evil.bin", "evil.bin"), ("text.safetensors", "text"), ("absent.bin", "absent"), (".", "holds neither"),
])  # fmt: skip
def test_what_is_no_lora_or_runs_code_is_refused(name, said, tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_FILE", str(tmp_path / "ran"))
    torch.save({"x": Evil()}, tmp_path / "evil.bin")
    (tmp_path / "text.safetensors").write_text("not a tensor in sight")
    with pytest.raises(InputError, match=said):
        read_lora(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_fused_lora_is_the_same_function_without_its_layers():
    torch.manual_seed(0)
    unet = build_unet(channels=(32, 32, 32)).eval()
    names = set(unet.state_dict())
    load_attn_procs(unet, random_lora(unet))
    z, t, text = torch.randn(2, 4, 8, 8), torch.tensor([3, 999]), torch.randn(2, 7, 64)
    with torch.no_grad():
        apart = unet(z, t, text).sample
        fuse_lora(unet)
        torch.testing.assert_close(unet(z, t, text).sample, apart, rtol=1e-4, atol=1e-5)
    assert set(unet.state_dict()) == names


def test_a_folder_of_loras_names_those_in_it():
    with pytest.raises(InputError, match=r"holds neither .*; .*mini-loras/albedo, .*mini-loras/depth"):
        read_lora(ROOT / "miniworld" / "mini-loras")


@pytest.mark.parametrize("targets", [("attention",), ("attention", "feedforward", "projection", "conv", "time")])
def test_a_half_precision_network_runs_its_fp32_lora_in_half_precision(targets):
    """Without autocast: fp32 weights and gradients, and no layer whose output is fp32."""
    network, seen = unet().to(torch.bfloat16), set()
    parameters = add_lora(network, 2, targets=targets)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    for module in network.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    generator = torch.Generator().manual_seed(0)
    z, text = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 64, generator=generator)
    output = network(z.bfloat16(), 999, text.bfloat16()).sample
    output.float().square().mean().backward()
    assert output.dtype == torch.bfloat16 and seen == {torch.bfloat16}
    assert {p.dtype for p in parameters} == {p.grad.dtype for p in parameters} == {torch.float32}
    exact = unet()
    load_attn_procs(exact, lora_state(network))
    expected = exact(z, 999, text).sample
    assert (output.float() - expected).norm() / expected.norm() < 0.05
