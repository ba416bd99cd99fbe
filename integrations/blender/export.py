"""Training data from a Blender scene: pictures with exact normals, depth, albedo, shading and masks.

    python -m integrations.blender.export scene.blend --out data --cameras 40 --bpy_python .bpy/bin/python
    python -m dataloaders check --dataset folder --train_data_dir data/normal
    accelerate launch sd_single_diode_pseudo_normal.py --dataset folder --train_data_dir data/normal ...

writes data/<normal|depth|albedo|shading>/{images,labels,gt,masks}/<scene>_<number>.*; the pictures are the same files.
The same command again renders what is missing; the same seed gives the same cameras and noise. `bpy` is Blender as a
Python package, 4.2 or newer, in an environment of its own: python3.11 -m venv .bpy && .bpy/bin/pip install "bpy==4.2.*"
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from utils.cli import Parser, path_flag
from utils.errors import InputError, note, run
from utils.labels.encoding import SKY_NORMAL, encode, fill
from utils.maps.conventions import to_srgb
from utils.system.atomic import make_folder, save_npy, save_png, write_json

TASKS = ("normal", "depth", "albedo", "shading")
RECORD, RENDER = "blender.json", Path(__file__).with_name("render.py")
OLDEST = (4, 2)
INSTALL = 'python3.11 -m venv .bpy && .bpy/bin/pip install "bpy==4.2.*"'


def convert(raw: Path, out: Path, stem: str) -> None:
    """One camera's passes -> image, labels, ground truth and masks of all tasks; the image last: it marks the end."""
    with np.load(raw, allow_pickle=False) as file:
        passes = dict(file)
    depth = passes["depth"] * passes["metres"]
    hit = np.isfinite(depth) & (passes["depth"] < passes["clip_end"])
    if not hit.any():
        raise InputError(f"{stem}: its camera sees nothing; move it, or leave --from_file out")
    normal = (
        passes["normal"] @ passes["to_camera"].T * (1, -1, -1)
    )  # x right, y up, z back -> x right, y down, z forward
    length = np.linalg.norm(normal, axis=-1)
    hit &= length > 0.5
    normal = np.where(hit[..., None], normal / np.maximum(length, 1e-9)[..., None], 0).astype(np.float32)
    albedo, shading = passes["albedo"], passes["direct"] + passes["indirect"]
    diffuse = hit & (albedo.max(-1) > 0)  # mirrors, glass and lamps have no diffuse colour, so no shading either
    truth = {
        "normal": normal,
        "depth": np.where(hit, depth, 0).astype(np.float32),
        "albedo": albedo,
        "shading": shading,
    }
    label = {
        "normal": encode("normal", fill(normal, hit, True, SKY_NORMAL)),
        "depth": encode("depth", np.where(hit, depth, depth[hit].max()), hit),
        "albedo": encode("albedo", to_srgb(np.clip(albedo, 0, 1))),
        "shading": encode("shading", to_srgb(np.clip(shading / max(1, np.percentile(shading[diffuse], 99)), 0, 1))
            if diffuse.any() else shading * 0),
    }  # fmt: skip
    picture = np.round(255 * to_srgb(np.clip(passes["picture"], 0, 1))).astype(np.uint8)
    first = out / TASKS[0] / "images" / f"{stem}.png"
    for task in TASKS:
        valid = hit if task in ("normal", "depth") else diffuse
        for folder in ("images", "labels", "gt", "masks"):
            make_folder(out / task / folder, "--out")
        save_png(out / task / "labels" / f"{stem}.png", label[task])
        save_npy(out / task / "gt" / f"{stem}.npy", truth[task])
        save_npy(out / task / "masks" / f"{stem}.npy", valid)
        if task != TASKS[0]:
            save_png(out / task / "images" / f"{stem}.png", picture)
    save_png(first, picture)


def settle(out: Path, wanted: dict) -> None:
    """Write what the bytes depend on into `out`; InputError where it holds data of other settings."""
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
    add("--out", type=path_flag, required=True, help="folder to write, or to go on with")
    add("--cameras", type=int, default=40, help="pictures: from places inside the scene's box that see something")
    add("--from_file", action="store_true", help="the cameras that are in the file, by name, up to --cameras of them")
    add("--size", default="512x512", help="width x height in pixels (default: 512x512)")
    add("--samples", type=int, default=128, help="paths per pixel; noise goes into albedo's and shading's labels too")
    add("--seed", type=int, default=0, help="of the cameras and the noise")
    add("--bpy_python", default=sys.executable, help="a Python with bpy 4.2 or newer (default: this one)")
    args = parser.parse_args(argv)
    if args.scene.suffix != ".blend" or not args.scene.is_file():
        raise InputError(f"{args.scene}: no such .blend file")
    width, _, height = args.size.partition("x")
    if not (width.isdigit() and height.isdigit() and min(int(width), int(height)) >= 16):
        raise InputError(f"--size={args.size}: as in 512x384, at least 16 pixels a side")
    args.size = (int(width), int(height))
    for name in ("cameras", "samples"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}={getattr(args, name)}: must be at least 1")
    return args


def examine(args) -> tuple[int, str]:
    """How many pictures there will be, and Blender's version, as "4.2"; InputError where that Python has no bpy, or
    the file no camera.
    """
    program = "import bpy, sys\nprint('BPY', bpy.app.version_string)\n"
    program += "bpy.ops.wm.open_mainfile(filepath=sys.argv[1], load_ui=False)\n"
    program += "print('CAMERAS', sum(o.type == 'CAMERA' for o in bpy.context.scene.objects))"
    try:
        done = subprocess.run([args.bpy_python, "-c", program, args.scene], capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"--bpy_python={args.bpy_python}: cannot be run ({error.strerror})") from None
    words = done.stdout.split()
    if "BPY" not in words:
        raise InputError(f"--bpy_python={args.bpy_python}: has no bpy; {INSTALL}, then --bpy_python .bpy/bin/python")
    version = ".".join(words[words.index("BPY") + 1].split(".")[:2])
    if tuple(map(int, version.split("."))) < OLDEST:
        raise InputError(f"--bpy_python={args.bpy_python}: is Blender {version}; 4.2 or newer is needed: {INSTALL}")
    if "CAMERAS" not in words:
        raise InputError(f"{args.scene}: Blender cannot open it ({done.stderr.strip()[-200:]})")
    here = int(words[words.index("CAMERAS") + 1])
    if args.from_file and here == 0:
        raise InputError(f"{args.scene}: holds no camera; leave --from_file out")
    return min(args.cameras, here) if args.from_file else args.cameras, version


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    count, version = examine(args)
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
        note(f"rendering {len(job['stems'])} of {count} pictures")
        words = [args.bpy_python, RENDER, raw / "job.json"]
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(words, env=env, capture_output=True, text=True)
        (raw / "blender.log").write_text(done.stdout + done.stderr)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            reason = said[-1].removeprefix("error: ") if said else f"Blender failed; its output: {raw / 'blender.log'}"
            raise InputError(f"{args.scene}: {reason}")
    for stem in missing:
        convert(raw / f"{stem}.npz", args.out, stem)
    shutil.rmtree(raw)
    print(f"{count} pictures in {args.out}; next: python -m dataloaders check --dataset folder --train_data_dir "
        f"{args.out / TASKS[0]}")  # fmt: skip
    return 0


if __name__ == "__main__":
    run(main)
