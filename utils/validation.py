"""Validation on fixed samples: draw, score against ground truth, and keep a panel of pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from utils.durable import replace
from utils.errors import warn
from utils.noise import generators
from utils.visualize import sheet, strip

COLUMNS = ["RGB", "ground truth", "label", "prediction"]


@torch.no_grad()
def validate(
    objective,
    unet: nn.Module,
    samples: dict[str, list[dict]],
    score: Callable[[Tensor, Tensor, Tensor], dict[str, float] | None],
    pictures: tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]],
    device: torch.device,
    seed: int,
    batch_size: int,
) -> tuple[dict[str, float], dict[str, list[tuple[str, Image.Image]]]]:
    """Draw every sample once and compare.

    samples: split (train, indoors, ...) -> items of the data set (rgb, target, gt, valid, stem).
    score(prediction (3,H,W), gt (C,H,W), valid (1,H,W)) -> metrics of one image, None if it has no valid pixel.
    pictures: (gt, valid) -> picture, and prediction -> picture, all (3,H,W) in [-1,1].
    seed: of the samplers' noise: sample i of every split starts from the same noise at every validation.

    Returns {"val/<split>/<metric>": mean over its images} and split -> [(stem, strip)].
    """
    was_training = unet.training
    unet.eval()
    scores, panels = {}, {}
    bar = tqdm(total=sum(map(len, samples.values())), desc="validating", unit="image", leave=False)
    for split, items in samples.items():
        rows, each = [], []
        for first in range(0, len(items), batch_size):
            batch = items[first : first + batch_size]
            rgb = torch.stack([item["rgb"] for item in batch]).to(device)
            drawn = objective.sample(unet, rgb, generators(seed, first, len(batch))).float().cpu()
            for item, prediction in zip(batch, drawn):
                each.append(score(prediction, item["gt"], item["valid"]))
                truth, shown = pictures[0](item["gt"], item["valid"]), pictures[1](prediction)
                rows.append((item["stem"], strip([item["rgb"], truth, item["target"], shown])))
            bar.update(len(batch))
        panels[split] = rows
        measured = [one for one in each if one is not None]
        for metric in measured[0] if measured else ():
            scores[f"val/{split}/{metric}"] = float(np.mean([one[metric] for one in measured]))
    bar.close()
    unet.train(was_training)
    return scores, panels


def write_panels(panels: dict[str, list[tuple[str, Image.Image]]], folder: Path, step: int) -> None:
    """One PNG per split, `<folder>/<step>_<split>.png`: its strips under each other."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in panels.items():
            page = sheet([picture for _, picture in rows], COLUMNS)
            replace(folder / f"{step:06d}_{split}.png", lambda part, page=page: page.save(part, "PNG"))
    except OSError as error:  # a full disk: no reason to end a run
        warn(f"{folder}: the panels of step {step} could not be written ({error.strerror or error})")
