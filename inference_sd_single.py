"""Draw surface normals, depth, albedo or shading for a folder of pictures, in a single UNet pass per picture.

    prediction = D( unet(s E(rgb), t = T-1, prompt) / s )                      (Intrinsic LoRA, arXiv 2311.17137)

Every picture is resized to --resolution on its short side and cropped to the centre square, as in training. Written
are <output_dir>/<task>/predicted/<stem>_<task>.png and, with --npy, the same name as .npy in float.

    python inference_sd_single.py --task normal --lora path/to/output --input_dir my_dataset --output_dir output
    accelerate launch --num_processes 4 inference_sd_single.py ...      # shares the pictures out
"""

import argparse
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from dataloaders.images import PICTURES, list_pictures
from utils.args import Help
from utils.errors import InputError, note, run
from utils.inference import output_names, read_batch, write
from utils.lora import load_attn_procs, read_lora
from utils.models import load_base
from utils.objectives import SingleStep
from utils.processes import start_missing, use_cpu

PROMPTS = {"normal": "surface normal", "depth": "depth map", "albedo": "albedo", "shading": "shading"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help, allow_abbrev=False)
    add = parser.add_argument
    add("--task", choices=list(PROMPTS), help="what to draw; left out: what the LoRA's metadata says, else depth")
    add("--lora", default="./pretrained_weights/sd_single_depth_pytorch_model.bin", help="LoRA: .safetensors, .bin or "
        "the output folder of a training script")  # fmt: skip
    add("--input_dir", default="./my_dataset", help="folder of pictures (png, jpg, jpeg, webp, bmp, tif)")
    add("--output_dir", default="./output", help="maps go to <output_dir>/<task>/predicted/")
    add("--pretrained_model_name_or_path", help="Stable Diffusion: local folder or hub name; left out: the one "
        "the LoRA was made for, else runwayml/stable-diffusion-v1-5")  # fmt: skip
    add("--revision", help="branch, tag or commit of the hub model")
    add("--prompt", help="left out: what the LoRA's metadata says, else the paper's prompt for the task")
    add("--resolution", type=int, help="side of the square in pixels; left out: the training's, else 512")
    add("--batch_size", type=int, default=1, help="pictures per UNet pass; 1 gives the released script's pixels, more "
        "may differ from them by one grey level (rounding)")  # fmt: skip
    add("--npy", action="store_true", help="also write float32 maps: unit normals (H,W,3) with x right, y down, z "
        "forward; depth (H,W), near = large; albedo, shading (H,W,3), sRGB-coded, about [0,1]")  # fmt: skip
    add("--dtype", choices=["fp32", "fp16", "bf16"], default="fp32", help="of the computation")
    add("--device", help="such as cuda:1 or cpu; left out: a GPU if there is one")
    args = parser.parse_args(argv)
    if args.batch_size < 1 or (args.resolution is not None and (args.resolution < 8 or args.resolution % 8)):
        raise InputError("--batch_size must be at least 1 and --resolution a positive multiple of 8")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)

    # Fill in what the LoRA's metadata knows
    _, metadata, _ = read_lora(args.lora)
    if metadata.get("method", "single-step") != "single-step":
        raise InputError(f"{args.lora}: made for {metadata['method']}, which does not draw in a single step")
    trained_for = metadata.get("task")
    task = args.task or trained_for or "depth"
    if trained_for not in (None, task):
        note(f"{args.lora} was trained for {trained_for}, drawing {task} as asked")
        metadata = {**metadata, "prompt": PROMPTS[task]}
    prompt = args.prompt if args.prompt is not None else metadata.get("prompt", PROMPTS[task])
    resolution = args.resolution or int(metadata.get("resolution", 512))
    model = args.pretrained_model_name_or_path or metadata.get("base_model", "runwayml/stable-diffusion-v1-5")
    if args.pretrained_model_name_or_path is None and Path(model).is_absolute() and not Path(model).exists():
        raise InputError(f"{args.lora}: made for {model}, which is not here; pass --pretrained_model_name_or_path")

    # Pictures of this process
    files = list_pictures(args.input_dir)
    if not files:
        raise InputError(f"{args.input_dir}: no pictures ({', '.join(PICTURES)}) in this folder")
    names = output_names(files, task)
    start_missing()
    state = PartialState(cpu=args.device == "cpu" or use_cpu())
    mine = files[state.process_index :: state.num_processes]

    # Model
    device = torch.device(args.device or state.device)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.dtype]
    base = load_base(model, args.revision)
    if metadata.get("base_model", base.name) != base.name:
        note(f"{args.lora} was trained on {metadata['base_model']}, drawing with {base.name}")
    load_attn_procs(base.unet, args.lora)
    base.to(device, dtype)
    method = SingleStep(base.vae, base.encode_prompt(prompt), base.scheduler.config.num_train_timesteps)

    # Draw
    folder = Path(args.output_dir) / task / "predicted"
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    bar = tqdm(total=len(mine), desc=f"drawing {task}", disable=not state.is_local_main_process)
    for first in range(0, len(mine), args.batch_size):
        batch = read_batch(mine[first : first + args.batch_size], resolution, failed)
        if batch:
            rgb = torch.stack(list(batch.values())).to(device, dtype)
            with torch.inference_mode():
                drawn = method.sample(base.unet, rgb).float().cpu()
            for path, one in zip(batch, drawn):
                write(one, task, folder / names[path], args.npy)
        bar.update(min(args.batch_size, len(mine) - first))
    bar.close()
    failed = gather_object(failed)
    note(f"{len(files) - len(failed)} of {len(files)} pictures drawn: {folder}")
    if failed:
        if state.is_main_process:
            print(f"error: {len(failed)} pictures could not be read:", *failed, sep="\n  ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run(main)
