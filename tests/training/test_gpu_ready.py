"""What a training step asks of a GPU, counted without one: PyTorch's meta device has shapes, dtypes and kernels, and
no numbers, so whatever needs a number on the host is seen here.
"""

import importlib
import sys
from collections import Counter

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from helpers import distance, lora, records, run_here
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import utils.training.loop as loop
from utils.errors import InputError
from utils.objectives import SingleStep
from utils.system.compute import move_frozen
from utils.training.state import TrainingState

SINGLE, AUGUNET = "sd_single_diode_pseudo_normal.py", "augunet_diode_pseudo_normal.py"
VIEWS = {"view", "expand", "t", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze", "detach", "alias",
         "_unsafe_view", "split", "chunk", "as_strided", "lift_fresh", "empty", "empty_like", "empty_strided",
         "_reshape_alias", "unbind", "new_empty", "new_empty_strided", "split_with_sizes", "diagonal"}  # fmt: skip


class Counted(TorchDispatchMode):
    """Kernels on the meta device, and copies that the host waits for (`waits`) or doesn't (`copies`), by operation.

    A number that the host reads is 0.5, a tensor that it reads is zeros.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.waits, self.copies = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        if "meta" in devices and name == "_local_scalar_dense":
            self.waits[name] += 1
            return 0.5 if args[0].is_floating_point() else 1
        target = kwargs.get("device") if name == "_to_copy" else args[0].device if name == "copy_" else None
        source = args[1 if name == "copy_" else 0].device if target is not None else None
        if target is not None and "meta" in (target.type, source.type) and target.type != source.type:
            late = kwargs.get("non_blocking", len(args) > 2 and args[2])
            (self.copies if late else self.waits)[f"{source.type} to {target.type}"] += 1
            if source.type == "meta":
                return (
                    args[0]
                    if name == "copy_"
                    else torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
                )
        if name == "_fused_adamw_" and "meta" in devices:
            self.kernels[name] += 1
            return None
        result = function(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if outputs and outputs[0].device.type == "meta" and name not in VIEWS:
            self.kernels[name] += 1
        return result


@pytest.fixture
def moved() -> list[str]:
    """Devices that the frozen network was moved to."""
    return []


@pytest.fixture
def on_meta(monkeypatch, moved):
    """A training on the meta device: `on_meta(script, words)` -> a Counted for every optimiser step."""

    def run(script: str, words: list[str]) -> list[Counted]:
        counted, found = Counted(), []
        update = TrainingState.update

        def step(self, usable):
            update(self, usable)
            found.append(Counted())
            for name in ("kernels", "waits", "copies"):
                setattr(found[-1], name, getattr(counted, name).copy())
                getattr(counted, name).clear()

        monkeypatch.setattr(TrainingState, "update", step)
        monkeypatch.setattr(loop, "runs_ahead", lambda kind: True)
        monkeypatch.setattr(loop, "move_frozen", lambda network, device: moved.append(str(device)))
        monkeypatch.setattr(
            sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"]
        )

        def context(native, handler):  # the meta device has no autocast
            assert native is False or handler.enabled is False
            return torch.autocast("cpu", enabled=False)

        monkeypatch.setattr("accelerate.accelerator.get_mixed_precision_context_manager", context)
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        PartialState(cpu=True)
        PartialState._shared_state["device"] = torch.device("meta")
        with counted:
            importlib.import_module(script.removesuffix(".py")).main(words)
        return found

    yield run
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def words_for(flags, script, folder, *more):
    return flags(script, folder, "--validation_steps", 0, "--checkpointing_steps", 100, "--max_train_steps", 5, *more)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(("script", "uploads"), [(SINGLE, 4), (AUGUNET, 6)])
def test_a_step_never_makes_the_host_wait(script, uploads, precision, on_meta, flags, tmp_path):
    for step in on_meta(script, words_for(flags, script, tmp_path / "run", "--mixed_precision", precision))[2:-1]:
        assert not step.waits
        assert step.copies == {"cpu to meta": uploads, "meta to cpu": 1}  # up: latents and noise; down: the report
        # without autocast, half precision adds the casts of the LoRA's weights, two kernels for each of 64 layers'
        # two weights and their gradients, and few others
        assert step.kernels.total() < (2150 if precision == "bf16" else 1800)


def test_the_network_is_off_the_device_while_images_are_encoded(on_meta, moved, flags, tmp_path, monkeypatch):
    cached = loop.cached_or_not
    monkeypatch.setattr(loop, "cached_or_not", lambda *args: moved.append("encoding") or cached(*args))
    on_meta(SINGLE, words_for(flags, SINGLE, tmp_path / "run"))
    assert moved == ["cpu", "encoding", "meta"]


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
