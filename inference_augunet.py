"""Predict surface normals, depth, albedo or shading for a folder of images, by diffusion (AugUNet).

    z_T ~ N(0, 1);  --steps of DPM-Solver++ on unet([z_t, E(rgb)], t, prompt), guided;  prediction = D(z_0 / s)
                                                                              (Intrinsic LoRA, arXiv 2311.17137)

Files and flags are those of inference_sd_single.py. Each image's noise depends on --seed and its file name alone (with
the subfolders below --input_dir, if there are any). --ensemble_size N predicts N times and merges: the mean direction
of normals, the median of aligned depths, the median of albedo and shading. How far the members disagree goes to
<output_dir>/<task>/uncertainty/, .npy and .png.

    python inference_augunet.py --lora path/to/output --input_dir my_dataset --output_dir output --ensemble_size 5
    accelerate launch -q --num_processes 4 inference_augunet.py ...        # shares the images out
"""

import argparse

from utils.errors import InputError, run
from utils.inference.args import check, find_files, inference_parser, wanted_of_one
from utils.system.processes import join, start_missing


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    lora = "./pretrained_weights/augunet_depth_pytorch_model.bin"
    parser = inference_parser(__doc__, lora, "augunet")
    add = parser.add_argument
    add("--augment_from", help="InstructPix2Pix, whose conv_in reads the image: local folder or hub name; only for "
        "LoRAs without conv_in.safetensors next to them (default: timbrooks/instruct-pix2pix)")  # fmt: skip
    add("--steps", type=int, default=25, help="of the sampler; each costs two UNet evaluations")
    add("--guidance_scale", type=float, default=3.0, help="away from the empty prompt; 1: no guidance")
    add("--ensemble_size", type=int, default=1, help="predictions per image; more than 1 also write uncertainties")
    add("--seed", type=int, default=1234, help="of the noise")
    args = check(parser.parse_args(argv), ("batch_size", "steps", "ensemble_size"))
    if not args.guidance_scale >= 0:
        raise InputError(f"--guidance_scale={args.guidance_scale}: must not be negative")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    inputs = find_files(args)
    start_missing()

    from utils.inference.predictor import Predictor  # only now: PyTorch takes seconds to import, --help should not
    from utils.inference.run import predict_inputs, report

    state = join(args.device)
    predictor = Predictor(
        **wanted_of_one(args, state.device),
        augment_from=args.augment_from,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        ensemble_size=args.ensemble_size,
        seed=args.seed,
    )
    failed = predict_inputs(args, inputs, state, predictor)
    return report(args, predictor.jobs, inputs, failed)


if __name__ == "__main__":
    run(main)
