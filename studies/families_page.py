"""Tables, plot and numbers of studies.families, between the marks of studies/results/generators.md."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from miniworld.pretraining.model_folder import FLOW_TIME, TIMESTEP
from miniworld.pretraining.report import write_card
from studies import quality
from studies.tables import Estimate, finish, groups, headline, matrix, new_axes, ratio, table, with_interval
from utils.intrinsics import INTRINSICS

Answers = dict[str, dict[str, dict]]  # family -> intrinsic -> "errors" by column, each (seeds, images); "parameters"

KNOWN = {
    "trained": "LoRA on the trained generator",
    "random": "on random weights",
    "linear": "linear readout of w",
    "mean": "mean label",
    "ceiling": "label, encoded and decoded",
}
FAMILIES = {
    "diffusion-attention": "Diffusion: mini-sd, attention, t = 400",
    "diffusion-all": "Diffusion: mini-sd, all layers, t = 400",
    "diffusion-velocity": "Diffusion: mini-sd-2 (velocity), all layers, t = 400",
    "flow": f"Flow transformer: mini-flow, all layers, s = {FLOW_TIME}",
    "gan": "GAN: mini-gan, affine layers, labels by mini-teacher",
    "ar": "Autoregressive: mini-ar, attention, all tokens in one pass",
    "ar-one-by-one": "Autoregressive: mini-ar, attention, token by token",
}
DIFFUSION = {  # family -> question, --lora_targets, timestep, of studies.paper_questions
    "diffusion-attention": ("1", "attention", TIMESTEP),
    "diffusion-all": ("1", "all", TIMESTEP),
    "diffusion-velocity": ("1-velocity", "all", TIMESTEP),
    "flow": ("7-control", "all", FLOW_TIME),
}
UNETS = {"trained": "pretrained", "random": "random"}  # column -> of a setting


def of_diffusion(path: Path, references: dict[str, dict[str, np.ndarray]]) -> Answers:
    """Diffusion's answers from paper_questions.json, with what is in `references`: intrinsic -> column -> errors.

    Nothing where that study has not asked its first question at that timestep.
    """
    known = json.loads(path.read_text())["answers"] if path.is_file() else {}
    answers: Answers = {}
    for family, (question, targets, timestep) in DIFFUSION.items():
        found = groups(known.get(question, []), "task", "targets", "timestep", "unet")
        for task, beside in references.items():
            pair = {name: found.get((task, targets, timestep, unet)) for name, unet in UNETS.items()}
            if all(pair.values()):
                own = {name: matrix(each).tolist() for name, each in pair.items()}
                own |= {name: values.tolist() for name, values in beside.items()}
                parameters = pair["trained"][0]["parameters"]
                answers.setdefault(family, {})[task] = {"errors": own, "parameters": parameters}
    return answers


def write_page(answers: Answers, snapshots: dict[str, list[quality.Row]], study: dict, docs: Path) -> str:
    """Write the answers and the errors along pretrainings, with those of the same study in `docs`/generators.json.

    Returns the text of the page.
    """
    path = docs / "generators.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    known: Answers = before["answers"] if before.get("study") == study else {}
    for family, rows in answers.items():
        known[family] = known.get(family, {}) | dict(zip(rows, rounded(rows.values())))
    known = {family: known[family] for family in FAMILIES if family in known}
    along = before.get("snapshots", {}) if before.get("study") == study else {}
    along |= {family: rounded(rows) for family, rows in snapshots.items()}
    along = {family: along[family] for family in quality.NAMES if along.get(family)}
    path.write_text(json.dumps({"study": study, "answers": known, "snapshots": along}) + "\n")
    budgets = budgets_of(known, study, docs)
    sections = [
        f"All: steps of {study['batch']} labels, rank 8, learning rate {study['rate']:g} falling linearly to 0, 100 "
        "unseen images. Diffusion and the flow transformer have the same labels, steps and unseen images ([their own "
        "page](paper_questions.md)). The autoregressive model has the same unseen images, the GAN images of its own. "
        "Brackets: 95 % bootstrap intervals over seeds and images. Lower is better for errors; a ratio "
        "above 1 means that pretraining helped.",
        "### All families: how much the pretraining is worth",
        overview(known, budgets),
        plot(known, budgets, docs / "generators.png"),
    ]
    for family, rows in known.items():
        sections += [f"### {FAMILIES[family]}", of_family(rows)]
    if along:
        sections.append(quality.section(along, docs))
    text = "\n\n".join(sections)
    write_card(docs / "generators.md", text)
    return text


def budgets_of(known: Answers, study: dict, docs: Path) -> dict[str, tuple[int, int]]:
    """Steps and labels of each family: those of `study`, of diffusion those in `docs`/paper_questions.json."""
    own = (study["steps"], study["images"])
    path = docs / "paper_questions.json"
    return {family: diffusion_budget(path) if family in DIFFUSION else own for family in known}


def rounded(rows: Iterable[dict]) -> list[dict]:
    """Errors to 4 digits; None for NaN, which JSON has not."""

    def cut(errors: list[list[float | None]]) -> list[list[float | None]]:
        return [
            [None if value is None or np.isnan(value) else float(f"{value:.4g}") for value in one] for one in errors
        ]

    return [row | {"errors": {name: cut(errors) for name, errors in row["errors"].items()}} for row in rows]


def over(row: dict, reference: str) -> Estimate:
    """Error of `reference` by that of the LoRA on the trained generator."""
    above, below = (np.array(row["errors"][name], float) for name in (reference, "trained"))  # None is NaN
    return ratio(above, below)


def diffusion_budget(path: Path) -> tuple[int, int]:
    """Steps and labels of each training of studies.paper_questions."""
    study = json.loads(path.read_text())["study"]
    return study["steps"], study["labels"]


def overview(known: Answers, budgets: dict[str, tuple[int, int]]) -> str:
    """A row per family, a column per intrinsic: the random control's error and the mean label's, over the LoRA's."""
    lines = []
    for family, rows in known.items():
        seeds = sorted({len(row["errors"]["trained"]) for row in rows.values()})
        cells = []
        for task in INTRINSICS:
            each = [over(rows[task], reference) for reference in ("random", "mean")] if task in rows else []
            cells.append(" / ".join(one.text for one in each) or "not run")
        lines.append((FAMILIES[family], *cells, *budgets[family], " to ".join(map(str, seeds))))
    head = ("error over the LoRA's: random control / mean label", *INTRINSICS, "steps", "labels", "seeds")
    return table(head, lines)


def of_family(rows: dict[str, dict]) -> str:
    """A row per intrinsic: every column's error with its interval."""
    names = [name for name in KNOWN if any(name in row["errors"] for row in rows.values())]
    lines = []
    for task, row in rows.items():
        cells = (
            with_interval(np.array(row["errors"][name], float)) if name in row["errors"] else "" for name in names
        )
        lines.append((task, headline(task), *cells, f"{row['parameters']:,}"))
    return table(("intrinsic", "error", *(KNOWN[name] for name in names), "parameters"), lines)


def plot(known: Answers, budgets: dict[str, tuple[int, int]], path: Path) -> str:
    """The random control's error over the LoRA's, by intrinsic and family; at 1 the pretraining is worth nothing.

    Families with another budget than the first are hollow.
    """
    axes = new_axes()
    for number, (family, rows) in enumerate(known.items()):
        same = budgets[family] == next(iter(budgets.values()))
        for place, task in enumerate(INTRINSICS):
            if task in rows:
                times = over(rows[task], "random")
                x = place + 0.12 * (number - (len(known) - 1) / 2)
                axes.plot([x, x], [times.low, times.high], color=f"C{number}")
                label = FAMILIES[family] if task == next(iter(rows)) else None
                face = f"C{number}" if same else "white"
                axes.scatter(x, times.value, edgecolor=f"C{number}", facecolor=face, s=18, zorder=3, label=label)
    axes.axhline(1, color="#888", linewidth=0.8)
    axes.set(yscale="log", ylabel="random / trained; bars: 95 % interval")
    axes.set_xticks(range(len(INTRINSICS)), list(INTRINSICS))
    axes.set_yticks([0.8, 1, 1.25, 1.5, 2, 3, 4], ["0.8", "1", "1.25", "1.5", "2", "3", "4"])
    axes.minorticks_off()
    axes.legend(fontsize=7, frameon=False)
    return finish(axes, path, "Error of a LoRA on random weights, in units of the error on trained ones")
