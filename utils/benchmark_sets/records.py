"""The score of one image on the disk, so that a run that was stopped continues where it was."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.evaluation.aggregation import ImageScore
from utils.kinds.evidence import Evidence, Placed
from utils.system.atomic import save_bytes

ARRAYS = ("errors", "angles")
PLACED = ("values", "truth", "known")


def place_of(folder: Path, name: str) -> Path:
    """The record of an image. Names may hold characters that a file's name cannot."""
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.npz"


def write_record(folder: Path, score: ImageScore, extra: dict[str, Any]) -> None:
    """Write one score, atomically. extra: further facts of the image."""
    plain = score._asdict()
    arrays = {key: plain.pop(key) for key in ARRAYS}
    placed: Placed | None = plain.pop("placed")
    if placed is not None:
        arrays |= {f"placed_{key}": getattr(placed, key) for key in PLACED}
        plain["placed"] = [_table(placed.errors), placed.constant]
    for key in ("evidence", "truth_evidence"):
        if (one := plain[key]) is not None:
            plain[key] = [_table(one.errors), one.constant, one.odd, one.nearness]
    plain["unknown"], plain["extra"] = dict(score.unknown), extra
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(plain).encode(), np.uint8)
    np.savez(buffer, text=text, **{key: array for key, array in arrays.items() if array is not None})
    save_bytes(place_of(folder, score.name), buffer.getvalue())


def read_record(folder: Path, name: str) -> tuple[ImageScore, dict[str, Any]] | None:
    """What `write_record` wrote; None where there is nothing."""
    path = place_of(folder, name)
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    plain: dict[str, Any] = json.loads(bytes(arrays.pop("text")))
    extra = plain.pop("extra")
    for key in ("evidence", "truth_evidence"):
        if (one := plain[key]) is not None:
            plain[key] = Evidence(_errors(one[0]), one[1], tuple(one[2]), one[3])
    if "placed" in plain:
        errors, constant = plain["placed"]
        plain["placed"] = Placed(_errors(errors), constant, *(arrays.pop(f"placed_{key}") for key in PLACED))
    plain["shape"] = tuple(plain["shape"])
    return ImageScore(**plain, **arrays), extra


def _table(errors: dict[tuple, float]) -> list[tuple[Sequence[Any], float]]:
    return [(key, float(value)) for key, value in errors.items()]


def _errors(table: list[tuple[list, float]]) -> dict[tuple, float]:
    return {tuple(key): value for key, value in table}
