"""Training data from a Blender scene: images with exact normals, depth, albedo, shading and masks.

    python -m integrations.blender.export scene.blend --out data --cameras 40 --bpy_python .bpy/bin/python
    python -m dataloaders check --dataset folder --train_data_dir data/normal
    python sd_single_diode_pseudo_normal.py --dataset folder --train_data_dir data/normal ...

writes data/<normal|depth|albedo|shading>/{images,labels,gt,masks}/<scene>_<number>.*; the images are the same files.
The same command again renders what is missing; the same seed gives the same cameras and noise. Run it from the
project's folder. It renders with Blender 4.2 or newer, or with `bpy`, Blender as a Python package, in its own
environment: python3.11 -m venv .bpy && .bpy/bin/pip install "bpy==4.2.*"
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

from integrations.blender.convert import TASKS, convert
from integrations.blender.runtime import examine, start
from utils.cli import Parser, above_zero, path_flag
from utils.errors import InputError, note, run, warn
from utils.system.atomic import make_folder, write_json

RECORD, RENDER = "blender.json", Path(__file__).with_name("render.py")


def settle(out: Path, wanted: dict) -> None:
    """Write everything that the bytes depend on into `out`; InputError if it contains data of other settings."""
    file = out / RECORD
    if file.is_file() and (found := {"blender": "4.2", **json.loads(file.read_text())}) != wanted:  # once the only one
        changed = [key for key in wanted if found.get(key) != wanted[key]]
        raise InputError(f"{out}: rendered with another {', '.join(changed)}; name another --out")
    make_folder(out, "--out")
    write_json(file, wanted)


def parse(argv: list[str] | None = None):
    parser = Parser(prog="python -m integrations.blender.export", description=__doc__)
    add = parser.add_argument
    add("scene", type=path_flag, help="a .blend file")
    add("--out", type=path_flag, required=True, help="folder to write or continue")
    add("--cameras", type=int, default=40, help="images: from places inside the scene's box with a view of a surface")
    add("--from_file", action="store_true", help="the cameras that are in the file, by name, up to --cameras of them")
    add("--size", default="512x512", help="width x height in pixels (default: 512x512)")
    add("--samples", type=int, default=128, help="paths per pixel; noise goes into albedo's and shading's labels too")
    add("--seed", type=int, default=0, help="of the cameras and the noise")
    add(
        "--bpy_python",
        default=sys.executable,
        help="a Python with bpy 4.2 or newer, or Blender itself, such as /usr/bin/blender (default: this Python)",
    )
    args = parser.parse_args(argv)
    if args.scene.suffix != ".blend" or not args.scene.is_file():
        raise InputError(f"{args.scene}: no such .blend file")
    width, _, height = args.size.partition("x")
    if not (width.isdigit() and height.isdigit() and min(int(width), int(height)) >= 16):
        raise InputError(f"--size={args.size}: as in 512x384, at least 16 pixels a side")
    args.size = (int(width), int(height))
    above_zero(args, ("cameras", "samples"))
    return args


def count_pictures(args) -> tuple[int, str]:
    """How many images there will be, and Blender's version; InputError if the file has no usable camera."""
    version, here = examine(args.bpy_python, args.scene)
    if args.from_file and here == 0:
        raise InputError(f"{args.scene}: holds no camera; leave --from_file out")
    return min(args.cameras, here) if args.from_file else args.cameras, version


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    count, version = count_pictures(args)
    digest = hashlib.sha256(args.scene.read_bytes()).hexdigest()[:16]
    settings = {"scene": digest, "seed": args.seed, "size": list(args.size), "samples": args.samples}
    settle(args.out, {**settings, "from_file": args.from_file, "blender": version})
    stems = [f"{args.scene.stem}_{number:04}" for number in range(count)]
    missing = [stem for stem in stems if not (args.out / TASKS[0] / "images" / f"{stem}.png").is_file()]
    raw = args.out / "raw"
    raw.mkdir(exist_ok=True)
    job = {**settings, "from_file": args.from_file, "raw": str(raw.resolve()), "scene": str(args.scene.resolve())}
    job["stems"] = [stem for stem in missing if not (raw / f"{stem}.npz").is_file()]
    if job["stems"]:
        (raw / "job.json").write_text(json.dumps(job))
        note(f"rendering {len(job['stems'])} of {count} images")
        done = start(args.bpy_python, RENDER, raw / "job.json")
        (raw / "blender.log").write_text(done.stdout + done.stderr)
        for line in done.stdout.splitlines():
            if line.startswith("note: "):
                note(f"{args.scene}: {line.removeprefix('note: ')}")
            if line.startswith("warning: "):
                warn(f"{args.scene}: {line.removeprefix('warning: ')}")
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            reason = said[-1].removeprefix("error: ") if said else f"Blender failed; its output: {raw / 'blender.log'}"
            raise InputError(f"{args.scene}: {reason}")
    for stem in missing:
        convert(raw / f"{stem}.npz", args.out, stem)
    shutil.rmtree(raw)
    print(f"{count} images in {args.out}; next: python -m dataloaders check --dataset folder --train_data_dir "
        f"{args.out / TASKS[0]}")  # fmt: skip
    return 0


if __name__ == "__main__":
    run(main)
