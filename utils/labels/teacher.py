"""What a teacher is to those who ask it, and how it is described."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Generator

from utils.errors import InputError


@dataclass(frozen=True)
class Teacher:
    """predict: RGB picture and its noise, one generator per member of the ensemble -> values of one task:

    normal (H,W,3) unit, x right, y down, z forward; depth (H,W), far = large; disparity (H,W), near = large; albedo
    and shading (H,W,3), sRGB-coded in [0,1]. `about` says who it is, `conventions` what it said before and says now.
    """

    predict: Callable[[Image.Image, list[Generator]], np.ndarray]
    quantity: str  # normal, depth, disparity, albedo or shading
    about: dict[str, str]
    conventions: dict[str, str]


def about(name: str, revision: str | None, kind: str) -> dict[str, str]:
    """Who a teacher is: name, class, revision; of a folder a digest of its file names, sizes and configurations."""
    who = {"name": name, "class": kind, "revision": revision or "main"}
    if Path(name).is_dir():
        digest = hashlib.sha256()
        for path in sorted(path for path in Path(name).rglob("*") if path.is_file()):
            digest.update(json.dumps([path.relative_to(name).as_posix(), path.stat().st_size]).encode())
            digest.update(path.read_bytes() if path.suffix == ".json" else b"")
        who |= {"name": str(Path(name).resolve()), "revision": f"sha256:{digest.hexdigest()[:16]}"}
    return who


def accept(name: str, quantity: str, predicts: str | None) -> None:
    if quantity == "disparity" and predicts is None:
        raise InputError(
            f"{name}: predicts disparity of unknown shift, from which no linear depth can be had; take a metric or "
            "depth model, or accept labels linear in disparity with --predicts disparity (score: --align disparity)"
        )


def depth_said(quantity: str, unit: str) -> dict[str, str]:
    labels = f"near = white, linear in {quantity}, between each picture's 2nd and 98th percentile"
    return {"teacher": f"{quantity}, {unit}", "labels": labels}
