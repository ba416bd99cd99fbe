"""Opening image files of the user's own disk: size limits that depend on memory, errors that name the file."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from PIL import Image, UnidentifiedImageError, features

from utils.errors import InputError, note

MAX_PIXELS = 1_000_000_000
LARGE = 89_478_485  # pixels from which memory is checked and stated; Pillow's own limit against hostile uploads
MAX_RATIO = 8  # long side to short side of an image that a network takes whole: phones' panoramas have 4 to 6
BYTES_PER_PIXEL = 13  # while one image is read: decoded (4), as RGB (4), alpha or a colour conversion (5)
HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")  # brands of HEIC

_pillow_limit = threading.Lock()
_told: set[str] = set()


def once(say: Callable[[str], None], kind: str, text: str) -> None:
    """`note` or `warn` (say) for the first image of each `kind` in this process: thousands may follow."""
    if kind not in _told:
        _told.add(kind)
        say(f"{text} (stated once per run)")


def check_file(path: str | Path) -> None:
    """InputError unless it is a file: not a folder, nothing, or a pipe (reading which would never end)."""
    if not os.path.isfile(path):
        what = "not a file, or a link to none; replace or remove it" if os.path.lexists(path) else "no such file"
        raise InputError(f"{path}: {what}")


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """The image in a file, its header read and its pixels not yet decoded.

    Raises:
        InputError: the file is missing, empty, truncated, not an image, or too large for this machine's memory, here
            or in the body of the `with`; the message names it.
    """
    check_file(path)
    try:
        with open_header(path) as image:
            yield image
    except InputError:
        raise
    except Exception as error:  # each decoder has its own; all mean that the image cannot be read
        raise unreadable(path, error) from None


def open_header(path: str | Path | io.BytesIO) -> Image.Image:
    """`identify` with the limits of `check_size`: Pillow's own takes every large image for an attack."""
    with _pillow_limit:  # a global of Pillow, lifted while a header is read
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, sys.maxsize  # None breaks other threads' crops
        try:
            image = identify(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    try:
        check_size(path, *image.size)
    except InputError:
        image.close()
        raise
    return image


def identify(path: str | Path | io.BytesIO, formats: tuple[str, ...] | None = None) -> Image.Image:
    """`Image.open`, for HEIC too, which is told by its content, whatever the ending.

    formats: Pillow's names of what else may be opened (default: all). Raises InputError naming the file and a package
    that is missing, and Pillow's errors.
    """
    try:
        return Image.open(path, formats=formats)
    except UnidentifiedImageError:
        if isinstance(path, io.BytesIO):
            raise
        with Path(path).open("rb") as file:
            head = file.read(12)
        brand = head[8:] if head[4:8] == b"ftyp" else b""  # ISO/IEC 14496-12
        if brand in (b"avif", b"avis") and not features.check("avif"):
            raise InputError(f"{path}: is an AVIF image; pip install -U pillow, or save it as JPEG") from None
        if brand not in HEIF:
            raise
    try:
        import pillow_heif  # optional: requirements-extra.txt
    except ImportError:
        raise InputError(f"{path}: is a HEIC image; pip install pillow-heif, or save it as JPEG") from None
    pillow_heif.register_heif_opener()
    return Image.open(path, formats=["HEIF"])


def check_size(path: str | Path | io.BytesIO, width: int, height: int) -> None:
    """InputError where an image has more than `MAX_PIXELS`, or more than fit into the memory that is free."""
    pixels = width * height
    if pixels <= LARGE:
        return
    needed, free = pixels * BYTES_PER_PIXEL, psutil.virtual_memory().available
    most = min(MAX_PIXELS, int(free * 0.9) // BYTES_PER_PIXEL)
    if pixels > most:
        reason = f"{width}x{height} pixels need {needed / 1e9:.1f} GB to read"
        raise InputError(f"{path}: {reason}; scale it down to at most {most / 1e6:.0f} megapixels")
    once(note, "large", f"{path}: {pixels / 1e6:.0f} megapixels; reading takes up to {needed / 1e9:.1f} GB of memory")


def check_ratio(width: int, height: int, cure: str = "crop it") -> None:
    """InputError where an image is longer than `MAX_RATIO`. A network's attention is quadratic in its area, and its
    short side has a fixed length: time and memory grow with the square of the ratio.
    """
    if max(width, height) > MAX_RATIO * min(width, height):
        raise InputError(f"{width}x{height} pixels, longer than {MAX_RATIO}:1; {cure}")


def unreadable(path: str | Path, error: Exception) -> InputError:
    """The error of a file that Pillow does not take, with Pillow's reason."""
    reason = " ".join(str(error).split()).replace(f" {str(path)!r}", "")[:200] or type(error).__name__
    return InputError(f"{path}: not a readable image ({reason}); replace or remove it")
