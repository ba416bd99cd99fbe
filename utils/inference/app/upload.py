"""Pictures from the browser: looked at with suspicion before a pixel is decoded. Imports neither torch nor Gradio."""

import re
import warnings
from pathlib import Path

from PIL import Image

from utils.errors import InputError
from utils.maps.files import PICTURES
from utils.maps.images import read_rgb, size_of

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 16_000_000  # a map of that size is 0.2 GB as float32
MAX_RATIO = 8  # long side to short side: padded to the network's size, a thin strip is mostly border


def read_upload(path: str | Path) -> Image.Image:
    """The RGB picture, upright. Raises InputError, naming the file but not its folder, where it is too large in bytes
    or, by its header, in pixels, of another format than those of `PICTURES`, or not a whole picture.
    """
    path = Path(path)
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"{path.name}: not a picture we read ({', '.join(PICTURES)})")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path.name}: more than {MAX_BYTES >> 20} MB; save it smaller")
        with warnings.catch_warnings():  # Pillow warns of a bomb; here it is refused
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            width, height = size_of(path)
            if width * height > MAX_PIXELS:
                raise InputError(
                    f"{path.name}: {width}x{height} pixels, more than {MAX_PIXELS // 10**6} million; scale it down"
                )
            if max(width, height) > MAX_RATIO * min(width, height):
                raise InputError(f"{path.name}: {width}x{height} pixels, longer than {MAX_RATIO}:1; crop it")
            return read_rgb(path)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from None
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror})") from None


def safe_stem(path: str | Path) -> str:
    """A name for files made of the upload: letters, digits, dots, dashes and underscores, at most 60 of them."""
    return re.sub(r"[^\w-]+", "_", Path(path).stem).strip("_")[:60] or "image"
