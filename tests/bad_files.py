"""Broken files of many kinds: name -> content."""

import functools
import io
import os
import pickle
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

MARK = Path(tempfile.gettempdir()) / f"code-was-run-{os.getpid()}"  # a file that runs code makes this folder
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def encoded(kind: str, image: Image.Image | None = None, **options) -> bytes:
    """A good image in some format."""
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """One chunk of a PNG, with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int = 32, height: int = 24, depth: int = 8, colour: int = 2, *more: int, body: bytes | None = None
) -> bytes:
    """A PNG with the given header and with rows for 32x24 pixels, or with `body` between header and end."""
    compression, filters, interlace = more or (0, 0, 0)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, compression, filters, interlace)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in PIXELS))
    body = chunk(b"IDAT", rows) if body is None else body
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def npy(header: str, body: bytes = b"", version: int = 1) -> bytes:
    """A .npy with any header."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + text + body


class Malicious:
    """Unpickling it would make the folder MARK: proof that the file ran code."""

    def __reduce__(self):
        return os.mkdir, (str(MARK),)


def malicious_pickle() -> bytes:
    return pickle.dumps({"x": Malicious()})


def malicious_zip() -> bytes:
    """As torch.save writes it."""
    import torch

    buffer = io.BytesIO()
    torch.save({"x": Malicious()}, buffer)
    return buffer.getvalue()


def malicious_npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Malicious()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@functools.cache
def pictures() -> dict[str, bytes]:
    """Files with an image's name that are not images."""
    good, jpeg, webp = encoded("PNG"), encoded("JPEG"), encoded("WEBP")
    tif, bmp = encoded("TIFF"), encoded("BMP")
    half = lambda content, share=0.5: content[: int(len(content) * share)]  # noqa: E731
    garbage = np.random.default_rng(1).bytes(3000)
    files = {f"cut-at-{size}.png": good[:size] for size in (0, 1, 4, 8, 12, 20, 33, 40, 200, 1000)}
    files |= {f"jpg-cut-at-{share}.jpg": half(jpeg, share) for share in (0.0, 0.01, 0.2, 0.5, 0.8)}
    files |= {f"webp-cut-at-{share}.webp": half(webp, share) for share in (0.0, 0.05, 0.5, 0.9)}
    files |= {f"tif-cut-at-{share}.tif": half(tif, share) for share in (0.0, 0.002, 0.5)}
    files |= {f"bmp-cut-at-{share}.bmp": half(bmp, share) for share in (0.0, 0.005, 0.5)}
    files |= {
        "zeros.png": bytes(3000),
        "garbage.png": garbage,
        "garbage-jpg.jpg": garbage,
        "garbage-webp.webp": garbage,
        "garbage-bmp.bmp": garbage,
        "garbage-tif.tif": garbage,
        "signature-only.png": good[:8] + garbage,
        "signature-of-a-text-transfer.png": good.replace(b"\r\n", b"\n"),
        "jpeg-start-only.jpg": b"\xff\xd8" + garbage,
        "riff-only.webp": b"RIFF\x00\x10\x00\x00WEBP" + garbage,
        "no-width.png": png(width=0),
        "no-height.png": png(height=0),
        "depth-3.png": png(depth=3),
        "depth-255.png": png(depth=255),
        "colour-7.png": png(colour=7),
        "colour-2-depth-1.png": png(depth=1),
        "header-crc.png": good[:29] + bytes(4) + good[33:],
        "short-header.png": good[:8] + chunk(b"IHDR", b"\0" * 5) + good[33:],
        "no-data.png": png(body=b""),
        "garbage-data.png": png(body=chunk(b"IDAT", garbage)),
        "half-data.png": png(body=chunk(b"IDAT", half(zlib.compress(PIXELS.tobytes())))),
        "unknown-filter.png": png(body=chunk(b"IDAT", zlib.compress(b"\x09" * (24 * 97)))),
        "bomb-60000x60000.png": png(60_000, 60_000),
        "bomb-2000000000x1.png": png(2_000_000_000, 1),
        "bomb-largest.png": png(2**31 - 1, 2**31 - 1),
        "bomb-16-bit.png": png(30_000, 30_000, 16),
        "bomb-text.png": png(body=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26))) + chunk(b"IDAT", b"")),
        "bomb-bmp.bmp": bmp[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:],
        "negative-width.bmp": bmp[:18] + struct.pack("<ii", -5, 24) + bmp[26:],
        "offset-outside.bmp": bmp[:10] + struct.pack("<I", 2**31) + bmp[14:],
        "directory-outside.tif": b"II*\0" + struct.pack("<I", 2**31),
        "directory-of-itself.tif": b"II*\0" + struct.pack("<I", 8) + b"\0\0" + struct.pack("<I", 8),
        "float.tif": encoded("TIFF", Image.fromarray(PIXELS[..., 0].astype(np.float32))),
        "negative.tif": encoded("TIFF", Image.fromarray(PIXELS[..., 0].astype(np.int32) - 300)),
        "text.png": b"this is a text\n" * 50,
        "page.jpg": b"<!doctype html><title>404</title>",
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "script.png": b"#!/bin/sh\nexit 0\n",
        "program.png": b"\x7fELF" + garbage,
        "archive.jpg": b"PK\x05\x06" + bytes(18),
        "gzip.jpg": b"\x1f\x8b\x08" + garbage,
        "document.png": b"%PDF-1.7\n" + garbage,
        "array.png": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(8)),
        "pickle.png": malicious_pickle(),
        "state.png": malicious_zip(),
        "line\nbreak.png": b"",
        "tab\tand \x1b[31mcolour.png": b"x",
        "surface normal Ω 法線 🧱.png": b"x",
        " leading space.png": b"x",
        "--flag.png": b"x",
        "quote'\".png": b"x",
        os.fsdecode(b"no-unicode-\xff\xfe.png"): b"x",
    }
    return files


@functools.cache
def arrays() -> dict[str, bytes]:
    """Contents of .npy files that are not an array of numbers, whatever is expected."""
    good = io.BytesIO()
    np.save(good, np.ones((24, 32, 3), np.float32))
    good, several = good.getvalue(), io.BytesIO()
    np.savez(several, a=np.ones(3), b=np.ones(3))
    shape = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
    return {
        **{f"cut at {size}": good[:size] for size in (0, 1, 6, 8, 10, 40, 127, 128, 5000)},
        "zeros": bytes(4000),
        "text": b"1 2 3\n" * 100,
        "an image": encoded("PNG"),
        "archive of arrays": several.getvalue(),
        "half an archive": several.getvalue()[:200],
        "pickle": malicious_pickle(),
        "objects": malicious_npy(),
        "a petabyte": npy(shape % "(1000000, 1000000, 250)", b"1234"),
        "beyond 64 bits": npy(shape % "(4294967296, 4294967296, 4)", b"1234"),
        "negative shape": npy(shape % "(-24, 32, 3)", bytes(9216)),
        "shape of text": npy(shape % "('a', 'b')", b""),
        "header is code": npy("__import__('os').mkdir('/nowhere')", b""),
        "header cut": npy("{'descr': '<f4', 'fortran_order'", b""),
        "header lacks shape": npy("{'descr': '<f4', 'fortran_order': False, }", b""),
        "unknown type": npy("{'descr': '<q9', 'fortran_order': False, 'shape': (3,), }", bytes(27)),
        "version 9": npy(shape % "(2,)", bytes(8), version=9),
        "deep header": npy("(" * 4000 + ")" * 4000, b""),
    }
