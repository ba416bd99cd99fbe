"""A folder of images in, a folder of maps out: what both inference scripts share."""

import argparse
import os
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from utils.inference.predictor import Engine, Prepared
from utils.inference.video import predict_video
from utils.inference.write import write_prediction
from utils.intrinsics import Intrinsic
from utils.kinds.label_record import loras_of
from utils.system.atomic import make_folder

IO_THREADS = 4
UNREAD = "images could not be read"


class Network(Protocol):
    """`Engine`, or another generator with its LoRA."""

    batch_size: int

    @property
    def intrinsics(self) -> list[Intrinsic]: ...

    def prepare(self, image: Image.Image) -> Prepared: ...

    def predict(self, images: Sequence[Prepared], names: Sequence[str]) -> list[dict[str, Prediction]]: ...


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
    files, size = list(pictures)[state.process_index :: state.num_processes], engine.batch_size
    failed: list[str] = []
    chunks = [files[first : first + size] for first in range(0, len(files), size)]
    bar = tqdm(total=len(files), desc=f"predicting {', '.join(targets)}", disable=not state.is_local_main_process)
    writing: list[Future] = []
    told = False
    with ThreadPoolExecutor(IO_THREADS) as pool:  # the next images are read and the last maps written meanwhile
        reading = [pool.submit(read_batch, chunk, engine, failed) for chunk in chunks[:1]]
        for chunk, following in zip(chunks, [*chunks[1:], None]):
            batch = reading.pop().result()
            if following:
                reading.append(pool.submit(read_batch, following, engine, failed))
            found = engine.predict(list(batch.values()), [pictures[path] for path in batch])
            if found and state.is_main_process and not told:
                told = True
                for name, one in found[0].items():
                    note_other_loras(Path(output_dir) / name / "predicted", set(targets[name].values()), one.facts)
            images = [
                one.shown(next(iter(maps.values())).shape) if output.meshes else None
                for one, maps in zip(batch.values(), found)
            ]
            wait(writing)
            writing = [
                pool.submit(write_prediction, one, Path(output_dir) / name, targets[name][path], output, image)
                for path, maps, image in zip(batch, found, images)
                for name, one in maps.items()
            ]
            if also is not None:
                for path, maps in zip(batch, found):
                    also(path, maps)
            bar.update(len(chunk))
        wait(writing)
    bar.close()
    return gather_object(failed)


def note_other_loras(folder: Path, names: Collection[str], facts: Mapping[str, str]) -> None:
    """Maps of another LoRA in `folder`: a note on those of `names`, which are replaced, and a warning on others, which
    stay. facts: of this run's maps.
    """
    for stay in (False, True):
        maps = (path for path in folder.rglob("*.png") if (path.relative_to(folder).as_posix() in names) != stay)
        found = loras_of(maps)
        other = {lora: count for (lora, digest), count in found.items() if digest != facts.get("lora_sha256")}
        if not other:
            continue
        what = f"{folder}: {sum(other.values())} maps by {', '.join(other)}"
        if stay:
            warn(f"{what} stay among those by {facts.get('lora')}; remove them, or name another --output_dir")
        else:
            note(f"{what} are replaced by those of {facts.get('lora')}")


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


def wait(writing: list[Future]) -> None:
    """Until all is written; what went wrong there, goes wrong here."""
    for one in writing:
        one.result()


def read_batch(files: list[Path], engine: Network, failed: list[str]) -> dict[Path, Prepared]:
    """File -> what the network takes; a file that cannot be read is left out and its error appended to `failed`."""
    batch = {}
    for file in files:
        try:
            batch[file] = engine.prepare(read_rgb(file))
        except InputError as error:
            failed.append(str(error) if str(error).startswith(one_line(f"{file}: ")) else f"{file}: {error}")
    return batch
