"""Ray-cast rooms and yards with exact depth, normals, albedo and shading.

As a library: `render` one scene, or `stream` images with captions. As a command: write a data set in DIODE's layout.

    python -m miniworld.scenes --root data/miniworld --train 300 --val 40 --size 128x96
"""

import argparse
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from miniworld.render.diode_tree import DRAW, Settings, list_samples, meta_json, sample_paths, write_sample
from miniworld.render.raycast import Rendering, trace
from utils.cli import Parser, path_flag
from utils.errors import InputError, run
from utils.system.atomic import LOCK, lock, make_folder, unlock, write_json

KINDS = {"room": DRAW["indoors"], "yard": DRAW["outdoor"]}
OWNED = ("depths", "normals", "pseudo", "truth", "diode_meta.json", "miniworld.json")


def render(seed, kind: str, height: int = 64, width: int = 64) -> Rendering:
    """The scene of this seed (anything numpy's default_rng takes) and kind ("room" or "yard"), at any size."""
    return trace(KINDS[kind](np.random.default_rng(seed)), height, width)


def stream(seed: int, size: int = 64, start: int = 0) -> Iterator[tuple[np.ndarray, str]]:
    """Endless pairs of image (size, size, 3) uint8 and caption, rooms and yards in turn. No other map is returned.

    Pair `index` depends on (seed, index) only: a stream from `start` continues one that was interrupted there.
    """
    index = start
    while True:
        rendering = render(np.random.SeedSequence([seed, index]), "yard" if index % 2 else "room", size, size)
        yield rendering.rgb, rendering.caption
        index += 1


def write_tree(root: Path, settings: Settings, workers: int = 1, overwrite: bool = False) -> bool:
    """Write the DIODE tree described in `miniworld.render.diode_tree`. Returns whether there was anything to do.

    `miniworld.json` records the settings, and whether the tree is complete. A complete tree with the same settings is
    left alone, an interrupted one is written again. Other settings raise InputError, or with `overwrite` replace what
    this function wrote. Data that it did not write are never touched.
    """
    samples = list(list_samples(settings))
    if is_complete(root, settings, samples, overwrite):
        return False
    make_folder(root, "--root")
    lock(root, "rendering", "--root")
    write_json(root / "miniworld.json", {"settings": asdict(settings), "complete": False})
    work = partial(write_sample, root, settings)
    bar = partial(tqdm, total=len(samples), desc=f"rendering into {root}", unit="scene", mininterval=0.5)
    if workers > 1:
        # spawn: the same on every platform, and safe after torch has started threads
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for _ in bar(pool.map(work, samples, chunksize=8)):
                pass
    else:
        for sample in bar(samples):
            work(sample)
    write_json(root / "diode_meta.json", meta_json(settings))
    write_json(root / "miniworld.json", {"settings": asdict(settings), "complete": True})
    (root / LOCK).unlink(missing_ok=True)  # while it is held; data sets contain only data
    unlock(root)
    return True


def is_complete(root: Path, settings: Settings, samples, overwrite: bool) -> bool:
    """Check whether the tree is complete. Another tree is removed with `overwrite`; without it, InputError."""
    record = root / "miniworld.json"
    if not record.exists():
        foreign = [name for name in OWNED if (root / name).exists()]
        if foreign:
            raise InputError(f"{root} contains {foreign[0]}, not written by miniworld: choose another --root")
        return False
    try:
        found = json.loads(record.read_text())
        same, complete = found["settings"] == asdict(settings), found["complete"]
    except (ValueError, KeyError, TypeError):
        same, complete = False, False
    if not same:
        if not overwrite:
            raise InputError(f"{root} contains scenes of other settings (see {record}): --overwrite replaces them")
        for name in OWNED:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return False
    names = (path for sample in samples for path in sample_paths(settings, sample).values())
    return complete and not overwrite and all((root / name).exists() for name in (*names, "diode_meta.json"))


def parse_size(text: str) -> tuple[int, int]:
    """ "128x96" -> (128, 96), width first."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        width = height = 0
    if min(width, height) < 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT with both at least 16, as in 128x96")
    return width, height


def count(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m miniworld.scenes",
        description="Render rooms and yards with exact depth and normals in DIODE's layout, and dense "
        "8-bit pseudo labels (pseudo/normal, pseudo/depth, pseudo/albedo, pseudo/shading).",
    )
    parser.add_argument(
        "--root",
        type=path_flag,
        required=True,
        default=argparse.SUPPRESS,
        help="folder to write, with diode_meta.json in it",
    )
    parser.add_argument("--train", type=count, default=300, help="training images, half rooms and half yards")
    parser.add_argument("--val", type=count, default=40, help="validation images, half rooms and half yards")
    parser.add_argument("--size", type=parse_size, default="128x96", metavar="WxH", help="width x height in pixels")
    parser.add_argument("--seed", type=count, default=0, help="seed of the scenes")
    parser.add_argument(
        "--workers", type=count, default=min(8, os.cpu_count() or 1), help="processes; the files do not depend on it"
    )
    parser.add_argument("--truth", action="store_true", help="also write linear float32 albedo and shading to truth/")
    parser.add_argument("--overwrite", action="store_true", help="replace scenes of other settings in --root")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    width, height = args.size
    settings = Settings(args.train, args.val, width, height, args.seed, args.truth)
    written = write_tree(args.root, settings, args.workers, args.overwrite)
    outcome = "written to" if written else "already complete in"
    print(f"{args.train} train and {args.val} val scenes {outcome} {args.root}")


if __name__ == "__main__":
    run(main)
