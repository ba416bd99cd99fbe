"""The inference scripts' shared flags, and what the LoRA's own metadata fills in. Imports no torch by itself."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from utils.cli import Parser, expand
from utils.errors import InputError
from utils.inference.inputs import Inputs, find_inputs, nearest
from utils.intrinsics import DEPTH, INTRINSICS, Intrinsic
from utils.lora import SAFETENSORS, LoraFile, read_lora

SCRIPTS = {"single-step": "inference_sd_single.py", "augunet": "inference_augunet.py"}
ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "miniworld" / "mini-loras"
RELEASED = "https://github.com/duxiaodan/intrinsic-lora"  # its README links to the authors' weights


@dataclass(frozen=True)
class Job:
    """What to predict, prompt, resolution in pixels, the base model (a local folder or hub name) and the LoRA.

    trained_on: the base that the LoRA's metadata names, found as `find_base` does. closing: what the user must know
    and is told when all is done.
    """

    intrinsic: Intrinsic
    prompt: str
    resolution: int
    model: str
    lora: LoraFile = field(repr=False, compare=False)  # read once, though its header is needed before its weights
    trained_on: str | None = None
    closing: tuple[str, ...] = ()


def inference_parser(description: str, lora: str, model: str) -> argparse.ArgumentParser:
    """The flags that both inference scripts share. lora, model: the defaults."""
    parser = Parser(description=description)
    parser.set_defaults(default_lora=lora, default_model=model)
    add = parser.add_argument
    add(
        "--task", choices=list(INTRINSICS), help="what to predict (default: what the LoRA's metadata says, else depth)"
    )
    add("--lora", type=expand, default=lora, help="LoRA: .safetensors, .bin or the output folder of a training script")
    add("--input_dir", type=expand, default="./my_dataset", help="a picture, or a folder with any subfolders "
        "(png, jpg, jpeg, webp, bmp, tif)")  # fmt: skip
    add("--output_dir", type=expand, default="./output", help="maps go to <output_dir>/<task>/predicted/, in "
        "the input's subfolders")  # fmt: skip
    add("--pretrained_model_name_or_path", type=expand, help="Stable Diffusion: local folder or hub name (default: "
        f"the one the LoRA was made for, else {model})")  # fmt: skip
    add("--revision", help="branch, tag or commit of the hub model")
    add("--prompt", help="of the text encoder (default: what the LoRA's metadata says, else the paper's)")
    add("--resolution", type=int, help="side of the square in pixels (default: the training's, else 512)")
    add("--batch_size", type=int, default=1, help="images per UNet pass; other sizes than 1 may differ from it by "
        "one grey level (rounding)")  # fmt: skip
    add("--npy", action="store_true", help="also write float32 maps: unit normals (H,W,3) with x right, y down, z "
        "forward; depth (H,W), near = large; albedo, shading (H,W,3), sRGB-coded, about [0,1]")  # fmt: skip
    add("--dtype", choices=["fp32", "fp16", "bf16"], default="fp32", help="of the computation")
    add("--compile", action="store_true", help="torch.compile the UNet; for many images: the first ones take a "
        "minute or so")  # fmt: skip
    add("--device", help="such as cuda:1 or cpu (default: a GPU if there is one)")
    return parser


def check(args: argparse.Namespace, at_least_one: tuple[str, ...] = ("batch_size",)) -> argparse.Namespace:
    """The flags, if they can work; InputError names the one that cannot."""
    for name in at_least_one:
        if getattr(args, name) < 1:
            raise InputError(f"--{name}={getattr(args, name)}: must be at least 1")
    if args.resolution is not None and (args.resolution < 8 or args.resolution % 8):
        raise InputError(f"--resolution={args.resolution}: must be a positive multiple of 8")
    return args


def find_files(args: argparse.Namespace) -> Inputs:
    """The pictures of --input_dir. Raises InputError where they, or the LoRA, are not there: before PyTorch is
    imported, which takes seconds.
    """
    check_lora(args.lora, args.default_lora)
    return find_inputs(args.input_dir, args.output_dir)


def check_lora(path: str, default: str) -> None:
    """InputError for a --lora that does not exist, with the nearest name, or with the LoRAs that there are."""
    if Path(path).exists():
        return
    if Path(path) == Path(default):
        shipped = sorted(folder.name for folder in SHIPPED.glob("*") if (folder / SAFETENSORS).is_file())
        raise InputError(
            f"{Path(path)}: no such LoRA file; pass --lora: your training's output folder, a small one that is here "
            f"({_from_here(SHIPPED)}/{{{','.join(shipped)}}}), or the authors' weights, linked from {RELEASED}"
        )
    raise InputError(f"{path}: no such LoRA file{nearest(path)}")


def fill_in(args: argparse.Namespace, method: str) -> tuple[Job, dict[str, str]]:
    """What is to be predicted and with which model, and the LoRA's metadata (empty for .bin files).

    Raises InputError where the LoRA was made for another method, or for a base model that is not here.
    """
    lora = read_lora(args.lora)
    metadata = lora.metadata
    made_for = metadata.get("method", method)
    if made_for != method:
        raise InputError(f"{args.lora}: made for {made_for}: run {SCRIPTS.get(made_for, 'its own script')}")
    trained_for = metadata.get("task")
    intrinsic = INTRINSICS[args.task or trained_for or DEPTH.name]
    prompt, closing = metadata.get("prompt", intrinsic.prompt), []
    if trained_for not in (None, intrinsic.name):
        closing.append(f"{args.lora} was trained for {trained_for}, predicting {intrinsic.name} because of --task")
        prompt = intrinsic.prompt
    prompt = args.prompt if args.prompt is not None else prompt
    trained_on = find_base(metadata["base_model"], lora.path) if "base_model" in metadata else None
    model = args.pretrained_model_name_or_path or trained_on or args.default_model
    if args.pretrained_model_name_or_path is None and Path(model).is_absolute() and not Path(model).exists():
        raise InputError(f"{args.lora}: made for {model}, which is not here; pass --pretrained_model_name_or_path")
    resolution = args.resolution or int(metadata.get("resolution", 512))
    return Job(intrinsic, prompt, resolution, model, lora, trained_on, tuple(closing)), metadata


def find_base(name: str, lora: str) -> str:
    """The base model that a LoRA file names: a folder below the current one, or below one that holds the file.

    So a LoRA that was moved together with its base finds it, whatever the current folder is. A name that is no folder
    anywhere is returned as it is: a hub name.
    """
    if Path(name).is_absolute() or Path(name).is_dir():
        return name
    folders = [parent / name for parent in Path(lora).resolve().parents]
    return next((str(folder) for folder in folders if (folder / "unet").is_dir()), name)


def _from_here(path: Path) -> str:
    """`path` as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
