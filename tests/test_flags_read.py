"""Every accepted flag is applied: it is read somewhere, and a flag that nothing would read is refused."""

import ast
import importlib
from pathlib import Path

import pytest
import torch
from helpers import run_here

import predict
import pseudo_label
from app import __main__ as app_main
from dataloaders.check import main as check
from utils.cli import Parser
from utils.errors import InputError
from utils.evaluation.args import parse_args
from utils.inference.output import Output
from utils.intrinsics import ALBEDO, DEPTH, NORMAL
from utils.training.args import parse, training_parser

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path for path in ROOT.rglob("*.py")
    if not {"tests", ".venv", "build", ".git"} & set(path.relative_to(ROOT).parts)
)  # fmt: skip
ADDERS = ("add", "add_argument")


def flag_of(call: ast.Call) -> str | None:
    """The name under which a call of `add` or `add_argument` stores a flag."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    words = [word.value for word in call.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    flags = [word for word in words if word.startswith("--")]
    if name not in ADDERS or not flags:
        return None
    named = [word.value.value for word in call.keywords if word.arg == "dest"]
    return named[0] if named else flags[0][2:].replace("-", "_")


def names_read(tree: ast.AST) -> set[str]:
    """Names that a module reads: attributes, fields of dataclasses, and strings, as in getattr and tables;
    not arguments of a parser's methods.
    """
    told = {
        id(word)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and getattr(call.func, "attr", getattr(call.func, "id", "")) in (*ADDERS, "only", "set_defaults")
        for word in (*call.args, *(keyword.value for keyword in call.keywords))
        if isinstance(word, ast.Constant)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            found.add(node.value)
    return found


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
FLAGS = {
    (path.relative_to(ROOT).as_posix(), flag): path
    for path, tree in TREES.items()
    for call in ast.walk(tree)
    if isinstance(call, ast.Call) and (flag := flag_of(call))
}


def may_read(path: Path, flags: Path) -> bool:
    """Whether a module may read the flags of another: any module those of the libraries and of scripts, utils all, and
    the modules of one folder each other's.
    """
    reader, owner = (each.relative_to(ROOT).parts[0] for each in (path, flags))
    return owner in ("utils", "dataloaders", "generators", flags.name) or reader in (owner, "utils")


def dead(flags: dict, trees: dict) -> list[str]:
    read = {path: names_read(tree) for path, tree in trees.items()}
    return [
        f"{name}: --{flag}" for (name, flag), path in flags.items()
        if not any(flag in names and may_read(other, path) for other, names in read.items())
    ]  # fmt: skip


def test_every_flag_is_read_somewhere():
    assert len(FLAGS) > 250
    assert dead(FLAGS, TREES) == []


def test_a_flag_that_nothing_reads_is_found():
    tree = ast.parse("add('--read', help='x'); add('--dead', type=int); parser.only('dead', f, 'x'); print(args.read)")
    path = ROOT / "utils" / "x.py"
    assert dead({("x", "read"): path, ("x", "dead"): path}, {path: tree}) == ["x: --dead"]


RULES = [  # command, words that are needed, the flag that means nothing among them
    ("pseudo_label", "--task depth --from ground_truth", "--steps 3"),
    ("pseudo_label", "--task depth --from ground_truth", "--ensemble_size 3"),
    ("pseudo_label", "--task depth --from ground_truth", "--seed 3"),
    ("pseudo_label", "--task depth --from ground_truth", "--dtype bf16"),
    ("pseudo_label", "--task normal --from ground_truth", "--frame opencv"),
    ("pseudo_label", "--task depth --teacher a/b", "--frame opencv"),
    ("pseudo_label", "--task normal --teacher a/b", "--predicts depth"),
    ("pseudo_label", "--task normal --teacher .", "--revision main"),
    ("pseudo_label", "--task normal --teacher a/b", "--splits val"),
    ("pseudo_label", "--task normal --teacher a/b", "--scene_types indoors"),
    ("evaluate", "--task normal --gt_dir b --bootstrap 0", "--seed 3"),
    ("evaluate", "--task normal --gt_dir b", "--image_dir c"),
    ("evaluate", "--task albedo --whdr c", "--gt_space linear"),
    ("evaluate", "--task albedo --whdr c", "--erode 3"),
    ("evaluate", "--task albedo --whdr c", "--diode_set meta"),
    ("check", "--dataset manifest --manifest a", "--pseudo_root b"),
    ("check", "--dataset manifest --manifest a", "--train_data_dir b"),
    ("check", "--dataset folder --train_data_dir a", "--manifest b"),
    ("train", "--no_cache_latents", "--cache_dir a"),
    ("train", "", "--force_resume"),
    ("train", "--validation_steps 0", "--no_first_validation"),
    ("train", "--report_to none", "--tracker_project a"),
    ("train", "--report_to tensorboard", "--run_name a"),
    ("train", "--report_to tensorboard", "--tracker_tags a"),
    ("miniworld.demo", "--page", "--steps 3"),
    ("miniworld.demo", "--method augunet", "--timestep 3"),
    ("miniworld.pretrain", "--report", "--unet_steps 3"),
    ("miniworld.pretrain", "--velocity_from miniworld/mini-sd --out x", "--vae_steps 3"),
    ("miniworld.pretrain", "", "--velocity_steps 3"),
    ("studies.paper_questions", "--data a", "--train 3"),
    ("inference_ar", "--lora a", "--seed 3"),
    ("miniworld.pretrain_gan", "--report", "--workers 3"),
    ("miniworld.pretrain_ar", "--report", "--workers 3"),
    ("miniworld.pretrain_ar", "--report", "--vae_from a"),
    ("gan_pseudo", "--task normal --pretrained_model_name_or_path a --teacher b --validation_steps 0",
     "--num_val_imgs 3"),
]  # fmt: skip
TRAINING = "--pretrained_model_name_or_path miniworld/mini-sd --train_data_dir docs --pseudo_root recipes"


def parsed(command: str, words: list[str], tmp_path: Path) -> object:
    """The words, parsed by the command's parser."""
    if command == "pseudo_label":
        return pseudo_label.parse([*words, "--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")])
    if command == "evaluate":
        return parse_args("", [*words, "--pred_dir", "a"])
    if command == "check":
        return check(words)
    if command == "train":
        parser = training_parser("", {})
        parser.set_defaults(unified_prompt="x", max_train_steps=5)
        return parse(parser, [*TRAINING.split(), *words])
    if command == "gan_pseudo":
        from generators.args import gan_parser, parse_gan

        return parse_gan(gan_parser(""), words)
    module = importlib.import_module(command)
    return (module.parse_args if hasattr(module, "parse_args") else module.parse)(words)


@pytest.mark.parametrize(("command", "words", "flag"), RULES)
def test_a_flag_that_nothing_would_read_is_refused(command, words, flag, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=rf"^{flag.split()[0]} means nothing .*; leave it out$"):
        parsed(command, [*words.split(), *flag.split()], tmp_path)


@pytest.mark.parametrize(("words", "flag"), [
    ("--report_to wandb", "--logging_dir tb"), ("", "--hub_model_id a/b"), ("", "--hub_token x"),
    ("--lr_scheduler constant", "--lr_warmup_steps 5"), ("--max_train_steps 3", "--num_train_epochs 2"),
    ("", "--revision main"),
])  # fmt: skip
def test_a_released_flag_that_nothing_would_read_is_a_note(words, flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    parsed("train", [*words.split(), *flag.split()], tmp_path)
    assert f"note: {flag.split()[0]}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [
    "--report_to wandb --logging_dir logs --lr_warmup_steps=0 --resume_from_checkpoint=latest --seed=1234",
    "--lr_scheduler cosine --lr_warmup_steps 5 --report_to all --run_name a --logging_dir b",
    "--push_to_hub --hub_token x --hub_model_id a/b --force_resume --resume_from_checkpoint latest",
])  # fmt: skip
def test_flags_that_are_read_pass_in_silence(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    parsed("train", words.split(), tmp_path)
    assert "means nothing" not in capsys.readouterr().out


def test_only_counts_values_other_than_the_default():
    parser = Parser()
    parser.add_argument("--a", type=int, default=3)
    parser.add_argument("--b", action="store_true")
    parser.only("a", lambda args: args.b, "without --b")
    assert parser.parse_args(["--a", "3"]).a == 3 and parser.parse_args(["--a", "4", "--b"]).a == 4
    with pytest.raises(InputError, match="--a means nothing without --b; leave it out"):
        parser.parse_args(["--a", "4"])


@pytest.mark.parametrize(("output", "intrinsic", "flag"), [
    (Output(frame="opengl"), DEPTH, "--frame=opengl"), (Output(frame="opengl"), ALBEDO, "--frame=opengl"),
    (Output(invert_depth=True), NORMAL, "--invert_depth"),
])  # fmt: skip
def test_flags_of_maps_that_are_not_predicted_are_refused(output, intrinsic, flag):
    with pytest.raises(InputError, match=f"^{flag}: means nothing for {intrinsic.name}"):
        output.check([intrinsic])
    output.check([NORMAL, DEPTH])


@pytest.mark.parametrize("flag", ["steps", "ensemble_size", "processing_resolution", "seed"])
def test_flags_of_marigold_are_refused_for_other_teachers(flag, tmp_path):
    words = ["--task", "depth", "--teacher", "a/b", f"--{flag}", "3"]
    args = parsed("pseudo_label", words, tmp_path)
    pseudo_label.refuse_unread(args, "MarigoldDepthPipeline")
    with pytest.raises(InputError, match=f"--{flag} means nothing for a ZoeDepth, only for Marigold"):
        pseudo_label.refuse_unread(args, "ZoeDepth")


LORAS = ROOT / "miniworld" / "mini-loras"


@pytest.mark.parametrize(("name", "default"), [("steps", 25), ("seed", 1234)])
def test_flags_of_diffusion_are_refused_in_the_app_where_no_lora_diffuses(name, default):
    words = [f"--{name}", "3"]
    with pytest.raises(InputError, match=f"^--{name} means nothing for these LoRAs, .*; leave it out$"):
        app_main.refuse_unread(app_main.parse(words), [str(LORAS / "depth")])
    app_main.refuse_unread(app_main.parse(words), [str(LORAS / "depth"), str(LORAS / "augunet" / "normal")])
    app_main.refuse_unread(app_main.parse([f"--{name}", str(default)]), [str(LORAS / "depth")])


def test_the_colours_of_normals_are_refused_where_there_are_none(tmp_path):
    words = ["--lora", str(LORAS / "depth"), "--output_dir", str(tmp_path), "--colours", "opencv", "--device", "cpu"]
    with pytest.raises(InputError, match=r"^--colours=opencv: means nothing without normals"):
        predict.main([str(ROOT / "examples" / sorted(path.name for path in (ROOT / "examples").glob("*.[jp]*g"))[0]),
                      *words])  # fmt: skip


def test_the_revision_of_a_base_that_is_here_is_a_note(capsys):
    from utils.inference import Predictor

    Predictor(LORAS / "depth", device="cpu")
    assert "--revision" not in capsys.readouterr().out
    Predictor(LORAS / "depth", device="cpu", revision="main")
    assert "--revision=main means nothing for " in capsys.readouterr().out


def test_tf32_without_an_nvidia_gpu_is_a_note(flags, tmp_path, monkeypatch, capsys):
    script = "sd_single_diode_pseudo_normal.py"
    run_here(script, flags(script, tmp_path / "run", "--max_train_steps", 1, "--allow_tf32"))
    found = "--allow_tf32 has no effect on cpu" in capsys.readouterr().out
    assert found != torch.cuda.is_available()


def test_the_temperature_of_tokens_is_refused_for_augunet():
    from studies.uncertainty import main

    with pytest.raises(InputError, match=r"^--temperature means nothing for AugUNet"):
        main(["--lora", str(LORAS / "augunet" / "normal"), "--data", "a", "--temperature", "0.5"])
