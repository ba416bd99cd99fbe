"""Predict normals, depth, albedo and shading on a page in the browser, served to this computer alone.

mini-sd, the base of the shipped LoRAs, is a toy: it demonstrates the pipeline, not the quality you get with Stable
Diffusion. For maps to use, pass LoRAs for Stable Diffusion.

    python -m app                                        # the small shipped LoRAs, and examples/
    python -m app --lora path/to/normal path/to/depth    # yours; tick any of them on the page

The page compares any two of image, maps and uncertainties, relights the scene, shows the depth as a surface that can
be turned, and offers the maps as 16-bit PNG, EXR and GLB. It loads nothing from elsewhere. Uploads stay in a temporary
folder that is removed at the end. Needs Gradio 6: pip install "gradio>=6,<7".
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from utils.base_model.names import check_base
from utils.cli import Parser, above_zero, expand
from utils.errors import InputError, run
from utils.inference.job import BASES, SHIPPED, by_task, check_lora
from utils.intrinsics import INTRINSICS
from utils.lora.files import read_arrays
from utils.paths import ROOT

EXAMPLES = ROOT / "examples"
DIFFUSING = SHIPPED / "augunet" / "normal"
DIFFUSION = {"steps": 25, "seed": 1234}  # flags of LoRAs that diffuse, and their defaults


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m app", description=__doc__)
    add = parser.add_argument
    add("--lora", nargs="+", type=expand, help="LoRAs to choose from: .safetensors, .bin, output folders of training "
        "scripts, or hub names (default: those in miniworld/mini-loras)")  # fmt: skip
    add("--pretrained_model_name_or_path", type=expand, help="Stable Diffusion for all of them: local folder, hub "
        f"name, or one file (default: the ones the LoRAs were made for, else {BASES['single-step']})")  # fmt: skip
    add("--revision", help="branch, tag or commit of the hub model")
    add("--dtype", choices=["fp32", "fp16", "bf16"], default="fp32", help="compute dtype")
    add("--device", help="such as cuda:1 or cpu (default: a GPU if there is one)")
    add("--resolution", type=int, help="short side in pixels of what the network sees (default: the training's)")
    add("--steps", type=int, default=DIFFUSION["steps"], help="sampler steps of LoRAs that diffuse")
    add("--seed", type=int, default=DIFFUSION["seed"], help="seed of LoRAs that diffuse")
    add("--port", type=int, help="port of the page (default: the first free one from 7860)")
    add("--share", action="store_true", help="also give the page a public address through Gradio's servers: anyone "
        "who knows it can use this computer for predictions")  # fmt: skip
    args = parser.parse_args(argv)
    above_zero(args, ("steps",))
    if args.port is not None and not 0 < args.port < 65536:
        raise InputError(f"--port={args.port}: must lie between 1 and 65535")
    return args


def refuse_unread(args: argparse.Namespace, loras: Sequence[str]) -> None:
    """InputError for --steps and --seed where no LoRA diffuses."""
    for name, default in DIFFUSION.items():
        if getattr(args, name) == default:
            continue
        if all(read_arrays(lora)[0].metadata.get("method", "single-step") == "single-step" for lora in by_task(loras)):
            raise InputError(f"--{name} means nothing for these LoRAs, which take one step; leave it out")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if find_spec("gradio") is None:
        raise InputError('the package gradio is not installed: pip install "gradio>=6,<7"')
    loras = args.lora or [str(folder) for folder in [*(SHIPPED / name for name in INTRINSICS), DIFFUSING]]
    for lora in loras:
        check_lora(lora)
    refuse_unread(args, loras)
    if args.pretrained_model_name_or_path is not None:
        check_base(args.pretrained_model_name_or_path, args.revision)

    from app.server import serve  # only now: PyTorch and Gradio take seconds to import

    options = {name: getattr(args, name) for name in ("revision", "dtype", "device", "resolution", "steps", "seed")}
    serve(loras, EXAMPLES, args.port, args.share, base=args.pretrained_model_name_or_path, **options)


if __name__ == "__main__":
    run(main)
