"""The loop that labels images: divided among processes, resumed where it stopped, recorded in provenance.json."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from utils.errors import InputError, list_failed, note
from utils.kinds.label_record import PROVENANCE
from utils.labels.encoding import DEPTHS, OUT_OF_RANGE, check_levels, encode, finish, record, scene_pixels, write_label
from utils.system.processes import check_shared

FAR = "they do not decide near and far, and are as far, or near, as the scene is"
BECOME = {"depth": FAR, "disparity": FAR, "normal": "they face the viewer"}


def label_all(
    pictures: dict[str, Path],
    predict: Callable[[str], tuple[np.ndarray, np.ndarray | None]],
    quantity: str,
    described: dict,
    state: PartialState,
    output_dir: Path,
    with_npy: bool,
    overwrite: bool,
    depth_coding: str = "linear",
) -> None:
    """Label every image that has no label yet; exit with status 1 if any process failed on one.

    pictures: name -> file. predict: name -> values of `quantity` and where measured (`utils.labels.encoding.encode`).
    depth_coding: of depth and disparity. described: what provenance.json keeps, and what a later run into the same
    folder must share.
    """
    left_out: dict[str, float] = {}
    if state.is_main_process:
        left_out |= record(output_dir, described, overwrite)
    state.wait_for_everyone()
    check_shared(output_dir)
    done, there, failed = 0, 0, []
    mine = list(pictures)[state.process_index :: state.num_processes]
    endings = (".npy", ".png") if with_npy else (".png",)
    for name in tqdm(mine, desc=f"labelling {described['task']}", disable=not state.is_local_main_process):
        target = output_dir / name
        if not overwrite and all(os.path.isfile(f"{target}{ending}") for ending in endings):
            there += 1
            continue
        try:
            values, measured = predict(name)
            label = encode(quantity, values, measured, depth_coding)
            if quantity in DEPTHS:
                check_levels(label)
            if measured is None and not (scene := scene_pixels(quantity, values)).all():
                left_out[name] = round(1 - scene.mean(), 4)
            write_label(target, label, values if with_npy else None)
            done += 1
        except InputError as error:
            failed.append(str(error) if str(pictures[name]) in str(error) else f"{pictures[name]}: {error}")
    done, there, failed = sum(gather_object([done])), sum(gather_object([there])), gather_object(failed)
    left_out = dict(sorted(entry for found in gather_object([left_out]) for entry in found.items()))
    if state.is_main_process:
        counts = {"pictures": len(pictures), "labelled in the last run": done, "there before": there}
        finish(output_dir, described, {**counts, "failed": len(failed), "complete": not failed}, left_out)
    if left_out and state.is_main_process:
        note(
            f"{len(left_out)} images have pixels whose {described['task']} is unknown or clamped, as a sky's, up to "
            f"{max(left_out.values()):.0%} of one ({OUT_OF_RANGE} in {PROVENANCE}): {BECOME[quantity]}"
        )
    note(f"{output_dir}: {done} labelled, {there} were there, {len(failed)} failed")
    if list_failed("images have no label", failed):
        sys.exit(1)
