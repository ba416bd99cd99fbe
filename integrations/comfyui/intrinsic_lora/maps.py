"""Maps as files: PNG of 16 bits a channel and OpenEXR, written with numpy alone, with the values and the records of
utils/inference/write.py. Also axes of normals, codings of depth, and light. Nothing here needs ComfyUI or torch.
"""

import math
import struct
import zlib

import numpy as np

PROGRAM = "intrinsic-lora 0.2.0"
FRAMES = {  # x right, y down, z forward is what the LoRAs predict; these signs give the axes of others
    "opencv (x right, y down, z forward)": (1, 1, 1),
    "opengl (x right, y up, z back)": (1, -1, -1),
    "directx (x right, y down, z back)": (1, 1, -1),
}
CODINGS = {  # of depth in a LoRA's labels: what grey makes of farness u -> u again, rising everywhere
    "linear": lambda coded: coded,
    "sqrt": lambda coded: coded * abs(coded),
    "log": lambda coded: (10.0**coded - 1) / 9.0,
}
LINEAR = "linear light, sRGB's primaries, up to one scale"
CHANNELS = {"normal": "XYZ", "depth": "ZY"}  # of EXR, others RGB; depth twice, because Blender shows Z alone as black


def records(task: str, frame: str, invert: bool, facts: dict[str, str]) -> dict[str, str]:
    """Text for a file's header: the meaning of its values, and its origin."""
    polarity = f"near = {'black' if invert else 'white'}, linear in depth, affine-invariant"
    meaning = {"normal": ("frame", frame.replace("back)", "toward the viewer)")), "depth": ("polarity", polarity)}
    key, text = meaning.get(task, ("colour_space", "sRGB-coded, up to one scale; scored in linear light"))
    return {"task": task, key: text, **facts, "software": PROGRAM}


def encode(values: np.ndarray, task: str, kind: str, frame: str, invert: bool, facts: dict[str, str]) -> list[bytes]:
    """float32 values (B,H,W,C), as `PredictIntrinsic` has them -> a file of each map.

    kind: png16 or exr. frame: the axes of normals, of FRAMES. invert: depth, far = large. A PNG's depth lies between
    the batch's least and largest value, so that the frames of a film agree, and the file records them.
    """
    about = records(task, frame, invert, facts)
    if task == "normal":
        values = values * np.array(FRAMES[frame], np.float32)
    values = -values if task == "depth" and invert else values
    if kind == "exr":
        if task in ("albedo", "shading"):
            values, about = to_linear(values), about | {"colour_space": LINEAR}
        values = np.concatenate([values, values], -1) if task == "depth" else values
        return [exr(one, CHANNELS.get(task, "RGB"), about) for one in values]
    shares, scale = in_unit_range(values, task)
    return [png16(one, about | scale) for one in shares]


def in_unit_range(values: np.ndarray, task: str) -> tuple[np.ndarray, dict[str, str]]:
    """Values (B,H,W,C) -> shares of the range from 0 to 65535, and the values that its ends stand for."""
    if task != "depth":
        return (values / 2 + 0.5, _ends("-1", "1")) if task == "normal" else (values, _ends("0", "1"))
    low, high = float(values.min()), float(values.max())
    ends = _ends(repr(low), repr(high))
    if len(values) == 1:
        return (values - low) / max(high - low, 1e-12), ends
    return (values - np.float64(low)) / max(high - low, 1e-12), {**ends, "range": "of the whole clip"}


def _ends(low: str, high: str) -> dict[str, str]:
    return {"value_at_0": low, "value_at_65535": high}


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB to linear light, IEC 61966-2-1; nominal range [0,1], odd around 0."""
    size = np.abs(srgb)
    return np.sign(srgb) * np.where(size <= 0.04045, size / 12.92, ((size + 0.055) / 1.055) ** 2.4)


def png16(values: np.ndarray, text: dict[str, str]) -> bytes:
    """[0,1], clipped, (H,W,1) or (H,W,3) -> a PNG file of 16 bits a channel. text: its tEXt chunks.

    Every row is stored as its difference to the row above (filter 2), which zlib packs well for smooth maps.
    """
    height, width, channels = values.shape
    pixels = (np.clip(values.astype(np.float64), 0, 1) * 65535).round().astype(">u2")
    rows = pixels.reshape(height, -1).view(np.uint8)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0], filtered[0, 1:] = 2, rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256
    head = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = [(b"IHDR", head), *(_text(key, value) for key, value in text.items())]
    chunks += [(b"IDAT", zlib.compress(filtered.data, 1)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _text(key: str, value: str) -> tuple[bytes, bytes]:
    """(kind, content) of a chunk of text: Latin-1 where that has all of its letters, else UTF-8."""
    name = key.encode("latin-1", "backslashreplace")
    try:
        return b"tEXt", name + b"\0" + value.encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", name + bytes(5) + value.encode("utf-8", "backslashreplace")


def exr(values: np.ndarray, names: str, text: dict[str, str]) -> bytes:
    """float32 (H,W,C) -> a one-part OpenEXR file, not compressed. names: of the channels. text: header attributes."""
    height, width, channels = values.shape
    order = sorted(range(channels), key=lambda i: names[i])  # the format wants them by name
    listed = b"".join(names[i].encode() + b"\0" + struct.pack("<iiii", 2, 0, 1, 1) for i in order) + b"\0"
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    attributes = [
        ("channels", "chlist", listed), ("compression", "compression", b"\0"), ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window), ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)), ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
        *((name, "string", value.encode("utf-8", "backslashreplace")) for name, value in text.items()),
    ]  # fmt: skip
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
