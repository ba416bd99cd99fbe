"""Checks of uploaded images before a pixel is decoded. Imports no torch and no Gradio."""

import re
import warnings
from pathlib import Path

from PIL import Image

from utils.errors import InputError
from utils.image_io.files import PICTURES, VIDEOS
from utils.image_io.images import read_rgb
from utils.image_io.opening import check_ratio, unreadable
from utils.inference.inputs import film_command

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow's names for PICTURES
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 16_000_000  # a map of that size is 0.2 GB as float32


def read_upload(path: str | Path) -> Image.Image:
    """The RGB image, upright. Raises InputError, with the file's name but not its folder, if it has too many bytes or,
    by its header, too many pixels, if its format is not one of `PICTURES`, or if it is not a complete image.
    """
    path = Path(path)
    if path.suffix.lower() in VIDEOS:
        raise InputError(f"{path.name}: a video; the page takes images. {film_command(path.name)}")
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"{path.name}: not an image format we read ({', '.join(PICTURES)})")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path.name}: more than {MAX_BYTES >> 20} MB; save it smaller")
        width, height = _stated_size(path)
        if width * height > MAX_PIXELS:
            raise InputError(f"{path.name}: {width}x{height} pixels, more than {MAX_PIXELS:,}; scale it down")
        try:
            check_ratio(width, height)
        except InputError as error:
            raise InputError(f"{path.name}: {error}") from None
        return read_rgb(path)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from None
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror})") from None


def _stated_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header. Unlike `size_of` it does not ask for the orientation, for which Pillow may
    decode a whole PNG, and it opens only FORMATS, because others may start programs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            with Image.open(path, formats=FORMATS) as image:
                return image.size
    except Exception as error:  # each decoder has its own
        raise unreadable(path, error) from None


def safe_stem(path: str | Path) -> str:
    """A name for files made from the upload: at most 60 letters, digits, dashes and underscores."""
    return re.sub(r"[^\w-]+", "_", Path(path).stem).strip("_")[:60] or "image"
