"""The images that --input_dir names: one, or all of a folder and its subfolders. Imports no torch."""

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from utils.cli import nearest
from utils.errors import InputError
from utils.image_io.files import PICTURES, VIDEOS, skipped_line
from utils.intrinsics import INTRINSICS

WRITTEN = ("predicted", "uncertainty")  # folders of maps, below <output_dir>/<task>/


@dataclass(frozen=True)
class Inputs:
    """The images to predict.

    pictures: file -> its name relative to --input_dir, in posix form; in a flat folder that is the file's name.
    skipped: ending in lower case -> number of files that are not images we read.
    own: number of images passed over because they are in the output folder.
    """

    pictures: dict[Path, str]
    skipped: Counter[str] = field(default_factory=Counter)
    own: int = 0

    def said(self) -> str:
        """One line on what was passed over; empty if nothing was."""
        return skipped_line(self.skipped, [f"{self.own} images in the output folder"] if self.own else [])

    def notes(self) -> list[str]:
        """`said`, and a line on images that share their stem, if there are any."""
        lines = [said] if (said := self.said()) else []
        if twins := sorted(same_stem(self.pictures)):
            lines.append(
                f"{len(twins)} images share their stem with another one, such as {twins[0]} and {twins[1]}: the names "
                f"of their maps keep the ending ({twins[0].name}_...)"
            )
        return lines


def find_inputs(source: str | Path, output_dir: str | Path, videos: bool = False) -> Inputs:
    """The images of `source`, a file or a folder with subfolders, sorted by their paths.

    Hidden files and folders are passed over in silence. Nothing in `output_dir` is ever read, so that a second run
    does not predict the first one's maps. Raises InputError where no image is found, or `source` is where the maps
    go. videos: `source` may also be one video.
    """
    source, output = Path(source), Path(output_dir).resolve()
    if source.is_file():
        _check_kind(source, videos)
        return Inputs({source: source.name})
    if not source.is_dir():
        raise InputError(f"{source}: no such folder or image{nearest(source)}; pass a folder or file that exists")
    maps = [output / name / kind for name in INTRINSICS for kind in WRITTEN]
    for folder in maps:
        if source.resolve().is_relative_to(folder):
            raise InputError(f"{source}: this is where --output_dir puts the maps; name another --output_dir")
    inside = output != source.resolve() and output.is_relative_to(source.resolve())
    written = {output} if inside else set(maps)
    found: dict[Path, str] = {}
    skipped: Counter[str] = Counter()
    own = 0
    for path, is_own in _files(source, written):
        if path.suffix.lower() not in PICTURES:
            skipped[path.suffix.lower()] += not is_own
        elif is_own:
            own += 1
        else:
            found[path] = path.relative_to(source).as_posix()
    inputs = Inputs({path: found[path] for path in sorted(found)}, +skipped, own)
    if not found:
        said = inputs.said()
        raise InputError(f"{source}: no images ({', '.join(PICTURES)}) in this folder" + (f"; {said}" if said else ""))
    return inputs


def _check_kind(source: Path, videos: bool) -> None:
    """InputError unless the file is an image or, with `videos`, a video that can be read."""
    is_video = source.suffix.lower() in VIDEOS
    if is_video and not videos:
        raise InputError(f"{source}: a video, which has a command of its own: {film_command(source)}")
    if is_video and find_spec("av") is None:
        raise InputError(f"{source}: a video needs the package av, which is not installed: pip install av")
    if not is_video and source.suffix.lower() not in PICTURES:
        raise InputError(f"{source}: not an image we read ({', '.join(PICTURES)})")


def find_all(sources: Sequence[str | Path], output_dir: str | Path) -> Inputs:
    """Several files and folders as one; with more than one source, a folder's name stands before what is in it."""
    pictures: dict[Path, str] = {}
    skipped: Counter[str] = Counter()
    own = 0
    for source in map(Path, sources):
        found = find_inputs(source, output_dir)
        front = f"{source.resolve().name}/" if source.is_dir() and len(sources) > 1 else ""
        pictures |= {file: front + name for file, name in found.pictures.items()}
        skipped += found.skipped
        own += found.own
    return Inputs(pictures, skipped, own)


def film_command(source: str | Path) -> str:
    """The command that predicts a video's frames, ready to be pasted; with a shipped LoRA."""
    lora = "miniworld/mini-loras/normal"
    return f"python inference_sd_single.py --lora {lora} --input_dir {shlex.quote(str(source))} --video"


def same_stem(pictures: Mapping[Path, str]) -> set[Path]:
    """The images that share folder and stem with another one, such as IMG_1.jpg next to IMG_1.png."""
    stems = Counter(Path(relative).with_suffix("") for relative in pictures.values())
    return {file for file, relative in pictures.items() if stems[Path(relative).with_suffix("")] > 1}


def output_names(pictures: dict[Path, str], suffix: str) -> dict[Path, str]:
    """Input file -> `<its folder below --input_dir>/<stem>_<suffix>.png`, for all images of a run at once.

    Images of one stem keep their endings (`IMG_1.jpg_<suffix>.png`), all of them, so that a name depends on neither
    order nor process. Raises InputError where two inputs would still write the same file.
    """
    names: dict[str, Path] = {}
    twins = same_stem(pictures)
    for file, relative in pictures.items():
        stem = file.name if file in twins else file.stem
        name = Path(relative).with_name(f"{stem}_{suffix}.png").as_posix()
        if name in names:
            raise InputError(f"{names[name]} and {file} would both be written as {name}; rename one of them")
        names[name] = file
    return {file: name for name, file in names.items()}


def _files(source: Path, written: set[Path]) -> Iterator[tuple[Path, bool]]:
    """Every file below `source` that is not hidden, and whether it is in one of the folders `written`.

    Links to folders are followed, but each folder is read once. A dead link is yielded: it is an error to report.
    """
    seen: set[Path] = set()
    stack = [(source, False)]
    while stack:
        folder, is_own = stack.pop()
        real = folder.resolve()
        if real in seen:
            continue
        seen.add(real)
        is_own = is_own or real in written
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
        for entry in entries:
            path = Path(folder, entry.name)
            if path.is_dir():
                if not entry.name.startswith("."):
                    stack.append((path, is_own))
            elif path.is_file() or not path.exists():  # not a pipe, which would be waited for without end
                hidden = entry.name.startswith(".") and path.suffix.lower() not in PICTURES
                if not hidden and not entry.name.startswith(
                    "._"
                ):  # macOS puts one next to every file on a foreign disk
                    yield path, is_own
