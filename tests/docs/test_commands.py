"""Commands in README and docs: every one parses, and the paper's four are those of the released README."""

import importlib
import re
import shlex

import pytest
from helpers import ROOT, SCRIPTS

from utils.cli import read_recipe

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIRST = {"accelerate", "python"}  # words that a command of this project begins with


def commands(text: str) -> list[list[str]]:
    """The words of every command that starts a script of this project, in a page's bash and sh blocks."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and line[0] in FIRST and script_of(line)]


def script_of(words: list[str]) -> str | None:
    return next((word for word in words if re.fullmatch(r"[a-z_]+\.py", word)), None)


def flags_of(words: list[str]) -> list[str]:
    """The flags of a command, those of its recipes included."""
    flags = words[words.index(script_of(words)) + 1 :]
    recipes = [ROOT / word[1:] for word in flags if word.startswith("@recipes/")]
    return [flag for path in recipes for flag in read_recipe(path)[0]] + [f for f in flags if not f.startswith("@")]


SHOWN = [(page.name, words) for page in PAGES for words in commands(page.read_text())]
SHOWN = [(page, words) for page, words in SHOWN if "@runs/" not in " ".join(words)]  # a run's own: test_recipes.py
NAMES = [f"{page}-{script_of(words)}" for page, words in SHOWN]


class ParsedError(Exception):
    """Raised where a training script has parsed its flags."""


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=NAMES)
def test_the_command_parses(page, words, monkeypatch):
    name = script_of(words)
    rest = words[words.index(name) + 1 :]
    module = importlib.import_module(name.removesuffix(".py"))
    if name == "evaluate.py":
        from utils.evaluation.args import parse_args

        assert parse_args("", rest).task
    elif name in (*SCRIPTS, "gan_pseudo.py", "ar_pseudo.py"):

        def stop(settings):
            raise ParsedError

        monkeypatch.chdir(ROOT)
        monkeypatch.setattr("utils.training.loop.start", stop)
        monkeypatch.setattr("utils.training.args.check_base", lambda *_: None)  # no network in the tests
        monkeypatch.setattr("utils.training.args.check_folders", lambda *_: None)  # and no DIODE
        with pytest.raises(ParsedError):
            module.main(rest)
    else:
        assert module.parse(rest)


def test_the_papers_four_commands_keep_the_released_values():
    text = (ROOT / "docs" / "training.md").read_text()
    in_docs = commands(re.search(r"## The paper's four commands\n(.*?)\n## ", text, re.DOTALL)[1])
    assert {script_of(words) for words in in_docs} == {
        script for script, task in SCRIPTS.items() if task in ("normal", "depth")
    }
    for words in in_docs:
        task = SCRIPTS[script_of(words)]
        expected = {
            "--train_data_dir=path/to/DIODE/" + {"normal": "normals", "depth": "depths"}[task],
            "--unified_prompt=" + {"normal": "surface normal", "depth": "depth map"}[task],
            "--max_train_steps=" + ("20000" if script_of(words).startswith("sd_single") else "50000"),
            *"--pseudo_root=path/to/pseudo/labels --output_dir=path/to/output/dir --train_batch_size=4".split(),
            *"--dataloader_num_workers=4 --learning_rate=1e-4 --report_to=wandb --lr_warmup_steps=0".split(),
            *"--validation_steps=2500 --checkpointing_steps=2500 --rank=8 --scene_types=outdoor,indoors".split(),
            *"--resume_from_checkpoint=latest --seed=1234".split(),
        }
        assert expected <= set(flags_of(words))
        assert ("--num_train_imgs=4000" in flags_of(words)) == script_of(words).startswith("sd_single")


def test_the_readme_shows_one_of_them_written_out():
    shown = [words for page, words in SHOWN if page == "README.md" and "--max_train_steps=20000" in words]
    assert len(shown) == 1 and script_of(shown[0]) == "sd_single_diode_pseudo_normal.py"
    assert sorted(flags_of(shown[0])) == sorted(read_recipe(ROOT / "recipes" / "paper_normal.txt")[0])
