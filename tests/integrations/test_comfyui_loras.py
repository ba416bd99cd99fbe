"""LoRA files in the ComfyUI pack: the meaning of the header, and the scale of every layer."""

import json

import pytest
import torch
from comfyui_pack import Model, pack
from diffusers import UNet2DConditionModel
from helpers import ROOT
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from utils.lora.__main__ import main as utils_lora

LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
SHIPPED = ROOT / "miniworld" / "mini-loras"
CODED = {"task": "depth", "polarity": "near = white, 1 - sqrt(u), u from 0 (near) to 1 (far) affine in depth"}
SCALES = {
    "alpha is r": {"r": 4, "lora_alpha": 4},
    "alpha is 4 r": {"r": 4, "lora_alpha": 16},
    "rslora": {"r": 16, "lora_alpha": 16, "use_rslora": True},
    "one alpha of its own": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"attn1.to_q": 1, "to_out.0": 8}},
    "two ranks": {"r": 4, "lora_alpha": 8, "rank_pattern": {"to_v": 2}, "alpha_pattern": {"^mid_block": 1}},
}


@pytest.fixture
def lora(monkeypatch, tmp_path):
    return pack(monkeypatch, tmp_path).lora


@pytest.fixture
def unet():
    return UNet2DConditionModel.from_pretrained(ROOT / "miniworld" / "mini-sd" / "unet")


def adapted(unet, **options) -> dict[str, float]:
    """A random LoRA in the UNet; name of each layer -> its scale, by peft."""
    unet.add_adapter(LoraConfig(target_modules=LAYERS, init_lora_weights="gaussian", **options), "default")
    for name, weight in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return {name: part.scaling["default"] for name, part in unet.named_modules() if hasattr(part, "scaling")}


def header_file(path, said: dict[str, str], weights: dict | None = None):
    unit = {"unet.mid_block.attn1.to_q.lora_A.weight": torch.ones(4, 8)}
    save_file(weights or {**unit, "unet.mid_block.attn1.to_q.lora_B.weight": torch.ones(8, 4)}, path, said)
    return path


@pytest.mark.parametrize("case", SCALES)
@pytest.mark.parametrize("writer", ["adapter", "pipeline", "peft"])
def test_every_layer_has_the_scale_that_peft_gives_it(case, writer, lora, unet, tmp_path):
    scales, file = adapted(unet, **SCALES[case]), tmp_path / "pytorch_lora_weights.safetensors"
    if writer == "adapter":
        unet.save_lora_adapter(tmp_path, adapter_name="default")
    else:
        config, state = unet.peft_config["default"].to_dict(), get_peft_model_state_dict(unet)
        config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        if writer == "pipeline":  # as StableDiffusionPipeline.save_lora_weights does with unet_lora_adapter_metadata
            packed = json.dumps({f"unet.{key}": value for key, value in config.items()})
            save_file({f"unet.{k}": v for k, v in state.items()}, file, {"lora_adapter_metadata": packed})
        else:
            file = tmp_path / "adapter_model.safetensors"
            save_file({f"base_model.model.{key}": value for key, value in state.items()}, file)
            (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = lora.layers(load_file(file), lora.adapter_config(file), file.name)
    assert {name: layer[2] for name, layer in found.items()} == pytest.approx(scales)
    model = lora.patched(Model(scales), file)
    for name, part in unet.named_modules():
        if name in scales:
            delta = part.scaling["default"] * part.lora_B["default"].weight @ part.lora_A["default"].weight
            assert torch.allclose(model.patches[name].float(), delta, atol=1e-6)


@pytest.mark.parametrize("case", SCALES)
def test_the_scales_are_those_of_this_project(case, lora, unet, tmp_path):
    """`convert` writes alpha / rank = scale under kohya's keys; so the pack reads the same from either file."""
    adapted(unet, **SCALES[case])
    unet.save_lora_adapter(tmp_path, adapter_name="default")
    file, converted = tmp_path / "pytorch_lora_weights.safetensors", tmp_path / "kohya.safetensors"
    utils_lora(["convert", str(file), str(converted), "--format", "kohya"])
    before = lora.layers(load_file(file), lora.adapter_config(file), file.name)
    after = lora.layers(load_file(converted), lora.adapter_config(converted), converted.name)
    wanted = {name.replace(".", "_"): layer[2] for name, layer in before.items()}
    assert {name: layer[2] for name, layer in after.items()} == pytest.approx(wanted)


@pytest.mark.parametrize("form", ["released", "diffusers", "peft", "kohya"])
@pytest.mark.parametrize("wrapper", ["", "_orig_mod.", "module._orig_mod."])
def test_all_keys_are_read_wrapped_ones_too(form, wrapper, lora, unet, tmp_path):
    names, file = list(adapted(unet, r=4, lora_alpha=4)), tmp_path / "a.safetensors"
    unet.save_lora_adapter(tmp_path, adapter_name="default")
    save_file(load_file(tmp_path / "pytorch_lora_weights.safetensors"), tmp_path / "plain.safetensors")
    utils_lora(["convert", str(tmp_path / "plain.safetensors"), str(file), "--format", form])
    if wrapper and form != "kohya":  # kohya's names come from a converter, never from a wrapped model
        state = load_file(file)
        prefix = "unet." if next(iter(state)).startswith("unet.") else ""
        save_file({f"{prefix}{wrapper}{key.removeprefix(prefix)}": value for key, value in state.items()}, file)
    found = lora.layers(load_file(file), None, "a")
    assert sorted(found) == sorted(name.replace(".", "_") if form == "kohya" else name for name in names)
    assert {layer[2] for layer in found.values()} == {1} and len(found) > 30
    assert len(lora.patched(Model(names), file).patches) == len(names)


@pytest.mark.parametrize(("said", "why"), [
    ({"task": "depth", "depth_coding": "cubic"}, "cubic coding"),
    ({"task": "normal", "frame": "opengl (x right, y up, z toward the viewer)"}, "frame is opengl"),
    ({"task": "depth", "polarity": "near = black, linear in depth, affine-invariant"}, "polarity is near = black"),
    ({"task": "albedo", "colour_space": "linear light"}, "colour_space is linear light"),
    ({"task": "shading", "colour_space": "linear light"}, "colour_space is linear light"),
    ({"task": "normal", "format_version": "2"}, "format 2"),
    ({"task": "normal", "method": "augunet"}, "run inference_augunet.py"),
    ({"task": "normal", "method": "gan"}, "run inference_gan.py"),
    ({"task": "normal", "method": "novel"}, "do not know it"),
    ({"task": "normal", "family": "sdxl", "timestep": "999"}, "base family sdxl"),
    ({"task": "normal", "timestep": "1000"}, "timestep is 1000"),
    ({"task": "normal", "timestep": "1e3"}, "timestep is 1e3"),
    ({"task": "normal", "resolution": "-64"}, "resolution is -64"),
    ({"task": "roughness"}, "no known task"),
    ({}, "no known task"),
])  # fmt: skip
def test_a_meaning_that_the_nodes_do_not_have_is_refused(said, why, lora, tmp_path):
    with pytest.raises(ValueError, match=why):
        lora.facts(header_file(tmp_path / "a.safetensors", said))


@pytest.mark.parametrize("task", ["normal", "depth", "albedo", "shading"])
def test_the_shipped_loras_are_read(task, lora):
    said = lora.facts(SHIPPED / task / "pytorch_lora_weights.safetensors")
    assert said.task == task and said.depth_coding == "linear" and said.records["lora"].startswith(f"{task}/")


def test_a_coding_is_of_depth_alone(lora, tmp_path):
    file = header_file(tmp_path / "a.safetensors", {**CODED, "depth_coding": "sqrt"})
    assert lora.facts(file).depth_coding == "sqrt" and lora.facts(file, "normal").depth_coding == "linear"


@pytest.mark.parametrize("key", ["task", "method", "format_version", "frame", "timestep", "resolution"])
def test_control_characters_of_a_header_stay_out_of_messages(key, lora, tmp_path):
    said = {"task": "normal", key: "x\x1b[2J\nerror: forged\r\x07"}
    with pytest.raises(ValueError) as error:
        lora.facts(header_file(tmp_path / "a.safetensors", said))
    assert str(error.value).isprintable() and "\\x1b" in str(error.value)


def weights(**more) -> dict[str, torch.Tensor]:
    a, b = "unet.mid_block.attn1.to_q.lora_A.weight", "unet.mid_block.attn1.to_q.lora_B.weight"
    return {a: torch.ones(4, 8), b: torch.ones(8, 4)} | {key.replace("/", "."): value for key, value in more.items()}


@pytest.mark.parametrize(("state", "settings", "why"), [
    (weights(), {"r": 8, "lora_alpha": 8}, "has rank 4, and peft's settings have 8"),
    (weights(**{"unet/mid_block/attn1/to_q/alpha": torch.tensor(4.0)}), {"r": 4, "lora_alpha": 8}, "scale 1 by its alp"
        "ha and 2 by peft's"),
    (weights(), {"r": 4}, "lacks r or lora_alpha"),
    (weights(), {"r": 4, "lora_alpha": "8"}, "not a number"),
    (weights(), {"r": 4, "lora_alpha": 8, "use_dora": True}, "use_dora"),
    (weights(), {"r": 4, "lora_alpha": 8, "alpha_pattern": {"(a+)+b": 1}}, "names layers by"),
    (weights(), "[", "not readable JSON"),
    (weights(**{"text_encoder/layers/0/q_proj/lora_A/weight": torch.ones(4, 8)}), None, "1 keys are of the text enc"),
    (weights(**{"lora_te_text_model_q/lora_down/weight": torch.ones(4, 8)}), None, "lora_te_text_model_q"),
    (weights(**{"unet/mid_block/attn1/to_q/dora_scale": torch.ones(8)}), None, "would be left out"),
    (weights(**{"unet/mid_block/attn1/to_k/lora_A/weight": torch.ones(4, 8)}), None, "to_k lacks up"),
    (weights(**{"unet/mid_block/attn1/to_q/alpha": torch.ones(2)}), None, "not one finite number"),
    (weights(**{"unet/_orig_mod/mid_block/attn1/to_q/lora_A/weight": torch.ones(4, 8)}), None, "two down weights"),
    ({"base_model.model.mid_block.attn1.to_q.lora_A.weight": torch.ones(4, 8)}, None, "adapter_config.json"),
])  # fmt: skip
def test_what_would_be_scaled_wrongly_or_left_out_is_refused(state, settings, why, lora, tmp_path):
    text = settings if isinstance(settings, str) else json.dumps(settings)
    said = {} if settings is None else {"lora_adapter_metadata": text}
    with pytest.raises(ValueError, match=why):
        lora.patched(Model(["mid_block.attn1.to_q"]), header_file(tmp_path / "a.safetensors", said, state))


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x05\0\0\0\0\0\0\0{\x1b[2}"])
def test_a_broken_header_is_one_line(content, lora, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors: not a readable") as error:
        lora.facts(tmp_path / "a.safetensors", "normal")
    assert str(error.value).isprintable()
