"""Draws docs/teaser.png: an unseen scene, the four intrinsics that the shipped LoRAs predict, and the exact maps.

python docs/figures/teaser.py [--scene 3]
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from miniworld.scenes import render  # noqa: E402
from utils.image_io.colour_space import to_srgb  # noqa: E402
from utils.inference import Predictor  # noqa: E402
from utils.inference.job import SHIPPED  # noqa: E402
from utils.intrinsics import INTRINSICS  # noqa: E402
from utils.kinds.axes import convert_frame  # noqa: E402

WORLD = 7  # the LoRAs were trained on the world of seed 1
SIZE, SEEN = (360, 480), 96  # pixels of the scene, and of the short side that the network sees; 64 in training
TITLES = {"normal": "surface normals", "depth": "depth", "albedo": "albedo", "shading": "shading"}
FOOT = (
    "normals: RGB = (n + 1) / 2, x right, y up, z toward the viewer     depth: red is near, blue is far     "
    "shading: 1st to 99th percentile stretched to black and white"
)
Maps = dict[str, np.ndarray]


def stretched(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H,W,3) from the 1st to the 99th percentile of its brightness, colours kept."""
    low, high = np.percentile(pixels.mean(2), [1, 99])
    return np.clip((pixels - low) / (high - low) * 255, 0, 255).astype(np.uint8)


def shown(task: str, values: np.ndarray) -> np.ndarray:
    """A map as the page and the app show it, uint8 (H,W,3)."""
    pixels = next(iter(INTRINSICS[task].map_kind.shown(values).values()))
    return stretched(pixels) if task == "shading" else pixels


def maps(scene: int) -> tuple[np.ndarray, Maps, Maps]:
    """The image, the predicted and the exact maps."""
    truth = render([WORLD, scene], "room", *SIZE)
    predictor = Predictor([SHIPPED / task for task in TITLES], device="cpu", resolution=SEEN)
    predicted = {task: one.values for task, one in predictor(Image.fromarray(truth.rgb)).items()}
    exact = {"normal": convert_frame(truth.normal, "opengl"), "depth": -truth.depth}  # depth: near = large
    exact |= {"albedo": to_srgb(truth.albedo), "shading": to_srgb(truth.shading)}
    return truth.rgb, *({task: shown(task, one[task]) for task in TITLES} for one in (predicted, exact))


def draw(image: np.ndarray, predicted: Maps, exact: Maps, out: Path) -> None:
    figure = plt.figure(figsize=(14.4, 4.36), dpi=100)
    grid = figure.add_gridspec(2, 6, left=0.002, right=0.998, top=0.905, bottom=0.068, wspace=0.02, hspace=0.02)
    show(figure.add_subplot(grid[:, :2]), image, "image")
    for column, task in enumerate(TITLES, 2):
        for row, (name, tiles) in enumerate({"predicted": predicted, "exact": exact}.items()):
            axis = show(figure.add_subplot(grid[row, column]), tiles[task], "" if row else TITLES[task])
            if column == 2:
                style = {"facecolor": "white", "edgecolor": "none", "pad": 3, "alpha": 0.85}
                axis.text(0.03, 0.95, name, transform=axis.transAxes, va="top", fontsize=15, bbox=style)
    figure.text(0.5, 0.018, FOOT, ha="center", fontsize=12, color="#333")
    figure.savefig(out)


def show(axis, pixels: np.ndarray, title: str):
    axis.imshow(pixels, aspect="auto")
    axis.set_title(title, fontsize=20, pad=7)
    axis.axis("off")
    return axis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=int, default=3, help="number of the scene (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "teaser.png", help="default: docs/teaser.png")
    args = parser.parse_args()
    draw(*maps(args.scene), args.out)


if __name__ == "__main__":
    main()
