"""The scale of a LoRA's layers: every place that states it, through every door, against weights merged by hand; and
against peft and diffusers themselves.
"""

import copy
import json
import math
import random
from functools import cache

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from miniworld.pretraining.random_sd import build_unet
from utils.errors import InputError
from utils.lora import fuse_lora, load_attn_procs, read_lora, save_lora
from utils.lora.__main__ import convert, main
from utils.lora.inspection import describe
from utils.lora.keys import FORMATS, Layer, make_key, parse_layers, strip_wrappers
from utils.lora.layers import layers_of
from utils.lora.scale import HEADER, scale_of, scale_records
from utils.lora.targets import ALL, ATTENTION, kind_of


@cache
def _base():
    torch.manual_seed(3)
    return build_unet(channels=(32, 64, 64)).eval()


def base():
    return copy.deepcopy(_base())


@torch.no_grad()
def output(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    z, text = (torch.randn(*shape, generator=generator) for shape in ((1, 4, 16, 16), (1, 7, 64)))
    return unet(z, 999, text).sample


def distance(unet, expected: torch.Tensor) -> float:
    """Largest difference to `expected`, in units of the LoRA's largest effect."""
    effect = (expected - output(base())).abs().max()
    assert effect > 1e-3, "this LoRA changes nothing: the test would prove nothing"
    return float((output(unet) - expected).abs().max() / effect)


def random_layers(ranks, targets) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Name -> (down, up), of a rank drawn from `ranks`, on every layer of these kinds."""
    torch.manual_seed(5)
    draw, layers, size = random.Random(5), {}, 1 if targets == ATTENTION else 0.1  # an effect far above rounding
    for name, module in layers_of(base(), targets).items():
        rank, (n_out, n_in, *kernel) = draw.choice(ranks), module.weight.shape
        layers[name] = (
            torch.randn(rank, n_in, *kernel) / (10 * rank),
            size * torch.randn(n_out, rank, *(1 for _ in kernel)),
        )
    return layers


def merged(layers, scales) -> torch.Tensor:
    """The output with W + scale * up @ down, in float64 and without any of this project's LoRA code."""
    unet = base()
    for name, (down, up) in layers.items():
        weight = unet.get_submodule(name).weight
        product = scales[name] * up.double().flatten(1) @ down.double().flatten(1)
        weight.data = (weight.double() + product.reshape(weight.shape)).float()
    return output(unet)


def tensors(layers, to: str) -> dict[str, torch.Tensor]:
    return {
        make_key(name, part, to): pair[i] for name, pair in layers.items() for i, part in enumerate(("down", "up"))
    }


def ranks_of(layers) -> dict[str, int]:
    return {name: down.shape[0] for name, (down, _) in layers.items()}


def alphas_of(layers) -> dict[str, float]:
    """Another alpha for every layer, all exact in fp16."""
    draw = random.Random(7)
    return {name: draw.choice([0.5, 1.0, 3.0, 8.0]) for name in layers}


def config(layers, root: bool = False) -> tuple[dict, dict[str, float]]:
    """peft's LoraConfig with patterns of several forms, and the scales that it means."""
    # in alphabetical order, in which diffusers and peft write them: it decides where several match
    alphas, patterns = {}, {r"^mid_block.*": 2.5, r"attn1\.to_q": 8, "conv1": 0.5}
    for name in layers:
        leaf = name.startswith("mid_block"), name.endswith(".attn1.to_q"), name.endswith(".conv1")
        alphas[name] = next((alpha for hit, alpha in zip(leaf, patterns.values()) if hit), 3)
    ranks = ranks_of(layers)
    about = {"r": 4, "lora_alpha": 3, "use_rslora": root, "use_dora": False, "lora_bias": False, "bias": "none"}
    about |= {"alpha_pattern": patterns, "rank_pattern": {f"^{n}": rank for n, rank in ranks.items() if rank != 4}}
    about |= {"peft_type": "LORA", "target_modules": sorted(layers), "init_lora_weights": "gaussian"}
    return about, {name: alphas[name] / (math.sqrt(r) if root else r) for name, r in ranks.items()}


def stated_by_tensors(to: str, tail: str):
    def write(layers, folder):
        alphas, state = alphas_of(layers), tensors(layers, to)
        for name, alpha in alphas.items():
            key = make_key(name, "down", to)
            state[key[: key.index(tail)] + ".alpha"] = torch.tensor(alpha)
        save_file(state, folder / "x.safetensors", {"format": "pt"})
        return folder / "x.safetensors", {name: alphas[name] / r for name, r in ranks_of(layers).items()}

    return write


def stated_by_config(place: str, prefix: str, root: bool = False):
    def write(layers, folder):
        about, scales = config(layers, root)
        state = {key.replace("unet.", "base_model.model." if place == "file" else prefix): value
                 for key, value in tensors(layers, "peft").items()}  # fmt: skip
        if place == "file":
            save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
            (folder / "adapter_config.json").write_text(json.dumps(about))
            return folder, scales
        about = {prefix + key: value for key, value in about.items()}
        about |= {"text_encoder.r": 64, "text_encoder.lora_alpha": 1} if prefix else {}  # of another component
        save_file(state, folder / "x.safetensors", {HEADER: json.dumps(about)})
        return folder / "x.safetensors", scales

    return write


def stated_by_header(to: str, header: dict, alpha: float, conv: float | None = None, root: bool = False):
    def write(layers, folder):
        save_file(tensors(layers, to), folder / "x.safetensors", header)
        wide = {name for name, (down, _) in layers.items() if down.shape[2:] == (3, 3)}
        alphas = {name: conv if conv is not None and name in wide else alpha for name in layers}
        return folder / "x.safetensors", {
            name: alphas[name] / (math.sqrt(rank) if root else rank) for name, rank in ranks_of(layers).items()
        }

    return write


def unstated(to: str):
    def write(layers, folder):
        save_file(tensors(layers, to), folder / "x.safetensors", {"format": "pt"})
        return folder / "x.safetensors", dict.fromkeys(layers, 1.0)

    return write


KOHYA = {"ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "2.0"}
CONV = {"ss_network_args": json.dumps({"conv_dim": "4", "conv_alpha": "1"})}
PLACES = {  # what writes a LoRA file, the ranks that it can have, the kinds of layers
    "kohya's alpha tensors": (stated_by_tensors("kohya", ".lora_"), (2, 4, 7), ALL),
    "alpha tensors under peft's keys": (stated_by_tensors("peft", ".lora_"), (2, 4, 7), ALL),
    "alpha tensors under diffusers' keys": (stated_by_tensors("diffusers", "_lora."), (2, 4, 7), ATTENTION),
    "header, pipeline": (stated_by_config("header", "unet."), (2, 4, 7), ALL),
    "header, bare": (stated_by_config("header", ""), (2, 4, 7), ALL),
    "header, rslora": (stated_by_config("header", "unet.", root=True), (2, 4, 7), ALL),
    "adapter_config.json": (stated_by_config("file", ""), (2, 4, 7), ALL),
    "adapter_config.json, rslora": (stated_by_config("file", "", root=True), (2, 4, 7), ALL),
    "ss_network_alpha": (stated_by_header("kohya", KOHYA, 2.0), (4,), ALL),
    "ss_network_args": (stated_by_header("kohya", KOHYA | CONV, 2.0, conv=1.0), (4,), ALL),
    "ot_config": (stated_by_header("kohya", {"ot_config": '{"lora_rank": 4, "lora_alpha": 1.0}'}, 1.0), (4,), ALL),
    "lora_alpha": (stated_by_header("peft", {"lora_alpha": "16", "r": "4"}, 16.0), (4,), ALL),
    "lora_alpha, rslora": (
        stated_by_header("peft", {"lora_alpha": "6", "use_rslora": "True"}, 6.0, root=True), (2, 4, 7), ALL,
    ),
    "nowhere": (unstated("peft"), (2, 4, 7), ALL),
    "nowhere, kohya": (unstated("kohya"), (2, 4, 7), ALL),
    "nowhere, released": (unstated("released"), (2, 4, 7), ATTENTION),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_every_place_through_every_door_is_merged_by_hand(place, tmp_path, capsys):
    write, ranks, targets = PLACES[place]
    layers = random_layers(ranks, targets)
    source, scales = write(layers, tmp_path)
    expected = merged(layers, scales)

    unet = base()
    load_attn_procs(unet, source)
    assert distance(unet, expected) < 1e-5
    fuse_lora(unet)
    assert distance(unet, expected) < 1e-4  # fp32 weights round the sum
    capsys.readouterr()

    facts = describe(source)
    assert sum(row["layers"] for row in facts["scales"]) == len(layers)
    assert sorted({round(row["scale"], 6) for row in facts["scales"]}) == sorted(
        {round(s, 6) for s in scales.values()}
    )
    main(["inspect", str(source)])
    text = capsys.readouterr().out
    assert ("none, scale 1" in text or "no record" in text) == place.startswith("nowhere")
    assert all(f"{scale:.5g}" in text for scale in scales.values())

    for to in FORMATS if targets == ATTENTION else ("peft", "kohya"):
        out = tmp_path / f"out-{to}.safetensors"
        convert(source, out, to)
        unet, again = base(), parse_layers(*_read(out))
        load_attn_procs(unet, out)
        assert distance(unet, expected) < 1e-5
        if to == "kohya":  # alpha / rank is the scale by every program's reading
            with safe_open(out, "pt") as file:
                alphas = {name: file.get_tensor(make_key(name, "alpha", "kohya")).item() for name in layers}
            assert alphas == pytest.approx({name: scales[name] * rank for name, rank in ranks_of(layers).items()})
        else:
            assert {layer.scale for layer in again.values()} == {1.0}


def _read(path):
    state, metadata, name = read_lora(path)
    return state, name, metadata


@pytest.mark.parametrize("root", [False, True])
def test_the_patterns_mean_what_they_mean_to_peft_and_diffusers(root, tmp_path):
    """peft builds the adapter, diffusers and peft save it; both read by this project equal what peft computes."""
    layers = random_layers((2, 4, 7), ALL)
    about, scales = config(layers, root)
    theirs = base()
    settings = {key: value for key, value in about.items() if key not in ("peft_type", "lora_bias", "bias")}
    theirs.add_adapter(peft.LoraConfig(**settings), "default")
    for name, pair in layers.items():
        for own, weight in zip((theirs.get_submodule(name).lora_A, theirs.get_submodule(name).lora_B), pair):
            own["default"].weight.data.copy_(weight)
    expected = output(theirs)
    assert (merged(layers, scales) - expected).abs().max() < 1e-5
    theirs.save_lora_adapter(tmp_path / "diffusers", adapter_name="default")

    wrapped = peft.get_peft_model(base(), peft.LoraConfig(**settings))
    peft.set_peft_model_state_dict(
        wrapped, {k.replace("unet.", "base_model.model."): v for k, v in tensors(layers, "peft").items()}
    )
    wrapped.save_pretrained(tmp_path / "peft")

    for folder in ("diffusers", "peft"):
        unet = base()
        load_attn_procs(unet, tmp_path / folder)
        assert distance(unet, expected) < 1e-5


@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_diffusers_itself_reads_a_converted_or_saved_file_of_several_ranks_the_same(to, tmp_path):
    targets = ATTENTION if to == "diffusers" else ALL
    layers = random_layers((2, 4, 7), targets)
    source, scales = stated_by_tensors("kohya", ".lora_")(layers, tmp_path)
    expected = merged(layers, scales)
    convert(source, tmp_path / "out" / "pytorch_lora_weights.safetensors", to)
    unet = base()
    load_attn_procs(unet, source)
    save_lora(unet, tmp_path / "saved", {"task": "normal"})
    for folder in ("out", "saved"):
        theirs = base()
        theirs.load_lora_adapter(str(tmp_path / folder), prefix="unet", weight_name="pytorch_lora_weights.safetensors")
        assert distance(theirs, expected) < 1e-5


def header(**values) -> dict[str, str]:
    return {HEADER: json.dumps({"unet." + key: value for key, value in values.items()})}


CONTRADICTIONS = {
    "header's alpha, tensors'": (header(r=4, lora_alpha=16), 4.0, "scale 4 by the header's.*but 1 by alpha tensors"),
    "header's rank, tensors'": (header(r=8, lora_alpha=8), None, "rank 4 by its tensors, but 8 by .*lora_adapter"),
    "rank_pattern, tensors": (header(r=4, lora_alpha=4, rank_pattern={"to_q": 2}), None, "rank 4 .*but 2 by"),
    "ss_network_alpha, tensors": (KOHYA, 4.0, "scale 0.5 by the header's ss_network_alpha.*but 1 by alpha tensors"),
    "ss_network_dim, tensors": (KOHYA | {"ss_network_dim": "8"}, 2.0, "rank 4 by its tensors, but 8 by .*ss_network"),
    "this project's rank, tensors": ({"rank": "8", "task": "normal"}, None, "rank 4 by its tensors, but 8 .*rank"),
    "two places of the header": (header(r=4, lora_alpha=4) | {"lora_alpha": "8"}, None, "scale 1 by .*but 2 by"),
    "no JSON": ({HEADER: "{'r': 4}"}, None, "lora_adapter_metadata: not the JSON"),
    "a list": ({HEADER: "[]"}, None, "lora_adapter_metadata: not the JSON"),
    "NaN": (header(r=4, lora_alpha=math.nan), None, "lora_alpha: not a number"),
    "a truth value": (header(r=4, lora_alpha=True), None, "lora_alpha: not a number"),
    "a word": ({"ss_network_alpha": "abc"}, None, "ss_network_alpha: not a number .'abc'"),
    "rank that is a word": ({"rank": "four"}, None, "rank: not a number"),
    "no regular expression": (header(r=4, lora_alpha=4, alpha_pattern={"(": 1}), None, "not a regular expression"),
    "patterns in a list": (header(r=4, lora_alpha=4, alpha_pattern=["to_q"]), None, "alpha_pattern: not a table"),
    "rslora perhaps": (header(r=4, lora_alpha=4, use_rslora="maybe"), None, "use_rslora: neither true nor false"),
    "no alpha": (header(r=4), None, "states no lora_alpha"),
    "alpha of some layers": (header(r=4, alpha_pattern={"to_q": 1}), None, "states no alpha for"),
    "DoRA": (header(r=4, lora_alpha=4, use_dora=True), None, "DoRA"),
    "bias": (header(r=4, lora_alpha=4, lora_bias=True), None, "lora_bias"),
    "PiSSA": (header(r=4, lora_alpha=4, init_lora_weights="pissa_niter_4"), None, "init_lora_weights=pissa.*base"),
    "settings one level down": ({HEADER: json.dumps({"unet": {"r": 4, "lora_alpha": 2}})}, None, "inside 'unet'"),
    "adapters by name": ({HEADER: json.dumps({"default": {"r": 4, "lora_alpha": 2}})}, None, "inside 'default'"),
    **{
        f"a pattern that never ends: {pattern}": (
            header(r=4, lora_alpha=4, alpha_pattern={pattern: 1}), None, "repetitions that could take for ever",
        )
        for pattern in (
            "(.+)+x", r"(\\w+\\.?)*x", "(.|.){40}x", ".*.*.*.*.*.*.*.*x", r"\d+" * 12, "a?" * 40, "(.|a)" * 40,
            "(?:[^x]+|y)+?z",
        )
    },
    "a truth value for alpha": ({}, True, "alpha is not one finite number"),
    "LoHa": (header(peft_type="LOHA", r=4), None, "a LOHA adapter"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_contradicts_or_cannot_be_read_is_one_line_at_every_door(name, tmp_path):
    about, alpha, message = CONTRADICTIONS[name]
    state = tensors(random_layers((4,), ATTENTION), "kohya")
    if alpha is not None:
        state |= {
            key.replace("lora_down.weight", "alpha"): torch.tensor(alpha) for key in state if "down" in key[-15:]
        }
    file = tmp_path / "x.safetensors"
    save_file(state, file, about)
    for door in (
        lambda: load_attn_procs(base(), file),
        lambda: describe(file),
        lambda: convert(file, tmp_path / "y.safetensors", "peft"),
    ):
        with pytest.raises(InputError, match=rf"x\.safetensors: .*{message}"):
            door()
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize("about", [
    KOHYA | {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"},
    KOHYA | {"ss_network_args": json.dumps({"block_dims": "2,4", "block_alphas": "1,1"})},
    KOHYA | {"ss_network_module": "lycoris.kohya", "ss_network_alpha": "1"},
    {"ot_config": '{"lora_rank": 64, "lora_alpha": 1.0}'},
])  # fmt: skip
def test_flags_that_do_not_speak_of_each_layer_give_way_to_its_alpha_tensor(about):
    assert scale_of("a.attn1.to_q", 4, 3.0, scale_records(about)) == (0.75, "alpha tensors")


def test_lycoris_rs_lora_counts_where_there_are_no_alpha_tensors():
    about = {"ss_network_module": "lycoris.kohya", "ss_network_dim": "16", "ss_network_alpha": "8"}
    about["ss_network_args"] = json.dumps({"rs_lora": "True", "algo": "lora"})
    assert scale_of("a", 16, None, scale_records(about))[0] == 2.0


def test_bf16_alpha_tensors_agree_with_the_exact_header():
    alpha = float(torch.tensor(45.2548).to(torch.bfloat16))
    scale, place = scale_of("a", 8, alpha, scale_records(header(r=8, lora_alpha=16, use_rslora=True)))
    assert scale == 16 / math.sqrt(8) and "lora_adapter_metadata" in place


def test_pefts_file_without_its_config_is_refused_and_never_written(tmp_path):
    layers = random_layers((4,), ATTENTION)
    source, _ = stated_by_config("file", "")(layers, tmp_path)
    (source / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"adapter_config\.json is not next to it"):
        load_attn_procs(base(), source)
    save_file(tensors(layers, "peft"), tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="name another one"):
        convert(tmp_path / "x.safetensors", tmp_path / "o" / "adapter_model.safetensors", "peft")


def test_a_renamed_file_of_peft_is_read_with_its_config_or_a_note(tmp_path, capsys):
    layers = random_layers((4,), ATTENTION)
    source, scales = stated_by_config("file", "")(layers, tmp_path)
    renamed = (source / "adapter_model.safetensors").rename(source / "mine.safetensors")
    unet = base()
    load_attn_procs(unet, renamed)
    assert distance(unet, merged(layers, scales)) < 1e-4
    assert {row["stated_by"] for row in describe(renamed)["scales"]} == {"adapter_config.json"}
    assert "note" not in capsys.readouterr().out
    (source / "adapter_config.json").unlink()
    load_attn_procs(base(), renamed)
    assert "which states the scale in adapter_config.json only" in capsys.readouterr().out


@pytest.mark.parametrize("pattern", [
    r"down_blocks\.\d+\.attentions\.\d+\..*\.to_q", "to_q|to_k|to_out.0", r"(down|up)_blocks.*(to_q|to_k)",
    r"^mid_block\.attentions\.0\.transformer_blocks\.0\.attn1\.to_q", "[a-z_]+blocks.*to_[qk]",
    r"(?:up|down)_blocks\.[0-3]\..+?to_v",
])  # fmt: skip
def test_patterns_as_people_write_them_are_read(pattern):
    stated = scale_records(header(r=4, lora_alpha=8, alpha_pattern={pattern: 4}))
    assert {scale_of(name, 4, None, stated)[0] for name in layers_of(base(), ATTENTION)} == {1, 2}


def test_a_pipelines_header_with_peft_prefix_states_the_scale():
    about = {HEADER: json.dumps({"base_model.model.r": 4, "base_model.model.lora_alpha": 2})}
    assert scale_of("mid_block.attentions.0.to_q", 4, None, scale_records(about))[0] == 0.5


def test_loading_a_lora_of_scale_0_is_noted(tmp_path, capsys):
    save_file(tensors(random_layers((4,), ATTENTION), "peft"), tmp_path / "x.safetensors", header(r=4, lora_alpha=0))
    load_attn_procs(base(), tmp_path / "x.safetensors")
    assert "states scale 0, so loading it changes nothing" in capsys.readouterr().out


def test_files_that_are_no_lora_file_are_refused_with_what_to_do(tmp_path):
    state = tensors(random_layers((4,), ATTENTION), "peft")
    part = "adapter_model-00001-of-00002.safetensors"
    (tmp_path / "parts").mkdir()
    save_file(state, tmp_path / "parts" / part)
    (tmp_path / "parts" / "adapter_model.safetensors.index.json").write_text("{}")
    (tmp_path / "other").mkdir()
    save_file(state, tmp_path / "other" / "mine.safetensors")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html>")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.bin")
    for name, message in {
        "parts": r"its LoRA is in 1 parts .*save the LoRA as one file",
        f"parts/{part}": "save the LoRA as one file",
        "parts/adapter_model.safetensors.index.json": "save the LoRA as one file",
        "other": "; pass the file: mine.safetensors",
        "pointer.safetensors": "not a readable LoRA file .*git lfs pull",
        "page.safetensors": "not a readable LoRA file .*a web page",
        "module.bin": "not a pickle of tensors alone",
    }.items():
        for door in (lambda path: load_attn_procs(base(), path), describe):
            with pytest.raises(InputError, match=message):
                door(tmp_path / name)


def test_an_ending_in_capitals_is_the_same_ending(tmp_path):
    layers = random_layers((4,), ATTENTION)
    save_file(tensors(layers, "peft"), tmp_path / "X.SAFETENSORS")
    unet = base()
    load_attn_procs(unet, tmp_path / "X.SAFETENSORS")
    assert distance(unet, merged(layers, dict.fromkeys(layers, 1.0))) < 1e-4


def test_a_lora_of_sd_scripts_leaves_time_embedding_alone(tmp_path):
    layers = {n: pair for n, pair in random_layers((2, 4), ALL).items() if not n.startswith("time_embedding")}
    assert any(kind_of(name) == "time" for name in layers)
    source, scales = stated_by_tensors("kohya", ".lora_")(layers, tmp_path)
    unet = base()
    load_attn_procs(unet, source)
    assert distance(unet, merged(layers, scales)) < 1e-5
    save_file(tensors(layers, "peft"), tmp_path / "y.safetensors")
    with pytest.raises(InputError, match=r"2 of the UNet's .* layers are not in it"):
        load_attn_procs(base(), tmp_path / "y.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_files_are_read_as_the_numbers_they_hold(dtype, tmp_path):
    layers = random_layers((4,), ATTENTION)
    stored = {name: tuple(weight.to(dtype).float() for weight in pair) for name, pair in layers.items()}
    state = {key: value.to(dtype) for key, value in tensors(layers, "peft").items()}
    save_file(state, tmp_path / "x.safetensors")
    torch.save(state, tmp_path / "x.bin")
    for file in ("x.safetensors", "x.bin"):
        unet = base()
        load_attn_procs(unet, tmp_path / file)
        assert distance(unet, merged(stored, dict.fromkeys(layers, 1.0))) < 1e-5
    facts = describe(tmp_path / "x.safetensors")
    assert facts["dtype"] == str(dtype).removeprefix("torch.") and facts["not_finite"] == []
    convert(tmp_path / "x.safetensors", tmp_path / "k.safetensors", "kohya")
    assert all(value.dtype == torch.float32 for value in read_lora(tmp_path / "k.safetensors").state.values())


@pytest.mark.parametrize("dtype", ["float4_e2m1fn_x2", "complex64", "uint16", "int8"])
def test_numbers_that_no_lora_is_trained_in_are_one_line(dtype, tmp_path):
    dtype = getattr(torch, dtype, None)
    if dtype is None:
        pytest.skip("this PyTorch has no such numbers")
    state = tensors(random_layers((4,), ATTENTION), "peft")
    state = {key: torch.zeros(value.shape, dtype=torch.uint8) for key, value in state.items()}
    state = {k: v.view(dtype) if "float4" in str(dtype) else v.to(dtype) for k, v in state.items()}
    try:
        save_file(state, tmp_path / "x.safetensors")
    except KeyError:
        pytest.skip("this safetensors writes no such file")
    for door in (
        lambda: load_attn_procs(base(), tmp_path / "x.safetensors"),
        lambda: describe(tmp_path / "x.safetensors"),
        lambda: convert(tmp_path / "x.safetensors", tmp_path / "y.bin", "kohya"),
    ):
        with pytest.raises(InputError, match=r"x\.safetensors: (.* holds .*, not floats|not a readable LoRA)"):
            door()


TEXT = "lora_te_text_model_encoder_layers_{}_mlp_fc1"
TEXT_KEYS = {
    "kohya": TEXT + ".lora_{}.weight",
    "kohya, SDXL's second": TEXT.replace("te_", "te2_") + ".lora_{}.weight",
    "diffusers": "text_encoder.text_model.encoder.layers.{}.self_attn.q_proj.lora_linear_layer.{}.weight",
    "peft": "text_encoder_2.text_model.encoder.layers.{}.self_attn.q_proj.lora_{}.weight",
}


@pytest.mark.parametrize("style", TEXT_KEYS)
def test_text_encoder_layers_are_listed_refused_and_left_out_on_request(style, tmp_path, capsys):
    layers = random_layers((4,), ATTENTION)
    parts = {"diffusers": ("down", "up"), "peft": ("A", "B")}.get(style, ("down", "up"))
    text = {TEXT_KEYS[style].format(i, part): torch.randn(4, 64) for i in range(3) for part in parts}
    source, out = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    save_file(tensors(layers, "kohya") | text, source)
    assert describe(source)["text_encoder_layers"] == 3
    main(["inspect", str(source)])
    assert "3 layers of a text encoder" in capsys.readouterr().out
    for door in (lambda: load_attn_procs(base(), source), lambda: convert(source, out, "kohya")):
        with pytest.raises(InputError, match=r"6 of its keys belong to a text encoder.*convert.*--drop_text_encoder"):
            door()
    main(["convert", str(source), str(out), "--format", "kohya", "--drop_text_encoder"])
    assert "3 text-encoder layers left out" in capsys.readouterr().out
    unet = base()
    load_attn_procs(unet, out)
    assert distance(unet, merged(layers, dict.fromkeys(layers, 1.0))) < 1e-5
    save_file(text, source)
    with pytest.raises(InputError, match="its 3 layers are a text encoder's"):
        describe(source)


FOREIGN = {  # a part of a key, for a layer of ours -> what it is called
    "dora_scale": "DoRA", "lora_magnitude_vector.weight": "DoRA", "hada_w1_a": "LoHa", "hada_t1": "LoHa",
    "lokr_w1": "LoKr", "lokr_w2_a": "LoKr", "on_input": r"\(IA\)3", "ia3_l": r"\(IA\)3", "weight": r"\(IA\)3",
    "a1.weight": "GLoRA", "b2.weight": "GLoRA", "oft_blocks": "OFT", "oft_R.weight": "OFT", "boft_R": "BOFT",
    "lora_mid.weight": "lora_mid", "diff": "diff", "diff_b": "diff", "lora_up.bias": "biases", "scalar": "scalars",
    "w_norm": "normalisation", "vera_lambda_b": "VeRA", "scale_weight": "quantised",
}  # fmt: skip


@pytest.mark.parametrize("part", FOREIGN)
def test_another_kind_of_adapter_is_refused_by_its_name(part, tmp_path):
    state = tensors(random_layers((4,), ATTENTION), "kohya")
    name = next(iter(state)).split(".")[0]
    save_file(state | {f"{name}.{part}": torch.ones(4)}, tmp_path / "x.safetensors")
    for door in (load_attn_procs, lambda _, file: describe(file)):
        with pytest.raises(InputError, match=rf"x\.safetensors: holds .*{FOREIGN[part]}.*{part}"):
            door(base(), tmp_path / "x.safetensors")


@pytest.mark.parametrize(("wrapped", "bare"), [
    ("unet._orig_mod.a.b.weight", "unet.a.b.weight"),
    ("module.unet.a.b", "unet.a.b"),
    ("unet.module._orig_mod.a._fsdp_wrapped_module.b", "unet.a.b"),
    ("_orig_mod", ""),
    ("a._orig_mod", "a"),
    ("lora_unet__orig_mod_down_blocks_0.alpha", "lora_unet_down_blocks_0.alpha"),
    ("lora_unet_down_blocks_0__orig_mod_attentions", "lora_unet_down_blocks_0_attentions"),
    ("lora_unet_module_down_blocks_0.alpha", "lora_unet_down_blocks_0.alpha"),
    ("unet.modules.a", "unet.modules.a"),
    ("convs.0.conv.modulation", "convs.0.conv.modulation"),
])  # fmt: skip
def test_the_names_of_wrappers_are_left_out(wrapped, bare):
    assert strip_wrappers(wrapped) == bare


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "module._orig_mod."])
def test_a_file_with_the_names_of_wrappers_is_read_with_a_note(to, wrapper, tmp_path, capsys):
    layers = random_layers((4,), ATTENTION)
    state = tensors(layers, to)
    if to == "kohya":
        state = {k.replace("lora_unet_", f"lora_unet_{wrapper.replace('.', '_')}"): v for k, v in state.items()}
    else:
        head = "" if to == "released" else "unet."
        state = {f"{head}{wrapper}{k.removeprefix(head)}": v for k, v in state.items()}
        state = {k.replace(".transformer_blocks.", f".{wrapper}transformer_blocks."): v for k, v in state.items()}
    pattern = {f"^{wrapper}{name}": 2 for name in layers}
    about = {HEADER: json.dumps({"r": 4, "lora_alpha": 4, "alpha_pattern": pattern})}
    save_file(state, tmp_path / "x.safetensors", about)
    unet = base()
    load_attn_procs(unet, tmp_path / "x.safetensors")
    assert "names of wrappers" in capsys.readouterr().out
    assert distance(unet, merged(layers, dict.fromkeys(layers, 0.5))) < 1e-5
    assert describe(tmp_path / "x.safetensors")["wrapped"]
    convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "peft")
    assert set(read_lora(tmp_path / "y.safetensors").state) == set(tensors(layers, "peft"))


def test_what_is_saved_of_a_wrapped_unet_has_the_layers_own_names(tmp_path):
    layers = random_layers((4,), ALL)
    unet = base()
    load_attn_procs(unet, tensors(layers, "peft"))
    save_lora(unet, tmp_path / "plain", {})
    save_lora(torch.compile(unet, backend="eager"), tmp_path / "wrapped", {})
    plain, wrapped = (read_lora(tmp_path / name) for name in ("plain", "wrapped"))
    assert plain.metadata == wrapped.metadata and set(plain.state) == set(wrapped.state)


def test_a_layer_of_rank_0_has_scale_1():
    assert Layer(torch.zeros(0, 4), torch.zeros(4, 0), None).scale == 1
    assert scale_of("a", 0, 1.0, []) == (1.0, "no record of a scale")
