"""What a run tells while it trains: validation on fixed samples, with its scores, panels and best checkpoint."""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from utils import best, tracking
from utils.compiling import as_written
from utils.scores import described
from utils.training_state import TrainingState
from utils.validation import validate, write_panels


class Reports:
    """Validation of a run. samples, score, pictures: see `utils.validation.validate`.

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
        if accelerator.is_main_process and not tracking.is_validated(state.output_dir, step):
            self.objective.vae.to(accelerator.device)
            with accelerator.autocast(), as_written():
                scores, panels = validate(
                    self.objective, state.bare_unet, self.samples, self.score, self.pictures, accelerator.device,
                    seed=state.args.seed + 100, batch_size=state.args.train_batch_size,
                )  # fmt: skip
            self.objective.vae.to(self.resting)
            # first: the scores say that the panels are there
            write_panels(panels, state.output_dir / "validation", step)
            tracking.log_scalars(accelerator, state.output_dir, scores, step, complete=False)
            tracking.log_panels(accelerator, panels, step)
            tracking.log_best(accelerator, best.mark_best(state.output_dir, state.args.best_metric), step)
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
