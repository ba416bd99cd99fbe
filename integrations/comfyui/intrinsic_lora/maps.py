"""Maps as files: PNG of 16 bits a channel and OpenEXR, written with numpy alone; axes of normals; light."""

import math
import struct
import zlib

import numpy as np

FRAMES = {  # x right, y down, z forward is what the LoRAs predict; these signs give the axes of others
    "opencv (x right, y down, z forward)": (1, 1, 1),
    "opengl (x right, y up, z back)": (1, -1, -1),
    "directx (x right, y down, z back)": (1, 1, -1),
}


def png16(values: np.ndarray) -> bytes:
    """[0,1], clipped, (H,W,1) or (H,W,3) -> a PNG file of 16 bits a channel."""
    height, width, channels = values.shape
    pixels = (np.clip(values.astype(np.float64), 0, 1) * 65535).round().astype(">u2")
    rows = np.hstack([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1).view(np.uint8)])
    head = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def exr(values: np.ndarray) -> bytes:
    """float32 (H,W,1) or (H,W,3) -> a one-part OpenEXR file, not compressed; channels Y, or R, G, B."""
    height, width, channels = values.shape
    names = "RGB" if channels == 3 else "Y"
    order = sorted(range(channels), key=lambda i: names[i])  # the format wants them by name
    listed = b"".join(names[i].encode() + b"\0" + struct.pack("<iiii", 2, 0, 1, 1) for i in order) + b"\0"
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    attributes = (
        ("channels", "chlist", listed), ("compression", "compression", b"\0"), ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window), ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)), ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    )  # fmt: skip
    head = struct.pack("<ii", 20000630, 2)
    for name, kind, data in attributes:
        head += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(data)) + data
    head += b"\0"
    planes = np.ascontiguousarray(np.moveaxis(values.astype("<f4")[..., order], -1, 1))  # (H,C,W)
    size = 4 * channels * width
    first = len(head) + 8 * height
    offsets = struct.pack(f"<{height}Q", *(first + y * (8 + size) for y in range(height)))
    lines = b"".join(struct.pack("<ii", y, size) + planes[y].tobytes() for y in range(height))
    return head + offsets + lines


def light(normals: np.ndarray, azimuth: float, elevation: float, ambient: float) -> np.ndarray:
    """Lambert's shading (...) of unit normals (...,3), x right, y down, z forward, by a distant light.

    azimuth: degrees, 0 = from the viewer, 90 = from the right; elevation: degrees upwards; ambient: in [0,1].
    """
    a, e = math.radians(azimuth), math.radians(elevation)
    towards = np.array([math.cos(e) * math.sin(a), -math.sin(e), -math.cos(e) * math.cos(a)])
    return ambient + (1 - ambient) * np.clip(normals @ towards, 0, None)
