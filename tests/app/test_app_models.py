"""Which LoRAs the app offers, ticks and takes together; and maps that have no surface."""

import shutil

import pytest
import torch
from PIL import Image

from app.models import Models
from app.page import surface_file
from app.results import Result, export
from utils.errors import InputError
from utils.inference.job import SHIPPED
from utils.inference.prediction import Prediction
from utils.intrinsics import DEPTH, INTRINSICS, NORMAL


@pytest.fixture(scope="module")
def models() -> Models:
    return Models([str(SHIPPED / name) for name in (*INTRINSICS, "augunet/normal")])


def result(intrinsic) -> Result:
    return Result(Image.new("RGB", (8, 6)), "a", {intrinsic.name: Prediction(intrinsic, torch.rand(3, 6, 8))})


def test_one_lora_of_every_intrinsic_is_ticked_at_first(models):
    assert models.first_choice() == [f"{name} (mini-loras/{name})" for name in INTRINSICS]
    assert list(models.jobs)[-1] == "normal, diffusion (augunet/normal)"


def test_a_toy_is_told_by_its_model_card_and_not_by_its_name(models, tmp_path):
    said = "is a toy: it demonstrates the pipeline, not the quality you get with Stable Diffusion."
    assert models.toys() == f"mini-sd {said}"
    base = tmp_path / "mine"
    shutil.copytree(SHIPPED.parent / "mini-sd", base)
    mine = Models([str(SHIPPED / "normal")], base=str(base))
    assert mine.toys() == f"mine {said}"
    card = base / "README.md"
    card.write_text(card.read_text().replace("- toy\n", "- stable-diffusion\n"))
    assert mine.toys() == ""
    card.unlink()
    assert mine.toys() == ""


def test_what_does_not_go_together_is_refused(models):
    with pytest.raises(InputError, match="two of the ticked LoRAs predict normal"):
        models.check(models.jobs)
    with pytest.raises(InputError, match="no LoRA is ticked"):
        models.check([])
    with pytest.raises(InputError, match="no LoRA is ticked"):
        models.check(["../../etc/passwd"])  # a label that was never offered


def test_loras_of_one_name_in_several_folders_are_all_offered(tmp_path):
    for run in ("a", "b"):
        shutil.copytree(SHIPPED / "depth", tmp_path / run / "out" / "depth")
    found = Models([str(tmp_path / run / "out" / "depth") for run in ("a", "b")], base=SHIPPED.parent / "mini-sd")
    assert list(found.jobs) == ["depth (out/depth)", f"depth ({tmp_path}/b/out/depth)"]


def test_maps_are_there_even_where_no_surface_can_be_made():
    assert surface_file(result(DEPTH), 1, 4, 60).endswith(".glb")
    assert surface_file(result(DEPTH), 4, 1, 60) is None
    assert surface_file(result(NORMAL), 1, 4, 60) is None


@pytest.mark.parametrize(
    ("intrinsic", "formats", "reason"),
    [(DEPTH, [], "no format is ticked"), (NORMAL, ["GLB"], "made of depth, and these LoRAs predict normal")],
)
def test_files_that_cannot_be_made_are_refused(intrinsic, formats, reason):
    with pytest.raises(InputError, match=reason):
        export(result(intrinsic), formats, 1, 4, 60)


def test_a_result_takes_its_files_with_it():
    one = result(NORMAL)
    [path] = export(one, ["PNG, 16 bits"], 1, 4, 60)
    assert path.name == "a_normal_16bit.png" and path.is_file()
    one.remove()
    assert not one.folder.exists()
