"""Three furnished rooms, rendered as training data: two for training, the third held out.

    python -m integrations.blender.rooms --out data/rooms --bpy_python .bpy/bin/python
    python sd_single_diode_pseudo_normal.py --dataset folder --train_data_dir data/rooms/normal ...

builds the rooms as .blend files (`room_scenes.py`), renders each with `integrations.blender.export`, and lays them out
as <out>/<normal|depth|albedo|shading>/{images,labels,gt,masks}/<train|val>/<room>_<number>.*: `val` is the room that
no training image shows. The same command again renders what is missing.
"""

import os
import shutil
import sys
from pathlib import Path

from integrations.blender.convert import TASKS
from integrations.blender.export import main as export
from integrations.blender.runtime import no_bpy, start
from utils.cli import Parser, path_flag
from utils.errors import InputError, note, run
from utils.system.atomic import make_folder

BUILD = Path(__file__).with_name("room_scenes.py")
ROOMS = {"living": "train", "bedroom": "train", "study": "val"}


def parse(argv: list[str] | None = None):
    parser = Parser(prog="python -m integrations.blender.rooms", description=__doc__)
    add = parser.add_argument
    add("--out", type=path_flag, required=True, help="folder to write or continue")
    add("--train", type=int, default=100, help="images of the first two rooms together, an even number")
    add("--val", type=int, default=20, help="images of the third room")
    add("--size", default="256x256", help="width x height in pixels (default: 256x256)")
    add("--samples", type=int, default=6, help="paths per pixel")
    add("--bpy_python", default=sys.executable, help="a Python with bpy (default: this one)")
    args = parser.parse_args(argv)
    if args.train < 2 or args.train % 2 or args.val < 1:
        raise InputError(f"--train={args.train} --val={args.val}: an even number from 2 on, and at least 1")
    return args


def build(folder: Path, bpy_python: str) -> None:
    """The .blend files; those of an earlier call are kept, because the export does not continue with other bytes."""
    if all((folder / f"{room}.blend").is_file() for room in ROOMS):
        return
    make_folder(folder, "--out")
    done = start(bpy_python, BUILD, folder)
    if "No module named 'bpy'" in done.stderr:
        raise no_bpy(bpy_python)
    if done.returncode:
        raise RuntimeError(done.stderr)


def lay_out(scene: Path, out: Path, split: str) -> None:
    """One room's export -> `out`, into the folders of its split. Files are linked where the disk can do that."""
    for task in TASKS:
        for folder in ("labels", "gt", "masks", "images"):
            target = out / task / folder / split
            make_folder(target, "--out")
            for file in (scene / task / folder).iterdir():
                if (target / file.name).exists():
                    continue
                try:
                    os.link(file, target / file.name)
                except OSError:
                    shutil.copy(file, target)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    scenes = args.out / "scenes"
    build(scenes, args.bpy_python)
    for room, split in ROOMS.items():
        note(f"{room}: {split}")
        count = args.train // 2 if split == "train" else args.val
        words = [scenes / f"{room}.blend", "--out", scenes / room, "--cameras", count, "--size", args.size]
        words += ["--samples", args.samples, "--bpy_python", args.bpy_python]
        export([str(word) for word in words])
        lay_out(scenes / room, args.out, split)
    return 0


if __name__ == "__main__":
    run(main)
