"""How images are cut and sized for the network: flags and keywords. Imports no torch."""

import argparse
from dataclasses import dataclass
from typing import Literal

from utils.errors import InputError


@dataclass(frozen=True)
class View:
    """The default is the whole image, its short side brought to `resolution`, and maps of the image's own size.

    resolution: pixels, a multiple of 8; None: the LoRA's own, with `tile` the image's. center_crop: the centre square
    of that side instead, as the released code and training do; maps keep that size. output_size: "input", or
    "network": maps stay as the network makes them. flip_tta: the mean with the mirrored image's prediction. tile,
    overlap: windows of that many pixels, None: the whole image, a quarter of the tile. wrap: the image repeats, and
    so do its maps.
    """

    resolution: int | None = None
    center_crop: bool = False
    output_size: Literal["input", "network"] = "input"
    flip_tta: bool = False
    tile: int | None = None
    overlap: int | None = None
    wrap: bool = False

    def __post_init__(self) -> None:
        if self.resolution is not None and (self.resolution < 8 or self.resolution % 8):
            raise InputError(f"--resolution={self.resolution}: must be a positive multiple of 8")
        if self.output_size not in ("input", "network"):
            raise InputError(f"--output_size={self.output_size}: must be input or network")
        for flag in ("tile", "wrap"):
            if self.center_crop and getattr(self, flag):
                raise InputError(f"--{flag}: of whole images only; leave out --center_crop")
        if self.tile is not None and self.tile < 8:
            raise InputError(f"--tile={self.tile}: must be at least 8")
        if self.overlap is not None and self.tile is None and not self.wrap:
            raise InputError("--overlap: of --tile and --wrap only; leave it out")
        if self.overlap is not None and self.overlap < 0:
            raise InputError(f"--overlap={self.overlap}: must not be negative")
        if self.overlap is not None and self.tile is not None and 2 * self.overlap > self.tile:
            raise InputError(f"--overlap={self.overlap}: must be at most half of --tile={self.tile}")


def view_flags(parser: argparse.ArgumentParser) -> None:
    """How images are sized and cut; `view_of` reads them."""
    add = parser.add_argument
    add("--resolution", type=int, help="short side in pixels, at the network's input (default: the training's, else "
        "512; with --tile the image's own)")  # fmt: skip
    add("--output_size", choices=["input", "network"], help="size of the maps: the image's own, or the network's "
        "(default: input; with --center_crop network)")  # fmt: skip
    add("--center_crop", action="store_true", help="predict the centre square alone, --resolution pixels wide: the "
        "released script's files, pixel for pixel")  # fmt: skip
    add("--flip_tta", action="store_true", help="average with the prediction of the mirrored image; twice the time")
    add("--tile", type=int, metavar="N", help="predict windows of N pixels and merge them: for images too large for "
        "the memory, or finer than the base predicts well (a multiple of 64 for Stable Diffusion)")  # fmt: skip
    add("--overlap", type=int, metavar="M", help="least overlap of the windows, in pixels (default: a quarter of N)")
    add("--wrap", action="store_true", help="the image repeats, as textures do: left and right, top and bottom of "
        "the maps fit together")  # fmt: skip


def view_of(args: argparse.Namespace) -> View:
    """The flags' view. Raises InputError where they do not go together."""
    if args.center_crop and args.output_size == "input":
        raise InputError("--output_size=input: of whole images only; leave out --center_crop")
    return View(
        resolution=args.resolution,
        center_crop=args.center_crop,
        output_size=args.output_size or ("network" if args.center_crop else "input"),
        flip_tta=args.flip_tta,
        tile=args.tile,
        overlap=args.overlap,
        wrap=args.wrap,
    )
