"""One reader for all doors: a map in every format, through evaluation and data sets, has the same values."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dataloaders.check import main as check
from dataloaders.folder import FolderMaps
from dataloaders.listing import Sample
from utils.errors import InputError
from utils.evaluation.pairs import Pair
from utils.evaluation.scoring import load_prediction, load_truth
from utils.image_io.colour_space import to_linear
from utils.image_io.files import png, read_array, read_exr, read_rgb16, write_exr
from utils.intrinsics import ALBEDO, DEPTH, NORMAL
from utils.kinds.base import Rules

RNG = np.random.default_rng(0)
SHAPE = (24, 32)
NORMALS = RNG.normal(size=(*SHAPE, 3))
NORMALS /= np.linalg.norm(NORMALS, axis=2, keepdims=True)
METRES = RNG.uniform(1, 9, SHAPE)
CODED = RNG.integers(0, 256, (*SHAPE, 3)) / 255  # sRGB; 8 bits hold it exactly


def save_npy(dtype=np.float32, change=lambda array: array):
    def write(path, values):
        np.save(path.with_suffix(".npy"), change(values.astype(dtype)))
        return path.with_suffix(".npy")

    return write


def whole(dtype):
    """Shares [0,1] as whole numbers."""
    return lambda shares: np.round(shares * np.iinfo(dtype).max).astype(dtype)


def save_png(path, pixels):
    Image.fromarray(pixels).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def save_png16(path, pixels):
    path.with_name(f"{path.name}_16bit.png").write_bytes(png(pixels, {}))
    return path.with_name(f"{path.name}_16bit.png")


def save_exr(channels):
    def write(path, values):
        values = np.stack([values, values], 2) if channels == "ZY" else values
        write_exr(path.with_suffix(".exr"), values, channels, {})
        return path.with_suffix(".exr")

    return write


FLOATS = {
    "float32": save_npy(), "float64": save_npy(np.float64), "float16": save_npy(np.float16),
    "big-endian": save_npy(">f4"), "fortran": save_npy(np.float32, np.asfortranarray),
}  # fmt: skip
N8, N16 = (lambda n, d=d: whole(d)(n / 2 + 0.5) for d in (np.uint8, np.uint16))
WAYS = [  # kind, name, write(path, values) -> file, largest error
    *(("normals", name, write, 1e-3) for name, write in FLOATS.items()),
    ("normals", "uint8 .npy", lambda p, n: save_npy(np.uint8)(p, N8(n)), 0.006),
    ("normals", "uint16 .npy", lambda p, n: save_npy(np.uint16)(p, N16(n)), 2e-5),
    ("normals", "8-bit .png", lambda p, n: save_png(p, N8(n)), 0.006),
    ("normals", "16-bit .png", lambda p, n: save_png16(p, N16(n)), 2e-5),
    ("normals", ".exr", save_exr("XYZ"), 1e-6),
    ("normals", ".exr RGB", save_exr("RGB"), 1e-6),
    *(("depth", name, write, 5e-3) for name, write in FLOATS.items()),
    ("depth", "(H,W,1)", save_npy(np.float32, lambda a: a[..., None]), 1e-6),
    ("depth", ".exr Z and Y", save_exr("ZY"), 1e-6),
    ("depth", ".exr Z", save_exr("Z"), 1e-6),
    ("colour", "uint8 .npy", lambda p, c: save_npy(np.uint8)(p, whole(np.uint8)(c)), 1e-6),
    ("colour", "8-bit .png", lambda p, c: save_png(p, whole(np.uint8)(c)), 1e-6),
    ("colour", "uint16 .npy", lambda p, c: save_npy(np.uint16)(p, whole(np.uint16)(c)), 1e-4),
    ("colour", "16-bit .png", lambda p, c: save_png16(p, whole(np.uint16)(c)), 1e-4),
    ("colour", ".exr", lambda p, c: save_exr("RGB")(p, to_linear(c)), 1e-5),
    ("colour", "linear .npy", lambda p, c: save_npy()(p, to_linear(c)), 1e-5),
]


@pytest.mark.parametrize("door", ["truth", "prediction", "own folder"])
@pytest.mark.parametrize(("kind", "name", "write", "tolerance"), WAYS, ids=[f"{w[0]}-{w[1]}" for w in WAYS])
def test_one_map_has_the_same_values_in_every_format_and_through_every_door(
    kind, name, write, tolerance, door, tmp_path
):
    intrinsic = {"normals": NORMAL, "depth": DEPTH, "colour": ALBEDO}[kind]
    values = {"normals": NORMALS, "depth": METRES, "colour": CODED}[kind]
    path = write(tmp_path / "a", values)
    expected = to_linear(values) if kind == "colour" else values
    stored = "linear" if name == "linear .npy" else "srgb"  # what the flags of evaluate.py would state
    if door == "own folder":
        if path.suffix == ".png" and kind == "depth":
            pytest.skip("no unit")
        maps = FolderMaps([Sample("a", path, path, path)], intrinsic, True, resolution=24)
        found, known = maps.ground_truth("a")
        found = found[..., 0] if kind == "depth" else found
    elif door == "truth":
        rules = Rules(intrinsic, "plain" if kind == "depth" else "pooled", gt_space=stored, pred_space=stored)
        truth = load_truth(Pair("a", None, path), rules)
        found, known = truth.gt, truth.valid
        found = to_linear(found) if kind == "colour" and stored == "srgb" else found
    else:
        rules = Rules(intrinsic, "plain", gt_space="linear", pred_space=stored)
        found, known = load_prediction(Pair("a", path, path), rules, load_truth(Pair("a", path, path), rules))[0], True
    assert np.all(known)
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_depth_in_whole_numbers_needs_a_unit_and_gets_it_in_every_format(tmp_path):
    millimetres = np.round(1000 * METRES)
    for write, dtype in ((save_npy(np.uint16), np.uint16), (save_npy(np.int32), np.int32), (save_png, np.uint16)):
        path = write(tmp_path / "a", millimetres.astype(dtype))
        with pytest.raises(InputError, match=r"a\.(npy|png): .*unit: give --gt_depth_scale.*1000.*256"):
            DEPTH.map_kind.read_truth(path)
        np.testing.assert_allclose(DEPTH.map_kind.read_truth(path, units_per_metre=1000).values, METRES, atol=6e-4)
    for path in (save_npy()(tmp_path / "b", millimetres), save_exr("Z")(tmp_path / "b", millimetres)):
        np.testing.assert_allclose(DEPTH.map_kind.read_truth(path, units_per_metre=1000).values, METRES, atol=6e-4)
    with pytest.raises(InputError, match="8-bit array, too coarse for metres"):
        DEPTH.map_kind.read_truth(save_npy(np.uint8)(tmp_path / "a", METRES), units_per_metre=10)


def test_depth_along_minus_z_is_refused_with_the_fix(tmp_path):
    with pytest.raises(InputError, match=r"a\.npy: depth is negative on 768 of 768 pixels.*negate it"):
        DEPTH.map_kind.read_truth(save_npy()(tmp_path / "a", -METRES))
    some = METRES.copy()
    some[:20] = -1  # one number: a code
    assert DEPTH.map_kind.read_truth(save_npy()(tmp_path / "a", some)).unknown == {"-1": 20 * 32}


def test_a_prediction_of_ours_is_not_taken_for_metres(tmp_path):
    (tmp_path / "a.png").write_bytes(png(whole(np.uint16)(METRES / 9), {"polarity": "near = white, linear"}))
    with pytest.raises(InputError, match=r"a\.png: is a prediction, not metres"):
        DEPTH.map_kind.read_truth(tmp_path / "a.png", units_per_metre=1000)


def test_the_ends_of_16_bit_depth_are_what_its_header_states(tmp_path):
    about = {"value_at_0": "-2.5", "value_at_65535": "1.5"}
    (tmp_path / "a.png").write_bytes(png(np.array([[0, 65535]], np.uint16), about))
    assert DEPTH.map_kind.read_prediction(tmp_path / "a.png").values.tolist() == [[-2.5, 1.5]]


def filtered_png(pixels, kind, colour=2):
    """16-bit RGB by hand with one of PNG's five filters on every row (ISO/IEC 15948, clause 9)."""
    height, width = pixels.shape[:2]
    step = 2 * pixels.shape[2]
    rows = np.ascontiguousarray(pixels, ">u2").reshape(height, -1).view(np.uint8).astype(int)
    out = b""
    for y in range(height):
        up = rows[y - 1] if y else np.zeros_like(rows[0])
        left, corner = (np.concatenate([np.zeros(step, int), line[:-step]]) for line in (rows[y], up))
        guess = left + up - corner
        near = np.abs(np.stack([guess - left, guess - up, guess - corner])).argmin(0)
        paeth = np.choose(near, [left, up, corner])
        row = rows[y] - [0 * up, left, up, (left + up) // 2, paeth][kind]
        out += bytes([kind]) + (row % 256).astype(np.uint8).tobytes()

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(out)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", range(5))
def test_16_bit_colour_png_is_read_with_every_filter(kind, tmp_path):
    pixels = RNG.integers(0, 65536, (*SHAPE, 3)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(filtered_png(pixels, kind))
    assert np.array_equal(read_rgb16(tmp_path / "a.png"), pixels)
    assert np.array_equal(read_array(tmp_path / "a.png"), pixels)


def test_16_bit_colour_with_alpha_is_refused(tmp_path):
    pixels = RNG.integers(0, 65536, (*SHAPE, 4)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(filtered_png(pixels, 0, colour=6))
    with pytest.raises(InputError, match=r"a\.png: .*mode RGBA.*_mask\.png"):
        NORMAL.map_kind.read_truth(tmp_path / "a.png")


@pytest.mark.parametrize(("channels", "words"), [
    ("RGBZ", "has the channels"), (["left.Z", "right.Z"], "has the channels"), ("RGBA", "has transparent pixels"),
])  # fmt: skip
def test_exr_files_that_could_mean_two_things_are_refused(channels, words, tmp_path):
    write_exr(tmp_path / "a.exr", RNG.uniform(0, 0.9, (*SHAPE, len(channels))), channels, {})
    with pytest.raises(InputError, match=rf"a\.exr: .*{words}"):
        NORMAL.map_kind.read_truth(tmp_path / "a.exr")


def test_an_opaque_exr_and_its_header_are_read(tmp_path):
    values = np.concatenate([NORMALS, np.ones((*SHAPE, 1))], 2)
    write_exr(tmp_path / "a.exr", values, "RGBA", {"task": "normal"})
    found, about = read_exr(tmp_path / "a.exr")
    np.testing.assert_array_equal(found, NORMALS.astype(np.float32))
    assert about["task"] == "normal"


def test_what_is_no_exr_or_lacks_the_package_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.exr").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.exr: .*not an OpenEXR file"):
        DEPTH.map_kind.read_truth(tmp_path / "a.exr")
    monkeypatch.setitem(__import__("sys").modules, "OpenEXR", None)
    with pytest.raises(InputError, match=r"a\.exr: .*pip install OpenEXR"):
        DEPTH.map_kind.read_truth(tmp_path / "a.exr")


def test_check_opens_every_format(tmp_path, capsys):
    for folder in ("images", "labels", "gt"):
        (tmp_path / folder).mkdir()
    for name in "abcd":
        for folder in ("images", "labels"):
            save_png(tmp_path / folder / name, N8(NORMALS))
    save_png16(tmp_path / "gt" / "a", N16(NORMALS))
    save_exr("XYZ")(tmp_path / "gt" / "b", NORMALS)
    save_npy(np.uint8)(tmp_path / "gt" / "c", N8(NORMALS))
    assert check(["--dataset", "folder", "--train_data_dir", str(tmp_path)]) == 0
    assert "4 samples, 11 files" in capsys.readouterr().out


def test_former_module_names_still_import():
    from utils.maps.depth_coding import encode_far as former_encode
    from utils.maps.images import read_rgb as former_read

    from utils.image_io.images import read_rgb
    from utils.kinds.alignment import encode_far
    from utils.labels.teacher import Teacher as former_teacher
    from utils.labels.teachers import Teacher

    assert (former_read, former_encode, former_teacher) == (read_rgb, encode_far, Teacher)
