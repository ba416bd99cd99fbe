"""Any image as upright 8-bit sRGB: every way in gives the same pixels, and what a file states about them is heeded."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_files import chunk, encoded
from PIL import Image, ImageCms

from utils.errors import InputError
from utils.image_io import opening
from utils.image_io.files import read_array
from utils.image_io.images import read_label, read_rgb, size_of, upright_rgb

SIZE = (32, 24)
RGB = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
GREY = RGB[..., 0]
ALPHA = np.random.default_rng(1).choice(np.array([0, 64, 255], np.uint8), GREY.shape)


@pytest.fixture(autouse=True)
def every_note_is_new():
    opening._told.clear()


def read(image) -> np.ndarray:
    found = upright_rgb(image)
    assert found.mode == "RGB" and found.info == {}
    return np.asarray(found).astype(int)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(pixels * share + 255 * (1 - share)).astype(int)


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2).astype(int)


# Every mode of Pillow ----------------------------------------------------------------------------------------------


def palette(transparency=None) -> Image.Image:
    image = Image.frombytes("P", SIZE, (GREY % 4).tobytes())
    image.putpalette([10, 20, 30, 200, 100, 50, 90, 180, 70, 255, 0, 255])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


COLOURS = np.array([[10, 20, 30], [200, 100, 50], [90, 180, 70], [255, 0, 255]])
INDEXED = COLOURS[GREY % 4]
RGBA = Image.fromarray(np.dstack([RGB, ALPHA]))
DEEP = GREY.astype(np.uint16) * 257


def deep(mode: str) -> Image.Image:
    values = DEEP.astype(">u2" if mode == "I;16B" else "<u2")
    return Image.frombytes(mode, SIZE, values.tobytes())


MODES = {  # mode -> (image, what it shows, ending of a file that keeps the mode, levels that may differ)
    "1": (Image.fromarray(GREY > 127), three((GREY > 127) * 255), "png", 0),
    "L": (Image.fromarray(GREY), three(GREY), "png", 0),
    "LA": (Image.fromarray(np.dstack([GREY, ALPHA])), on_white(three(GREY), ALPHA), "png", 1),
    "La": (Image.fromarray(np.dstack([GREY, ALPHA])).convert("La"), on_white(three(GREY), ALPHA), None, 4),
    "P": (palette(), INDEXED, "png", 0),
    "P, transparent index": (palette(2), on_white(INDEXED, np.where(GREY % 4 == 2, 0, 255)), "png", 0),
    "P, bytes": (palette(bytes([0, 64, 255, 255])),
        on_white(INDEXED, np.array([0, 64, 255, 255])[GREY % 4]), "png", 1),
    "PA": (palette(bytes([0, 255, 255, 255])).convert("PA"),
        on_white(INDEXED, np.array([0, 255, 255, 255])[GREY % 4]), "tif", 1),
    "RGB": (Image.fromarray(RGB), RGB, "png", 0),
    "RGBA": (RGBA, on_white(RGB, ALPHA), "png", 1),
    "RGBa": (RGBA.convert("RGBa"), on_white(RGB, ALPHA), None, 4),
    "RGBX": (Image.fromarray(RGB).convert("RGBX"), RGB, "tif", 0),
    "CMYK": (Image.frombytes("CMYK", SIZE, np.dstack([255 - RGB, 0 * GREY]).tobytes()), RGB, "tif", 0),
    "YCbCr": (Image.fromarray(RGB).convert("YCbCr"), RGB, None, 3),
    "LAB": (ImageCms.profileToProfile(Image.fromarray(RGB), ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"), outputMode="LAB"), RGB, "tif", 32),  # coarse in dark, saturated colours
    "HSV": (Image.fromarray(RGB).convert("HSV"), RGB, None, 6),
    "I": (Image.fromarray(DEEP.astype(np.int32)), three(GREY), "tif", 0),
    "I;16": (deep("I;16"), three(GREY), "png", 0),
    "I;16L": (deep("I;16L"), three(GREY), None, 0),
    "I;16B": (deep("I;16B"), three(GREY), "tif", 0),
    "I;16N": (deep("I;16N"), three(GREY), None, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_every_mode_is_the_same_as_a_path_opened_and_decoded(name, tmp_path):
    image, expected, ending, levels = MODES[name]
    assert image.mode == name.split(",")[0]
    before, info = image.tobytes(), dict(image.info)
    assert np.abs(read(image) - expected).max() <= levels and np.abs(read(image) - expected).mean() < 2
    assert image.tobytes() == before and image.info == info and image.mode == name.split(",")[0]
    if ending:
        path = tmp_path / f"a.{ending}"
        image.save(path, **({"transparency": info["transparency"]} if "transparency" in info else {}))
        opened = Image.open(path)
        from_path, lazily = read(path), read(opened)
        opened.load()
        memory = Image.open(io.BytesIO(path.read_bytes()))
        for found in (lazily, read(opened), read(memory), np.asarray(read_rgb(path)).astype(int)):
            np.testing.assert_array_equal(found, from_path)
        assert np.abs(from_path - expected).max() <= levels


ARRAYS = {
    "uint8 (H,W)": (GREY, three(GREY)),
    "uint8 (H,W,1)": (GREY[..., None], three(GREY)),
    "uint8 (H,W,3)": (RGB, RGB),
    "uint8 (H,W,4)": (np.dstack([RGB, ALPHA]), on_white(RGB, ALPHA)),
    "uint16 (H,W)": (DEEP, three(GREY)),
    "uint16 (H,W,3)": (RGB.astype(np.uint16) * 257, RGB),
    "uint16, big endian": (DEEP.astype(">u2"), three(GREY)),
    "int32 of 16 bits": (DEEP.astype(np.int32), three(GREY)),
    "bool": (GREY > 127, three((GREY > 127) * 255)),
    "float32 (H,W,3)": ((RGB / 255).astype(np.float32), RGB),
    "float64 (H,W)": (GREY / 255, three(GREY)),
    "float16 (H,W,3)": ((RGB / 255).astype(np.float16), RGB),
    "not contiguous": (np.ascontiguousarray(RGB[:, ::-1])[:, ::-1], RGB),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_and_tensors_are_the_same_image(name):
    array, expected = ARRAYS[name]
    before = array.copy()
    assert np.abs(read(array) - expected).max() <= 1
    assert (array == before).all()
    native = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="))
    tensor = torch.from_numpy(native)
    assert np.abs(read(tensor) - expected).max() <= 1
    if tensor.ndim == 3:  # torchvision's order
        assert np.abs(read(tensor.permute(2, 0, 1)) - expected).max() <= 1


@pytest.mark.parametrize(("image", "reason"), [
    (RGB / 255 * 2 - 1, r"floats from -1 to 1.*pass x / 2 \+ 0\.5"),
    (torch.from_numpy(RGB / 255 * 2 - 1).permute(2, 0, 1), r"tensor: floats from -1 to 1.*pass x / 2 \+ 0\.5"),
    (RGB.astype(np.float32), r"floats from 0 to 255.*x / 255"),
    (np.full((4, 4), np.nan), "floats from nan"),
    (RGB.astype(np.int64), "int64 pixels up to 255 may have 8 or 16 bits"),
    (torch.from_numpy(RGB.astype(np.int32)), "int32 pixels up to 255 may have 8 or 16 bits"),
    (DEEP.astype(np.int32) * 2, "int32 pixels have no known white"),
    (DEEP.astype(np.uint32) * 2, "uint32 pixels have no known white"),
    (DEEP.astype(np.uint64) * 2, "uint64 pixels have no known white"),
    (DEEP.astype(np.int32) - 1, "int32 pixels have no known white"),
    (GREY.astype(np.int8), "int8 has no known white"),
    (RGB.transpose(2, 0, 1), r"channels go last: pass array\.transpose\(1, 2, 0\)"),
    (RGB[..., :2], r"shape \(24, 32, 2\)"),
    (RGB[None], "a list of its images"),
    (torch.from_numpy(RGB[None]), "a batch; pass a list"),
    (torch.zeros(3, 5, 3), r"may be \(H,W,C\) or \(C,H,W\)"),
    (RGB.astype(complex), "complex128 has no known white"),
    (b"bytes", "pass a path, a PIL image, an array or a tensor, not bytes"),
    (Image.fromarray(GREY.astype(np.float32)), "F pixels have no known white; save the image with"),
    (Image.fromarray(DEEP.astype(np.int32) * 2), "I pixels have no known white"),
    (Image.fromarray(GREY.astype(np.int32)), "I pixels up to 255 may have 8 or 16 bits"),
])  # fmt: skip
def test_values_without_a_known_meaning_are_refused_with_the_fix(image, reason):
    with pytest.raises(InputError, match=reason):
        upright_rgb(image)


@pytest.mark.parametrize("values", [GREY.astype(np.float32), DEEP.astype(np.int32) * 2, GREY.astype(np.int32)])
def test_they_are_refused_in_a_file_as_well(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif: [FI] pixels"):
        read_rgb(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif: [FI] pixels"):
        upright_rgb(Image.open(tmp_path / "a.tif"))


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_by_every_way(orientation, ending, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.full((24, 32, 3), 40, np.uint8)
    stored[:8, :16] = 220
    path = tmp_path / f"a.{ending}"
    Image.fromarray(stored).save(path, exif=exif)
    turned = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1), 7: stored.transpose(1, 0, 2)[::-1, ::-1], 8: np.rot90(stored)}  # fmt: skip
    found = read(path)
    expected = turned[orientation]
    assert found.shape == expected.shape and np.abs(found - expected).mean() < 4
    assert size_of(path) == (found.shape[1], found.shape[0])
    np.testing.assert_array_equal(read(Image.open(path)), found)
    np.testing.assert_array_equal(read(upright_rgb(path)), found)


def test_a_closed_file_is_one_line(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(InputError, match=r"a\.png: cannot be decoded .*; open it again"):
        upright_rgb(image)


# TIFF ---------------------------------------------------------------------------------------------------


def tiff(
    path: Path, values: np.ndarray, bits: int, photometric: int, order: str = "<", sample_format: int = 1
) -> Path:
    """One strip of grey, bits packed by the caller."""
    data = values.tobytes()
    tags = [(256, 3, SIZE[0]), (257, 3, SIZE[1]), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, 1), (278, 3, SIZE[1]), (279, 4, len(data)), (339, 3, sample_format)]  # fmt: skip
    ifd = struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        ifd += struct.pack(order + "HHI", tag, kind, 1) + struct.pack(order + ("HH" if kind == 3 else "I"), *(
            (value, 0) if kind == 3 else (value,)))  # fmt: skip
    head = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(head + struct.pack(order + "I", 8 + len(data)) + data + ifd + bytes(4))
    return path


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 8, 16])
def test_white_is_zero(bits, photometric, tmp_path):
    shown = (GREY > 127) * 255 if bits == 1 else GREY
    values = shown if photometric else 255 - shown
    packed = np.packbits(values > 0, axis=1) if bits == 1 else values.astype("<u2") * 257 if bits == 16 else values
    path = tiff(tmp_path / "a.tif", packed.astype(packed.dtype), bits, photometric)
    np.testing.assert_array_equal(read(path), three(shown))
    np.testing.assert_array_equal(read(Image.open(path)), three(shown))


def test_twelve_bits_are_scaled_by_their_own_white(tmp_path):
    values = np.rint(GREY / 255 * 4095).astype(int).reshape(-1, 2)
    packed = np.stack([values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], axis=1)
    found = read(tiff(tmp_path / "a.tif", packed.astype(np.uint8), 12, 1))
    assert np.abs(found - three(GREY)).max() <= 1


def test_twelve_bits_stored_in_sixteen_are_warned_of(tmp_path, capsys):
    read(tiff(tmp_path / "a.tif", (GREY.astype("<u2") * 16), 16, 1))
    assert "a.tif: 16-bit grey whose largest value is 4080" in (said := capsys.readouterr().err)
    assert "if it was stored with 12 bits, multiply it by 16" in said


@pytest.mark.parametrize("bits", [8, 16])
def test_signed_pixels_are_refused(bits, tmp_path):
    path = tiff(tmp_path / "a.tif", GREY.astype("<u2" if bits == 16 else np.uint8), bits, 1, sample_format=2)
    with pytest.raises(InputError, match="signed pixels have no known white"):
        read_rgb(path)


@pytest.mark.parametrize(("name", "options", "text"), [
    ("a.tif", {}, "of its 3 pages the first alone is read, 32x24"),
    ("a.png", {}, "of its 3 frames the first"),
    ("a.webp", {"lossless": True}, "of its 3 frames the first"),
    ("a.gif", {}, "of its 3 frames the first"),
    ("a.mpo", {}, "of its 3 images the first"),
])  # fmt: skip
def test_of_several_pages_it_is_stated_which_one_is_read(name, options, text, tmp_path, capsys):
    images = [Image.new("RGB", SIZE, colour) for colour in ("red", "lime", "blue")]
    for path in (tmp_path / name, tmp_path / f"b{name}"):
        images[0].save(path, save_all=True, append_images=images[1:], **options)
        assert np.abs(read(path) - [255, 0, 0]).max() <= 2
    said = capsys.readouterr().out
    assert said.count("note:") == 1 and f"{name}: {text}" in said
    opened = Image.open(tmp_path / name)
    opened.seek(1)  # the caller's choice
    assert np.abs(read(opened) - [0, 255, 0]).max() <= 4 and capsys.readouterr().out == ""


def test_a_thumbnail_in_front_is_not_taken_for_the_image(tmp_path):
    small, large = Image.new("RGB", (8, 6)), Image.new("RGB", (80, 60))
    small.save(tmp_path / "a.tif", save_all=True, append_images=[large], tiffinfo={254: 1})
    with pytest.raises(InputError, match="the first of its 2 pages is a thumbnail"):
        read_rgb(tmp_path / "a.tif")


# Transparency -------------------------------------------------------------------------------------------------------


def test_colours_under_transparent_pixels_have_no_effect(tmp_path, capsys):
    hidden = np.dstack([RGB, np.where(ALPHA == 0, 0, 255).astype(np.uint8)])
    clean = hidden.copy()
    clean[hidden[..., 3] == 0] = 0
    for name, pixels in (("hidden", hidden), ("clean", clean)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    np.testing.assert_array_equal(read(tmp_path / "hidden.png"), read(tmp_path / "clean.png"))
    assert (read(tmp_path / "hidden.png")[ALPHA == 0] == 255).all()
    assert capsys.readouterr().out.count("transparent areas are shown on white") == 1


def test_opaque_images_are_left_as_they_are_without_a_note(tmp_path, capsys):
    Image.fromarray(np.dstack([RGB, np.full_like(GREY, 255)])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), RGB)
    assert capsys.readouterr().out == ""


def png(path: Path, rows: np.ndarray, depth: int, colour: int, *chunks: bytes) -> Path:
    """A PNG whose rows are packed by the caller."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, depth, colour, 0, 0, 0))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    body = b"".join([head, *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")])
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def packed(values: np.ndarray, depth: int) -> np.ndarray:
    bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
    return np.packbits(bits.reshape(len(values), -1), axis=1)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_any_depth_is_white(depth, tmp_path):
    values = (GREY.astype(int) * 257) >> (16 - depth)
    rows = values.astype(">u2") if depth == 16 else values.astype(np.uint8) if depth == 8 else packed(values, depth)
    key = int(values[3, 5])
    path = png(tmp_path / "a.png", rows, depth, 0, chunk(b"tRNS", struct.pack(">H", key)))
    shown = np.where(values == key, 255, np.rint(values * 255 / (2**depth - 1))).astype(int)
    for found in (read(path), read(Image.open(path))):
        assert np.abs(found - three(shown)).max() <= (0 if depth == 16 else 1)


@pytest.mark.parametrize("colour", [2, 6])
def test_sixteen_bits_of_colour(colour, tmp_path):
    values = (RGB.astype(int) * 257 + 100).clip(0, 65535).astype(">u2")
    values[:2] = 65535
    rows = values if colour == 2 else np.dstack([values, np.full(GREY.shape, 65535)]).astype(">u2")
    found = read(png(tmp_path / "a.png", rows, 16, colour))
    assert np.abs(found - values.astype(int) / 257).max() <= 1


# Colour spaces ------------------------------------------------------------------------------------------------------

P3_RED, P3_GREEN = (234, 51, 35), (117, 251, 76)  # sRGB's red and green in Display P3's coding
P3 = [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)]  # D50, as Apple has it
SRGB = [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)]
ADOBE = [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(space: str, curve: float | None = None, primaries=None, lut: bytes = b"") -> bytes:
    """An ICC profile, version 2: grey or RGB by a gamma (None: sRGB's curve), inks by a table."""
    v = np.arange(1024) / 1023
    table = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    trc = struct.pack(">4s4xI", b"curv", 1024) + np.rint(table * 65535).astype(">u2").tobytes()
    if curve is not None:
        trc = struct.pack(">4s4xIH2x", b"curv", 1, round(curve * 256))
    text = b"made for a test\0"
    tags = {b"desc": struct.pack(">4s4xI", b"desc", len(text)) + text + bytes(79), b"wtpt": xyz(0.9642, 1, 0.8249)}
    if space == "GRAY":
        tags[b"kTRC"] = trc
    elif space == "RGB ":
        tags |= {name + b"TRC": trc for name in (b"r", b"g", b"b")}
        tags |= {name + b"XYZ": xyz(*place) for name, place in zip((b"r", b"g", b"b"), primaries)}
    else:
        tags[b"A2B0"] = lut
    offset, directory, data = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        directory += struct.pack(">4sII", name, offset + len(data), len(content))
        data += content
    pcs, kind = (b"Lab ", b"prtr") if lut else (b"XYZ ", b"mntr")
    head = struct.pack(">I4xI4s4s4s12x4s", offset + len(data), 0x02100000, kind, space.encode(), pcs, b"acsp")
    head = head + bytes(68 - len(head)) + fixed(0.9642, 1, 0.8249) + bytes(48)
    return head + struct.pack(">I", len(tags)) + directory + data


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + fixed(*values)


def uniform(*colour: int) -> Image.Image:
    return Image.new("RGB", SIZE, colour)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize(("colour", "expected"), [(P3_RED, (255, 0, 0)), (P3_GREEN, (0, 255, 0))])
def test_a_phones_display_p3_is_converted(colour, expected, ending, tmp_path, capsys):
    icc = profile("RGB ", None, P3)
    options = {"quality": 100} if ending in ("jpg", "webp") else {}
    uniform(*colour).save(tmp_path / f"a.{ending}", icc_profile=icc, **options)
    found = read(tmp_path / f"a.{ending}")
    assert np.abs(found - expected).max() <= 16  # near the edge of sRGB one level of P3 is several of sRGB
    assert "converted to sRGB from its ICC profile, made for a test" in capsys.readouterr().out
    np.testing.assert_array_equal(read(Image.open(tmp_path / f"a.{ending}")), found)


@pytest.mark.parametrize(("icc", "grey", "expected"), [
    (profile("RGB ", 1.0, SRGB), 55, 128), (profile("RGB ", 2.19921875, ADOBE), 20, 12),
    (profile("RGB ", 1.8, SRGB), 128, 145),
])  # fmt: skip
def test_other_curves_are_converted(icc, grey, expected, tmp_path):
    for image in (uniform(grey, grey, grey), Image.new("L", SIZE, grey)):
        image.save(tmp_path / "a.png", icc_profile=icc)
        assert np.abs(read(tmp_path / "a.png") - expected).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_a_linear_grey_profile_is_converted(bits, tmp_path):
    light = np.linspace(0, 1, 32)[None].repeat(24, 0)
    values = np.rint(light * 255).astype(np.uint8) if bits == 8 else np.rint(light * 65535).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", icc_profile=profile("GRAY", 1.0))
    expected = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert np.abs(read(tmp_path / "a.png")[..., 0] - expected).max() <= (2 if bits == 16 else 4)


@pytest.mark.parametrize("icc", [
    b"", profile("RGB ", None, SRGB), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
], ids=["none", "a table", "LittleCMS's"])  # fmt: skip
def test_srgb_stays_bit_for_bit(icc, tmp_path, capsys):
    for name, pixels in (("colour", RGB), ("grey", GREY)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png", icc_profile=icc)
        found = read(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(found, pixels if pixels.ndim == 3 else three(pixels))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("icc", "reason"), [
    (b"no profile" * 30, "cannot be read"), (profile("GRAY", 1.0), "is one of GRAY but the pixels are RGB"),
])  # fmt: skip
def test_a_broken_profile_is_warned_of(icc, reason, tmp_path, capsys):
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=icc)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), RGB)
    assert f"warning: {tmp_path / 'a.png'}: its ICC profile {reason}" in capsys.readouterr().err


def test_inks_are_converted_by_their_profile(tmp_path):
    """A table in which the paper is white, full black ink black, and nothing else has an effect."""
    curve = np.arange(256, dtype=np.uint8).tobytes()
    grid = b"".join(bytes([0 if node & 1 else 255, 128, 128]) for node in range(16))  # L, a, b; K varies fastest
    lut = struct.pack(">4s4xBBBx", b"mft1", 4, 3, 2) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + curve * 4 + grid + curve * 3
    pixels = np.zeros((24, 32, 4), np.uint8)
    pixels[:, 8:16, 3] = 255  # black
    pixels[:, 16:, 0] = 255  # cyan, which this press does not print
    Image.frombytes("CMYK", SIZE, pixels.tobytes()).save(tmp_path / "a.tif", icc_profile=profile("CMYK", lut=lut))
    found = read(tmp_path / "a.tif")
    assert found[:, :8].min() >= 250 and found[:, 8:16].max() <= 5 and found[:, 16:].min() >= 250


def test_the_inverted_inks_of_photoshops_jpeg(tmp_path):
    inks = Image.frombytes("CMYK", SIZE, np.full((24, 32, 4), (0, 200, 200, 0), np.uint8).tobytes())
    inks.save(tmp_path / "a.jpg", quality=95)  # Pillow writes Adobe's marker and the inverse, as Photoshop does
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    assert np.abs(read(tmp_path / "a.jpg") - (255, 55, 55)).max() <= 4


def gama(gamma: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))


P3_PLACES = chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))


@pytest.mark.parametrize(("chunks", "colour", "expected"), [
    ([gama(1.0)], (55, 55, 55), (128, 128, 128)),
    ([gama(1 / 1.8)], (128, 128, 128), (145, 145, 145)),
    ([gama(0.45455)], (55, 128, 200), (55, 128, 200)),
    ([chunk(b"sRGB", b"\0"), gama(1.0)], (55, 128, 200), (55, 128, 200)),
    ([gama(0.45455), P3_PLACES], P3_RED, (255, 0, 0)),
    ([chunk(b"cICP", bytes([12, 13, 0, 1]))], P3_RED, (255, 0, 0)),
    ([chunk(b"cICP", bytes([1, 8, 0, 1]))], (55, 55, 55), (128, 128, 128)),
    ([chunk(b"cICP", bytes([1, 13, 0, 1])), gama(1.0)], (55, 128, 200), (55, 128, 200)),
    ([chunk(b"cICP", bytes([9, 16, 0, 1]))], (148, 148, 148), (255, 255, 255)),  # PQ: 203 cd/m2
    ([chunk(b"tEXt", bytes(64)), chunk(b"cICP", bytes([1, 8, 0, 1]))], (55, 55, 55), (128, 128, 128)),
    ([chunk(b"tEXt", bytes(65)), chunk(b"cICP", bytes([1, 8, 0, 1]))], (55, 55, 55), (128, 128, 128)),
])  # fmt: skip
def test_a_pngs_chunks_state_its_colours(chunks, colour, expected, tmp_path):
    path = png(tmp_path / "a.png", np.full((24, 32, 3), colour, np.uint8), 8, 2, *chunks)
    found = read(path)
    assert np.abs(found - expected).max() <= 12 if colour == P3_RED else np.abs(found - expected).max() <= 1
    for image in (Image.open(path), Image.open(io.BytesIO(path.read_bytes()))):
        np.testing.assert_array_equal(read(image), found)


def test_colours_of_another_matrix_are_refused(tmp_path):
    path = png(tmp_path / "a.png", RGB, 8, 2, chunk(b"cICP", bytes([9, 16, 9, 1])))
    with pytest.raises(
        InputError, match=r"a\.png: colours by cICP \(9, 16, 9, 1\), which is not read; save it as sRGB"
    ):
        read_rgb(path)


def test_a_cameras_adobe_rgb_without_a_profile(tmp_path):
    """sRGB's (255, 0, 0) is (219, 0, 0) in Adobe RGB."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 2
    uniform(219, 0, 0).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    assert np.abs(read(tmp_path / "a.jpg") - (255, 0, 0)).max() <= 4


# Large images -------------------------------------------------------------------------------------------------------


def test_a_large_photograph_is_read_and_its_memory_stated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(opening, "LARGE", 700)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses from twice that
    Image.fromarray(RGB).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), RGB)
    assert size_of(tmp_path / "a.png") == SIZE and read_label(tmp_path / "a.png").size == SIZE
    np.testing.assert_array_equal(read_array(tmp_path / "a.png"), RGB)
    assert "megapixels; reading takes up to 0.0 GB" in capsys.readouterr().out
    assert Image.MAX_IMAGE_PIXELS == 100  # other programs' images keep Pillow's limit


def test_pillows_limit_stays_a_number_while_a_header_is_read(tmp_path, monkeypatch):
    """Another thread may be comparing a crop's size with twice the limit, which fails for None."""
    limits = []
    monkeypatch.setattr(
        opening, "identify", lambda path: limits.append(Image.MAX_IMAGE_PIXELS) or Image.new("L", SIZE)
    )
    opening.open_header(tmp_path / "a.png")
    assert 2 * limits[0] > opening.MAX_PIXELS


def test_an_image_beyond_the_memory_is_to_be_scaled_down(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "LARGE", 700)
    monkeypatch.setattr(opening, "BYTES_PER_PIXEL", 10**12)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for reader in (read_rgb, read_label, size_of):
        with pytest.raises(InputError, match=r"a\.png: 32x24 pixels need .* GB to read; scale it down to at most"):
            reader(tmp_path / "a.png")


def test_beyond_a_gigapixel_it_is_refused(tmp_path):
    bmp = encoded("BMP")
    (tmp_path / "a.bmp").write_bytes(bmp[:18] + struct.pack("<ii", 40_000, 40_000) + bmp[26:])
    with pytest.raises(InputError, match=r"40000x40000 pixels.*scale it down") as error:
        read_rgb(tmp_path / "a.bmp")
    assert "attack" not in str(error.value) and "remove" not in str(error.value)


# Labels: data, not photographs --------------------------------------------------------------------------------------


def test_a_labels_values_are_never_converted(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=profile("RGB ", 1.0, P3))
    np.testing.assert_array_equal(np.asarray(read_label(tmp_path / "a.png")), RGB)
    png(tmp_path / "b.png", RGB, 8, 2, gama(1.0))
    np.testing.assert_array_equal(np.asarray(read_label(tmp_path / "b.png")), RGB)


@pytest.mark.parametrize("name", ["LA", "RGBA", "P, transparent index", "P, bytes", "PA"])
def test_a_transparent_label_is_refused(name, tmp_path):
    image, _, ending, _ = MODES[name]
    image.save(tmp_path / f"a.{ending}", **{k: v for k, v in image.info.items() if k == "transparency"})
    with pytest.raises(InputError, match=r"a label with transparent pixels.*save it without alpha"):
        read_label(tmp_path / f"a.{ending}")


@pytest.mark.parametrize("image", [
    Image.fromarray(np.dstack([RGB, np.full_like(GREY, 255)])), Image.fromarray(RGB), palette(),
])  # fmt: skip
def test_an_opaque_label_is_what_it_shows(image, tmp_path):
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(read_label(tmp_path / "a.png")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
def test_a_label_of_inks_is_refused(mode, tmp_path):
    MODES[mode][0].save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=f"a label of mode {mode}; save it as 8-bit grey or RGB"):
        read_label(tmp_path / "a.tif")


def test_a_label_of_several_pages_is_refused(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(RGB)])
    with pytest.raises(InputError, match="a label of 2 pages or frames"):
        read_label(tmp_path / "a.tif")
