"""Draw surface normals, depth, albedo or shading for a folder of pictures, by diffusion (AugUNet).

    z_T ~ N(0, 1);  --steps of DPM-Solver++ on unet([z_t, E(rgb)], t, prompt), guided;  prediction = D(z_0 / s)
                                                                              (Intrinsic LoRA, arXiv 2311.17137)

Files and flags are those of inference_sd_single.py. Each picture's noise depends on --seed and its file name alone.
--ensemble_size N draws N times and merges: the mean direction of normals, the median of aligned depths, the median of
albedo and shading. How far the drawings disagree goes to <output_dir>/<task>/uncertainty/, .npy and .png.

    python inference_augunet.py --lora path/to/output --input_dir my_dataset --output_dir output --ensemble_size 5
    accelerate launch --num_processes 4 inference_augunet.py ...        # shares the pictures out
"""

import argparse

import torch
from torch import Tensor

from utils.errors import InputError, run
from utils.inference.args import check, fill_in, inference_parser
from utils.inference.ensemble import merge
from utils.inference.run import load_fused, place, predict_all, share_out
from utils.models import dtype_of, load_donor, widen_conv_in
from utils.noise import noise_of
from utils.objectives import AugUNet, zero_snr_scheduler


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    lora = "./pretrained_weights/augunet_depth_pytorch_model.bin"
    parser = inference_parser(__doc__, lora, "stabilityai/stable-diffusion-2-1")
    add = parser.add_argument
    add("--augment_from", help="InstructPix2Pix, whose conv_in reads the picture: local folder or hub name; only for "
        "LoRAs without conv_in.safetensors beside them; left out: timbrooks/instruct-pix2pix")  # fmt: skip
    add("--steps", type=int, default=25, help="of the sampler; each costs two UNet evaluations")
    add("--guidance_scale", type=float, default=3.0, help="away from the empty prompt; 1: no guidance")
    add("--ensemble_size", type=int, default=1, help="drawings per picture; more than 1 also write uncertainties")
    add("--seed", type=int, default=1234, help="of the noise")
    args = check(parser.parse_args(argv), ("batch_size", "steps", "ensemble_size"))
    if not args.guidance_scale >= 0:
        raise InputError(f"--guidance_scale={args.guidance_scale}: must not be negative")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    job, metadata = fill_in(args, "augunet")
    mine, state = share_out(args.input_dir, job.intrinsic, args.device)

    # Model: the LoRA brings its conv_in along, or it is made anew as in training
    base = load_fused(args, job, metadata)
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

    def predict(rgb: Tensor, names: list[str]) -> tuple[Tensor, Tensor | None]:
        rgb = rgb.to(device, dtype)
        members = torch.stack([
            method.predict(base.unet, rgb, [noise_of(args.seed, name, member) for name in names]).float().cpu()
            for member in range(args.ensemble_size)
        ])  # fmt: skip
        if args.ensemble_size == 1:
            return members[0], None
        merged, doubts = zip(*(merge(members[:, i], job.intrinsic) for i in range(len(names))))
        return torch.stack(merged), torch.stack(doubts)

    predict_all(mine, state, predict, job.intrinsic, job.resolution, args.batch_size, args.output_dir, args.npy)


if __name__ == "__main__":
    run(main)
