"""A check of teachers: they predict one image whose truth is known."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from PIL import Image

from utils.errors import InputError, warn
from utils.kinds.alignment import CLEAR, depth_evidence, depth_findings
from utils.kinds.axes import convert_frame, frame_of, normals_evidence, normals_findings, taken_for, to_frame


def check_normals(predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray, frame: str = "opencv") -> dict:
    """Compare normals (H,W,3), in the axes of `frame`, with the truth, x right, y down, z forward, under every other
    convention (`utils.kinds.evidence`).

    verdict: "agrees"; "flipped" where flipped axes fit the truth, "another convention" where something else does;
    else "unclear". flip: the axes to negate, such as "yz"; change: the same, or what else, in words. degrees,
    degrees_flipped: mean errors without and with it.
    """
    evidence = normals_evidence(predicted, truth, valid)
    degrees = evidence.errors[taken_for(frame)]
    found: dict = {"verdict": "agrees" if degrees < 45 else "unclear", "degrees": round(degrees, 2)}
    for finding in normals_findings([evidence], frame):
        flipped = finding.change.startswith("flipping ")
        found |= {"verdict": "flipped" if flipped else "another convention", "change": finding.change}
        if flipped:
            found["flip"] = finding.change.removeprefix("flipping ").replace(" and ", "")
        if finding.after is not None:
            found["degrees_flipped"] = round(finding.after, 2)
        if fits := frame_of(finding):
            found["frame"] = fits
    return found


def check_depth(values: np.ndarray, depth: np.ndarray, valid: np.ndarray, domain: str = "depth") -> dict:
    """Is near large in `values` (H,W) or (H,W,3), and are they affine in `domain` of depth (H,W) in metres?

    verdict: as in `check_normals`. change: what else than `domain` they are affine in, where that is likely.
    """
    evidence = depth_evidence(values, depth, valid)
    near = evidence.nearness or 0.0
    found: dict = {"verdict": "agrees" if near > CLEAR else "flipped" if near < -CLEAR else "unclear"}
    found["correlation_with_nearness"] = round(near, 3)
    other = depth_findings([evidence], domain=domain, polarity=False)
    return found | ({"change": other[0].change} if other else {})


class KnownScene(Protocol):
    """rgb (H,W,3) uint8; normal (H,W,3) unit, x right, y up, z toward the viewer; depth (H,W) metres; valid (H,W)."""

    rgb: np.ndarray
    normal: np.ndarray
    depth: np.ndarray
    valid: np.ndarray


def self_check(predict: Callable[[Image.Image], np.ndarray], quantity: str, frame: str, scene: KnownScene) -> dict:
    """Let the teacher predict `scene` and compare; InputError if its axes, channels or depths have another convention.

    predict(image) -> values of `quantity`; frame: what its normals were converted from.
    """
    values, size = predict(Image.fromarray(scene.rgb)), scene.depth.shape
    if values.shape[:2] != size:
        raise InputError(f"the teacher predicts {values.shape[:2]} for an image of {size}")
    if quantity == "normal":
        found = check_normals(to_frame(values, frame), convert_frame(scene.normal, "opengl"), scene.valid, frame)
        if found["verdict"] not in ("agrees", "unclear"):
            fits = found.get("frame")
            cure = f"its axes are {fits}, not {frame}: pass --frame {fits}" if fits else "no --frame fits"
            better = f", and {found['degrees_flipped']} after {found['change']}" if "degrees_flipped" in found else ""
            what = f"{found['degrees']} degrees off{better}" if better else f"not normals: they {found['change']}"
            raise InputError(
                f"self-check: on a rendered floor, wall and sphere the teacher's normals are {what}; {cure}"
            )
        return found
    if quantity in ("depth", "disparity"):
        found = check_depth(values if quantity == "disparity" else -values, scene.depth, scene.valid, quantity)
        if found["verdict"] == "flipped":
            other = "depth" if quantity == "disparity" else "disparity"
            raise InputError(
                "self-check: on a rendered floor, wall and sphere near comes out dark (rank correlation "
                f"{found['correlation_with_nearness']}); pass --predicts {other} if that is what it predicts"
            )
        if "change" in found:
            warn(
                f"self-check: {found['change']} fits a rendered floor, wall and sphere much better: is the teacher's "
                f"{quantity} linear in {quantity}? (--predicts)"
            )
        return found
    return {"verdict": "not made: albedo and shading have no axes"}
