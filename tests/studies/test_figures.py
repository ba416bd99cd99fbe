"""make figures: every image of docs/ is drawn by it, or the command that draws it is named."""

import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

from studies import figures
from utils.errors import InputError

FOLDERS = (ROOT / "docs", ROOT / "studies" / "results")
IMAGES = {path.name: path for folder in FOLDERS for path in folder.iterdir() if path.suffix in (".png", ".jpg")}


def test_every_image_has_one_source():
    drawn = [Path(image).name for figure in figures.FIGURES.values() for image in figure.images]
    listed = [*drawn, *figures.ELSEWHERE]
    assert len(listed) == len(set(listed))
    assert set(listed) - {"room.jpg"} == IMAGES.keys()


def test_the_images_are_small():
    """At most the bytes that they had before `make figures`: they are downloaded with every clone."""
    assert sum(path.stat().st_size for path in IMAGES.values()) <= 2_711_102


def test_a_figure_whose_program_is_missing_is_left_out_with_a_warning(monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("BPY_PYTHON", raising=False)
    assert figures.main(["report", "blender"]) == 1
    said = capsys.readouterr()
    for image, program in (("report.png", "Chromium"), ("blender.jpg", "Blender")):
        assert f"warning: {image}: not drawn, needs {program}" in said.out + said.err
    assert "done: 0 of 2 figures" in said.out


def test_an_unknown_figure_is_refused():
    with pytest.raises(InputError, match="nothing: no such figure; take of room, teaser"):
        figures.main(["nothing"])


@pytest.mark.slow  # 15 CPU seconds of bootstrap
def test_charts_are_drawn_from_the_recorded_numbers_with_titles(monkeypatch, tmp_path):
    from matplotlib.axes import Axes

    for name in ("paper_questions.json", "generators.json"):
        (tmp_path / name).write_bytes((FOLDERS[1] / name).read_bytes())
    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **_: titles.append(text))
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    assert figures.main(["questions", "generators"]) == 0
    charts = {path.name for path in tmp_path.glob("*.png")}
    assert charts == {*figures.FIGURES["questions"].images, *figures.FIGURES["generators"].images}
    assert len(titles) == 6 and all(titles)


def test_make_figures_runs_it():
    said = subprocess.run(["make", "-n", "figures"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m studies.figures" in said
