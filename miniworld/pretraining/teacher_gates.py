"""What the teacher's folder makes of scenes that its training has not seen, as `pseudo_label.py` would use it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from miniworld.pretraining.gates import UNSEEN, Gate
from miniworld.scenes import KINDS, render
from utils.kinds.alignment import depth_metrics
from utils.kinds.axes import convert_frame
from utils.kinds.normals import angular_error
from utils.labels.teachers import load_teacher

SCENES = 100
DEGREES, ABS_REL = 8.0, 0.05  # asked


def teacher_gates(folder: Path, seed: int, size: int = 64) -> list[Gate]:
    """Mean angle of normals, and AbsRel of depth after scale and shift, means over SCENES pictures."""
    ask = {
        task: load_teacher(task, str(folder), None, torch.device("cpu"), torch.float32).predict
        for task in ("normal", "depth")
    }
    angles, errors, kinds = [], [], list(KINDS)
    for index in range(SCENES):
        scene = render(np.random.SeedSequence([seed + UNSEEN, index]), kinds[index % 2], size, size)
        picture, valid = Image.fromarray(scene.rgb), scene.depth > 0
        truth = convert_frame(scene.normal, "opengl")[valid]
        angles.append(angular_error(ask["normal"](picture, [])[valid], truth).mean())
        nearness = -ask["depth"](picture, [])
        errors.append(depth_metrics(nearness, scene.depth, valid, "depth", 1e-3, np.inf)["abs_rel"])
    angle, error = float(np.mean(angles)), float(np.mean(errors))
    return [
        Gate("normals, mean angle", f"{angle:.1f} degrees", f"below {DEGREES:g}", angle < DEGREES),
        Gate("depth, AbsRel after scale and shift", f"{error:.3f}", f"below {ABS_REL:g}", error < ABS_REL),
    ]
