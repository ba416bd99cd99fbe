"""How the demo and the benchmarks score each intrinsic with evaluate.py on a rendered tree."""

from utils.intrinsics import Intrinsic


def evaluation_flags(intrinsic: Intrinsic) -> tuple[str, ...]:
    """The flags of evaluate.py beside --task, --pred_dir and --gt_dir."""
    if intrinsic.map_kind.has_axes:
        return ("--protocol", "pooled")
    if intrinsic.map_kind.has_surface:
        return ("--protocol", "diode", "--erode", "0")
    return ("--pred_space", "srgb", "--gt_space", "linear")
