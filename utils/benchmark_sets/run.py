"""Rows times sets: predict, score, keep every image's score on the disk, add up."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils import __version__
from utils.benchmark_sets.records import place_of, read_record, write_record
from utils.benchmark_sets.rows import Predicted, Row, read_image
from utils.benchmark_sets.sets import SETS, BenchmarkSet, Item
from utils.errors import InputError, note, warn
from utils.evaluation import report
from utils.evaluation.aggregation import ImageScore, make_rows, total_errors
from utils.evaluation.pairs import Pair
from utils.evaluation.run import describe_image, finite, unit_warnings, unknown_truth, warnings_of
from utils.evaluation.scoring import (
    GroundTruthError,
    NothingToScore,
    PredictionError,
    Truth,
    prediction_of,
    require_truth,
    score_maps,
)
from utils.image_io.diode_names import SCENE_TYPES
from utils.kinds.base import Rules, shares
from utils.system.atomic import lock, make_folder, unlock, write_json

AHEAD = 2  # images that are read and scored meanwhile, besides one for each thread
RESAMPLES = 1000
RESULT, SETTINGS, IMAGES = "result.json", "settings.json", "images"


class Processes:
    """The processes of a launch: alone, or those of accelerate's state."""

    def __init__(self, state: Any = None):
        self.state = state
        self.number: int = state.process_index if state else 0
        self.count: int = state.num_processes if state else 1
        self.device = state.device if state else None

    def gather(self, found: list) -> list:
        """The lists of all processes, joined. Each waits here for the others."""
        if self.count == 1:
            return found
        from accelerate.utils import gather_object

        return gather_object(found)


def score_rows(
    rows: list[Row], found: Mapping[str, Sequence[Item]], args: argparse.Namespace, processes: Processes
) -> tuple[list[dict], list[dict[str, str]]]:
    """(results, what is refused and why). found: name of a set -> its images. Empties `rows`, so that the network of
    one is freed before the next one's is loaded. Results are the first process's.
    """
    make_folder(args.output_dir, "--output_dir")
    if processes.number == 0:
        lock(args.output_dir, "scoring")
    by_name = {one.name: one for one in SETS}
    incomplete = {name for name, items in found.items() if len(items) != by_name[name].count}
    results, refused = [], []
    try:
        while rows:
            row = rows.pop(0)
            for name, items in found.items():
                one = by_name[name]
                if row.task not in (None, one.intrinsic.name):
                    continue
                if reason := row.refusal(one, items):
                    warn(f"{row.label} on {name}: not scored, {reason}")
                    refused.append({"row": row.label, "set": name, "reason": reason})
                    continue
                if name in incomplete:  # once, and of the table's sets alone
                    incomplete.remove(name)
                    warn(f"{name}: {len(items):,} images are here, {one.count:,} are published")
                if result := score_set(row, one, items, args.output_dir, processes, args):
                    results.append(result)
    finally:
        unlock(args.output_dir)
    if processes.number == 0 and not results:
        reasons = "; ".join(f"{one['row']} on {one['set']}: {one['reason']}" for one in refused)
        raise InputError(
            f"--data: no set to score ({reasons or 'none of the intrinsics that the LoRAs predict'}); "
            "utils/benchmark_sets/README.md lists the sets, their files and the names of predictions"
        )
    return results, refused


def score_set(
    row: Row, one: BenchmarkSet, items: Sequence[Item], output: Path, processes: Processes, args: argparse.Namespace
) -> dict | None:
    """The result of a row on a set, as evaluate.py's with what the page needs; None but in the first process.

    items: all of the set. Raises InputError where an image cannot be read or scored, or `output` holds the results of
    other settings.
    """
    chosen = sample(items, args.limit)
    folder = output / row.folder / (one.name if len(chosen) == len(items) else f"{one.name}-{len(chosen)}-images")
    settings = {"set": one.name, "images": len(chosen), "of": len(items), "data": state_of(chosen), **row.identity}
    settings = {"version": __version__, **{key: settings[key] for key in settings if settings[key] is not None}}
    if processes.number == 0:
        keep_settings(folder, settings)
    processes.gather([])
    if (folder / RESULT).is_file():
        note(f"{row.label} on {one.name}: scored by an earlier run, {folder / RESULT}")
        processes.gather([])
        return json.loads((folder / RESULT).read_text()) if processes.number == 0 else None
    failed = score_images(row, one, chosen, folder / IMAGES, processes, args.workers)
    failed = processes.gather(failed)
    if bad := sorted(reason for _, reason, wrong in failed if wrong):
        raise InputError(f"{one.name}: {len(bad)} of {len(chosen)} images cannot be scored, e.g. {bad[0]}", bad)
    if processes.number:
        processes.gather([])
        return None
    left_out = [{"name": name, "kind": "nothing to score", "reason": reason} for name, reason, _ in sorted(failed)]
    result = add_up(row, one, items, chosen, folder, left_out, settings)
    write_json(folder / RESULT, finite(result))
    shutil.rmtree(folder / IMAGES)
    processes.gather([])
    return json.loads((folder / RESULT).read_text())  # as a later run reads it


def sample(items: Sequence[Item], limit: int | None) -> list[Item]:
    """`limit` images, evenly spaced; None: all."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def state_of(items: Sequence[Item]) -> str:
    """A digest that changes when files of a set do."""
    states = [file.state for item in items for file in (item.image, item.truth, *item.others.values())]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]


def keep_settings(folder: Path, settings: dict) -> None:
    """Write them into `folder`, or compare them with those that are there. InputError where they differ."""
    make_folder(folder / IMAGES, "--output_dir")
    path = folder / SETTINGS
    if path.is_file():
        try:
            known = json.loads(path.read_text())
        except ValueError:
            raise InputError(f"--output_dir: {path} is not this program's; name another folder") from None
        other = [key for key in settings | known if settings.get(key) != known.get(key)]
        if other:
            what = ", ".join(f"{key} {known.get(key)}, now {settings.get(key)}" for key in other)
            raise InputError(
                f"--output_dir: {folder} holds results of other settings or files ({what}); remove it, or name "
                "another --output_dir"
            )
        return
    write_json(path, settings)


def score_images(
    row: Row, one: BenchmarkSet, items: Sequence[Item], folder: Path, processes: Processes, workers: int
) -> list[tuple[str, str, bool]]:
    """Score this process's share of the images that have no record in `folder`: (image, reason, whether that is an
    error) of those that have no score.

    The main thread runs the network; others read images and truth, and score.
    """
    mine = [item for item in items[processes.number :: processes.count] if not place_of(folder, item.name).is_file()]
    failed: list[tuple[str, str, bool]] = []
    reading: deque[tuple[Item, Future]] = deque()
    scoring: deque[tuple[Item, Future]] = deque()
    waiting = deque(mine)
    rules = one.rules()

    def settle(item: Item, future: Future) -> Any:
        """The result of a thread; None where the image has no score, for which `failed` gets the reason."""
        try:
            return future.result()
        except NothingToScore as error:
            failed.append((item.name, str(error), False))
        except (GroundTruthError, PredictionError, InputError) as error:
            failed.append((item.name, str(error), True))
        return None

    label = f"{row.label}, {one.name}"
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(mine), desc=label, leave=False, disable=None) as bar:
        while waiting or reading:
            while waiting and len(reading) < max(row.batch, workers + AHEAD):
                item = waiting.popleft()
                reading.append((item, pool.submit(read_item, one, item, rules, row.looks)))
            batch = [reading.popleft() for _ in range(min(row.batch, len(reading)))]
            read = [(item, settle(item, future)) for item, future in batch]
            bar.update(sum(pair is None for _, pair in read))
            read = [(item, pair) for item, pair in read if pair is not None]
            found = row.begin(one, [item for item, _ in read], [image for _, (_, image) in read]) if read else []
            for (item, (truth, _)), finish in zip(read, found, strict=True):
                scoring.append((item, pool.submit(score_item, one, item, truth, finish, folder)))
            while scoring and (len(scoring) > workers + AHEAD or not (waiting or reading)):
                settle(*scoring.popleft())
                bar.update(1)
    return failed


def read_item(one: BenchmarkSet, item: Item, rules: Rules, looks: bool) -> tuple[Truth | None, np.ndarray | None]:
    """Truth and image. NothingToScore where no pixel is valid."""
    truth = one.load(item, rules)
    require_truth(truth)
    return truth, read_image(item, truth) if looks else None


def score_item(
    one: BenchmarkSet, item: Item, truth: Truth | None, finish: Callable[[], Predicted], folder: Path
) -> None:
    """Score one image and write its record."""
    predicted = finish()
    pred, distorted = prediction_of(predicted.values, predicted.path, predicted.rules, truth)
    judged = (item.truth.shown, item.truth.read) if one.judged else None
    pair = Pair(item.name, predicted.path, item.truth.path, None, item.scene_type)
    score, _ = score_maps(pair, truth, pred, distorted, predicted.rules, 0, judged)
    away = None if truth is None else predicted.rules.kind.facing_away(truth.gt[truth.valid])
    taken = {"pred_frame": predicted.rules.pred_frame, "pred_space": predicted.rules.pred_space}
    write_record(folder, score, {"away": away, **taken})


def add_up(
    row: Row,
    one: BenchmarkSet,
    items: Sequence[Item],
    chosen: Sequence[Item],
    folder: Path,
    left_out: list[dict],
    settings: dict,
) -> dict:
    """The result of a set from its records, with the figures of three images."""
    records = [record for item in chosen if (record := read_record(folder / IMAGES, item.name))]
    if not records:
        raise InputError(f"{one.name}: none of {len(chosen)} images can be scored; {left_out[0]['reason']}")
    scores, extras = [score for score, _ in records], [extra for _, extra in records]
    taken = Counter((extra["pred_frame"], extra["pred_space"]) for extra in extras)
    if len(taken) > 1:
        raise InputError(
            f"{one.name}: predictions under the names of several programs, of {' and '.join(map(str, taken))}; keep "
            "those of one, or pass --pred_frame and --pred_space"
        )
    (frame, space), align = next(iter(taken)), str(settings["align"])
    rules = one.rules(frame, align, space)
    kind, plain = rules.kind, [(score, None) for score in scores]
    rows = make_rows(plain, SCENE_TYPES, one.protocol == "pooled", 0, RESAMPLES, 0)
    unknown = unknown_truth(scores)
    notes = [f"{len(left_out)} of {len(chosen)} images left out ({left_out[0]['reason']})"] if left_out else []
    if text := shares(unknown["reasons"], unknown["pixels"], "the truth's pixels"):
        notes.append(text)
    rule = "opaque points, a verdict and a positive score" if one.judged else f"ground truth {kind.known_rule}"
    warnings = [*row.remarks(one), *set_warnings(one, items, scores, extras), *warnings_of(scores, rules, row.cure)]
    result: dict[str, Any] = {
        "row": row.label,
        "set": one.name,
        "task": one.intrinsic.name,
        "protocol": one.protocol,
        "published_images": one.count,
        "sample": len(chosen) < len(items),
        **{key: rows[0][key] for key in ("images", "pixels", "metrics", "intervals")},
        "rows": rows,
        "per_image": [describe_image(score) for score in scores],
        "left_out": left_out,
        "unknown_truth": unknown,
        "warnings": warnings + (unit_warnings(scores, rules) if one.metres is None else []),
        "notes": notes,
        "settings": settings
        | {
            "protocol of": f"{one.source}: {one.aggregation}",
            "mask_rule": rule + kind.protocol_rule(rules.protocol),
            "resolution": dict(Counter(f"{s.shape[0]}x{s.shape[1]}" for s in scores).most_common()),
            "bootstrap": {"resamples": RESAMPLES, "over": "images", "level": 0.95, "seed": 0},
            **kind.settings(rules),
        },
    }
    errors = total_errors(scores)
    of_name = {item.name: item for item in chosen}
    result["headline"] = "whdr" if one.judged else next(iter(one.intrinsic.scores))
    result["errors"] = None if errors is None else errors.tolist()
    draw = report.examples(result, result["headline"], lambda name: figures(row, one, of_name[name]))
    result["examples"] = list(draw)
    return result


def figures(row: Row, one: BenchmarkSet, item: Item) -> list[dict]:
    """One image, its prediction made or read once more, its truth and its errors."""
    truth = one.load(item, one.rules())
    image = read_image(item, truth)
    predicted = row.begin(one, [item], [image])[0]()
    pred, _ = prediction_of(predicted.values, predicted.path, predicted.rules, truth)
    fits = truth is not None and image.shape[:2] == truth.gt.shape[:2]
    return report.draw(truth, pred, predicted.rules, image if fits else None)


def set_warnings(
    one: BenchmarkSet, items: Sequence[Item], scores: Sequence[ImageScore], extras: Sequence[dict]
) -> list[str]:
    """Faults of a set's files, whatever was predicted: count, frame, units, share of valid pixels."""
    found = []
    if len(items) != one.count:
        found.append(f"{len(items):,} images are here, {one.count:,} are published: the scores are of another set")
    away = [extra["away"] for extra in extras if extra["away"] is not None]
    if away and np.mean(away) > 0.5:
        found.append(
            f"{100 * np.mean(away):.0f} % of the true normals face away from the camera: their axes are not "
            f"{one.frame}'s, in which {one.name} is published"
        )
    medians = [score.median_depth for score in scores if score.median_depth is not None]
    if medians and one.metres is not None and not one.metres[0] <= np.median(medians) <= one.metres[1]:
        low, high = one.metres
        found.append(
            f"the median of the true depth is {np.median(medians):.3g} m, of {one.name} it is between {low:g} and "
            f"{high:g} m: the files have another unit than {one.units or 1:g} per metre"
        )
    pixels = sum(score.truth_pixels for score in scores)
    share = sum(score.pixels for score in scores) / pixels if pixels else 1.0
    if share < one.share:
        found.append(
            f"{100 * share:.1f} % of the true pixels are valid, of {one.name} at least {100 * one.share:g} % should "
            "be: other units, other codes of unknown pixels, or a wrong mask"
        )
    return found
