"""The intrinsics that can be predicted: one record each, imported by name. A new one is a record here and a
training script.

`kind` names the module of utils/kinds that defines the values of a pixel, and with it how maps are read, shown,
merged and scored:

    normals   unit vectors, x right, y down, z forward
    depth     one number, affine in metres, near = large
    colour    a share of light or of a property, per channel, coded as `coding` says
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from utils.kinds.base import MapKind

DEPTH_CODINGS = {  # of labels (utils/kinds/alignment.py) -> its words for "linear in" in a convention
    "linear": "linear in",
    "log": "1 - log10(1 + 9 u), u from 0 (near) to 1 (far) affine in",
    "sqrt": "1 - sqrt(u), u from 0 (near) to 1 (far) affine in",
}


@dataclass(frozen=True)
class Intrinsic:
    """One quantity that a LoRA can learn to predict.

    name: in flags, file names (`<stem>_<name>.png`) and metadata.
    prompt: the one prompt of every image; the paper's where the paper has one.
    convention: (metadata key, what the values mean).
    truth_folder: where a DIODE tree keeps measured values, `<stem>_<name>.npy`.
    scores: metric -> its title, the first being the one to watch.
    coding: of labels and predictions of a colour: "srgb" as images are, or "linear".
    grey: one channel; predictions are averaged over theirs.
    depth_coding: of a depth's labels, and so of what a network predicts; files of predictions are always linear.
    """

    name: str
    kind: str
    prompt: str
    convention: tuple[str, str]
    truth_folder: str
    scores: Mapping[str, str]
    coding: Literal["srgb", "linear"] = "srgb"
    grey: bool = False
    depth_coding: str = "linear"

    @cached_property
    def map_kind(self) -> MapKind:
        """Everything that depends on the kind of map. Imported by name on first use, because command lines and this
        module do without numpy.
        """
        return import_module(f"utils.kinds.{self.kind}").KIND(self)

    @property
    def suffix(self) -> str:
        """How the files of measured values end."""
        return f"_{self.name}.npy"


COLOUR_SCORES = {"rmse": "RMSE after scale, linear", "ssim": "SSIM (higher is better)"}

NORMAL = Intrinsic(
    name="normal",
    kind="normals",
    prompt="surface normal",
    convention=("frame", "opencv (x right, y down, z forward)"),
    truth_folder="normals",
    scores={"mean": "mean angle, degrees", "median": "median angle, degrees"},
)
DEPTH = Intrinsic(
    name="depth",
    kind="depth",
    prompt="depth map",
    convention=("polarity", "near = white, linear in depth, affine-invariant"),
    truth_folder="depths",
    scores={"abs_rel": "AbsRel after scale and shift", "delta1": "delta1 (higher is better)"},
    grey=True,
)
ALBEDO = Intrinsic(
    name="albedo",
    kind="colour",
    prompt="albedo",
    convention=("colour_space", "sRGB-coded, up to one scale; scored in linear light"),
    truth_folder="truth/albedo",
    scores=COLOUR_SCORES,
)
SHADING = Intrinsic(
    name="shading",
    kind="colour",
    prompt="shading",
    convention=("colour_space", "sRGB-coded, up to one scale; scored in linear light"),
    truth_folder="truth/shading",
    scores=COLOUR_SCORES,
)

INTRINSICS = {one.name: one for one in (NORMAL, DEPTH, ALBEDO, SHADING)}


def depth_coded(coding: str) -> Intrinsic:
    """Depth whose labels have this coding, a key of DEPTH_CODINGS."""
    key, meaning = DEPTH.convention
    return replace(DEPTH, depth_coding=coding, convention=(key, restated(meaning, coding)))


def restated(meaning: str, coding: str) -> str:
    """A sentence on linear labels, said of labels with this coding."""
    return meaning.replace(DEPTH_CODINGS["linear"], DEPTH_CODINGS[coding])
