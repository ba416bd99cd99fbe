"""A folder of images in, a folder of maps out: what both inference scripts share."""

import argparse
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
from utils.intrinsics import Intrinsic
from utils.lora import fuse_lora, load_attn_procs
from utils.maps.images import PICTURES, Crop, list_pictures, read_rgb
from utils.maps.pictures import prediction_to_uint8, prediction_to_values
from utils.models import Base, dtype_of, load_base
from utils.system.atomic import make_folder, save_npy, save_png
from utils.system.compiling import compile_unet
from utils.system.processes import start_missing, use_cpu

IO_THREADS = 4
Predict = Callable[[Tensor, list[str]], tuple[Tensor, Tensor | None]]


def share_out(input_dir: str, intrinsic: Intrinsic, device: str | None) -> tuple[dict[Path, str], PartialState]:
    """This process's pictures and the names of their maps, and the processes. Starts those that are missing.

    Raises InputError for a folder without pictures, or with two that would write the same map.
    """
    files = list_pictures(input_dir)
    if not files:
        raise InputError(f"{input_dir}: no pictures ({', '.join(PICTURES)}) in this folder")
    names = output_names(files, intrinsic.name)
    start_missing()
    state = PartialState(cpu=device == "cpu" or use_cpu())
    return {file: names[file] for file in files[state.process_index :: state.num_processes]}, state


def load_fused(args: argparse.Namespace, job: Job, metadata: dict[str, str]) -> Base:
    """The base model with the LoRA in its weights, in fp32 on the CPU; a note where it was trained on another base."""
    base = load_base(job.model, args.revision)
    trained_on = metadata.get("base_model", base.name)
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
) -> None:
    """Predict and write every image of this process; exit with status 1 if any of all processes' could not be read.

    predict: rgb (B,3,R,R) in [-1,1] and the images' file names -> maps (B,3,R,R), and their uncertainties (B,R,R) or
    None. Maps go to <output_dir>/<intrinsic>/predicted/, uncertainties to <output_dir>/<intrinsic>/uncertainty/.
    """
    folder = Path(output_dir) / intrinsic.name / "predicted"
    make_folder(folder, "--output_dir")
    files, failed = list(mine), []
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
                    maps, uncertainties = predict(torch.stack(list(batch.values())), [path.name for path in batch])
                maps = maps.float().cpu()
                wait(writing)
                writing = [
                    pool.submit(write, one, intrinsic, folder / mine[path], with_npy) for one, path in zip(maps, batch)
                ]
                for i, path in enumerate(batch if uncertainties is not None else ()):
                    place_of = folder.with_name("uncertainty") / mine[path]
                    writing.append(pool.submit(write_uncertainty, uncertainties[i], intrinsic, place_of))
            bar.update(len(chunk))
        wait(writing)
    bar.close()
    total, failed = sum(gather_object([len(files)])), gather_object(failed)
    note(f"{total - len(failed)} of {total} images predicted: {folder}")
    if failed:
        if state.is_main_process:
            print(f"error: {len(failed)} images could not be read:", *failed, sep="\n  ", file=sys.stderr)
        sys.exit(1)


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


def output_names(files: list[Path], suffix: str) -> dict[Path, str]:
    """Input file -> <stem>_<suffix>.png. Raises InputError where two inputs would write the same file."""
    names: dict[str, Path] = {}
    for file in files:
        name = f"{file.stem}_{suffix}.png"
        if name in names:
            raise InputError(f"{names[name]} and {file} would both be written as {name}: rename one of them")
        names[name] = file
    return {file: name for name, file in names.items()}


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
    if with_npy:
        save_npy(path.with_suffix(".npy"), prediction_to_values(prediction, intrinsic))
    save_png(path, prediction_to_uint8(prediction, intrinsic))


def write_uncertainty(uncertainty: Tensor, intrinsic: Intrinsic, path: Path) -> None:
    """Write one uncertainty (R,R) as float32 .npy and as a picture of fixed scale (`uncertainty_picture`)."""
    make_folder(path.parent, "--output_dir")
    save_npy(path.with_suffix(".npy"), uncertainty.numpy())
    save_png(path, uncertainty_picture(uncertainty, intrinsic))
