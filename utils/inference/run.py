"""A folder of images in, a folder of maps out: what both inference scripts share."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from utils.errors import InputError, note
from utils.inference.args import Job
from utils.inference.ensemble import uncertainty_picture
from utils.inference.inputs import Inputs, output_names
from utils.intrinsics import Intrinsic
from utils.lora import fuse_lora, load_attn_procs
from utils.maps.diode_names import diode_root
from utils.maps.images import Crop, read_rgb
from utils.maps.pictures import prediction_to_uint8, prediction_to_values
from utils.models import Base, dtype_of, load_base
from utils.system.atomic import make_folder, save_npy, save_png
from utils.system.compiling import compile_unet
from utils.system.processes import start_missing, use_cpu

IO_THREADS = 4
Predict = Callable[[Tensor, list[str]], tuple[Tensor, Tensor | None]]


def share_out(inputs: Inputs, device: str | None) -> tuple[dict[Path, str], PartialState]:
    """This process's pictures, with their names (see `Inputs`), and the processes. Starts those that are missing."""
    start_missing()
    state = PartialState(cpu=device == "cpu" or use_cpu())
    mine = list(inputs.pictures.items())[state.process_index :: state.num_processes]
    return dict(mine), state


def load_fused(args: argparse.Namespace, job: Job) -> Base:
    """The base model with the LoRA in its weights, in fp32 on the CPU; a note where it was trained on another base."""
    base = load_base(job.model, args.revision)
    trained_on = job.trained_on or base.name
    if base.name not in (trained_on, str(Path(trained_on).resolve())):
        note(f"{args.lora} was trained on {trained_on}, predicting with {base.name}")
    load_attn_procs(base.unet, job.lora)
    fuse_lora(base.unet)
    return base


def place(base: Base, state: PartialState, args: argparse.Namespace) -> torch.device:
    """Move the base to --device, or this process's own, in --dtype; --compile it; return the device."""
    device = pick_device(args.device, state.device)
    base.to(device, dtype_of(args.dtype))
    if args.compile:
        compile_unet(base.unet, device)
    return device


def predict_all(
    mine: dict[Path, str],
    state: PartialState,
    predict: Predict,
    intrinsic: Intrinsic,
    resolution: int,
    batch_size: int,
    output_dir: str,
    with_npy: bool,
) -> list[str]:
    """Predict and write every image of this process; return why images could not be read, those of all processes.

    mine: file -> its name, which may have folders in front. predict: rgb (B,3,R,R) in [-1,1] and the images' names ->
    maps (B,3,R,R), and their uncertainties (B,R,R) or None. Maps go to <output_dir>/<intrinsic>/predicted/,
    uncertainties to <output_dir>/<intrinsic>/uncertainty/, below the folders of the names.
    """
    folder = Path(output_dir) / intrinsic.name / "predicted"
    make_folder(folder, "--output_dir")
    files, targets = list(mine), output_names(mine, intrinsic.name)
    failed: list[str] = []
    chunks = [files[first : first + batch_size] for first in range(0, len(files), batch_size)]
    bar = tqdm(total=len(files), desc=f"predicting {intrinsic.name}", disable=not state.is_local_main_process)
    writing: list[Future] = []
    with ThreadPoolExecutor(IO_THREADS) as pool:  # the next pictures are read and the last maps written meanwhile
        reading = [pool.submit(read_batch, chunk, resolution, failed) for chunk in chunks[:1]]
        for chunk, following in zip(chunks, [*chunks[1:], None]):
            batch = reading.pop().result()
            if following:
                reading.append(pool.submit(read_batch, following, resolution, failed))
            if batch:
                with torch.inference_mode():
                    maps, uncertainties = predict(torch.stack(list(batch.values())), [mine[path] for path in batch])
                maps = maps.float().cpu()
                wait(writing)
                writing = [
                    pool.submit(write, one, intrinsic, folder / targets[path], with_npy)
                    for one, path in zip(maps, batch)
                ]
                for one, path in zip(() if uncertainties is None else uncertainties, batch):
                    place_of = folder.with_name("uncertainty") / targets[path]
                    writing.append(pool.submit(write_uncertainty, one, intrinsic, place_of))
            bar.update(len(chunk))
        wait(writing)
    bar.close()
    return gather_object(failed)


def report(args: argparse.Namespace, job: Job, inputs: Inputs, failed: list[str]) -> int:
    """Say what was done, what was passed over, and what to do next; the exit status: 1 if an image could not be read.

    The last line is what the user must know about the LoRA, if there is anything.
    """
    folder, total = Path(args.output_dir) / job.intrinsic.name / "predicted", len(inputs.pictures)
    note(f"{total - len(failed)} of {total} images predicted: {folder}")
    if said := inputs.said():
        note(said)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"next: {what_next(args, job.intrinsic, folder)}", flush=True)
        if failed:
            print(f"error: {len(failed)} images could not be read:", *failed, sep="\n  ", file=sys.stderr)
    for line in job.closing:
        note(line)
    return int(bool(failed))


def what_next(args: argparse.Namespace, intrinsic: Intrinsic, folder: Path) -> str:
    """The evaluation, where the images are a DIODE tree's with measured values; else where the maps are."""
    source = Path(args.input_dir)
    root = diode_root(source) if source.is_dir() else None
    if root is not None and intrinsic.kind in ("normals", "depth"):  # what DIODE itself has measured
        truth = root.joinpath(intrinsic.truth_folder, *source.resolve().relative_to(root).parts[1:])
        if next(truth.rglob(f"*{intrinsic.suffix}"), None):
            words = ["--task", intrinsic.name, "--pred_dir", str(folder), "--gt_dir", str(truth), "--center_crop"]
            return f"python evaluate.py {shlex.join(words)}"
    return f"open {folder}"


def wait(writing: list[Future]) -> None:
    """Until all is written; what went wrong there, goes wrong here."""
    for one in writing:
        one.result()


def pick_device(wanted: str | None, default: torch.device) -> torch.device:
    """The device named by --device, or `default`. Raises InputError where this machine has none of that name."""
    try:
        device = torch.device(wanted or default)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise InputError(f"--device={wanted}: {reason}; try cpu, or leave it out") from None
    return device


def read_batch(files: list[Path], resolution: int, failed: list[str]) -> dict[Path, Tensor]:
    """File -> (3,R,R) in [-1,1]; a file that cannot be read is left out and its error appended to `failed`."""
    batch = {}
    for file in files:
        try:
            rgb = read_rgb(file)
            batch[file] = Crop.of(*rgb.size, resolution).picture(rgb)
        except InputError as error:
            failed.append(str(error))
    return batch


def write(prediction: Tensor, intrinsic: Intrinsic, path: Path, with_npy: bool) -> None:
    """Write one map (3,R,R) as the released script does, and as float32 .npy where wanted; each file atomically."""
    make_folder(path.parent, "--output_dir")
    if with_npy:
        save_npy(path.with_suffix(".npy"), prediction_to_values(prediction, intrinsic))
    save_png(path, prediction_to_uint8(prediction, intrinsic))


def write_uncertainty(uncertainty: Tensor, intrinsic: Intrinsic, path: Path) -> None:
    """Write one uncertainty (R,R) as float32 .npy and as a picture of fixed scale (`uncertainty_picture`)."""
    make_folder(path.parent, "--output_dir")
    save_npy(path.with_suffix(".npy"), uncertainty.numpy())
    save_png(path, uncertainty_picture(uncertainty, intrinsic))
