"""Opens every file of a data set and lists those that are missing, corrupt or do not fit their image.

    python -m dataloaders check --root DIODE [--pseudo_root pseudo/normal]               # all of DIODE's files
    python -m dataloaders check --dataset folder --train_data_dir data
    python -m dataloaders check --dataset manifest --manifest data.jsonl

Labels are also compared with the ground truth: are their axes, channel order, polarity and coding those that a
training takes them for? The exit status is 1 if anything is wrong.
"""

import argparse
import os
import platform
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from tqdm.auto import tqdm

from dataloaders.listing import folder_samples, manifest_samples
from utils import __version__
from utils.cli import Parser, above_zero, path_flag
from utils.errors import InputError, one_line, run
from utils.image_io.diode_names import KNOWN_GAP, check_label_root, lacks_known_gap, listed_samples
from utils.image_io.files import read_array, read_mask
from utils.image_io.images import read_label, read_rgb, same_aspect
from utils.intrinsics import INTRINSICS
from utils.kinds.frames import FRAMES

CHANNELS = {"depth": (1,), "mask": (1, 3), "normal": (3,), "gt": (1, 3)}
LISTED = 20  # problems written out
LABELS = 64  # compared with their truth


class Files(NamedTuple):
    """One sample: the group it is counted in, its name, and role -> file (rgb, label, mask, or a key of CHANNELS)."""

    group: str
    name: str
    paths: dict[str, Path]


class Problem(NamedTuple):
    group: str
    kind: str  # missing, corrupt or mismatched
    text: str


def check_files(files: Files) -> list[Problem]:
    """The problems of one sample: every file is read to its end and compared with its image's size."""
    problems: list[Problem] = []
    size: tuple[int, int] | None = None
    for role in sorted(files.paths, key=lambda role: role != "rgb"):  # the image first: the others must fit it
        path = files.paths[role]
        if not path.is_file():
            problems.append(Problem(files.group, "missing", str(path)))
            continue
        try:
            found = _size(role, path)
        except (InputError, ValueError) as error:
            text = str(error) if str(path) in str(error) else f"{path}: {error}"
            problems.append(Problem(files.group, "corrupt", text))
            continue
        if role == "rgb":
            size = found
        square = role == "label" and found[0] == found[1]  # the image's centre
        if size is None or found == size or square or (role == "label" and same_aspect(found, size)):
            continue
        text = f"{path}: {found[0]}x{found[1]}, its image {size[0]}x{size[1]}"
        problems.append(Problem(files.group, "mismatched", text))
    return problems


def check_all(samples: list[Files], workers: int) -> list[Problem]:
    """The problems of all samples, in their order; `workers` threads read (it frees the interpreter)."""
    pool = ThreadPoolExecutor(workers)
    try:
        bar = tqdm(pool.map(check_files, samples), "checking", len(samples), unit="sample", disable=None)
        return [problem for found in bar for problem in found]
    finally:
        pool.shutdown(cancel_futures=True)


def report(samples: list[Files], problems: list[Problem], notes: list[str], conventions: Sequence[str] = ()) -> str:
    """A summary to paste into a bug report: versions, totals, one row per group with problems, the first of them.

    conventions: problems of the labels as a whole.
    """
    kinds = ("missing", "corrupt", "mismatched")
    counts: dict[str, Counter[str]] = {group: Counter() for group in dict.fromkeys(files.group for files in samples)}
    for problem in problems:
        counts[problem.group][problem.kind] += 1
    lines = [
        f"version {__version__}, python {platform.python_version()}, numpy {np.__version__}, pillow {PIL.__version__}",
        f"{len(samples)} samples, {sum(len(files.paths) for files in samples)} files in {len(counts)} groups: "
        + (
            ", ".join(f"{sum(c[kind] for c in counts.values())} {kind}" for kind in kinds)
            if problems
            else "all good"
            if not conventions
            else "all readable"
        ),
        *notes,
    ]
    if problems:
        sizes = Counter(files.group for files in samples)
        lines.append(f"{'missing':>9}{'corrupt':>9}{'mismatched':>12}{'samples':>9}  group")
        for group, count in counts.items():
            if count:
                cells = f"{count['missing']:9}{count['corrupt']:9}{count['mismatched']:12}{sizes[group]:9}"
                lines.append(f"{cells}  {group}")
        lines += [f"{problem.kind}: {problem.text}" for problem in problems[:LISTED]]
        lines += [f"... and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
    lines += [f"convention: {text}" for text in conventions]
    return "\n".join(map(one_line, lines))


def diode_files(root: Path, pseudo_root: Path | None, notes: list[str]) -> Iterator[Files]:
    """Every sample that diode_meta.json lists or whose image is on disk, grouped by scene.

    normals/ and the labels are checked only if their folder exists (or is named); a note lists what was not checked.
    """
    depths, normals = root / "depths", root / "normals"
    if not depths.is_dir():
        raise InputError(
            f"{depths}: no such folder; --root is the folder that holds depths/ and normals/ (images and labels "
            "of your own: --dataset folder --train_data_dir FOLDER)"
        )
    if pseudo_root:
        check_label_root(pseudo_root, INTRINSICS)
    stems = {path.relative_to(depths).with_suffix("").as_posix() for path in depths.rglob("*.png")}
    if (root / "diode_meta.json").is_file():
        listed = listed_samples(root)
        here = {stem.split("/")[0] for stem in stems}
        absent = {stem for stem in listed if stem.split("/")[0] not in here}  # a split that was never unpacked
        notes.append(f"{len(stems - listed)} images on disk are not in diode_meta.json, which lists {len(listed)}")
        if absent:
            notes.append(f"not checked: {len(absent)} listed samples of splits that are not on disk at all")
        stems |= listed - absent
    else:
        notes.append("no diode_meta.json")
    gap = {stem for stem in stems if stem.startswith(KNOWN_GAP + "/")} if lacks_known_gap(normals) else set()
    if not normals.is_dir():
        notes.append(f"not checked: {normals} is not there")
    elif gap:
        notes.append(f"not checked: {len(gap)} normals of {KNOWN_GAP}, for which DIODE has none")
    for stem in sorted(stems):
        paths = {"rgb": depths / f"{stem}.png", "depth": depths / f"{stem}_depth.npy"}
        paths["mask"] = depths / f"{stem}_depth_mask.npy"
        paths |= {"normal": normals / f"{stem}_normal.npy"} if normals.is_dir() and stem not in gap else {}
        paths |= {"label": pseudo_root / f"{stem}.png"} if pseudo_root else {}
        yield Files("/".join(stem.split("/")[:3]), stem, paths)


def own_files(dataset: str, root: Path, pseudo_root: Path | None, manifest: Path) -> Iterator[Files]:
    """The samples of a folder or manifest of your own, grouped by folder."""
    samples = folder_samples(root, pseudo_root) if dataset == "folder" else manifest_samples(manifest)
    for sample in samples:
        paths = {"rgb": sample.rgb, "label": sample.label, "gt": sample.gt, "mask": sample.mask}
        group = sample.stem.rpartition("/")[0] or "."
        yield Files(group, sample.stem, {role: Path(path) for role, path in paths.items() if path})


def check_conventions(
    samples: list[Files], problems: list[Problem], args: argparse.Namespace, notes: list[str]
) -> list[str]:
    """The problems of the labels as a whole, one line each. Reads up to LABELS samples whose files are all good."""
    bad = {problem.group for problem in problems}
    good = [files for files in samples if "label" in files.paths and files.group not in bad]
    if not good:
        return []
    from dataloaders.label_check import findings_of_files  # only now: PyTorch takes seconds to import

    return findings_of_files([(files.name, files.paths) for files in good], LABELS, args, notes)


def finish(samples: list[Files], args: argparse.Namespace, notes: list[str]) -> int:
    """Check, print the report, and return the exit status: 1 if anything is wrong."""
    if not samples:
        raise InputError("no sample found: nothing to check")
    problems = check_all(samples, args.workers)
    conventions = check_conventions(samples, problems, args, notes)
    print(report(samples, problems, notes, conventions))
    if problems or conventions:
        return 1
    if line := what_next(samples, args):
        print(one_line(f"next: {line}"))
    return 0


def what_next(samples: list[Files], args: argparse.Namespace) -> str:
    """The command that makes labels, where there are none, else the one that trains on them; empty where nothing
    states which intrinsic they are of.
    """
    from dataloaders.label_check import intrinsic_of  # only now: PyTorch takes seconds to import

    own, tree = args.dataset in ("folder", "manifest"), args.root or (args.train_data_dir or Path()).parent
    labels = [files.paths["label"] for files in samples if "label" in files.paths]
    if not labels:
        task = args.task if args.task in ("normal", "depth") else "normal"
        words = ["python", "pseudo_label.py", "--task", task, "--from", "ground_truth", "--input_dir", str(tree)]
        return shlex.join([*words, "--output_dir", f"pseudo/{task}"])
    intrinsic = intrinsic_of(labels, args.task)
    if intrinsic is None:
        return ""
    truth = tree / intrinsic.truth_folder
    return training_command(
        intrinsic.name,
        dataset=args.dataset if own else None,
        manifest=args.manifest,
        train_data_dir=args.train_data_dir if own else (truth if truth.is_dir() else tree / "depths"),
        pseudo_root=args.pseudo_root,
        gt_frame=args.gt_frame,
        depth_coding=None if intrinsic.depth_coding == "linear" else intrinsic.depth_coding,
    )


def training_command(task: str, **flags: object) -> str:
    """The command that trains on labels of an intrinsic. flags: in order; None: left out."""
    flags = {"pretrained_model_name_or_path": "runwayml/stable-diffusion-v1-5", **flags, "output_dir": f"runs/{task}"}
    words = ["python", f"sd_single_diode_pseudo_{task}.py"]
    return shlex.join(words + [f"--{name}={value}" for name, value in flags.items() if value is not None])


def add_flags(parser: Parser) -> None:
    """The flags of a check, for both commands that offer it."""
    add = parser.add_argument
    add("--root", type=path_flag, help="DIODE, all of its files: the folder that holds depths/ and normals/")
    add("--dataset", choices=["diode", "folder", "manifest"], help="kind of data set (default: diode)")
    add("--train_data_dir", type=path_flag, help="DIODE's normals/ or depths/ folder, or a folder of your own")
    add(
        "--pseudo_root", type=path_flag, help="labels: the folder that holds train/ and val/; of a folder: not labels/"
    )
    add("--manifest", type=path_flag, help="a .jsonl file")
    add("--task", choices=list(INTRINSICS), help="intrinsic of the labels (default: from provenance.json next to "
        "them, or from their pixels)")  # fmt: skip
    add("--gt_frame", choices=list(FRAMES), help="folder, manifest: axes of the normals in gt/ (default: opencv)")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that read files")
    parser.only("manifest", lambda a: a.root or a.dataset == "manifest", "without --dataset manifest")
    manifest = "with --dataset manifest, whose lines name every file"
    parser.only("train_data_dir pseudo_root", lambda a: a.root or a.dataset != "manifest", manifest)


def check(args: argparse.Namespace) -> int:
    """Check what `args` (see `add_flags`) names; the exit status, 1 if anything is wrong."""
    above_zero(args, ("workers",))
    notes: list[str] = []
    if args.root is not None:
        if args.dataset or args.train_data_dir or args.manifest:
            raise InputError("--root names a DIODE tree: leave out --dataset, --train_data_dir and --manifest")
        return finish(list(diode_files(args.root, args.pseudo_root, notes)), args, notes)
    dataset = args.dataset or "diode"
    needed = "manifest" if dataset == "manifest" else "train_data_dir"
    if getattr(args, needed) is None:
        raise InputError(f"--{needed} is missing" + ("; or pass --root, DIODE's folder" if dataset == "diode" else ""))
    if dataset == "diode":
        found = diode_files(args.train_data_dir.parent, args.pseudo_root, notes)
    else:
        found = own_files(dataset, args.train_data_dir, args.pseudo_root, args.manifest)
    return finish(list(found), args, notes)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m dataloaders check", description=__doc__)
    add_flags(parser)
    return check(parser.parse_args(argv))


def _size(role: str, path: Path) -> tuple[int, int]:
    """(width, height) of a file, read to its end; ValueError if it is not what its role needs."""
    if role in ("rgb", "label"):
        return (read_rgb if role == "rgb" else read_label)(path).size
    array = read_mask(path) if role == "mask" else read_array(path)
    channels = array.shape[2] if array.ndim == 3 else 1
    if channels not in CHANNELS[role] or (role in ("depth", "normal") and array.dtype.kind != "f"):
        raise ValueError(f"{array.dtype} {array.shape} is no {role} map")
    return array.shape[1], array.shape[0]


if __name__ == "__main__":
    run(main)
