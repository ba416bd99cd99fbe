"""The frozen network's linear layers in 8 or 4 bits: their numbers, loading, training, prediction, refusals."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_families
import torch
from fake_hub import serve
from helpers import ROOT, distance, fork, losses, run_here
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_families import words
from torch import nn

from utils.base_model.families import open_base
from utils.base_model.names import FAMILIES as NAMES
from utils.base_model.parts import load_component
from utils.base_model.quantised import LEVELS, QuantisedLinear, layers_to_quantise, load_quantised, quantise
from utils.base_model.stable_diffusion import load_base
from utils.errors import InputError
from utils.inference import Predictor
from utils.lora import fuse_lora, load_attn_procs, read_lora
from utils.objectives import SingleStep
from utils.system.compute import compile_unet

SINGLE, AUGUNET = "sd_single_diode_pseudo_normal.py", "augunet_diode_pseudo_normal.py"
PRECISIONS = ("int8", "nf4")
FAMILIES = [name for name in tiny_families.FAMILIES if name in NAMES]


@pytest.fixture(scope="module", autouse=True)
def prompts_on_disk(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def sd3(tmp_path_factory) -> Path:
    return tiny_families.save("sd3", tmp_path_factory.mktemp("quantised") / "sd3")


@pytest.fixture(scope="module")
def trained(sd3, diode, tmp_path_factory) -> Path:
    """The output folder of four steps on 4 bits."""
    folder = tmp_path_factory.mktemp("trained") / "nf4"
    run_here(SINGLE, words(diode, sd3, folder, "--base_precision", "nf4", "--max_train_steps", 4))
    return folder


def dense(dtype: torch.dtype = torch.float32) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(128, 24).requires_grad_(False).to(dtype)


def small(layer: nn.Linear, precision: str) -> QuantisedLinear:
    return QuantisedLinear(layer, layer.weight, precision, layer.weight.dtype)


# Numbers


def test_the_levels_of_nf4_are_quantiles_of_a_normal_distribution():
    """QLoRA, appendix E: eight of the negative half and nine of the positive one, which share the zero."""
    edge = (1 - 1 / 32 + 1 - 1 / 30) / 2
    positive = torch.special.ndtri(torch.linspace(edge, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(edge, 0.5, 8, dtype=torch.float64)[:-1])
    expected = torch.cat([positive, torch.zeros(1), negative]).sort().values
    torch.testing.assert_close(torch.tensor(LEVELS, dtype=torch.float64), expected / expected.max(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_weight_gets_the_nearest_code_of_its_scale(dtype):
    layer = dense(dtype)
    layer.weight[0] = 0  # a row, or block, of zeros has scale 0
    weight, rounding = layer.weight.float(), torch.finfo(dtype).eps
    eight, four = small(layer, "int8"), small(layer, "nf4")
    scale = eight.scale.float()
    off = (eight.dequantised().float() - weight).abs()
    assert (off <= scale * (0.5 + 128 * rounding)).all() and eight.weight.dtype == torch.int8
    blocks = weight.view(-1, 64)
    levels = torch.tensor(LEVELS) * four.scale.float()[:, None, None]  # (blocks, 1, 16)
    nearest = (blocks[..., None] - levels).abs().min(2).values.view_as(weight)
    off = (four.dequantised().float() - weight).abs()
    assert (off <= nearest + 2 * rounding * weight.abs().max()).all()
    assert four.weight.dtype == torch.uint8 and four.weight.numel() == weight.numel() // 2
    for layer_now in (eight, four):
        assert (layer_now.dequantised()[0] == 0).all()
        assert layer_now.scale.dtype == layer_now.dequantised().dtype == dtype


@pytest.mark.parametrize("precision", PRECISIONS)
def test_output_and_gradient_are_those_of_the_dequantised_weights_and_only_codes_are_kept(precision):
    layer, x = dense(), torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(1)).requires_grad_()
    packed, plain, kept = small(layer, precision), dense(), []
    plain.weight.data = packed.dequantised()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = packed(x)
    assert torch.equal(out, plain(x))
    grads = [torch.autograd.grad(each.square().sum(), x)[0] for each in (out, plain(x))]
    torch.testing.assert_close(*grads)
    assert not any(t.shape == layer.weight.shape and t.is_floating_point() for t in kept), "W would cost the saving"


# Loading


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_is_quantised_tensor_by_tensor_while_it_is_read(name, precision, tmp_path, monkeypatch):
    folder = tiny_families.save(name, tmp_path / name)
    base = open_base(str(folder), dtype=torch.bfloat16)
    network, names = base.network, set(layers_to_quantise(base.network))
    (folder / base.prefix / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(folder / base.prefix, max_shard_size="40KB")
    assert len(list((folder / base.prefix).glob("*.safetensors"))) > 1
    quantise(network, precision, torch.bfloat16)
    monkeypatch.setattr(type(network), "from_pretrained", None)  # which would read it whole
    read = open_base(str(folder), dtype=torch.bfloat16, precision=precision).network
    expected, found = network.state_dict(), read.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(value, found[key]) for key, value in expected.items())
    assert names == {key for key, layer in read.named_modules() if isinstance(layer, QuantisedLinear)}
    assert len(names) > 10 and read.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in read.parameters()) and not read.training


def spoiled(sd3: Path, folder: Path, how: str) -> Path:
    """A copy of the network's folder with one fault."""
    weights = load_file(sd3 / "transformer" / "diffusion_pytorch_model.safetensors")
    key = "transformer_blocks.0.attn.to_q.weight"
    folder.mkdir()
    (folder / "config.json").write_text((sd3 / "transformer" / "config.json").read_text())
    if how == "lost":
        weights.pop(key)
    elif how == "shape":
        weights[key] = weights[key][:, :16].contiguous()
    elif how == "nan":
        weights[key][3, 4] = torch.nan
    elif how == "twice":
        save_file({key: weights[key]}, folder / "diffusion_pytorch_model-00001-of-00002.safetensors")
    name = "diffusion_pytorch_model.bin" if how == "pickle" else "diffusion_pytorch_model.safetensors"
    save_file(weights, folder / name)
    return folder


@pytest.mark.parametrize(("how", "message"), [
    ("lost", "1 of its weights are not in its .safetensors files, e.g. transformer_blocks.0.attn.to_q.weight"),
    ("shape", r"to_q.weight has the shape \[32, 16\]"),
    ("nan", "a weight is NaN or infinite"),
    ("twice", "to_q.weight is in several files"),
    ("pickle", "no .safetensors file of diffusers there"),
])  # fmt: skip
def test_weights_that_cannot_be_quantised_are_refused(how, message, sd3, tmp_path):
    kind = type(open_base(str(sd3)).network)
    with pytest.raises(ValueError, match=message):
        load_quantised(kind, spoiled(sd3, tmp_path / "network", how), "nf4", torch.float32)


def test_a_missing_network_is_one_line_with_its_place(sd3, tmp_path):
    spoiled(sd3, tmp_path / "transformer", "lost")
    with pytest.raises(InputError, match=r"transformer: cannot be loaded: 1 of its weights"):
        load_component(type(open_base(str(sd3)).network), str(tmp_path), "transformer", precision="int8")


def test_a_single_file_is_not_read_layer_by_layer(tmp_path):
    file = tmp_path / "model.ckpt"
    file.touch()
    with pytest.raises(InputError, match=f"--base_precision=nf4: {file} is read whole; pass a model folder"):
        load_base(str(file), precision="nf4")


def test_of_the_hubs_files_only_those_in_full_precision_are_downloaded(sd3, tmp_path):
    folder = shutil.copytree(sd3 / "transformer", tmp_path / "sd3" / "transformer")
    for other in ("fp16", "non_ema"):
        (folder / f"diffusion_pytorch_model.{other}.safetensors").write_bytes(b"not to be read")
    kind = type(open_base(str(sd3)).network)
    program = (
        "from diffusers import SD3Transformer2DModel as kind\nfrom utils.base_model.parts import load_component\n"
        "network = load_component(kind, 'someone/sd3', 'transformer', precision='int8')\n"
        "print(sum(value.double().sum().item() for value in network.state_dict().values()))"
    )
    with serve({"someone/sd3": tmp_path / "sd3"}) as hub:
        env = {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
        printed = fork("-c", program, env=hub.env | env).stdout
    network = load_quantised(kind, folder, "int8", torch.float32)
    assert float(printed.split()[-1]) == sum(value.double().sum().item() for value in network.state_dict().values())
    files = ("config.json", "diffusion_pytorch_model.safetensors")
    assert sorted(hub.sent) == [f"someone/sd3/transformer/{file}" for file in files]


# Training and prediction


def test_four_bits_are_in_the_header_and_the_summary_and_a_resumed_run_is_exact(trained, sd3, diode, tmp_path, capsys):
    assert read_lora(trained).metadata["base_precision"] == "nf4"
    for steps in (2, 4):
        more = ["--base_precision", "nf4", "--max_train_steps", steps, "--resume_from_checkpoint", "latest"]
        run_here(SINGLE, words(diode, sd3, tmp_path / "cut", *more))
    assert distance(trained, tmp_path / "cut") == 0 and losses(trained) == losses(tmp_path / "cut")
    shown = capsys.readouterr().out
    assert "frozen parts in torch.float32, the network's linear layers in nf4" in shown
    everything = sum(parameter.numel() for parameter in open_base(str(sd3)).network.parameters())
    count, share = re.search(r"rank 2: ([\d,]+) parameters, ([\d.]+) % of the network", shown).groups()
    count = int(count.replace(",", ""))
    assert float(share) == round(100 * count / (everything + count), 2), "of all weights, not of all bytes"


@pytest.mark.parametrize("now", [[], ["--base_precision", "int8"]])
def test_a_run_is_not_resumed_on_a_network_of_another_precision(now, trained, sd3, diode):
    more = [*now, "--max_train_steps", 6, "--resume_from_checkpoint", "latest"]
    with pytest.raises(InputError, match=f"base_precision was 'nf4', now {'None' if not now else chr(39)}"):
        run_here(SINGLE, words(diode, sd3, trained, *more))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_in_bf16_on_four_bits(name, diode, tmp_path):
    more = ["--base_precision", "nf4", "--mixed_precision", "bf16", "--max_train_steps", 6, "--lora_targets", "all"]
    more += ["--gradient_checkpointing", "--validation_steps", 6, "--ema_decay", 0.9]
    run_here(SINGLE, words(diode, tiny_families.save(name, tmp_path / name), tmp_path / "run", *more))
    found = losses(tmp_path / "run")
    assert np.isfinite(list(found.values())).all() and found[6] < found[1]


def test_augunet_trains_on_eight_bits_and_predicts(flags, tmp_path):
    more = ["--base_precision", "int8", "--max_train_steps", "1", "--validation_steps", "0"]
    run_here(AUGUNET, flags(AUGUNET, tmp_path / "run", *more))
    assert read_lora(tmp_path / "run").metadata["base_precision"] == "int8"
    photo = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    found = Predictor(tmp_path / "run", base_precision="int8", steps=1)(photo)["normal"].values
    assert np.isfinite(found).all()


def test_prediction_on_the_precision_of_training_is_what_was_trained(trained, sd3, capsys):
    base = open_base(str(sd3), precision="nf4")
    load_attn_procs(base.network, trained)
    method = SingleStep(base, base.encode_prompt("surface normal"), base.timestep())
    rgb = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    predictor = Predictor(trained, base_precision="nf4")
    assert "was trained on a network in" not in capsys.readouterr().out
    with torch.no_grad():
        expected = method.predict(base.network, rgb)
        assert torch.equal(predictor._pass(rgb, None, predictor.adapters)["normal"], expected)
    whole = Predictor(trained)
    note = f"{trained} was trained on a network in nf4, predicting with one in 16 or 32 bits (--base_precision)"
    assert note in capsys.readouterr().out
    assert not torch.equal(whole._pass(rgb, None, whole.adapters)["normal"], expected)


def test_what_quantised_weights_cannot_do_is_refused(trained, sd3):
    base = open_base(str(sd3), precision="int8")
    load_attn_procs(base.network, trained)
    with pytest.raises(InputError, match="a LoRA cannot be merged into quantised weights"):
        fuse_lora(base.network)
    with pytest.raises(InputError, match="--compile: not tried with --base_precision; leave one out"):
        compile_unet(base.network, torch.device("cpu"))
    state, header, _ = read_lora(trained)
    other = trained.parent / "depth.safetensors"
    save_file(state, other, header | {"task": "depth", "prompt": "depth map", "polarity": "near is large"})
    with pytest.raises(InputError, match="--base_precision=nf4: 2 LoRAs, and only one fits"):
        Predictor([trained, other], base_precision="nf4")
