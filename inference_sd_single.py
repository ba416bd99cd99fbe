"""Predict surface normals, depth, albedo or shading for a folder of images, in a single UNet pass each.

    prediction = D( unet(s E(rgb), t = T-1, prompt) / s )                      (Intrinsic LoRA, arXiv 2311.17137)

The whole image is predicted, its short side brought to --resolution, and the map brought back to the image's own size.
--center_crop is the released behaviour: the centre square alone. Written are
<output_dir>/<task>/predicted/<stem>_<task>.png and, with --npy, the same name as .npy in float; subfolders of
--input_dir become subfolders there.

    python inference_sd_single.py --task normal --lora path/to/output --input_dir my_dataset --output_dir output
    accelerate launch -q --num_processes 4 inference_sd_single.py ...      # shares the images out
"""

import argparse

from utils.cli import number
from utils.errors import run
from utils.inference.args import check, find_files, inference_parser, wanted_of_one
from utils.system.processes import join, start_missing


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    lora = "./pretrained_weights/sd_single_depth_pytorch_model.bin"
    parser = inference_parser(__doc__, lora, "single-step")
    parser.add_argument(
        "--timestep", type=number, metavar="N", help="of the network (default: the training's, else the base's own)"
    )
    return check(parser.parse_args(argv))


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    inputs = find_files(args)
    start_missing()

    from utils.inference.predictor import Predictor  # only now: PyTorch takes seconds to import, --help should not
    from utils.inference.run import predict_inputs, report

    state = join(args.device)
    predictor = Predictor(**wanted_of_one(args, state.device), timestep=args.timestep)
    failed = predict_inputs(args, inputs, state, predictor)
    return report(args, predictor.jobs, inputs, failed)


if __name__ == "__main__":
    run(main)
