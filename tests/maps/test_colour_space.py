"""Colour spaces against the numbers of their standards."""

import numpy as np
import pytest

from utils.image_io.colour_space import (
    ADOBE_RGB,
    PRIMARIES,
    TRANSFERS,
    _adapted,
    rgb_to_srgb,
    to_linear,
    to_srgb,
    to_srgb8,
)

D65, C, DCI = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)


def test_srgb_is_iec_61966():
    """Its two branches meet at 0.04045 and 0.0031308, and the curve is odd around 0."""
    coded = np.array([0.04, 0.04045, 0.05, 0.5, 1.0])
    linear = np.array([0.04 / 12.92, 0.0031308, (0.105 / 1.055) ** 2.4, 0.21404114, 1])
    np.testing.assert_allclose(to_linear(coded), linear, rtol=3e-6)
    np.testing.assert_allclose(to_srgb(linear), coded, rtol=3e-6)
    np.testing.assert_array_equal(to_linear(-coded), -to_linear(coded))
    np.testing.assert_array_equal(to_srgb(-linear), -to_srgb(linear))


def test_primaries_and_curves_are_those_of_h273():
    """ITU-T H.273, tables 2 and 3: white, red, green, blue. None: shown as sRGB."""
    assert {
        **dict.fromkeys((1, 2, 5, 6, 7, 22)),
        4: (*C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
        8: (*C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
        9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
        11: (*DCI, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
        12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    } == PRIMARIES
    assert [code for code, curve in TRANSFERS.items() if curve is None] == [1, 2, 6, 7, 11, 12, 13, 14, 15]
    half = np.array([0.5, 1.0])
    for code, light in {
        4: [0.5**2.2, 1],
        5: [0.5**2.8, 1],
        8: [0.5, 1],
        17: [0.5**2.6 * 52.37 / 48, 52.37 / 48],
    }.items():
        np.testing.assert_allclose(TRANSFERS[code](half), light, rtol=1e-12)


@pytest.mark.parametrize(
    ("primaries", "matrix"),
    [  # BT.2087 for BT.2020; the others as published for Adobe RGB (1998) and Display P3
        (PRIMARIES[9], [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]),
        (ADOBE_RGB, [[1.3984, -0.3984, 0], [0, 1, 0], [0, -0.0429, 1.0429]]),
        (PRIMARIES[12], [[1.2249, -0.2249, 0], [-0.0421, 1.0421, 0], [-0.0196, -0.0786, 1.0983]]),
    ],
)
def test_matrices_to_srgb_are_the_published_ones(primaries, matrix):
    np.testing.assert_allclose(rgb_to_srgb(primaries), matrix, atol=1e-4)


@pytest.mark.parametrize("code", [4, 8, 9, 11, 12])
def test_white_stays_white(code):
    np.testing.assert_allclose(rgb_to_srgb(PRIMARIES[code]) @ np.ones(3), np.ones(3), atol=1e-3)


def test_the_adaptation_is_bradfords():
    """From illuminant C; the matrix as published by Lindbloom, with his white points (1931 2 degree)."""
    published = [
        [0.9904476, -0.0071683, -0.0116156],
        [-0.0123712, 1.0155950, -0.0029282],
        [-0.0035635, 0.0067697, 0.9181569],
    ]
    np.testing.assert_allclose(_adapted((0.31006, 0.31616)), published, atol=3e-4)  # D65 is rounded here


def test_pq_is_in_units_of_the_reference_white():
    """SMPTE ST 2084: these signals are 0, 100, 1,000 and 10,000 cd/m2; white is 203 (ITU-R BT.2408)."""
    light = TRANSFERS[16](np.array([0, 0.50807842, 0.75182705, 1]))
    np.testing.assert_allclose(light, np.array([0, 100, 1000, 10_000]) / 203, rtol=1e-5)


def test_hlg_is_in_units_of_the_reference_white():
    """BT.2100: signals of 0.25, 0.5 and 1 are a 48th, a 12th and all of the scene's peak, 0.75 is white."""
    light = TRANSFERS[18](np.array([0.25, 0.5, 1, 0.75]))
    np.testing.assert_allclose(light, np.array([1 / 48, 1 / 12, 1, 0.26496256]) / 0.26496256, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_row_is_converted_and_clipped(dtype):
    """Linear light, 130 rows: 65 and more are converted in several parts. Display P3's green is beyond sRGB."""
    white = np.iinfo(dtype).max
    light = np.linspace(0, white, 130).astype(dtype)
    pixels = np.repeat(light[:, None, None], 3, axis=2)
    expected = np.rint(255 * to_srgb(light / white))
    assert (to_srgb8(pixels, lambda v: v, None)[:, 0] == expected[:, None]).all()
    assert to_srgb8(pixels[-1:], lambda v: 2 * v, None).tolist() == [[[255, 255, 255]]]
    green = np.array([[[0, white, 0]]], dtype)
    assert to_srgb8(green, lambda v: v, PRIMARIES[12]).tolist() == [[[0, 255, 0]]]
