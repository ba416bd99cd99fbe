"""The paper's fourth question for every family: does a better generator know more about the scene?

Each snapshot of a pretraining is saved as a generator in a folder, sampled, and trained with the same LoRA as the
final generator. The distance is the sliced Wasserstein distance of its samples to unseen scenes, mean of levels,
x 1000.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from generators.stylegan2 import CONFIG, load_gan, save_gan
from miniworld.pretraining.autoregressive import sample
from miniworld.pretraining.gan import build_gan, samples
from miniworld.pretraining.gates import unseen_scenes
from miniworld.pretraining.model_folder import FLOW_TIME
from miniworld.pretraining.report import DRAWN
from miniworld.pretraining.wasserstein import sliced_wasserstein
from studies.answers import step_of
from studies.held_out import with_transformer
from studies.tables import (
    Estimate,
    finish,
    groups,
    headline,
    interval,
    matrix,
    new_axes,
    ratio,
    resample,
    spearman,
    table,
    with_interval,
)
from utils.errors import InputError

TASK = "normal"
NAMES = {
    "diffusion": "Diffusion: mini-sd, attention, t = 400",
    "flow": f"Flow transformer: mini-flow, all layers, s = {FLOW_TIME}",
    "gan": "GAN: mini-gan, affine layers",
    "ar": "Autoregressive: mini-ar, attention, all tokens in one pass",
}
DIFFUSION = {"diffusion": "4", "flow": "7-snapshots"}  # family -> question of studies.paper_questions
COLOURS = {"diffusion": "C0", "flow": "C3", "gan": "C4", "ar": "C5"}  # those of the families' plot

Row = dict  # of one snapshot: "step", "distance", "errors": "trained" and "mean", each (seeds, images)


def snapshots(family: str, folder: Path, whole: Path, work: Path) -> dict[int, Path]:
    """Step -> generator, made in `work`, of each ema-*.pt of the pretraining in `folder` whose step is a power of two.

    whole: the trained generator, which gives all but the weights.
    """
    files = {step_of(path): path for path in sorted(folder.glob("ema-*.pt"))}
    chosen = {step: path for step, path in files.items() if step & (step - 1) == 0}
    if not chosen:
        raise InputError(f"{folder}: no snapshots (ema-*.pt); python -m miniworld.pretrain_{family} keeps them")
    return {step: as_generator(path, whole, work / f"{whole.name}-{step:06d}") for step, path in chosen.items()}


def as_generator(snapshot: Path, whole: Path, out: Path) -> Path:
    """The folder `out`: `whole` with a snapshot's weights. What is there already, stays."""
    if out.exists():
        return out
    state = torch.load(snapshot, weights_only=True)
    if (whole / CONFIG).is_file():
        network, _ = build_gan()
        assign(network, state["generator"])
        save_gan(out, network)
        return out
    transformer = LlamaForCausalLM(LlamaConfig.from_pretrained(whole / "transformer"))
    assign(transformer, state["transformer"])
    return with_transformer(whole, transformer, out)


@torch.no_grad()
def assign(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Every parameter by its name; buffers stay."""
    for name, parameter in module.named_parameters():
        parameter.copy_(weights[name])


def distance(generator: Path) -> float:
    """Of the samples of a generator's folder."""
    if (generator / CONFIG).is_file():
        images = samples(load_gan(str(generator)).network, DRAWN, 0)
    else:
        whole = LlamaForCausalLM.from_pretrained(generator / "transformer").float()
        images = sample(whole, VQModel.from_pretrained(generator / "vq").float(), DRAWN, 0)
    return float(np.mean(sliced_wasserstein(images, unseen())))


@cache
def unseen() -> Tensor:
    """Images (DRAWN,3,64,64) unseen in all pretrainings; the model cards' distances use the same ones."""
    return unseen_scenes(0, 2 * DRAWN)[0]["rgb"][:DRAWN]


def of_diffusion(path: Path, mean: np.ndarray, question: str) -> list[Row]:
    """A question's snapshots, from the study in paper_questions.json; `mean`: the mean label's errors (1, images)."""
    results = json.loads(path.read_text())["answers"].get(question, []) if path.is_file() else []
    rows = [
        {
            "step": step_of(unet),
            "distance": group[0]["distance"],
            "errors": {"trained": matrix(group).tolist(), "mean": mean.tolist()},
        }
        for (unet,), group in groups(results, "unet").items()
    ]
    return sorted(rows, key=lambda row: row["step"])


def section(found: dict[str, list[Row]], folder: Path) -> str:
    """Tables, rank correlations and the plot, as Markdown."""
    parts = ["### The fourth question: does a generator that draws better know more? (normals)"]
    axes = new_axes()
    lines, sentences = [], []
    for family, rows in found.items():
        distances = [row["distance"] for row in rows]
        trained, mean = ([np.array(row["errors"][name], float) for row in rows] for name in ("trained", "mean"))
        shares = [ratio(one, reference) for one, reference in zip(trained, mean)]
        for row, one, share in zip(rows, trained, shares):
            place = (NAMES[family], row["step"], f"{row['distance']:.1f}")
            lines.append((*place, with_interval(one), share.text, len(one)))
        sentences.append(f"{NAMES[family]}: {agreement(distances, shares, trained, mean)}")
        points(axes, family, distances, shares)
    axes.axhline(1, color="#888", linewidth=0.8)
    axes.set(xscale="log", xlabel="sliced Wasserstein distance x 1000 (better to the left)")
    axes.set(ylabel="error / mean label's; bars: 95 % interval")
    axes.set_xticks([40, 60, 100, 200], ["40", "60", "100", "200"])
    axes.minorticks_off()
    axes.legend(fontsize=7, frameon=False)
    head = ("family", "steps of pretraining", "distance x 1000", headline(TASK), "over the mean label's", "seeds")
    parts += [table(head, lines), "\n".join(f"* {sentence}" for sentence in sentences)]
    title = "Error of normals by quality of samples, while pretraining"
    parts.append(finish(axes, folder / "generators_4.png", title))
    return "\n\n".join(parts)


def agreement(
    distances: list[float], shares: list[Estimate], trained: list[np.ndarray], mean: list[np.ndarray]
) -> str:
    """Spearman's rho between distance and error over the mean label's, with its interval over seeds and images."""
    resampled = np.array([
        resample(one) / resample(np.broadcast_to(reference, one.shape)) for one, reference in zip(trained, mean)
    ])  # fmt: skip
    low, high = interval(np.array([spearman(distances, column) for column in resampled.T]))
    rho = Estimate(spearman(distances, [share.value for share in shares]), low, high)
    return f"Spearman's rho of distance and error over the mean label's, {len(distances)} snapshots: **{rho.text}**"


def points(axes, family: str, distances: list[float], shares: list[Estimate]) -> None:
    colour = COLOURS[family]
    for one, share in zip(distances, shares):
        axes.plot([one, one], [share.low, share.high], color=colour, linewidth=1)
    axes.plot(distances, [share.value for share in shares], "o-", color=colour, markersize=3, linewidth=0.6,
        label=NAMES[family])  # fmt: skip
