"""Maps with more than 8 bits: PNG of 16 bits a channel, which Pillow cannot write in colour, and OpenEXR."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

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
