"""The inference scripts' shared flags. Imports no torch."""

import argparse
from pathlib import Path
from typing import Any

from utils.base_model.names import check_base, is_folder
from utils.cli import Parser, above_zero, expand
from utils.errors import InputError
from utils.image_io.files import VIDEOS
from utils.inference.inputs import Inputs, find_inputs, output_names
from utils.inference.job import BASES, check_lora
from utils.inference.output import output_flags, output_of
from utils.inference.view import view_flags, view_of
from utils.intrinsics import DEPTH_CODINGS, INTRINSICS
from utils.system.network import require


def inference_parser(description: str, lora: str, method: str) -> argparse.ArgumentParser:
    """The flags that both inference scripts share. lora: the default; method: whose LoRAs."""
    parser = Parser(description=description)
    parser.set_defaults(default_lora=lora, method=method)
    add = parser.add_argument
    add(
        "--task",
        choices=list(INTRINSICS),
        help="intrinsic to predict (default: the one in the LoRA's metadata, else depth); of a folder or repository "
        "with a file named for each intrinsic: the file to take (default: all)",
    )
    add("--lora", type=expand, default=lora, help="LoRA: .safetensors, .bin, the output folder of a training script, "
        "or a repository on the hub, owner/name or owner/name/file")  # fmt: skip
    add("--input_dir", type=expand, default="./my_dataset", help="an image, or a folder with any subfolders "
        "(png, jpg, jpeg, webp, bmp, tif), or a video (mp4, mov, webm, mkv, gif; package av)")  # fmt: skip
    add("--output_dir", type=expand, default="./output", help="maps go to <output_dir>/<task>/predicted/, in "
        "the input's subfolders")  # fmt: skip
    add("--video", action="store_true", help="of a video: also join the 8-bit maps to an .mp4 with its "
        "times and sound")  # fmt: skip
    add("--prompt", help="prompt for the text encoder (default: the one in the LoRA's metadata, else the paper's)")
    add("--depth_coding", choices=list(DEPTH_CODINGS), help="coding of the training labels, for LoRAs without "
        "metadata; it is undone in everything written (default: the one in the metadata, else linear)")  # fmt: skip
    model_flags(parser, BASES[method])
    view_flags(parser)
    return parser


def model_flags(parser: Parser, base: str) -> None:
    """Base model and computation. base: the default that the help states for LoRAs without metadata."""
    add = parser.add_argument
    add("--pretrained_model_name_or_path", type=expand, help="Stable Diffusion: local folder, hub name, or one "
        f".safetensors or .ckpt file (default: the one the LoRA was made for, else {base})")  # fmt: skip
    add("--revision", help="branch, tag or commit of the hub model")
    add("--vae", type=expand, metavar="NAME", help="for previews: tiny autoencoder (diffusers' AutoencoderTiny) that "
        "decodes instead of the base's VAE; folder or hub name, such as madebyollin/taesd")  # fmt: skip
    add("--vae_encodes", action="store_true", help="also encode the images with --vae")
    parser.only("vae_encodes", lambda a: a.vae, "without --vae")
    add("--batch_size", type=int, default=1, help="images per UNet pass; other sizes than 1 may differ from it by "
        "one grey level (rounding)")  # fmt: skip
    add("--dtype", choices=["fp32", "fp16", "bf16"], default="fp32", help="compute dtype")
    add("--base_precision", choices=["int8", "nf4"], help="8 or 4 bits for the network's linear layers, which compute "
        "in --dtype: less memory, slower, one LoRA at a time (default: kept in --dtype)")  # fmt: skip
    add("--compile", action="store_true", help="torch.compile the UNet; for many images: the first ones take a "
        "minute or so")  # fmt: skip
    add("--device", help="device such as cuda:1 or cpu (default: a GPU if available)")
    output_flags(parser)


def check(args: argparse.Namespace, at_least_one: tuple[str, ...] = ("batch_size",)) -> argparse.Namespace:
    """The flags, if they can work; InputError names the one that cannot."""
    above_zero(args, at_least_one)
    args.view, args.output = view_of(args), output_of(args)
    return args


def check_models(args: argparse.Namespace) -> None:
    """Refuse a base or tiny autoencoder that is not here and not on the hub, before PyTorch is imported."""
    if args.pretrained_model_name_or_path is not None:
        check_base(args.pretrained_model_name_or_path, args.revision)
    if args.vae is not None and not is_folder(args.vae):
        require(args.vae)


def find_files(args: argparse.Namespace) -> Inputs:
    """The images of --input_dir. Raises InputError where they or the LoRA are missing, or two would write one map:
    before PyTorch is imported, which takes seconds.
    """
    check_lora(args.lora, args.default_lora, args.task)
    check_models(args)
    inputs = find_inputs(args.input_dir, args.output_dir, videos=True)
    if args.video and Path(args.input_dir).suffix.lower() not in VIDEOS:
        raise InputError(f"--video: {args.input_dir} is not a video ({', '.join(VIDEOS)}); leave the flag out")
    output_names(inputs.pictures, args.task or "<task>")
    return inputs


def wanted(args: argparse.Namespace, device: object) -> dict[str, Any]:
    """The flags of `model_flags` and `view_flags` as keywords of `Predictor`. device: where --device is not given."""
    return {
        "base": args.pretrained_model_name_or_path,
        "device": args.device or device,
        "dtype": args.dtype,
        "base_precision": args.base_precision,
        "revision": args.revision,
        "vae": args.vae,
        "vae_encodes": args.vae_encodes,
        "batch_size": args.batch_size,
        "compile": args.compile,
        **vars(args.view),
    }


def wanted_of_one(args: argparse.Namespace, device: object) -> dict[str, Any]:
    """All flags of `inference_parser` as keywords of `Predictor`."""
    own = {name: getattr(args, name) for name in ("lora", "method", "task", "prompt", "depth_coding")}
    return own | wanted(args, device)
