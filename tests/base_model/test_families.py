"""Every family of base models, tiny and random in its real class: what its real pipeline does, and what works with
Stable Diffusion 1.5.
"""

import re
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import peft
import pytest
import tiny_families
import torch
from helpers import distance, fork, losses, run_here
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_families import words

import predict
from utils.base_model import names, parts
from utils.base_model.families import open_base
from utils.base_model.names import check_base, family_of
from utils.base_model.stable_diffusion import load_base
from utils.cli import number
from utils.errors import InputError
from utils.inference import Predictor
from utils.inference.job import describe
from utils.lora import SAFETENSORS, add_lora, fuse_lora, load_attn_procs, lora_parameters, read_lora, save_lora
from utils.lora.layers import layers_of, lora_targets
from utils.lora.targets import ALL, ATTENTION, KINDS
from utils.objectives import SingleStep
from utils.training.args import RECOMMENDED, SINGLE_STEP_REFUSES, parse, training_parser
from utils.training.upload import model_card, stage

SINGLE = "sd_single_diode_pseudo_normal.py"
MADE = [name for name in tiny_families.FAMILIES if name.removesuffix("_without_t5") in names.FAMILIES]
FAMILIES = [name for name in MADE if name != "sd3_without_t5"]
MOST_SLOW = [name if name == "sd3" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
PROMPT = "surface normal"


def test_a_family_that_the_installed_diffusers_lacks_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "model_index.json").write_text('{"_class_name": "ZImagePipeline"}')
    monkeypatch.setitem(sys.modules, "utils.base_model.z_image", None)  # importing it is an ImportError then
    with pytest.raises(InputError, match=r"diffusers \S+ with transformers \S+ cannot load .* z_image .*--upg"):
        open_base(str(tmp_path))


@pytest.fixture(scope="module", autouse=True)
def prompts_on_disk(tmp_path_factory):
    """The user's cache folder, where states of prompts are kept."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "intrinsic-lora" / "prompts"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: tiny_families.save(name, root / name) for name in MADE}


@pytest.fixture(scope="module")
def trained(folders, diode, tmp_path_factory) -> Callable[[str], Path]:
    """family -> the output folder of three steps of a LoRA on all of its layers."""
    root = tmp_path_factory.mktemp("trained")

    @cache
    def train(name: str) -> Path:
        run_here(SINGLE, words(diode, folders[name], root / name, "--lora_targets", "all", "--max_train_steps", 3))
        return root / name

    return train


def images(count: int = 2, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def random_lora(network, targets=ALL) -> None:
    """A LoRA that changes the output."""
    add_lora(network, 2, targets=targets)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in lora_parameters(network):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)


def single_step(base) -> SingleStep:
    return SingleStep(base, base.encode_prompt(PROMPT), base.timestep())


# Which family


def test_the_family_is_the_pipelines_in_model_index(folders, bases, tmp_path):
    assert {name: family_of(str(folder)) for name, folder in folders.items()} == {
        name: name.removesuffix("_without_t5") for name in folders
    }
    assert family_of(str(bases["sd15"])) == "sd" and load_base(str(bases["sd15"])).family == "sd"
    shutil.copytree(bases["sd15"], tmp_path / "old")
    (tmp_path / "old" / "model_index.json").unlink()  # as one copies a folder by hand
    assert open_base(str(tmp_path / "old")).family == "sd"


@pytest.mark.parametrize(("content", "message"), [
    ('{"_class_name": "PixArtSigmaPipeline"}', "a PixArtSigmaPipeline, which is none of .*1.x or 2.x, Stable Diff"),
    ('{"_class_name": "StableDiffusionXLKDiffusionPipelin"}', "StableDiffusionXLKDiffusionPipelin, which is none"),
    ("{}", "model_index.json: names no pipeline"),
    ("[", "model_index.json: names no pipeline"),
])  # fmt: skip
def test_an_unknown_family_is_refused_with_the_list_before_anything_is_loaded(content, message, tmp_path):
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(InputError, match=message):
        check_base(str(tmp_path))


def test_augunet_takes_stable_diffusion_1_and_2_only(folders):
    with pytest.raises(InputError, match=r"is Stable Diffusion XL; a 4-channel UNet of .* conv_in fits no other"):
        load_base(str(folders["sdxl"]))


# As the real pipelines do


@pytest.mark.parametrize("name", [name for name in ("sdxl", "sd3", "sd3_without_t5") if name in MADE])
def test_the_network_gets_what_its_pipeline_gives_it(name, folders, monkeypatch):
    base, pipeline = open_base(str(folders[name])), tiny_families.pipeline(folders[name])
    rgb, calls = images(1), []
    z = base.scaled(base.latent_mode(rgb))
    for network in (base.network, getattr(pipeline, base.prefix)):
        network.register_forward_pre_hook(lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    height, width = rgb.shape[-2:]
    scheduled = type(pipeline.scheduler).scale_model_input if name == "sdxl" else None
    if scheduled:  # the UNet would get divided latents, which are noisy ones'
        monkeypatch.setattr(type(pipeline.scheduler), "scale_model_input", lambda self, sample, t: z)
    pipeline(PROMPT, height=height, width=width, num_inference_steps=1, guidance_scale=1.0, latents=z.clone(),
             output_type="latent")  # fmt: skip
    with torch.no_grad():
        base.predict(base.network, z, 999 if name == "sdxl" else 1.0, base.encode_prompt(PROMPT))
    (args, real), (own_args, own) = calls
    assert torch.equal(real["encoder_hidden_states"] if "encoder_hidden_states" in real else args[2],
                       own["encoder_hidden_states"] if "encoder_hidden_states" in own else own_args[2])  # fmt: skip
    if name == "sdxl":
        assert torch.equal(args[0], own_args[0])
        for key, value in real["added_cond_kwargs"].items():
            assert torch.equal(value, own["added_cond_kwargs"][key]), key
        assert own["added_cond_kwargs"]["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]]
    else:
        for key in ("hidden_states", "pooled_projections", "timestep"):
            assert torch.equal(real[key], own[key]), key
        assert real["encoder_hidden_states"][:, 77:].any() != (name == "sd3_without_t5")


@pytest.mark.parametrize("name", FAMILIES)
def test_latents_are_scaled_and_scaled_back(name, folders):
    base, rgb = open_base(str(folders[name])), images()
    with torch.no_grad():
        own = base.latent_mode(rgb)
        z = base.scaled(own)
        again = base.scaled(own + 1) - z
        direct = base.decode(z)
    assert direct.shape == rgb.shape and not torch.allclose(z.flatten(), own.flatten())
    assert (again > 0).all(), "an affine map with a positive scale"
    config = base.vae.config
    if name in ("sdxl", "sd3"):
        expected = (own - (config.shift_factor or 0)) * config.scaling_factor
        torch.testing.assert_close(z, expected)
        with torch.no_grad():
            torch.testing.assert_close(direct, base.vae.decode(own).sample, atol=1e-4, rtol=1e-4)


def test_sdxls_vae_is_never_in_fp16(folders):
    base = open_base(str(folders["sdxl"]))
    assert base.to("cpu", torch.float16).vae.dtype == torch.float32 and base.network.dtype == torch.float16
    seen = []
    base.vae.decoder.conv_in.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    base.vae.encoder.conv_in.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):  # as in the validation of a run in mixed precision
        base.decode(base.scaled(base.latent_mode(images())))
    assert seen == [torch.float32] * 2
    assert base.to("cpu", torch.bfloat16).vae.dtype == torch.bfloat16


# Prompts


def test_a_prompts_states_are_kept_by_base_and_prompt_and_the_text_encoders_not_loaded(
    folders, tmp_path, prompts_on_disk, monkeypatch
):
    folder = tmp_path / "base"
    shutil.copytree(folders["sd3"], folder)
    first = open_base(str(folder)).encode_prompt("depth map")
    before = len(list(prompts_on_disk.iterdir()))
    loaded, pipeline = [], parts.Family._pipeline
    monkeypatch.setattr(parts.Family, "_pipeline", lambda self: loaded.append(1) or pipeline(self))
    again = open_base(str(folder)).encode_prompt("depth map")
    assert not loaded and all(torch.equal(first[key], again[key]) for key in first)
    other = open_base(str(folder)).encode_prompt("albedo")
    assert len(loaded) == 1 and not torch.equal(first["text"], other["text"])
    weights = folder / "text_encoder" / "model.safetensors"
    state = {key: value + 0.1 for key, value in load_file(weights).items()}
    save_file(state, weights, {"format": "pt"})
    changed = open_base(str(folder)).encode_prompt("depth map")
    assert len(loaded) == 2 and not torch.equal(first["text"], changed["text"])
    kept = sorted(prompts_on_disk.iterdir())
    assert len(kept) == before + 2
    for file in kept:
        file.write_bytes(b"damaged")
    assert torch.equal(open_base(str(folder)).encode_prompt("depth map")["text"], changed["text"])


def test_text_encoders_that_cannot_be_loaded_are_named(folders, tmp_path):
    shutil.copytree(folders["sd3"], tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "text_encoder_2")
    with pytest.raises(InputError, match=r"base/text_encoder_2: not there, but model_index.json has it; "):
        open_base(str(tmp_path / "base")).encode_prompt("depth map")


# Times and sizes


def test_times_are_whole_numbers_of_diffusion_models_and_0_to_1_of_flow_models(folders):
    diffusion, flow = (open_base(str(folders[name])) for name in ("sdxl", "sd3"))
    assert (diffusion.timestep(), diffusion.timestep(0), diffusion.times) == (999, 0, "0 to 999")
    assert (flow.timestep(), flow.timestep(1), flow.timestep(0.25), flow.times) == (0.4, 1.0, 0.25, "0 to 1")
    with pytest.raises(InputError, match=r"^--timestep=0.4: .* is a diffusion model; pass a whole number, 0 to 999"):
        diffusion.timestep(0.4)
    with pytest.raises(InputError, match=r"^--timestep=1000: the schedule of .* has 0 to 999"):
        diffusion.timestep(1000)
    for wrong in (400, 1.5, -0.1, float("nan")):
        with pytest.raises(InputError, match=rf"^--timestep={wrong}: .* is a flow model, whose times are 0 \(image\)"):
            flow.timestep(wrong)


@pytest.mark.parametrize(("text", "expected"), [("999", 999), ("0.4", 0.4), ("1.0", 1.0), (0.4, 0.4), (400, 400)])
def test_a_time_is_whole_or_not_as_it_is_written(text, expected):
    assert number(text) == expected and type(number(text)) is type(expected)


def test_the_flag_and_a_bases_own_recommendation_take_both_kinds_of_time(folders, diode, tmp_path, capsys):
    parser = training_parser("", SINGLE_STEP_REFUSES)
    folder, more = tmp_path / "base", ["--empty_prompt", "--max_train_steps", 1]
    shutil.copytree(folders["sd3"], folder)
    assert parse(parser, words(diode, folder, tmp_path, *more, "--timestep", "0.25")).timestep == 0.25
    assert parse(parser, words(diode, folder, tmp_path, *more, "--timestep", "25")).timestep == 25
    (folder / RECOMMENDED).write_text('{"timestep": 0.3}')
    assert parse(parser, words(diode, folder, tmp_path, *more)).timestep == 0.3
    assert "recommends --timestep 0.3" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "expected"), [("0.4", 0.4), ("1.0", 1.0), ("5e-05", 5e-5), ("999", 999)])
def test_a_header_states_both_kinds_of_time(text, expected, tmp_path):
    file = tmp_path / SAFETENSORS
    save_file({"x": torch.zeros(1)}, file, {"timestep": text})
    assert describe(file).timestep == expected


@pytest.mark.parametrize("text", ["1.5", "-0.4", "0.4.1", "nan", "2e5"])
def test_a_header_with_no_time_is_refused(text, tmp_path):
    file = tmp_path / SAFETENSORS
    save_file({"x": torch.zeros(1)}, file, {"timestep": text})
    with pytest.raises(InputError, match=f"its header has timestep='{text}', not a whole number"):
        describe(file)


def test_sd3s_pipeline_is_imported_without_a_librarys_warnings():
    """Of image processors that need torchvision: the warning comes once in a process, so this one is another."""
    program = "from utils.base_model.families import open_base; open_base('miniworld/mini-flow').timestep(400)"
    done = fork("-c", program, check=False)
    assert "flow model" in done.stderr and "torchvision" not in done.stderr + done.stdout


def test_a_side_that_a_transformer_cannot_cut_into_patches_is_refused(folders, tmp_path):
    with pytest.raises(InputError, match=r"^--resolution=30: .*sd3 needs a multiple of 4"):
        open_base(str(folders["sd3"]), side=30)
    assert open_base(str(folders["sdxl"]), side=30).multiple == 4


# LoRAs


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_the_pipeline_loads_the_file_and_gives_the_merged_weights_output(name, targets, folders, tmp_path):
    base = open_base(str(folders[name]))
    method, rgb = single_step(base), images()
    with torch.no_grad():
        plain = method.predict(base.network, rgb)
        random_lora(base.network, ALL if targets == "all" else (targets,))
        apart = method.predict(base.network, rgb)
        save_lora(base.network, tmp_path, {"family": base.family})
        chosen, linears = lora_targets(base.network), set(layers_of(base.network, KINDS))
        fuse_lora(base.network)
        merged = method.predict(base.network, rgb)
    if targets == "all":
        own = {n for n, m in base.network.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
        outside = {n.split(".")[0] for n in own - linears}
        assert outside <= {"conv_in", "conv_out", "pos_embed"}, "all linear layers"
        assert ("modulation" in chosen) == (base.prefix == "transformer")
    keys = load_file(tmp_path / SAFETENSORS)
    assert all(key.startswith(f"{base.prefix}.") and key.endswith(("lora_A.weight", "lora_B.weight")) for key in keys)
    pipeline = tiny_families.pipeline(folders[name])
    pipeline.load_lora_weights(tmp_path, weight_name=SAFETENSORS)
    fresh = open_base(str(folders[name]))
    load_attn_procs(fresh.network, tmp_path)
    with torch.no_grad():
        theirs = method.predict(getattr(pipeline, base.prefix), rgb)
        ours = method.predict(fresh.network, rgb)
    assert (merged - plain).abs().max() > 1e-3, "this LoRA changes nothing, so it could prove nothing"
    for found in (apart, theirs, ours):
        torch.testing.assert_close(found, merged, atol=2e-4, rtol=2e-3)


def test_the_second_attention_of_sd3_has_a_lora_and_its_last_block_none_without_effect(folders):
    base = open_base(str(folders["sd3"]))
    random_lora(base.network, ("attention",))
    names_ = [name for name, _ in base.network.named_parameters() if "lora_A" in name]
    assert sum(".attn2." in name for name in names_) == 4 and not any("2.attn.to_add_out" in name for name in names_)
    single_step(base).loss(
        base.network, {"rgb": images(), "target": images()}, [torch.Generator() for _ in range(2)]
    ).backward()
    dead = [n for n, p in base.network.named_parameters() if p.requires_grad and not p.grad.any()]
    assert {name.split(".lora_")[0] for name in dead} == {"transformer_blocks.2.attn.add_q_proj"}


def test_a_lora_of_another_family_is_refused(trained, folders):
    own = re.escape(f"pass its own, {folders['sdxl'].resolve()}")
    with pytest.raises(InputError, match=rf"made for Stable Diffusion XL, but .*sd3 is Stable Diffusion 3 .*; {own}"):
        Predictor(trained("sdxl"), base=folders["sd3"])
    with pytest.raises(InputError, match=r"made for Stable Diffusion XL, but .* is Stable Diffusion 1.x or 2.x"):
        Predictor(trained("sdxl"), base="miniworld/mini-sd")


# Training


@pytest.mark.parametrize("name", MOST_SLOW)
def test_a_training_writes_the_familys_files(name, trained, folders):
    output = trained(name)
    header = read_lora(output).metadata
    timestep = "999" if name == "sdxl" else "0.4"
    assert (header["family"], header["timestep"], header["base_model"]) == (name, timestep, str(folders[name]))
    stage(output, output)  # what goes to the hub
    assert not list(output.rglob("pytorch*.bin")), "a .bin has no header that names the family"
    assert len(losses(output)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_resumed_run_is_exact_with_masks_whole_images_and_averages(name, folders, diode, tmp_path):
    more = ["--masked_loss", "--crop", "none", "--ema_decay", 0.9, "--lora_targets", "all"]
    run_here(SINGLE, words(diode, folders[name], tmp_path / "whole", *more, "--max_train_steps", 4))
    for steps in (2, 4):
        length = ["--max_train_steps", steps, "--resume_from_checkpoint", "latest"]
        run_here(SINGLE, words(diode, folders[name], tmp_path / "cut", *more, *length))
    assert distance(tmp_path / "whole", tmp_path / "cut") == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_neither_cache_nor_checkpointing_nor_processes_change_a_training(name, trained, folders, diode, tmp_path):
    length = ["--max_train_steps", 3, "--lora_targets", "all"]
    others = {"uncached": ["--no_cache_latents"], "checkpointed": ["--gradient_checkpointing"]}
    others["micro"] = ["--train_batch_size", 1, "--gradient_accumulation_steps", 2]
    for other, more in others.items():
        run_here(SINGLE, words(diode, folders[name], tmp_path / other, *length, *more))
    if name == "sd3":  # whose last block has parameters that get no gradient
        others["two"] = []
        fork(SINGLE, *words(diode, folders[name], tmp_path / "two", *length, "--train_batch_size", 1), processes=2)
    for other in others:
        assert losses(tmp_path / other) == pytest.approx(losses(trained(name)), rel=1e-4), other
        assert distance(tmp_path / other, trained(name)) < 1e-4, other


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_trains_and_validates(name, folders, diode, tmp_path, capsys):
    more = ["--mixed_precision", "bf16", "--max_train_steps", 2, "--validation_steps", 2]
    run_here(SINGLE, words(diode, folders[name], tmp_path / "run", *more))
    assert len(losses(tmp_path / "run")) == 2 and all(np.isfinite(list(losses(tmp_path / "run").values())))
    shown = capsys.readouterr().out
    assert "frozen parts in torch.bfloat16" in shown
    assert f"timestep {'999 of 0 to 999' if name == 'sdxl' else '0.4 of 0 to 1'}; " in shown


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_the_network_is_read_in_the_runs_precision(name, folders, monkeypatch):
    whole = open_base(str(folders[name])).network
    kind, read = type(whole), []
    load = kind.from_pretrained.__func__

    def recorded(cls, *args, **more):
        found = load(cls, *args, **more)
        read.append({parameter.dtype for parameter in (found[0] if isinstance(found, tuple) else found).parameters()})
        return found

    monkeypatch.setattr(kind, "from_pretrained", classmethod(recorded))
    half = open_base(str(folders[name]), dtype=torch.bfloat16)
    assert read == [{torch.bfloat16}], "not in fp32 first"
    assert half.vae.dtype == torch.float32
    expected = whole.to(torch.bfloat16).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in half.network.state_dict().items())


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_prediction_in_16_bits_never_has_the_network_in_32_and_adds_the_lora_in_32(
    name, folders, bases, tmp_path, monkeypatch
):
    folder = bases["sd15"] if name == "sd15" else folders[name]
    base = open_base(str(folder))
    random_lora(base.network, ATTENTION)
    family = {} if name == "sd15" else {"family": name}
    save_lora(base.network, tmp_path, {"method": "single-step", "task": "normal", "base_model": folder, **family})
    expected = {}
    for path, layer in layers_of(base.network, ATTENTION).items():
        lora = base.network.get_submodule(path)
        delta = lora.lora_B["default"].weight @ lora.lora_A["default"].weight
        expected[path] = (layer.weight.bfloat16().float() + delta).bfloat16()
    merge, in_fp32 = peft.tuners.lora.Linear.merge, []

    def watched(layer, *args, **more):
        weights = [each.base_layer.weight for each in network().modules() if hasattr(each, "base_layer")]
        in_fp32.append(sum(weight.dtype == torch.float32 for weight in weights))
        return merge(layer, *args, **more)

    opened, kind = [], type(base.network)
    load = kind.from_pretrained.__func__
    monkeypatch.setattr(
        kind, "from_pretrained", classmethod(lambda *a, **b: opened.append(load(*a, **b)) or opened[-1])
    )
    monkeypatch.setattr(peft.tuners.lora.Linear, "merge", watched)

    def network():
        return opened[-1][0] if isinstance(opened[-1], tuple) else opened[-1]

    predictor = Predictor(tmp_path, dtype="bf16")
    assert in_fp32 == [1] * len(expected), "one layer at a time"
    for path, weight in expected.items():
        assert torch.equal(predictor.network.get_submodule(path).weight, weight), path


@pytest.mark.parametrize("name", MOST_SLOW)
def test_the_cards_lines_load_the_lora(name, trained, folders, monkeypatch):
    header = read_lora(trained(name)).metadata
    monkeypatch.chdir(trained(name).parent)
    card = model_card(name, header, {}, "", [])
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert f'from_pretrained("{name}")' in lines and ".bin" not in card, "the base's name, not the path to it"
    scope: dict = {}
    exec(lines.replace(f'from_pretrained("{name}")', f'from_pretrained("{folders[name]}")'), scope)
    base, rgb = open_base(str(folders[name])), images()
    method = single_step(base)
    with torch.no_grad():
        plain = method.predict(base.network, rgb)
        load_attn_procs(base.network, trained(name))
        ours = method.predict(base.network, rgb)
        theirs = method.predict(getattr(scope["pipeline"], base.prefix), rgb)
    assert (plain - ours).abs().max() > 1e-4
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


# Prediction


@pytest.mark.parametrize("name", MOST_SLOW)
def test_one_prediction_from_all_doors(name, trained, folders, tmp_path, capsys):
    """The class, the script, predict.py, and several LoRAs on one base."""
    photo = tmp_path / "photos" / "a.png"
    photo.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(photo)
    lora = trained(name)
    depth = tmp_path / "depth"
    shutil.copytree(lora, depth, ignore=shutil.ignore_patterns("latent_cache", "checkpoint-*"))
    relabel(depth / SAFETENSORS, task="depth", prompt="depth map", polarity="near is large")
    alone = [Predictor(one)(photo) for one in (lora, depth)]
    both = Predictor([lora, depth])(photo)
    assert set(both) == {"normal", "depth"} and both["normal"].values.shape == (48, 64, 3)
    for one in alone:
        for task, expected in one.items():
            np.testing.assert_allclose(both[task].values, expected.values, atol=1e-5)
    run_here("inference_sd_single.py", [
        "--lora", str(lora), "--input_dir", str(photo.parent), "--output_dir", str(tmp_path / "script"), "--npy",
    ])  # fmt: skip
    script = np.load(tmp_path / "script/normal/predicted/a_normal.npy")
    np.testing.assert_allclose(script, alone[0]["normal"].values, atol=1e-5)
    predict.main([str(photo), "--lora", str(lora), str(depth), "--output_dir", str(tmp_path / "page"), "--npy"])
    page = np.load(tmp_path / "page/normal/predicted/a_normal.npy")
    np.testing.assert_allclose(page, script, atol=1e-5)
    tiled = Predictor(lora, tile=32)(photo)["normal"].values
    assert tiled.shape == (48, 64, 3) and np.isfinite(tiled).all()
    shown = capsys.readouterr().out
    assert "was trained on" not in shown


def relabel(file: Path, **header: str) -> None:
    """Change a LoRA's header."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    metadata.pop("frame", None)
    save_file(load_file(file), file, metadata | header)
