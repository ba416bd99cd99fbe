"""Draws docs/methods.png: how the two methods train and predict.

python docs/figures/methods.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

OUT = Path(__file__).resolve().parents[1] / "methods.png"
FROZEN, TRAINED, DATA, LOSS = "#dbe5f1", "#f8d7a8", "#eeeeee", "#f4cccc"
Point = tuple[float, float]


def box(axis, centre: Point, text: str, colour: str, width: float = 1.7, height: float = 0.8) -> None:
    x, y = centre
    style = {"boxstyle": "round,pad=0,rounding_size=0.12", "facecolor": colour, "edgecolor": "#555555"}
    axis.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **style))
    axis.text(x, y, text, ha="center", va="center", fontsize=11, linespacing=1.25)


def arrow(axis, start: Point, end: Point, text: str = "", dashed: bool = False, offset: Point = (0, 0.16)) -> None:
    style = "--" if dashed else "-"
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, linestyle=style, color="#333333"))
    if text:
        x, y = (start[0] + end[0]) / 2 + offset[0], (start[1] + end[1]) / 2 + offset[1]
        axis.text(x, y, text, ha="center", va="center", fontsize=10)


def single_step(axis) -> None:
    axis.set_title("Single step (Stable Diffusion 1.5): one UNet pass, no noise", fontsize=14, loc="left")
    box(axis, (1.0, 2.6), "image", DATA)
    box(axis, (3.6, 2.6), "VAE encoder", FROZEN)
    box(axis, (7.3, 2.6), "UNet, frozen\n+ LoRA, trained", TRAINED, 2.3, 1.1)
    box(axis, (11.0, 2.6), "VAE decoder", FROZEN)
    box(axis, (13.6, 2.6), "prediction", DATA)
    box(axis, (7.3, 4.1), 'timestep 999, prompt "surface normal": constant', DATA, 5.2, 0.6)
    arrow(axis, (1.85, 2.6), (2.75, 2.6))
    arrow(axis, (4.45, 2.6), (6.15, 2.6), "mode, scaled\n4 channels", offset=(0, 0.33))
    arrow(axis, (8.45, 2.6), (10.15, 2.6), "latent, divided\nby the scale", offset=(0, 0.33))
    arrow(axis, (11.85, 2.6), (12.75, 2.6))
    arrow(axis, (7.3, 3.8), (7.3, 3.15))
    box(axis, (1.0, 0.8), "label", DATA)
    box(axis, (3.6, 0.8), "VAE encoder", FROZEN)
    box(axis, (9.3, 0.8), "loss: MSE\nof latents", LOSS)
    arrow(axis, (1.85, 0.8), (2.75, 0.8))
    arrow(axis, (4.45, 0.8), (8.45, 0.8), "sample of the posterior, scaled", dashed=True)
    arrow(axis, (9.3, 2.6), (9.3, 1.2), dashed=True)


def augunet(axis) -> None:
    axis.set_title("AugUNet (Stable Diffusion 2.1): diffusion of the label, given the image", fontsize=14, loc="left")
    box(axis, (1.0, 2.9), "image", DATA)
    box(axis, (3.6, 2.9), "VAE encoder", FROZEN)
    box(axis, (1.0, 1.7), "label", DATA)
    box(axis, (3.6, 1.7), "VAE encoder", FROZEN)
    box(axis, (5.85, 1.7), "z_t = a z0\n+ sigma eps", DATA, 1.5)
    box(axis, (5.85, 0.5), "noise eps", DATA, 1.5)
    box(axis, (8.5, 2.3), "UNet, frozen; conv_in\nof 8 channels, frozen\n+ LoRA, trained", TRAINED, 2.4, 1.5)
    box(axis, (8.5, 4.1), 'timestep t, at random; prompt "surface normal"', DATA, 5.2, 0.6)
    box(axis, (10.75, 0.5), "loss: MSE of velocity\nv = a eps - sigma z0", LOSS, 2.6)
    box(
        axis,
        (13.0, 2.3),
        "prediction: 25 steps\nof DPM-Solver++ from\nnoise, guidance 3,\nVAE decoder",
        FROZEN,
        2.5,
        1.5,
    )
    arrow(axis, (1.85, 2.9), (2.75, 2.9))
    arrow(axis, (1.85, 1.7), (2.75, 1.7))
    arrow(axis, (4.45, 2.9), (7.3, 2.7), "mode, not scaled", offset=(0, 0.2))
    arrow(axis, (4.45, 1.7), (5.1, 1.7), "z0")
    arrow(axis, (6.6, 1.7), (7.3, 1.95))
    arrow(axis, (5.85, 0.9), (5.85, 1.3))
    arrow(axis, (8.5, 3.8), (8.5, 3.05))
    arrow(axis, (9.7, 2.3), (11.75, 2.3), "velocity", offset=(0.35, 0.16))
    arrow(axis, (6.6, 0.5), (9.45, 0.5), "eps, z0", dashed=True)
    arrow(axis, (10.3, 2.3), (10.3, 0.9), dashed=True)


def main() -> None:
    figure, axes = plt.subplots(2, 1, figsize=(14.6, 9.6), dpi=90)
    for axis, draw in zip(axes, (single_step, augunet)):
        draw(axis)
        axis.set(xlim=(0, 14.6), ylim=(0, 4.6), aspect="equal")
        axis.axis("off")
    kinds = {"frozen": FROZEN, "trained in part": TRAINED, "data": DATA, "loss (training only: dashed)": LOSS}
    marks = [plt.Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="#555555") for colour in kinds.values()]
    figure.legend(marks, kinds, loc="lower center", ncols=4, frameon=False, fontsize=11)
    figure.tight_layout(rect=(0, 0.035, 1, 1), h_pad=1.5)
    figure.savefig(OUT)


if __name__ == "__main__":
    main()
