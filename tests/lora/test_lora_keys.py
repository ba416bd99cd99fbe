"""Key formats: every key of a real-size LoRA goes to every format and back; ComfyUI's rules; convert and inspect."""

import json
import math
import re
from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers import random_lora
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from miniworld.pretraining.random_sd import build_unet
from utils.base_model.families import open_base
from utils.errors import InputError
from utils.lora import CONV_IN, add_lora, load_attn_procs, lora_state, read_lora, save_lora
from utils.lora.__main__ import describe, main
from utils.lora.inspection import sd_layers
from utils.lora.keys import FORMATS, key_format, make_key, parse_layers, split_key, to_format
from utils.lora.layers import layers_of
from utils.lora.targets import ALL

ARCHITECTURES = {
    768: {"cross_attention_dim": 768, "attention_head_dim": 8},
    1024: {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
}


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@cache
def layer_shapes(text_width: int) -> dict[str, tuple[int, ...]]:
    """Name -> (in, out) or (in, out, kh, kw) of every linear and convolution of the real SD 1.5 (768) or SD 2.1 (1024)
    UNet but conv_in and conv_out, which no LoRA adapts.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**ARCHITECTURES[text_width])
    return {
        name: (module.weight.shape[1], module.weight.shape[0], *module.weight.shape[2:])
        for name, module in unet.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and name not in ("conv_in", "conv_out")
    }


def attention_linears(text_width: int) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in layer_shapes(text_width).items() if name.endswith(ATTENTION)}


def random_state(shapes, to: str = "diffusers", dtype=torch.float32, rank: int = 8) -> dict[str, torch.Tensor]:
    """A random LoRA for layers of these shapes."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, (n_in, n_out, *kernel) in shapes.items():
        state[make_key(name, "down", to)] = torch.randn(rank, n_in, *kernel, generator=generator).to(dtype)
        state[make_key(name, "up", to)] = torch.randn(n_out, rank, *(1 for _ in kernel), generator=generator).to(dtype)
    return state


def rank8(text_width: int = 768, to: str = "diffusers", dtype=torch.float32) -> dict[str, torch.Tensor]:
    """A random rank-8 LoRA for the real architecture's attention."""
    return random_state(attention_linears(text_width), to, dtype)


def tiny_state(rank: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {f"unet.{key}": value for key, value in random_lora(build_unet(), rank=rank).items()}


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("text_width", ARCHITECTURES)
def test_every_key_of_the_real_architectures_goes_there_and_back(to, text_width):
    attention_only = to in ("released", "diffusers")
    modules, keys = (attention_linears if attention_only else layer_shapes)(text_width), {}
    for module in modules:
        for part in ("down", "up", "alpha") if to == "kohya" else ("down", "up"):
            key = make_key(module, part, to)
            assert split_key(key) == (module, part) and key_format(key) == to
            keys[key] = module
    assert len(modules) == (128 if attention_only else 280)
    assert len(keys) == len(modules) * (3 if to == "kohya" else 2), "two modules share a key"


LAYER = "down_blocks.0.attentions.1.transformer_blocks.0.attn1"
KOHYA = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0"


@pytest.mark.parametrize(("key", "part", "to"), [
    (f"{LAYER}.processor.to_out_lora.down.weight", "down", "released"),
    (f"unet.{LAYER}.processor.to_out_lora.up.weight", "up", "diffusers"),
    (f"unet.{LAYER}.to_out.0.lora_A.weight", "down", "peft"),
    (f"{KOHYA}.lora_up.weight", "up", "kohya"),
    (f"{KOHYA}.alpha", "alpha", "kohya"),
])  # fmt: skip
def test_a_key_is_spelt_as_each_program_spells_it(key, part, to):
    assert make_key(f"{LAYER}.to_out.0", part, to) == key


@pytest.mark.parametrize("key", [
    f"base_model.model.{LAYER}.to_out.0.lora_A.weight",
    f"{LAYER}.to_out.0.lora_A.default.weight",
    f"unet.{LAYER}.to_out.0.lora.down.weight",
])  # fmt: skip
def test_an_older_spelling_is_read(key):
    assert split_key(key) == (f"{LAYER}.to_out.0", "down")


@pytest.mark.parametrize(("module", "kohya_name"), [
    ("down_blocks.1.resnets.0.conv_shortcut", "down_blocks_1_resnets_0_conv_shortcut"),
    ("mid_block.attentions.0.proj_in", "mid_block_attentions_0_proj_in"),
    ("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
     "mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj"),
    ("time_embedding.linear_2", "time_embedding_linear_2"),
    ("up_blocks.0.upsamplers.0.conv", "up_blocks_0_upsamplers_0_conv"),
])  # fmt: skip
def test_a_layer_beyond_attention_has_the_same_spelling(module, kohya_name):
    assert make_key(module, "up", "peft") == f"unet.{module}.lora_B.weight"
    assert make_key(module, "up", "kohya") == f"lora_unet_{kohya_name}.lora_up.weight"
    for old in (f"unet.{module}.lora.up.weight", f"base_model.model.{module}.lora_B.default.weight"):
        assert split_key(old) == (module, "up")


@pytest.mark.parametrize("key", [
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
    KOHYA.replace("attn1_to_out_0", "ff_net_1") + ".lora_up.weight",
    "lora_unet_conv_in.lora_up.weight",
    "unet.conv_out.lora_A.weight",
    "unet.down_blocks.0.resnets.0.norm1.lora_A.weight",
    "lora_unet_input_blocks_9_1_transformer_blocks_0_attn1_to_q.lora_up.weight",
    "conv_in.weight",
])  # fmt: skip
def test_a_key_of_another_layer_is_none_of_ours(key):
    assert split_key(key) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_conversions_keep_every_bit_and_the_metadata(suffix, dtype, tmp_path):
    original, metadata = tiny_state(), {"task": "normal", "base_model": "a/b"}
    original = {key: value.to(dtype) for key, value in original.items()}
    source = tmp_path / "start.safetensors"
    save_file(original, source, metadata)
    for to in (*FORMATS, *reversed(FORMATS), "diffusers"):  # each from its neighbour, both ways
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}{suffix}"
        main(["convert", str(source), str(out), "--format", to])
        state, kept, _ = read_lora(out)
        assert {key_format(key) for key in state} == {to}
        assert kept == (metadata if suffix == ".safetensors" else {})
        source = out
    assert set(state) == set(original)
    assert all(state[key].dtype == dtype and torch.equal(state[key], original[key]) for key in original)


def test_a_converted_file_draws_the_same(tmp_path):
    torch.manual_seed(3)
    base = build_unet().eval()
    state = random_lora(base)
    save_file(state, tmp_path / "a.safetensors")
    z, text = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 64)

    def draw(source):
        torch.manual_seed(3)
        unet = build_unet().eval()
        load_attn_procs(unet, source)
        with torch.no_grad():
            return unet(z, 999, text).sample

    expected = draw(state)
    with torch.no_grad():
        assert (base(z, 999, text).sample - expected).abs().max() > 0.01
    for to in FORMATS:
        main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / f"{to}.bin"), "--format", to])
        assert torch.equal(draw(tmp_path / f"{to}.bin"), expected)


def test_kohyas_alpha_scales_and_survives_in_formats_that_store_it():
    state = to_format(parse_layers(tiny_state(), "x"), "kohya")
    assert all(value == 4 for key, value in state.items() if key.endswith(".alpha"))
    halved = {key: value / 2 if key.endswith(".alpha") else value for key, value in state.items()}
    assert all(torch.equal(halved[k], v) for k, v in to_format(parse_layers(halved, "x"), "kohya").items())
    for to in ("released", "diffusers", "peft"):
        plain, scaled = (to_format(parse_layers(s, "x"), to) for s in (state, halved))
        ups = [key for key in plain if ".up." in key or "lora_B" in key]
        assert len(ups) == len(plain) / 2
        assert all(torch.equal(scaled[key], plain[key] / (2 if key in ups else 1)) for key in plain)


def comfyui_takes(keys, modules) -> dict[str, str]:
    """ComfyUI's published rules for a Stable Diffusion UNet, restated: each key it takes -> the module it patches.

    A module answers to lora_unet_<name, dots as underscores>, and to <name> with .processor before to_q, k, v, out and
    without to_out's .0, plain or after "unet."; a LoRA is a pair named <that>.lora_up.weight, <that>_lora.up.weight,
    <that>.lora_B.weight or <that>.lora.up.weight with its other half, and <that>.alpha.
    """
    names = {}
    for module in modules:
        dotted = module.replace(".to_", ".processor.to_")
        dotted = dotted[:-2] if dotted.endswith(".to_out.0") else dotted
        names |= {"lora_unet_" + module.replace(".", "_"): module, dotted: module, "unet." + dotted: module}
    pairs = [(".lora_down.weight", ".lora_up.weight"), ("_lora.down.weight", "_lora.up.weight")]
    pairs += [(".lora_A.weight", ".lora_B.weight"), (".lora.down.weight", ".lora.up.weight")]
    taken = {}
    for name, module in names.items():
        for down, up in pairs:
            if name + up in keys:
                assert name + down in keys
                taken |= {name + up: module, name + down: module}
                if name + ".alpha" in keys:
                    taken[name + ".alpha"] = module
    return taken


@pytest.mark.parametrize(("to", "in_full"), [("diffusers", 1), ("released", 1), ("kohya", 1), ("peft", 0)])
def test_comfyuis_rules_take_all_of_it_or_nothing(to, in_full):
    modules = attention_linears(768)
    state = to_format(parse_layers(rank8(), "x"), to)
    taken = comfyui_takes(set(state), modules)
    assert set(taken) == (set(state) if in_full else set())
    assert all(split_key(key)[0] == module for key, module in taken.items())


@pytest.mark.parametrize("text_width", ARCHITECTURES)
def test_comfyuis_rules_take_all_layers_under_kohyas_keys_and_under_pefts_all_but_attention(text_width):
    modules = layer_shapes(text_width)
    layers = parse_layers(random_state(modules, "peft", rank=2), "x")
    for to, left in (("kohya", set()), ("peft", set(attention_linears(text_width)))):
        state = to_format(layers, to)
        taken = comfyui_takes(set(state), modules)
        assert {split_key(key)[0] for key in set(state) - set(taken)} == left
        assert all(split_key(key)[0] == module for key, module in taken.items())


def test_the_trainers_file_is_in_the_format_that_comfyui_takes(tmp_path):
    torch.manual_seed(3)
    unet = build_unet()
    modules = [name for name, _ in unet.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    load_attn_procs(unet, random_lora(unet))
    state = load_file(save_lora(unet, tmp_path, {}))
    assert set(comfyui_takes(set(state), modules)) == set(state) == set(lora_state(unet))


_ATTN = r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
COMFYUI_NAMES = {  # ComfyUI's published table of each transformer: diffusers' names of the layers that it knows
    "sd3": rf"transformer_blocks\.\d+\.({_ATTN}|attn2\.(to_[qkv]|to_out\.0)|ff(_context)?\.net\.(0\.proj|2)|"
    r"norm1(_context)?\.linear)|context_embedder|pos_embed\.proj|norm_out\.linear|proj_out|"
    r"time_text_embed\.(timestep|text)_embedder\.linear_[12]",
    "flux2": rf"transformer_blocks\.\d+\.({_ATTN}|ff(_context)?\.linear_(in|out))|"
    r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)|x_embedder|context_embedder|norm_out\.linear|"
    r"proj_out|time_text_embed\.(timestep|guidance)_embedder\.linear_[12]",
}
COMFYUI_LEAVES = {  # layers that are not in it, and that ComfyUI leaves out with a line in its log
    "sd3": set(),
    "flux2": {"time_guidance_embed", "double_stream_modulation_img", "double_stream_modulation_txt",
              "single_stream_modulation"},
}  # fmt: skip


@pytest.mark.parametrize("family", COMFYUI_NAMES)
def test_comfyuis_rules_take_our_files_of_transformers_but_for_the_layers_that_it_has_no_names_for(
    family, tiny, tmp_path
):
    """It takes transformer.<name>.lora_A.weight and .lora_B.weight of the layers in its table."""
    network = open_base(str(tiny(family))).network
    add_lora(network, 2, targets=ALL)
    keys = set(load_file(save_lora(network, tmp_path, {})))
    pattern = re.compile(rf"transformer\.({COMFYUI_NAMES[family]})\.lora_[AB]\.weight")
    left = {key.split(".")[1] for key in keys if not pattern.fullmatch(key)}
    assert left == COMFYUI_LEAVES[family] and len(keys) > 70


def test_comfyuis_rules_take_all_of_sdxl_under_kohyas_keys_and_no_attention_under_pefts(tiny, tmp_path):
    network = open_base(str(tiny("sdxl"))).network
    add_lora(network, 2, targets=ALL)
    ours, modules = load_file(save_lora(network, tmp_path, {})), layers_of(network, ALL)
    kohya = to_format(parse_layers(ours, "x"), "kohya")
    assert set(comfyui_takes(set(kohya), modules)) == set(kohya)
    left = {split_key(key)[0] for key in set(ours) - set(comfyui_takes(set(ours), modules))}
    assert left == set(layers_of(network, ("attention",)))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a" / "pytorch_lora_weights.safetensors"
    path.parent.mkdir()
    save_file(tiny_state(), path)
    return path


@pytest.mark.parametrize("given", [".", "pytorch_lora_weights.safetensors"])
@pytest.mark.parametrize(("out", "message"), [
    ("pytorch_lora_weights.safetensors", "is the file to convert"),
    ("../link.safetensors", "is the file to convert"),
    ("../a.pt", "ends in .safetensors or .bin"),
    ("pytorch_lora_weights.safetensors/x.bin", "cannot write it"),
])  # fmt: skip
def test_convert_refuses_what_it_would_spoil(given, out, message, source, tmp_path):
    before = source.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(source)
    with pytest.raises(InputError, match=message):
        main(["convert", str(source.parent / given), str(source.parent / out), "--format", "peft"])
    assert source.read_bytes() == before


def test_convert_takes_a_widened_conv_in_along_and_never_over_another(source, tmp_path, capsys):
    other = tmp_path / "b"
    save_file({"weight": torch.ones(8, 8, 3, 3), "bias": torch.ones(8)}, source.parent / CONV_IN)
    main(["convert", str(source.parent), str(other / "x.safetensors"), "--format", "kohya"])
    assert (other / CONV_IN).read_bytes() == (source.parent / CONV_IN).read_bytes()
    assert "conv_in.safetensors copied" in capsys.readouterr().out
    (other / CONV_IN).write_bytes(b"another")
    with pytest.raises(InputError, match="belongs to another LoRA"):
        main(["convert", str(source), str(other / "y.safetensors"), "--format", "kohya"])
    assert sorted(path.name for path in other.iterdir()) == [CONV_IN, "x.safetensors"], "something was left behind"


def test_a_file_that_names_a_weight_twice_is_refused():
    state = tiny_state()
    key = next(iter(state))
    with pytest.raises(InputError, match="has two down weights"):
        parse_layers(state | {key.removeprefix("unet."): state[key]}, "x")


@pytest.mark.parametrize(("text_width", "label"), [(768, "Stable Diffusion 1"), (1024, "Stable Diffusion 2")])
def test_inspect_recognises_the_base_model_by_its_widths(text_width, label, tmp_path):
    state = rank8(text_width, dtype=torch.float16)
    save_file(state, tmp_path / "x.safetensors")
    facts = describe(tmp_path / "x.safetensors")
    assert facts["fits"].startswith(label) and "only" not in facts["fits"]
    assert (facts["linears"], facts["convs"], facts["attention_layers"], facts["rank"]) == (128, 0, 32, 8)
    assert facts["parameters"] == {768: 1_594_368, 1024: 1_659_904}[text_width] and facts["dtype"] == "float16"
    half = {key: value for key, value in state.items() if "up_blocks" in key}
    save_file(half, tmp_path / "half.safetensors")
    assert describe(tmp_path / "half.safetensors")["fits"].endswith("but 72 of its 128 layers only")


@pytest.mark.parametrize(("text_width", "label"), [(768, "Stable Diffusion 1"), (1024, "Stable Diffusion 2")])
def test_inspect_recognises_the_base_model_of_a_lora_on_all_layers(text_width, label, tmp_path):
    shapes = layer_shapes(text_width)
    assert sd_layers(text_width) == shapes
    save_file(random_state(shapes, "peft", torch.bfloat16, rank=1), tmp_path / "x.safetensors")
    facts = describe(tmp_path / "x.safetensors")
    assert facts["fits"].startswith(label) and "only" not in facts["fits"] and "and" not in facts["fits"]
    linears = 184 if text_width == 768 else 216  # proj_in and proj_out are 1x1 convolutions in SD 1
    assert (facts["linears"], facts["convs"], facts["dtype"]) == (linears, 280 - linears, "bfloat16")
    counts = {row["kind"]: row["linears"] + row["convs"] for row in facts["kinds"]}
    assert counts == {"attention": 128, "feedforward": 32, "projection": 32, "conv": 64, "time": 24}
    assert sum(row["parameters"] for row in facts["kinds"]) == facts["parameters"]


def test_inspect_names_both_base_models_where_the_layers_are_the_same_in_both(tmp_path):
    shapes = {name: shape for name, shape in layer_shapes(768).items() if ".conv" in name}
    save_file(random_state(shapes, "peft", rank=1), tmp_path / "x.safetensors")
    assert re.fullmatch(
        r"Stable Diffusion 1 \(.*\) and Stable Diffusion 2 \(.*\)", describe(tmp_path / "x.safetensors")["fits"]
    )


def test_inspect_measures_the_norm_of_what_is_added(tmp_path, capsys):
    state = tiny_state()
    save_file(state, tmp_path / "x.safetensors", {"task": "normal"})
    squares = {}
    for key in [key for key in state if ".down." in key]:
        product = state[key.replace(".down.", ".up.")].double() @ state[key].double()
        block = key.removeprefix("unet.").split(".attentions")[0]
        squares[block] = squares.get(block, 0) + product.square().sum().item()
    main(["inspect", str(tmp_path / "x.safetensors"), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert {row["block"]: row["norm"] for row in facts["blocks"]} == pytest.approx(
        {block: math.sqrt(square) for block, square in squares.items()}
    )
    assert facts["norm"] == pytest.approx(math.sqrt(sum(squares.values())))
    assert facts["fits"] == "another architecture (text width 64, block widths 64, 128)"
    assert facts["metadata"] == {"task": "normal"} and facts["alpha"] is None and facts["format"] == "diffusers"
    main(["inspect", str(tmp_path / "x.safetensors")])
    text = capsys.readouterr().out
    assert all(f"{row['block']}" in text and f"{row['norm']:.4g}" in text for row in facts["blocks"])
    # half of it, by an alpha of half the rank
    kohya = to_format(parse_layers(state, "x"), "kohya")
    save_file({k: v / 2 if k.endswith(".alpha") else v for k, v in kohya.items()}, tmp_path / "k.safetensors")
    halved = describe(tmp_path / "k.safetensors")
    assert halved["norm"] == pytest.approx(facts["norm"] / 2) and halved["alpha"] == 2 and halved["format"] == "kohya"


def test_inspect_shows_the_share_and_norm_of_each_kind_of_layer(tmp_path, capsys):
    shapes = {
        "mid_block.resnets.0.conv1": (64, 64, 3, 3),
        "down_blocks.0.attentions.0.proj_in": (32, 32, 1, 1),
        "time_embedding.linear_1": (32, 128),
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2": (128, 32),
    }
    state = random_state(shapes, "peft", rank=4)
    save_file(state, tmp_path / "x.safetensors", {"lora_targets": "feedforward,projection,conv,time"})
    squares = {}
    for module in shapes:
        down, up = (state[make_key(module, part, "peft")].double() for part in ("down", "up"))
        squares[module] = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).square().sum().item()
    main(["inspect", str(tmp_path / "x.safetensors"), "--json"])
    facts = json.loads(capsys.readouterr().out)
    kinds = {row["kind"]: row for row in facts["kinds"]}
    assert list(kinds) == ["feedforward", "projection", "conv", "time"]
    assert {kind: (row["linears"], row["convs"], row["parameters"]) for kind, row in kinds.items()} == {
        "feedforward": (1, 0, 4 * 160), "projection": (0, 1, 4 * 64), "conv": (0, 1, 4 * (64 * 9 + 64)),
        "time": (1, 0, 4 * 160),
    }  # fmt: skip
    for module, kind in zip(shapes, ("conv", "projection", "time", "feedforward")):
        assert kinds[kind]["norm"] == pytest.approx(math.sqrt(squares[module]))
    assert facts["norm"] == pytest.approx(math.sqrt(sum(squares.values())))
    assert {row["block"]: row["layers"] for row in facts["blocks"]} == {
        "down_blocks.0": 2, "mid_block": 1, "time_embedding": 1,
    }  # fmt: skip
    assert facts["parameters"] == 4096 and facts["targets"] == "feedforward,projection,conv,time"
    main(["inspect", str(tmp_path / "x.safetensors")])
    text = capsys.readouterr().out
    assert "2 linears and 2 convolutions (feedforward,projection,conv,time), 4,096 parameters" in text
    assert re.search(r"conv +0 +1 +2,560 +62.5%", text) and "lora_targets" in text


def test_inspect_names_what_is_broken_or_empty(tmp_path, capsys):
    state = tiny_state()
    key = next(key for key in state if ".up." in key)
    save_file(state | {key: torch.full_like(state[key], math.nan)}, tmp_path / "nan.safetensors")
    save_file({k: v * (".down." in k) for k, v in state.items()}, tmp_path / "zero.safetensors")
    main(["inspect", str(tmp_path / "nan.safetensors"), "--json"])
    facts = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert facts["not_finite"] == [split_key(key)[0]] and facts["norm"] is None
    main(["inspect", str(tmp_path / "nan.safetensors")])
    assert "BROKEN" in capsys.readouterr().out
    main(["inspect", str(tmp_path / "zero.safetensors")])
    assert "EMPTY" in capsys.readouterr().out
    with safe_open(tmp_path / "zero.safetensors", "pt") as file:
        assert file.metadata() is None
