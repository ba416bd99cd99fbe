"""One camera's raw passes as image, labels, ground truth and masks of all tasks."""

from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.image_io.colour_space import to_srgb
from utils.image_io.files import save_png
from utils.intrinsics import INTRINSICS
from utils.labels.encoding import SKY_NORMAL, encode, fill
from utils.system.atomic import make_folder, save_npy

TASKS = tuple(INTRINSICS)


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
