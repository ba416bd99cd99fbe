"""bfloat16 on a CPU that emulates it: a note with the fix."""

import subprocess
import sys

import pytest
import torch
from helpers import ROOT, run_here

from utils.system.compute import warn_of_slow_bf16

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
