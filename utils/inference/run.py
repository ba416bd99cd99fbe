"""A folder of images in, a folder of maps out: what both inference scripts share."""

import argparse
import os
import shlex
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from tqdm.auto import tqdm

from utils.errors import InputError, list_failed, note, one_line, warn
from utils.image_io.diode_names import diode_root
from utils.image_io.files import VIDEOS
from utils.image_io.images import read_rgb
from utils.inference.inputs import Inputs, output_names
from utils.inference.job import Job
from utils.inference.output import Output
from utils.inference.prediction import Prediction
from utils.inference.predictor import Engine, Finish, Prepared
from utils.inference.video import predict_video
from utils.inference.write import write_prediction
from utils.intrinsics import Intrinsic
from utils.kinds.label_record import loras_of
from utils.system.atomic import make_folder
from utils.system.processes import check_shared, io_threads

UNREAD = "images could not be read"
THREADS = 32  # that read, bring back and write images, at most
AHEAD = 4  # images that are read before the network needs them, if a batch is smaller
IN_WORK = 4e9  # bytes of the maps that are brought back and written at the same time, unless one needs more


class Network(Protocol):
    """`Engine`, or another generator with its LoRA."""

    batch_size: int

    @property
    def intrinsics(self) -> list[Intrinsic]: ...

    @property
    def facts(self) -> Mapping[str, Mapping[str, str]]: ...

    def prepare(self, image: Image.Image) -> Prepared: ...

    def begin(self, images: Sequence[Prepared], names: Sequence[str]) -> list[dict[str, Finish]]: ...


def predict_inputs(args: argparse.Namespace, inputs: Inputs, state: PartialState, engine: Engine) -> list[str]:
    """Predict and write what --input_dir names: `predict_all` of this process's images, or `predict_video`."""
    if is_video(args):
        if state.num_processes > 1:
            raise InputError("--input_dir: a video is predicted by one process; launch with --num_processes 1")
        predict_video(Path(args.input_dir), engine, args.output_dir, args.output, args.video)
        return []
    return predict_all(inputs.pictures, state, engine, args.output_dir, args.output)


def is_video(args: argparse.Namespace) -> bool:
    """True if --input_dir is a video."""
    return Path(args.input_dir).suffix.lower() in VIDEOS and Path(args.input_dir).is_file()


def predict_all(
    pictures: dict[Path, str],
    state: PartialState,
    engine: Network,
    output_dir: str | Path,
    output: Output,
    also: Callable[[Path, dict[str, Prediction]], object] | None = None,
) -> list[str]:
    """Predict and write this process's share of the images; return why images could not be read, in any process.

    pictures: of all processes, file -> its name, which may have folders in front. Maps go to
    <output_dir>/<intrinsic>/predicted/, uncertainties to <output_dir>/<intrinsic>/uncertainty/, below the folders of
    the names. output: which files. also: called with every file and its maps, in order. Raises InputError where a file
    cannot be written, or a mesh is wanted of a map that is not depth.
    """
    output.check(engine.intrinsics)
    targets = {intrinsic.name: output_names(pictures, intrinsic.name) for intrinsic in engine.intrinsics}
    for name in targets:
        make_folder(Path(output_dir) / name / "predicted", "--output_dir")
        if state.is_main_process:
            note_other_loras(Path(output_dir) / name / "predicted", set(targets[name].values()), engine.facts[name])
    check_shared(Path(output_dir))
    files, size = list(pictures)[state.process_index :: state.num_processes], engine.batch_size
    chunks = deque(files[first : first + size] for first in range(0, len(files), size))
    failed: list[str] = []
    bar = tqdm(total=len(files), desc=f"predicting {', '.join(targets)}", disable=not state.is_local_main_process)
    reading: deque[list[tuple[Path, Future]]] = deque()
    writing: deque[tuple[Path, int, Future]] = deque()  # with the bytes that its maps take meanwhile

    def retire() -> None:
        """Wait for the image that has been in work for longest; what went wrong there, goes wrong here."""
        path, _, future = writing.popleft()
        maps = future.result()
        if also is not None:
            also(path, maps)
        bar.update(1)

    # This thread runs the network; a job of another one is one image, which it reads, or brings back and writes
    pool = ThreadPoolExecutor(io_threads(THREADS))
    try:
        while chunks or reading:
            while chunks and len(reading) <= AHEAD // size:
                reading.append([(path, pool.submit(read_one, path, engine, output)) for path in chunks.popleft()])
            read = {path: future.result() for path, future in reading.popleft()}
            batch = {path: one for path, one in read.items() if isinstance(one, Prepared)}
            failed += [one for one in read.values() if isinstance(one, str)]
            bar.update(len(read) - len(batch))
            found = engine.begin(list(batch.values()), [pictures[path] for path in batch])
            for (path, image), maps in zip(batch.items(), found, strict=True):
                while writing and image.bytes_back + sum(each for _, each, _ in writing) > IN_WORK:
                    retire()
                places = {name: (Path(output_dir) / name, targets[name][path]) for name in maps}
                job = pool.submit(write_maps, maps, places, output, image, also is not None)
                writing.append((path, image.bytes_back, job))
                while writing and writing[0][2].done():
                    retire()
        while writing:
            retire()
    finally:  # after an error or Ctrl-C, what has not begun does not begin
        pool.shutdown(cancel_futures=True)
    bar.close()
    return gather_object(failed)


def note_other_loras(folder: Path, names: Collection[str], facts: Mapping[str, str]) -> None:
    """Maps of another LoRA in `folder`: a note on those of `names`, which are replaced, and a warning on others, which
    stay. facts: of this run's maps.
    """
    maps: dict[bool, list[Path]] = {False: [], True: []}  # whether they stay
    for path in folder.rglob("*.png"):
        maps[path.relative_to(folder).as_posix() not in names].append(path)
    for stay, paths in maps.items():
        found = loras_of(paths)
        other = {lora: count for (lora, digest), count in found.items() if digest != facts.get("lora_sha256")}
        if not other:
            continue
        what = f"{folder}: {sum(other.values())} maps by {', '.join(other)}"
        if stay:
            warn(f"{what} stay among those by {facts.get('lora')}; remove them, or name another --output_dir")
        else:
            note(f"{what} are replaced by those of {facts.get('lora')}")


def read_one(path: Path, engine: Network, output: Output) -> Prepared | str:
    """What the network takes of a file, or why it cannot be read. The image as it is stays for meshes only."""
    try:
        one = engine.prepare(read_rgb(path))
    except InputError as error:
        return str(error) if str(error).startswith(one_line(f"{path}: ")) else f"{path}: {error}"
    return one if output.meshes else replace(one, image=None)


def write_maps(
    maps: Mapping[str, Finish], places: Mapping[str, tuple[Path, str]], output: Output, image: Prepared, kept: bool
) -> dict[str, Prediction]:
    """Bring one image's maps back, one after the other, and write each to its (folder, name). The maps, if `kept`."""
    found: dict[str, Prediction] = {}
    for name, finish in maps.items():
        one = finish()
        write_prediction(one, *places[name], output, image.shown(one.shape) if output.meshes else None)
        found |= {name: one} if kept else {}
    return found


def report(args: argparse.Namespace, jobs: Sequence[Job], inputs: Inputs, failed: list[str]) -> int:
    """Say what was done, what was passed over, and what to do next; the exit status: 1 if an image could not be read.

    The last lines are what the user must know about the LoRAs, if there is anything.
    """
    folders, total = [Path(args.output_dir) / job.intrinsic.name / "predicted" for job in jobs], len(inputs.pictures)
    what = "videos" if is_video(args) else "images"
    note(f"{total - len(failed)} of {total} {what} predicted: {', '.join(map(str, folders))}")
    for line in args.output.said([job.intrinsic for job in jobs]):
        note(line)
    for line in inputs.notes():
        note(line)
    if int(os.environ.get("RANK", 0)) == 0 and len(failed) < total:
        print(one_line(f"next: {what_next(args, jobs[0].intrinsic, folders[0])}"), flush=True)
    status = list_failed(UNREAD, failed)
    for line in (line for job in jobs for line in job.closing):
        note(line)
    for far in {far for job in jobs if (far := job.far(args.view))}:
        warn(far)
    return status


def what_next(args: argparse.Namespace, intrinsic: Intrinsic, folder: Path) -> str:
    """The evaluation, where the images are a DIODE tree's with measured values; else where the maps are."""
    source = Path(args.input_dir)
    root = diode_root(source) if source.is_dir() else None
    readable = {"png", "npy"} & set(args.output.formats)
    if root is not None and readable and intrinsic.map_kind.in_diode:
        truth = root.joinpath(intrinsic.truth_folder, *source.resolve().relative_to(root).parts[1:])
        if next(truth.rglob(f"*{intrinsic.suffix}"), None):
            words = ["--task", intrinsic.name, "--pred_dir", str(folder), "--gt_dir", str(truth)]
            words += ["--center_crop"] if args.center_crop else []
            words += ["--pred_frame", args.output.frame] if args.output.frame != "opencv" else []
            return f"python evaluate.py {shlex.join(words)}"
    return f"open {shlex.quote(str(folder))}"
