"""The four scripts as their users run them: launched, stopped, resumed, on one process and on two."""

import json
import re

import pytest
import torch
from conftest import SCRIPTS, launch, losses, python, records
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from utils.lora import BIN, CONV_IN, SAFETENSORS

GOLDEN = {}  # first losses


def lora(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / SAFETENSORS)


def distance(a, b) -> float:
    return max((lora(a)[key] - lora(b)[key]).abs().max().item() for key in lora(a))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Output folder of an uninterrupted run of 4 steps, per script; made on first use."""
    made = {}

    def build(script, flags):
        if script not in made:
            made[script] = tmp_path_factory.mktemp("whole") / "run"
            launch(script, *flags(script, made[script], "--max_train_steps", 4, "--checkpointing_steps", 2))
        return made[script]

    return build


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_and_leaves_what_it_promises(script, flags, whole):
    output = whole(script, flags)
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    multi_step = script.startswith("augunet")
    for folder in (output, output / "checkpoint-2", output / "checkpoint-4"):
        assert (folder / SAFETENSORS).is_file() and (folder / CONV_IN).is_file() == multi_step
    from_bin = torch.load(output / BIN, weights_only=True)
    assert all(torch.equal(from_bin[key], value) for key, value in lora(output).items())
    assert any(value.abs().max() > 0 for key, value in lora(output).items() if ".up." in key), "nothing was learnt"
    with safe_open(output / SAFETENSORS, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["task"] == SCRIPTS[script] and metadata["steps"] == "4" and metadata["resolution"] == "64"
    assert metadata["method"] == ("augunet" if multi_step else "single-step")

    log = records(output)
    assert sorted(losses(output)) == [1, 2, 3, 4]
    assert all(record["grad_norm"] > 0 and record["lr"] == 1e-4 for record in log if "train_loss" in record)
    headline = "mean" if SCRIPTS[script] == "normal" else "abs_rel"
    validated = {r["step"]: r for r in log if f"val/indoors/{headline}" in r}
    assert sorted(validated) == [0, 4]
    assert {f"val/{split}/{headline}" for split in ("train", "indoors", "outdoor")} <= set(validated[4])
    panels = sorted(path.name for path in (output / "validation").iterdir())
    assert panels == [f"{step:06d}_{split}.png" for step in (0, 4) for split in ("indoors", "outdoor", "train")]
    assert Image.open(output / "validation" / panels[0]).size == (4 * 64, 16 + 4 * 64)  # 4 columns, a caption, 4 rows


@pytest.mark.parametrize("script", SCRIPTS)
def test_first_losses(script, flags, whole):
    """The first losses on the seeded world and weights: any change to data, noise, scaling or timestep shows here."""
    measured = losses(whole(script, flags))
    assert [measured[step] for step in (1, 2, 3, 4)] == pytest.approx(GOLDEN[script], rel=1e-3)


@pytest.mark.parametrize("script", SCRIPTS)
def test_resuming_equals_never_stopping(script, flags, whole, tmp_path):
    output = tmp_path / "run"
    words = flags(script, output, "--max_train_steps", 2, "--checkpointing_steps", 2)
    launch(script, *words)
    words[words.index("--max_train_steps") + 1] = "4"
    done = launch(script, *words, "--resume_from_checkpoint", "latest")
    assert "resuming from" in done.stdout and "at step 2" in done.stdout
    assert distance(output, whole(script, flags)) == 0
    assert losses(output) == losses(whole(script, flags))
    steps = [record["step"] for record in records(output)]
    assert steps == sorted(steps)


SINGLE = "sd_single_diode_pseudo_normal.py"


@pytest.mark.parametrize("script", [SINGLE, "augunet_diode_pseudo_depth.py"])
def test_two_processes_train_what_one_trains_on_the_joint_batch(script, flags, tmp_path):
    lengths = ["--max_train_steps", 3, "--learning_rate", 1e-3]
    launch(script, *flags(script, tmp_path / "two", *lengths, "--train_batch_size", 2), processes=2)
    launch(script, *flags(script, tmp_path / "one", *lengths, "--train_batch_size", 4))
    accumulated = [*lengths, "--train_batch_size", 1, "--gradient_accumulation_steps", 4]
    launch(script, *flags(script, tmp_path / "micro", *accumulated))
    for other in ("two", "micro"):
        assert losses(tmp_path / other) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
        assert distance(tmp_path / other, tmp_path / "one") < 2e-5  # three steps of 1e-3 move weights by 3e-3


def test_ranks_hold_equal_weights(flags, tmp_path):
    """Each rank writes its own weights after a step; only averaged gradients make them equal."""
    program = tmp_path / "ranks.py"
    program.write_text(
        "import sys, os, torch\n"
        "import utils.training as training, sd_single_diode_pseudo_normal as script\n"
        "from utils.lora import lora_state\n"
        "prepare = training.Accelerator.prepare\n"
        "def spy(self, unet, optimizer):\n"
        "    self.seen = unet\n"
        "    return prepare(self, unet, optimizer)\n"
        "training.Accelerator.prepare = spy\n"
        "end = training.Accelerator.end_training\n"
        "def last(self):\n"
        f"    torch.save(lora_state(self.seen), r'{tmp_path}/rank' + os.environ['RANK'] + '.pt')\n"
        "    end(self)\n"
        "training.Accelerator.end_training = last\n"
        "script.main(sys.argv[1:])\n"
    )
    words = flags(SINGLE, tmp_path / "run", "--max_train_steps", 2)
    from conftest import ROOT

    launch(str(program), *words, processes=2, env={"PYTHONPATH": str(ROOT)})
    zero, one = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(zero[key], one[key]) for key in zero)
    assert any(value.any() for key, value in zero.items() if ".up." in key)


def run_here(script, words):
    """A script's main in this process: quicker than launching where the launcher does not matter."""
    import importlib

    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    importlib.import_module(script.removesuffix(".py")).main(words)


def test_clipping_clips(flags, tmp_path):
    """With SGD-like first moments out of the way, a clipped run differs and an unclipped one reports the same norm."""
    for name, norm in (("clipped", "1e-3"), ("free", "0"), ("loose", "1e6")):
        words = ["--max_train_steps", 2, "--max_grad_norm", norm, "--adam_epsilon", 1.0, "--adam_weight_decay", 0]
        run_here(SINGLE, flags(SINGLE, tmp_path / name, *words, "--learning_rate", 1.0))
    norms = {
        name: [r["grad_norm"] for r in records(tmp_path / name) if "grad_norm" in r] for name in ("clipped", "free")
    }
    assert norms["clipped"][0] == norms["free"][0] > 1e-2  # the norm before clipping is what is logged
    assert distance(tmp_path / "free", tmp_path / "loose") == 0
    # with epsilon = 1 Adam's step is about lr g, so an update is as small as the clip made it
    ups = {n: max(v.abs().max() for k, v in lora(tmp_path / n).items() if ".up." in k) for n in ("clipped", "free")}
    assert ups["clipped"] < 3e-3 < 10 * ups["clipped"] < ups["free"] * 10 and ups["free"] > 5 * ups["clipped"]


def test_learning_rate_flags(flags, tmp_path):
    words = ["--max_train_steps", 3, "--lr_warmup_steps", 2, "--scale_lr", "--gradient_accumulation_steps", 2]
    run_here(SINGLE, flags(SINGLE, tmp_path / "run", *words))
    rates = [record["lr"] for record in records(tmp_path / "run") if "lr" in record]
    assert rates == pytest.approx([0, 2e-4, 4e-4])  # constant, after a warm-up that is not ignored; 1e-4 x 2 x 2


def test_gradient_checkpointing_changes_nothing(flags, tmp_path):
    for name, more in (("plain", []), ("checkpointed", ["--gradient_checkpointing"])):
        run_here(SINGLE, flags(SINGLE, tmp_path / name, "--max_train_steps", 2, *more))
    assert distance(tmp_path / "plain", tmp_path / "checkpointed") < 1e-6


def test_gradient_checkpointing_is_wired(flags, tmp_path, monkeypatch):
    import torch.utils.checkpoint as library

    calls, original = [], library.checkpoint
    monkeypatch.setattr(library, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    run_here(SINGLE, flags(SINGLE, tmp_path / "run", "--max_train_steps", 1, "--gradient_checkpointing"))
    assert calls


def test_bf16_keeps_the_lora_in_fp32(flags, tmp_path):
    run_here(SINGLE, flags(SINGLE, tmp_path / "run", "--max_train_steps", 3, "--mixed_precision", "bf16"))
    weights = lora(tmp_path / "run")
    assert all(value.dtype == torch.float32 for value in weights.values())
    ups = torch.cat([value.flatten() for key, value in weights.items() if ".up." in key])
    assert (ups != ups.bfloat16().float()).any(), "the weights have been through bf16"
    state = torch.load(tmp_path / "run" / "checkpoint-3" / "training_state.pt", weights_only=True)
    assert state["optimizer"]["state"][0]["exp_avg"].dtype == torch.float32


def test_epochs_count(flags, tmp_path):
    words = flags(SINGLE, tmp_path / "run", "--num_train_epochs", 2, "--max_train_samples", 3)
    run_here(SINGLE, words)
    assert max(losses(tmp_path / "run")) == 3  # 2 x 3 images, 2 a step


def test_max_hours_stops_with_a_checkpoint(flags, tmp_path, capsys):
    words = flags(SINGLE, tmp_path / "run", "--max_train_steps", 500, "--max_hours", 1e-6)
    run_here(SINGLE, words)
    assert (
        tmp_path / "run" / "checkpoint-1"
    ).is_dir() and "--resume_from_checkpoint latest" in capsys.readouterr().out


def test_starting_from_a_lora(flags, whole, tmp_path):
    start = whole(SINGLE, flags)
    words = flags(SINGLE, tmp_path / "run", "--max_train_steps", 1, "--lora_path", start, "--learning_rate", 1e-9)
    run_here(SINGLE, words)
    assert distance(tmp_path / "run", start) < 1e-7


def test_wandb_and_tensorboard_get_everything(flags, tmp_path):
    """Two starts in one folder: one wandb id, offline files of both, TensorBoard with scalars and panels."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    words = ["--report_to", "tensorboard,wandb", "--checkpointing_steps", 1, "--resume_from_checkpoint", "latest"]
    words = flags(SINGLE, output, "--max_train_steps", 1, *words)
    env = {"WANDB_MODE": "", "WANDB_API_KEY": "", "NETRC": str(tmp_path / "none")}
    done = launch(SINGLE, *words, env=env)
    assert "wandb is offline (not logged in" in done.stdout and "wandb sync" in done.stdout
    words[words.index("--max_train_steps") + 1] = "2"
    launch(SINGLE, *words, env=env)
    identity = (output / "wandb_id.txt").read_text()
    runs = sorted(path.name for path in output.glob("wandb/offline-run-*"))
    assert len(runs) == 2 and all(name.endswith(identity) for name in runs)
    names = " ".join(path.name for path in output.glob("wandb/offline-run-*/files/media/images/*"))
    assert all(f"validation: {panel}" in names for panel in ("training images", "test images 1", "test images 2"))
    board = EventAccumulator(str(output / "logs" / "intrinsic-lora"))
    board.Reload()
    assert [event.step for event in board.Scalars("train_loss")] == [1, 2]
    assert "val/outdoor/mean" in board.Tags()["scalars"]
    assert "validation: test images 2" in board.Tags()["images"]


@pytest.mark.parametrize(("change", "message"), [
    (["--train_data_dir", "/nowhere"], r"/nowhere: no such folder \(from --train_data_dir\)"),
    (["--pretrained_model_name_or_path", "./nowhere"], "./nowhere: no such model folder"),
    (["--mixed_precision", "fp16"], "fp16"),
    (["--resume_from_checkpoint", "checkpoint-7"], "checkpoint-7"),
    (["--lora_path", "./nowhere.bin"], "nowhere.bin: no such LoRA file"),
])  # fmt: skip
def test_mistakes_end_in_one_line(flags, tmp_path, change, message):
    done = python(SINGLE, *flags(SINGLE, tmp_path / "run", "--max_train_steps", 1, *change), check=False)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and re.search(message, last) and "Traceback" not in done.stderr


def test_a_corrupt_picture_names_itself_from_a_worker(flags, diode, tmp_path):
    import shutil

    tree = shutil.copytree(diode, tmp_path / "DIODE")
    for path in (tree / "depths" / "train").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:100])
    words = flags(SINGLE, tmp_path / "run", "--max_train_steps", 1, "--dataloader_num_workers", 1)
    words[words.index("--train_data_dir") + 1] = str(tree / "normals")
    done = python(SINGLE, *words, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith(f"error: {tree}") and last.count(".png") == 1


def test_metrics_file_is_json_lines(flags, whole):
    text = (whole(SINGLE, flags) / "metrics.jsonl").read_text()
    assert all(isinstance(json.loads(line)["step"], int) for line in text.splitlines())
