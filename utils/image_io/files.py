"""Files of maps as arrays: .npy, OpenEXR and .png of 8 or 16 bits, read and written; masks next to them.

Nothing here knows what the numbers mean: see `utils.kinds`. A file that could hold two things is an error.
"""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.image_io.opening import check_file, open_header
from utils.image_io.panels import row_blocks
from utils.system.atomic import save_bytes

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif")  # of images
VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".gif")
MAPS = (".npy", ".exr", ".png")  # endings of the maps we read, the most precise first
SIXTEEN = "_16bit"  # how the stem of a .png ends that holds a map with 16 bits a channel
MASK_TAILS = ("_depth_mask", "_depth_valid", "_valid_mask", "_mask", "_valid")  # after a map's stem; the longer first
MASK_FOLDERS = ("masks", "mask")  # in the truth's folder
MASK_ENDINGS = (".npy", ".png")
SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Raw(NamedTuple):
    """array: the numbers as stored, (H, W) or (H, W, C). about: the text in the file's header."""

    array: np.ndarray
    about: Mapping[str, str]


def skipped_line(skipped: Mapping[str, int], more: Sequence[str] = ()) -> str:
    """ "skipped: 2 .heic, 1 .txt": the files of a folder that were passed over, by ending; empty if there are none."""
    named = sorted((ending or "without ending", count) for ending, count in skipped.items() if count)
    parts = [f"{count} {ending}" for ending, count in named]
    return f"skipped: {', '.join([*parts, *more])}" if parts or more else ""


def read_array(path: Path) -> np.ndarray:
    """The numbers in a .npy, .exr or .png file as stored, (H, W) or (H, W, C); ValueError if it is unreadable."""
    return read_raw(path).array


def read_raw(path: Path, content: bytes | None = None) -> Raw:
    """The numbers of a map's file, and its header's text. ValueError if it is unreadable or no single map.

    content: of the file, where it is not on the disk under this name but in an archive.
    """
    about: Mapping[str, str] = {}
    source = path if content is None else io.BytesIO(content)
    try:
        if path.suffix.lower() == ".npy":
            array = _load_npy(source)
        elif path.suffix.lower() == ".exr":
            array, about = read_exr(path) if content is None else _read_exr_in(content)
        else:
            array, about = _read_png(source)
    except Exception as error:  # each decoder has its own; a broken header may ask for more memory than there is
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"cannot be read ({reason})") from error
    if array.dtype.kind not in "buif":
        raise ValueError(f"holds {array.dtype}, not numbers")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"has shape {array.shape}: save one image as (H, W) or (H, W, C)")
    return Raw(array, about)


def read_npy(path: str | Path) -> np.ndarray:
    """One .npy array of any shape; pickled objects are never loaded. Raises InputError naming the file."""
    check_file(path)
    try:
        return _load_npy(path)
    except Exception as error:  # whatever a broken header leads to: wrong numbers, no memory for what it promises, ...
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise InputError(f"{path}: not a readable .npy array ({reason}); replace it or leave the sample out")


def read_mask(path: Path, content: bytes | None = None) -> np.ndarray:
    """True where valid, bool (H, W), from any number type; in .png any channel above zero. content: see `read_raw`."""
    array = read_raw(path, content).array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("has NaN or inf: a mask is zero or not zero")
    return (array != 0).any(axis=2) if array.ndim == 3 else array.astype(bool)


def read_mask_named(path: Path) -> np.ndarray:
    """`read_mask`; raises InputError naming the file."""
    try:
        return read_mask(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of (H, W) or (H, W, C) to `shape` = (height, width), float32; antialiased when it shrinks."""
    channels = np.atleast_3d(image.astype(np.float32))
    size = shape[::-1]
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(channels[..., c])).resize(size, Image.Resampling.BILINEAR))
        for c in range(channels.shape[2])
    ]
    return planes[0] if image.ndim == 2 else np.stack(planes, axis=2)


def _load_npy(source: str | Path | io.BytesIO) -> np.ndarray:
    try:
        array = np.load(source, allow_pickle=False)
    except ValueError as error:
        if "pickle" in str(error):  # numpy's text tells how to run the code in the file
            raise ValueError("no numbers: text, or objects, which are never unpickled") from None
        raise
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays: save a single one")
    return array


def _read_png(source: Path | io.BytesIO) -> tuple[np.ndarray, dict[str, str]]:
    with open_header(source) as image:
        if image.format != "PNG":
            raise ValueError(f"is a {image.format} file with the name of a .png")
        if isinstance(source, Path):
            with source.open("rb") as file:
                head = file.read(26)
        else:
            head = source.getvalue()[:26]
        depth, colour = head[24:]  # IHDR chunk, which Pillow does not expose
        if image.mode not in ("L", "RGB", "I;16", "I", "1"):
            advice = "save it as grey or RGB, without palette or alpha (transparent = unknown: as <stem>_mask.png)"
            raise ValueError(f"has mode {image.mode}: {advice}")
        if "transparency" in image.info:
            raise ValueError("has a transparent colour: save it without, and what it leaves out as <stem>_mask.png")
        array = np.asarray(image)
        text = getattr(image, "text", {})  # after the pixels, since it may stand behind them in the file
    if depth == 16 and colour == 2:
        array = read_rgb16(source)
    return array.astype(np.uint16) if depth == 16 else array, dict(text)  # Pillow opens 16-bit grey as int32 or uint16


# More than 8 bits: PNG of 16 bits a channel (Pillow's are grey), and OpenEXR ----------------------------------------


def png(pixels: np.ndarray, text: Mapping[str, str]) -> bytes:
    """uint8 or uint16, (H,W) grey or (H,W,3) RGB -> a PNG file (ISO/IEC 15948). text: keyword -> value.

    Every row is stored as its difference to the row above (filter 2), which zlib packs well for smooth maps. Its
    fastest level: the slower ones take six times as long for files that are a fifth smaller.
    """
    height, width = pixels.shape[:2]
    colour, bits = 2 if pixels.ndim == 3 else 0, 8 * pixels.itemsize
    rows = np.ascontiguousarray(pixels, f">u{pixels.itemsize}").reshape(height, -1).view(np.uint8)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0], filtered[0, 1:] = 2, rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))]
    chunks += [_text(key, value) for key, value in text.items()]
    chunks += [_chunk(b"IDAT", zlib.compress(filtered.data, 1)), _chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(chunks)


def save_png(path: Path, pixels: np.ndarray, text: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write uint8 or uint16 pixels (H,W) or (H,W,3) atomically. text: keyword -> value. Raises InputError where they
    cannot be written.
    """
    save_bytes(path, png(pixels, text))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _text(key: str, value: str) -> bytes:
    """A chunk of text: Latin-1 where that has all of its letters, else UTF-8."""
    name = key.encode("latin-1", "backslashreplace")
    try:
        return _chunk(b"tEXt", name + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", name + bytes(5) + value.encode("utf-8", "backslashreplace"))


def to_16_bits(values: np.ndarray) -> np.ndarray:
    """[0,1], clipped -> uint16, rounded."""
    found = np.empty(values.shape, np.uint16)
    for rows in row_blocks(*values.shape[:2]):
        found[rows] = (np.clip(values[rows].astype(np.float64), 0, 1) * 65535).round()
    return found


def write_exr(path: Path, values: np.ndarray, channels: Sequence[str], header: Mapping[str, str]) -> None:
    """float32 (H,W) or (H,W,C) -> one-part OpenEXR, losslessly packed (ZIP). header: further attributes."""
    import OpenEXR  # optional: requirements-extra.txt

    planes = np.moveaxis(np.atleast_3d(values.astype(np.float32)), -1, 0)
    pixels = {name: np.ascontiguousarray(plane) for name, plane in zip(channels, planes, strict=True)}
    usual = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File({**usual, **header}, pixels).write(str(path))


def read_rgb16(source: Path | io.BytesIO) -> np.ndarray:
    """The numbers of a .png of 16-bit RGB, uint16 (H,W,3).

    Pillow unpacks 8 of the 16 bits: the first byte of each number or, told that the order of bytes is the other one,
    the second. So the file is decoded twice, with all of PNG's filters and its interlacing left to the library.
    """
    halves = []
    for order in ("RGB;16B", "RGB;16L"):
        with Image.open(source) as image:
            codec, extents, offset, _ = image.tile[0]
            image.tile = [(codec, extents, offset, order)]  # type: ignore[list-item]  # a plain tuple in Pillow 10
            halves.append(np.asarray(image.convert("RGB"), np.uint16))
    return halves[0] << 8 | halves[1]


def read_exr(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """(numbers as stored, float (H,W) or (H,W,3); the text in the header) of an OpenEXR file with one map.

    Its channels are R,G,B or X,Y,Z, or Z and Y (this project's depth, twice), or a single one. Raises ValueError for
    others, where some pixels are transparent, and where the package is missing.
    """
    try:
        import OpenEXR  # optional: requirements-extra.txt
    except ModuleNotFoundError:
        raise ValueError("needs the package OpenEXR, which is not installed: pip install OpenEXR") from None
    if path.read_bytes()[:4] != b"\x76\x2f\x31\x01":  # OpenEXR prints to the terminal before it raises
        raise ValueError("is not an OpenEXR file")
    with OpenEXR.File(str(path), separate_channels=True) as file:
        header = {key: value for key, value in file.header().items() if isinstance(value, str)}
        planes = {name: channel.pixels for name, channel in file.channels().items()}
    last = {name.rpartition(".")[2].upper(): plane for name, plane in planes.items()}
    if "A" in last and len(last) > 1 and not (last["A"] == 1).all():
        raise ValueError("has transparent pixels: save it without alpha, and its alpha as <stem>_mask.png")
    map_of = sorted(last.keys() - {"A"} or last)
    order = next((names for names in ("RGB", "XYZ", "ZY") if sorted(names) == map_of), None)
    if len(last) < len(planes) or (order is None and len(map_of) > 1):  # layers, or several maps
        raise ValueError(f"has the channels {', '.join(planes)}: save one map as R,G,B or X,Y,Z or one channel")
    if order in ("RGB", "XYZ"):
        return np.stack([last[name] for name in order], axis=2), header
    return last["Z" if order else map_of[0]], header


def _read_exr_in(content: bytes) -> tuple[np.ndarray, dict[str, str]]:
    """`read_exr` of a file's content: OpenEXR reads files only."""
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(content)
        file.flush()
        return read_exr(Path(file.name))


# Masks next to the truth, under the names that tools give them -------------------------------------------------------


def stem_of_mask(stem: str) -> str | None:
    """`stem` without a tail of MASK_TAILS; None if it has none."""
    return next((stem.removesuffix(tail) for tail in MASK_TAILS if stem.endswith(tail)), None)


def masks_next_to(truth: Path, stems: Iterable[str], root: Path | None = None) -> list[Path]:
    """The files that are masks of `truth` by their names: `<stem><tail>` in its folder; `<stem>` or `<stem><tail>` in
    a folder of MASK_FOLDERS there or, of the same relative path, below `root`.
    """
    bare = list(dict.fromkeys(stems))
    tailed = [f"{stem}{tail}" for stem in bare for tail in MASK_TAILS]
    places = [(truth.parent, tailed)]
    places += [(truth.parent / name, bare + tailed) for name in MASK_FOLDERS]
    if root is not None and truth.parent != root:
        places += [(root / name / truth.parent.relative_to(root), bare + tailed) for name in MASK_FOLDERS]
    names = (folder / f"{stem}{ending}" for folder, stems in places for stem in stems for ending in MASK_ENDINGS)
    return [path for path in dict.fromkeys(names) if path.is_file()]


def the_mask(candidates: Sequence[Path]) -> Path | None:
    """The first of an image's masks, None if it has none. InputError where two of them differ."""
    for other in candidates[1:]:
        try:
            same = np.array_equal(read_mask(candidates[0]), read_mask(other))
        except ValueError as error:
            raise InputError(f"{candidates[0]} and {other}: masks of one image, not both readable ({error})") from None
        if not same:
            raise InputError(f"{candidates[0]} and {other}: two different masks of one image; remove one of them")
    return candidates[0] if candidates else None
