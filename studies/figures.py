"""Draws the images of docs/ again: all, or those that are named.

    python -m studies.figures                    # make figures
    python -m studies.figures teaser report app

Those that need Chromium or Blender are left out, with a line, where it is missing. Images of trainings that take
longer are not drawn here; a line names the command of each.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from miniworld.demo_steps import python
from studies import answers, families_page, quality
from utils.cli import Parser
from utils.errors import InputError, note, run, warn
from utils.paths import ROOT

DOCS, RESULTS = ROOT / "docs", ROOT / "studies" / "results"
ELSEWHERE = {  # image -> the command that draws it
    "demo.png": "make demo; demo/normal-single/demo.png",
    "demo_all.jpg": "make demo-all; the four single-step runs",
    "demo_augunet.jpg": "make demo-all; the four runs by diffusion",
    "mini-flow-samples.png": "python -m miniworld.pretrain --stage flow; in 256 colours",
    "mini-sd-samples.png": "python -m miniworld.pretrain --out miniworld/mini-sd",
    "mini_ar.jpg": "python -m miniworld.pretrain_ar",
    "mini_gan.jpg": "python -m miniworld.pretrain_gan",
    "rooms.jpg": "python -m studies.rooms --data data/rooms --out runs/rooms",
    "tensorboard.png": "tensorboard --logdir runs/normal/logs, then docs/figures/screenshot.py",
    "uncertainty.png": "python -m studies.uncertainty",
    "world.png": "python -m miniworld.scenes --root DIODE, images and maps of three rooms and three yards",
}


class Figure(NamedTuple):
    """images: the files in docs/, studies/results/ or examples/. draw: writes them. needs: a key of `missing`."""

    images: tuple[str, ...]
    draw: Callable[[], object]
    needs: str = ""


def script(name: str, *words: object) -> Callable[[], object]:
    """A script in docs/figures."""
    return lambda: python(DOCS / "figures" / f"{name}.py", *words)


def room() -> None:
    """The app's first example: a scene of a world that no LoRA was trained on, rendered at a higher resolution."""
    from miniworld.scenes import render

    image = Image.fromarray(render([7, 3], "room", 720, 960).rgb).resize((640, 480), Image.Resampling.LANCZOS)
    image.save(ROOT / "examples" / "room.jpg", quality=88)


def report() -> None:
    """The report of the shipped LoRA on 100 unseen scenes, the demo's."""
    with tempfile.TemporaryDirectory() as folder:
        world, out = Path(folder, "DIODE"), Path(folder, "output")
        python("-m", "miniworld.scenes", "--root", world, "--train", 0, "--val", 100, "--size", "128x96")
        words = ["--lora", "miniworld/mini-loras/normal", "--input_dir", world / "depths/val", "--output_dir", out]
        python("inference_sd_single.py", *words, "--npy")
        words = ["--pred_dir", out / "normal/predicted", "--gt_dir", world / "normals/val", "--baseline", "mean"]
        words += ["--report", Path(folder, "report"), "--output", Path(folder, "metrics.json")]
        python("evaluate.py", "--task", "normal", "--protocol", "pooled", *words)
        page = Path(folder, "report", "index.html").as_uri()
        python(DOCS / "figures" / "screenshot.py", DOCS / "report.png", "1200x1500", page)


def questions() -> None:
    """The plots of the paper's questions, from the recorded numbers."""
    found = json.loads((RESULTS / "paper_questions.json").read_text())["answers"]
    answers.plot(found["2"], "rank", "rank", RESULTS / "paper_questions_2.png")
    answers.plot(found["3"], "labels", "labels", RESULTS / "paper_questions_3.png")
    answers.better_generator(found["4"], path=RESULTS / "paper_questions_4.png")
    answers.better_generator(found["7-snapshots"], path=RESULTS / "paper_questions_7.png")


def generators() -> None:
    """The plots of the families of generators, from the recorded numbers."""
    found = json.loads((RESULTS / "generators.json").read_text())
    budgets = families_page.budgets_of(found["answers"], found["study"], RESULTS)
    families_page.plot(found["answers"], budgets, RESULTS / "generators.png")
    quality.section(found["snapshots"], RESULTS)


FIGURES = {
    "room": Figure(("../examples/room.jpg",), room),
    "teaser": Figure(("teaser.png",), script("teaser")),
    "methods": Figure(("methods.png",), script("methods")),
    "comfyui": Figure(("comfyui.png",), script("comfyui_graph")),
    "questions": Figure(tuple(f"paper_questions_{number}.png" for number in (2, 3, 4, 7)), questions),
    "generators": Figure(("generators.png", "generators_4.png"), generators),
    "report": Figure(("report.png",), report, "chromium"),
    "notebook": Figure(("notebook.jpg",), script("notebook"), "chromium"),
    "app": Figure(("app.jpg", "app_narrow.jpg"), script("app"), "chromium"),
    "blender": Figure(
        ("blender.jpg",), lambda: script("blender", "--bpy_python", os.environ["BPY_PYTHON"])(), "blender"
    ),
}


def missing(needs: str) -> str:
    """The missing program of a figure, with the remedy; empty where none is missing."""
    if needs == "chromium" and shutil.which("chromium") is None:
        return "Chromium (apt-get install chromium)"
    if needs == "blender" and not (os.environ.get("BPY_PYTHON") and (ROOT / "data" / "rooms" / "scenes").is_dir()):
        return "Blender (BPY_PYTHON=... with bpy, and python -m integrations.blender.rooms --out data/rooms)"
    return ""


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m studies.figures", description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="figure", help=f"of {', '.join(FIGURES)} (default: all)")
    names = parser.parse_args(argv).figures or list(FIGURES)
    for name in names:
        if name not in FIGURES:
            raise InputError(f"{name}: no such figure; take of {', '.join(FIGURES)}")
    skipped = []
    for name in names:
        figure = FIGURES[name]
        if lacking := missing(figure.needs):
            skipped.append(name)
            warn(f"{', '.join(figure.images)}: not drawn, needs {lacking}")
            continue
        note(f"{name}: {', '.join(figure.images)}")
        figure.draw()
    if len(names) == len(FIGURES):
        for image, command in ELSEWHERE.items():
            note(f"{image} is drawn by: {command}")
    images = [path for folder in (DOCS, RESULTS) for path in folder.iterdir() if path.suffix in (".png", ".jpg")]
    total = sum(path.stat().st_size for path in images)
    print(f"done: {len(names) - len(skipped)} of {len(names)} figures; the images of docs/ have {total / 1e6:.2f} MB")
    return 1 if skipped else 0


if __name__ == "__main__":
    run(main)
