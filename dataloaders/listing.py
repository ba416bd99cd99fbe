"""Lists your own images and labels: of a folder, or of a manifest with one JSON object a line.

    <root>/images/<any folders>/<stem>.<png, jpg, ...>        <root>/labels/<same folders>/<stem>.png
    <root>/gt/<same>/<stem>.npy, .exr or .png (optional)      <root>/masks/<same>/<stem>.npy or .png (optional)

    {"image": "a/1.jpg", "label": "b/1.png", "gt": "c/1.npy", "mask": "d/1.png", "split": "val", "name": "1"}

In a manifest only image and label are needed; paths are relative to the manifest. Names that Unicode writes in two
ways (é as one character, or as e and an accent, as macOS does) count as the same, in a manifest and between folders.
"""

import codecs
import contextlib
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError, note, warn
from utils.image_io.files import (
    MAPS,
    MASK_ENDINGS,
    PICTURES,
    SIXTEEN,
    masks_next_to,
    skipped_line,
    stem_of_mask,
    the_mask,
)
from utils.paths import check_own_folders

SPLITS = ("train", "val")
UNUSUAL = re.compile(r"(?:^|/)\.?(?:/|$)" if os.sep == "/" else "")  # what `Path` does not leave as it is
KEYS = {"image", "label", "gt", "mask", "split", "name"}


class Sample(NamedTuple):
    """The files of one image, as text: a million pairs of `Path` take 0.4 GB more. split: train, val, or None where
    --val_fraction decides.
    """

    stem: str
    rgb: str
    label: str
    gt: str | None = None
    mask: str | None = None
    split: str | None = None


def folder_samples(root: Path, label_root: Path | None = None) -> list[Sample]:
    """The samples below `root`, by relative path without ending; labels from `label_root` if it is not root/labels.

    Where images/ holds both train/ and val/, these are the splits. Raises InputError for missing folders and for two
    files of one name; a sample without label gets the path that its label should have.
    """
    roots = {"rgb": root / "images", "label": label_root or root / "labels", "gt": root / "gt", "mask": root / "masks"}
    check_own_folders(root, label_root)
    files = {"rgb": _by_stem(roots["rgb"], PICTURES)}
    others = Counter(path.suffix.lower() for path in roots["rgb"].rglob("[!.]*") if path.is_file())
    passed = skipped_line({ending: count for ending, count in others.items() if ending not in PICTURES})
    if not files["rgb"]:
        why = f"; {passed}" if passed else ""
        raise InputError(f"{roots['rgb']}: no images ({', '.join(PICTURES)}) in it{why}")
    if passed:
        note(f"{roots['rgb']}: {passed}")
    files["label"] = _by_stem(roots["label"], PICTURES)
    for role, endings in (("gt", MAPS), ("mask", MASK_ENDINGS)):
        files[role] = _by_stem(roots[role], endings, files["rgb"].keys())
    for role in ("label", "gt", "mask"):
        _refuse_other_capitals(files["rgb"], files[role])
    tops = {stem.split("/")[0] for stem in files["rgb"] if "/" in stem}
    by_folder = tops >= set(SPLITS)
    strays = sorted(stem for stem in files["rgb"] if by_folder and stem.split("/")[0] not in SPLITS)
    if strays:
        raise InputError(
            f"{roots['rgb'] / strays[0]}: images/ has train/ and val/, so every image must be in one of them"
        )
    samples = [
        Sample(
            _stem(path, roots["rgb"]), str(path), str(files["label"].get(stem, roots["label"] / f"{stem}.png")),
            _text(files["gt"].get(stem)),
            _text(_mask_of(stem, files["gt"].get(stem), files["mask"].get(stem), roots["gt"])),
            stem.split("/")[0] if by_folder else None,
        )
        for stem, path in files["rgb"].items()
    ]  # fmt: skip
    _refuse_copies(samples)
    return samples


def manifest_samples(path: Path) -> list[Sample]:
    """The samples that the manifest lists. InputError names the line that is wrong."""
    find = _Finder(path.parent)
    samples: dict[str, Sample] = {}
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            sample = _parse(find, line, f"{path}:{number}")
            if sample.stem in samples:
                raise InputError(f'{path}:{number}: a second sample called {sample.stem}; give each a "name"')
            samples[sample.stem] = sample
    if not samples:
        raise InputError(f"{path}: lists no sample")
    if len({sample.split is None for sample in samples.values()}) > 1:
        raise InputError(f"{path}: some lines have a split and some have none; give it to all or to none")
    _refuse_copies(list(samples.values()))
    return list(samples.values())


def _refuse_copies(samples: list[Sample]) -> None:
    """InputError where an image is given as its own label."""
    if same := [sample for sample in samples if sample.rgb == sample.label and os.path.isfile(sample.rgb)]:
        raise InputError(
            f"{same[0].rgb}: is both image and label ({len(same)} of {len(samples)} samples are like that, the first "
            f"is {same[0].stem}); pass the labels' own files or folder"
        )


def split_samples(samples: list[Sample], fraction: float, seed: int) -> dict[str, list[Sample]]:
    """ "train", "val" -> samples: as they say themselves, or `fraction` of them, at least 1, drawn by `seed` as val.

    Who is drawn depends on names: a sample added later changes the split of few others.
    """
    if samples and samples[0].split is not None:
        return {split: [sample for sample in samples if sample.split == split] for split in SPLITS}
    drawn = sorted(samples, key=lambda sample: hashlib.sha256(f"{seed}/{sample.stem}".encode()).digest())
    count = max(1, round(fraction * len(drawn))) if fraction and len(drawn) > 1 else 0
    return {"val": drawn[:count], "train": drawn[count:]}


def complete(samples: list[Sample], skip_missing: bool, notes: list[str]) -> list[Sample]:
    """The samples whose files are all there. InputError with their number and three names unless `skip_missing`."""
    lost = {
        sample.stem: path
        for sample in samples
        for path in (sample.rgb, sample.label, sample.gt, sample.mask)
        if path is not None and not os.path.isfile(path)
    }
    if lost and (not skip_missing or len(lost) == len(samples)):
        names = ", ".join(list(lost.values())[:3])
        raise InputError(f"{len(lost)} of {len(samples)} samples lack a file, e.g. {names}; --skip_missing leaves out")
    if lost:
        notes.append(f"left out {len(lost)} of {len(samples)} samples that lack a file (--skip_missing)")
    return [sample for sample in samples if sample.stem not in lost]


def with_mask(samples: list[Sample], skip_missing: bool, notes: list[str]) -> list[Sample]:
    """The samples with a mask or ground truth. InputError with three names of the others unless `skip_missing`."""
    known = [sample for sample in samples if sample.mask is not None or sample.gt is not None]
    lost = [sample.rgb for sample in samples if sample.mask is None and sample.gt is None]
    if samples and not known:
        raise InputError(
            "--masked_loss: no sample has a mask (masks/<same name>.png) or ground truth; leave the flag out"
        )
    if lost and not skip_missing:
        raise InputError(
            f"--masked_loss: {len(lost)} of {len(samples)} samples have neither mask nor ground truth, e.g. "
            f"{', '.join(lost[:3])}; give them one (all white: every pixel counts), or --skip_missing leaves them out"
        )
    if lost:
        notes.append(f"left out {len(lost)} of {len(samples)} samples with neither mask nor truth (--skip_missing)")
    return known


def _by_stem(root: Path, endings: tuple[str, ...], images: Collection[str] = ()) -> dict[str, Path]:
    """Relative path without ending, as `one_name` -> file, sorted; nothing where there is no such folder.

    images: the stems of the images, of which these files are maps or masks: then a stem that is not one of them loses
    `_16bit` and the tails of masks, masks among maps are left to `_mask_of`, and a warning counts those whose names
    begin like an image's and belong to none.
    """
    found: dict[str, Path] = {}
    strays: list[Path] = []
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in endings and not path.name.startswith("."):
            stem = one_name(_stem(path, root))
            if images and stem not in images:
                bare = stem.removesuffix(SIXTEEN)
                if (masked := stem_of_mask(stem)) in images:
                    if endings == MAPS:
                        continue
                    bare = str(masked)
                if bare not in images and any(bare[:end] in images for end, sign in enumerate(bare) if sign == "_"):
                    strays.append(path)
                stem = bare
            if stem in found:
                raise InputError(f"{found[stem]} and {path} have one name: remove or rename one of them")
            found[stem] = path
    if strays:
        warn(f"{root}: {len(strays)} files belong to no image and are not read, e.g. {strays[0].name}")
    return found


def _stem(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _refuse_other_capitals(images: dict[str, Path], others: dict[str, Path]) -> None:
    """InputError for a file that would belong to an image if capitals did not count: it would be ignored."""
    wanted = {name.casefold(): path for name, path in images.items() if name not in others}
    for name, path in others.items():
        if name not in images and (image := wanted.get(name.casefold())):
            raise InputError(
                f"{path} and {image} differ in capitals, and belong together only if they do not: rename one"
            )


def one_name(name: str) -> str:
    """The name with its accents composed (NFC): the same name, whichever system has written it."""
    return unicodedata.normalize("NFC", name)


def _lines(path: Path) -> Iterator[str]:
    """The manifest's lines: UTF-8, with or without a byte-order mark; any ends of lines."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"--manifest {path}: cannot be read ({error})") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path}:1: UTF-16 text, as its byte-order mark says; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{number}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    del content
    start = 0
    for end in re.finditer("\r\n|\n|\r", text):  # splitlines would cut names at other characters, such as U+2028
        yield text[start : end.start()]
        start = end.end()
    yield text[start:]


class _Finder:
    """From a path in a manifest to the file that it means, if that is unambiguous."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._prefix = str(folder / "x")[:-1]
        self._names: dict[Path, dict[str, list[str]]] = {}

    def __call__(self, text: str, where: str) -> str:
        """The path of the file; if it does not exist, as written. Raises InputError, with `where` and the problem:

        a Windows drive, surrounding spaces, or a name that is there in other capitals. Backslashes are read as
        slashes, and Unicode's two ways to write an accent as the same, where the name as written is not there.
        """
        written = self.written(text)
        if os.path.lexists(written) or "\0" in text:
            return written
        if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]|\\\\", text):
            raise InputError(
                f"{where}: {text} is a path of another computer (Windows); write it relative to the manifest"
            )
        found = self._there(Path(text.replace("\\", "/")))
        if found is not None:
            return str(found)
        if text != text.strip() and self._there(Path(text.strip().replace("\\", "/"))) is not None:
            raise InputError(f"{where}: {text!r} begins or ends with spaces, and no file does; remove them")
        other = self._there(Path(text.replace("\\", "/")), str.casefold)
        if other is not None:
            raise InputError(
                f"{where}: {text} is not there, but {other.relative_to(self.folder)} is: capitals count; write it so"
            )
        return written

    def written(self, text: str) -> str:
        """str(folder / text), which for an ordinary path is cheap."""
        return str(self.folder / text) if UNUSUAL.search(text) else self._prefix + text

    def _there(self, path: Path, fold: Callable[[str], str] = str) -> Path | None:
        """The one file of that path, names compared by `fold` of `one_name`; None if it does not exist, or twice."""
        place = self.folder
        for part in path.parts:
            if part in (os.sep, ".."):
                place = place / part
                continue
            if place not in self._names:
                names: dict[str, list[str]] = {}
                with contextlib.suppress(OSError):
                    for file in place.iterdir():
                        names.setdefault(one_name(file.name).casefold(), []).append(file.name)
                self._names[place] = names
            near = self._names[place].get(one_name(part).casefold(), [])
            same = [name for name in near if fold(one_name(name)) == fold(one_name(part))]
            if len(same) != 1:
                return None
            place = place / same[0]
        return place


def _mask_of(stem: str, gt: Path | None, mask: Path | None, root: Path | None = None) -> Path | None:
    """The mask of one image: the one in masks/ and those next to its truth, which must not differ (InputError)."""
    beside = [] if gt is None else masks_next_to(gt, {stem.rpartition("/")[2], gt.stem.removesuffix(SIXTEEN)}, root)
    return the_mask([path for path in (mask, *beside) if path is not None])


def _parse(find: _Finder, line: str, where: str) -> Sample:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(entry, dict) or not all(isinstance(value, str) and value for value in entry.values()):
        raise InputError(f'{where}: expected an object of strings, as {{"image": "a.jpg", "label": "a.png"}}')
    if not {"image", "label"} <= entry.keys() <= KEYS:
        wrong = sorted(entry.keys() - KEYS) or sorted({"image", "label"} - entry.keys())
        raise InputError(f"{where}: {'unknown key' if entry.keys() - KEYS else 'no'} {wrong[0]!r}")
    if entry.get("split", "val") not in SPLITS:
        raise InputError(f"{where}: split {entry['split']!r} is neither train nor val")
    paths = {key: find(entry[key], where) for key in ("image", "label", "gt", "mask") if key in entry}
    stem = entry.get("name") or _without_ending(find, entry["image"], paths["image"], where)
    mask, gt = paths.get("mask"), paths.get("gt")
    if mask is None and gt is not None:
        mask = _text(_mask_of(stem, Path(gt), None))
    return Sample(stem, paths["image"], paths["label"], gt, mask, entry.get("split"))


def _without_ending(find: _Finder, text: str, path: str, where: str) -> str:
    """The image's path without ending, as the manifest writes it, or as its file is called where that differs."""
    if path != find.written(text):
        text = Path(path).relative_to(find.folder).as_posix()
    if UNUSUAL.search(text):
        if not Path(text).name:
            raise InputError(f"{where}: image {text!r} is a folder; name a file")
        return Path(text).with_suffix("").as_posix()
    folder, slash, name = text.rpartition("/")
    dot = name.rfind(".")
    return folder + slash + name[:dot] if 0 < dot < len(name) - 1 else text


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
