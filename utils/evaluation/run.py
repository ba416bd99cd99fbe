"""From folders of predictions and ground truth to the result file: find, score, add up."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils import __version__
from utils.errors import InputError, note
from utils.evaluation import report, scoring
from utils.evaluation.aggregation import ImageScore, make_rows, total_errors
from utils.evaluation.pairs import Pair, find_images, find_judgements, find_pairs
from utils.evaluation.scoring import GroundTruthError, NothingToScore, PredictionError, placement_fit
from utils.image_io import diode_names
from utils.intrinsics import INTRINSICS
from utils.kinds.base import OUTSIDE, Rules, shares
from utils.kinds.evidence import placement_findings
from utils.kinds.label_record import Use, check_record, loras_of
from utils.system.atomic import make_folder, replace

NOT_IN_RESULT = ("output", "report", "image_dir", "workers", "baseline")  # flags that change no score
PLACES = {  # key of a finding about where predictions lie -> what to do
    "placed": "predict the images as they are shown (EXIF orientation applied), and undo every flip of the input",
    "paired": "each has the name of another image: rename them",
}


def score_all(
    pairs: list[Pair], args: argparse.Namespace, rules: Rules, judgements: dict, constant: np.ndarray | None = None
) -> tuple[list[tuple[ImageScore, ImageScore | None]], list[dict]]:
    """([(score, eroded score or None)], [{name, reason}] left out). Raises one InputError that lists every bad file.

    constant: scored in place of every prediction. Threads suffice: reading and numpy both release the interpreter.
    """

    def attempt(pair: Pair) -> tuple[ImageScore, ImageScore | None] | Exception:
        try:
            return scoring.score_pair(pair, rules, args.erode, judgements.get(pair.name), constant)
        except (GroundTruthError, PredictionError, NothingToScore) as error:
            return error

    pool = ThreadPoolExecutor(args.workers)
    try:
        label = "score" if constant is None else "baseline"
        outcomes = list(zip(pairs, tqdm(pool.map(attempt, pairs), label, len(pairs), leave=False, disable=None)))
    finally:
        pool.shutdown(cancel_futures=True)
    failures = [(pair, outcome) for pair, outcome in outcomes if isinstance(outcome, Exception)]
    excused = (NothingToScore, PredictionError) if args.allow_missing else NothingToScore
    bad = [error for _, error in failures if not isinstance(error, excused)]
    if bad:
        cure = "; --allow_missing leaves out and counts those without a usable prediction"
        cure = cure if any(isinstance(error, PredictionError) for error in bad) else ""
        what = f"{len(bad)} of {len(pairs)} images cannot be scored, e.g. {bad[0]}"
        raise InputError(what + cure, [str(error) for error in bad])
    left_out = [
        {
            "name": pair.name,
            "kind": "prediction" if isinstance(error, PredictionError) else "nothing to score",
            "reason": str(error),
        }
        for pair, error in failures
    ]
    scores = [outcome for _, outcome in outcomes if not isinstance(outcome, Exception)]
    if not scores:
        raise InputError(f"none of {len(pairs)} images can be scored; {left_out[0]['name']}: {left_out[0]['reason']}")
    return scores, left_out


def constant_prediction(pairs: list[Pair], args: argparse.Namespace, rules: Rules) -> np.ndarray:
    """The mean of the ground truth over all valid pixels of `pairs`, a unit vector for normals.

    Depth gets a plain 1, and so do bare judgements: fitting scale and shift turns it into each image's mean depth.
    """
    if rules.kind.fits_constant or args.gt_dir is None:
        return np.array(1.0)
    with ThreadPoolExecutor(args.workers) as pool:
        sums, pixels = zip(*pool.map(lambda pair: scoring.truth_sum(pair, rules), pairs))
    try:
        mean = np.sum(np.array(sums), axis=0) / np.sum(pixels)
    except ValueError as error:
        raise InputError("--baseline mean: some ground truth is grey and some has colours") from error
    try:
        return rules.kind.constant(mean)
    except ValueError as error:
        raise InputError(f"--baseline mean: {error}") from None


def describe_settings(args: argparse.Namespace, rules: Rules, pairs: list[Pair], scores: list) -> dict:
    """Everything that gives the numbers their meaning."""
    masks = sum(pair.mask is not None for pair in pairs)
    inside = f"inside the mask for the {masks} of {len(pairs)} images that have one"
    rule = f"ground truth {rules.kind.known_rule}, and {inside}"
    settings = {
        "version": __version__,
        "pred_dir": str(args.pred_dir),
        "gt_dir": None if args.gt_dir is None else str(args.gt_dir),
        "mask_dir": None if args.mask_dir is None else str(args.mask_dir),
        "mask_rule": rule + rules.kind.protocol_rule(args.protocol),
        "resolution": dict(Counter(f"{s.shape[0]}x{s.shape[1]}" for s, _ in scores).most_common()),
        "bootstrap": {"resamples": args.bootstrap, "over": "images", "level": 0.95, "seed": args.seed},
        "erode": args.erode,
        "center_crop": args.center_crop,
        "allow_missing": args.allow_missing,
    }
    if args.gt_dir is None:
        settings["mask_rule"] = "comparisons with a verdict, a positive score and two opaque points"
    settings |= rules.kind.settings(rules)
    if args.whdr:
        settings |= {"whdr": str(args.whdr), "whdr_threshold": 0.10}
    return settings


def make_rules(args: argparse.Namespace) -> Rules:
    """The rules of scoring, with the defaults filled in."""
    diode = args.gt_dir is not None and diode_names.diode_root(args.gt_dir) is not None
    return Rules(
        intrinsic=INTRINSICS[args.task],
        protocol=args.protocol,
        pred_frame=args.pred_frame or "opencv",
        gt_frame=args.gt_frame or ("opengl" if diode else "opencv"),
        align=args.align or "depth",
        gt_depth_scale=args.gt_depth_scale,
        pred_space=args.pred_space or INTRINSICS[args.task].coding,
        gt_space=args.gt_space or INTRINSICS[args.task].coding,
        center_crop=args.center_crop,
    )


def check_records(args: argparse.Namespace, rules: Rules) -> list[str]:
    """Compare the records of predictions and truth with the flags; notes. InputError names the flag to pass."""
    notes = []
    for folder, role, frame, space in (
        (args.pred_dir, "pred", rules.pred_frame, rules.pred_space),
        (args.gt_dir, "gt", rules.gt_frame, rules.gt_space),
    ):
        cures = {
            "task": "pass --task {}, or another folder",
            "frame": f"pass --{role}_frame {{}}",
            "space": f"pass --{role}_space {{}}",
            "align": "pass --align {}",
            "coding": "evaluate.py scores predictions, whose coding inference undid",
            "polarity": "predict without --invert_depth",
        }
        if folder is not None:
            notes += check_record([folder], Use(rules.intrinsic, cures, frame, space, align=rules.align))
    return notes


def flags_of(args: argparse.Namespace, rules: Rules) -> dict[str, Any]:
    """The flags that a result depends on, with the defaults filled in: two runs with the same are one run repeated."""
    used = {name: value for name, value in vars(args).items() if name not in NOT_IN_RESULT}
    used |= {name: getattr(rules, name) for name in used if hasattr(rules, name)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in used.items()}


def refuse_other_results(args: argparse.Namespace, flags: dict[str, Any]) -> None:
    """InputError where --output or --report holds anything but an earlier result of the same flags; a note where it
    holds that. Before anything is scored.
    """
    places = [("--output", args.output)] + ([("--report", args.report / "index.html")] if args.report else [])
    for flag, path in places:
        if not path.is_file() or not path.stat().st_size:
            continue
        earlier = report.read_result(path)
        if earlier is None:
            raise InputError(f"{flag} {path}: is there and is no result of evaluate.py; name another {flag}")
        found = earlier.get("flags") or earlier | earlier["settings"] | {"bootstrap": args.bootstrap}  # older results
        other = [
            f"{key} {report.plain(found[key])}, now {report.plain(value)}"
            for key, value in flags.items()
            if key in found and found[key] != value
        ]
        if other:
            raise InputError(
                f"{flag} {path}: holds the result of another run ({'; '.join(other)}); remove it, or name another "
                f"{flag}"
            )
        metric, value = next(iter(earlier["metrics"].items()))
        known = "" if value is None else f", whose {metric} was {report.number(value)}"
        note(f"{path}: replaces the result of an earlier run with the same flags{known}")


def mixed_loras(pairs: list[Pair]) -> list[str]:
    """A warning where the predictions' headers name several LoRAs; [] where they name one or none."""
    images = {pair.prediction.with_suffix(".png") for pair in pairs if pair.prediction}
    found = loras_of(path for path in images if path.is_file())
    if len(found) < 2:
        return []
    each = ", ".join(f"{count} of {lora}" for (lora, _), count in found.most_common())
    return [f"the predictions were made with {len(found)} LoRAs ({each}): predict all of them with one"]


def evaluate(args: argparse.Namespace) -> dict:
    """The whole result, as it is written to --output; also writes the --report.

    Raises InputError where the files cannot be scored, or another run's result would be overwritten.
    """
    notes: list[str] = []
    rules = make_rules(args)
    flags = flags_of(args, rules)
    notes += check_records(args, rules)
    pairs = find_pairs(args, notes)
    refuse_other_results(args, flags)  # after the folders: of a mistyped one, "another run's result" would mislead
    judgements = find_judgements(args.whdr, pairs) if args.whdr else {}
    scores, left_out = score_all(pairs, args, rules, judgements)
    if left_out:
        reasons = Counter(entry["reason"] for entry in left_out if entry["kind"] == "nothing to score")
        reasons["no usable prediction"] = len(left_out) - reasons.total()
        parts = (f"{count} ({reason})" for reason, count in reasons.items() if count)
        notes.append(f"{len(left_out)} of {len(pairs)} images left out: {', '.join(parts)}")
    unknown = unknown_truth([plain for plain, _ in scores])
    if text := shares(unknown["reasons"], unknown["pixels"], "the truth's pixels"):
        notes.append(text)
    result = {
        "task": args.task,
        "protocol": args.protocol if args.gt_dir else "whdr",
        **dict.fromkeys(("images", "pixels", "metrics", "intervals")),
        "rows": rows_of(scores, args),
        "per_image": [describe_image(plain) for plain, _ in scores],
        "left_out": left_out,
        "unknown_truth": unknown,
        "warnings": warnings_of([plain for plain, _ in scores], rules)
        + unit_warnings([plain for plain, _ in scores], rules)
        + mask_warnings(pairs, [plain for plain, _ in scores])
        + mixed_loras(pairs),
        "notes": notes,
        "settings": describe_settings(args, rules, pairs, scores),
        "flags": flags,
    }
    result |= {key: result["rows"][0][key] for key in ("images", "pixels", "metrics", "intervals")}
    errors = {"prediction": total_errors([plain for plain, _ in scores])}
    kept = {plain.name for plain, _ in scores}
    pairs = [pair for pair in pairs if pair.name in kept]
    del scores  # the pool of angles goes before the baseline's comes
    if args.baseline:
        constant = constant_prediction(pairs, args, rules)
        scores, _ = score_all(pairs, args, rules, judgements, constant)
        errors["baseline"] = total_errors([plain for plain, _ in scores])
        result["baseline"] = {"constant": constant.tolist(), "rows": rows_of(scores, args)}
        result["baseline"] |= {key: result["baseline"]["rows"][0][key] for key in ("metrics", "intervals")}
    if args.report:
        headline = next(iter(rules.intrinsic.scores)) if args.gt_dir else "whdr"
        report.write(args.report, result, headline, errors, pairs, rules, find_images(pairs, args))
    return result


def rows_of(scores: list[tuple[ImageScore, ImageScore | None]], args: argparse.Namespace) -> list[dict]:
    return make_rows(scores, diode_names.SCENE_TYPES, args.protocol == "pooled", args.erode, args.bootstrap, args.seed)


def warnings_of(scores: list[ImageScore], rules: Rules, cure: str | None = None) -> list[str]:
    """Warnings that come before the numbers: wrong conventions, stretched predictions. cure: of the conventions, where
    evaluate.py's flags are not.
    """
    evidence = [score.evidence for score in scores if score.evidence is not None]
    truth = [score.truth_evidence for score in scores if score.truth_evidence is not None]
    if wrong := rules.kind.truth_findings(truth, rules):
        subject = f"the ground truth's {rules.intrinsic.kind}"
        warnings = [one.text(subject, cure or rules.kind.flags_for(one, rules)) for one in wrong]
    else:
        found = placement_findings(
            [score.placed for score in scores], placement_fit(rules), rules.kind.findings(evidence, rules)
        )
        warnings = [
            one.text("the predictions", PLACES.get(one.key[0]) or cure or rules.kind.flags_for(one, rules))
            for one in found
        ]
    distorted = [score.name for score in scores if score.distorted]
    if distorted:
        warnings.append(
            f"{len(distorted)} predictions do not have the proportions of their ground truth and were stretched, "
            f"{distorted[0]} for one: if they show the centre square, use --center_crop"
        )
    return warnings


def unknown_truth(scores: list[ImageScore]) -> dict:
    """Pixels of the scored images' ground truth, how many of them have no value, and why."""
    reasons: Counter[str] = Counter()
    for score in scores:
        reasons.update(score.unknown)
    pixels = sum(score.truth_pixels for score in scores)
    return {"pixels": pixels, "unknown": reasons.total(), "reasons": dict(reasons.most_common())}


def unit_warnings(scores: list[ImageScore], rules: Rules) -> list[str]:
    """Depth that is probably not in metres."""
    medians = [score.median_depth for score in scores if score.median_depth is not None]
    return rules.kind.truth_warnings(medians, rules.gt_depth_scale) if medians else []


def mask_warnings(pairs: list[Pair], scores: list[ImageScore]) -> list[str]:
    """Masks that exclude nothing in any image."""
    masked = {pair.name for pair in pairs if pair.mask is not None}
    found = [score for score in scores if score.name in masked]
    if not found or any(OUTSIDE in score.unknown for score in found):
        return []
    return [f"the masks of all {len(found)} images exclude no pixel: only 0 means invalid"]


def describe_image(score: ImageScore) -> dict:
    size = {"pixels": score.pixels, "height": score.shape[0], "width": score.shape[1]}
    scene = {"scene_type": score.scene_type} if score.scene_type else {}
    return {"name": score.name, **size, **scene, **score.metrics}


def finite(value: Any) -> Any:
    """`value` with null for every infinite or undefined number: JSON has no other word for them."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_result(result: dict, path: Path) -> None:
    """Write the result as JSON, atomically. Raises InputError where it cannot be written."""
    text = json.dumps(finite(result), indent=1, allow_nan=False) + "\n"
    make_folder(path.parent, "--output")
    try:
        replace(path, lambda part: part.write_text(text))
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error.strerror})") from None
