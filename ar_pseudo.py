"""Normals, depth, albedo or shading from an autoregressive generator: a LoRA on its attention (arXiv 2311.17137).

The transformer has learned to generate images token by token. With a LoRA on its attention layers it continues an
image with its map:

    [image tokens] -> [label tokens]        loss = cross-entropy of the label's tokens

The generator's own VQ decoder turns the label's tokens into the map. They are the likeliest ones, or sampled at
--temperature. --decoding at_once predicts the whole label in one pass, which is what works on the toy generator:

    python ar_pseudo.py --task=normal \\
      --pretrained_model_name_or_path=miniworld/mini-ar --train_data_dir=DIODE/normals \\
      --pseudo_root=DIODE/pseudo/normal --decoding=at_once --output_dir=runs/ar-normal --max_train_steps=1000 \\
      --report_to=none --resume_from_checkpoint=latest
"""

from generators.args import TRANSFORMER_REFUSES, check_temperature
from utils.errors import InputError, run
from utils.intrinsics import INTRINSICS
from utils.training.args import parse, settings_of, training_parser


def main(argv: list[str] | None = None) -> None:
    parser = training_parser(__doc__, TRANSFORMER_REFUSES)
    parser.set_defaults(unified_prompt="", lora_targets="self_attention", max_train_steps=20_000)
    parser.add_argument("--task", choices=list(INTRINSICS), required=True, help="the intrinsic to learn")
    parser.add_argument(
        "--label_positions",
        choices=["again", "on"],
        default="again",
        help="again: the label's tokens get the positions of the image's; on: the positions after them",
    )
    parser.add_argument(
        "--decoding",
        choices=["one_by_one", "at_once"],
        default="one_by_one",
        help="one_by_one: each token of the label is read before the next is predicted; at_once: all come from one "
        "pass over the image, which is read twice",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="temperature of predictions; 0: the likeliest tokens"
    )
    parser.only("temperature", lambda a: a.validation_steps, "with --validation_steps 0: only predictions are sampled")
    args = parse(parser, argv)
    args.no_cache_latents = True  # there are tokens instead
    check_temperature(args)

    from dataloaders.open_data import open_data  # only now: PyTorch takes seconds to import, --help should not
    from generators.token_prediction import TokenPrediction, tokenised
    from generators.transformer import load_autoregressive
    from utils.lora import add_lora, load_attn_procs
    from utils.training.loop import frozen_dtype, start, train

    settings = settings_of(args)
    accelerator, resume_from = start(settings)

    # Data: images, pseudo labels as targets, ground truth for validation only
    train_set, validation_samples = open_data(args, INTRINSICS[args.task])

    # Model: everything frozen but the LoRA
    base = load_autoregressive(args.pretrained_model_name_or_path, args.revision)
    if args.resolution != base.resolution:
        raise InputError(f"--resolution={args.resolution}: {base.name} generates {base.resolution} px; pass that")
    base.to(accelerator.device, frozen_dtype(accelerator))
    add_lora(base.network, args.rank, args.seed, (args.lora_targets,))
    if args.lora_path:
        load_attn_procs(base.network, args.lora_path)

    # Objective, on tokens that are encoded once
    objective = TokenPrediction(base.tokens, args.label_positions, args.decoding, args.temperature)
    train_set = tokenised(train_set, base.tokens, accelerator.device, quiet=not accelerator.is_main_process)

    train(settings, accelerator, resume_from, objective, base, train_set, validation_samples)


if __name__ == "__main__":
    run(main)
