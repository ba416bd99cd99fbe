"""The files that are written of a map, and their axes: flags and keywords. Imports no torch."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from utils.errors import InputError
from utils.intrinsics import Intrinsic
from utils.kinds.frames import AXES

FORMATS = ("png", "png16", "npy", "exr", "glb", "ply")
MESHES = ("glb", "ply")  # made of depth alone
PACKAGES = {"exr": "OpenEXR", "glb": "trimesh"}  # optional: requirements-extra.txt
FOV = 60.0  # degrees, where the user names none


@dataclass(frozen=True)
class Output:
    """formats: of FORMATS. frame: the axes of normals in all files, of AXES. invert_depth: near = small. near, far:
    metres of the nearest and the farthest pixel, fov: degrees across the map's width, None: FOV; all of glb and ply.
    """

    formats: tuple[str, ...] = ("png",)
    frame: str = "opencv"
    invert_depth: bool = False
    near: float | None = None
    far: float | None = None
    fov: float | None = None

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise InputError(f"--formats={name}: must be of {', '.join(FORMATS)}, separated by commas")
            if name in PACKAGES and find_spec(PACKAGES[name]) is None:
                package = PACKAGES[name]
                raise InputError(f"--formats={name}: the package {package} is not installed: pip install {package}")
        if self.frame not in AXES:
            raise InputError(f"--frame={self.frame}: must be of {', '.join(AXES)}")
        given = [name for name in ("near", "far", "fov") if getattr(self, name) is not None]
        if not self.meshes:
            for name in given:
                raise InputError(f"--{name}: of --formats glb and ply only; leave it out")
            return
        if self.near is None or self.far is None:
            raise InputError(
                f"--formats={self.meshes[0]}: predicted depth has no scale; pass --near and --far, the metres of the "
                "nearest and the farthest pixel"
            )
        if not 0 < self.near < self.far < float("inf"):
            raise InputError(f"--near={self.near} --far={self.far}: must be metres, 0 < near < far")
        if self.fov is not None and not 0 < self.fov < 180:
            raise InputError(f"--fov={self.fov}: must lie between 0 and 180 degrees")

    @property
    def meshes(self) -> list[str]:
        """The formats that hold a surface or points."""
        return [name for name in self.formats if name in MESHES]

    def check(self, intrinsics: Sequence[Intrinsic]) -> None:
        """InputError where a mesh, or a flag of depth or normals, is wanted and nothing predicts these."""
        kinds = [intrinsic.map_kind for intrinsic in intrinsics]
        names = ", ".join(intrinsic.name for intrinsic in intrinsics)
        for name, flag, given, kind in (
            ("frame", f"--frame={self.frame}", self.frame != "opencv", "normals"),
            ("invert_depth", "--invert_depth", self.invert_depth, "depth"),
        ):
            if given and not any(name in one.output_flags for one in kinds):
                raise InputError(f"{flag}: means nothing for {names}, only for {kind}; leave it out")
        if self.meshes and not any(one.has_surface for one in kinds):
            raise InputError(f"--formats={self.meshes[0]}: made of depth, and these LoRAs predict {names}")

    def convention(self, intrinsic: Intrinsic) -> tuple[str, str]:
        """(key, meaning) of the values that are written: the intrinsic's own, but for --frame and --invert_depth."""
        return intrinsic.map_kind.convention(self)

    def said(self, intrinsics: Sequence[Intrinsic]) -> list[str]:
        """The meaning of the numbers in the files, a line each, if the user has chosen something."""
        lines = []
        if self != Output():
            for one in intrinsics:
                key, meaning = self.convention(one)
                lines.append(f"{one.name}: {key.replace('_', ' ')} {meaning}")
        if self.meshes:
            assumed = "" if self.fov else " is assumed; pass --fov, the angle across the image's width"
            lines.append(f"{', '.join(self.meshes)}: a field of view of {self.fov or FOV:g} degrees{assumed}")
        return lines


def output_flags(parser: argparse.ArgumentParser) -> None:
    """Formats and axes; `output_of` reads them."""
    add = parser.add_argument
    add("--formats", metavar="LIST", help="formats of the maps: png (8 bits), png16, npy (float32), exr (float32; "
        "package OpenEXR), of depth also glb (a surface; package trimesh) and ply (points); separated by commas "
        "(default: png)")  # fmt: skip
    add("--npy", action="store_true", help="short for --formats png,npy: also write float32 maps: unit normals "
        "(H,W,3) with x right, y down, z forward; depth (H,W), near = large; albedo, shading (H,W,3), sRGB-coded, "
        "about [0,1]")  # fmt: skip
    frames = "; ".join(f"{name}: {axes}" for name, axes in AXES.items())
    add("--frame", choices=list(AXES), default="opencv", help=f"axes of normals in the files. {frames} (default: "
        "opencv)")  # fmt: skip
    add("--invert_depth", action="store_true", help="depth with near = small and black, in all files")
    add("--near", type=float, help="glb, ply: metres along the optical axis of the nearest pixel")
    add("--far", type=float, help="glb, ply: metres along the optical axis of the farthest pixel")
    add("--fov", type=float, help=f"glb, ply: field of view across the map's width, in degrees (default: {FOV:g})")


def output_of(args: argparse.Namespace) -> Output:
    """The flags' output. Raises InputError where they do not go together, or a package is missing."""
    words: list[str] = ["png"] if args.formats is None else [word.strip() for word in args.formats.split(",")]
    formats = list(dict.fromkeys(words + (["png", "npy"] if args.npy else [])))
    fields: dict[str, Any] = {name: getattr(args, name) for name in ("frame", "invert_depth", "near", "far", "fov")}
    return Output(tuple(formats), **fields)
