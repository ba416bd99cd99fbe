"""LoRA on other layers than attention: which layers, the files, loading, fusing, training steps."""

import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers import around, random_lora
from safetensors.torch import load_file, save_file

from miniworld.pretraining.random_sd import build_unet, build_vae
from utils.base_model.stable_diffusion import widen_conv_in
from utils.errors import InputError
from utils.intrinsics import NORMAL
from utils.lora import (
    BIN,
    CONV_IN,
    SAFETENSORS,
    add_lora,
    fuse_lora,
    load_attn_procs,
    lora_parameters,
    lora_state,
    read_lora,
    save_lora,
)
from utils.lora.__main__ import main
from utils.lora.keys import parse_layers, to_format
from utils.lora.targets import ALL, kind_of, parse_targets
from utils.objectives import SingleStep

CHANNELS = (32, 32, 64)
CHOICES = ["feedforward", "projection", "conv", "time", "attention,conv", "all"]


def base(seed: int = 3, **options):
    torch.manual_seed(seed)
    return build_unet(channels=CHANNELS, **options).eval()


def with_random_lora(unet, targets=ALL, rank: int = 4, seed: int = 0):
    """Add a LoRA with both halves random, so that it changes the output."""
    add_lora(unet, rank, targets=targets)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(unet):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / (4 * parameter[0].numel() ** 0.5))
    return unet


def forward(unet, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, unet.config.in_channels, 16, 16, generator=generator).to(dtype)
    text = torch.randn(2, 7, 64, generator=generator).to(dtype)
    with torch.no_grad():
        return unet(z, torch.tensor([3, 999]), text).sample


def merged_by_hand(unet, state) -> torch.Tensor:
    """The output with the weights of a peft-keyed state added into the UNet's own: W + up down."""
    with torch.no_grad():
        for key in [key for key in state if key.endswith(".lora_A.weight")]:
            own, down = unet.get_submodule(key[len("unet.") : -len(".lora_A.weight")]), state[key]
            up = state[key.replace("lora_A", "lora_B")]
            own.weight += (up.flatten(1) @ down.flatten(1)).reshape(own.weight.shape)
    return forward(unet)


# which layers


@pytest.mark.parametrize(("text", "kinds"), [
    ("attention", ("attention",)),
    ("all", ("attention", "feedforward", "projection", "conv", "time")),
    ("time, attention,conv,time", ("attention", "conv", "time")),
])  # fmt: skip
def test_targets_are_read_in_the_canonical_order(text, kinds):
    assert parse_targets(text) == kinds


@pytest.mark.parametrize(("text", "message"), [
    ("fedforward", r"^--lora_targets=fedforward: .*, did you mean feedforward\?"),
    ("attention,convs", r"'convs' is not a kind of layer, did you mean conv\?"),
    ("al", r"did you mean all\?"),
    ("all,conv", "all stands alone"),
    ("xyz", r"'xyz' is not a kind of layer \(all, or some of attention,feedforward"),
    ("", "'' is not a kind"),
])  # fmt: skip
def test_unknown_targets_are_refused_with_the_nearest_known_one(text, message):
    with pytest.raises(InputError, match=message):
        parse_targets(text)
    with pytest.raises(InputError, match=r"not a kind of layer|all stands alone"):
        add_lora(base(), 2, targets=text.split(","))


def test_every_linear_and_convolution_has_a_kind_but_the_first_and_the_last():
    unet = base()
    layers = {n for n, m in unet.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
    assert {name for name in layers if kind_of(name) is None} == {"conv_in", "conv_out"}
    add_lora(unet, 2, targets=ALL)
    adapted = {name.rpartition(".lora_A.")[0] for name, _ in unet.named_parameters() if ".lora_A." in name}
    assert adapted == layers - {"conv_in", "conv_out"}


def test_a_kind_that_the_unet_lacks_is_refused():
    with pytest.raises(InputError, match="this UNet has no attention layers"):
        add_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), 2)


def test_all_layers_start_as_the_identity_from_the_seed_alone():
    states = []
    for seed in (1, 1, 2):
        unet = base()
        before = forward(unet)
        parameters = add_lora(unet, 4, seed, ALL)
        assert torch.equal(forward(unet), before)
        assert all(p.dtype == torch.float32 for p in parameters)
        assert not any(v.any() for k, v in lora_state(unet).items() if "lora_B" in k)
        states.append(torch.cat([value.flatten() for value in lora_state(unet).values()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_the_default_is_attention_with_the_same_first_weights_as_ever():
    """Drawn by peft in the order of the UNet's modules; the golden losses of the scripts rest on them."""
    unet = base()
    names = (".to_q", ".to_k", ".to_v", ".to_out.0")
    widths = {n: (m.in_features, m.out_features) for n, m in unet.named_modules() if n.endswith(names)}
    add_lora(unet, 4, seed=1)
    state = lora_state(unet)
    torch.manual_seed(1)
    for name, (n_in, n_out) in widths.items():
        torch.nn.Linear(n_in, 4, bias=False)  # these draw numbers too
        torch.nn.Linear(4, n_out, bias=False)
        layer, target = name.removesuffix(".0").rsplit(".", 1)
        drawn = torch.nn.init.normal_(torch.empty(4, n_in), std=1 / 4)
        assert torch.equal(state[f"unet.{layer}.processor.{target}_lora.down.weight"], drawn), name
    assert len(state) == 2 * 4 * len(unet.attn_processors)


# files


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_saved_loads_again_and_is_the_same_function(choice, tmp_path):
    unet = with_random_lora(base(), parse_targets(choice))
    expected = forward(unet)
    assert (expected - forward(base())).abs().max() > 0.01, "this LoRA changes nothing, so it could prove nothing"
    save_lora(unet, tmp_path, {"task": "normal"}, with_bin=True)
    state, metadata, _ = read_lora(tmp_path)
    assert all(re.fullmatch(r"unet\..+\.lora_[AB]\.weight", key) for key in state)
    assert metadata == {"task": "normal", "lora_targets": ",".join(parse_targets(choice))}
    from_bin = torch.load(tmp_path / BIN, weights_only=True)
    assert from_bin.keys() == state.keys() and all(torch.equal(from_bin[key], state[key]) for key in state)
    assert torch.allclose(merged_by_hand(base(), state), expected, atol=1e-5)
    for source in (tmp_path, tmp_path / BIN, read_lora(tmp_path), state):
        fresh = base()
        load_attn_procs(fresh, source)
        assert torch.equal(forward(fresh), expected)


def test_a_lora_on_attention_is_written_as_ever(tmp_path):
    unet = base()
    load_attn_procs(unet, random_lora(unet))
    save_lora(unet, tmp_path, {"task": "normal"})
    state, metadata, _ = read_lora(tmp_path)
    assert all(re.fullmatch(r"unet\..+\.processor\.to_\w+_lora\.(down|up)\.weight", key) for key in state)
    assert metadata == {"task": "normal"}
    save_lora(unet, tmp_path, {"task": "normal", "lora_targets": "attention"})
    assert read_lora(tmp_path).metadata["lora_targets"] == "attention"


@pytest.mark.parametrize("choice", CHOICES)
def test_todays_diffusers_loads_it_by_its_own_calls(choice, tmp_path):
    unet = with_random_lora(base(), parse_targets(choice))
    save_lora(unet, tmp_path, {}, with_bin=True)
    fresh = base()
    fresh.load_lora_adapter(load_file(tmp_path / SAFETENSORS), prefix="unet")
    torch.testing.assert_close(forward(fresh), forward(unet), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", CHOICES)
def test_peft_and_kohya_keys_and_the_keys_of_late_2023_are_the_same_function(choice, tmp_path):
    unet = with_random_lora(base(), parse_targets(choice))
    expected = forward(unet)
    save_lora(unet, tmp_path, {"task": "normal"})
    original = load_file(tmp_path / SAFETENSORS)
    for to, suffix in (("kohya", "safetensors"), ("peft", "bin")):  # each from the one before
        out = tmp_path / f"{to}.{suffix}"
        main(
            [
                "convert",
                str(out.with_name("kohya.safetensors") if to == "peft" else tmp_path),
                str(out),
                "--format",
                to,
            ]
        )
        fresh = base()
        load_attn_procs(fresh, out)
        assert torch.equal(forward(fresh), expected)
    back = torch.load(out, weights_only=True)
    assert back.keys() == original.keys() and all(torch.equal(back[key], original[key]) for key in back)
    old = {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in original.items()}
    fresh = base()
    load_attn_procs(fresh, old)
    assert torch.equal(forward(fresh), expected)


def test_kohyas_alpha_scales_convolutions_too():
    unet = with_random_lora(base(), ("conv",))
    kohya = to_format(parse_layers(lora_state(unet), "x"), "kohya")
    assert {value.item() for key, value in kohya.items() if key.endswith(".alpha")} == {4}
    halved, plain = base(), base()
    load_attn_procs(halved, {key: value / 2 if key.endswith(".alpha") else value for key, value in kohya.items()})
    load_attn_procs(plain, {key: value / 2 if ".lora_up." in key else value for key, value in kohya.items()})
    assert torch.equal(forward(halved), forward(plain)) and not torch.equal(forward(halved), forward(unet))


@pytest.mark.parametrize(("choice", "noted"), [("time", True), ("attention,conv", False)])
def test_converting_to_kohya_names_the_loader_that_leaves_layers_out(choice, noted, tmp_path, capsys):
    save_lora(with_random_lora(base(), parse_targets(choice)), tmp_path, {})
    main(["convert", str(tmp_path), str(tmp_path / "kohya.safetensors"), "--format", "kohya"])
    assert ("leaves time_embedding out" in capsys.readouterr().out) == noted


@pytest.mark.parametrize("to", ["released", "diffusers"])
def test_a_format_that_cannot_name_the_layers_refuses_and_names_those_that_can(to, tmp_path):
    save_lora(with_random_lora(base(), ("attention", "conv", "time")), tmp_path, {})
    out = tmp_path / "out" / "x.safetensors"
    with pytest.raises(InputError, match=rf"{SAFETENSORS}: {to} keys .* \(conv, time\): use peft keys .* or kohya"):
        main(["convert", str(tmp_path), str(out), "--format", to])
    assert not out.parent.exists()


def test_augunets_conv_in_travels_with_a_lora_on_all_layers_and_has_none_itself(tmp_path):
    wide = base()
    widen_conv_in(wide, base(seed=9, in_channels=8).conv_in)
    with_random_lora(wide)
    save_lora(wide, tmp_path, {})
    assert not any("conv_in" in key for key in load_file(tmp_path / SAFETENSORS)) and (tmp_path / CONV_IN).is_file()
    fresh = base()
    load_attn_procs(fresh, tmp_path)
    assert fresh.config.in_channels == 8 and torch.equal(forward(fresh), forward(wide))


# files that do not fit


def without(state, part: str):
    return {key: value for key, value in state.items() if part not in key}


@pytest.mark.parametrize(("change", "message"), [
    (lambda state: without(state, "mid_block.resnets.0.conv1"), r"1 of the UNet's attention and .* are not in it"),
    (lambda state: without(state, "time_embedding.linear_2.lora_A"), "not both down and up"),
    (lambda state: state | {"unet.conv_in.lora_A.weight": torch.zeros(4, 4, 3, 3)}, "conv_in"),
    (lambda state: state | {"unet.mid_block.resnets.7.conv1.lora_A.weight": torch.zeros(4, 64, 3, 3),
                            "unet.mid_block.resnets.7.conv1.lora_B.weight": torch.zeros(64, 4, 1, 1)},
     "1 of its layers are not in this UNet"),
    (lambda state: {k: v[:, :1] if "mid_block.resnets.0.conv1.lora_A" in k else v for k, v in state.items()},
     r"maps 1 to 64 features \(3x3\), the UNet's 64 to 64 features \(3x3\): it belongs to another base"),
    (lambda state: {k: v[..., :1, :1] if "mid_block.resnets.0.conv1.lora_A" in k else v for k, v in state.items()},
     r"features \(1x1\), the UNet's 64 to 64 features \(3x3\)"),
    (lambda state: {k: v.squeeze() if "conv_shortcut" in k else v for k, v in state.items()}, "another base model"),
    (lambda state: {k: v.flatten(1) if "resnets.0.conv1.lora_B" in k else v for k, v in state.items()}, "multiply"),
    (lambda state: {k: v * float("nan") if "conv1" in k else v for k, v in state.items()}, "NaN or infinity"),
])  # fmt: skip
def test_a_layer_or_a_key_without_partner_is_refused_and_nothing_is_loaded(change, message):
    state = lora_state(with_random_lora(base()))
    unet = base()
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_attn_procs(unet, change(state))
    after = unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize(("declared", "message"), [
    ("attention,conv", "holds time layers, but its metadata says lora_targets=attention,conv"),
    ("all", r"of the UNet's .* layers are not in it"),
    ("convs", r"x.safetensors: lora_targets in its metadata=convs: .*, did you mean conv\?"),
])  # fmt: skip
def test_a_file_must_hold_what_its_metadata_declares(declared, message, tmp_path):
    state = lora_state(with_random_lora(base(), ("attention", "conv", "time")))
    save_file(state, tmp_path / "x.safetensors", {"lora_targets": declared})
    with pytest.raises(InputError, match=message):
        load_attn_procs(base(), tmp_path / "x.safetensors")
    save_file(state, tmp_path / "x.safetensors", {"lora_targets": "time,conv,attention"})
    load_attn_procs(base(), tmp_path / "x.safetensors")


@pytest.mark.parametrize(("there", "loaded"), [("attention", "all"), ("all", "attention"), ("conv", "time")])
def test_a_unet_with_a_lora_on_other_layers_refuses_it(there, loaded):
    unet = with_random_lora(base(), parse_targets(there))
    state = lora_state(with_random_lora(base(), parse_targets(loaded)))
    before = forward(unet)
    with pytest.raises(InputError, match=f"a LoRA on {','.join(parse_targets(loaded))} layers, but the UNet's is on "):
        load_attn_procs(unet, state)
    assert torch.equal(forward(unet), before)
    own = lora_state(with_random_lora(base(), parse_targets(there), seed=1))
    load_attn_procs(unet, own)
    assert all(torch.equal(value, own[key]) for key, value in lora_state(unet).items())


# fused, and in training


@pytest.mark.parametrize("choice", CHOICES)
def test_fused_it_is_the_same_function_without_its_layers(choice):
    unet = with_random_lora(base(), parse_targets(choice))
    names, apart = set(base().state_dict()), forward(unet)
    assert (apart - forward(base())).abs().max() > 0.01
    fuse_lora(unet)
    assert set(unet.state_dict()) == names
    torch.testing.assert_close(forward(unet), apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("choice", ["conv", "all"])
def test_fused_images_are_equal_to_a_grey_level(choice):
    torch.manual_seed(5)
    vae, prompt, rgb = build_vae().eval(), torch.randn(1, 7, 64), torch.rand(1, 3, 64, 64) * 2 - 1
    unet, pictures = with_random_lora(base(), parse_targets(choice)), []
    method = SingleStep(around(vae), prompt, 999)
    with torch.no_grad():
        plain = method.predict(base(), rgb)[0]
        for _ in range(2):
            pictures.append(NORMAL.map_kind.image8(method.predict(unet, rgb)[0]).astype(int))
            fuse_lora(unet) if len(pictures) == 1 else None
    assert abs(pictures[0] - pictures[1]).max() <= 1
    assert abs(pictures[0] - NORMAL.map_kind.image8(plain).astype(int)).max() > 4, "this LoRA shows nowhere"


def grads(unet) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z, text = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 7, 64, generator=generator)
    unet.train()
    unet(z.to(unet.dtype), torch.tensor([3, 999]), text.to(unet.dtype)).sample.float().square().mean().backward()
    assert all(p.grad is None for p in unet.parameters() if not p.requires_grad)
    return [parameter.grad for parameter in lora_parameters(unet)]


def test_gradient_checkpointing_gives_the_same_gradients_on_all_layers():
    plain, checkpointed = with_random_lora(base()), with_random_lora(base())
    checkpointed.enable_gradient_checkpointing()
    for a, b in zip(grads(plain), grads(checkpointed), strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_frozen_unet_in_bf16_trains_the_same_fp32_layers():
    plain, half = with_random_lora(base()), with_random_lora(base().to(torch.bfloat16))
    assert {p.dtype for p in lora_parameters(half)} == {torch.float32}
    first, second = (torch.cat([g.flatten() for g in grads(unet)]) for unet in (plain, half))
    assert second.dtype == torch.float32 and second.isfinite().all()
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.99


def test_compiled_training_has_the_same_gradients_on_all_layers():
    def one_level():
        """The least UNet with every kind of layer but up- and downsamplers: minutes less to compile."""
        torch.manual_seed(3)
        return with_random_lora(UNet2DConditionModel(
            block_out_channels=(32,), layers_per_block=1, mid_block_type=None, cross_attention_dim=64,
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        ))  # fmt: skip

    plain, compiled = one_level(), one_level()
    compiled.compile(backend="aot_eager")  # forward and backward are traced as ever; C++ for them takes two minutes
    for a, b in zip(grads(plain), grads(compiled), strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
