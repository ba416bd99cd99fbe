"""Checks of uploaded images before a pixel is decoded. Imports no torch and no Gradio."""

import re
import warnings
from pathlib import Path

from PIL import Image

from utils.errors import InputError
from utils.image_io.files import PICTURES, VIDEOS
from utils.image_io.images import read_rgb
from utils.image_io.opening import LARGE, check_ratio, identify, unreadable
from utils.inference.inputs import film_command

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF")  # Pillow's names for PICTURES, which has HEIC besides
MAX_BYTES = 64 * 2**20  # a photograph of 50 megapixels as JPEG, or of 24 as PNG
MAX_PIXELS = 16_000_000  # larger ones are scaled to that: a map of that size is 0.2 GB as float32


def read_upload(path: str | Path) -> Image.Image:
    """The RGB image, upright, scaled to at most MAX_PIXELS.

    Raises InputError, with the file's name but not its folder, if it has too many bytes or, by its header, too many
    pixels, if its format is not one of `PICTURES`, or if it is not a complete image.
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
        if width * height > LARGE:
            raise InputError(f"{path.name}: {width}x{height} pixels, more than {LARGE:,}; scale it down")
        try:
            check_ratio(width, height)
        except InputError as error:
            raise InputError(f"{path.name}: {error}") from None
        return _scaled(read_rgb(path))
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from None
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror})") from None


def remark(path: str | Path, image: Image.Image) -> str:
    """One line on what `read_upload` has done to the file's `image`; empty where it has its pixels."""
    width, height = _stated_size(Path(path))
    if width * height == image.width * image.height:
        return ""
    return (
        f"{Path(path).name} has {width * height / 1e6:.0f} megapixels: scaled to {image.width}x{image.height} pixels. "
        "Maps and files have this size."
    )


def _scaled(image: Image.Image) -> Image.Image:
    """The image with at most MAX_PIXELS; itself where it has no more."""
    share = (MAX_PIXELS / (image.width * image.height)) ** 0.5
    if share >= 1:
        return image
    size = max(1, int(image.width * share)), max(1, int(image.height * share))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _stated_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header. Unlike `size_of` it does not ask for the orientation, for which Pillow may
    decode a whole PNG, and it opens only FORMATS and HEIC, because others may start programs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            with identify(path, FORMATS) as image:
                return image.size
    except InputError:
        raise
    except Exception as error:  # each decoder has its own
        raise unreadable(path, error) from None


def safe_stem(path: str | Path) -> str:
    """A name for files made from the upload: at most 60 letters, digits, dashes and underscores."""
    return re.sub(r"[^\w-]+", "_", Path(path).stem).strip("_")[:60] or "image"
