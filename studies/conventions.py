"""The convention check's false alarms and detections, on rendered scenes and mini-loras' predictions.

    python -m studies.conventions

Each row is one set of maps with their truth: correct ones (exact labels, labels with strong noise or blur,
predictions of trained and untrained LoRAs, constants, flat scenes), where any finding is a false alarm, and the same
maps in another convention, where the finding must be that one. Subsets of 1, 4 and 16 images are drawn from each. A
cell is the share of subsets with a (right) finding, and in brackets that of sure ones. With --docs studies/results,
writes the tables into conventions.md there.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from safetensors import safe_open
from safetensors.torch import save_file

from miniworld.pretraining.report import write_card
from miniworld.render.diode_tree import Settings, list_samples, sample_arrays
from studies.tables import table
from utils.cli import Parser, path_flag
from utils.errors import run
from utils.image_io.colour_space import to_linear, to_srgb
from utils.image_io.panels import spectral
from utils.inference import Predictor
from utils.intrinsics import INTRINSICS
from utils.kinds.alignment import encode_far
from utils.kinds.evidence import Evidence, Finding
from utils.lora import SAFETENSORS
from utils.paths import ROOT

SIZES = (1, 4, 16)


class Shot(NamedTuple):
    """One image of one task: label and truth. label (H,W,3) in [-1,1]; truth (H,W,C), known (H,W)."""

    rgb: np.ndarray
    label: np.ndarray
    truth: np.ndarray
    known: np.ndarray


def shots(task: str, count: int, seeds: tuple[int, ...]) -> list[Shot]:
    """Scenes of several worlds and two sizes, rooms and yards in turn."""
    made = []
    for seed in seeds:
        width, height = ((96, 64), (160, 120))[seed % 2]
        settings = Settings(count // len(seeds), 0, width, height, seed, True)
        for sample in list_samples(settings):
            arrays = sample_arrays(settings, sample)
            known = arrays["mask"].reshape(height, width).astype(bool)
            truth = arrays[task] if task in ("normal", "depth") else arrays[f"truth_{task}"]
            truth = truth * (1, -1, -1) if task == "normal" else truth
            made.append(Shot(arrays["rgb"], arrays[f"label_{task}"] / 127.5 - 1, truth, known))
    return made


def predicted(task: str, lora: Path, scenes: list[Shot]) -> list[Shot]:
    """The scenes with the LoRA's predictions as labels, as an 8-bit image would have them."""
    predict = Predictor(lora, device="cpu")
    maps = []
    for shot in scenes:
        map = predict(Image.fromarray(shot.rgb))[task].map.numpy().transpose(1, 2, 0)
        map = np.repeat(map.mean(axis=2, keepdims=True), 3, axis=2) if task == "depth" else map
        maps.append(shot._replace(label=as_bytes(map)))
    return maps


def as_bytes(label: np.ndarray) -> np.ndarray:
    """[-1,1] -> the same, rounded to 8 bits."""
    return np.round(255 * np.clip(label / 2 + 0.5, 0, 1)) / 127.5 - 1


def untrained(task: str, folder: Path) -> Path:
    """A copy of the mini-lora that changes nothing: every second matrix is zero, as before the first step."""
    with safe_open(ROOT / "miniworld" / "mini-loras" / task / SAFETENSORS, "pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is not a mapping)
        metadata = file.metadata()
    zeroed = {key: value * 0 if "up" in key or "lora_B" in key else value for key, value in weights.items()}
    assert any("up" in key or "lora_B" in key for key in weights)
    save_file(zeroed, folder / SAFETENSORS, metadata)
    return folder


def correct_sets(task: str, scenes: list[Shot], folder: Path) -> Iterator[tuple[str, list[Shot]]]:
    """Name -> maps in the right convention, good and bad."""
    rng = np.random.default_rng(0)
    yield "exact labels", scenes
    noisy = [
        shot._replace(label=as_bytes(shot.label + grey(task, rng.normal(0, 0.3, shot.label.shape)))) for shot in scenes
    ]
    yield "labels with noise, sigma 0.3", noisy
    yield "blurred labels (sigma 4 pixels)", [shot._replace(label=blurred(shot.label)) for shot in scenes]
    yield "labels as JPEG, quality 30", [shot._replace(label=jpeg(shot.label, folder)) for shot in scenes]
    yield "mini-lora's predictions", predicted(task, ROOT / "miniworld" / "mini-loras" / task, scenes)
    yield "an untrained LoRA's predictions", predicted(task, untrained(task, folder), scenes)
    mean = np.mean([shot.label[shot.known].mean(axis=0) for shot in scenes], axis=0)
    yield "the mean label everywhere", [shot._replace(label=np.tile(mean, (*shot.known.shape, 1))) for shot in scenes]
    random = [shot._replace(label=as_bytes(grey(task, rng.normal(0, 0.5, shot.label.shape)))) for shot in scenes]
    yield "noise alone", random
    yield "the top quarter (ceilings, sky)", [cut(shot, np.s_[: len(shot.known) // 4]) for shot in noisy]
    yield "the bottom quarter (floors)", [cut(shot, np.s_[-len(shot.known) // 4 :]) for shot in noisy]
    if task == "depth":
        yield "nearly flat: depths within 1 %", [flat(shot, rng) for shot in scenes]
        yield "smooth errors of 20 % of the depth", [uneven(shot, rng) for shot in scenes]


def wrong_sets(
    task: str, scenes: list[Shot], which: str
) -> Iterator[tuple[str, Callable[[Finding], bool], list[Shot]]]:
    """Name, the right finding, maps in another convention."""

    def each(change: Callable[[np.ndarray], np.ndarray]) -> list[Shot]:
        return [shot._replace(label=as_bytes(change(shot.label))) for shot in scenes]

    if task == "normal":
        ways = {
            "OpenGL axes": (lambda n: n * (1, -1, -1), "flipping y and z"),
            "x mirrored": (lambda n: n * (-1, 1, 1), "flipping x"),
            "outward (DSINE)": (lambda n: -n, "flipping x and y and z"),
            "BGR": (lambda n: n[..., ::-1], "BGR"),
            "BGR of OpenGL axes": (lambda n: (n * (1, -1, -1))[..., ::-1], "swapping"),
            "Blender's world axes": (lambda n: n[..., [0, 2, 1]] * (1, 1, -1), "swapping the axes y and z"),
            "[0,1], never shifted": (lambda n: n / 2 + 0.5, "[0,1]"),
            "sRGB curve applied": (lambda n: 2 * to_srgb(n / 2 + 0.5) - 1, "undoing the sRGB"),
            "linearised": (lambda n: 2 * to_linear(n / 2 + 0.5) - 1, "redoing the sRGB"),
        }
    elif task == "depth":
        ways = {
            "inverted": (lambda d: -d, "inverted"),
            "colour map": (lambda d: spectral((d[..., 0] + 1) / 2) / 127.5 - 1, "colour"),
        }
        for coding in ("log", "sqrt"):
            ways[f"{coding} coding"] = (lambda d, c=coding: 1 - 2 * encode_far((1 - d) / 2, c), f"undoing a {coding}")
    else:
        ways = {
            "linear for sRGB": (lambda v: 2 * to_linear(v / 2 + 0.5) - 1, "not undoing"),
            "sRGB curve twice": (lambda v: 2 * to_srgb(v / 2 + 0.5) - 1, "once more"),
            "BGR": (lambda v: v[..., ::-1], "swapping red"),
        }
    for name, (change, words) in ways.items():
        yield f"{name}, {which}", lambda finding, words=words: words in finding.change, each(change)
    if task == "depth":
        yield f"disparity, {which}", lambda one: "disparity" in one.change, [disparity(shot) for shot in scenes]


def disparity(shot: Shot) -> Shot:
    """The label's depth as disparity, near = white: between the image's near and far of 2 and 98 %."""
    low, high = np.percentile(shot.truth[shot.known], [2, 98])
    d = low + (high - low) * np.clip((1 - shot.label) / 2, 0, 1)
    return shot._replace(label=as_bytes(2 * (1 / d - 1 / high) / max(1 / low - 1 / high, 1e-9) - 1))


def grey(task: str, values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., :1], 3, axis=2) if task == "depth" else values


def blurred(label: np.ndarray) -> np.ndarray:
    image = Image.fromarray(np.round(127.5 * (label + 1)).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(4))) / 127.5 - 1


def jpeg(label: np.ndarray, folder: Path) -> np.ndarray:
    Image.fromarray(np.round(127.5 * (label + 1)).astype(np.uint8)).save(folder / "label.jpg", quality=30)
    return np.asarray(Image.open(folder / "label.jpg").convert("RGB")) / 127.5 - 1


def cut(shot: Shot, rows: slice) -> Shot:
    return Shot(*(array[rows] for array in shot))


def flat(shot: Shot, rng: np.random.Generator) -> Shot:
    """The scene squeezed to a depth of 3 m +- 0.5 %, with a prediction whose noise is as large as that."""
    spread = 0.015 * (shot.truth - shot.truth[shot.known].mean()) / shot.truth[shot.known].std()
    noisy = shot.label + np.repeat(rng.normal(0, 0.3, (*shot.known.shape, 1)), 3, axis=2)
    return shot._replace(truth=3 + np.clip(spread, -0.03, 0.03), label=as_bytes(noisy))


def uneven(shot: Shot, rng: np.random.Generator) -> Shot:
    """A prediction whose errors grow with depth: exact depth times a smooth field of 20 %."""
    height, width = shot.known.shape
    coarse = Image.fromarray(rng.normal(0, 0.2, (6, 8)).astype(np.float32))
    field = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))[..., None]
    d = shot.truth * np.exp(field)
    low, high = np.percentile(d[shot.known], [2, 98])
    return shot._replace(label=as_bytes(np.repeat(1 - 2 * (d - low) / max(high - low, 1e-9), 3, axis=2)))


def evidence_of(task: str, scenes: list[Shot]) -> list[Evidence]:
    known = [shot for shot in scenes if shot.known.sum() >= 64]
    return [INTRINSICS[task].map_kind.label_evidence(shot.label, shot.truth, shot.known) for shot in known]


def rates(
    task: str, evidence: list[Evidence], right: Callable[[Finding], bool] = lambda finding: True, draws: int = 200
) -> list[str]:
    """For each of SIZES: the share of subsets with a finding that is `right`, and in brackets with a sure one."""
    rng = np.random.default_rng(1)
    cells = []
    for size in SIZES:
        subsets = [rng.choice(len(evidence), min(size, len(evidence)), replace=False) for _ in range(draws)]
        found = [INTRINSICS[task].map_kind.label_findings([evidence[i] for i in subset]) for subset in subsets]
        hit = [[one for one in each if right(one)] for each in found]
        sure = sum(any(one.sure for one in each) for each in hit) / draws
        cells.append(f"{100 * sum(map(bool, hit)) / draws:.0f} ({100 * sure:.0f})")
    return cells


def false_alarms(rows: list[list[str]]) -> str:
    """Correct maps by task, each cell the rates for SIZES images."""
    tasks = list(dict.fromkeys(row[0] for row in rows))
    cells = {(row[1], row[0]): " / ".join(row[2:]) for row in rows}
    names = list(dict.fromkeys(row[1] for row in rows))
    return table(
        ("correct maps", *tasks), [(name, *(cells.get((name, task), "") for task in tasks)) for name in names]
    )


def detected(rows: list[list[str]]) -> str:
    """Wrong maps by their source: exact labels, predictions."""
    cells = {(row[0], *row[1].rsplit(", ", 1)): " / ".join(row[2:]) for row in rows}
    names = list(dict.fromkeys((task, name) for task, name, _ in cells))
    kinds = ("labels", "predictions")
    lines = [(task, name, *(cells.get((task, name, kind), "") for kind in kinds)) for task, name in names]
    return table(("task", "convention", "of exact labels", "of mini-loras' predictions"), lines)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m studies.conventions", description=__doc__)
    add = parser.add_argument
    add("--images", type=int, default=96, help="scenes of each task, in three worlds")
    add("--tasks", nargs="+", choices=list(INTRINSICS), default=list(INTRINSICS), help="which intrinsics")
    add("--docs", type=path_flag, help="folder of conventions.md, to write the tables there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    alarms, detections = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for task in args.tasks:
            scenes = shots(task, args.images, (0, 1, 2))
            for name, maps in correct_sets(task, scenes, folder):
                alarms.append([task, name, *rates(task, evidence_of(task, maps))])
                print(*alarms[-1], sep=" | ", flush=True)
                if name in ("exact labels", "mini-lora's predictions"):
                    which = "labels" if name == "exact labels" else "predictions"
                    for wrong, right, changed in wrong_sets(task, maps, which):
                        detections.append([task, wrong, *rates(task, evidence_of(task, changed), right)])
                        print("   ", *detections[-1], sep=" | ", flush=True)
    text = false_alarms(alarms) + "\n\n" + detected(detections)
    print(text)
    if args.docs:
        write_card(args.docs / "conventions.md", text)


if __name__ == "__main__":
    run(main)
