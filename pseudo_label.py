"""Make pseudo labels, the targets of training, with a teacher model or from DIODE's own ground truth.

    python pseudo_label.py --task depth --teacher zoedepth --input_dir DIODE --output_dir pseudo/depth
    python pseudo_label.py --task normal --teacher marigold --input_dir my_images --output_dir data/labels --npy
    python pseudo_label.py --task normal --from ground_truth --input_dir DIODE --output_dir pseudo/normal
    accelerate launch -q --num_processes 4 pseudo_label.py ...                 # the processes share the images

--input_dir is DIODE's root (the folder with depths/) or any folder of images. Labels are written to --output_dir
under the images' relative names, as 8-bit .png. Normals have x right, y down, z forward. Depth has near = white and
is linear unless --depth_coding is passed. Albedo and shading are sRGB-coded. Run the command again to continue:
existing labels are skipped. provenance.json records how they were made.
"""

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

from utils.cli import Parser, above_zero, path_flag
from utils.errors import InputError, note, one_line, run
from utils.intrinsics import DEPTH_CODINGS, restated
from utils.kinds.frames import FRAMES
from utils.system.processes import join, start_missing


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--task", choices=["normal", "depth", "albedo", "shading"], required=True, help="intrinsic to label")
    add("--from", dest="source", choices=["teacher", "ground_truth"], default="teacher", help="source of "
        "the labels; ground_truth: DIODE's own depth or normals, holes filled from the nearest valid pixel and "
        "the sky set as far as the farthest")  # fmt: skip
    add("--teacher", help="zoedepth, depth-anything-v2 (indoors, metric), marigold, marigold-iid; a hub name; or a "
        "folder that a depth-estimation model or a Marigold pipeline was saved in")  # fmt: skip
    add("--revision", help="branch, tag or commit of the hub model")
    add("--input_dir", type=path_flag, required=True, help="DIODE's root, or a folder of images")
    add(
        "--output_dir",
        type=path_flag,
        required=True,
        help="folder for the labels of one task and one teacher; pass it to --pseudo_root",
    )
    add("--splits", default="train,val", help="DIODE's splits to label")
    add("--scene_types", default="outdoor,indoors", help="DIODE's scene types to label")
    add("--npy", action="store_true", help="also write float32 values as .npy: normals as in the label, depth in "
        "the teacher's unit, albedo and shading sRGB-coded")  # fmt: skip
    add("--steps", type=int, help="Marigold: denoising steps (default: its config's)")
    add("--ensemble_size", type=int, default=1, help="Marigold: predictions per image, merged by the pipeline")
    add(
        "--processing_resolution",
        type=int,
        help="Marigold: longer side in pixels while predicting (default: its config's)",
    )
    add("--frame", choices=list(FRAMES), default="opengl", help="axes of the teacher's normals; Marigold's: opengl")
    add(
        "--predicts", choices=["depth", "disparity"], help="quantity that the teacher predicts (default: by its class)"
    )
    add("--depth_coding", choices=list(DEPTH_CODINGS), help="coding of depth or disparity as grey, "
        "near = white: linear is the released convention, log and sqrt are finer at near range; pass the same to the "
        "training scripts (default: linear)")  # fmt: skip
    add("--skip_self_check", action="store_true", help="do not test the teacher on a rendered scene first")
    add(
        "--seed",
        type=int,
        default=1234,
        help="seed of Marigold's noise, which depends on the seed and the image's name only",
    )
    add("--dtype", choices=["fp32", "fp16", "bf16"], default="fp32", help="compute dtype")
    add("--device", help="device such as cuda:1 or cpu (default: a GPU if available)")
    add("--overwrite", action="store_true", help="replace existing labels")
    truth = "with --from ground_truth"
    parser.only("steps ensemble_size processing_resolution seed dtype skip_self_check", _asks_a_teacher, truth)
    parser.only("revision", lambda a: a.teacher and not Path(a.teacher).is_dir(), "but for a model on the hub")
    parser.only("frame", lambda a: a.task == "normal" and _asks_a_teacher(a), "but for a teacher of normals")
    parser.only("predicts", lambda a: a.task == "depth" and _asks_a_teacher(a), "but for a teacher of depth")
    parser.only("splits scene_types", lambda a: (a.input_dir / "depths").is_dir(), "but for DIODE's tree (depths/)")
    args = parser.parse_args(argv)
    if (args.teacher is None) == (args.source == "teacher"):
        raise InputError("pass either --teacher NAME or --from ground_truth")
    if args.source == "ground_truth" and args.task not in ("normal", "depth"):
        raise InputError(f"--from ground_truth: DIODE measures no {args.task}; only normal and depth")
    if args.depth_coding is not None and args.task != "depth":
        raise InputError(f"--depth_coding means nothing for --task {args.task}, only for depth; leave it out")
    above_zero(args, ("ensemble_size",))
    return args


def _asks_a_teacher(args: argparse.Namespace) -> bool:
    return args.source == "teacher"


def refuse_unread(args: argparse.Namespace, kind: str) -> None:
    """InputError for a flag that a teacher of this class does not read."""
    defaults = {"steps": None, "ensemble_size": 1, "processing_resolution": None, "frame": "opengl", "seed": 1234}
    for flag, default in defaults.items():
        if getattr(args, flag) != default and kind and not kind.startswith("Marigold"):
            raise InputError(f"--{flag} means nothing for a {kind}, only for Marigold's pipelines; leave it out")


def what_next(args: argparse.Namespace) -> str:
    """The command that checks the labels with their images."""
    labels, images = shlex.quote(str(args.output_dir)), shlex.quote(str(args.input_dir))
    if (args.input_dir / "depths").is_dir():
        return f"python -m dataloaders check --root {images} --pseudo_root {labels}"
    own = f"python -m dataloaders check --dataset folder --pseudo_root {labels} --train_data_dir"
    if args.input_dir.name == "images":
        return f"{own} {shlex.quote(str(args.input_dir.parent))}"
    return f"{own} DATA, after moving {images} to DATA/images"


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)

    import numpy as np  # only now: the libraries take seconds to import, --help should not

    from dataloaders.to_label import HOLES, find_pictures, measured_map

    pictures = find_pictures(args.input_dir, args.output_dir, args.splits.split(","), args.scene_types.split(","))
    start_missing()

    from utils.labels.run import label_all

    state = join(args.device)
    described = {"task": args.task, "seed": args.seed, "steps": args.steps, "ensemble_size": args.ensemble_size}
    described |= {"processing_resolution": args.processing_resolution, "dtype": args.dtype}
    coding = args.depth_coding or "linear"
    described |= {"depth_coding": coding} if args.task == "depth" else {}

    def restate(conventions: dict[str, str]) -> dict[str, str]:
        return conventions | {"labels": restated(conventions["labels"], coding)}

    def label(predict: Callable[[str], tuple[np.ndarray, np.ndarray | None]], quantity: str) -> None:
        label_all(pictures, predict, quantity, described, *where)  # exits where an image has failed
        if state.is_main_process:
            print(one_line(f"next: {what_next(args)}"), flush=True)

    where = (state, args.output_dir, args.npy, args.overwrite, coding)

    if args.source == "ground_truth":
        described |= {"teacher": {"name": "DIODE's ground truth"}, "conventions": restate(HOLES[args.task])}
        described |= {"self_check": None}

        def predict(name: str) -> tuple[np.ndarray, np.ndarray | None]:
            return measured_map(args.input_dir, name, args.task)

        label(predict, args.task)
        return

    # Teacher, and whether it sees what is there
    import torch
    from PIL import Image

    from miniworld.reference_room import room_with_sphere
    from utils.image_io.images import read_rgb
    from utils.image_io.opening import check_ratio
    from utils.labels.self_check import self_check
    from utils.labels.teachers import load_teacher
    from utils.noise import noise_of
    from utils.system.compute import dtype_of, warn_of_slow_bf16

    options = (args.steps, args.processing_resolution, args.frame, args.predicts)
    device, dtype = torch.device(args.device or state.device), dtype_of(args.dtype)
    warn_of_slow_bf16(dtype, device.type, "--dtype fp32")
    teacher = load_teacher(args.task, args.teacher, args.revision, device, dtype, *options)
    refuse_unread(args, teacher.about.get("class", ""))

    def ask(picture: Image.Image, name: str) -> np.ndarray:
        return teacher.predict(picture, [noise_of(args.seed, name, member) for member in range(args.ensemble_size)])

    check = None
    if not args.skip_self_check:
        check = self_check(
            lambda picture: ask(picture, "self-check"), teacher.quantity, args.frame, room_with_sphere()
        )
        note(f"self-check on a rendered floor, wall and sphere: {check}")
    described |= {"teacher": teacher.about, "conventions": restate(teacher.conventions), "self_check": check}

    def predict(name: str) -> tuple[np.ndarray, None]:
        picture = read_rgb(pictures[name])
        check_ratio(*picture.size)  # a teacher keeps the aspect
        return ask(picture, name), None

    label(predict, teacher.quantity)


if __name__ == "__main__":
    run(main)
