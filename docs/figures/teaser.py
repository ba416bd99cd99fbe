"""Draws docs/teaser.png: an unseen image, the four intrinsics that the shipped LoRAs predict, and the exact maps.

python docs/figures/teaser.py [--index 17]
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SEED, SCENES, SIDE = 2026, 24, 64  # the LoRAs were trained on the world of seed 1
TITLES = {"normal": "surface normals", "depth": "depth", "albedo": "albedo", "shading": "shading"}


def python(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def predict(work: Path, index: int) -> tuple[Path, dict[str, tuple[Path, Path]]]:
    """An unseen image, and task -> its predicted and exact map: the commands of the README, run in `work`."""
    world = ["--train", 0, "--val", SCENES, "--size", f"{SIDE}x{SIDE}", "--seed", SEED]
    python("-m", "miniworld.scenes", "--root", work / "DIODE", *world)
    image = sorted((work / "DIODE" / "depths").rglob("*.png"))[index]
    (work / "input").mkdir()
    (work / "input" / "scene.png").write_bytes(image.read_bytes())
    found = {}
    for task in TITLES:
        lora = ROOT / "miniworld" / "mini-loras" / task
        python(
            "inference_sd_single.py", "--lora", lora, "--input_dir", work / "input", "--output_dir", work / "output"
        )
        exact = work / "DIODE" / "pseudo" / task / image.relative_to(work / "DIODE" / "depths")
        found[task] = work / "output" / task / "predicted" / f"scene_{task}.png", exact
    return image, found


def draw(image: Path, found: dict[str, tuple[Path, Path]], out: Path) -> None:
    figure = plt.figure(figsize=(12.8, 4.7), dpi=85)
    grid = figure.add_gridspec(2, 6, left=0.005, right=0.995, top=0.91, bottom=0.01, wspace=0.03, hspace=0.03)
    show(figure.add_subplot(grid[:, :2]), image, "image")
    for column, (task, paths) in enumerate(found.items(), 2):
        for row, path in enumerate(paths):
            axis = show(figure.add_subplot(grid[row, column]), path, "" if row else TITLES[task])
            if column == 2:
                text = ("predicted", "exact")[row]
                style = {"facecolor": "white", "edgecolor": "none", "pad": 3, "alpha": 0.85}
                axis.text(0.03, 0.96, text, transform=axis.transAxes, va="top", fontsize=12, bbox=style)
    figure.savefig(out)


def show(axis, path: Path, title: str):
    axis.imshow(Image.open(path).convert("RGB"), interpolation="bicubic")
    axis.set_title(title, fontsize=16, pad=6)
    axis.axis("off")
    return axis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=int, default=17, help=f"which of {SCENES} scenes (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "teaser.png", help="default: docs/teaser.png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        draw(*predict(Path(work), args.index), args.out)


if __name__ == "__main__":
    main()
