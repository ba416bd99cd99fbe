"""The paper's questions: intervals in closed form, a real tiny study, and that it resumes and does what it says."""

import argparse
import json
import shutil
from copy import deepcopy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers import ROOT

from miniworld import scenes
from studies import paper_questions
from studies.answers import write_answers
from studies.probe import (
    HALVES,
    PLACES,
    TOLERANCE,
    Recipe,
    Setting,
    equal_ranks,
    load_task,
    make_unet,
    place_lora,
    probe,
    states_of,
)
from studies.tables import interval, matrix, resample, spearman
from utils.base_model.families import open_base
from utils.base_model.stable_diffusion import load_base
from utils.intrinsics import INTRINSICS

FOLDERS = {"base": "mini-sd", "flow": "mini-flow"}
RECIPE = Recipe(steps=2, batch=4, mixed_precision="no", resolution=32)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    scenes.main(["--root", str(root), "--train", "8", "--val", "4", "--size", "48x40", "--truth"])
    return root


@pytest.fixture(scope="module")
def base(bases):
    return load_base(str(bases["sd15"]))


def test_interval_covers_the_mean_of_noise():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(60):
        low, high = interval(resample(rng.normal(5, 2, (1, 80)), draws=400))
        inside += low < 5 < high
    assert 50 <= inside <= 60  # about 57 of 60
    values = np.array([[1.0, 2, 3], [2, 3, 4]])
    assert np.allclose(resample(values + 1) - resample(values), 1)  # the same draws for all settings: paired
    assert np.isclose(resample(values).mean(), 2.5, atol=0.05)


def test_spearman_equals_hand_computed_correlations():
    assert spearman([1, 2, 3, 4], [10, 20, 25, 90]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7.5]) == pytest.approx(0.9)
    assert matrix([{"errors": [1, None]}, {"errors": [2, 3]}]).tolist()[1] == [2, 3]


def test_settings_change_what_they_say(world, base, tmp_path):
    data = load_task(world, "normal", base, RECIPE, tmp_path)
    usual = Setting(labels=8, rank=2)
    first = probe(base, data, usual, RECIPE)
    assert len(first["errors"]) == 4 and all(0 < error < 180 for error in first["errors"])
    assert probe(base, data, usual, RECIPE) == first  # a function of the setting alone
    for change in ({"unet": "random"}, {"rank": 4}, {"labels": 5}, {"timestep": 0}, {"where": "q"}, {"seed": 1},
                   {"targets": "all"}, {"targets": "feedforward"}):  # fmt: skip
        other = probe(base, data, replace(usual, **change), RECIPE)
        assert other["errors"] != first["errors"], change
    assert probe(base, data, replace(usual, rank=4), RECIPE)["parameters"] == 2 * first["parameters"]


def test_places_are_parts_of_the_lora(base):
    counts = {}
    for where in PLACES:
        unet = make_unet(base, Setting())
        trained = place_lora(unet, Setting(where=where, rank=2))
        counts[where] = sum(parameter.numel() for parameter in trained)
        assert all(PLACES[where] in name for name, value in unet.named_parameters() if value.requires_grad)
    for parts in (("self-attention", "cross-attention"), ("q", "k", "v", "out"), ("down", "mid", "up")):
        assert sum(counts[part] for part in parts) == counts["everywhere"]


def test_kinds_of_layers_are_compared_at_equally_many_parameters():
    """On mini-sd, counted on the LoRAs themselves."""
    base = load_base(str(ROOT / "miniworld" / "mini-sd"))
    ranks = equal_ranks(base.unet, paper_questions.KINDS, paper_questions.EQUAL_RANK)
    assert list(ranks) == list(paper_questions.KINDS) and ranks["all"] >= paper_questions.EQUAL_RANK
    counts = {}
    for targets, rank in ranks.items():
        unet = make_unet(base, Setting())
        counts[targets] = sum(one.numel() for one in place_lora(unet, Setting(targets=targets, rank=rank)))
    assert all(abs(count / counts["all"] - 1) <= TOLERANCE for count in counts.values()), counts


def test_a_flow_transformers_places_are_halves_of_its_blocks_and_kinds_have_equally_many_parameters():
    network = open_base(str(ROOT / "miniworld" / "mini-flow")).network
    ranks = equal_ranks(network, paper_questions.FLOW_KINDS, paper_questions.EQUAL_RANK)
    settings = [Setting(targets=targets, rank=rank) for targets, rank in ranks.items()]
    settings += [Setting(targets="all", rank=2, where=where) for where in ("everywhere", *HALVES)]
    counts, blocks = [], []
    for setting in settings:
        lora = deepcopy(network)
        counts.append(sum(one.numel() for one in place_lora(lora, setting)))
        blocks.append({name.split(".")[1] for name, one in lora.named_parameters()
                       if one.requires_grad and name.startswith("transformer_blocks")})  # fmt: skip
    assert all(abs(count / counts[3] - 1) <= TOLERANCE for count in counts[:4]), counts
    everywhere, first, last = counts[4:]
    assert 0.9 * everywhere < first + last < everywhere  # the rest is before and after the blocks
    assert blocks[4:] == [set("012345"), set("012"), set("345")]


def test_a_flow_transformer_is_probed_without_the_zeros_of_an_absent_t5():
    base = open_base(str(ROOT / "miniworld" / "mini-flow"))
    whole, short = base.encode_prompt("depth map")["text"], states_of(base, "depth map")["text"]
    assert short.shape[1] < whole.shape[1] and torch.equal(short, whole[:, : short.shape[1]])
    assert not whole[:, short.shape[1] :].any()


def test_results_are_found_again_once_the_prompts_states_are_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = open_base(str(ROOT / "miniworld" / "mini-flow"))
    first, again = (paper_questions.runs_folder(tmp_path, RECIPE, tmp_path, base) for _ in range(2))
    assert list((tmp_path / "cache").rglob("*.safetensors")) and first == again


def test_a_place_that_the_lora_does_not_have_is_no_setting(base):
    with pytest.raises(ValueError, match="is in self-attention"):
        place_lora(make_unet(base, Setting()), Setting(targets="conv", where="self-attention"))


def test_random_unets_differ_by_seed_and_snapshots_are_loaded(base, tmp_path):
    weights = [make_unet(base, Setting(unet="random", seed=seed)).conv_in.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    snapshot = make_unet(base, Setting(unet="random", seed=5))
    torch.save({"unet": snapshot.state_dict()}, tmp_path / "ema-000001.pt")
    loaded = make_unet(base, Setting(unet=str(tmp_path / "ema-000001.pt")))
    assert torch.equal(loaded.conv_in.weight, snapshot.conv_in.weight)


@pytest.mark.slow
def test_a_study_resumes_and_writes_its_page(world, bases, tmp_path, monkeypatch):
    flow = tmp_path / "mini-flow"
    shutil.copytree(ROOT / "miniworld" / "mini-flow", flow)  # with its card, which the study writes into
    words = ["--base", bases["sd15"], "--data", world, "--work", tmp_path / "work", "--docs", tmp_path / "docs"]
    words += ["--flow_base", flow, "--questions", 1, 6, "7-control", "7-place", "--seeds", 1, "--steps", 1]
    words += ["--batch", 2, "--labels", 8, "--resolution", 32]
    words += ["--velocity_base", bases["sd21"], "--timestep", 999, "--jobs", 1]
    words = [str(word) for word in words]
    tasks = ("normal", "shading")
    monkeypatch.setattr(paper_questions, "INTRINSICS", {task: INTRINSICS[task] for task in tasks})
    paper_questions.main(words)
    page = (tmp_path / "docs" / "paper_questions.md").read_text()
    assert all(f"| {task} |" in page for task in tasks)
    folders = (tmp_path / "work").glob("runs-*")  # their names are sums over paths: either may come first
    kept = sorted(max(folders, key=lambda folder: len(list(folder.iterdir()))).glob("*.json"))
    assert all(f"| {targets} | 999 |" in page for targets in ("attention", "all"))
    assert "base / velocity base" in page and len(page.split("### 6.")[1].split("### 7.")[0].split("| a")) == 3
    # question 6's base has been asked in question 1; the velocity base's results lie apart, one asked by both
    assert sorted(len(list(folder.iterdir())) for folder in (tmp_path / "work").glob("runs-*")) == [5, 6, 8]
    assert "| last half | " in page and "### 7. Question 1 on all layers" in page
    assert "| mini-flow, s = 0.4 | " in (flow / "README.md").read_text()
    changed = json.loads(kept[0].read_text())
    changed["errors"] = [1.0] * 4
    kept[0].write_text(json.dumps(changed))
    paper_questions.main([*words, "--page"])  # trains nothing: what was altered by hand is still there
    assert json.loads(kept[0].read_text()) == changed
    numbers = json.loads((tmp_path / "docs" / "paper_questions.json").read_text())
    assert numbers["study"]["steps"] == 1 and changed in numbers["answers"]["1"]


def test_answers_that_are_not_asked_again_stay_and_those_of_another_study_go(tmp_path, capsys):
    def one(steps: int, targets: str, error: float) -> tuple[dict, dict]:
        found = {"setting": asdict(Setting(targets=targets)), "parameters": 1, "share": 0.5, "errors": [error]}
        study = {"steps": steps, "batch": 2, "learning_rate": 1, "labels": 8, "timestep": 0, "seeds": 1, "unseen": 1}
        return found, study | {"mixed_precision": "no"}

    args = paper_questions.parse_args(["--docs", str(tmp_path)])
    for steps, question, title, stays in ((1, "5-place", "where", {"5-place"}), (1, "5-layers", "kinds", {"5-place"}),
                                          (2, "5-layers", "kinds", set())):  # fmt: skip
        found, study = one(steps, "all", 3.0)
        write_answers({question: [found]}, study, args)
        known = json.loads((tmp_path / "paper_questions.json").read_text())["answers"]
        page = (tmp_path / "paper_questions.md").read_text()
        assert (
            set(known) == stays | {question}
            and title in page
            and ("where the LoRA sits" in page) == bool({"5-place"} & set(known))
        )
    assert "are of another base or recipe" in capsys.readouterr().out


def test_question_4_needs_snapshots(tmp_path, capsys):
    args = argparse.Namespace(questions=["4"], snapshots=None)
    assert paper_questions.snapshots(args, "4") == [] and "--snapshots" in capsys.readouterr().out
    args.snapshots = tmp_path
    for step in (64, 91, 128, 181):
        (tmp_path / f"ema-{step:06d}.pt").touch()
    assert [path.stem for path in paper_questions.snapshots(args, "4")] == ["ema-000064", "ema-000128", "ema-000181"]
    (tmp_path / "ema-000128.pt").unlink()
    with pytest.raises(ValueError, match="at least 3"):
        paper_questions.snapshots(args, "4")


def test_question_7s_snapshots_need_their_distances(tmp_path):
    """Of the VAE that the flow transformer has, before anything is trained."""
    for step in (64, 128, 256):
        (tmp_path / f"ema-{step:06d}.pt").touch()
    (tmp_path / "distances-00000000.json").write_text("{}")
    flow = ROOT / "miniworld" / "mini-flow"
    args = argparse.Namespace(questions=["7"], flow_snapshots=tmp_path, flow_base=flow)
    with pytest.raises(ValueError, match=r"^--flow_snapshots=.*no distances-\w+.json; .* --report"):
        paper_questions.snapshots(args, "7-snapshots")


def test_question_6_needs_a_base_that_predicts_velocity(bases, tmp_path, capsys):
    for folder, found in ((bases["sd21"], ("base", "velocity")), (tmp_path, ())):
        args = argparse.Namespace(questions=["6"], velocity_base=folder)
        assert paper_questions.bases(args, "6") == found and paper_questions.bases(args, "1-velocity") == ()
        assert ("--velocity_from" in capsys.readouterr().out) == (not found)
    with pytest.raises(ValueError, match="does not predict velocity"):
        paper_questions.bases(argparse.Namespace(questions=["6"], velocity_base=bases["sd15"]), "6")


def test_plan_has_every_question_and_no_setting_twice(bases):
    args = paper_questions.parse_args(["--seeds", "3", "--velocity_base", str(bases["sd21"])])
    networks = {name: open_base(str(ROOT / "miniworld" / folder)).network for name, folder in FOLDERS.items()}
    plan = paper_questions.plan(args, networks)
    assert {name[0] for name in plan} == set("1234567")
    for name, timesteps in (("1", {400, 999}), ("5-layers", {400, 999}), ("6", {999})):
        assert {one.timestep for one in plan[name]} == timesteps and {"attention", "all"} <= {
            one.targets for one in plan[name]
        }
    assert {(one.base, one.timestep, one.targets) for one in plan["1-velocity"]} == {("velocity", 400, "all")}
    assert {one.task for one in plan["1-velocity"]} == {one.task for one in plan["7-control"]} == set(INTRINSICS)
    of_flow = [one for name, settings in plan.items() for one in settings if name[0] == "7"]
    assert {one.base for one in of_flow} == {"flow"} and all(0 <= one.timestep <= 1 for one in of_flow)
    assert {(one.targets, one.labels, one.rank) for one in plan["7-control"]} == {("all", 1000, 8)}
    names = [one.name for settings in plan.values() for one in settings]
    assert len(set(names)) == len({one for settings in plan.values() for one in settings})
    assert ROOT.joinpath(args.base, "model_index.json").exists()
