"""Predict surface normals, depth, albedo or shading for a folder of images, by an autoregressive generator.

    prediction = D( the label's tokens after E(rgb)'s )                  (a LoRA that ar_pseudo.py has trained)

The centre square of each image is predicted, at the generator's resolution. The LoRA's training decides whether the
tokens come one by one or together. At a --temperature they are sampled, and --ensemble_size N samples and merges N
maps, whose disagreement goes to <output_dir>/<task>/uncertainty/. The files are those of inference_sd_single.py.

    python inference_ar.py --lora runs/ar-normal --input_dir my_dataset --output_dir output
    python inference_ar.py --lora runs/ar-normal --input_dir my_dataset --temperature 1 --ensemble_size 8
"""

import argparse

from generators.args import check_temperature, inference_parser
from utils.cli import above_zero, expand
from utils.errors import InputError, run
from utils.inference.output import output_of
from utils.inference.view import View
from utils.system.processes import join, start_missing


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = inference_parser(__doc__)
    add = parser.add_argument
    add("--lora", type=expand, required=True, help="the output folder of ar_pseudo.py, or its .safetensors")
    add("--input_dir", type=expand, default="./my_dataset", help="an image, or a folder with any subfolders")
    add("--batch_size", type=int, default=16, help="images at a time (16)")
    add("--dtype", choices=["fp32", "fp16", "bf16"], default="fp32", help="compute dtype")
    add("--temperature", type=float, default=0.0, help="temperature of the tokens; 0: the likeliest")
    add("--ensemble_size", type=int, default=1, help="maps per image, sampled at --temperature; more than 1 "
        "also write uncertainties (1)")  # fmt: skip
    add("--seed", type=int, default=1234, help="seed of the sampled tokens")
    parser.only("seed", lambda a: a.temperature, "at --temperature 0: nothing is sampled")
    args = parser.parse_args(argv)
    above_zero(args, ("batch_size", "ensemble_size"))
    check_temperature(args)
    if args.ensemble_size > 1 and not args.temperature:
        raise InputError(f"--ensemble_size={args.ensemble_size}: all would be the same at --temperature 0; raise it")
    args.view, args.output, args.center_crop = View(center_crop=True, output_size="network"), output_of(args), True
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)

    from utils.inference.inputs import find_inputs
    from utils.inference.job import describe

    job = describe(args.lora, "autoregressive", base=args.pretrained_model_name_or_path)
    inputs = find_inputs(args.input_dir, args.output_dir)
    start_missing()

    import torch  # only now: it takes seconds to import, --help should not

    from generators.token_prediction import TokenPredictor
    from utils.inference.run import predict_all, report
    from utils.system.compute import dtype_of

    state = join(args.device)
    device = torch.device(args.device or state.device)
    network = TokenPredictor(job, device, dtype_of(args.dtype), args.batch_size, args.temperature,
        args.ensemble_size, args.seed)  # fmt: skip
    failed = predict_all(inputs.pictures, state, network, args.output_dir, args.output)
    return report(args, [job], inputs, failed)


if __name__ == "__main__":
    run(main)
