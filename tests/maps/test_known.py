"""Which pixels of a map are known: every code of "unknown", and that no correct map loses a pixel."""

import numpy as np
import pytest

from miniworld.scenes import render
from utils.intrinsics import ALBEDO, DEPTH, NORMAL
from utils.kinds.axes import to_frame
from utils.kinds.base import shares

KINDS = {"normals": NORMAL.map_kind, "depth": DEPTH.map_kind, "colour": ALBEDO.map_kind}
RNG = np.random.default_rng(0)
SHAPE = (20, 30)


def normals():
    vectors = RNG.normal(size=(*SHAPE, 3))
    return (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float32)


def encoded(vectors, dtype=np.uint8):
    return np.round(np.iinfo(dtype).max * (vectors.astype(np.float64) / 2 + 0.5)).astype(dtype)


def depth(low=0.5, high=20.0):
    return RNG.uniform(low, high, SHAPE).astype(np.float32)


GREYS = [(r, g, b) for r in (127, 128) for g in (127, 128) for b in (127, 128)]
CODES = [
    *(("normals", encoded, code, "mid-grey") for code in GREYS),
    ("normals", encoded, (0, 0, 0), "black"),
    ("normals", encoded, (255, 255, 255), "white"),
    ("normals", lambda n: encoded(n, np.uint16), (0, 0, 0), "black"),
    ("normals", lambda n: encoded(n, np.uint16), (32767, 32768, 32767), "mid-grey"),
    ("normals", lambda n: encoded(n, np.uint16), (128 * 257, 127 * 257, 128 * 257), "mid-grey"),
    ("normals", lambda n: n, (0, 0, 0), "zero vector"),
    ("normals", lambda n: n, (0, np.nan, 1), "NaN or inf"),
    ("normals", lambda n: n, (-1, -1, -1), "decoded black or white"),
    ("normals", lambda n: n, (-1, 1, 1), "decoded black or white"),  # and y, z flipped since
    ("normals", lambda n: n, tuple(2 * np.float32([127, 128, 127]) / 255 - 1), "decoded mid-grey"),
    ("depth", lambda d: d, 0, "0"),
    ("depth", lambda d: d, np.nan, "NaN or inf"),
    ("depth", lambda d: d, np.inf, "NaN or inf"),
    *(("depth", lambda d: d, code, f"{code:g}") for code in (-1, -999)),
    *(("depth", lambda d: d, code, f"{code:.7g}, far behind the rest") for code in (65.535, 655.35, 65535, 1e3, 1e4)),
    ("depth", lambda d: d, 1e10, "1e+09 m or more"),
    ("depth", lambda d: d, np.finfo(np.float32).max, "1e+09 m or more"),
    ("depth", lambda d: d.astype(np.float64), 9999, "9999, far behind the rest"),
    ("depth", lambda d: d.astype(np.float16), 65504, "65504, far behind the rest"),
    ("depth", lambda d: (1000 * d).astype(np.uint16), 65535, "65535, the format's largest"),
    ("depth", lambda d: (1000 * d).astype(np.int32), 65535, "65535, far behind the rest"),
    ("depth", lambda d: (1000 * d).astype(np.int32), -1, "-1"),
    ("colour", lambda c: c, (np.nan, 0, 0), "NaN or inf"),
    ("colour", lambda c: c, (-1, -1, -1), "-1"),
]


@pytest.mark.parametrize(("kind", "store", "code", "reason"), CODES)
def test_every_code_of_unknown_is_named_and_nothing_else_is_lost(kind, store, code, reason):
    units = 1000 if kind == "depth" and np.issubdtype(store(depth()).dtype, np.integer) else 1
    raw = store({"normals": normals, "depth": depth, "colour": lambda: RNG.uniform(0, 1, (*SHAPE, 3))}[kind]())
    assert KINDS[kind].known_pixels(raw, units_per_metre=units).pixels.all()
    raw[:, :3] = code
    found = KINDS[kind].known_pixels(raw, units_per_metre=units)
    assert found.unknown == {reason: 3 * SHAPE[0]}
    assert not found.pixels[:, :3].any() and found.pixels[:, 3:].all()


FAR = [*(10**power for power in range(3, 9)), *(10**power - 1 for power in range(3, 9))]


@pytest.mark.parametrize("code", FAR)
def test_round_numbers_and_nines_that_data_sets_use_for_far_are_codes_and_their_neighbours_are_not(code):
    """1000 to 1e8, and 999 to 99999999, and what lies between them."""
    for number, unknown in ((code, 30), (1.5 * code, 0), (0.7 * code, 0)):
        raw = depth().astype(np.float64)
        raw[0] = number
        assert (~KINDS["depth"].known_pixels(raw).pixels).sum() == unknown, number


@pytest.mark.parametrize("number", [100.0, 99.0, 2000.0, 500.0])
def test_other_round_numbers_are_distances(number):
    raw = depth().astype(np.float64)
    raw[0] = number
    assert KINDS["depth"].known_pixels(raw).pixels.all()


def test_a_pixel_is_counted_once_and_the_mask_first():
    raw = encoded(normals())
    raw[:10] = 0
    mask = np.ones(SHAPE)
    mask[:, :15] = 0
    found = KINDS["normals"].known_pixels(raw, mask)
    assert found.unknown == {"outside the mask": 300, "black": 150}
    assert shares(found.unknown, raw[..., 0].size, "pixels") == (
        "75.0 % of pixels are unknown: 50.0 % outside the mask, 25.0 % black"
    )
    assert shares({}, 600, "pixels") is None
    assert shares({"0": 1}, 600_000, "pixels") == "0.0002 % of pixels are unknown: 0.0002 % 0"


def test_two_codes_in_one_map_are_both_found():
    raw = depth()
    raw[0], raw[1] = 65535, 1000
    found = KINDS["depth"].known_pixels(raw)
    assert found.unknown == {"65535, far behind the rest": 30, "1000, far behind the rest": 30}


@pytest.mark.parametrize("largest", [1000.0, 80.0, 100.0, 65.5, 655.0])
def test_a_large_distance_is_no_code(largest):
    """Numbers that are codes only where nothing else is nearly as far, and some that are not codes."""
    raw = depth(1, 0.9 * largest)
    raw[:3] = largest
    assert KINDS["depth"].known_pixels(raw).pixels.all()
    raw = depth()
    raw[:3] = largest if largest < 1000 else 1001
    assert KINDS["depth"].known_pixels(raw).pixels.all()


def test_predicted_depth_and_colours_have_no_code():
    for raw in (np.array([[0, 255]], np.uint8), np.array([[0, 65535]], np.uint16), np.array([[-1.0, 65535]])):
        assert KINDS["depth"].known_pixels(raw, prediction=True).pixels.all()
        assert KINDS["colour"].known_pixels(raw, prediction=True).pixels.all()
    assert KINDS["colour"].known_pixels(np.zeros((2, 2, 3), np.uint8)).pixels.all()  # black is an albedo


def test_this_projects_own_images_have_a_value_everywhere():
    black = np.zeros((2, 2, 3), np.uint8)
    assert KINDS["normals"].known_pixels(black, about={"software": "intrinsic-lora 1.0"}).pixels.all()
    assert not KINDS["normals"].known_pixels(black, about={"software": "another program"}).pixels.any()


@pytest.mark.parametrize("world", ["room", "yard"])
@pytest.mark.parametrize("seed", range(4))
def test_no_rendered_scene_loses_a_pixel(world, seed):
    """In all stored forms, sky and far surfaces included: false alarms of the codes are none."""
    scene = render(seed, world, 48, 64)
    metres = scene.depth.astype(np.float32)
    forms = [metres, metres.astype(np.float16), metres.astype(np.float64), (100 * metres).astype(np.uint16)]
    for raw, units in zip(forms, (1, 1, 1, 100)):
        assert np.array_equal(KINDS["depth"].known_pixels(raw, units_per_metre=units).pixels, scene.depth > 0)
    for frame in ("opencv", "opengl"):
        vectors = to_frame(scene.normal.astype(np.float32), frame)
        assert KINDS["normals"].known_pixels(vectors).pixels.all()
        for dtype in (np.uint8, np.uint16):
            assert KINDS["normals"].known_pixels(encoded(vectors, dtype)).pixels.all()
