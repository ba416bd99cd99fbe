"""A row of the table: the predictions of one LoRA, made here, or of one folder, made elsewhere."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from utils.benchmark_sets.given import Named, find_given, pair_given, read_given
from utils.benchmark_sets.sets import BenchmarkSet, Item, numbers
from utils.cli import read_recipe
from utils.errors import InputError, note
from utils.evaluation.scoring import Truth
from utils.image_io.colour_space import to_srgb
from utils.image_io.images import read_rgb
from utils.image_io.opening import once
from utils.image_io.rgb import upright_rgb
from utils.kinds.base import Rules

if TYPE_CHECKING:
    from utils.inference.job import Job
    from utils.inference.predictor import Predictor

RECIPE = "recipe.txt"  # a training's, next to its LoRA


class Predicted(NamedTuple):
    """Values as `MapKind.read_prediction` gives them, the file or image that messages name, and how to score them."""

    values: np.ndarray
    path: Path
    rules: Rules


class Row(Protocol):
    """label: in tables. task: of its predictions, None: any. folder: where its results are kept. identity: everything
    of it that changes a score. cure: of conventions that do not fit. batch: images that are predicted together.
    looks: whether it needs the images.
    """

    label: str
    folder: str
    identity: dict[str, Any]
    batch: int
    looks: bool
    task: str | None
    cure: str

    def refusal(self, one: BenchmarkSet, items: Sequence[Item]) -> str | None:
        """Why it has no score on a set; None where it has one."""

    def remarks(self, one: BenchmarkSet) -> list[str]:
        """Warnings about its score on a set."""

    def begin(self, one: BenchmarkSet, items: Sequence[Item], images: Sequence[Any]) -> list[Callable[[], Predicted]]:
        """Predict; what is returned finishes each image, in any thread."""


class LoraRow:
    """One LoRA. wanted: `Predictor`'s keywords."""

    looks, cure = True, "the files of the set are not the published ones, or those of the LoRA's training were wrong"

    def __init__(self, lora: str, job: Job, wanted: dict[str, Any], align: str):
        facts = job.facts
        self.job, self.wanted, self.align, self.batch = job, wanted, align, wanted["batch_size"]
        self.label, digest = facts["lora"], facts["lora_sha256"]
        self.folder = f"{_slug(self.label)}-{job.intrinsic.name}-{digest[:8]}"
        flags = {key: value for key, value in wanted.items() if key not in ("device", "batch_size", "lora")}
        self.identity = {"lora": self.label, "lora_sha256": digest, "base": facts["base"], "prompt": facts["prompt"]}
        self.identity |= {key: value for key, value in flags.items() if value is not None} | {"align": align}
        self.lora, self.task = lora, job.intrinsic.name

    @cached_property
    def predictor(self) -> Predictor:
        """Loaded when the first image needs it."""
        from utils.inference.predictor import Predictor

        return Predictor(self.lora, task=self.job.intrinsic.name, **self.wanted)

    def refusal(self, one: BenchmarkSet, items: Sequence[Item]) -> str | None:
        for stated, split in self._trained_on(one):
            if split != "train":
                return f"its header has trained_on={stated!r}: it has seen these images"
        if seen := seen_images(Path(self.job.lora.path).with_name(RECIPE), items):
            return f"its {RECIPE} names {seen} of these images as its training data: it has seen them"
        return None

    def remarks(self, one: BenchmarkSet) -> list[str]:
        found = [stated for stated, split in self._trained_on(one) if split == "train"]
        return [f"its header has trained_on={stated!r}: this is not a zero-shot score" for stated in found]

    def _trained_on(self, one: BenchmarkSet) -> list[tuple[str, str]]:
        """Statements in the LoRA's header on the set's family of images, each with its split."""
        stated = [text.strip() for text in self.job.lora.metadata.get("trained_on", "").split(",")]
        return [(text, text.partition(" ")[2]) for text in stated if text.partition(" ")[0] == one.family]

    def begin(self, one: BenchmarkSet, items: Sequence[Item], images: Sequence[Any]) -> list[Callable[[], Predicted]]:
        rules, task = one.rules(align=self.align), one.intrinsic.name
        prepared = [self.predictor.prepare(Image.fromarray(image)) for image in images]
        found = self.predictor.begin(prepared, [item.name for item in items])
        return [
            partial(lambda finish, item: Predicted(finish().values, Path(item.name), rules), maps[task], item)
            for maps, item in zip(found, items, strict=True)
        ]


class FolderRow:
    """One folder of other people's predictions. args: its conventions, where the flags state them."""

    looks, batch, task = False, 1, None
    cure = (
        "pass the predictions' own --pred_frame or --pred_space, or --align; or the set's files are not as published"
    )

    def __init__(self, folder: Path, args: argparse.Namespace):
        self.label, self.args = "/".join(folder.absolute().parts[-2:]), args
        self.folder = f"{_slug(self.label)}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"
        self.given = find_given(folder)
        self.paired: dict[str, dict[str, Named]] = {}
        self.families: dict[Path, str] = {}
        self.identity = {"pred_dir": self.label, "align": args.align}
        self.identity |= {"pred_frame": args.pred_frame, "pred_space": args.pred_space}

    def refusal(self, one: BenchmarkSet, items: Sequence[Item]) -> str | None:
        found = self.paired[one.name] = pair_given(one, items, self.given)
        missing = [item.name for item in items if item.name not in found]
        if missing and found:
            raise InputError(
                f"--pred_dir: {len(missing)} of {len(items)} images of {one.name} have no prediction, e.g. "
                f"{missing[0]}; add them, or leave the set out with --sets",
                missing,
            )
        for named in found.values():
            if (other := self.families.setdefault(named.path, one.family)) != one.family:
                raise InputError(
                    f"--pred_dir: by its name {named.path} could be a prediction of {other} and of {one.family}; pass "
                    f"--sets, or put the predictions of each into a folder of its name"
                )
        states = ((name, named.path.stat()) for name, named in sorted(found.items()))
        text = repr([(name, state.st_size, state.st_mtime_ns) for name, state in states])
        self.identity["predictions"] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return None if found else "no predictions of it"

    def remarks(self, one: BenchmarkSet) -> list[str]:
        return []

    def begin(self, one: BenchmarkSet, items: Sequence[Item], images: Sequence[Any]) -> list[Callable[[], Predicted]]:
        return [partial(self._read, one, self.paired[one.name][item.name]) for item in items]

    def _read(self, one: BenchmarkSet, named: Named) -> Predicted:
        values, frame, space = read_given(one, named, self.args.pred_frame, self.args.pred_space)
        return Predicted(values, named.path, one.rules(frame, self.args.align, space))


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)


def read_image(item: Item, truth: Truth | None) -> np.ndarray:
    """RGB, uint8 (H, W, 3): the part of an image that is scored, where that is fixed (KITTI's crop)."""
    file = item.image
    if file.name.endswith(".exr"):  # linear light
        rgb = np.rint(255 * to_srgb(numbers(file).array.clip(0, 1).astype(np.float64))).astype(np.uint8)
    elif file.start is None:
        rgb = np.asarray(read_rgb(file.path))
    else:
        rgb = np.asarray(upright_rgb(_opened(file.read(), file.shown), str(file.shown)))
    return rgb if truth is None or rgb.shape[:2] != truth.full else np.ascontiguousarray(rgb[truth.window])


def _opened(content: bytes, path: Path) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content))
    except OSError as error:
        raise InputError(f"{path}: not an image ({error}); copy the archive again") from None


def seen_images(recipe: Path, items: Sequence[Item]) -> int:
    """How many images of a set are in the folder that a training's recipe names, as files or links to them.

    Folders called val or test are not trained on. Relative paths count from the current folder; a note where they name
    nothing there.
    """
    if not recipe.is_file():
        return 0
    words = dict(word.partition("=")[::2] for word in read_recipe(recipe)[0])
    folders = [Path(name) for name in words.get("--train_data_dir", "").split(",") if name]
    trained = set()
    for folder in folders:
        if not folder.is_dir():
            once(
                note, str(recipe), f"{recipe}: {folder} is not here, so whether it holds images of the sets is unknown"
            )
        for place, below, names in os.walk(folder / "images" if (folder / "images").is_dir() else folder):
            below[:] = [name for name in below if name not in ("val", "test")]
            trained |= {_identity(Path(place, name)) for name in names}
    return sum(_identity(item.image.path) in trained for item in items)


def _identity(path: Path) -> tuple[int, int]:
    """The same of a file and of any link to it."""
    state = path.stat()
    return state.st_dev, state.st_ino
