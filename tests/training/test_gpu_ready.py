"""Demands of a training step on a GPU, counted without one: PyTorch's meta device has shapes, dtypes and kernels, and
no numbers, so whatever needs a number on the host is seen here.
"""

import importlib
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from helpers import distance, lora, records, run_here
from torch import nn

import utils.training.loop as loop
from benchmarks import counted, train_step
from utils.errors import InputError
from utils.objectives import SingleStep
from utils.system.compute import move_frozen
from utils.training import cache
from utils.training.state import TrainingState

SINGLE, AUGUNET = "sd_single_diode_pseudo_normal.py", "augunet_diode_pseudo_normal.py"


class Counts(NamedTuple):
    """Of one optimiser step; see `counted.Counted`."""

    kernels: Counter[str]
    waits: Counter[str]
    copies: Counter[str]


@pytest.fixture
def moved() -> list[str]:
    """Devices that the frozen network was moved to."""
    return []


@pytest.fixture
def on_meta(monkeypatch, moved):
    """A training on the meta device: `on_meta(script, words)` -> its counts for every optimiser step."""

    def run(script: str, words: list[str]) -> list[Counts]:
        found = []
        update = TrainingState.update

        def step(self, usable):
            update(self, usable)
            found.append(Counts(*(getattr(counts, name).copy() for name in Counts._fields)))
            for name in Counts._fields:
                getattr(counts, name).clear()

        monkeypatch.setattr(TrainingState, "update", step)
        monkeypatch.setattr(loop, "move_frozen", lambda network, device: moved.append(str(device)))
        with counted.on_meta() as counts:
            importlib.import_module(script.removesuffix(".py")).main(words)
        return found

    return run


@pytest.fixture(scope="module")
def counted_once() -> dict[tuple[str, str], list[Counts]]:
    """(script, precision) -> counts of a training's steps, for several tests: counting takes seconds."""
    return {}


@pytest.fixture
def steps_of(on_meta, counted_once, flags, tmp_path):
    """(script, precision) -> the counts of a training's steps."""

    def of(script: str, precision: str) -> list[Counts]:
        if (script, precision) not in counted_once:
            words = words_for(flags, script, tmp_path / "run", "--mixed_precision", precision, "--rank", 8)
            counted_once[script, precision] = on_meta(script, words)
        return counted_once[script, precision]

    return of


def words_for(flags, script, folder, *more):
    return flags(script, folder, "--validation_steps", 0, "--checkpointing_steps", 100, "--max_train_steps", 5, *more)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(("script", "uploads"), [(SINGLE, 4), (AUGUNET, 6)])
def test_a_step_never_makes_the_host_wait(script, uploads, precision, steps_of):
    for step in steps_of(script, precision)[2:-1]:
        assert not step.waits
        assert step.copies == {"cpu to meta": uploads, "meta to cpu": 1}  # up: latents and noise; down: the report
        # without autocast, half precision adds the casts of the LoRA's weights, two kernels for each of 64 layers'
        # two weights and their gradients, and few others
        assert step.kernels.total() < (2150 if precision == "bf16" else 1800)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(("script", "method", "base"), [(SINGLE, "single", "sd15"), (AUGUNET, "augunet", "sd21")])
def test_the_benchmarks_step_is_the_loops(script, method, base, precision, steps_of, bases):
    loops = steps_of(script, precision)[2]
    words = ["--base", bases[base], "--method", method, "--resolution", 32, "--batch", 2]
    words += ["--dtype", "fp32" if precision == "no" else precision]
    found = counted.count(train_step.our_step, train_step.parser().parse_args(list(map(str, words))))
    assert (found["kernels"], found["host_waits"]) == (loops.kernels.total(), loops.waits.total())


def test_the_network_is_off_the_device_while_images_are_encoded(on_meta, moved, flags, tmp_path, monkeypatch):
    encode = cache.encode
    monkeypatch.setattr(cache, "encode", lambda *args: moved.append("encoding") or encode(*args))
    more = ("--cache_dir", tmp_path / "cache", "--max_train_steps", 1)
    on_meta(SINGLE, words_for(flags, SINGLE, tmp_path / "run", *more))
    assert moved == ["cpu", "encoding", "meta"]
    moved.clear()
    on_meta(SINGLE, words_for(flags, SINGLE, tmp_path / "again", *more))
    assert "cpu" not in moved and "encoding" not in moved  # the cache is complete: the network stays where it is


def test_moving_the_frozen_network_leaves_what_trains_alone():
    network = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    before = {name: (id(one), one.data_ptr()) for name, one in network.named_parameters()}
    move_frozen(network, torch.device("cpu"))
    assert before == {name: (id(one), one.data_ptr()) for name, one in network.named_parameters()}
    with pytest.raises(RuntimeError, match="incompatible tensor type"):  # it would have to move the frozen ones
        move_frozen(network, torch.device("meta"))
    move_frozen(network[1], torch.device("meta"))
    assert network[1].weight.device.type == "cpu"


@pytest.fixture
def late(monkeypatch):
    """`late(True)`: the loop reads a step's result one step later, as it does on a GPU."""
    return lambda on: monkeypatch.setattr(loop, "runs_ahead", lambda kind: on)


def scalars(folder):
    return [{key: value for key, value in one.items() if key != "samples_per_second"} for one in records(folder)]


@pytest.mark.parametrize("script", [SINGLE, AUGUNET])
def test_reading_a_step_late_trains_the_same(script, late, flags, tmp_path):
    more = ["--ema_decay", 0.9, "--gradient_accumulation_steps", 2, "--lr_scheduler", "cosine", "--lr_warmup_steps", 2]
    words = [
        "--max_train_steps",
        7,
        "--checkpointing_steps",
        3,
        "--validation_steps",
        4,
        "--learning_rate",
        1e-2,
        *more,
    ]
    for on in (False, True):
        late(on)
        run_here(script, flags(script, tmp_path / str(on), *words))
    assert distance(tmp_path / "True", tmp_path / "False") == 0
    assert scalars(tmp_path / "True") == scalars(tmp_path / "False")
    late(True)
    run_here(script, flags(script, tmp_path / "resumed", *words[2:], "--max_train_steps", 3))
    run_here(script, flags(script, tmp_path / "resumed", *words, "--resume_from_checkpoint", "latest"))
    assert distance(tmp_path / "resumed", tmp_path / "False") == 0


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_the_step_that_is_not_finite_is_the_one_that_is_skipped(bad, late, flags, tmp_path, monkeypatch):
    original, calls = SingleStep.loss, []

    def loss(self, *args):
        value = original(self, *args)
        calls.append(1)
        if len(calls) % 5 != 3:
            return value
        if bad == "loss":
            return value * float("nan")
        value.register_hook(lambda gradient: gradient * float("inf"))
        return value

    monkeypatch.setattr(SingleStep, "loss", loss)
    words = ["--max_train_steps", 5, "--learning_rate", 1e-2, "--lr_scheduler", "linear", "--ema_decay", 0.9]
    for on in (False, True):
        late(on)
        run_here(SINGLE, flags(SINGLE, tmp_path / str(on), *words))
    assert distance(tmp_path / "True", tmp_path / "False") == 0
    assert scalars(tmp_path / "True") == scalars(tmp_path / "False")
    found = [one for one in scalars(tmp_path / "True") if "train_loss" in one]
    assert [one.get("skipped_updates") for one in found] == [None, None, 1, None, None]
    rates = [one["lr"] for one in found]
    assert rates[2] == rates[3] > rates[4]  # the schedule moves with the updates
    assert all(torch.isfinite(value).all() for value in lora(tmp_path / "True").values())


@pytest.mark.parametrize("on", [False, True])
def test_a_run_of_bad_steps_ends_at_the_limit(on, late, flags, tmp_path, monkeypatch):
    original = SingleStep.loss
    monkeypatch.setattr(SingleStep, "loss", lambda self, *args: original(self, *args) * float("nan"))
    late(on)
    with pytest.raises(InputError, match=r"step 3: loss nan.*as many as --max_nonfinite allows"):
        run_here(SINGLE, flags(SINGLE, tmp_path / "run", "--max_train_steps", 9, "--max_nonfinite", 3))


@pytest.mark.parametrize("on", [False, True])
def test_a_stop_signal_ends_the_run_with_a_checkpoint_of_its_last_step(on, late, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop.signals, "stop_requested", lambda: "SIGTERM")
    late(on)
    run_here(SINGLE, flags(SINGLE, tmp_path / "run", "--max_train_steps", 9, "--no_cache_latents"))
    step = 2 if on else 1  # a GPU has begun the next one
    assert f"stopped after step {step} of 9 by SIGTERM" in capsys.readouterr().out
    assert [one["step"] for one in records(tmp_path / "run")] == list(range(1, step + 1))
    assert (tmp_path / "run" / f"checkpoint-{step}").is_dir()


@pytest.fixture
def half_on_cpu(monkeypatch):
    """`half_on_cpu(scale)`: fp16 as a GPU trains in it, with weights in fp16, no autocast and a gradient scaler that
    begins with `scale`. It is slow on a CPU, where accelerate therefore refuses it.
    """

    def begin(scale: float) -> None:
        class Accelerator(loop.Accelerator):
            def __init__(self, mixed_precision, **arguments):
                super().__init__(mixed_precision="no", **arguments)
                self.scaler, self.native_amp = torch.amp.GradScaler("cpu", init_scale=scale), True
                self.state._shared_state["_mixed_precision"] = self.state._mixed_precision = mixed_precision

        monkeypatch.setattr(loop, "Accelerator", Accelerator)
        monkeypatch.setattr(loop, "autocasts", lambda kind: False)
        context = "accelerate.accelerator.get_mixed_precision_context_manager"
        monkeypatch.setattr(context, lambda native, handler: torch.autocast("cpu", enabled=False))

    return begin


HALF = ["--mixed_precision", "fp16", "--max_nonfinite", 2, "--validation_steps", 0, "--num_train_imgs", 4]


def test_an_overflow_in_fp16_is_the_scalers_and_not_bad_data(half_on_cpu, flags, tmp_path, capsys):
    run_here(
        SINGLE,
        flags(SINGLE, tmp_path / "fp32", "--max_train_steps", 1, "--validation_steps", 0, "--num_train_imgs", 4),
    )
    capsys.readouterr()
    half_on_cpu(2.0**33)
    run_here(SINGLE, flags(SINGLE, tmp_path / "run", "--max_train_steps", 18, *HALF))
    steps = records(tmp_path / "run")
    overflows = [one["step"] for one in steps if one["grad_norm"] is None]
    assert overflows == list(range(1, len(overflows) + 1)) and 3 <= len(overflows) < 18
    assert "in the batch" not in capsys.readouterr().err
    norms = [one["grad_norm"] for one in steps if one["grad_norm"] is not None]
    assert 0.2 < norms[0] / records(tmp_path / "fp32")[0]["grad_norm"] < 5  # unscaled; of other images


def test_gradients_that_no_scale_makes_finite_end_a_run_in_fp16(half_on_cpu, flags, tmp_path, monkeypatch):
    original = SingleStep.loss

    def loss(self, *args):
        value = original(self, *args)
        value.register_hook(lambda gradient: gradient * float("inf"))
        return value

    monkeypatch.setattr(SingleStep, "loss", loss)
    half_on_cpu(4.0)
    with pytest.raises(InputError, match=r"step 4: loss \d\.\d+, gradient norm (nan|inf), update skipped \(2 in"):
        run_here(SINGLE, flags(SINGLE, tmp_path / "run", "--max_train_steps", 15, *HALF))
