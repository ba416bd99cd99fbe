"""Maps from the ticked LoRAs: predictors are loaded when first needed, and those of the last choice are kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from utils.base_model.names import toy_remark
from utils.errors import InputError
from utils.inference.job import Job, by_task, describe, short
from utils.inference.prediction import Prediction
from utils.inference.predictor import Predictor
from utils.objectives import AugUNet

Progress = Callable[[int, int, str], object]  # UNet passes done, passes in all, what is being predicted


class Models:
    """LoRAs by label, and the predictors of those that were ticked last, one for each base.

    loras: as for --lora. options: keywords of `Predictor`. Raises InputError if a LoRA is not available.
    """

    def __init__(self, loras: Sequence[str], **options: Any):
        self.options = options
        self.jobs: dict[str, Job] = {}
        for lora in by_task(loras):
            job = describe(lora, base=options.get("base"))
            label = _label(job, short(job.name))
            self.jobs[_label(job, job.name) if label in self.jobs else label] = job
        self._loaded: dict[str, tuple[list[str], Predictor]] = {}  # base -> LoRAs, their predictor

    def first_choice(self) -> list[str]:
        """Labels of the first LoRA for every intrinsic among those that share the first LoRA's base."""
        labels: dict[str, str] = {}
        base = next(iter(self.jobs.values())).model
        for label, job in self.jobs.items():
            if job.model == base:
                labels.setdefault(job.intrinsic.name, label)
        return list(labels.values())

    def toys(self) -> str:
        """One sentence where the model card of a base has the tag toy, else nothing."""
        remarks = (toy_remark(job.model) for job in self.jobs.values())
        return next((f"{remark}." for remark in remarks if remark), "")

    def check(self, labels: Iterable[str]) -> list[Job]:
        """The jobs of these labels. InputError if there are none, or two predict the same intrinsic."""
        chosen = [job for label, job in self.jobs.items() if label in set(labels)]
        if not chosen:
            raise InputError("no LoRA is ticked; tick at least one")
        names = [job.intrinsic.name for job in chosen]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two of the ticked LoRAs predict {name}; tick one of them")
        return chosen

    def load(self, labels: Iterable[str]) -> list[Predictor]:
        """Predictors of these LoRAs, one for each base. All others are freed first."""
        by_base: dict[str, list[str]] = {}
        for job in self.check(labels):
            by_base.setdefault(job.model, []).append(job.name)
        self._loaded = {base: held for base, held in self._loaded.items() if by_base.get(base) == held[0]}
        for base, loras in by_base.items():
            if base not in self._loaded:
                self._loaded[base] = loras, Predictor(loras, **self.options)
        return [self._loaded[base][1] for base in by_base]

    def predict(
        self, image: Image.Image, name: str, labels: Iterable[str], ensemble_size: int, progress: Progress
    ) -> dict[str, Prediction]:
        """All maps of an RGB image by the intrinsic's name. name: the image's, which sets the noise of diffusion.

        ensemble_size: for LoRAs that diffuse. progress: called before the first and after every UNet pass.
        """
        progress(0, 1, "loading")
        predictors, done = self.load(labels), 0
        total = sum(_passes(one, ensemble_size) for one in predictors)
        maps: dict[str, Prediction] = {}
        for predictor in predictors:
            names = ", ".join(job.intrinsic.name for job in predictor.jobs)
            predictor.ensemble_size = ensemble_size

            def count(*_: object, names: str = names) -> None:
                nonlocal done
                done += 1
                progress(done, total, f"predicting {names}")

            progress(done, total, f"predicting {names}")
            hook = predictor.network.register_forward_hook(count)
            try:
                maps |= predictor(image, [name])
            finally:
                hook.remove()
        return _in_order(maps, self.jobs)


def _passes(predictor: Predictor, ensemble_size: int) -> int:
    """UNet passes for one image."""
    methods = [adapter.method for adapter in predictor.adapters]
    return sum(one.steps * ensemble_size if isinstance(one, AugUNet) else 1 for one in methods)


def _in_order(maps: Mapping[str, Prediction], jobs: Mapping[str, Job]) -> dict[str, Prediction]:
    order = dict.fromkeys(job.intrinsic.name for job in jobs.values())
    return {name: maps[name] for name in order if name in maps}


def _label(job: Job, name: str) -> str:
    diffusing = ", diffusion" if job.method == "augunet" else ""
    return f"{job.intrinsic.name}{diffusing} ({name})"
