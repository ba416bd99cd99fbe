"""Predict surface normals, depth, albedo or shading for a folder of images, by diffusion (AugUNet).

    z_T ~ N(0, 1);  --steps of DPM-Solver++ on unet([z_t, E(rgb)], t, prompt), guided;  prediction = D(z_0 / s)
                                                                              (Intrinsic LoRA, arXiv 2311.17137)

Files and flags are those of inference_sd_single.py. Each image's noise depends on --seed and its file name alone (with
the subfolders below --input_dir, if there are any). --ensemble_size N predicts N times and merges: the mean direction
of normals, the median of aligned depths, the median of albedo and shading. How far the members disagree goes to
<output_dir>/<task>/uncertainty/, .npy and .png.

    python inference_augunet.py --lora path/to/output --input_dir my_dataset --output_dir output --ensemble_size 5
    accelerate launch --num_processes 4 inference_augunet.py ...        # shares the images out
"""

import argparse
from typing import TYPE_CHECKING

from utils.errors import InputError, run
from utils.inference.args import check, fill_in, find_files, inference_parser
from utils.inference.inputs import output_names

if TYPE_CHECKING:
    from torch import Tensor


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    lora = "./pretrained_weights/augunet_depth_pytorch_model.bin"
    parser = inference_parser(__doc__, lora, "stabilityai/stable-diffusion-2-1")
    add = parser.add_argument
    add("--augment_from", help="InstructPix2Pix, whose conv_in reads the image: local folder or hub name; only for "
        "LoRAs without conv_in.safetensors beside them (default: timbrooks/instruct-pix2pix)")  # fmt: skip
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

    import torch  # only now: it takes seconds, and --help should not

    from utils.inference.ensemble import merge
    from utils.inference.run import load_fused, place, predict_all, report, share_out
    from utils.models import dtype_of, load_donor, widen_conv_in
    from utils.noise import noise_of
    from utils.objectives import AugUNet, zero_snr_scheduler

    job, _ = fill_in(args, "augunet")
    output_names(inputs.pictures, job.intrinsic.name)
    mine, state = share_out(inputs, args.device)

    # Model: the LoRA brings its conv_in along, or it is made anew as in training
    base = load_fused(args, job)
    if base.unet.config.in_channels == base.unet.config.out_channels:
        widen_conv_in(base.unet, load_donor(args.augment_from or "timbrooks/instruct-pix2pix"))
    elif args.augment_from:
        raise InputError(f"--augment_from: {args.lora} has its own conv_in.safetensors; leave the flag out")
    dtype = dtype_of(args.dtype)
    device = place(base, state, args)
    method = AugUNet(
        base.vae,
        base.encode_prompt(job.prompt),
        base.encode_prompt(""),
        zero_snr_scheduler(base.scheduler),
        steps=args.steps,
        guidance_scale=args.guidance_scale,
    )

    def predict(rgb: "Tensor", names: list[str]) -> "tuple[Tensor, Tensor | None]":
        rgb = rgb.to(device, dtype)
        members = torch.stack([
            method.predict(base.unet, rgb, [noise_of(args.seed, name, member) for name in names]).float().cpu()
            for member in range(args.ensemble_size)
        ])  # fmt: skip
        if args.ensemble_size == 1:
            return members[0], None
        merged, doubts = zip(*(merge(members[:, i], job.intrinsic) for i in range(len(names))))
        return torch.stack(merged), torch.stack(doubts)

    out = (args.batch_size, args.output_dir, args.npy)
    failed = predict_all(mine, state, predict, job.intrinsic, job.resolution, *out)
    return report(args, job, inputs, failed)


if __name__ == "__main__":
    run(main)
