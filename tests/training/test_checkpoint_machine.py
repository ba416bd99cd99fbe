"""Checkpoints under any sequence of saving, pruning, kills, damage and resuming (Hypothesis' state machine)."""

import contextlib
import copy
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers import random_lora
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from miniworld.pretraining.random_sd import build_unet
from utils.errors import InputError
from utils.lora import SAFETENSORS, load_attn_procs
from utils.system import atomic
from utils.training import checkpoint

UNET = build_unet(channels=(32, 64, 64))
load_attn_procs(UNET, random_lora(UNET))
PLACES = [f"utils.training.checkpoint.{name}" for name in ("seal", "save_lora", "sync")]
PLACES += ["torch.save", "pathlib.Path.replace", "shutil.rmtree"]
FILES = [checkpoint.STATE, SAFETENSORS, atomic.MANIFEST]


class Killed(BaseException):
    """Nothing on the way may catch it."""


class Steps:
    """A part of a run: how many steps it has seen."""

    def __init__(self):
        self.seen = 0

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


@contextlib.contextmanager
def killed_at(place: str, number: int, before: bool):
    """Raise Killed at the `number`-th call of `place`: before it, or after it."""
    module, _, name = place.rpartition(".")
    owner = Path if module == "pathlib.Path" else __import__(module, fromlist=[name])
    real, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == number and before:
            raise Killed
        result = real(*args, **kwargs)
        if len(calls) == number:
            raise Killed
        return result

    with mock.patch.object(owner, name, call):
        yield


class Checkpoints(RuleBasedStateMachine):
    """`good`: steps with an undamaged checkpoint, as this class knows them. The LoRA's weights are all step / 100."""

    def __init__(self):
        super().__init__()
        self.folder, self.unet, self.steps = Path(tempfile.mkdtemp()), copy.deepcopy(UNET), Steps()
        self.good: set[int] = set()
        self.set_weights()

    def set_weights(self) -> None:
        with torch.no_grad():
            for weight in self.lora():
                weight.fill_((1 + self.steps.seen) / 100)

    def lora(self) -> list[torch.Tensor]:
        return [weight for name, weight in self.unet.named_parameters() if "lora_" in name]

    @rule(number=st.integers(1, 3))
    def train(self, number):
        self.steps.seen += number
        self.set_weights()

    def save(self, limit):
        seen = self.steps.seen
        return checkpoint.save(self.folder, seen, seen, self.unet, {"steps": self.steps}, {}, {}, limit)

    @rule(limit=st.none() | st.integers(1, 3))
    def save_and_prune(self, limit):
        assert self.save(limit) == self.folder / f"checkpoint-{self.steps.seen}"
        there = {checkpoint.step_of(path) for path in checkpoint.find(self.folder)}
        self.good = (self.good | {self.steps.seen}) & there
        later = {step for step in there if step > self.steps.seen}  # a run's that got further, before a resume
        assert self.steps.seen in there or later
        assert limit is None or len(there) <= limit
        assert [path for path in self.folder.iterdir() if path.name.startswith(".")] == []

    @rule(place=st.sampled_from(PLACES), number=st.integers(1, 3), before=st.booleans(), limit=st.integers(1, 3))
    def killed_while_saving(self, place, number, before, limit):
        if self.steps.seen in self.good:
            self.train(1)  # as after every resume: a good checkpoint is never replaced
        newest = max(self.good, default=None)
        with contextlib.suppress(Killed), killed_at(place, number, before):
            self.save(limit)
        there = {checkpoint.step_of(path) for path in checkpoint.find(self.folder)}
        if self.steps.seen in there and not atomic.damage(self.folder / f"checkpoint-{self.steps.seen}"):
            self.good.add(self.steps.seen)
        self.good &= there
        assert newest is None or max(self.good, default=-1) >= min(newest, self.steps.seen), "lost by a kill"

    @rule(file=st.sampled_from(FILES), how=st.sampled_from(["flip", "cut", "gone"]), which=st.integers(0, 3))
    def damage(self, file, how, which):
        folders = checkpoint.find(self.folder)
        if not folders:
            return
        folder = folders[-1 - which % len(folders)]
        path = folder / file
        content = path.read_bytes() if path.is_file() else b""
        if not content:
            return
        flipped = content[:50] + bytes([content[50] ^ 1]) + content[51:]
        path.unlink() if how == "gone" else path.write_bytes(content[: len(content) // 2] if how == "cut" else flipped)
        self.good.discard(checkpoint.step_of(folder))

    @rule()
    def resume(self):
        self.steps.seen = -1
        self.set_weights()
        if not self.good and checkpoint.find(self.folder):
            try:
                checkpoint.choose(self.folder, "latest")
            except InputError as error:
                assert "all of its" in str(error)
            else:
                raise AssertionError("damaged checkpoints were taken")
            shutil.rmtree(self.folder)  # what the message asks for
            self.folder.mkdir()
        chosen = checkpoint.choose(self.folder, "latest")
        if chosen is None:
            assert not self.good
            self.steps.seen = 0
            self.set_weights()
            return
        step = max(self.good)
        assert chosen.name == f"checkpoint-{step}"
        assert checkpoint.load(chosen, self.unet, {"steps": self.steps}, {}) == (step, step)
        assert self.steps.seen == step
        assert all((weight == torch.tensor((1 + step) / 100)).all() for weight in self.lora())

    @invariant()
    def whatever_is_listed_and_undamaged_is_known(self):
        listed = {checkpoint.step_of(path) for path in checkpoint.find(self.folder) if not atomic.damage(path)}
        assert listed == self.good

    def teardown(self):
        shutil.rmtree(self.folder)


TestCheckpoints = pytest.mark.slow(Checkpoints.TestCase)
TestCheckpoints.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
