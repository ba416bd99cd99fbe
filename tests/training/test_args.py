"""The command line: released names, refusals before anything is loaded, no flag that nobody reads."""

import importlib
import re
import shlex

import pytest
from helpers import ROOT, SCRIPTS

from utils.errors import InputError
from utils.training.args import parse, training_parser

NEEDED = ["--pretrained_model_name_or_path", str(ROOT / "miniworld" / "mini-ip2p")]
NEEDED += ["--train_data_dir", str(ROOT / "docs"), "--pseudo_root", str(ROOT / "recipes")]  # any folders
RELEASED = """pretrained_model_name_or_path revision dataset_name train_data_dir validation_steps max_train_samples
output_dir seed resolution center_crop train_batch_size num_train_epochs max_train_steps gradient_accumulation_steps
gradient_checkpointing learning_rate scale_lr lr_scheduler lr_warmup_steps snr_gamma use_8bit_adam allow_tf32
dataloader_num_workers adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm push_to_hub hub_token
prediction_type hub_model_id logging_dir mixed_precision report_to local_rank checkpointing_steps
checkpoints_total_limit resume_from_checkpoint enable_xformers_memory_efficient_attention noise_offset rank
empty_prompt unified_prompt num_train_imgs scene_types pseudo_root""".split()


def parser():
    made = training_parser("test", {})
    made.set_defaults(unified_prompt="surface normal", max_train_steps=20_000)
    return made


def test_every_released_flag_is_known():
    known = {option for action in parser()._actions for option in action.option_strings}
    assert [name for name in RELEASED if f"--{name}" not in known] == []


def test_every_flag_is_read_somewhere():
    places = ["*_diode_pseudo_*.py", "dataloaders/*.py", "utils/*.py"]  # what training runs
    places += [f"utils/{package}/*.py" for package in ("training", "tracking", "hub", "system")]
    text = "\n".join(path.read_text() for place in places for path in sorted(ROOT.glob(place)))
    for action in parser()._actions:
        if action.dest != "help":
            used = rf'\b(args|run|settings|optimizer|tracking)\.{action.dest}\b|_REFUSES = {{\s*[^}}]*"{action.dest}":'
            assert re.search(used, text), f"--{action.dest} is parsed, but not read and not refused"


@pytest.mark.parametrize("script", SCRIPTS)
def test_paper_commands_parse(script, monkeypatch):
    """The command in each script's docstring is the paper's, and reaches the settings with the paper's values."""
    module = importlib.import_module(script.removesuffix(".py"))
    command = re.search(rf"accelerate launch {script}(.*?)\n\n", module.__doc__ + "\n\n", re.DOTALL)[1]
    seen = {}

    class Parsed(Exception):
        pass

    def settings_of(args):
        seen.update(vars(args))
        raise Parsed

    monkeypatch.setattr(module, "settings_of", settings_of)
    monkeypatch.setattr("utils.training.args.check_base", lambda *_: None)  # no network in the tests
    monkeypatch.setattr("utils.training.args.check_folders", lambda *_: None)  # and no DIODE
    words = shlex.split(command.replace("\\\n", " "))
    with pytest.raises(Parsed):
        module.main(words)
    single = script.startswith("sd_single")
    assert seen["max_train_steps"] == (20_000 if single else 50_000)
    assert (seen["rank"], seen["train_batch_size"], seen["learning_rate"], seen["seed"]) == (8, 4, 1e-4, 1234)
    assert seen["num_train_imgs"] == (4_000 if single else None)
    prompts = {"normal": "surface normal", "depth": "depth map", "albedo": "albedo", "shading": "shading"}
    assert seen["prompt"] == prompts[SCRIPTS[script]]
    assert seen["trackers"] == ["wandb"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset_name", "a/b"], "--dataset folder"),
        (["--dataset", "manifest", "--manifest", "m"], "--train_data_dir means nothing for --dataset manifest"),
        (["--gt_frame", "opengl"], "--gt_frame means nothing for --dataset diode"),
        (["--val_fraction", "0.2"], "--val_fraction means nothing for --dataset diode"),
        (["--dataset", "folder", "--scene_types", "indoors"], "--scene_types means nothing for --dataset folder"),
        (["--dataset", "folder", "--val_fraction", "1"], "less than 1"),
        (["--dataset", "manifest"], "--manifest is missing"),
        (["--train_data_dir", ""], "--train_data_dir is missing"),
        (["--snr_gamma", "5"], "SNR"),
        (["--enable_xformers_memory_efficient_attention"], "built in"),
        (["--empty_prompt", "--unified_prompt", "a"], "exclude each other"),
        (["--resolution", "100"], "multiple of 8"),
        (["--rank", "0"], "more than 0"),
        (["--max_grad_norm", "-1"], "negative"),
        (["--report_to", "comet_ml"], "comet_ml"),
    ],
)
def test_flags_that_cannot_work_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        manifest_only = words == ["--dataset", "manifest"]
        parse(parser(), (NEEDED[:2] if manifest_only else NEEDED) + words)


@pytest.mark.parametrize("words", [("--train_data_dir", "a", "b c"), ("--train_data_dir=a", "b c", "d")])
def test_folders_without_commas_are_refused_with_what_to_write(words):
    with pytest.raises(InputError, match=r"arguments: b c.*several joined by commas: .* a,b --mix 0.9,0.1"):
        parse(parser(), [*NEEDED, *words, "--rank", "4"])


@pytest.mark.parametrize(("script", "words"), [
    ("sd_single_diode_pseudo_normal.py", ["--noise_offset", "0.1"]),
    ("sd_single_diode_pseudo_depth.py", ["--prediction_type", "epsilon"]),
    ("augunet_diode_pseudo_normal.py", ["--prediction_type", "epsilon"]),
    ("augunet_diode_pseudo_depth.py", ["--timestep", "400"]),
])  # fmt: skip
def test_scripts_refuse_what_has_no_meaning_for_them(script, words):
    with pytest.raises(InputError, match=words[0]):
        importlib.import_module(script.removesuffix(".py")).main(NEEDED + words)


def test_prompts_and_lengths():
    assert parse(parser(), NEEDED).prompt == "surface normal"
    assert parse(parser(), [*NEEDED, "--empty_prompt"]).prompt == ""
    assert parse(parser(), NEEDED).max_train_steps == 20_000
    assert parse(parser(), [*NEEDED, "--num_train_epochs", "3"]).max_train_steps is None
    both = parse(parser(), [*NEEDED, "--num_train_epochs", "3", "--max_train_steps", "5"])
    assert both.max_train_steps == 5
    assert parse(parser(), [*NEEDED, "--center_crop"]).center_crop
    assert not parse(parser(), [*NEEDED, "--no-center_crop"]).center_crop


@pytest.mark.parametrize(("value", "names"), [
    ("wandb", ["wandb"]), ("tensorboard,wandb", ["tensorboard", "wandb"]), ("all", ["wandb", "tensorboard"]),
    ("none", []),
])  # fmt: skip
def test_report_to_names_the_trackers(value, names):
    assert parse(parser(), [*NEEDED, "--report_to", value]).trackers == names
