"""The flags of gan_pseudo.py, and what the scripts of both generators share.

Imports nothing heavy, so that a command line can refuse a mistyped name immediately.
"""

import argparse
from pathlib import Path

from utils.cli import Parser, expand, nearest
from utils.errors import InputError
from utils.inference.output import output_flags
from utils.intrinsics import INTRINSICS
from utils.system.processes import start_missing
from utils.training.args import check_refused, finish, refuse
from utils.training.flags import optimisation_flags, run_flags, state_meanings, tracking_flags

GAN_HAS_NO_USE = "means nothing for a GAN of this size; leave it out"
GAN_REFUSES = {"gradient_checkpointing": GAN_HAS_NO_USE, "compile": GAN_HAS_NO_USE}
GAN_SETTINGS = {  # settings of a run that are not flags of gan_pseudo.py
    "unified_prompt": "",
    "prompt": "",
    "lora_targets": "affine",
    "base_precision": None,
    "no_cache_latents": True,
    "cache_dir": None,
    "dataloader_num_workers": 0,
}
TRANSFORMER_REFUSES = {
    "timestep": "an autoregressive generator has no noise levels; leave it out",
    "noise_offset": "an autoregressive generator has no noise; leave it out",
    "prediction_type": "the label's tokens are predicted; leave it out",
    "unified_prompt": "no text is read; leave it out",
    "empty_prompt": "no text is read; leave it out",
    "base_precision": "not tried with a transformer; leave it out",
    "lora_targets": "the LoRA sits on the transformer's attention; leave it out",
    "masked_loss": "a token is a patch, and all are learned; leave it out",
    "crop": "the generator's images have one shape; leave it out",
    "compile": "not tried with a transformer; leave it out",
    "gradient_checkpointing": "not tried with a transformer; leave it out",
    "no_cache_latents": "there are no latents; leave it out",
    "cache_dir": "there are no latents; leave it out",
}
PICKLE = (
    "NVIDIA's pickle contains program code and is not opened here: convert it where you trust it, with "
    "convert_weight.py of github.com/rosinality/stylegan2-pytorch, and pass the .pt file that it writes"
)


def gan_parser(description: str) -> Parser:
    """The flags of gan_pseudo.py: data, LoRA, optimisation, run and trackers."""
    parser = Parser(
        description=description,
        usage="python %(prog)s --task TASK --pretrained_model_name_or_path GAN --teacher NETWORK --output_dir DIR ...",
    )
    add = parser.add_argument_group("what must be given").add_argument
    add("--task", choices=list(INTRINSICS), required=True, help="the intrinsic to learn")
    add("--pretrained_model_name_or_path", type=expand, required=True, help="StyleGAN2: a folder such as "
        "miniworld/mini-gan, or a .pt file in rosinality's format")  # fmt: skip
    add("--teacher", type=expand, required=True, help="network that labels the generated images: any that "
        "pseudo_label.py takes, such as miniworld/mini-teacher")  # fmt: skip
    add("--output_dir", type=expand, default="gan-lora", help="LoRA, checkpoints, metrics.jsonl and validation/")
    add = parser.add_argument_group("data and LoRA").add_argument
    add("--num_train_imgs", type=int, default=1000, help="generated images to train on")
    add("--num_val_imgs", type=int, default=32, help="other generated images to validate on")
    add("--pictures_from", type=expand, help="control experiment: learn the labels of the images that this generator "
        "makes from the same z, instead of those of the generator's own images")  # fmt: skip
    add("--rank", type=int, default=8, help="rank of the LoRA on the affine layers, one per convolution")
    add("--lora_path", type=expand, help="start from this LoRA")
    optimisation_flags(parser.add_argument_group("optimisation"))
    run_flags(parser.add_argument_group("run"))
    tracking_flags(parser.add_argument_group("trackers and hub"))
    parser.set_defaults(learning_rate=1e-3, max_train_steps=1000, train_batch_size=16, **GAN_SETTINGS)
    refuse(parser, GAN_REFUSES)
    state_meanings(parser)
    parser.only("num_val_imgs", lambda a: a.validation_steps, "with --validation_steps 0")
    return parser


def parse_gan(parser: Parser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check before anything heavy is imported. Raises InputError for a flag that cannot work."""
    args = parser.parse_args(argv)
    check_refused(parser, args)
    finish(parser, args)
    for name in (args.pretrained_model_name_or_path, args.pictures_from):
        if name is not None:
            check_gan(name)
    start_missing()
    return args


def check_gan(name: str) -> None:
    """InputError if `name` is not an existing folder or .pt file."""
    path = Path(name)
    if path.suffix == ".pkl":
        raise InputError(f"{path}: {PICKLE}")
    if not path.exists():
        raise InputError(f"{path}: no such folder or .pt file of a StyleGAN2{nearest(name)}")


def check_temperature(args: argparse.Namespace) -> None:
    """InputError for a negative temperature."""
    if args.temperature < 0:
        raise InputError(f"--temperature={args.temperature}: must not be negative")


def inference_parser(description: str) -> Parser:
    """The flags that inference_gan.py and inference_ar.py share."""
    parser = Parser(description=description)
    add = parser.add_argument
    add("--pretrained_model_name_or_path", type=expand, help="the generator (default: the one the LoRA was made for)")
    add("--output_dir", type=expand, default="./output", help="maps go to <output_dir>/<task>/predicted/")
    add("--device", help="such as cuda:1 or cpu (default: a GPU if there is one)")
    output_flags(parser)
    return parser
