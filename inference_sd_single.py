"""Predict surface normals, depth, albedo or shading for a folder of images, in a single UNet pass each.

    prediction = D( unet(s E(rgb), t = T-1, prompt) / s )                      (Intrinsic LoRA, arXiv 2311.17137)

Every image is resized to --resolution on its short side and cropped to the centre square, as in training. Written are
<output_dir>/<task>/predicted/<stem>_<task>.png and, with --npy, the same name as .npy in float; subfolders of
--input_dir become subfolders there.

    python inference_sd_single.py --task normal --lora path/to/output --input_dir my_dataset --output_dir output
    accelerate launch --num_processes 4 inference_sd_single.py ...      # shares the images out
"""

import argparse
from typing import TYPE_CHECKING

from utils.errors import run
from utils.inference.args import check, fill_in, find_files, inference_parser
from utils.inference.inputs import output_names

if TYPE_CHECKING:
    from torch import Tensor


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    lora = "./pretrained_weights/sd_single_depth_pytorch_model.bin"
    parser = inference_parser(__doc__, lora, "runwayml/stable-diffusion-v1-5")
    parser.add_argument("--timestep", type=int, help="of the UNet (default: the training's, else the schedule's last)")
    return check(parser.parse_args(argv))


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    inputs = find_files(args)

    from utils.inference.run import load_fused, place, predict_all, report, share_out  # only now: imports PyTorch
    from utils.models import dtype_of
    from utils.objectives import SingleStep

    job, metadata = fill_in(args, "single-step")
    output_names(inputs.pictures, job.intrinsic.name)
    mine, state = share_out(inputs, args.device)

    # Model
    base = load_fused(args, job)
    dtype = dtype_of(args.dtype)
    device = place(base, state, args)
    trained_at = int(metadata["timestep"]) if "timestep" in metadata else None
    timestep = base.timestep(trained_at if args.timestep is None else args.timestep)
    method = SingleStep(base.vae, base.encode_prompt(job.prompt), timestep)

    def predict(rgb: "Tensor", names: list[str]) -> "tuple[Tensor, None]":
        return method.predict(base.unet, rgb.to(device, dtype)), None

    out = (args.batch_size, args.output_dir, args.npy)
    failed = predict_all(mine, state, predict, job.intrinsic, job.resolution, *out)
    return report(args, job, inputs, failed)


if __name__ == "__main__":
    run(main)
