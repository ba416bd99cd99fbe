"""Recipes: files of flags, those in recipes/, and the one that a run writes."""

import argparse
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import PATIENCE, ROOT, SCRIPTS, distance, fork, losses, records, run_here, start_fork, wait_for

from utils.cli import Parser
from utils.errors import InputError
from utils.inference.job import BASES
from utils.lora import SAFETENSORS
from utils.training import checkpoint
from utils.training.args import parse, training_parser
from utils.training.recipe import RECIPE

SCRIPT = "sd_single_diode_pseudo_normal.py"
RESUME = ["--resume_from_checkpoint", "latest"]
MEMORY = sorted((ROOT / "recipes").glob("memory_*.txt"))
OTHERS = {
    "toy_normal.txt": SCRIPT,
    "toy_augunet_normal.txt": "augunet_diode_pseudo_normal.py",
    "own_data.txt": SCRIPT,
}
PAPERS = {
    f"paper_{'augunet_' if script.startswith('augunet') else ''}{task}.txt": script for script, task in SCRIPTS.items()
}


def parser() -> Parser:
    made = Parser(prog="train.py")
    made.add_argument("--rank", type=int, default=8)
    made.add_argument("--name", default="a")
    made.add_argument("--flag", action="store_true")
    made.add_argument("--words", nargs="+")
    made.add_argument("--kind", choices=["one", "two"])
    return made


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return f"@{path}"


# the file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--rank=3\n--name=b", {"rank": 3, "name": "b"}),
        ("--rank 3 --name b --flag", {"rank": 3, "name": "b", "flag": True}),
        ("# don't stop here\n\n  --rank 3  # 4\n\t--name=b", {"rank": 3, "name": "b"}),
        ("--name 'it is \"x\" # 1'", {"name": 'it is "x" # 1'}),
        ('--name="it\'s, here"', {"name": "it's, here"}),
        ("--name=runs/a#2", {"name": "runs/a#2"}),  # a shell, too, sees a comment only where a word begins
        ("--name=''", {"name": ""}),
        ("--name='two\nlines'", {"name": "two\nlines"}),
        ("--rank=3 \\\n--name=b \\\n", {"rank": 3, "name": "b"}),  # pasted from a shell
        ("--words a 'b c'\n--rank=3", {"words": ["a", "b c"], "rank": 3}),
        ("\ufeff--rank=3\r\n--name=é\r\n", {"rank": 3, "name": "é"}),
        ("# nothing\n", {}),
        ("--name=@home", {"name": "@home"}),
    ],
)
def test_a_file_stands_for_its_words(text, expected, tmp_path):
    args = parser().parse_args([write(tmp_path / "a.txt", text)])
    assert {name: getattr(args, name) for name in expected} == expected
    plain = [value for each in vars(args).values() for value in (each if isinstance(each, list) else [each])]
    assert all(type(value) in (str, int, bool, type(None)) for value in plain)  # nothing that torch.load would refuse


def test_what_comes_later_wins(tmp_path):
    first, second = write(tmp_path / "a.txt", "--rank=1 --name=a"), write(tmp_path / "b.txt", "--rank=2")
    assert parser().parse_args([first, "--rank", "5"]).rank == 5
    assert parser().parse_args(["--rank", "5", first]).rank == 1
    both = parser().parse_args([first, second])
    assert (both.rank, both.name) == (2, "a")


def test_flags_of_a_file_count_as_passed(tmp_path):
    made = parser()
    made.parse_args([write(tmp_path / "a.txt", "--rank=8"), "--name", "a"])
    assert made.given == {"--rank", "--name"}
    made.parse_args([])
    assert made.given == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--rank=3\n\n --rnak=4", "a.txt, line 3: unrecognized arguments: --rnak, did you mean --rank?"),
        ("--rank=3 --name\n--rank abc", "a.txt, line 1: argument --name: expected one argument"),
        ("\n--rank abc", "a.txt, line 2: argument --rank: invalid int value: 'abc'"),
        ("--kind=three", "a.txt, line 1: argument --kind: invalid choice: 'three'"),
        ("rank 3", "a.txt, line 1: unrecognized arguments: rank"),
        ("--rank=3\n--name='b\n", "a.txt, line 2: No closing quotation"),
        ("\n@b.txt", "a.txt, line 2: @b.txt: a recipe cannot read another one; pass both: @"),
    ],
)
def test_an_error_names_the_file_and_the_line(text, message, tmp_path):
    with pytest.raises(InputError) as error:
        parser().parse_args([write(tmp_path / "a.txt", text)])
    assert f"{tmp_path}/{message}" in str(error.value)


def test_a_recipe_without_its_at_sign_is_recognised(tmp_path):
    path = write(tmp_path / "a.txt", "--rank=3")[1:]
    with pytest.raises(InputError, match=rf"unrecognized arguments: {path}, did you mean @{path}\?"):
        parser().parse_args([path])


def test_an_error_on_the_command_line_is_not_blamed_on_the_file(tmp_path):
    recipe = write(tmp_path / "a.txt", "--rank=3")
    for words, message in ((["--rank", "abc"], "invalid int"), (["--rank"], "expected one"), (["--x"], "unrec")):
        with pytest.raises(InputError, match=message) as error:
            parser().parse_args([recipe, *words])
        assert "a.txt" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file or directory"), ("folder", "Is a directory"), (b"\xff\xfe-", "UTF-8")]
)
def test_a_file_that_cannot_be_read(content, reason, tmp_path):
    path = tmp_path / "a.txt"
    if content == "folder":
        path.mkdir()
    elif content:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"@.*a\.txt: cannot be read \(.*{reason}"):
        parser().parse_args([f"@{path}"])


def test_subcommands_read_files_and_name_the_line(tmp_path):
    from dataloaders.__main__ import main

    with pytest.raises(InputError, match=r"a\.txt, line 2: unrecognized arguments: --rooot"):
        main(["check", write(tmp_path / "a.txt", "--workers 1\n--rooot x")])


def test_help_tells_of_recipes(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    assert "@FILE reads flags from a file" in capsys.readouterr().out


def test_the_recipe_of_another_script_is_a_warning(tmp_path, capsys):
    recipe = write(tmp_path / "a.txt", "#     python other.py @a.txt --rank=3\n--rank=3")
    assert parser().parse_args([recipe]).rank == 3
    assert "a.txt is a recipe for other.py, not for train.py" in capsys.readouterr().err
    parser().parse_args([write(tmp_path / "b.txt", "# python train.py @b.txt\n--rank=3")])
    assert capsys.readouterr().err == ""


# recipes/


def test_every_file_in_the_folder_is_tested():
    assert {path.name for path in (ROOT / "recipes").iterdir()} == {path.name for path in MEMORY} | {*OTHERS, *PAPERS}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").iterdir()), ids=lambda path: path.name)
def test_every_recipe_continues_a_killed_run(path):
    lines = path.read_text().splitlines()
    assert lines.count("--resume_from_checkpoint=latest") == 1
    assert lines[0].startswith("# ") and max(map(len, lines)) < 120


class Parsed(Exception):
    pass


def parsed(script: str, words: list[str], monkeypatch) -> argparse.Namespace:
    """A script's flags, parsed and checked."""
    module, seen = importlib.import_module(script.removesuffix(".py")), []

    def settings_of(args):
        seen.append(args)
        raise Parsed

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(module, "settings_of", settings_of)
    monkeypatch.setattr("utils.training.args.check_base", lambda *_: None)  # no network in the tests
    monkeypatch.setattr("utils.training.args.check_folders", lambda *_: None)  # and no DIODE
    with pytest.raises(Parsed):
        module.main(words)
    return seen[0]


@pytest.mark.parametrize(("name", "script"), PAPERS.items())
def test_the_papers_recipes_have_exactly_the_papers_flags(name, script, monkeypatch):
    """The released commands' values (arXiv 2311.17137), written out; no other flag is passed."""
    task, single = SCRIPTS[script], script.startswith("sd_single")
    made = parsed(script, [f"@recipes/{name}"], monkeypatch)
    expected = {
        "pretrained_model_name_or_path": BASES["single-step" if single else "augunet"],
        "train_data_dir": "path/to/DIODE/normals" if task == "normal" else "path/to/DIODE/depths",
        "pseudo_root": "path/to/pseudo/labels",
        "output_dir": "path/to/output/dir",
        "train_batch_size": 4,
        "dataloader_num_workers": 4,
        "learning_rate": 1e-4,
        "report_to": "wandb",
        "lr_warmup_steps": 0,
        "max_train_steps": 20_000 if single else 50_000,
        "validation_steps": 2500,
        "checkpointing_steps": 2500,
        "rank": 8,
        "scene_types": "outdoor,indoors",
        "unified_prompt": {"normal": "surface normal", "depth": "depth map"}.get(task, task),
        "resume_from_checkpoint": "latest",
        "seed": 1234,
    }
    expected |= {"num_train_imgs": 4000} if single else {}
    assert {flag: getattr(made, flag) for flag in made.typed} == expected


@pytest.mark.parametrize(("name", "script"), [*PAPERS.items(), *OTHERS.items(), *((p.name, SCRIPT) for p in MEMORY)])
def test_a_recipe_runs_with_flags_after_it(name, script, flags, tmp_path, capsys, monkeypatch):
    """Two steps from each recipe on a random base, through the script's main."""
    monkeypatch.chdir(ROOT)
    addition = name.startswith("memory")
    recipe = [*(["@recipes/paper_normal.txt"] if addition else []), f"@recipes/{name}"]
    words = flags(script, tmp_path / "run", "--max_train_steps", 2, "--dataloader_num_workers", 0)
    batch = words.index("--train_batch_size")
    del words[batch : batch + 2]  # the recipe's own
    if name.startswith(("paper_", "memory")) and script.startswith("sd_single"):
        words += ["--num_train_imgs", "8"]
    if name == "own_data.txt":
        words += ["--dataset", "diode"]
    run_here(script, [*recipe, *words])
    assert sorted(losses(tmp_path / "run")) == [1, 2] and (tmp_path / "run" / SAFETENSORS).is_file()
    assert "no checkpoint in" in capsys.readouterr().out
    assert checkpoint.find(tmp_path / "run")[-1].name == "checkpoint-2"


@pytest.mark.parametrize("path", MEMORY, ids=lambda path: path.name)
def test_a_step_has_the_papers_number_of_images_in_any_memory(path, monkeypatch):
    made = parsed(SCRIPT, ["@recipes/paper_normal.txt", f"@{path}"], monkeypatch)
    assert made.train_batch_size * made.gradient_accumulation_steps == 4 and made.learning_rate == 1e-4


# the recipe that a run writes


def test_a_runs_recipe_makes_the_same_lora(flags, tmp_path, capsys):
    """Spaces, commas, quotes and a # survive; the written file alone, with another folder, repeats the run."""
    prompt, first, again = 'it\'s a "wall", #1 ', tmp_path / "a first run, #1", tmp_path / "again"
    words = flags(SCRIPT, first, "--max_train_steps", 3, "--unified_prompt", prompt)
    words += ["--lora_targets", "attention,conv"]
    run_here(SCRIPT, [*words, "--learning_rate=1e-4", "--adam_epsilon=1.5e-7", "--no-center_crop", "--masked_loss"])
    text, quoted = (first / RECIPE).read_text(), shlex.quote(prompt)
    assert all(f"\n{flag}\n" in text for flag in ("--no-center_crop", "--masked_loss", f"--unified_prompt={quoted}"))
    assert "--learning_rate=0.0001\n" in text, "passed, though at its default"
    assert "--rank" not in text and text.count("\n--resume_from_checkpoint=latest\n") == 1
    run_here(SCRIPT, [f"@{first / RECIPE}", f"--output_dir={again}"])
    assert distance(first, again) == 0 and losses(first) == losses(again)
    for path, folder in ((first, again), (again, first)):
        theirs = (folder / RECIPE).read_text().splitlines()
        lines = [line for line in (path / RECIPE).read_text().splitlines() if line not in theirs]
        assert all(line.startswith(("--output_dir=", "#     python")) for line in lines)
    capsys.readouterr()
    run_here(SCRIPT, [f"@{first / RECIPE}"])  # as it is: the same folder
    assert "already finished: 3 of 3 steps" in capsys.readouterr().out


def test_recommended_settings_of_a_base_are_written_out(diode, tmp_path):
    words = ["--pretrained_model_name_or_path", ROOT / "miniworld" / "mini-sd"]
    words += ["--train_data_dir", diode / "normals"]
    words += ["--pseudo_root", diode / "pseudo" / "normal", "--output_dir", tmp_path / "run", "--report_to", "none"]
    words += ["--max_train_steps", 1, "--train_batch_size", 1, "--validation_steps", 0]
    run_here(SCRIPT, list(map(str, words)))
    text = (tmp_path / "run" / RECIPE).read_text()
    assert all(f"\n{flag}\n" in text for flag in ("--timestep=400", "--learning_rate=0.004", "--resolution=64"))


def test_secrets_and_flags_of_one_start_are_not_written(monkeypatch):
    monkeypatch.setattr("utils.training.args.check_folders", lambda *_: None)
    base = ["--pretrained_model_name_or_path", str(ROOT / "miniworld" / "mini-ip2p"), "--train_data_dir", "y"]
    words = [*base, "--pseudo_root", "z", "--max_train_steps", "5", "--push_to_hub", "--hub_token", "hf_secret"]
    args = parse(training_parser("", {}), [*words, "--unified_prompt", "a", "--force_resume", *RESUME])
    assert "--push_to_hub" in args.recipe and "--max_train_steps=5" in args.recipe
    assert not any(word.startswith(("--hub_token", "--force", "--resume")) for word in args.recipe)
    epochs = parse(training_parser("", {}), [*words[:6], "--unified_prompt", "a", "--num_train_epochs", "3"])
    assert "--num_train_epochs=3" in epochs.recipe and not any("max_train_steps" in word for word in epochs.recipe)


def test_a_resumed_run_keeps_its_recipe_and_a_changed_one_both(flags, tmp_path):
    words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 2, *RESUME)
    run_here(SCRIPT, words)
    first = (tmp_path / "run" / RECIPE).read_text()
    (tmp_path / "run" / SAFETENSORS).unlink()
    run_here(SCRIPT, words)
    assert (tmp_path / "run" / RECIPE).read_text() == first
    run_here(SCRIPT, [*words, "--max_train_steps", "3"])
    text = (tmp_path / "run" / RECIPE).read_text()
    assert "--max_train_steps=3\n" in text and "From step 2 on; until then: recipe-until-2.txt" in text
    assert (tmp_path / "run" / "recipe-until-2.txt").read_text() == first


# the same command again


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a folder but its lock: content and time of change."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("length", [("--max_train_steps", 3), ("--num_train_epochs", 1, "--max_train_samples", 6)])
def test_a_finished_run_says_so_and_writes_nothing(length, flags, tmp_path, capsys):
    words = flags(SCRIPT, tmp_path / "run", *length, *RESUME)
    run_here(SCRIPT, words)
    before = snapshot(tmp_path / "run")
    capsys.readouterr()
    run_here(SCRIPT, words)
    told = capsys.readouterr().out
    assert f"already finished: 3 of 3 steps in {tmp_path / 'run'}; nothing was written" in told
    assert "next: python inference_sd_single.py --lora" in told and "a larger --max_train_steps" in told
    assert snapshot(tmp_path / "run") == before


def test_a_finished_run_of_other_flags_is_still_refused(flags, tmp_path):
    words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 1, "--validation_steps", 0, *RESUME)
    run_here(SCRIPT, words)
    with pytest.raises(InputError, match="another experiment"):
        run_here(SCRIPT, [*words, "--unified_prompt", "depth map"])


def test_a_run_killed_before_its_lora_was_written_is_finished_by_the_same_command(flags, tmp_path, capsys):
    words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 2, *RESUME)
    run_here(SCRIPT, words)
    run_here(SCRIPT, [*words, "--max_train_steps", "3"])
    (tmp_path / "run" / SAFETENSORS).rename(tmp_path / "three")
    shorter = tmp_path / "run" / "checkpoint-2" / SAFETENSORS  # killed after the last checkpoint of a longer run
    (tmp_path / "run" / SAFETENSORS).write_bytes(shorter.read_bytes())
    capsys.readouterr()
    run_here(SCRIPT, [*words, "--max_train_steps", "3"])
    assert "already finished" not in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    (tmp_path / "three").rename(tmp_path / "other" / SAFETENSORS)
    assert distance(tmp_path / "run", tmp_path / "other") == 0


def begin(words: list[str], log: Path):
    """A run in a process of its own, once its progress bar shows a step."""
    log.mkdir()
    process = start_fork((SCRIPT, *words), log)
    bar = re.compile(r"training: .*\| [1-9]\d*/")
    shown = log / "stderr"
    wait_for(lambda: shown.exists() and bar.search(shown.read_text()), process.is_alive, shown)
    return process


@pytest.mark.slow
def test_the_same_command_after_kill_ctrl_c_and_the_end(flags, tmp_path):
    """Real processes: killed before the first checkpoint, stopped by Ctrl-C, finished, and once more."""
    folder, steps = tmp_path / "run", 60
    words = flags(SCRIPT, folder, "--max_train_steps", steps, *RESUME)
    words[words.index("--validation_steps") + 1] = "0"

    process = begin(words, tmp_path / "killed")
    process.kill()
    process.join()
    assert checkpoint.find(folder) == [] and losses(folder)

    process = begin(words, tmp_path / "stopped")
    os.kill(process.pid, signal.SIGINT)
    process.join(PATIENCE)
    told = (tmp_path / "stopped" / "stdout").read_text()
    assert process.exitcode == 0 and f"no checkpoint in {folder} yet; starting from step 0" in told
    assert "by SIGINT; saved: checkpoint-" in told and "next: run the same command" in told
    assert not (folder / SAFETENSORS).exists()

    done = fork(SCRIPT, *words)
    assert "resuming from" in done.stdout and sorted(losses(folder)) == list(range(1, steps + 1))
    before = snapshot(folder)
    done = fork(SCRIPT, *words)
    assert done.returncode == 0 and f"already finished: {steps} of {steps} steps" in done.stdout
    assert snapshot(folder) == before and len(records(folder)) == steps


@pytest.mark.slow
def test_a_recipe_under_the_interpreter_and_two_processes(flags, tmp_path):
    """A run of the interpreter writes the script's own name and version; two processes write the launcher's line."""
    words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 1, "--validation_steps", 0)
    recipe = write(tmp_path / "mine.txt", "\n".join(map(shlex.quote, words)))
    done = subprocess.run([sys.executable, SCRIPT, recipe], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run" / RECIPE).read_text()
    assert f"#     python {SCRIPT} @{tmp_path / 'run' / RECIPE} --output_dir=another/folder\n" in text
    fork(SCRIPT, *words, "--output_dir", tmp_path / "two", processes=2)
    assert f"accelerate launch --num_processes 2 {SCRIPT} @" in (tmp_path / "two" / RECIPE).read_text()
