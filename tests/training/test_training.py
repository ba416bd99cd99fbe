"""The loop: processes, clipping, precision, schedules, trackers, and mistakes that end in one line."""

import re
import shutil

import pytest
import torch
from helpers import ROOT, distance, fork, launch, lora, losses, records, run_here

from utils.errors import InputError
from utils.objectives import SingleStep

SINGLE = "sd_single_diode_pseudo_normal.py"


@pytest.mark.parametrize(
    ("script", "targets"), [(SINGLE, "attention"), (SINGLE, "all"), ("augunet_diode_pseudo_depth.py", "attention")]
)
def test_two_processes_train_what_one_trains_on_the_joint_batch(script, targets, flags, tmp_path):
    # a large epsilon makes Adam's step proportional to the gradient: with the usual one, a gradient that is zero but
    # for rounding moves its weight by the whole learning rate, in whichever direction the rounding points
    lengths = ["--max_train_steps", 3, "--learning_rate", 1e-2, "--adam_epsilon", 1e-2, "--lora_targets", targets]
    fork(script, *flags(script, tmp_path / "two", *lengths, "--train_batch_size", 2), processes=2)
    run_here(script, flags(script, tmp_path / "one", *lengths, "--train_batch_size", 4))
    accumulated = [*lengths, "--train_batch_size", 1, "--gradient_accumulation_steps", 4]
    run_here(script, flags(script, tmp_path / "micro", *accumulated))
    up = (".up.", ".lora_B.")
    moved = max(v.abs().max().item() for key, v in lora(tmp_path / "one").items() if any(part in key for part in up))
    for other in ("two", "micro"):
        assert losses(tmp_path / other) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
        assert distance(tmp_path / other, tmp_path / "one") < 1e-3 * moved


def test_a_loss_receives_no_ground_truth(flags, tmp_path, monkeypatch):
    seen, loss = [], SingleStep.loss

    def spy(self, unet, batch, noise):
        seen.append(set(batch))
        return loss(self, unet, batch, noise)

    monkeypatch.setattr(SingleStep, "loss", spy)
    more = ("--max_train_steps", 1, "--no_cache_latents", "--validation_steps", 0)
    run_here(SINGLE, flags(SINGLE, tmp_path / "run", *more))
    assert seen == [{"rgb", "target"}]


@pytest.mark.parametrize(
    "more", [(), pytest.param(("--multi_gpu", "--main_process_port", "0"), marks=pytest.mark.slow)]
)
def test_ranks_hold_equal_weights(more, flags, tmp_path):
    """Each rank writes its own weights after a step; only averaged gradients make them equal."""
    program = (
        "import sys, os, torch\n"
        "import utils.training.loop as training, sd_single_diode_pseudo_normal as script\n"
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
    if more:
        (tmp_path / "ranks.py").write_text(program)
        done = launch(tmp_path / "ranks.py", *words, processes=2, more=more, env={"PYTHONPATH": str(ROOT)})
    else:
        done = fork("-c", program, *words, processes=2)
    assert "2 process(es)" in done.stdout, "two processes that do not know of each other"
    zero, one = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(zero[key], one[key]) for key in zero)
    assert any(value.any() for key, value in zero.items() if ".up." in key)


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
    assert ups["clipped"] < 2 * 1e-3 and ups["free"] > 20 * ups["clipped"]


def test_warm_up_and_scaling_of_the_learning_rate_are_not_ignored(flags, tmp_path):
    words = ["--max_train_steps", 3, "--lr_warmup_steps", 2, "--scale_lr", "--gradient_accumulation_steps", 2]
    run_here(SINGLE, flags(SINGLE, tmp_path / "run", *words))
    rates = [record["lr"] for record in records(tmp_path / "run") if "lr" in record]
    assert rates == pytest.approx([0, 2e-4, 4e-4])  # constant, after a warm-up that is not ignored; 1e-4 x 2 x 2


def test_a_resumed_run_takes_the_new_learning_rate(flags, tmp_path):
    words = ["--checkpointing_steps", 1, "--resume_from_checkpoint", "latest", "--lr_scheduler", "linear"]
    run_here(SINGLE, flags(SINGLE, tmp_path / "run", *words, "--max_train_steps", 1))
    run_here(SINGLE, flags(SINGLE, tmp_path / "run", *words, "--max_train_steps", 4, "--learning_rate", 3e-4))
    rates = [record["lr"] for record in records(tmp_path / "run") if "lr" in record]
    assert rates == pytest.approx([1e-4, 3e-4 * 3 / 4, 3e-4 * 2 / 4, 3e-4 * 1 / 4])


def test_resuming_on_other_data_is_refused(flags, tmp_path):
    words = ["--checkpointing_steps", 1, "--resume_from_checkpoint", "latest", "--max_train_samples"]
    run_here(SINGLE, flags(SINGLE, tmp_path / "run", "--max_train_steps", 1, *words, 5))
    with pytest.raises(InputError, match=r"training data was '5 images .*now '6 images"):
        run_here(SINGLE, flags(SINGLE, tmp_path / "run", "--max_train_steps", 2, *words, 6))


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


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_keeps_the_lora_in_fp32(precision, flags, tmp_path):
    run_here(SINGLE, flags(SINGLE, tmp_path / "run", "--max_train_steps", 3, "--mixed_precision", precision))
    weights = lora(tmp_path / "run")
    assert all(value.dtype == torch.float32 for value in weights.values())
    ups = torch.cat([value.flatten() for key, value in weights.items() if ".up." in key])
    assert (ups != ups.to(getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[precision])).float()).any(), (
        "the weights have been through 16 bits"
    )
    state = torch.load(tmp_path / "run" / "checkpoint-3" / "training_state.pt", weights_only=True)
    assert state["optimizer"]["state"][0]["exp_avg"].dtype == torch.float32


def test_epochs_become_steps(flags, tmp_path):
    words = flags(SINGLE, tmp_path / "run", "--num_train_epochs", 2, "--max_train_samples", 3)
    run_here(SINGLE, words)
    assert max(losses(tmp_path / "run")) == 3  # 2 x 3 images, 2 a step


def test_max_hours_stops_with_a_checkpoint(flags, tmp_path, capsys):
    words = flags(SINGLE, tmp_path / "run", "--max_train_steps", 500, "--max_hours", 1e-6)
    run_here(SINGLE, words)
    assert (
        tmp_path / "run" / "checkpoint-1"
    ).is_dir() and "--resume_from_checkpoint latest" in capsys.readouterr().out


def test_training_starts_from_the_lora_that_is_given(flags, tmp_path):
    start = tmp_path / "start"
    run_here(SINGLE, flags(SINGLE, start, "--max_train_steps", 2))
    words = flags(SINGLE, tmp_path / "run", "--max_train_steps", 1, "--lora_path", start, "--learning_rate", 1e-9)
    run_here(SINGLE, words)
    assert distance(tmp_path / "run", start) < 1e-7


@pytest.mark.parametrize(("change", "message"), [
    (["--train_data_dir", "/nowhere"], r"/nowhere: no such folder \(from --train_data_dir\)"),
    (["--pretrained_model_name_or_path", "./nowhere"], "./nowhere: no such model folder"),
    (["--no-such-flag"], "no-such-flag"),
    (["--resume_from_checkpoint", "checkpoint-7"], "checkpoint-7"),
    (["--lora_path", "./nowhere.bin"], "nowhere.bin: no such LoRA file"),
])  # fmt: skip
def test_mistakes_end_in_one_line(flags, tmp_path, change, message):
    done = fork(SINGLE, *flags(SINGLE, tmp_path / "run", "--max_train_steps", 1, *change), check=False)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"(\S+: )?error: ", last) and re.search(message, last) and "Traceback" not in done.stderr


def test_a_corrupt_image_is_named_from_a_worker(flags, diode, tmp_path):
    tree = shutil.copytree(diode, tmp_path / "DIODE")
    for path in (tree / "depths" / "train").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:100])
    words = flags(SINGLE, tmp_path / "run", "--max_train_steps", 1, "--dataloader_num_workers", 1)
    words += ["--skip_label_check"]  # which reads some of them before the workers do
    words[words.index("--train_data_dir") + 1] = str(tree / "normals")
    done = fork(SINGLE, *words, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith(f"error: {tree}") and last.count(".png") == 1


def test_the_seed_chooses_the_training_images(flags, tmp_path):
    for seed in (1, 2):
        words = ["--max_train_steps", 1, "--num_train_imgs", 5, "--seed", seed]
        run_here(SINGLE, flags(SINGLE, tmp_path / str(seed), *words))
    states = [torch.load(tmp_path / f"{seed}/checkpoint-1/training_state.pt", weights_only=True) for seed in (1, 2)]
    assert states[0]["settings"]["training data"] != states[1]["settings"]["training data"]


@pytest.mark.parametrize(("words", "validated"), [
    (["--validation_steps", 0], []), (["--validation_steps", 2, "--no_first_validation"], [2, 3]),
    (["--validation_steps", 2], [0, 2, 3]),
])  # fmt: skip
def test_validation_can_be_switched_off(words, validated, flags, tmp_path, capsys):
    """All validation, or only the first. The LoRA is in the output folder either way, and a resumed run continues."""
    shared = flags(SINGLE, tmp_path / "run", *words, "--checkpointing_steps", 1)
    run_here(SINGLE, [*shared, "--max_train_steps", "2"])
    run_here(SINGLE, [*shared, "--max_train_steps", "3", "--resume_from_checkpoint", "latest"])
    steps = [line["step"] for line in records(tmp_path / "run") if any(name.startswith("val/") for name in line)]
    assert sorted(set(steps)) == validated and lora(tmp_path / "run")
    assert ("best.json" in capsys.readouterr().out) == bool(validated)
    assert (tmp_path / "run" / "best.json").exists() == bool(validated)
