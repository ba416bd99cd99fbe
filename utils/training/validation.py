"""Validation on fixed samples: predict, score against ground truth, write panels, mark the best checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from utils.errors import note, warn
from utils.image_io.panels import black, sheet, strip
from utils.intrinsics import Intrinsic
from utils.kinds.alignment import linear_map
from utils.kinds.base import Score
from utils.noise import generators
from utils.objectives import Objective
from utils.system import signals
from utils.system.atomic import replace
from utils.system.compute import as_written
from utils.training import checkpoint, tracking

COLUMNS = ["RGB", "ground truth", "label", "prediction"]
Samples = Mapping[str, Sequence[dict]]  # split -> items of the data set
Panels = dict[str, list[tuple[str, Image.Image]]]  # split -> (stem, its strip of images)


class Validation:
    """The validation of one run, by the main process.

    samples: split (train, indoors, ...) -> items (rgb, target, gt, valid, stem), the same ones every time.
    score(prediction (3,H,W), gt (C,H,W), valid (1,H,W)) -> metrics of one image, None if it has no valid pixel.
    measured: True if gt is ground truth, False if it is the label. seed: of the samplers' noise: sample i of every
    split starts from the same noise every time. vae_home: the VAE's device between validations.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        objective: Objective,
        samples: Samples,
        intrinsic: Intrinsic,
        score: Score,
        measured: bool,
        output_dir: Path,
        seed: int,
        batch_size: int,
        best_metric: str | None,
        vae_home: torch.device | str,
    ):
        self.accelerator, self.objective, self.samples = accelerator, objective, samples
        self.intrinsic, self.score, self.measured = intrinsic, score, measured
        self.output_dir, self.seed, self.batch_size = output_dir, seed, batch_size
        self.best_metric, self.vae_home = best_metric, vae_home

    def run(self, unet: nn.Module, step: int) -> None:
        """Predict and score the samples with the LoRA of `step`, unless an earlier run in this folder has."""
        if self.accelerator.is_main_process and not tracking.is_validated(self.output_dir, step):
            self.objective.vae.to(self.accelerator.device)
            with self.accelerator.autocast(), as_written():
                found = self.predict(unet)
            self.objective.vae.to(self.vae_home)
            if found is None:
                note(f"step {step}: validation interrupted, its results are discarded")
            else:
                scores, panels = found
                self.report(scores, panels, step)
        self.accelerator.wait_for_everyone()

    def report(self, scores: dict[str, float], panels: Panels, step: int) -> None:
        """Panels to disk, scores and panels to the trackers, the best checkpoint so far, and one line."""
        # panels first: a step with scores counts as validated
        write_panels(panels, self.output_dir / "validation", step)
        tracking.log_scalars(self.accelerator, self.output_dir, scores, step, complete=False)
        tracking.log_panels(self.accelerator, panels, step)
        tracking.log_best(self.accelerator, checkpoint.mark_best(self.output_dir, self.best_metric), step)
        tqdm.write(f"step {step}: {headline(scores, self.intrinsic) or 'validated, nothing to score'}")

    @torch.no_grad()
    def predict(self, unet: nn.Module) -> tuple[dict[str, float], Panels] | None:
        """{"val/<split>/<metric>": mean over its images}, and the panels; None if a signal asked to stop."""
        was_training = unet.training
        unet.eval()
        scores: dict[str, float] = {}
        panels: Panels = {}
        total = sum(len(items) for items in self.samples.values())
        bar = tqdm(total=total, desc="validating", unit="image", leave=False)
        for split, items in self.samples.items():
            panels[split], found = [], []
            for first, batch in of_one_shape(items, self.batch_size):
                if signals.stop_requested():
                    bar.close()
                    unet.train(was_training)
                    return None
                rgb = torch.stack([item["rgb"] for item in batch]).to(self.accelerator.device)
                noise = generators(self.seed, first, len(batch))
                predictions = self.objective.predict(unet, rgb, noise).float().cpu()
                predictions = linear_map(predictions, self.intrinsic.depth_coding)
                for item, prediction in zip(batch, predictions):
                    found.append(self.score(prediction, item["gt"], item["valid"]))
                    panels[split].append((item["stem"], self.strip(item, prediction)))
                bar.update(len(batch))
            measured = [one for one in found if one is not None]
            for metric in measured[0] if measured else ():
                scores[f"val/{split}/{metric}"] = float(np.mean([one[metric] for one in measured]))
        bar.close()
        unet.train(was_training)
        return scores, panels

    def strip(self, item: dict, prediction: torch.Tensor) -> Image.Image:
        """RGB, ground truth (black where nothing is measured), label and prediction of one sample, side by side."""
        truth = self.intrinsic.map_kind.truth_panel(item["gt"], item["valid"]) if self.measured else black(item["rgb"])
        label = linear_map(item["target"], self.intrinsic.depth_coding)
        return strip([item["rgb"], truth, label, self.intrinsic.map_kind.panel(prediction)])

    @property
    def protocol(self) -> str:
        """How the scores are computed, in words."""
        images = max((len(items) for items in self.samples.values()), default=0)
        side = next((min(items[0]["rgb"].shape[-2:]) for items in self.samples.values() if items), "?")
        coding = self.intrinsic.depth_coding
        undone = "" if coding == "linear" else f" The {coding} coding of the labels is undone first."
        return f"{self.score.description}{undone} Mean over {images} fixed images per split, at {side} px."


def headline(scores: Mapping[str, float], intrinsic: Intrinsic) -> str:
    """The metric to watch of every split, in words and with its unit: "indoors: mean angle 21.034 degrees"."""
    metric = next(iter(scores), "").rsplit("/")[-1]  # a metric's dictionary begins with its main value
    title, _, unit = intrinsic.scores.get(metric.removeprefix("label_"), metric).partition(", ")
    title += " from the label" if metric.startswith("label_") else ""
    values = {name.split("/")[1]: value for name, value in scores.items() if name.endswith(f"/{metric}")}
    return ", ".join(f"{split}: {title} {value:.3f} {unit}".rstrip() for split, value in values.items())


def of_one_shape(items: Sequence[dict], size: int) -> Iterator[tuple[int, Sequence[dict]]]:
    """Neighbours of one shape, at most `size` of them, with the number of the first one."""
    first = 0
    while first < len(items):
        last = first + 1
        while last < min(first + size, len(items)) and items[last]["rgb"].shape == items[first]["rgb"].shape:
            last += 1
        yield first, items[first:last]
        first = last


def write_panels(panels: Panels, folder: Path, step: int) -> None:
    """One PNG per split, `<folder>/<step>_<split>.png`: its strips in one column."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in panels.items():
            page = sheet([picture for _, picture in rows], COLUMNS)
            replace(folder / f"{step:06d}_{split}.png", partial(page.save, format="PNG"))
    except OSError as error:  # a full disk is no reason to end a run
        warn(f"{folder}: the panels of step {step} could not be written ({error.strerror or error})")
