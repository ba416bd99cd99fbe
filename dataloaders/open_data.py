"""From the data flags to a training set and its validation samples: DIODE, a folder of your own, or a manifest; with
--mix, several of the first two.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from dataloaders.base import Maps, unknown_labels
from dataloaders.diode import Diode, validation_sets
from dataloaders.folder import open_folder
from dataloaders.label_check import check_labels
from dataloaders.listing import folder_samples, manifest_samples
from utils.errors import InputError
from utils.intrinsics import Intrinsic
from utils.kinds.label_record import check_record, training_use
from utils.training.args import Folder, folders_of
from utils.training.data import Mixed, Part


def open_data(args: argparse.Namespace, intrinsic: Intrinsic) -> tuple[Maps | Mixed, dict[str, list[dict]]]:
    """The training set, whose items have no truth, and split -> samples that are predicted at every validation. The
    splits of --mix are called train-<folder>, val-<folder>, ...

    args: the data flags of `utils.training.args.training_parser`. Pseudo labels are the targets; ground truth is read
    for validation only, and to check the convention of the labels. Raises InputError where files are missing, or where
    labels surely have another convention (unless --skip_label_check).
    """
    if args.dataset == "manifest":
        return open_one(args, intrinsic)
    folders = folders_of(args)
    if len(folders) == 1:
        return open_one(args, intrinsic, folders[0])
    parts: list[Part] = []
    splits: dict[str, list[dict]] = {}
    for folder in folders:
        try:
            train, validation = open_one(args, intrinsic, folder)
        except InputError as error:  # which folder's, where the message has no file
            named = str(folder.root) in str(error)
            raise error if named else InputError(f"{folder.root}: {error}", error.details) from None
        parts.append(Part(folder.name, train, folder.share))
        splits |= {f"{split}-{folder.name}": samples for split, samples in validation.items()}
    # the first split that was not trained on decides which checkpoint is the best one
    order = sorted(splits, key=lambda split: split.startswith("train-"))
    return Mixed(parts), {split: splits[split] for split in order}


def open_one(
    args: argparse.Namespace, intrinsic: Intrinsic, folder: Folder | None = None
) -> tuple[Maps, dict[str, list[dict]]]:
    """The same of one folder; None: of the manifest."""
    options: dict[str, Any] = {
        "resolution": args.resolution,
        "center_crop": args.center_crop,
        "num_images": args.num_train_imgs,
        "first": args.max_train_samples,
        "masked": args.masked_loss,
        "whole": args.crop == "none",
    }
    if args.gt_frame != "opencv" and not intrinsic.map_kind.has_axes:
        raise InputError(f"--gt_frame means nothing for {intrinsic.name}, only for normals; leave it out")
    if folder and folder.labels and args.dataset == "diode":
        train: Maps = Diode(
            intrinsic, folder.root, folder.labels, "train", tuple(args.scene_types.split(",")),
            seed=args.seed, list_from=args.list_from, skip_missing=args.skip_missing, **options,
        )  # fmt: skip
        validation = validation_sets(train)
    else:
        samples = folder_samples(folder.root, folder.labels) if folder else manifest_samples(Path(args.manifest))
        train, validation = open_folder(
            samples, intrinsic, args.val_fraction, args.seed, args.skip_missing, frame=args.gt_frame, **options
        )
    if not len(train):
        raise InputError(
            f"no training images under {folder.root if folder else args.manifest}: {'; '.join(train.notes)}"
        )
    folders = dict.fromkeys(os.path.dirname(train.label_path(stem)) for stem in train.stems)  # noqa: PTH120 (thousands)
    train.notes += check_record(map(Path, folders), training_use(intrinsic))
    if text := unknown_labels(train):
        train.notes.append(text)
    check_labels(train, args.skip_label_check)
    train.with_truth = False  # from here on its items are trained on
    return train, validation
