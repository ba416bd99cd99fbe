"""Failures during a run: damaged checkpoints, full disks, signals, NaN, changed settings, ranks."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from helpers import PATIENCE, ROOT, distance, fork, launch, lora, losses, records, run_here, wait_for

from dataloaders.diode import Diode
from miniworld.pretraining.random_sd import build_unet
from utils.errors import InputError
from utils.intrinsics import NORMAL
from utils.lora import SAFETENSORS, add_lora
from utils.objectives import SingleStep
from utils.system import atomic, signals
from utils.training import checkpoint, loop
from utils.training.data import EndlessBatches
from utils.training.state import Skipped

SCRIPT = "sd_single_diode_pseudo_normal.py"
RESUME = ["--resume_from_checkpoint", "latest"]


@pytest.fixture(scope="module")
def unet():
    made = build_unet(channels=(32, 64, 64))
    add_lora(made, rank=2)
    return made


@pytest.fixture
def saved(unet, tmp_path):
    """A folder with checkpoint-1, -2, -3 and what it takes to load them."""
    state = {"optimizer": torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad])}
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, step, unet, state, {}, {"steps": step})
    return tmp_path, unet, state


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut": lambda folder: os.truncate(folder / checkpoint.STATE, 1000),
    "empty": lambda folder: os.truncate(folder / checkpoint.STATE, 0),
    "one bit of the optimiser": lambda folder: flip(folder / checkpoint.STATE),
    "one bit of the LoRA": lambda folder: flip(folder / SAFETENSORS),
    "no LoRA": lambda folder: (folder / SAFETENSORS).unlink(),
    "no manifest": lambda folder: (folder / atomic.MANIFEST).unlink(),
    "half a manifest": lambda folder: os.truncate(folder / atomic.MANIFEST, 40),
    "an empty manifest": lambda folder: (folder / atomic.MANIFEST).write_text("{}"),
    "no files": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over(name, saved, capsys):
    folder = saved[0]
    DAMAGES[name](folder / "checkpoint-3")
    assert checkpoint.choose(folder, "latest") == folder / "checkpoint-2"
    assert f"warning: {folder / 'checkpoint-3'} is damaged and skipped: " in capsys.readouterr().err
    with pytest.raises(InputError, match="checkpoint-3 is damaged"):
        checkpoint.choose(folder, "checkpoint-3")
    for step in (1, 2):
        DAMAGES[name](folder / f"checkpoint-{step}")
    with pytest.raises(InputError, match="all of its 3 checkpoints are damaged"):
        checkpoint.choose(folder, "latest")


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(saved):
    folder, unet, state = saved
    flip(folder / "checkpoint-3" / SAFETENSORS)
    checkpoint.save(folder, 3, 3, unet, state, {}, {})
    assert checkpoint.choose(folder, "latest") == folder / "checkpoint-3"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_what_a_killed_run_left_is_cleared(saved):
    folder, unet, state = saved
    shutil.copytree(folder / "checkpoint-3", folder / checkpoint.ASIDE.format(4))
    (folder / "checkpoint-1").replace(folder / checkpoint.GONE.format(1))  # killed while pruning
    assert checkpoint.choose(folder, "latest") == folder / "checkpoint-3"
    checkpoint.save(folder, 5, 5, unet, state, {}, {})
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-3", "checkpoint-5"]


def test_a_full_disk_costs_one_checkpoint(saved, capsys):
    """The system refuses to let a file grow past 100 kB, as a full disk does; pruning must then not happen."""
    folder, unet, state = saved
    state["more"] = type("More", (), {"state_dict": lambda self: {"x": torch.zeros(50_000)}})()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert checkpoint.save(folder, 4, 4, unet, state, {}, {}, limit=1) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = capsys.readouterr().err
    assert "checkpoint-4 could not be written" in told and "the last good one is checkpoint-3" in told
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert checkpoint.save(folder, 5, 5, unet, state, {}, {}, limit=1) == folder / "checkpoint-5"
    assert [path.name for path in checkpoint.find(folder)] == ["checkpoint-5"]


def test_metrics_survive_a_full_disk(tmp_path, capsys):
    from utils.training.tracking import append, read_metrics

    file, line = tmp_path / "metrics.jsonl", json.dumps({"step": 1, "x": "y" * 50}) + "\n"
    append(file, line)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(line) + 10, before[1]))
    try:
        append(file, line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could not be written" in capsys.readouterr().err
    append(file, line)
    assert file.read_text() == 2 * line and len(read_metrics(tmp_path)) == 2


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    atomic.lock(tmp_path)
    program = "from pathlib import Path; from utils import errors as e; from utils.system import atomic as d; "
    program += f"here = Path({str(tmp_path)!r})"
    done = fork("-c", f"{program}; e.run(lambda: d.lock(here))", check=False)
    assert done.returncode == 2 and "another process is training into it" in done.stderr


@pytest.mark.slow
def test_runs_that_are_killed_and_resumed_end_as_ones_that_were_not():
    """One kill in each way; `python -m tests.kill_lab --kills 100` does it in earnest, with all kinds of runs."""
    words = ["-m", "tests.kill_lab", "--kills", "6", "--kind", "workers", "--kind", "plain", "--kind", "two processes"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0 and "6 of 6 kills survived" in done.stdout, done.stdout + done.stderr


# stopping well


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Output folder of a run of 4 steps that nothing disturbed; made on first use."""
    made = []

    def build(flags):
        if not made:
            made.append(tmp_path_factory.mktemp("whole") / "run")
            run_here(SCRIPT, flags(SCRIPT, made[0], "--max_train_steps", 4))
        return made[0]

    return build


def in_step(monkeypatch, number: int, act) -> None:
    """Call `act` while the loss of step `number` (from 1) of the next run is computed."""
    calls, original = [], SingleStep.loss

    def loss(self, *args):
        calls.append(1)
        value = original(self, *args)
        changed = act() if len(calls) == number else None
        return value if changed is None else value * changed

    monkeypatch.setattr(SingleStep, "loss", loss)


@pytest.mark.parametrize("number", signals.STOPPING)
def test_a_signal_finishes_the_step_and_leaves_a_checkpoint(number, flags, whole, tmp_path, monkeypatch, capfd):
    handlers = [signal.getsignal(each) for each in signals.STOPPING]
    in_step(monkeypatch, 3, lambda: os.kill(os.getpid(), number))
    words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 4, *RESUME)
    run_here(SCRIPT, words)
    told = capfd.readouterr().out
    assert f"stopped after step 3 of 4 by {signal.Signals(number).name}; saved: checkpoint-3" in told
    assert "--resume_from_checkpoint latest" in told
    assert not (tmp_path / "run" / SAFETENSORS).exists(), "a LoRA that looks finished"
    assert [signal.getsignal(each) for each in signals.STOPPING] == handlers
    run_here(SCRIPT, words)
    assert distance(tmp_path / "run", whole(flags)) == 0 and losses(tmp_path / "run") == losses(whole(flags))


def test_a_second_signal_ends_at_once():
    program = (
        "import os, signal; from utils.system import signals; signals.listen()\n"
        "os.kill(os.getpid(), signal.SIGTERM); print('first', signals.stop_requested(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT); print('second')"
    )
    alone = fork("-c", program, env={"RANK": None}, check=False)
    assert alone.returncode == -signal.SIGINT and alone.stdout == "first SIGTERM\n"
    # under a launcher an echo of the first is not a second signal; however long this machine takes, it is an echo
    launched = fork("-c", "import utils; utils.ECHO = 1e9; " + program, env={"RANK": "0"})
    assert launched.stdout == "first SIGTERM\nsecond\n"


def steps_done(folder) -> int:
    return len(records(folder)) if (folder / "metrics.jsonl").exists() else 0


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_signals_under_accelerate_launch(processes, flags, tmp_path):
    """SIGTERM to the whole group, launcher and workers too, as schedulers send it: a checkpoint all the same."""
    words = [
        *flags(SCRIPT, tmp_path / "run", "--max_train_steps", 100_000, *RESUME),
        *("--dataloader_num_workers", "1"),
    ]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", str(ROOT / SCRIPT), *words]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
    wait_for(lambda: steps_done(tmp_path / "run") >= 3, lambda: process.poll() is None, log)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(PATIENCE)
    wait_for(lambda: "next: run the same command" in log.read_text(), output=log)  # the launcher may be gone before
    text = log.read_text()
    assert "by SIGTERM; saved: checkpoint-" in text and "Traceback" not in text, text
    last = checkpoint.find(tmp_path / "run")[-1]
    assert atomic.damage(last) is None and max(losses(tmp_path / "run")) == checkpoint.step_of(last)


@pytest.mark.slow
def test_a_launcher_alone_that_is_killed_stops_its_run(flags, tmp_path):
    words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 100_000)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", str(ROOT / SCRIPT), *words]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
    wait_for(lambda: steps_done(tmp_path / "run") >= 3, lambda: process.poll() is None, log)
    process.kill()
    process.wait()
    wait_for(lambda: "next: run the same command" in log.read_text(), output=log)
    assert checkpoint.newest(tmp_path / "run")


# numbers


def test_a_non_finite_loss_skips_the_update(flags, tmp_path, monkeypatch, capsys):
    """Step 2 is NaN, so after it the weights are those of step 1; the files of its batch are named."""
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "one", "--max_train_steps", 1))
    in_step(monkeypatch, 2, lambda: math.nan)
    words = ["--max_train_steps", 2, "--gradient_accumulation_steps", 1]
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "two", *words))
    assert distance(tmp_path / "one", tmp_path / "two") == 0
    told = capsys.readouterr().err
    assert "step 2: loss nan" in told and told.count("train/") == 2
    record = next(r for r in records(tmp_path / "two") if r["step"] == 2 and "train_loss" in r)
    assert record["train_loss"] is None and record["skipped_updates"] == 1
    state = torch.load(tmp_path / "two/checkpoint-2/training_state.pt", weights_only=True)
    assert state["skipped"] == {"total": 1, "in_a_row": 1}


@pytest.mark.parametrize(("losses", "ends"), [
    ("x", None), ("xx", None), ("xxx", 3), ("xx.xx", None), (".xx.xxx", 7), ("x.x.x.x", None),
])  # fmt: skip
def test_three_in_a_row_are_counted_from_the_last_good_update(losses, ends, tmp_path):
    """x: not finite. The count starts at 0, and a good update sets it back to 0."""
    skipped, ended = Skipped(3), None
    for step, one in enumerate(losses, start=1):
        loss = math.nan if one == "x" else 1.0
        report = types.SimpleNamespace(step=step, losses=torch.tensor([loss]), stems=[["a"]])
        try:
            skipped.count(loss, 1.0, report, tmp_path, None)
        except InputError:
            ended = step
            break
    assert ended == ends and skipped.total == losses[:ended].count("x")
    again = Skipped(3)
    again.load_state_dict(skipped.state_dict())
    assert (again.total, again.in_a_row) == (skipped.total, skipped.in_a_row)


def test_too_many_in_a_row_end_the_run(flags, tmp_path, monkeypatch):
    calls, original = [], SingleStep.loss

    def loss(self, *args):
        calls.append(1)
        return original(self, *args) * (math.inf if len(calls) in (2, 4, 5, 6) else 1)

    monkeypatch.setattr(SingleStep, "loss", loss)
    words = ["--max_train_steps", 9, "--max_nonfinite", 3, "--checkpointing_steps", 3]
    with pytest.raises(InputError, match=r"step 6: loss inf.*3 in a row.*train/\S+.*checkpoint: checkpoint-3"):
        run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", *words))
    assert [path.name for path in checkpoint.find(tmp_path / "run")] == ["checkpoint-3"]


def test_only_the_bad_micro_batch_is_named(flags, diode, tmp_path, monkeypatch, capsys):
    in_step(monkeypatch, 2, lambda: math.nan)
    words = ["--max_train_steps", 1, "--gradient_accumulation_steps", 3, "--train_batch_size", 1]
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", *words))
    order = [batch[0][0] for _, batch in zip(range(3), EndlessBatches(24, 1, 1234))]
    stems = Diode(NORMAL, diode / "normals", diode / "pseudo/normal", "train", resolution=32).stems
    assert f"in the batch: {stems[order[1]]}\n" in capsys.readouterr().err


def test_the_fp16_scaler_recovers_and_is_resumed(flags, tmp_path, monkeypatch):
    """A real scaler, and fp16, on the CPU: it starts too high and halves with each skipped update until all fits."""
    original, scalers = loop.start, []

    def start(settings):
        accelerator, resume_from = original(settings)
        accelerator.native_amp = True  # accelerate itself has fp16 and its scaler on GPUs only
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=1000)
        scalers.append(accelerator.scaler)
        return accelerator, resume_from

    monkeypatch.setattr(loop, "start", start)
    words = ["--checkpointing_steps", 2, *RESUME, "--mixed_precision", "fp16"]
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "whole", "--max_train_steps", 12, *words, "--max_nonfinite", 11))
    log = {r["step"]: r for r in records(tmp_path / "whole") if "train_loss" in r}
    skipped = [step for step, record in log.items() if "skipped_updates" in record]
    assert skipped == list(range(1, len(skipped) + 1)) and 3 <= len(skipped) <= 10
    assert scalers[0].get_scale() == 2.0 ** (24 - len(skipped))
    assert all(record["train_loss"] is not None for record in log.values()), "the loss itself is finite"
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "cut", "--max_train_steps", 2, *words))
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "cut", "--max_train_steps", 12, *words, "--max_nonfinite", 11))
    assert scalers[2].get_scale() == scalers[0].get_scale() and distance(tmp_path / "cut", tmp_path / "whole") == 0


# changed circumstances


@pytest.mark.parametrize(("change", "message"), [
    (["--rank", 4], "rank was 8, now 4"),
    (["--resolution", 64], "resolution was 32, now 64"),
    (["--unified_prompt", "normals"], "prompt was 'surface normal', now 'normals'"),
    (["--seed", 5], "seed was 1234, now 5"),
    (["--max_train_samples", 7], "training data was '24 images .*', now '7 images"),
    (["--train_batch_size", 3], "images per step was 2, now 3"),
])  # fmt: skip
def test_resuming_another_experiment_is_refused_with_a_diff(change, message, flags, tmp_path, whole):
    shutil.copytree(whole(flags), tmp_path / "run")
    with pytest.raises(InputError, match=message):
        run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", 5, *RESUME, *change))


def test_another_base_task_and_labels_are_refused(flags, diode, bases, tmp_path, whole):
    shutil.copytree(whole(flags), tmp_path / "run")
    words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 5, *RESUME)
    words[words.index("--pretrained_model_name_or_path") + 1] = str(bases["sd21"])
    with pytest.raises(InputError, match="base_model was"):
        run_here(SCRIPT, words)
    other = "sd_single_diode_pseudo_depth.py"
    with pytest.raises(InputError, match="task was 'normal', now 'depth'; prompt was"):
        run_here(other, flags(other, tmp_path / "run", "--max_train_steps", 5, *RESUME))
    words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 5, *RESUME)
    words[words.index("--pseudo_root") + 1] = str(diode / "pseudo" / "depth")  # same names, other labels
    words += ["--skip_label_check"]  # which refuses them first
    with pytest.raises(InputError, match="training data was"):
        run_here(SCRIPT, words)


def test_force_resume_continues_and_lists_the_changes(flags, tmp_path, whole, capsys):
    shutil.copytree(whole(flags), tmp_path / "run")
    words = ["--max_train_steps", 5, *RESUME, "--seed", 5, "--train_batch_size", 3, "--force_resume"]
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", *words))
    told = capsys.readouterr().out
    assert "continues with changes" in told and "seed was 1234, now 5" in told and max(losses(tmp_path / "run")) == 5
    state = torch.load(tmp_path / "run/checkpoint-5/training_state.pt", weights_only=True)
    assert state["samples"] == 4 * 2 + 3, "the data go on where they stopped"
    with pytest.raises(InputError, match=r"rank was 8, now 4.*use another --output_dir$"):
        run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", 6, *words[2:], "--rank", 4))


def test_learning_rate_and_length_may_change_and_are_noted(flags, tmp_path, whole, capsys):
    shutil.copytree(whole(flags), tmp_path / "run")
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", 5, *RESUME, "--learning_rate", 3e-4))
    told = capsys.readouterr().out
    assert "learning_rate was 0.0001, now 0.0003" in told and "max_train_steps was 4, now 5" in told


def test_another_number_of_processes(flags, tmp_path, whole, capsys):
    """The same images per step: noted, and the same training to rounding. Other images per step: refused."""
    whole_run, words = whole(flags), ["--max_train_steps", 4, *RESUME]
    two = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 2, "--train_batch_size", 1)
    fork(SCRIPT, *two, processes=2)
    with pytest.raises(InputError, match="images per step was 2, now 1"):
        run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", *words, "--train_batch_size", 1))
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", *words))
    assert "processes was 2, now 1" in capsys.readouterr().out
    assert losses(tmp_path / "run") == pytest.approx(losses(whole_run), rel=1e-4)
    moved = max(value.abs().max().item() for key, value in lora(whole_run).items() if ".up." in key)
    assert distance(tmp_path / "run", whole_run) < 0.5 * moved  # Adam's first steps are signs: rounding may turn some


# several processes


def test_one_ranks_failure_ends_all_with_its_error_on_top(flags, diode, tmp_path):
    """An image that only rank 1 reads is truncated: rank 0 would wait for it."""
    tree = shutil.copytree(diode, tmp_path / "DIODE")
    names = Diode(NORMAL, tree / "normals", tree / "pseudo/normal", "train", resolution=32).stems
    fixed = np.random.default_rng([1234, 24]).permutation(24)[:4].tolist()  # read by every rank, for validation
    batches = zip(range(6), EndlessBatches(24, 2, 1234, rank=1, world=2))
    victim = next(index for _, batch in batches for index, _ in batch if index not in fixed)
    os.truncate(tree / "depths" / f"{names[victim]}.png", 200)
    words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 6, "--no_cache_latents")
    words = [word.replace(str(diode), str(tree)) for word in words]
    done = launch(SCRIPT, *words, processes=2, check=False)
    assert done.returncode
    assert time.time() - (tmp_path / "run/metrics.jsonl").stat().st_mtime < 300, "it took long to end"
    ours = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1 and "process 1 of 2 failed and ended all" in ours[0] and names[victim] in ours[0]
    assert not (tmp_path / "run" / SAFETENSORS).exists()


def test_ranks_with_unequal_shares_do_not_wait_for_each_other(flags, tmp_path):
    """5 images, 4 a step: epochs end in the middle of steps, at another place in each process."""
    words = flags(SCRIPT, tmp_path / "run", "--num_train_epochs", 3, "--max_train_samples", 5)
    fork(SCRIPT, *words, processes=2)
    assert max(losses(tmp_path / "run")) == math.ceil(3 * 5 / 4)
