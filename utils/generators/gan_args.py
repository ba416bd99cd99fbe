"""The flags of gan_pseudo.py: those of the other training scripts that a GAN has a use for, and its own."""

import argparse
import sys

from utils.cli import Parser, expand
from utils.generators.gan_names import check_gan
from utils.intrinsics import INTRINSICS
from utils.system.processes import start_missing
from utils.training.args import check_refused, finish, refuse
from utils.training.flags import optimisation_flags, run_flags, state_meanings, tracking_flags

NO_USE = "means nothing for a GAN of this size; leave it out"
REFUSES = {"gradient_checkpointing": NO_USE, "compile": NO_USE}
SET = {  # of flags that it does not have
    "unified_prompt": "",
    "prompt": "",
    "lora_targets": "affine",
    "no_cache_latents": True,
    "cache_dir": None,
    "dataloader_num_workers": 0,
}


def gan_parser(description: str) -> Parser:
    """Flags of data, LoRA, optimisation, run and trackers."""
    parser = Parser(
        description=description,
        usage="accelerate launch %(prog)s --task TASK --pretrained_model_name_or_path GAN --teacher NETWORK "
        "--output_dir DIR ...",
    )
    add = parser.add_argument_group("what must be given").add_argument
    add("--task", choices=list(INTRINSICS), required=True, help="the intrinsic to learn")
    add("--pretrained_model_name_or_path", type=expand, required=True, help="StyleGAN2: a folder such as "
        "miniworld/mini-gan, or a .pt file in rosinality's format")  # fmt: skip
    add("--teacher", type=expand, required=True, help="labels the generated pictures: what pseudo_label.py takes, "
        "such as miniworld/mini-teacher")  # fmt: skip
    add("--output_dir", type=expand, default="gan-lora", help="LoRA, checkpoints, metrics.jsonl and validation/")
    add = parser.add_argument_group("data and LoRA").add_argument
    add("--num_train_imgs", type=int, default=1000, help="generated pictures to train on")
    add("--num_val_imgs", type=int, default=32, help="other generated pictures to validate on")
    add("--pictures_from", type=expand, help="a control: learn the labels of this generator's pictures, of the same "
        "random numbers z, not of one's own")  # fmt: skip
    add("--rank", type=int, default=8, help="of the LoRA on the affine layers, one per convolution")
    add("--lora_path", type=expand, help="start from this LoRA")
    optimisation_flags(parser.add_argument_group("optimisation"))
    run_flags(parser.add_argument_group("run"))
    tracking_flags(parser.add_argument_group("trackers and hub"))
    parser.set_defaults(learning_rate=1e-3, max_train_steps=1000, train_batch_size=16, **SET)
    refuse(parser, REFUSES)
    state_meanings(parser)
    parser.only("num_val_imgs", lambda a: a.validation_steps, "with --validation_steps 0")
    return parser


def parse_gan(parser: Parser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check before anything heavy is imported. Raises InputError for a flag that cannot work."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    check_refused(parser, args)
    finish(args, {word.split("=")[0] for word in argv if word.startswith("--")})
    for name in (args.pretrained_model_name_or_path, args.pictures_from):
        if name is not None:
            check_gan(name)
    start_missing()
    return args
