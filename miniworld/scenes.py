"""Rendered rooms and yards with exact depth, normals, albedo and shading: a small world in DIODE's layout.

    python -m miniworld.scenes --root DIR --train 300 --val 40 --size 128x96

writes pictures, ground truth and pseudo labels as dataloaders/diode.py reads them. The same seed gives the same bytes,
with any number of workers.
"""

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from miniworld.raycast import Rendering, trace
from miniworld.rooms import draw_room
from miniworld.tree import Settings, write_tree
from miniworld.yards import draw_yard

KINDS = {"room": draw_room, "yard": draw_yard}


def render(seed, kind: str, height: int = 64, width: int = 64) -> Rendering:
    """The scene of this seed (anything numpy's SeedSequence takes) and kind ("room" or "yard"), at any size."""
    return trace(KINDS[kind](np.random.default_rng(seed)), height, width)


def stream(seed: int, size: int = 64) -> Iterator[tuple[np.ndarray, str]]:
    """Endless pairs of picture (size,size,3) uint8 and caption, half rooms and half yards. No other map gets out."""
    index = 0
    while True:
        rendering = render([seed, index], "room" if index % 2 == 0 else "yard", size, size)
        yield rendering.rgb, rendering.caption
        index += 1


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the tree")
    parser.add_argument("--train", type=int, default=300, help="training images (default: 300)")
    parser.add_argument("--val", type=int, default=40, help="validation images (default: 40)")
    parser.add_argument(
        "--size", default="128x96", help="WIDTHxHEIGHT in pixels; DIODE has 1024x768 (default: 128x96)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the whole world (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --root")
    args = parser.parse_args(argv)
    size = re.fullmatch(r"(\d+)x(\d+)", args.size)
    if not size or min(int(side) for side in size.groups()) < 8:
        parser.error(f"--size={args.size}: expected WIDTHxHEIGHT of at least 8x8, such as 128x96")
    if args.train < 0 or args.val < 0 or args.seed < 0 or args.workers < 1:
        parser.error("--train, --val and --seed must not be negative, and --workers at least 1")
    try:
        write_tree(
            args.root,
            Settings(args.train, args.val, *map(int, size.groups()), args.seed),
            args.workers,
            args.overwrite,
        )
    except FileExistsError as error:
        parser.error(str(error))
    print(f"{args.root}: {args.train} training and {args.val} validation images of {args.size}, seed {args.seed}")


if __name__ == "__main__":
    main()
