"""Predict normals, depth, albedo and shading of photographs, and show them on one page.

    python predict.py examples/coffee.jpg                      # the four small LoRAs that are here
    python predict.py photo.jpg folder/ --lora path/to/normal path/to/depth --output_dir out
    python predict.py photo.jpg --lora neph1/intrinsic_lora    # the authors' four, for Stable Diffusion 1.5

All LoRAs share one base, which is loaded once, and one pass of its encoder. Written are the maps, where and as the
inference scripts write them (<output_dir>/<task>/predicted/<stem>_<task>.png), and <output_dir>/index.html: image and
maps with a slider between any two, a page that needs no server and loads nothing from elsewhere. It shows the colours
that people are used to; the files keep the declared frame (normals: x right, y down, z forward).
"""

import argparse
import shlex

from utils.base_model.names import toy_remark
from utils.cli import Parser, expand
from utils.errors import InputError, list_failed, note, one_line, run, warn
from utils.inference.args import check, check_models, model_flags, wanted
from utils.inference.inputs import find_all, output_names
from utils.inference.job import BASES, SHIPPED, check_lora
from utils.inference.view import view_flags
from utils.intrinsics import INTRINSICS
from utils.system.processes import join


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("images", nargs="+", type=expand, help="images, or folders with any subfolders")
    add("--lora", nargs="+", type=expand, help="LoRAs of one base, each of another task: .safetensors, .bin, output "
        "folders of training scripts, or hub names; a folder or hub name with a file named for each intrinsic "
        "stands for all of them (default: the four in miniworld/mini-loras)")  # fmt: skip
    add("--output_dir", type=expand, default="out", help="maps and index.html")
    add("--colours", choices=["opengl", "opencv"], default="opengl", help="of the page's normals: opengl, blue-violet "
        "where a surface faces the viewer, or opencv, the files' own axes")  # fmt: skip
    model_flags(parser, BASES["single-step"])
    view_flags(parser)
    return check(parser.parse_args(argv))


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    loras = args.lora or [str(SHIPPED / name) for name in INTRINSICS]
    for lora in loras:
        check_lora(lora)
    check_models(args)
    inputs = find_all(args.images, args.output_dir)
    output_names(inputs.pictures, "<task>")

    from utils.inference.page import (  # only now: PyTorch takes seconds to import, --help should not
        Page,
        refuse_other_page,
    )
    from utils.inference.predictor import Predictor
    from utils.inference.run import UNREAD, predict_all

    refuse_other_page(args.output_dir)
    state = join(args.device)
    if state.num_processes > 1:
        raise InputError(
            "predict.py writes one page and runs in one process; inference_sd_single.py shares images out"
        )
    predictor = Predictor(loras, **wanted(args, state.device))
    if args.colours != "opengl" and not any(job.intrinsic.map_kind.has_axes for job in predictor.jobs):
        raise InputError(
            f"--colours={args.colours}: means nothing without normals, whose colours it sets; leave it out"
        )
    page = Page(inputs.pictures, args.colours, args.output, args.center_crop)
    failed = predict_all(inputs.pictures, state, predictor, args.output_dir, args.output, page.add)
    path = page.write(args.output_dir, predictor.jobs)

    note(f"{len(inputs.pictures) - len(failed)} of {len(inputs.pictures)} images predicted: {args.output_dir}")
    for line in args.output.said([job.intrinsic for job in predictor.jobs]):
        note(line)
    for line in inputs.notes():
        note(line)
    status = list_failed(UNREAD, failed)
    for job in predictor.jobs:
        for line in job.closing:
            note(line)
        if far := job.far(args.view):
            warn(far)
    if not args.lora and (remark := toy_remark(predictor.jobs[0].model)):
        note(remark)
    if len(failed) < len(inputs.pictures):
        print(one_line(f"next: open {shlex.quote(str(path))}"), flush=True)
    return status


if __name__ == "__main__":
    run(main)
