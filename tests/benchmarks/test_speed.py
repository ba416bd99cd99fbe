"""Optimisations change no result: compiled code, and the two sides of every benchmark."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers import fork, losses, run_here
from PIL import Image

import inference_sd_single
from benchmarks import inference, train_step
from utils.base_model.stable_diffusion import load_base
from utils.errors import InputError
from utils.lora import add_lora, lora_parameters, save_lora
from utils.system import compute
from utils.training import checkpoint

compiles = pytest.mark.skipif(" " in torch.__file__, reason="torch.compile needs a path to PyTorch without spaces")


@pytest.fixture(scope="module")
def small(bases, tmp_path_factory):
    """A base whose UNet has one level: minutes less to compile."""
    folder = tmp_path_factory.mktemp("small") / "base"
    shutil.copytree(bases["sd15"], folder)
    config = UNet2DConditionModel.load_config(bases["sd15"], subfolder="unet")
    config |= {"block_out_channels": (32,), "layers_per_block": 1, "mid_block_type": None}
    config |= {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    return folder


@pytest.mark.slow
@compiles
def test_compiled_training_is_the_same(flags, small, tmp_path, capsys):
    script = "sd_single_diode_pseudo_normal.py"
    more = ("--pretrained_model_name_or_path", small, "--max_train_steps", 3, "--learning_rate", 1e-2)
    run_here(script, flags(script, tmp_path / "plain", *more))
    assert "UNet is compiled" not in capsys.readouterr().out
    run_here(script, flags(script, tmp_path / "compiled", *more, "--compile"))
    assert "UNet is compiled in its first pass" in capsys.readouterr().out
    first, second = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert len(first) == 3 and first.keys() == second.keys()
    assert max(abs(first[step] - second[step]) for step in first) < 1e-3


@pytest.mark.slow
@compiles
def test_compiled_inference_draws_the_same(small, tmp_path, capsys):
    unet = load_base(str(small)).unet
    add_lora(unet, 2)
    save_lora(unet, tmp_path / "lora", {"method": "single-step", "task": "albedo", "resolution": 32})
    (tmp_path / "images").mkdir()
    for index, colour in enumerate(["red", "teal", "olive"]):
        Image.new("RGB", (40, 32), colour).save(tmp_path / "images" / f"{index}.png")
    drawn = []
    for more in ([], ["--compile"]):
        out = tmp_path / f"out{len(more)}"
        words = ["--lora", tmp_path / "lora", "--input_dir", tmp_path / "images", "--output_dir", out, *more]
        words += ["--center_crop"]
        inference_sd_single.main([str(w) for w in (*words, "--pretrained_model_name_or_path", small)])
        drawn.append(np.stack([np.asarray(Image.open(file)) for file in sorted(out.rglob("*.png"))]).astype(int))
    assert "UNet is compiled" in capsys.readouterr().out
    assert drawn[0].shape == (3, 32, 32, 3) and np.abs(drawn[0] - drawn[1]).max() <= 1


@pytest.mark.parametrize(
    ("place", "fix"),
    [("/env/torch/__init__.py", r"apt install g\+\+"), ("/my env/torch/__init__.py", "path with a space")],
)
def test_a_failing_compiler_is_reported_with_a_fix(place, fix, monkeypatch):
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    monkeypatch.setattr(compute, "TORCH", place)
    torch._dynamo.reset()
    broken = config.patch({"cpp.cxx": ("no-such-compiler",)})
    with broken, pytest.raises(InputError, match=rf"--compile: this machine cannot .*{fix}"):
        compute.compile_unet(torch.nn.Linear(2, 2), torch.device("cpu"))


def test_a_checkpoint_does_not_grow_with_the_base(tmp_path):
    """Two UNets with the same attention layers, one of them 40 times as large: checkpoints of the same bytes."""
    sizes, weights = [], []
    for width in (32, 512):
        unet = UNet2DConditionModel(
            block_out_channels=(32, width), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            mid_block_type=None, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=8, cross_attention_dim=32,
        )  # fmt: skip
        optimizer = torch.optim.AdamW(add_lora(unet, 4))
        lora_parameters(unet)[0].sum().backward()
        optimizer.step()
        folder = checkpoint.save(tmp_path / str(width), 1, 1, unet, {"optimizer": optimizer}, {}, {})
        sizes.append(sum(file.stat().st_size for file in folder.iterdir()))
        weights.append(sum(parameter.numel() for parameter in unet.parameters()))
    assert weights[1] > 40 * weights[0] and abs(sizes[1] - sizes[0]) < 200


@pytest.mark.slow
def test_what_grows_is_measured_by_real_runs(tmp_path):
    words = ["--work", tmp_path, "--counts", 120, "--rounds", 1, "--steps", 8, "--bases", "tiny"]
    done = fork("-m", "benchmarks.growth", *words, "--output", tmp_path / "numbers.json")
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["images"]["120"]["step"]["median"] > 0 and "| 120 | " in done.stdout
    assert numbers["checkpoints"]["tiny"]["checkpoint_bytes"] < 5 * numbers["checkpoints"]["tiny"]["lora_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["train_step", "inference"])
def test_a_benchmark_runs_as_documented(module, bases, tmp_path):
    words = ["--base", bases["sd15"], "--resolution", 32, "--batch", 2, "--rounds", 1]
    words += ["--output", tmp_path / "numbers.json"]
    done = fork("-m", f"benchmarks.{module}", *words)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["released"]["flop"] > numbers["ours"]["flop"] > 0
    assert numbers["speedup"]["median"] > 0 and "| released |" in done.stdout and "threads" in done.stdout


def test_both_sides_of_the_training_benchmark_train_the_same(bases, monkeypatch):
    """From the same latents, released and ours see the same loss: the mode stands for the sample in both."""
    args = train_step.parser().parse_args(["--base", str(bases["sd15"]), "--resolution", "32", "--batch", "2"])
    seen = {}
    for name, make in train_step.MAKERS.items():
        monkeypatch.setattr(train_step, "descend", lambda loss, *_, name=name: seen.update({name: loss.item()}))
        seen.setdefault(name, make(args, "cpu")())  # ours returns its loss
    assert abs(seen["released"] - seen["ours"]) < 0.02 * seen["released"]


def test_both_sides_of_the_inference_benchmark_draw_the_same(bases, tmp_path, monkeypatch):
    """To one grey level: so a fused LoRA predicts the same as a separate one."""
    words = ["--base", str(bases["sd15"]), "--resolution", "32", "--batch", "3", "--images", "5"]
    args = inference.parser().parse_args(words)
    drawn = []
    for name, make in inference.MAKERS.items():
        (tmp_path / name).mkdir()
        monkeypatch.setattr(inference.tempfile, "mkdtemp", lambda name=name: str(tmp_path / name))
        make(args, "cpu")()
        files = sorted((tmp_path / name / "out").rglob("*.png"))
        drawn.append(np.stack([np.asarray(Image.open(file)) for file in files]).astype(int))
    assert drawn[0].shape == (5, 32, 32, 3) and drawn[0].std() > 5
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
