"""Validation on fixed samples: draw, score against ground truth, and keep a panel of pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from utils.errors import warn
from utils.maps.pictures import sheet, strip
from utils.metrics.scores import described
from utils.noise import generators
from utils.system.atomic import replace
from utils.system.compiling import as_written
from utils.tracking import metrics_file, trackers
from utils.training import best
from utils.training.state import TrainingState

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


class Reports:
    """Validation of a run. samples, score, pictures: see `utils.training.validation.validate`.

    resting: where the VAE is between validations.
    """

    def __init__(
        self,
        state: TrainingState,
        objective,
        samples: dict[str, list[dict]],
        score: Callable[[Tensor, Tensor, Tensor], dict[str, float] | None],
        pictures: tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]],
        resting: torch.device | str,
    ):
        self.state, self.objective, self.samples = state, objective, samples
        self.score, self.pictures, self.resting = score, pictures, resting

    def validate(self) -> None:
        """Draw and score the samples at the state's step, by the main process, unless an earlier run has done so."""
        state, accelerator, step = self.state, self.state.accelerator, self.state.step
        if accelerator.is_main_process and not metrics_file.is_validated(state.output_dir, step):
            self.objective.vae.to(accelerator.device)
            with accelerator.autocast(), as_written():
                scores, panels = validate(
                    self.objective, state.bare_unet, self.samples, self.score, self.pictures, accelerator.device,
                    seed=state.args.seed + 100, batch_size=state.args.train_batch_size,
                )  # fmt: skip
            self.objective.vae.to(self.resting)
            # first: the scores say that the panels are there
            write_panels(panels, state.output_dir / "validation", step)
            trackers.log_scalars(accelerator, state.output_dir, scores, step, complete=False)
            trackers.log_panels(accelerator, panels, step)
            trackers.log_best(accelerator, best.mark_best(state.output_dir, state.args.best_metric), step)
            headline = next(iter(scores), "").rsplit("/")[-1]  # a metric's dictionary begins with the one to watch
            shown = [f"{name[4:]} {value:.3f}" for name, value in scores.items() if name.endswith(f"/{headline}")]
            tqdm.write(f"step {step}: {', '.join(shown)}")
        accelerator.wait_for_everyone()

    @property
    def protocol(self) -> str:
        """How the scores come about, in words."""
        images = max(map(len, self.samples.values()), default=0)
        where = f"at {self.state.args.resolution} px"
        return f"{described(self.score)} Mean over {images} fixed images per split, {where}."
