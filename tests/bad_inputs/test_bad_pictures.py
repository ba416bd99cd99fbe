"""Broken images among good ones, through the inference script."""

from pathlib import Path

import pytest
from bad_files import encoded, pictures
from refusals import main_refused, outcome

import inference_sd_single
from utils.errors import InputError

GOOD = ("fine.png", "schön 法線.png", "good\nline.png")
LINKS = {"loop.png": "loop.png", "nowhere.png": "/nowhere/at/all.png"}
pytestmark = pytest.mark.bad_input


@pytest.fixture(scope="module")
def inference(weights, tmp_path_factory):
    """(input folder, output folder, status, stderr) of one run on all of them."""
    home = tmp_path_factory.mktemp("images")
    folder, out = home / "in", home / "out"
    folder.mkdir()
    for name, content in {**pictures(), **dict.fromkeys(GOOD, encoded("PNG"))}.items():
        (folder / name).write_bytes(content)
    for name, target in LINKS.items():
        (folder / name).symlink_to(target)
    words = ["--lora", weights, "--input_dir", folder, "--output_dir", out, "--device", "cpu"]
    return folder, out, *outcome(lambda: inference_sd_single.main([str(word) for word in words]))


@pytest.mark.parametrize("name", [*pictures(), *LINKS])
def test_a_bad_image_is_named_with_the_fix(name, inference):
    folder, out, _, stderr = inference
    shown = InputError(str(folder / name)).args[0]
    lines = [line for line in stderr.splitlines() if line.strip().startswith(f"{shown}: ")]
    cures = ("replace or remove it", "save the image with", "scale it down")
    assert len(lines) == 1 and any(cure in lines[0] for cure in cures) and "attack" not in lines[0]
    assert not (out / "normal/predicted" / f"{Path(name).stem}_normal.png").exists()


def test_the_good_ones_are_predicted_and_the_bad_ones_counted(inference):
    _, out, status, stderr = inference
    bad = len(pictures()) + len(LINKS)
    assert status == 1 and f"{bad} images could not be read" in stderr and "Traceback" not in stderr, stderr
    assert len(stderr.split("could not be read:\n")[1].splitlines()) == bad
    written = {path.name for path in (out / "normal/predicted").iterdir()}
    assert written == {f"{Path(name).stem}_normal.png" for name in GOOD}


@pytest.mark.parametrize(("name", "out", "expected"), [
    ("x" * 250, "out", "xxx_normal.png: cannot be written.*too long"),
    ("x", "file", "file.*cannot be written"),
])  # fmt: skip
def test_a_prediction_that_cannot_be_written(name, out, expected, weights, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"{name}.png").write_bytes(encoded("PNG"))
    (tmp_path / "file").touch()
    words = ["--lora", weights, "--input_dir", tmp_path / "in", "--device", "cpu", "--output_dir", tmp_path / out]
    main_refused("inference_sd_single.py", words, expected)
    assert not list(tmp_path.rglob("*.part"))
