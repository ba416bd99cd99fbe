"""From the data flags to a training set and its validation samples: DIODE, a folder of your own, or a manifest."""

import argparse
import os
from pathlib import Path

from dataloaders.base import Maps, unknown_labels
from dataloaders.diode import Diode, validation_sets
from dataloaders.folder import open_folder
from dataloaders.label_check import check_labels
from dataloaders.listing import folder_samples, manifest_samples
from utils.errors import InputError
from utils.intrinsics import Intrinsic
from utils.kinds.label_record import check_record, training_use


def open_data(args: argparse.Namespace, intrinsic: Intrinsic) -> tuple[Maps, dict[str, list[dict]]]:
    """The training set, whose items have no truth, and split -> samples that are predicted at every validation.

    args: the data flags of `utils.training.args.training_parser`. Pseudo labels are the targets; ground truth is read
    for validation only, and to check the convention of the labels. Raises InputError where files are missing, or where
    labels surely have another convention (unless --skip_label_check).
    """
    options = {
        "resolution": args.resolution,
        "center_crop": args.center_crop,
        "num_images": args.num_train_imgs,
        "first": args.max_train_samples,
        "masked": args.masked_loss,
        "whole": args.crop == "none",
    }
    if args.gt_frame != "opencv" and not intrinsic.map_kind.has_axes:
        raise InputError(f"--gt_frame means nothing for {intrinsic.name}, only for normals; leave it out")
    if args.dataset == "diode":
        train: Maps = Diode(
            intrinsic, args.train_data_dir, args.pseudo_root, "train", tuple(args.scene_types.split(",")),
            seed=args.seed, list_from=args.list_from, skip_missing=args.skip_missing, **options,
        )  # fmt: skip
        validation = validation_sets(train)
    else:
        if args.dataset == "folder":
            samples = folder_samples(Path(args.train_data_dir), args.pseudo_root and Path(args.pseudo_root))
        else:
            samples = manifest_samples(Path(args.manifest))
        train, validation = open_folder(
            samples, intrinsic, args.val_fraction, args.seed, args.skip_missing, frame=args.gt_frame, **options
        )
    if not len(train):
        raise InputError(f"no training images under {args.train_data_dir or args.manifest}: {'; '.join(train.notes)}")
    folders = dict.fromkeys(os.path.dirname(train.label_path(stem)) for stem in train.stems)  # noqa: PTH120 (thousands)
    train.notes += check_record(map(Path, folders), training_use(intrinsic))
    if text := unknown_labels(train):
        train.notes.append(text)
    check_labels(train, args.skip_label_check)
    train.with_truth = False  # from here on its items are trained on
    return train, validation
