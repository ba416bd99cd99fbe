"""Normals, depth, albedo or shading from an autoregressive generator: a LoRA on its attention (arXiv 2311.17137).

The transformer has learnt to draw pictures token by token. A LoRA on its attention layers goes on with the map:

    [picture tokens] -> [label tokens]        loss = cross-entropy of the label's tokens

and the generator's own VQ decoder turns them into it: the likeliest token each time, or, at --temperature, sampled.
--decoding at_once takes all of the label from one pass, which is what works on the toy generator:

    accelerate launch --config_file accelerate.yaml ar_pseudo.py --task=normal \\
      --pretrained_model_name_or_path=miniworld/mini-ar --train_data_dir=DIODE/normals \\
      --pseudo_root=DIODE/pseudo/normal --decoding=at_once --output_dir=runs/ar-normal --max_train_steps=1000 \\
      --report_to=none
"""

from utils.errors import InputError, run
from utils.intrinsics import INTRINSICS
from utils.training.args import AUTOREGRESSIVE_REFUSES, parse, settings_of, training_parser


def main(argv: list[str] | None = None) -> None:
    parser = training_parser(__doc__, AUTOREGRESSIVE_REFUSES)
    parser.set_defaults(unified_prompt="", lora_targets="self_attention", max_train_steps=20_000)
    parser.add_argument("--task", choices=list(INTRINSICS), required=True, help="the intrinsic to learn")
    parser.add_argument(
        "--label_positions",
        choices=["again", "on"],
        default="again",
        help="again: the label's tokens have the positions of the picture's; on: those that follow",
    )
    parser.add_argument(
        "--decoding",
        choices=["one_by_one", "at_once"],
        default="one_by_one",
        help="one_by_one: each token of the label is read for the next; at_once: all come from one pass over the "
        "picture, read twice",
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="of predictions; 0: the likeliest tokens")
    parser.only("temperature", lambda a: a.validation_steps, "with --validation_steps 0: only predictions are sampled")
    args = parse(parser, argv)
    if args.temperature < 0:
        raise InputError(f"--temperature={args.temperature}: must not be negative")

    from dataloaders.open_data import open_data  # only now: PyTorch takes seconds to import, --help should not
    from utils.generators.ar_files import load_autoregressive
    from utils.generators.ar_objective import TokenPrediction
    from utils.generators.tokenised import tokenised
    from utils.lora import add_lora, load_attn_procs
    from utils.training.loop import frozen_dtype, start, train

    settings = settings_of(args)
    accelerator, resume_from = start(settings)

    # Data: images, pseudo labels as targets, ground truth for validation only
    train_set, validation_samples = open_data(args, INTRINSICS[args.task])

    # Model: everything frozen but the LoRA
    base = load_autoregressive(args.pretrained_model_name_or_path, args.revision)
    if args.resolution != base.resolution:
        raise InputError(f"--resolution={args.resolution}: {base.name} draws {base.resolution} px; pass that")
    base.to(accelerator.device, frozen_dtype(accelerator))
    add_lora(base.network, args.rank, args.seed, (args.lora_targets,))
    if args.lora_path:
        load_attn_procs(base.network, args.lora_path)

    # Objective, of tokens that are made once
    objective = TokenPrediction(base.tokens, args.label_positions, args.decoding, args.temperature)
    train_set = tokenised(train_set, base.tokens, accelerator.device, quiet=not accelerator.is_main_process)

    train(settings, accelerator, resume_from, objective, base, train_set, validation_samples)


if __name__ == "__main__":
    run(main)
