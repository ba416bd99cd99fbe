"""From published files to data that the scripts train on: DIODE's archives, and sets with exact truth.

The sets are Hypersim, Virtual KITTI 2 and InteriorVerse: one module each, and `writer` for all of them. None could be
downloaded where this was written: the modules were tested on small files in the published layouts.
"""

import argparse
from importlib import import_module

from dataloaders.prepare import archives
from utils.cli import Parser, above_zero, path_flag
from utils.errors import InputError
from utils.intrinsics import DEPTH_CODINGS
from utils.system.processes import available_cores

SETS = ("hypersim", "vkitti2", "interiorverse")  # each a module here with `plan`


def add_flags(parser: Parser) -> None:
    add = parser.add_argument
    add("set", nargs="?", choices=["diode", *SETS], default="diode", help="data set")
    add("--root", type=path_flag, required=True, help="folder to fill")
    add("--depths", type=path_flag, nargs="+", default=[], help="diode: val.tar.gz, train.tar.gz")
    add("--normals", type=path_flag, nargs="+", default=[], help="diode: val_normals.tar.gz, train_normals.tar.gz")
    add("--skip_md5", action="store_true", help="diode: take archives that are not DIODE's own (same layout)")
    add("--source", type=path_flag, help="folder of the published files; hypersim: scenes unpacked or zipped, or "
        "the tree that Marigold's preprocessing writes")  # fmt: skip
    add("--split_csv", type=path_flag, help="hypersim: metadata_images_split_scene_v1.csv")
    add("--camera_csv", type=path_flag, help="hypersim: metadata_camera_parameters.csv; without it, depth and normals "
        "of scenes with tilt-shift cameras (more than half) are left out")  # fmt: skip
    add("--min_diffuse_psnr", type=float, metavar="DB", help="hypersim: leave out albedo and shading of images that "
        "albedo x shading alone, without the residual, reproduces less well")  # fmt: skip
    add("--depth_coding", choices=list(DEPTH_CODINGS), default="linear", help="coding of depth labels")
    add("--gt", choices=["all", "val"], default="all", help="splits whose exact maps are written as floats; training "
        "does not read those of its own images, which take most of the space")  # fmt: skip
    add("--scenes", nargs="+", help="these scenes alone")
    add("--limit", type=int, help="number of images, evenly spaced in the list")
    add("--workers", type=int, default=available_cores(), help="processes; the files do not depend on it")
    parser.only("depths normals skip_md5", lambda a: a.set == "diode", "for a set other than diode")
    parser.only("source depth_coding gt scenes limit workers", lambda a: a.set != "diode", "for diode")
    parser.only("split_csv camera_csv min_diffuse_psnr", lambda a: a.set == "hypersim", "without hypersim")


def prepare(args: argparse.Namespace) -> int | None:
    """Do what the flags (see `add_flags`) name; the exit status, 1 if images failed."""
    if args.set == "diode":
        archives.prepare_archives(args)
        return None
    from dataloaders.prepare import writer

    above_zero(args, ("workers",) if args.limit is None else ("workers", "limit"))
    if args.source is None:
        raise InputError(f"--source is missing: the folder that holds {args.set}'s files")
    if not args.source.is_dir():
        raise InputError(f"--source {args.source}: no such folder; pass the one that holds {args.set}'s files")
    return writer.write_set(import_module(f"dataloaders.prepare.{args.set}").plan(args), args)
