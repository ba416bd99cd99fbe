"""Does a teacher see what is there? It predicts one picture whose truth is known."""

import itertools
from collections.abc import Callable
from typing import Protocol

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.labels.encoding import encode
from utils.maps.conventions import convert_frame
from utils.maps.frames import FRAMES
from utils.metrics.normals import angular_error

CLEAR = 0.3  # correlation from which brightness says where near is
AXES = "xyz"


def check_normals(predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> dict:
    """Compare normals (H,W,3) with the truth under all eight flips of axes, both x right, y down, z forward.

    verdict: "agrees"; "flipped" if another flip at least halves the mean error, which then is below 45 degrees; else
    "unclear". flip: the axes to negate, such as "yz". degrees, degrees_flipped: mean errors without and with it.
    """
    predicted, truth = predicted[valid], truth[valid]
    errors = {}
    for signs in itertools.product((1, -1), repeat=3):
        flip = "".join(axis for axis, sign in zip(AXES, signs) if sign < 0)
        errors[flip] = float(np.nan_to_num(angular_error(predicted * np.array(signs), truth), nan=90.0).mean())
    best = min(errors, key=lambda flip: errors[flip])
    flipped = best != "" and errors[best] < 45 and 2 * errors[best] < errors[""]
    verdict = "flipped" if flipped else "agrees" if errors[""] < 45 else "unclear"
    found = {"verdict": verdict, "degrees": round(errors[""], 2)}
    return found | ({"flip": best, "degrees_flipped": round(errors[best], 2)} if flipped else {})


def check_depth(label: np.ndarray, depth: np.ndarray, valid: np.ndarray) -> dict:
    """Is near white? label (H,W,3) uint8, depth (H,W) in metres. verdict as in `check_normals`."""
    brightness = label[valid].mean(axis=1)
    rank = np.corrcoef(brightness, -depth[valid])[0, 1] if brightness.std() > 0 else 0.0
    verdict = "agrees" if rank > CLEAR else "flipped" if rank < -CLEAR else "unclear"
    return {"verdict": verdict, "correlation_with_nearness": round(float(rank), 3)}


class KnownScene(Protocol):
    """rgb (H,W,3) uint8; normal (H,W,3) unit, x right, y up, z toward the viewer; depth (H,W) metres; valid (H,W)."""

    rgb: np.ndarray
    normal: np.ndarray
    depth: np.ndarray
    valid: np.ndarray


def self_check(predict: Callable[[Image.Image], np.ndarray], quantity: str, frame: str, scene: KnownScene) -> dict:
    """Let the teacher predict `scene` and say what it makes of it; InputError if its axes or depths are inverted.

    predict(picture) -> values of `quantity`; frame: what its normals were converted from.
    """
    values, size = predict(Image.fromarray(scene.rgb)), scene.depth.shape
    if values.shape[:2] != size:
        raise InputError(f"the teacher predicts {values.shape[:2]} for a picture of {size}")
    if quantity == "normal":
        found = check_normals(values, convert_frame(scene.normal, "opengl"), scene.valid)
        if found["verdict"] == "flipped":
            signs = tuple((-1 if axis in found["flip"] else 1) * sign for axis, sign in zip(AXES, FRAMES[frame]))
            fits = next((name for name, each in FRAMES.items() if each == signs), None)
            cure = f"its axes are {fits}, not {frame}: pass --frame {fits}" if fits else "no --frame fits"
            raise InputError(
                f"self-check: on a rendered floor, wall and sphere the teacher's normals are {found['degrees']} "
                f"degrees off, and {found['degrees_flipped']} with {' and '.join(found['flip'])} flipped; {cure}"
            )
        return found
    if quantity in ("depth", "disparity"):
        found = check_depth(encode(quantity, values), scene.depth, scene.valid)
        if found["verdict"] == "flipped":
            other = "depth" if quantity == "disparity" else "disparity"
            raise InputError(
                "self-check: on a rendered floor, wall and sphere near comes out dark (correlation "
                f"{found['correlation_with_nearness']}); pass --predicts {other} if that is what it predicts"
            )
        return found
    return {"verdict": "not made: albedo and shading have no axes"}
