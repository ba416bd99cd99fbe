"""Flags with values that they must not take: refused before a folder is made."""

import importlib
import shlex
from unittest import mock

import pytest
from bad_files import encoded
from helpers import SCRIPTS, python
from refusals import NEEDED, SCRIPT, main_refused, refused

import evaluate
from miniworld.demo import main as demo
from utils.cli import Parser
from utils.lora import SAFETENSORS
from utils.lora.__main__ import main as lora_main

pytestmark = pytest.mark.bad_input
OTHERS = ["augunet_diode_pseudo_normal.py", "inference_sd_single.py", "inference_augunet.py", "predict.py"]
OTHERS += ["evaluate.py", "pseudo_label.py", "gan_pseudo.py", "ar_pseudo.py", "inference_gan.py", "inference_ar.py"]


class Captured(Exception):
    """Has the parser of a script."""


def values_of_no_use(script: str) -> list[tuple[str, str, str]]:
    """(script, flag, value) for every flag that takes a number or one of several words."""

    def capture(parser: Parser, *_: object) -> None:
        raise Captured(parser)

    with mock.patch.object(Parser, "parse_args", capture), pytest.raises(Captured) as caught:
        importlib.import_module(script.removesuffix(".py")).main([])
    cases = []
    for action in caught.value.args[0]._actions:
        wrong = {int: ("x", "1.5", ""), float: ("x", "")}.get(action.type, ("no such word",) if action.choices else ())
        cases += [(script, action.option_strings[-1], value) for value in wrong if action.option_strings]
    return cases


NUMBERS = {  # flag -> values that it must not take
    "rank": "0 -1 1.5 x nan 100000",
    "resolution": "0 -8 100 x 12.5",
    "train_batch_size": "0 -1 x 1.5",
    "gradient_accumulation_steps": "0 -1 x",
    "max_train_steps": "0 -5 x 1e3",
    "num_train_epochs": "0 -1 x",
    "num_train_imgs": "0 -1 x",
    "max_train_samples": "0 -1 x",
    "learning_rate": "0 -1e-4 nan inf x",
    "lr_warmup_steps": "-1 x",
    "adam_beta1": "-0.1 1 2 nan x",
    "adam_beta2": "-0.1 1 nan",
    "adam_weight_decay": "-1 nan inf",
    "ema_decay": "-0.1 1 nan x",
    "adam_epsilon": "-1e-8 nan",
    "max_grad_norm": "-1 nan inf x",
    "noise_offset": "nan inf x",
    "seed": "-1 4294967296 x 1.5",
    "dataloader_num_workers": "-1 100000 x",
    "checkpointing_steps": "0 -1 x",
    "checkpoints_total_limit": "0 -1 x",
    "validation_steps": "-1 x",
    "max_hours": "0 -1 nan x",
    "max_nonfinite": "0 -1 x",
}
WORDS = {  # words -> what must be said
    "--lr_scheduler wavy": "lr_scheduler",
    "--mixed_precision fp8": "mixed_precision",
    "--list_from web": "list_from",
    "--report_to comet_ml": "comet_ml",
    "--report_to wandb,none": "none",
    "--dataset_name a/b": "--dataset",
    "--snr_gamma 5": "SNR",
    "--enable_xformers_memory_efficient_attention": "built in",
    "--empty_prompt --unified_prompt a": "exclude each other",
    "--no-such-flag": "no-such-flag",
    "--learning-rate 1": "learning-rate",
    "--ran 4": "--ran",
    "stray": "stray",
    "--validation_steps 0 --best_metric val/indoors/mean": "--best_metric",
    "--seed": "seed",
    "--logging_dir /tmp/logs": "inside --output_dir",
    "--logging_dir ../logs": "inside --output_dir",
    "--resume_from_checkpoint checkpoint-7": "checkpoint-7",
    "--prediction_type epsilon": "prediction_type",
}


TRAINING = [([f"--{flag}={value}"], flag) for flag, values in NUMBERS.items() for value in values.split()]
TRAINING += [(words.split(), expected) for words, expected in WORDS.items()]
TURNS = [(list(SCRIPTS)[turn % len(SCRIPTS)], *case) for turn, case in enumerate(TRAINING)]  # the scripts in turn


@pytest.mark.parametrize(("script", "words", "expected"), TURNS, ids=lambda value: "".join(value)[:60])
def test_a_training_flag_that_cannot_work_is_refused(script, words, expected, tmp_path):
    main_refused(script, [*NEEDED, tmp_path / "run", *words], expected)
    assert not (tmp_path / "run").exists(), "a folder was made before the flags were checked"


@pytest.mark.parametrize(("script", "flag", "value"), [case for script in OTHERS for case in values_of_no_use(script)])
def test_a_flag_with_a_value_of_another_kind(script, flag, value):
    main_refused(script, [f"{flag}={value}"], flag)


@pytest.mark.parametrize("output", ["", f"{__file__}/x", __file__], ids=["empty", "below a file", "a file"])
def test_an_output_folder_that_cannot_be(output):
    main_refused(SCRIPT, [*NEEDED, output], "--output_dir")


@pytest.mark.parametrize("missing", NEEDED[:6:2])
def test_a_flag_that_is_needed(missing, tmp_path):
    place = NEEDED.index(missing)
    main_refused(SCRIPT, [*NEEDED[:place], *NEEDED[place + 2 :], tmp_path / "run"], missing)


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(encoded("PNG"))
    return tmp_path / "in"


INFERENCE = {
    "--resolution 0": "multiple of 8", "--resolution 63": "multiple of 8", "--resolution -8": "multiple of 8",
    "--batch_size 0": "--batch_size", "--task colour": "task", "--dtype fp8": "dtype", "--device gpu": "--device",
    "--device cuda:99": "--device", "--input_dir /nowhere": "/nowhere: no such folder",
    "--input_dir {file}": "not an image we read", "--input_dir {weights}": "no images",
    "--lora /nowhere": "/nowhere: no such LoRA file", "--pretrained_model_name_or_path /nowhere": "no such model",
}  # fmt: skip


@pytest.mark.parametrize("words", INFERENCE)
def test_an_inference_flag_that_cannot_work_is_refused(words, weights, pictures, tmp_path):
    base = ["--lora", weights, "--input_dir", pictures, "--output_dir", tmp_path / "out"]
    words, expected = shlex.split(words.format(file=shlex.quote(__file__), weights=weights)), INFERENCE[words]
    main_refused("inference_sd_single.py", [*base, *words], expected)
    assert not (tmp_path / "out").exists()


EVALUATION = {
    "--task colour": "task", "--protocol diode": "no protocol diode", "--align depth": "means nothing",
    "--pred_frame up": "pred_frame", "--erode -1": "--erode", "--bootstrap -1": "--bootstrap",
    "--workers 0": "--workers", "--whdr x": "means nothing", "--gt_depth_scale 5": "means nothing",
    "--pred_space srgb": "means nothing", "--no": "--no", "--seed x": "seed",
}  # fmt: skip


@pytest.mark.parametrize("words", EVALUATION)
def test_an_evaluation_flag_that_cannot_work_is_refused(words, pictures):
    base = ["--task", "normal", "--pred_dir", str(pictures), "--gt_dir", str(pictures)]
    refused(lambda: evaluate.main([*base, *words.split()]), EVALUATION[words])


LORA = {
    "inspect": "source",
    "convert a b --format x": "format",
    "": "command",
    "inspect /nowhere": "no such LoRA file",
    "convert {weights} {out}/out.txt --format peft": "ends in .safetensors or .bin",
    f"convert {{weights}} {{weights}}/{SAFETENSORS} --format peft": "is the file to convert",
    "convert {weights} {file}/x.bin --format peft": "cannot write",
}


@pytest.mark.parametrize("words", LORA)
def test_a_flag_of_the_lora_tool(words, weights, tmp_path):
    filled = words.format(file=shlex.quote(__file__), weights=weights, out=tmp_path)
    refused(lambda: lora_main(shlex.split(filled)), LORA[words])


DEMO = {
    "--steps 0": "--steps=0: must be at least 1", "--train 0": "--train=0", "--val -1": "--val=-1",
    "--seed -1": "--seed=-1: must not be negative", "--base /nowhere": "not a base model's folder",
    "--method gan": "method",
}  # fmt: skip


@pytest.mark.parametrize("words", DEMO)
def test_a_demo_flag_that_cannot_work_is_refused(words, tmp_path):
    refused(lambda: demo(["--out", str(tmp_path / "demo"), *words.split()]), DEMO[words])
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(("script", "words", "expected"), [
    ("sd_single_diode_pseudo_depth.py", ["--learning_rate", "nan"], "--learning_rate=nan: must be a finite number"),
    ("inference_sd_single.py", ["--lora", "/nowhere.bin"], "/nowhere.bin: no such LoRA file"),
])  # fmt: skip
def test_a_refused_flag_ends_the_real_command_with_one_line(script, words, expected, tmp_path):
    needed = [*NEEDED, tmp_path / "run"] if script.startswith("sd") else []
    done = python(script, *needed, *words, check=False)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1] == f"error: {expected}"
