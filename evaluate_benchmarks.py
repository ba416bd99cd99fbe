"""Scores LoRAs, or other people's predictions, on the field's test sets, each by its own protocol.

    python evaluate_benchmarks.py --lora runs/normal runs/depth --data EVAL
    python evaluate_benchmarks.py --pred_dir marigold_output --data EVAL --sets nyuv2-depth kitti-depth
    accelerate launch -q --num_processes 4 evaluate_benchmarks.py ...        # shares the images out

EVAL holds DSINE's dsine_eval, Marigold's evaluation folders and tar files (which are not unpacked), DIODE and IIW, as
they are downloaded; the sets that are there are found. Written are <output_dir>/results.json, results.md and
index.html. Every image's score is kept until its set is done: the same command continues a run that was stopped.

Published numbers are next to the scores, with their source and protocol. The evaluation of the Intrinsic LoRA paper
(2311.17137) was never released: nothing here reproduces its tables.
"""

import argparse
import os
import shlex
from pathlib import Path

from utils.base_model.names import check_base
from utils.cli import Parser, above_zero, expand, path_flag
from utils.errors import InputError, one_line, run
from utils.inference.job import by_task, check_lora, describe
from utils.inference.view import view_flags, view_of
from utils.kinds.frames import FRAMES
from utils.system.processes import io_threads, join, start_missing


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--data", type=path_flag, required=True, help="folder with the test sets, at any depth")
    add("--lora", nargs="+", type=expand, help="LoRAs, a row each: files, output folders of training scripts, or hub "
        "names; of any base, method and intrinsic")  # fmt: skip
    add("--pred_dir", nargs="+", type=path_flag, help="predictions, a row each, under the names that Marigold, DSINE, "
        "Lotus or this project's inference gives them")  # fmt: skip
    add("--sets", nargs="+", default=[], metavar="NAME", help="sets to score, such as dsine-nyuv2 (default: all that "
        "are there)")  # fmt: skip
    add("--limit", type=int, metavar="N", help="score N evenly spaced images of each set, marked as a sample")
    add("--output_dir", type=path_flag, default=Path("benchmark_scores"), help="results, and what was scored so far")
    add("--workers", type=int, help="threads that read and score images (default: one per core, at most 8)")
    add("--align", choices=("depth", "disparity"), default="depth", help="what scale and shift of depth are fitted in")
    add("--pred_frame", choices=tuple(FRAMES), help="axes of normals in --pred_dir (default: by who names them so)")
    add("--pred_space", choices=("srgb", "linear"), help="colour space in --pred_dir (default: by who names them so)")
    add("--pretrained_model_name_or_path", type=expand, help="base model (default: the one each LoRA was made for)")
    add("--revision", help="branch, tag or commit of the hub model")
    add("--dtype", choices=["fp32", "fp16", "bf16"], default="fp32", help="compute dtype")
    add("--device", help="device such as cuda:1 or cpu (default: a GPU if available)")
    add("--batch_size", type=int, default=1, help="images per UNet pass")
    add("--steps", type=int, default=25, help="AugUNet: of the sampler")
    add("--guidance_scale", type=float, default=3.0, help="AugUNet: away from the empty prompt; 1: no guidance")
    add("--ensemble_size", type=int, default=1, help="AugUNet: predictions per image, merged")
    add("--seed", type=int, default=1234, help="AugUNet: of the noise")
    view_flags(parser)
    parser.only("pred_frame pred_space", lambda a: a.pred_dir, "without --pred_dir")
    of_loras = "pretrained_model_name_or_path revision dtype device batch_size steps guidance_scale ensemble_size seed"
    parser.only(f"{of_loras} resolution output_size center_crop flip_tta tile overlap wrap", lambda a: a.lora,
                "without --lora")  # fmt: skip
    args = parser.parse_args(argv)
    above_zero(args, ("batch_size", "steps", "ensemble_size"))
    if not args.lora and not args.pred_dir:
        parser.error("--lora or --pred_dir is needed")
    if args.center_crop:
        raise InputError("--center_crop: the sets are scored on whole images; leave it out")
    for flag in ("limit", "workers"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise InputError(f"--{flag}={getattr(args, flag)}: must be at least 1")
    args.workers = args.workers or io_threads(8)
    args.view = view_of(args)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    for lora in args.lora or ():
        check_lora(lora)
    if args.pretrained_model_name_or_path is not None:
        check_base(args.pretrained_model_name_or_path, args.revision)
    start_missing()

    from utils.benchmark_sets.files import find_all  # only now: --help needs no numpy
    from utils.benchmark_sets.rows import FolderRow, LoraRow, Row
    from utils.benchmark_sets.run import Processes, score_rows
    from utils.benchmark_sets.sets import find_sets
    from utils.benchmark_sets.tables import as_text, write_all

    found = find_sets(find_all(args.data, "--data"), args.sets)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    processes = Processes(join(args.device) if args.lora or several else None)
    rows: list[Row] = [FolderRow(folder, args) for folder in args.pred_dir or ()]
    names = ("dtype", "revision", "batch_size", "steps", "guidance_scale", "ensemble_size", "seed")
    wanted = {name: getattr(args, name) for name in names} | vars(args.view)
    wanted |= {"base": args.pretrained_model_name_or_path, "device": args.device or processes.device}
    for lora in by_task(args.lora or ()):
        job = describe(lora, base=args.pretrained_model_name_or_path)
        rows.append(LoraRow(str(lora), job, wanted, args.align))
    results, refused = score_rows(rows, found, args, processes)
    if processes.number == 0:
        page = write_all(args.output_dir, results, refused)
        print(as_text(results))
        print(f"\nwritten: {', '.join(str(args.output_dir / name) for name in ('results.json', 'results.md'))}")
        print(one_line(f"next: open {shlex.quote(str(page))}"), flush=True)


if __name__ == "__main__":
    run(main)
