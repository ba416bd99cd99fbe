"""Warnings of evaluate.py: another convention would fit the predictions, or the truth, better."""

from collections.abc import Sequence

from utils.evaluation.aggregation import ImageScore
from utils.evaluation.rules import Rules
from utils.evaluation.scoring import placement_fit
from utils.metrics.convention_check import (
    Finding,
    colour_findings,
    depth_findings,
    frame_of,
    normals_findings,
    true_frame_of,
)
from utils.metrics.placement_check import placement_findings


def convention_warnings(scores: Sequence[ImageScore], rules: Rules) -> list[str]:
    """One line for each finding: the transformation, how much it helps on how many images, and the flag for it."""
    evidence = [score.evidence for score in scores if score.evidence is not None]
    truth = [score.truth_evidence for score in scores if score.truth_evidence is not None]
    if rules.intrinsic.kind == "normals":
        if wrong := normals_findings(truth, rules.gt_frame):
            return [one.text("the ground truth's normals", _normals_fix(one, rules)) for one in wrong]
        found = on_their_images(normals_findings(evidence, rules.pred_frame), scores, rules)
        return [one.text("the predictions", _normals_fix(one, rules)) for one in found]
    if rules.intrinsic.kind == "depth":
        found = depth_findings(evidence, domain=rules.align, polarity=False)
        found = on_their_images(found, scores, rules)
        return [one.text("the predictions", _depth_fix(one)) for one in found]
    found = on_their_images(colour_findings(evidence), scores, rules)
    return [one.text("the predictions", _colour_fix(one, rules)) for one in found]


def on_their_images(found: list[Finding], scores: Sequence[ImageScore], rules: Rules) -> list[Finding]:
    """`found`, or that the predictions do not lie on their images where that explains them better."""
    return placement_findings([score.placed for score in scores], placement_fit(rules), found)


def _placement_fix(finding: Finding) -> str | None:
    fixes = {
        "placed": "predict the images as they are shown (EXIF orientation applied), and undo every flip of the input",
        "paired": "each has the name of another image: rename them",
    }
    return fixes.get(finding.key[0])


def _normals_fix(finding: Finding, rules: Rules) -> str:
    if fix := _placement_fix(finding):
        return fix
    pred = frame_of(finding)
    gt = true_frame_of(finding, rules.pred_frame, rules.gt_frame)
    flags = [f"--pred_frame {pred}"] if pred else []
    flags += [f"--gt_frame {gt} if it is the truth that has other axes"] if gt else []
    if flags:
        return "pass " + ", or ".join(flags)
    if finding.key[0] == "plain":
        return "no --pred_frame fits: re-export them with x right, y down, z forward, in RGB order"
    return "re-export them as unit vectors in .npy, or as 255 (n / 2 + 0.5) in .png"


def _depth_fix(finding: Finding) -> str:
    if fix := _placement_fix(finding):
        return fix
    domain = finding.key[-1]
    if domain in ("depth", "disparity"):
        return f"pass --align {domain}"
    return "re-export them linear in depth"


def _colour_fix(finding: Finding, rules: Rules) -> str:
    if fix := _placement_fix(finding):
        return fix
    if finding.key == ("255",):
        return "divide them by 255"
    if finding.key == ("normals",):
        return f"pass predictions of {rules.intrinsic.name}"
    curve, order = finding.key
    flags = []
    if curve == "encode":  # what was decoded is linear already
        flags += ["--pred_space linear"] if rules.pred_space == "srgb" else []
        flags += ["--gt_space srgb"] if rules.gt_space == "linear" else []
    elif curve == "decode":
        flags += ["--pred_space srgb"] if rules.pred_space == "linear" else []
        flags += ["--gt_space linear"] if rules.gt_space == "srgb" else []
    parts = [f"pass {' or '.join(flags)}, whichever is true of the files"] if flags else []
    parts += ["re-export them with the curve applied once"] if curve != "as is" and not flags else []
    parts += ["re-export them in RGB order (cv2.imwrite takes BGR)"] if order == "bgr" else []
    return "; ".join(parts)
