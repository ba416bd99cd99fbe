"""Upload of a run to the model hub: LoRA, model card (model_card.md), scores and panels, in the background. It cannot
end the run.
"""

import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData
from safetensors.torch import load_file

from utils.base_model.names import licence_of
from utils.errors import note, one_line
from utils.kinds.base import higher_is_better
from utils.lora import BIN, CONV_IN, SAFETENSORS, read_lora
from utils.training.settings import Settings
from utils.training.tracking import BEST, METRICS, read_metrics

TEMPLATE = Path(__file__).with_name("model_card.md")
CONVENTIONS = ("frame", "polarity", "colour_space")  # metadata that define the meaning of a value
DIFFUSION = ("single-step", "augunet")  # methods whose LoRAs diffusers loads


def model_card(
    repo_id: str,
    metadata: Mapping[str, object],
    scores: Mapping[str, float],
    protocol: str,
    panels: Sequence[str],
) -> str:
    """metadata: as in the LoRA's header. scores: "val/<split>/<metric>" -> value, measured as `protocol` says.

    panels: images in the repository. The card contains nothing else.
    """
    base = str(metadata["base_model"])
    licence = licence_of(base)
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not Path(base).exists()
    # the hub refuses a card whose base model is a path, and the path is of no use to others
    base = base if on_hub else Path(base).name
    data = ModelCardData(
        base_model=base if on_hub else None,
        library_name="diffusers" if metadata["method"] in DIFFUSION else None,
        license=licence or "other",
        pipeline_tag="image-to-image",
        tags=["lora", "intrinsic-lora", str(metadata["task"]), str(metadata["method"])],
    )
    convention = [f" {key.replace('_', ' ').title()}: {metadata[key]}." for key in CONVENTIONS if key in metadata]
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        base=base,
        metadata=metadata,
        convention="".join(convention),
        metadata_table=_table(["", ""], [[key, value] for key, value in {**metadata, "base_model": base}.items()]),
        scores=_scores(scores),
        protocol=protocol,
        panels=[(Path(panel).stem, panel) for panel in panels],
        terms=licence or "not stated",
        safetensors=SAFETENSORS,
        bin=BIN,
        conv_in=CONV_IN,
        network="UNet" if metadata.get("family") == "sdxl" else "transformer",
    )
    return f"{card}\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(one_line(str(cell)).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _scores(scores: Mapping[str, float]) -> str:
    """A row per split, a column per metric; empty without scores."""
    parts = [(name.split("/", 2), value) for name, value in scores.items() if name.startswith("val/")]
    named = [(split, metric, value) for (_, split, metric), value in parts]
    if not named:
        return ""
    metrics = list(dict.fromkeys(metric for _, metric, _ in named))
    head = ["images", *(f"{metric} {'↑' if higher_is_better(metric) else '↓'}" for metric in metrics)]
    rows = []
    for split in dict.fromkeys(split for split, _, _ in named):
        values = {metric: value for at, metric, value in named if at == split}
        rows.append([split, *(f"{values[metric]:.4g}" if metric in values else "" for metric in metrics)])
    return _table(head, rows)


PATIENCE = 600  # seconds that the end of a run waits for an upload
STALE = [CONV_IN, "validation/*"]  # deleted in the repository unless the new upload has them


class Uploads:
    """One run's uploads. At most one at a time: a checkpoint written during an upload is not uploaded.

    metadata: as in the LoRA's header, without the steps. protocol: how the validation's scores were measured.
    """

    def __init__(
        self, output_dir: Path, repo_id: str | None, token: str | None, metadata: Mapping[str, object], protocol: str
    ):
        self.output_dir, self.repo_id, self.token = output_dir, repo_id or output_dir.resolve().name, token
        self.metadata, self.protocol = metadata, protocol
        self.thread: threading.Thread | None = None
        self.reason = ""  # why the last upload failed
        self.warned = False

    def checkpoint(self, folder: Path, step: int) -> None:
        """Start to upload the LoRA in `folder`, and return immediately. Only a run's first failure is reported."""
        if self.reason and not self.warned:
            self.warned = True
            note(f"--push_to_hub failed ({self.reason}); training continues, and the next checkpoint tries again")
        if not self._is_busy():
            self._start(folder, step)

    def finish(self, step: int) -> None:
        """Upload the finished LoRA and wait for it, PATIENCE seconds at most; print the address, or why it failed."""
        if not self._is_busy(PATIENCE):
            self._start(self.output_dir, step)
        if self._is_busy(PATIENCE):
            self.reason = f"no answer within {PATIENCE} s"
        if self.reason:
            folder = self.output_dir / "hub"
            note(
                f"--push_to_hub failed ({self.reason}); the run is complete; later: hf upload {self.repo_id} {folder}"
            )

    def _is_busy(self, patience: float = 0) -> bool:
        if self.thread is not None:
            self.thread.join(patience)
        return self.thread is not None and self.thread.is_alive()

    def _start(self, folder: Path, step: int) -> None:
        """Copy the files, so that nothing prunes them in the meantime, and upload them in a thread."""
        last, self.thread, self.reason = folder == self.output_dir, None, ""
        try:
            stage(self.output_dir, folder)
            self._write_card(step)
        except Exception as error:  # a full disk must not end the training either
            self.reason = " ".join(str(error).split())[:300]
            return
        self.thread = threading.Thread(target=self._send, args=(step, last), daemon=True)
        self.thread.start()

    def _write_card(self, step: int) -> None:
        staged = self.output_dir / "hub"
        validations = [line for line in read_metrics(self.output_dir) if any(name.startswith("val/") for name in line)]
        scored = max((line for line in validations if line["step"] <= step), key=lambda line: line["step"], default={})
        protocol = f"{self.protocol} Measured after step {scored.get('step')}."
        panels = sorted(f"validation/{path.name}" for path in (staged / "validation").iterdir())
        card = model_card(self.repo_id, {**self.metadata, "steps": step}, scored, protocol, panels)
        (staged / "README.md").write_text(card)

    def _send(self, step: int, last: bool) -> None:
        try:
            api = HfApi(token=self.token)
            self.repo_id = api.create_repo(self.repo_id, exist_ok=True).repo_id  # now with its owner
            self._write_card(step)
            message = f"End of training, step {step}" if last else f"Step {step}"
            staged = self.output_dir / "hub"
            api.upload_folder(repo_id=self.repo_id, folder_path=staged, commit_message=message, delete_patterns=STALE)
            if last:
                print(f"uploaded to {api.endpoint}/{self.repo_id}")
        except Exception as error:  # network, rights, quota, ...: the run itself is safe on disk
            self.reason = " ".join(str(error).split())[:300]


def begin(settings: Settings, metadata: Mapping[str, object], protocol: str) -> Uploads | None:
    """The run's `Uploads`, or None without --push_to_hub."""
    if not settings.push_to_hub:
        return None
    return Uploads(settings.output_dir, settings.hub_model_id, settings.hub_token, metadata, protocol)


def stage(output_dir: Path, folder: Path) -> None:
    """Copy into `<output_dir>/hub/`: the LoRA in `folder`, the scalars so far, and each split's newest panel."""
    staged = output_dir / "hub"
    shutil.rmtree(staged, ignore_errors=True)
    (staged / "validation").mkdir(parents=True)
    for path in (folder / SAFETENSORS, folder / CONV_IN, output_dir / METRICS, output_dir / BEST):
        if path.is_file():
            shutil.copy(path, staged)
    if read_lora(staged / SAFETENSORS).metadata.keys().isdisjoint(("depth_coding", "family")):  # a .bin has no header
        torch.save(load_file(staged / SAFETENSORS), staged / BIN)
    for path in sorted((output_dir / "validation").glob("*_*.png")):  # by step; the newest overwrites the others
        shutil.copy(path, staged / "validation" / path.name.split("_", 1)[1])
