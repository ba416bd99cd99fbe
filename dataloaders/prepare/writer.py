"""Sets with exact truth as folders for `--dataset folder`, one for each intrinsic.

    ROOT/<intrinsic>/images/<split>/<name>.png    shared by hard links
    ROOT/<intrinsic>/labels/<split>/<name>.png    in the convention of training (utils/labels/encoding.py)
    ROOT/<intrinsic>/gt/<split>/<name>.npy        normals, albedo, shading: float16; depth: float32, metres
    ROOT/<intrinsic>/masks/<split>/<name>.png     255: the exact map has a value
    ROOT/<intrinsic>/provenance.json              conventions, settings, counts
    ROOT/images.jsonl                             a line for each image: why it was left out, what was measured

An image's own file comes last of its files, and its line after that, so a run that was killed continues with the next.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from dataloaders.check import training_command
from dataloaders.prepare.geometry import check_geometry
from utils.errors import InputError, list_failed, note, one_line
from utils.image_io.colour_space import to_srgb
from utils.image_io.files import save_png
from utils.intrinsics import restated
from utils.labels.encoding import check_levels, encode, fill, finish, record
from utils.system.atomic import LOCK, lock, make_folder, save, save_bytes, save_npy, unlock
from utils.system.signals import follow_parent

LINES = "images.jsonl"
TRIED = 8  # images that are read before anything is written
BYTES = {"image": 1.9, "label": 1.2, "mask": 0.02}  # a pixel, of PNG files of photographs and their maps
LEFT_OUT = 1e-3  # albedo may leave [0, 1] by this much: rounding


class Item(NamedTuple):
    """One image of a set. name: path below images/<split>/, without ending. key: what the set's reader needs."""

    split: str
    name: str
    key: tuple


class DroppedError(Exception):
    """The image, or its map of one intrinsic, is left out; the message is the reason, which is counted."""


@dataclass
class Frame:
    """The content of one image.

    rgb: uint8 (H,W,3), or the file that holds it. maps: intrinsic -> (values, where known bool (H,W)): unit normals
    (H,W,3) opencv, planar depth (H,W) in metres, inf where there is only sky, linear albedo and shading (H,W,3) in
    [0,1]. dropped: intrinsic -> reason. facts: measured, for the record. rays: see `geometry.image_rays`. stored: the
    normals before they are turned, x right, y up, z toward the viewer, as `geometry.check_geometry` needs them.
    """

    rgb: np.ndarray | Path
    maps: dict[str, tuple[np.ndarray, np.ndarray]]
    dropped: dict[str, str] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    rays: np.ndarray | None = None
    stored: np.ndarray | None = None

    def add(self, task: str, read: Callable[[], tuple[np.ndarray, np.ndarray]]) -> None:
        """Read one map; where that drops it, note the reason."""
        try:
            self.maps[task] = read()
        except DroppedError as reason:
            self.dropped[task] = str(reason)


@dataclass(frozen=True)
class Plan:
    """A set that is prepared. title: its name; name: the same in a LoRA's header, as in `utils.benchmark_sets`.
    published: whether its splits are. tasks: intrinsics that the files hold. read: of one item, in a worker.

    settings: intrinsic -> what else decides its files, for provenance.json.
    """

    title: str
    name: str
    items: Sequence[Item]
    tasks: tuple[str, ...]
    read: Callable[[Item], Frame]
    settings: dict[str, dict] = field(default_factory=dict)
    image_ending: str = ".png"
    published: bool = True


CONVENTIONS = {
    "normal": "normals, x right, y down, z forward (opencv)",
    "depth": "near = white, linear in depth, between each image's 2nd and 98th percentile of known pixels",
    "albedo": "albedo, sRGB-coded; in linear light image = albedo x shading x one scale + residual",
    "shading": "shading, sRGB-coded, divided by the 98th percentile of each image and clipped",
}


def colours(values: np.ndarray, known: np.ndarray, name: str, upper: float | None = 1.0) -> None:
    """DroppedError for a map (H,W,3) that is not linear light in [0, upper] where it is known."""
    inside = values[known]
    if not np.isfinite(inside).all():
        raise DroppedError(f"{name}: NaN or inf")
    if inside.size and (inside.min() < -LEFT_OUT or (upper is not None and inside.max() > upper + LEFT_OUT)):
        raise DroppedError(f"{name} outside [0, {'inf)' if upper is None else '1]'}")


def files_of(root: Path, task: str, item: Item, plan: Plan, gt: str) -> dict[str, Path]:
    """Role -> file of one image of an intrinsic; the image last."""
    endings = {"labels": ".png", "masks": ".png", "gt": ".npy", "images": plan.image_ending}
    if gt == "val" and item.split != "val":
        del endings["gt"]
    return {role: root / task / role / item.split / f"{item.name}{ending}" for role, ending in endings.items()}


def write_item(plan: Plan, root: Path, coding: str, gt: str, item: Item) -> dict:
    """Read and write one image; its line in the record, or with "failed" why it cannot be read."""
    line: dict = {"split": item.split, "name": item.name}
    try:
        frame = plan.read(item)
    except DroppedError as reason:
        return line | {"dropped": dict.fromkeys(plan.tasks, str(reason))}
    except InputError as error:
        return line | {"failed": str(error)}
    dropped, image = dict(frame.dropped), frame.rgb
    for task, (values, known) in frame.maps.items():
        try:
            label = make_label(task, values, known, coding)
        except InputError:
            dropped[task] = "too few known pixels, or grey levels of depth, for a label"
            continue
        files = files_of(root, task, item, plan, gt)
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        if "gt" in files:
            exact = np.where(known if values.ndim == 2 else known[..., None], values, 0)
            save_npy(files["gt"], exact.astype(np.float32 if task == "depth" else np.float16))
        save_png(files["masks"], np.uint8(255) * known)
        save_png(files["labels"], label)
        share_image(image, files["images"])
        image = files["images"]
    return line | {"dropped": dropped} | {name: round(value, 4) for name, value in frame.facts.items()}


def make_label(task: str, values: np.ndarray, known: np.ndarray, coding: str) -> np.ndarray:
    """The 8-bit label (H,W,3). Pixels without a value get that of the nearest with one; the sky is as far as the
    farthest. InputError where too little is known.
    """
    if not known.any():
        raise InputError("no pixel of the map is known")
    holes = ~known & ~np.isinf(values) if task == "depth" else ~known
    if holes.any():
        closed = fill(values if values.ndim == 3 else values[..., None], known, False, ()).reshape(values.shape)
        values = np.where(holes if values.ndim == 2 else holes[..., None], closed, values)
    label = encode(task, to_srgb(values.clip(0, 1)) if task in ("albedo", "shading") else values, known, coding)
    if task == "depth":
        check_levels(label)
    return label


def share_image(image: np.ndarray | Path, target: Path) -> None:
    """Write an image, or link to its file; a copy where the file system has no hard links."""
    if isinstance(image, np.ndarray):
        return save_png(target, image)
    source = image
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        save(target, lambda part: shutil.copyfile(source, part))


def write_set(plan: Plan, args: argparse.Namespace) -> int:
    """Write what is not there yet, in several processes; report. The exit status: 1 if images failed."""
    items = chosen(plan, args)
    make_folder(args.root, "--root")
    lock(args.root, "preparing", "--root")
    described = {task: description(plan, task, args.depth_coding) for task in plan.tasks}
    lines = read_lines(args.root / LINES)
    left = [item for item in items if not is_done(args.root, item, plan, args.gt, lines.get(item[:2]))]
    if left:
        check_first(plan, left, args)
    for task, content in described.items():
        record(args.root / task, content, False, "choose another --root, or remove that folder")
    work = partial(write_item, plan, args.root, args.depth_coding, args.gt)
    failed = []
    save_bytes(args.root / LINES, "".join(json.dumps(line) + "\n" for line in lines.values()).encode())
    with (args.root / LINES).open("a") as file:
        bar = tqdm(total=len(left), desc=f"preparing {plan.title}", unit="image", disable=None, smoothing=0.05)
        for line in in_processes(work, left, args.workers):
            bar.update()
            if "failed" in line:
                failed.append(f"{line['name']}: {line['failed']}")
                continue
            lines[line["split"], line["name"]] = line
            file.write(json.dumps(line) + "\n")
            file.flush()
        bar.close()
    (args.root / LOCK).unlink(missing_ok=True)  # while it is held; data sets contain only data
    unlock(args.root)
    note(f"{args.root}: {len(left) - len(failed)} images done, {len(items) - len(left)} before")
    asked = [lines[item[:2]] for item in items if item[:2] in lines]
    kept = report(args.root, plan, described, asked, len(failed))
    if not kept and not failed:
        raise InputError(f"{args.root}: every image was left out, for the reasons above")
    if kept:
        coding = None if args.depth_coding == "linear" or kept[0] != "depth" else args.depth_coding
        command = training_command(kept[0], dataset="folder", train_data_dir=args.root / kept[0], depth_coding=coding)
        print(one_line(f"next: {command}"), flush=True)
    return list_failed("images are not prepared; run the same command again for them", failed)


def chosen(plan: Plan, args: argparse.Namespace) -> list[Item]:
    """The items that --scenes and --limit leave. InputError for a scene that is not there."""
    scenes = {item.name.split("/")[0] for item in plan.items}
    if unknown := sorted(set(args.scenes or ()) - scenes):
        some = ", ".join(sorted(scenes)[:3])
        raise InputError(
            f"--scenes: {unknown[0]} is not among the {len(scenes)} of train and val in --source ({some}, ...)"
        )
    items = [item for item in plan.items if not args.scenes or item.name.split("/")[0] in args.scenes]
    if args.limit is None or args.limit >= len(items):
        return items
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, args.limit).round()]


def is_done(root: Path, item: Item, plan: Plan, gt: str, line: dict | None) -> bool:
    """True if an earlier run has dropped the image from, or written it for, every intrinsic."""
    return line is not None and all(
        task in line["dropped"] or all(map(os.path.isfile, files_of(root, task, item, plan, gt).values()))
        for task in plan.tasks
    )


def check_first(plan: Plan, left: Sequence[Item], args: argparse.Namespace) -> None:
    """Read a few images before any is written: their geometry, and the space that all will take. InputError where
    either is wrong, or no image can be read.
    """
    frames, errors = [], []
    for place in np.linspace(0, len(left) - 1, min(TRIED, len(left))).round():
        try:
            frames.append(plan.read(left[int(place)]))
        except DroppedError:
            continue
        except InputError as error:
            errors.append(error)
    if errors and not frames:
        raise errors[0]
    check_geometry(args.source, [
        (*frame.maps["depth"], frame.stored, frame.rays)
        for frame in frames if "depth" in frame.maps and frame.rays is not None
    ])  # fmt: skip
    pixels = [next(iter(frame.maps.values()))[1].size for frame in frames if frame.maps]
    if not pixels:
        return
    with_gt = sum(args.gt == "all" or item.split == "val" for item in left)
    each = BYTES["image"] + len(plan.tasks) * (BYTES["label"] + BYTES["mask"])
    maps = np.mean(pixels) * with_gt * sum(4 if task == "depth" else 6 for task in plan.tasks)
    need = np.mean(pixels) * len(left) * each + maps
    free = shutil.disk_usage(args.root).free
    text = f"{len(left)} images take about {size(need)}, {size(maps)} of it exact maps; {size(free)} are free"
    if need > free:
        smaller = " --gt val," if args.gt == "all" else ""
        raise InputError(f"--root {args.root}: {text}; pass{smaller} --limit, --scenes or a folder on another disk")
    note(f"{args.root}: {text}")


def size(count: float) -> str:
    """A number of bytes in MB, GB or TB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e6:.1f} MB"


def description(plan: Plan, task: str, coding: str) -> dict:
    """The content of provenance.json on which every run into the folder must agree."""
    return {
        "task": task,
        "teacher": {"name": f"{plan.title}'s exact maps"},
        **({"depth_coding": coding} if task == "depth" else {}),
        "conventions": {
            "labels": restated(CONVENTIONS[task], coding),
            "gt": {"normal": "unit normals in the labels' axes", "depth": "metres along the image's axis"}.get(
                task, "linear light, scaled as the labels"
            ),
            "unknown pixels": "0 in masks; in labels the nearest known value",
        },
        "settings": plan.settings.get(task, {}),
    }


def read_lines(path: Path) -> dict[tuple[str, ...], dict]:
    """(split, name) -> the record's line; a line that a kill has cut is as if it were not there."""
    found: dict[tuple[str, ...], dict] = {}
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
            found[line["split"], line["name"]] = line | {"dropped": dict(line["dropped"])}
        except (ValueError, KeyError, TypeError):
            continue
    return found


def in_processes(work: Callable[[Item], dict], items: Sequence[Item], workers: int) -> Iterator[dict]:
    """work(item) of each item, in their order."""
    if min(workers, len(items)) <= 1:
        yield from map(work, items)
        return
    context = multiprocessing.get_context("spawn")  # as miniworld's: safe after threads have started
    pool = ProcessPoolExecutor(min(workers, len(items)), mp_context=context, initializer=_start_worker)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C is the first process's to handle; workers finish their image, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent()


def report(root: Path, plan: Plan, described: dict[str, dict], lines: Sequence[dict], failed: int) -> list[str]:
    """One line for each intrinsic, and its provenance.json; the intrinsics of which images were kept."""
    kept_tasks = []
    for task in plan.tasks:
        reasons = Counter(line["dropped"][task] for line in lines if task in line["dropped"])
        kept = len(lines) - sum(reasons.values())
        counts = {"images": kept, "left out": dict(reasons), "failed": failed, "complete": not failed}
        origin = {"set": plan.name, "splits": "published" if plan.published else "own"}
        finish(root / task, described[task] | origin, counts, {})
        shares = "".join(f", {count / len(lines):.1%} {reason}" for reason, count in reasons.most_common())
        note(f"{task}: {kept} of {len(lines)} images kept" + (f"; left out:{shares[1:]}" if shares else ""))
        kept_tasks += [task] * bool(kept)
    psnr = [line["diffuse_psnr"] for line in lines if "diffuse_psnr" in line]
    if psnr:
        low, middle = np.percentile(psnr, [10, 50])
        note(f"albedo x shading alone gives the image to {middle:.1f} dB (median; a tenth below {low:.1f} dB, each in "
             f"{LINES}); --min_diffuse_psnr leaves out those with more residual")  # fmt: skip
    turned = [line["turned_normals"] for line in lines if "turned_normals" in line]
    if any(turned):
        note(f"normals that faced away from the camera were turned: {np.mean(turned):.2%} of the pixels")
    return kept_tasks
