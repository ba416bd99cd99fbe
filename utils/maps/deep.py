"""Maps with more than 8 bits, written and read: PNG of 16 bits a channel, and OpenEXR. Pillow's 16 bits are grey."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png16(pixels: np.ndarray, text: Mapping[str, str]) -> bytes:
    """uint16 (H,W) grey or (H,W,3) RGB -> a PNG file (ISO/IEC 15948). text: keyword -> value of its tEXt chunks.

    Every row is stored as its difference to the row above (filter 2), which zlib packs well for smooth maps.
    """
    height, width = pixels.shape[:2]
    colour = 2 if pixels.ndim == 3 else 0
    rows = np.ascontiguousarray(pixels, ">u2").reshape(height, -1).view(np.uint8)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), rows - above])  # modulo 256
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))]
    chunks += [_chunk(b"tEXt", _latin(key) + b"\0" + _latin(value)) for key, value in text.items()]
    chunks += [_chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6)), _chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _latin(text: str) -> bytes:
    return text.encode("latin-1", "backslashreplace")


def to_16_bits(values: np.ndarray) -> np.ndarray:
    """[0,1], clipped -> uint16, rounded."""
    return (np.clip(values.astype(np.float64), 0, 1) * 65535).round().astype(np.uint16)


def write_exr(path: Path, values: np.ndarray, channels: Sequence[str], header: Mapping[str, str]) -> None:
    """float32 (H,W) or (H,W,C) -> one-part OpenEXR, losslessly packed (ZIP). header: attributes beside the usual."""
    import OpenEXR  # optional: requirements-extra.txt

    planes = np.moveaxis(np.atleast_3d(values.astype(np.float32)), -1, 0)
    pixels = {name: np.ascontiguousarray(plane) for name, plane in zip(channels, planes, strict=True)}
    usual = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File({**usual, **header}, pixels).write(str(path))


def read_rgb16(path: Path) -> np.ndarray:
    """The numbers of a .png of 16-bit RGB, uint16 (H,W,3).

    Pillow unpacks 8 of the 16 bits: the first byte of each number or, told that the order of bytes is the other one,
    the second. So the file is decoded twice, with all of PNG's filters and its interlacing left to the library.
    """
    halves = []
    for order in ("RGB;16B", "RGB;16L"):
        with Image.open(path) as image:
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
