"""The evaluator's command line."""

import argparse
import math
from pathlib import Path

from utils.cli import Parser, path_flag
from utils.intrinsics import ALBEDO, INTRINSICS
from utils.kinds.frames import FRAMES

PROTOCOLS = {one.kind: one.map_kind.protocols for one in INTRINSICS.values()}  # the first is the default
ONLY_FOR = {  # flag -> the intrinsics that it means something for
    flag: tuple(other.name for other in INTRINSICS.values() if flag in other.map_kind.evaluation_flags)
    for one in INTRINSICS.values()
    for flag in one.map_kind.evaluation_flags
} | {"whdr": (ALBEDO.name,)}


def parse_args(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check all flags; exits with a usage line where they do not go together."""
    parser = Parser(description=description)
    add = parser.add_argument
    add("--task", required=True, choices=tuple(INTRINSICS))
    add("--protocol", help="; ".join(f"{kind}: {', '.join(names)}" for kind, names in PROTOCOLS.items()))
    add(
        "--pred_dir",
        type=path_flag,
        required=True,
        help="predictions in any subfolders: <name>[_<task>] with .npy, .exr, _16bit.png or .png",
    )
    add(
        "--gt_dir",
        type=path_flag,
        help="ground truth with the same relative names, or DIODE's normals or depths folder",
    )
    add(
        "--mask_dir",
        type=path_flag,
        help="masks, not zero = valid; otherwise <stem>_mask, _depth_mask or _valid, .npy or .png, next to the truth",
    )
    add("--output", type=path_flag, default=Path("metrics.json"), help="result file (default: metrics.json)")
    add("--report", type=path_flag, metavar="DIR", help="also write DIR/index.html, one page that needs no server")
    add("--image_dir", type=path_flag, help="images of the same names, shown in the report (default: DIODE's own)")
    add("--baseline", choices=("mean",), help="also score a constant: the mean normal, depth or colour of the truth")
    add("--allow_missing", action="store_true", help="leave out and count predictions that are missing or unusable")
    add("--pred_frame", choices=tuple(FRAMES), help="axes of predicted normals (default: opencv, what we predict)")
    add("--gt_frame", choices=tuple(FRAMES), help="axes of true normals (default: opengl for DIODE, else opencv)")
    add("--align", choices=("depth", "disparity"), help="what scale and shift are fitted in (default: depth)")
    add(
        "--gt_depth_scale",
        type=float,
        help="units per metre of the true depth, in every format: 1000 (millimetres, NYUv2), KITTI 256 (default: 1)",
    )
    add("--pred_space", choices=("srgb", "linear"), help="colour space of predictions (default: srgb)")
    add("--gt_space", choices=("srgb", "linear"), help="colour space of the truth, and of the scores (default: srgb)")
    add("--whdr", type=path_flag, help="IIW judgements: one .json, or a folder of <name>.json; needs no --gt_dir")
    add("--by_stem", action="store_true", help="pair by file stem alone: for predictions in one flat folder")
    add(
        "--center_crop",
        action="store_true",
        help="score the truth's centre square: for predictions made with inference's --center_crop",
    )
    add("--erode", type=int, help="second row with masks shrunk by that many pixels (default: 5 for diode, else 0)")
    add("--diode_set", choices=("disk", "meta"), help="DIODE: all files found (default), or those in diode_meta.json")
    add("--bootstrap", type=int, default=1000, help="resamples of images for the intervals, 0 = none (default: 1000)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    add("--workers", type=int, default=2, help="threads that read and score images (default: 2)")
    parser.only("seed", lambda a: a.bootstrap, "with --bootstrap 0")
    parser.only("image_dir", lambda a: a.report, "without --report")
    parser.only("protocol gt_space erode diode_set", lambda a: a.gt_dir, "without --gt_dir")
    args = parser.parse_args(argv)
    for flag, tasks in ONLY_FOR.items():
        if getattr(args, flag) is not None and args.task not in tasks:
            parser.error(f"--{flag} means nothing for --task {args.task}, only for {' and '.join(tasks)}")
    protocols = PROTOCOLS[INTRINSICS[args.task].kind]
    args.protocol = args.protocol or protocols[0]
    if args.protocol not in protocols:
        parser.error(f"--task {args.task} has no protocol {args.protocol}: use {', '.join(protocols)}")
    if args.gt_dir is None and args.whdr is None:
        parser.error("--gt_dir is needed (only --whdr does without)")
    if args.gt_dir is None and args.mask_dir is not None:
        parser.error("--mask_dir needs --gt_dir: judgements know no mask")
    if args.whdr is not None and args.center_crop:
        parser.error("--whdr places its points in the whole image: it cannot go with --center_crop")
    if args.gt_depth_scale is not None and not 0 < args.gt_depth_scale < math.inf:
        parser.error("--gt_depth_scale must be a positive number of units per metre")
    if args.erode is None:
        args.erode = 5 if args.protocol == "diode" else 0
    if args.erode < 0 or args.bootstrap < 0 or args.workers < 1:
        parser.error("--erode and --bootstrap must not be negative, --workers at least 1")
    return args
