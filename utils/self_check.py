"""Does a teacher see what is there? It draws one rendered picture whose truth is known: floor, walls and a sphere."""

import itertools

import numpy as np
from PIL import Image

from miniworld.materials import Material
from miniworld.raycast import Rendering, trace
from miniworld.shapes import Box, Sphere
from miniworld.world import Camera, Light, Scene, Thing
from utils.errors import InputError
from utils.labels import encode
from utils.metrics import angular_error
from utils.protocols import FRAMES, convert_frame

SIZE = (480, 640)  # height, width
CLEAR = 0.3  # correlation from which brightness says where near is
AXES = "xyz"


def room_with_sphere() -> Rendering:
    """A plain room with a tiled floor, seen from its near end, and a sphere in the middle."""
    grey, brick, tile = (0.7, 0.7, 0.68), (0.55, 0.25, 0.2), (0.25, 0.22, 0.2)
    sphere = Thing("sphere", "red", ((Sphere((0.0, 0.7, -0.6), 0.7), Material((0.6, 0.1, 0.1), brick)),))
    scene = Scene(
        kind="room",
        setting="a room",
        enclosure=Box((0.0, 1.5, 0.0), (2.5, 1.5, 3.0)),
        wall=Material((0.6, 0.62, 0.7), grey, "striped", 0.5),
        floor=Material(tile, grey, "checked", 0.5),
        ceiling=Material(grey, grey),
        rim=np.inf,
        things=(sphere,),
        light=Light((1.2, 2.6, 1.0), (1.0, 1.0, 0.9), (0.15,) * 3, (0.05,) * 3, reach=2.5),
        camera=Camera((0.3, 1.5, 2.7), 0.08, -0.12, np.radians(65)),
    )
    return trace(scene, *SIZE)


def check_normals(drawn: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> dict:
    """Compare normals (H,W,3) with the truth under all eight flips of axes, both x right, y down, z forward.

    verdict: "agrees"; "flipped" if another flip at least halves the mean error, which then is below 45 degrees; else
    "unclear". flip: the axes to negate, such as "yz". degrees, degrees_flipped: mean errors without and with it.
    """
    drawn, truth = drawn[valid], truth[valid]
    errors = {}
    for signs in itertools.product((1, -1), repeat=3):
        flip = "".join(axis for axis, sign in zip(AXES, signs) if sign < 0)
        errors[flip] = float(np.nan_to_num(angular_error(drawn * np.array(signs), truth), nan=90.0).mean())
    best = min(errors, key=errors.get)
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


def self_check(predict, quantity: str, frame: str) -> dict:
    """Let the teacher draw the test scene and say what it makes of it; InputError if its axes or depths are inverted.

    predict(picture) -> values of `quantity`; frame: what its normals were converted from.
    """
    scene = room_with_sphere()
    values = predict(Image.fromarray(scene.rgb))
    if values.shape[:2] != SIZE:
        raise InputError(f"the teacher draws {values.shape[:2]} for a picture of {SIZE}")
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
