"""Draws docs/blender.jpg: an image of the living room from Blender, and its exact maps, as the export writes them.

python docs/figures/blender.py --bpy_python .bpy/bin/python [--rooms data/rooms]
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from PIL import Image  # noqa: E402

from utils.intrinsics import INTRINSICS  # noqa: E402

TITLES = {"normal": "surface normals", "depth": "depth, near = red", "albedo": "albedo", "shading": "shading"}
CAMERA = """
import bpy, sys
from mathutils import Vector
bpy.ops.wm.open_mainfile(filepath=sys.argv[1], load_ui=False)
camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
camera.data.angle, camera.location = 1.15, (0.45, 0.35, 1.65)
camera.rotation_euler = (Vector((3.7, 3.3, 0.7)) - camera.location).to_track_quat("-Z", "Y").to_euler()
bpy.context.scene.collection.objects.link(camera)
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[2])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bpy_python", required=True)
    parser.add_argument("--rooms", type=Path, default=ROOT / "data" / "rooms")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder, "living.blend"), Path(folder, "data")
        subprocess.run([args.bpy_python, "-c", CAMERA, args.rooms / "scenes" / "living.blend", file], check=True)
        words = [file, "--out", out, "--from_file", "--size", "320x240", "--samples", "32"]
        words = [sys.executable, "-m", "integrations.blender.export", *words, "--bpy_python", args.bpy_python]
        subprocess.run([str(word) for word in words], cwd=ROOT, check=True)
        draw(out, "living_0000")


def draw(data: Path, stem: str) -> None:
    figure, axes = plt.subplots(1, 5, figsize=(15, 2.5), dpi=90)
    figure.subplots_adjust(0.003, 0.01, 0.997, 0.9, 0.02)
    tiles = {"rendered image": np.asarray(Image.open(data / "normal" / "images" / f"{stem}.png").convert("RGB"))}
    for task, intrinsic in INTRINSICS.items():
        if intrinsic.kind == "colour":
            tiles[TITLES[task]] = np.asarray(Image.open(data / task / "labels" / f"{stem}.png").convert("RGB"))
        else:
            values = np.load(data / task / "gt" / f"{stem}.npy", allow_pickle=False)
            values = -values if task == "depth" else values  # near = large
            tiles[TITLES[task]] = next(iter(intrinsic.map_kind.shown(values).values()))
    for axis, (title, tile) in zip(axes, tiles.items(), strict=True):
        axis.imshow(tile)
        axis.set_title(title, fontsize=11)
        axis.axis("off")
    figure.savefig(ROOT / "docs" / "blender.jpg", pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
