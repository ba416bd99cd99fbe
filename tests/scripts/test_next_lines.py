"""The last line of a command is the next command, which can be pasted; console lines are words with units."""

import argparse
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

import evaluate
import pseudo_label
from dataloaders import check
from utils.errors import InputError, list_failed
from utils.evaluation.args import parse_args
from utils.inference.args import inference_parser
from utils.inference.output import Output
from utils.intrinsics import ALBEDO, DEPTH, NORMAL
from utils.training import loop
from utils.training.args import SINGLE_STEP_REFUSES, training_parser
from utils.training.validation import headline


def next_words(out: str) -> list[str]:
    line = out.rstrip().splitlines()[-1]
    assert line.startswith("next: "), line
    return shlex.split(line.removeprefix("next: "))


def own_data(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("images/a b.png", "labels/a b.png"):
        (root / name).parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(root / name)
    return root


def test_a_check_names_the_training(tmp_path, capsys):
    root = own_data(tmp_path / "my data")
    words = ["--dataset", "folder", "--train_data_dir", str(root), "--task", "albedo", "--workers", "1"]
    assert check.main(words) == 0
    python, script, *flags = next_words(capsys.readouterr().out)
    assert [python, script] == ["python", "sd_single_diode_pseudo_albedo.py"]
    args = training_parser("", SINGLE_STEP_REFUSES).parse_args(flags)
    assert (args.dataset, args.train_data_dir, args.output_dir) == ("folder", str(root), "runs/albedo")
    (root / "labels/a b.png").write_bytes(b"")
    assert check.main(words) == 1 and "next:" not in capsys.readouterr().out


@pytest.mark.parametrize(("folder", "flags"), [
    ("DIODE/depths", {"root": Path("DIODE")}),
    ("my data/images", {"dataset": "folder", "train_data_dir": Path("my data")}),
])  # fmt: skip
def test_labels_name_their_check(folder, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir(parents=True)
    source = Path("DIODE") if folder.startswith("DIODE") else Path(folder)
    line = pseudo_label.what_next(argparse.Namespace(input_dir=source, output_dir=Path("my labels")))
    python, module, package, command, *words = shlex.split(line)
    assert [python, module, package, command] == ["python", "-m", "dataloaders", "check"]
    parser = check.Parser()
    check.add_flags(parser)
    found = vars(parser.parse_args(words))
    assert {name: found[name] for name in flags} == flags and found["pseudo_root"] == Path("my labels")


@pytest.mark.parametrize(("made", "data", "images"), [
    ("my DIODE/depths/val/a.png", "my DIODE/normals", "my DIODE/depths/val"),
    ("own/images/b/c.JPG", "own", "own/images/b/c.JPG"),
    ("split/images/val/a.png", "split", "split/images/val"),
    ("empty/a.txt", "nowhere", None), ("own/images/a.txt", "own", None),
])  # fmt: skip
def test_a_training_names_the_prediction_of_images_that_are_there(made, data, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(made).parent.mkdir(parents=True)
    Path(made).touch()
    settings = argparse.Namespace(flags={"train_data_dir": data}, trackers=(), validation_steps=0)
    lines = loop.outcome(Path("my runs/a"), {"method": "single-step"}, settings)
    python, script, *flags = next_words(lines)
    args = inference_parser("", "x", "single-step").parse_args(flags)
    assert (python, script, args.lora) == ("python", "inference_sd_single.py", "my runs/a")
    assert Path(args.input_dir).exists() and (images is None or args.input_dir == images)


def test_an_evaluation_names_its_report_or_the_way_to_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("gt", "my maps"):
        Path(folder).mkdir()
        np.save(f"{folder}/a.npy", np.float32([[[0, 0, -1]] * 8] * 8))
    evaluate.main(["--task", "normal", "--pred_dir", "my maps", "--gt_dir", "gt"])
    python, script, *words = next_words(capsys.readouterr().out)
    assert (python, script) == ("python", "evaluate.py") and parse_args("", words).report == Path("report")
    monkeypatch.setattr("sys.argv", ["evaluate.py", *words[:-2]])  # as the command line passes them
    evaluate.main()
    assert next_words(capsys.readouterr().out) == [python, script, *words]
    evaluate.main(words)
    assert next_words(capsys.readouterr().out) == ["open", "report/index.html"]
    assert Path("report/index.html").is_file()


def test_a_prediction_that_two_images_of_one_stem_claim_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    up = np.float32([[[0, 0, -1]] * 8] * 8)
    for name in ("pred/IMG_1.jpg_normal.npy", "pred/IMG_1.png_normal.npy", "gt/IMG_1.npy"):
        Path(name).parent.mkdir(exist_ok=True)
        np.save(name, up)
    words = ["--task", "normal", "--pred_dir", "pred", "--gt_dir", "gt", "--output", "m.json"]
    claims = r"^gt/IMG_1\.npy: \S+IMG_1\.jpg_normal\.npy and \S+IMG_1\.png_normal\.npy share its stem; .*\.jpg\.npy"
    with pytest.raises(InputError, match=claims):
        evaluate.main(words)
    Path("gt/IMG_1.npy").rename("gt/IMG_1.jpg.npy")
    evaluate.main(words)
    assert "all: 1 images" in capsys.readouterr().out


def test_scores_and_notes_are_words_with_units():
    scores = {"val/indoors/mean": 21.03421, "val/indoors/median": 4.0, "val/outdoor/mean": 30.5}
    assert headline(scores, NORMAL) == "indoors: mean angle 21.034 degrees, outdoor: mean angle 30.500 degrees"
    assert headline({"val/val/label_mean": 3.0}, NORMAL) == "val: mean angle from the label 3.000 degrees"
    assert headline({"val/val/abs_rel": 0.1}, DEPTH) == "val: AbsRel after scale and shift 0.100"
    assert headline({}, NORMAL) == ""
    (line,) = Output(("png16",)).said([ALBEDO])
    assert line.startswith("albedo: colour space sRGB-coded")


def test_every_folder_command_ends_with_the_files_that_failed(capsys, monkeypatch):
    assert list_failed("images could not be read", []) == 0 and capsys.readouterr().err == ""
    assert list_failed("images could not be read", ["a.png: x", "b.png: y"]) == 1
    assert capsys.readouterr().err.splitlines() == ["error: 2 images could not be read:", "  a.png: x", "  b.png: y"]
    monkeypatch.setenv("RANK", "1")
    assert list_failed("images could not be read", ["a.png: x"]) == 1 and capsys.readouterr().err == ""


@pytest.mark.parametrize("script", ["inference_sd_single.py", "inference_augunet.py", "evaluate.py"])
def test_a_command_runs_as_a_program_and_not_where_it_is_imported(script, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [script, "--help"])
    runpy.run_path(str(ROOT / script), run_name="imported")
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: {script}")
