"""README.md of a LoRA's hub repository, from model_card.md: its predictions, scores, and how to load it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from utils.base_model.names import licence_of
from utils.errors import one_line
from utils.kinds.base import higher_is_better
from utils.lora import BIN, CONV_IN, SAFETENSORS

TEMPLATE = Path(__file__).with_suffix(".md")
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
