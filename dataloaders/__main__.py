"""The command line of `python -m dataloaders.diode`."""

import os
from pathlib import Path

from dataloaders.check import diode_files, finish
from dataloaders.prepare import prepare
from utils.cli import Parser
from utils.errors import InputError

DESCRIPTION = """DIODE on disk.

    python -m dataloaders.diode prepare --depths val.tar.gz --normals val_normals.tar.gz --root DIODE
    python -m dataloaders.diode check --root DIODE --pseudo_root pseudo/normal

prepare verifies DIODE's archives by their published MD5 sums and unpacks them into root/depths and root/normals; run
it again after an interruption. check opens every file and reports, per scene, what is missing, corrupt or mismatched;
its exit status is 1 if anything is.
"""


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m dataloaders.diode",
        description=DESCRIPTION,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("prepare", help="unpack the official archives").add_argument
    add("--depths", type=Path, nargs="+", default=[], help="val.tar.gz, train.tar.gz: pictures, depths, masks")
    add("--normals", type=Path, nargs="+", default=[], help="val_normals.tar.gz, train_normals.tar.gz")
    add("--root", type=Path, required=True, help="folder to fill")
    add("--skip_md5", action="store_true", help="take archives that are not DIODE's own (same layout)")
    add = commands.add_parser("check", help="read every file").add_argument
    add("--root", type=Path, required=True, help="the folder that holds depths/ and normals/")
    add("--pseudo_root", type=Path, help="also check these labels: the folder that holds train/ and val/")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.command == "prepare":
        if not args.depths + args.normals:
            raise InputError("nothing to unpack: pass --depths and --normals archives")
        prepare(args.root, {"depths": args.depths, "normals": args.normals}, args.skip_md5)
        return 0
    if args.workers < 1:
        raise InputError(f"--workers={args.workers}: must be at least 1")
    notes: list[str] = []
    return finish(list(diode_files(args.root, args.pseudo_root, notes)), notes, args.workers)
