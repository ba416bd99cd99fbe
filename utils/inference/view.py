"""How images are cut and sized for the network, as flags and keywords say it. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from utils.errors import InputError


@dataclass(frozen=True)
class View:
    """The default is the whole image, its short side brought to `resolution`, and maps of the image's own size.

    resolution: pixels, a multiple of 8; None: the LoRA's own, with `tile` the image's. center_crop: the centre square
    of that side instead, as the released code and training do; maps keep that size. output_size: "input", or
    "network": maps stay as the network makes them. flip_tta: the mean with the mirrored image's prediction. tile,
    overlap: windows of that many pixels, None: the image at once, a quarter of the tile. wrap: the image repeats, and
    so do its maps.
    """

    resolution: int | None = None
    center_crop: bool = False
    output_size: Literal["input", "network"] = "input"
    flip_tta: bool = False
    tile: int | None = None
    overlap: int | None = None
    wrap: bool = False

    def __post_init__(self):
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
