"""bfloat16 on a CPU: its attention in training, and a note with the fix where it is emulated."""

import subprocess
import sys

import pytest
import torch
from helpers import ROOT, run_here

from miniworld.pretraining.random_sd import build_unet
from utils.lora import add_lora
from utils.system.compute import AttentionByKeys, choose_attention, warn_of_slow_bf16

SCRIPT = "sd_single_diode_pseudo_normal.py"
SAID = "note: this CPU emulates bfloat16"


@pytest.mark.skipif(not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="needs an x86 CPU with AVX2")
def test_a_cpu_held_to_avx2_is_known_as_slow():
    ask = "from utils.system.compute import slow_bf16; print(slow_bf16('cpu'), slow_bf16('cuda'))"
    words = ["env", "ATEN_CPU_CAPABILITY=avx2", sys.executable, "-c", ask]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.split() == ["True", "False"]


@pytest.mark.parametrize(("emulated", "said"), [(True, True), (False, False)])
def test_a_gpu_before_ampere_is_known_as_slow(emulated, said, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    supported = lambda including_emulation=True: including_emulation or not emulated  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    warn_of_slow_bf16(torch.bfloat16, "cuda", "--mixed_precision fp16")
    warn_of_slow_bf16(torch.float16, "cuda", "--mixed_precision fp16")
    assert capsys.readouterr().out.count("this GPU emulates bfloat16; fp16 is fast on it") == said


@pytest.mark.parametrize(("units", "precision", "said"), [
    ("AVX2", "bf16", True), ("AVX2", "no", False), ("AVX512", "bf16", False),
])  # fmt: skip
def test_a_training_reports_it(units, precision, said, flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: units)
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", 1, "--mixed_precision", precision))
    out = "".join(capsys.readouterr())
    assert (SAID in out) == said and ("--mixed_precision no" in out) == said


@pytest.fixture
def attentive():
    """A UNet with a LoRA, in bf16, and a function of it: -> (output, the LoRA's gradients)."""
    unet = build_unet().requires_grad_(False).to(torch.bfloat16)
    parameters = add_lora(unet, 4)
    torch.manual_seed(0)
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.05)
    z, text = torch.randn(2, 4, 16, 16), torch.randn(2, 77, unet.config.cross_attention_dim)

    def run(dtype=torch.bfloat16):
        unet.to(dtype)  # the LoRA's own weights are fp32 in training, which makes no difference here
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = unet(z.to(dtype), 400, text.to(dtype)).sample.float()
        out.square().mean().backward()
        grads = torch.cat([parameter.grad.float().flatten() for parameter in parameters])
        for parameter in parameters:
            parameter.grad = None
        return out.detach(), grads

    return unet, run


def off(values, truth):
    return ((values - truth).norm() / truth.norm()).item()


def test_attention_that_trains_in_bf16_on_a_cpu_is_as_exact_as_the_fused_one(attentive):
    unet, run = attentive
    fused = run()
    choose_attention(unet, torch.device("cpu"), torch.bfloat16)
    products = run()
    assert not torch.equal(products[1], fused[1])  # another kernel
    truth = run(torch.float32)
    for found, before, exact in zip(products, fused, truth):
        assert off(found, exact) < 1.5 * off(before, exact) < 0.1


def test_other_trainings_and_predictions_keep_the_fused_attention(attentive):
    unet, _ = attentive
    own = dict(unet.attn_processors)
    choose_attention(unet, torch.device("cuda"), torch.bfloat16)
    choose_attention(unet, torch.device("cpu"), torch.float32)
    assert unet.attn_processors == own
    z, text = torch.randn(1, 4, 16, 16).bfloat16(), torch.randn(1, 77, unet.config.cross_attention_dim).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = unet(z, 400, text).sample
        choose_attention(unet, torch.device("cpu"), torch.bfloat16)
        assert all(isinstance(one, AttentionByKeys) for one in unet.attn_processors.values())
        assert torch.equal(unet(z, 400, text).sample, before)
