"""The page of all families: ratios in closed form, what stays of an earlier run, and diffusion's answers."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from studies.families_page import FAMILIES, FLOW_TIME, TIMESTEP, of_diffusion, over, write_page
from studies.probe import Setting

STUDY = {"steps": 1, "batch": 2, "images": 3, "rate": 0.1}


def row(trained: float, random: float, mean: float, seeds: int = 2, pictures: int = 3) -> dict:
    def constant(value: float, rows: int) -> list[list[float]]:
        return np.full((rows, pictures), value).tolist()

    errors = {"trained": constant(trained, seeds), "random": constant(random, seeds), "mean": constant(mean, 1)}
    return {"errors": errors, "parameters": 7}


def test_a_ratio_of_constants_is_certain():
    assert over(row(2, 3, 5), "random").text == "1.50 [1.50, 1.50]"
    assert over(row(2, 3, 5), "mean").text == "2.50 [2.50, 2.50]"


def test_images_that_are_hard_for_both_do_not_widen_the_interval():
    hard = row(1, 1, 1)
    hard["errors"]["trained"] = [[1.0, 10.0, 100.0]] * 2
    hard["errors"]["mean"] = [[2.0, 20.0, 200.0]]
    assert over(hard, "mean").text == "2.00 [2.00, 2.00]"


def test_families_not_asked_again_are_kept_and_other_studies_removed(tmp_path):
    write_page({"gan": {"normal": row(2, 3, 5)}}, {}, STUDY, tmp_path)
    text = write_page({"ar": {"depth": row(1, 2, 4)}, "gan": {"albedo": row(1, 1, 1)}}, {}, STUDY, tmp_path)
    known = json.loads((tmp_path / "generators.json").read_text())["answers"]
    assert {name: set(rows) for name, rows in known.items()} == {"gan": {"normal", "albedo"}, "ar": {"depth"}}
    assert "1.50 [1.50, 1.50] / 2.50 [2.50, 2.50]" in text and "not run" in text
    assert text in (tmp_path / "generators.md").read_text() and (tmp_path / "generators.png").stat().st_size > 1000
    unscored = row(1, 2, 4, pictures=20)
    unscored["errors"]["trained"][0][5] = float("nan")
    text = write_page({"ar": {"depth": unscored}}, {}, STUDY | {"steps": 2}, tmp_path)
    found = json.loads((tmp_path / "generators.json").read_text(), parse_constant=pytest.fail)["answers"]
    assert set(found) == {"ar"} and found["ar"]["depth"]["errors"]["trained"][0][5] is None
    assert "2.00 [2.00, 2.00] / 4.00 [4.00, 4.00]" in text


def test_diffusions_answers_are_those_of_its_own_study(tmp_path):
    def result(unet: str, targets: str, timestep: int, error: float) -> dict:
        setting = asdict(Setting(unet=unet, targets=targets, timestep=timestep))
        return {"setting": setting, "parameters": 9, "errors": [error, None]}

    results = [
        result(unet, "all", timestep, error + timestep)
        for timestep in (TIMESTEP, 999)
        for unet, error in (("pretrained", 1.0), ("random", 2.0))
    ]
    path = tmp_path / "paper_questions.json"
    assert of_diffusion(path, {"normal": {}}) == {}
    flow = [
        result(unet, "all", time, error)
        for unet, error in (("pretrained", 3.0), ("random", 6.0))
        for time in (FLOW_TIME, 0.9)
    ]
    path.write_text(json.dumps({"answers": {"1": results, "1-velocity": results, "7-control": flow}}))
    found = of_diffusion(path, {"normal": {"mean": np.array([[4.0, 5.0]])}, "depth": {}})
    assert set(found) == {"diffusion-all", "diffusion-velocity", "flow"} <= set(FAMILIES)
    assert set(found["diffusion-all"]) == {"normal"}
    assert (
        found["flow"]["normal"]["errors"]["trained"][0][0] == 3 and over(found["flow"]["normal"], "random").value == 2
    )
    errors = found["diffusion-all"]["normal"]["errors"]
    assert errors["trained"][0][0] == 1 + TIMESTEP and errors["random"][0][0] == 2 + TIMESTEP
    assert np.isnan(errors["trained"][0][1]) and errors["mean"] == [[4.0, 5.0]]
