"""Tables and plots of paper_questions, written between the marks of studies/results/paper_questions.md."""

import argparse
import json
import platform
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from miniworld.pretraining.flow_report import LORA_MARKS
from miniworld.pretraining.gates import unseen_scenes
from miniworld.pretraining.generator import fingerprint
from miniworld.pretraining.model_folder import load_generator
from miniworld.pretraining.report import DRAWN, distances_along, write_card
from studies.tables import (
    finish,
    format_results,
    groups,
    headline,
    interval,
    matrix,
    new_axes,
    ratio,
    resample,
    spearman,
    table,
)
from utils.base_model.parts import load_component
from utils.errors import InputError, note

UNETS = {"pretrained": "pretrained", "random": "randomly initialised"}


def control(results: list[dict]) -> str:
    """Pretrained against random UNet for each intrinsic, place of the LoRA and timestep."""
    found = groups(results, "task", "targets", "timestep", "unet")
    rows = []
    for task, targets, timestep in dict.fromkeys(key[:3] for key in found):
        pair = {unet: found[task, targets, timestep, unet] for unet in UNETS}
        cells = [format_results(pair[unet]) for unet in UNETS]
        times = ratio(matrix(pair["random"]), matrix(pair["pretrained"]))
        rows.append((task, headline(task), targets, timestep, *cells, times.text))
    return table(("intrinsic", "error", "layers", "t", *UNETS.values(), "random / pretrained"), rows)


def layers(results: list[dict]) -> str:
    """Error at each timestep for each choice of layers, at equally many parameters."""
    found = groups(results, "targets", "timestep")
    timesteps = list(dict.fromkeys(timestep for _, timestep in found))
    rows = []
    for targets in dict.fromkeys(targets for targets, _ in found):
        first = found[targets, timesteps[0]][0]
        counts = (first["setting"]["rank"], f"{first['parameters']:,}", f"{100 * first['share']:.2f} %")
        rows.append((targets, *counts, *(format_results(found[targets, timestep]) for timestep in timesteps)))
    errors = (f"{headline('normal')}, t = {timestep}" for timestep in timesteps)
    return table(("layers", "rank", "LoRA parameters", "of the network's", *errors), rows)


def two_bases(results: list[dict]) -> str:
    """Error on the base and on the velocity base for each place of the LoRA."""
    found = groups(results, "targets", "base")
    rows = []
    for targets in dict.fromkeys(targets for targets, _ in found):
        pair = [found[targets, base] for base in ("base", "velocity")]
        rows.append((targets, *map(format_results, pair), ratio(*map(matrix, pair)).text))
    return table(("layers", "the base", "the velocity base", "base / velocity base"), rows)


def one_by_one(results: list[dict], key: str, title: str, share: bool = False) -> str:
    rows = []
    for (value,), group in groups(results, key).items():
        extra = (f"{group[0]['parameters']:,}", f"{100 * group[0]['share']:.2f} %") if share else ()
        rows.append((value, *extra, format_results(group)))
    more = ("LoRA parameters", "of the network's") if share else ()
    return table((title, *more, headline("normal")), rows)


def both_unets(results: list[dict], key: str, title: str) -> str:
    """Error of pretrained and random UNets for each value of a setting."""
    found = groups(results, key, "unet")
    values = list(dict.fromkeys(value for value, _ in found))
    rows = [(f"{value:g}", *(format_results(found[value, unet]) for unet in UNETS)) for value in values]
    return table((title, *UNETS.values()), rows)


def reported_distances(args: argparse.Namespace) -> dict[str, list[float]]:
    """Step -> distances of the flow transformer's snapshots, which the report of its pretraining keeps."""
    vae = load_component(AutoencoderKL, str(args.flow_base), "vae")
    file = args.flow_snapshots / f"distances-{fingerprint(vae):08x}.json"
    if not file.is_file():
        raise InputError(
            f"--flow_snapshots={args.flow_snapshots}: no {file.name}; python -m miniworld.pretrain --stage flow "
            "--report measures the snapshots"
        )
    return json.loads(file.read_text())


def with_distances(results: list[dict], along: dict[str, list[float]]) -> list[dict]:
    """Each snapshot's result with its "distance": sliced Wasserstein, of samples, mean of levels, x 1000."""
    return [one | {"distance": float(np.mean(along[str(step_of(one["setting"]["unet"]))]))} for one in results]


def step_of(snapshot: str | Path) -> int:
    """Step of the pretraining, from a snapshot's name."""
    return int(Path(snapshot).stem.split("-")[1])


def better_generator(results: list[dict], path: Path) -> str:
    """Generation distance and intrinsic error along the pretraining, and Spearman's rho of the two."""
    found = {step_of(unet): group for (unet,), group in groups(results, "unet").items()}
    distances = [group[0]["distance"] for group in found.values()]
    rows = [(step, f"{one:.1f}", format_results(group)) for one, (step, group) in zip(distances, found.items())]
    means = [np.nanmean(matrix(group)) for group in found.values()]
    drawn = np.array([resample(matrix(group)) for group in found.values()])
    low, high = interval(np.array([spearman(distances, column) for column in drawn.T]))
    plot_pairs(distances, found, path)
    text = table(("steps of pretraining", "sliced Wasserstein distance x 1000", headline("normal")), rows)
    return (
        f"{text}\n\nSpearman's rho between the two over {len(found)} snapshots: "
        f"**{spearman(distances, means):.2f} [{low:.2f}, {high:.2f}]** "
        "(interval: seeds and scored images resampled; the distances are taken as they are).\n\n"
        f"![distance and error]({path.name})"
    )


TITLES = {"rank": "the LoRA's rank", "labels": "the number of labels"}


def plot(results: list[dict], key: str, title: str, path: Path) -> str:
    """Error against a number on a logarithmic axis, each seed as a point; returns the image's link."""
    axes = new_axes()
    values, means = [], []
    for (value,), group in groups(results, key).items():
        low, high = interval(resample(matrix(group)))
        mean = np.nanmean(matrix(group))
        bar = axes.plot([value, value], [low, high], color="#356", linewidth=1.5)[0]
        dots = axes.scatter([value] * len(group), np.nanmean(matrix(group), axis=1), s=9, color="#b54", zorder=3)
        values.append(value)
        means.append(mean)
    line = axes.plot(values, means, color="#356", marker="o", markersize=4)[0]
    axes.legend([line, bar, dots], ["mean", "95 % interval", "one training"], fontsize=8, frameon=False)
    axes.set(xscale="log", xlabel=title, ylabel=headline("normal"))
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    return finish(axes, path, f"Error of normals by {TITLES.get(key, title)}")


def plot_pairs(distances: list[float], found: dict[int, list[dict]], path: Path) -> None:
    axes = new_axes()
    for number, (distance, (step, group)) in enumerate(zip(distances, found.items())):
        low, high = interval(resample(matrix(group)))
        mean = np.nanmean(matrix(group))
        axes.plot([distance, distance], [low, high], color="#356")
        axes.scatter(distance, mean, color="#356", s=16, zorder=3)
        axes.annotate(str(step), (distance, mean), textcoords="offset points", fontsize=8,
            xytext=(5, -10 if number % 2 else 4))  # fmt: skip
    axes.set(xlabel="sliced Wasserstein distance x 1000 (better to the left)", ylabel=headline("normal"))
    finish(axes, path, "Error of normals by quality of samples; numbers: steps of pretraining")


def write_answers(answers: dict[str, list[dict]], study: dict, args: argparse.Namespace) -> None:
    """All tables and plots into `args.docs`, and the numbers as paper_questions.json.

    Earlier answers of the same study in that file are kept unless they were asked again.
    """
    args.docs.mkdir(parents=True, exist_ok=True)
    if answers.get("4"):
        parts, vae = load_generator(Path(args.base))
        maps, _, captions = unseen_scenes(0, 2 * DRAWN)
        answers["4"] = with_distances(
            answers["4"], distances_along(parts, vae, maps["rgb"], captions, args.snapshots, 0)
        )
    if answers.get("7-snapshots"):
        answers["7-snapshots"] = with_distances(answers["7-snapshots"], reported_distances(args))
    path = args.docs / "paper_questions.json"
    known = before(path, study) | {name: [portable(one) for one in found] for name, found in answers.items() if found}
    path.write_text(json.dumps({"study": study, "answers": known}) + "\n")
    sections = [about(study, args)]

    def add(name: str, title: str, make) -> None:
        if name in known:
            seeds = len({one["setting"]["seed"] for one in known[name]})
            fewer = f" {seeds} seed{'s' * (seeds > 1)} alone." if seeds < study["seeds"] else ""
            sections.append(f"### {title}\n\n{make(known[name])}{fewer}")

    def drawn(key: str, title: str, number: str, share: bool = False):
        path = args.docs / f"paper_questions_{number}.png"
        return lambda results: one_by_one(results, key, title, share) + "\n\n" + plot(results, key, title, path)

    add("1", "1. Control: pretrained against randomly initialised UNet", control)
    add("1-velocity", f"1, continued: on a base that predicts velocity, {args.velocity_base}", control)
    add("2", "2. How few parameters (normals)", drawn("rank", "rank", "2", share=True))
    add("3", "3. How few labels (normals)", drawn("labels", "labels", "3"))
    better = partial(better_generator, path=args.docs / "paper_questions_4.png")
    add("4", "4. Does a better generator know more? (normals)", better)
    add("5-timestep", "5. The timestep (normals)", lambda r: both_unets(r, "timestep", "timestep"))
    add("5-rates", "5, continued: the learning rate (normals)", lambda r: both_unets(r, "learning_rate", "rate"))
    add("5-place", "5, continued: where the LoRA sits (normals)", lambda r: one_by_one(r, "where", "where", True))
    add("5-layers", "5, continued: the kinds of layers, at equally many parameters (normals)", layers)
    add("6", f"6. A base that predicts velocity, {args.velocity_base}, at the paper's timestep (normals)", two_bases)
    flow = f"on all layers of the flow transformer {args.flow_base}"
    better = partial(better_generator, path=args.docs / "paper_questions_7.png")
    add("7-control", f"7. Question 1 {flow}", control)
    add("7-snapshots", f"7, continued: question 4 {flow} (normals)", better)
    add("7-time", "7, continued: the time s (normals)", lambda results: one_by_one(results, "timestep", "s"))
    add("7-place", "7, continued: one half of the blocks (normals)", lambda r: one_by_one(r, "where", "where", True))
    add("7-layers", "7, continued: the kinds of layers, at equally many parameters (normals)", layers)
    text = "\n\n".join(sections)
    write_card(args.docs / "paper_questions.md", text)
    card = args.flow_base / "README.md"
    if "7-control" in known and card.is_file() and LORA_MARKS[0] in card.read_text():
        write_card(card, flow_card(known, study, Path(args.base).name, args.flow_base.name), LORA_MARKS)
    print(text)


def flow_card(known: dict[str, list[dict]], study: dict, base: str, flow: str) -> str:
    """Errors of normals by LoRAs on all layers of base, flow transformer and random weights, for the flow's card."""

    def chosen(question: str, **wanted: object) -> list[dict]:
        wanted |= {"task": "normal", "targets": "all"}
        return [one for one in known.get(question, []) if wanted.items() <= one["setting"].items()]

    found = {base: chosen("1", unet="pretrained", timestep=study["timestep"])}
    times = groups(chosen("7-time") or chosen("7-control", unet="pretrained"), "timestep")
    found |= {f"{flow}, s = {time:g}": group for (time,), group in times.items()}
    found["random weights"] = chosen("7-control", unet="random")
    head = f"LoRA on all layers, rank 8, {study['steps']} steps of {study['batch']} of {study['labels']} labels"
    rows = [(title, format_results(group), len(group)) for title, group in found.items() if group]
    return table((head, headline("normal"), "seeds"), rows)


def before(path: Path, study: dict) -> dict[str, list[dict]]:
    """The answers in a file of an earlier run; none, with a note, where it was of another study."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    if found.get("study") == study:
        return found["answers"]
    note(f"{path}: its answers are of another base or recipe, and are replaced")
    return {}


def portable(result: dict) -> dict:
    """One training's numbers without this machine's paths, the errors to 4 digits."""
    setting = {**result["setting"], "unet": Path(result["setting"]["unet"]).stem}
    errors = [None if value is None else float(f"{value:.4g}") for value in result["errors"]]
    return {**result, "setting": setting, "errors": errors}


def about(study: dict, args: argparse.Namespace) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}"
    return (
        f"Base {args.base}; {study['steps']} steps of {study['batch']} labels, AdamW, learning rate "
        f"{study['learning_rate']:g} falling linearly to 0, rank 8, {study['labels']} labels, "
        f"t = {study['timestep']}, the LoRA on all attention layers, unless the row says otherwise; "
        f"{study['seeds']} seeds; {study['unseen']} unseen scenes; {study['mixed_precision']} autocast; {device}. "
        "Brackets: 95 % bootstrap intervals over seeds and scenes. Lower is better."
    )
