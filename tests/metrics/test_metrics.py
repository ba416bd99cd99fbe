"""Closed forms and invariances of the scores, independent of the implementation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from utils.evaluation import aggregation
from utils.evaluation.scoring import Truth, center_window, erode, fit_to
from utils.image_io.colour_space import to_linear, to_srgb
from utils.intrinsics import DEPTH, NORMAL
from utils.kinds.alignment import align_depth, align_scale_shift, depth_metrics
from utils.kinds.axes import convert_frame, to_frame, unit_vectors
from utils.kinds.base import Rules
from utils.kinds.colour import albedo_metrics, local_mse, ssim, whdr
from utils.kinds.depth import DEPTH_RULES, kitti_window
from utils.kinds.frames import FRAMES
from utils.kinds.normals import ANGLE_BINS, BINS_PER_DEGREE, angle_bins, angular_error, normal_metrics

RNG = np.random.default_rng(0)


def random_normals(*shape):
    return unit_vectors(RNG.normal(size=(*shape, 3)))


def lit(shape=(60, 80)):
    """Smooth positive depth, 1 to 9 metres."""
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    return 5 + 3 * np.sin(rows / 9) + np.cos(cols / 7)


# Angles


@pytest.mark.parametrize(
    ("pred", "gt", "angle"),
    [
        ([1, 0, 0], [1, 0, 0], 0),
        ([1, 0, 0], [0, 1, 0], 90),
        ([0, 0, 1], [0, 0, -1], 180),
        ([1, 1, 0], [1, 0, 0], 45),
        ([1, 0, 0], [-0.5, math.sqrt(3) / 2, 0], 120),
        ([3, -4, 12], [-3, 4, -12], 180),
    ],
)
def test_known_angles(pred, gt, angle):
    assert angular_error(pred, gt) == pytest.approx(angle, abs=1e-13)
    assert angular_error(np.float32(pred), np.float32(gt) * 7) == pytest.approx(angle, abs=1e-5)


def test_equal_and_opposite_normals_are_exact():
    normals = random_normals(1000).astype(np.float32)
    assert (angular_error(normals, normals) == 0).all()
    assert (angular_error(normals, -normals) == 180).all()


def test_angles_agree_with_acos():
    pred, gt = random_normals(500), random_normals(500)
    acos = np.degrees(np.arccos(np.clip((pred * gt).sum(-1), -1, 1)))
    np.testing.assert_allclose(angular_error(pred * 3, gt), acos, rtol=1e-9)


@pytest.mark.parametrize("bad", [[0, 0, 0], [np.nan, 0, 1], [np.inf, 0, 0], [np.inf, -np.inf, 1]])
def test_no_direction_has_no_angle(bad):
    bad = np.array([bad, [1.0, 0, 0]])
    good = np.array([[1.0, 0, 0], [1.0, 0, 0]])
    assert np.isnan(angular_error(bad, good)).tolist() == [True, False]
    assert np.isnan(angular_error(good, bad)).tolist() == [True, False]


def test_length_does_not_matter_even_at_the_ends_of_float64():
    long = angular_error([[1e200, 0, 1e200], [1e-200, 0, 1e-200]], [[1e-200, 0, 0], [1e-200, 0, 0]])
    np.testing.assert_allclose(long, 45, rtol=1e-12)
    turned = 1e200 * np.array([[math.sqrt(3) / 2, 0.5, 0]])  # products overflow: inf over inf would be 45 degrees
    np.testing.assert_allclose(angular_error(turned, [[1e200, 0, 0]]), 30, rtol=1e-12)
    huge, tiny = np.array([[1e200, 0, 1e200]]), np.array([[0, 1e-200, 0]])
    assert angular_error(huge, huge * [[1, 1, -1]]) == angular_error(tiny, tiny[:, [1, 0, 2]]) == 90


vectors = hnp.arrays(np.float64, (5, 3), elements=st.floats(-10, 10, width=32)).filter(
    lambda v: (np.abs(v).max(-1) > 1e-3).all()
)


@given(vectors, vectors, st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_angle_properties(p, g, scale):
    angle = angular_error(p, g)
    assert ((angle >= 0) & (angle <= 180)).all()
    np.testing.assert_allclose(angular_error(g, p), angle, atol=1e-9)
    np.testing.assert_allclose(angular_error(scale * p, g), angle, atol=1e-9)
    np.testing.assert_allclose(angular_error(-p, g), 180 - angle, atol=1e-9)
    for frame in FRAMES:  # a frame is a rotation or a mirror: it moves both sides and no angle
        moved = angular_error(convert_frame(p, frame), convert_frame(g, frame))
        np.testing.assert_allclose(moved, angle, atol=1e-9)


def test_valid_normals():
    gt = np.array([[[1.0, -1, 0], [0, 0, 0], [np.nan, 0, 1], [0, np.inf, 0], [0, 0, 1e-9]]])
    assert NORMAL.map_kind.known_pixels(gt).pixels.tolist() == [[True, False, False, False, True]]
    mask = np.array([[0, 1, 1, 1, 2]])
    assert NORMAL.map_kind.known_pixels(gt, mask).pixels.tolist() == [[False, False, False, False, True]]
    with pytest.raises(ValueError, match="mask of shape"):
        NORMAL.map_kind.known_pixels(gt, np.ones((5, 1)))


def test_normal_metrics_count_strictly_below():
    scores = normal_metrics([0, 5, 7.5, 11.25, 22.5, 30, 60, 80])
    assert scores["mean"] == pytest.approx(216.25 / 8)
    assert scores["median"] == pytest.approx((11.25 + 22.5) / 2)
    assert scores["rmse"] == pytest.approx(math.sqrt((25 + 56.25 + 126.5625 + 506.25 + 900 + 3600 + 6400) / 8))
    below = [scores[f"below_{t}"] for t in ("5", "7.5", "11.25", "22.5", "30")]
    assert below == [12.5, 25.0, 37.5, 50.0, 62.5]


@pytest.mark.parametrize("angles", [[], [1, np.nan], [np.inf]])
def test_normal_metrics_refuse_what_has_no_mean(angles):
    with pytest.raises(ValueError):
        normal_metrics(angles)


# Depth

PERFECT = {"abs_rel": 0, "sq_rel": 0, "rmse": 0, "rmse_log": 0, "log10": 0, "silog": 0}


def assert_perfect(scores):
    for key, value in PERFECT.items():
        assert scores[key] == pytest.approx(value, abs=1e-10), key
    assert scores["delta1"] == scores["delta2"] == scores["delta3"] == 1


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (2.5, -7), (-0.01, 3), (-300, 1e5)])
def test_scaled_and_shifted_depth_is_perfect(scale, shift):
    gt = lit()
    everywhere = np.ones(gt.shape, bool)
    assert_perfect(depth_metrics(scale * gt + shift, gt, everywhere, "depth", 1e-3, 80))
    assert_perfect(depth_metrics(scale / gt + shift, gt, everywhere, "disparity"))
    assert align_scale_shift(scale * gt + shift, gt, everywhere) == pytest.approx(
        (1 / scale, -shift / scale), rel=1e-9
    )


def test_disparity_is_not_depth():
    gt = lit()
    assert depth_metrics(1 / gt, gt, gt > 0, "depth")["abs_rel"] > 0.01


def test_depth_metrics_by_hand():
    pred, gt = np.array([[0.0, 0, 1, 1]]), np.array([[1.0, 3, 4, 8]])  # least squares: 2, 2, 6, 6
    scores = depth_metrics(pred, gt, gt > 0)
    logs = np.log([2, 2 / 3, 3 / 2, 3 / 4])
    expected = {
        "abs_rel": (1 + 1 / 3 + 2 / 4 + 2 / 8) / 4,
        "sq_rel": (1 + 1 / 3 + 4 / 4 + 4 / 8) / 4,
        "rmse": math.sqrt(10 / 4),
        "rmse_log": math.sqrt((logs**2).mean()),
        "log10": np.abs(logs).mean() / math.log(10),
        "delta1": 0.0,
        "delta2": 3 / 4,
        "delta3": 3 / 4,
        "silog": 100 * math.sqrt((logs**2).mean() - logs.mean() ** 2),
    }
    assert scores == pytest.approx(expected, rel=1e-12)


def test_clipping_applies_after_alignment_and_stays_positive():
    pred, gt = np.array([[0.0, 0, 1, 1]]), np.array([[1.0, 3, 4, 8]])
    everywhere = gt > 0
    assert align_depth(pred, gt, everywhere, min_depth=2.5, max_depth=5).tolist() == [[2.5, 2.5, 5, 5]]
    falling = align_depth(np.array([[0.0, 1, 2, 9]]), np.array([[9.0, 5, 1, 1]]), np.array([[1, 1, 1, 0]], bool))
    assert falling[0, 3] == 1e-6  # 9 - 4 * 9 metres


def test_disparity_is_clipped_before_it_is_inverted():
    gt = np.array([[1.0, 2, 4, 4]])
    valid = np.array([[1, 1, 1, 0]], bool)
    pred = np.where(valid, 1 / gt, -5)
    assert align_depth(pred, gt, valid, "disparity")[0, 3] == pytest.approx(1000)


def test_constant_depth_becomes_the_mean():
    gt = lit()
    assert align_scale_shift(np.full(gt.shape, 0.1), gt, gt > 0) == (0, pytest.approx(gt.mean()))


@given(st.floats(0.01, 100), st.booleans(), st.floats(-100, 100))
@settings(max_examples=30, deadline=None)
def test_depth_scores_ignore_scale_and_shift(scale, negative, shift):
    gt = lit((20, 30))
    pred = gt + np.random.default_rng(3).normal(size=gt.shape)
    before = depth_metrics(pred, gt, gt > 2, "depth", 0.5, 8)
    scale = -scale if negative else scale
    assert depth_metrics(scale * pred + shift, gt, gt > 2, "depth", 0.5, 8) == pytest.approx(before, rel=1e-6)


def test_fit_side_fits_on_a_nearest_neighbour_copy():
    gt = lit((40, 80))
    pred = 2 * gt + 1
    seen = np.zeros(gt.shape, bool)
    seen[::4, ::4] = True  # 80 columns at most 20 a side: every fourth pixel
    pred[~seen] = 50.0
    aligned = align_depth(pred, gt, gt > 0, fit_side=20)
    np.testing.assert_allclose(aligned[seen], gt[seen], rtol=1e-9)
    assert not np.allclose(align_depth(pred, gt, gt > 0)[seen], gt[seen])
    np.testing.assert_array_equal(align_depth(pred, gt, gt > 0, fit_side=80), align_depth(pred, gt, gt > 0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"valid": np.zeros((4, 5), bool)}, "mask is empty"),
        ({"pred": np.full((4, 5), np.nan)}, "prediction is not finite on 20"),
        ({"gt": np.full((4, 5), np.inf)}, "ground truth is not finite on 20"),
        ({"gt": np.zeros((4, 5))}, "not positive on 20"),
        ({"pred": np.ones((5, 4))}, "shapes do not fit"),
        ({"valid": np.ones((2, 2), bool)}, "shapes do not fit"),
        ({"align": "affine"}, "align must be"),
    ],
)
def test_depth_that_cannot_be_scored_is_refused(change, words):
    inputs = {"pred": np.ones((4, 5)), "gt": np.ones((4, 5)), "valid": np.ones((4, 5), bool)} | change
    with pytest.raises(ValueError, match=words):
        depth_metrics(**inputs)


# Albedo and shading


def colours(seed=0, shape=(40, 50, 3)):
    return np.random.default_rng(seed).uniform(0.1, 1, shape)


@given(st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_albedo_scores_ignore_scale(scale):
    gt, pred = colours(0), colours(1)
    everywhere = np.ones(gt.shape[:2], bool)
    before = albedo_metrics(pred, gt, everywhere)
    assert albedo_metrics(scale * pred, gt, everywhere) == pytest.approx(before, rel=1e-9)
    assert before["si_mse"] == pytest.approx(before["rmse"] ** 2)


def test_perfect_albedo():
    gt = colours()
    scores = albedo_metrics(gt, gt, np.ones(gt.shape[:2], bool))
    assert scores == pytest.approx(
        {"rmse": 0, "mae": 0, "psnr": math.inf, "ssim": 1, "si_mse": 0, "lmse": 0, "lmse_mit": 0}, abs=1e-12
    )


def test_albedo_by_hand():
    gt = np.ones((20, 20, 1)) * 0.5
    pred = gt.copy()
    gt[::2] += 0.1
    gt[1::2] -= 0.1  # the best scale of a constant is 1: errors of 0.1 everywhere
    scores = albedo_metrics(pred, gt, np.ones((20, 20), bool))
    assert (scores["rmse"], scores["mae"], scores["psnr"]) == pytest.approx((0.1, 0.1, 20.0))
    assert scores["lmse"] == pytest.approx(0.01)  # windows of two rows, stepping by one
    assert scores["lmse_mit"] == pytest.approx(0.01 / (0.25 + 0.01))


def test_local_scales_forgive_what_one_scale_cannot():
    gt = colours(shape=(100, 100))
    pred = gt.copy()
    pred[:, 50:] *= 3
    everywhere = np.ones(gt.shape, bool)
    # Of 19 columns of windows (10 wide, stepping by 5) one straddles the jump: the others fit exactly.
    straddling = np.array([local_mse(pred[:, 45:55], gt[:, 45:55], everywhere[:, 45:55])[0]])
    assert local_mse(pred[:, :50], gt[:, :50], everywhere[:, :50])[0] == pytest.approx(0, abs=1e-15)
    assert local_mse(pred, gt, everywhere)[0] == pytest.approx(straddling[0] / 19)
    assert albedo_metrics(pred, gt, everywhere)["si_mse"] > 0.05
    assert local_mse(0 * gt, gt, everywhere)[1] == 1


def brute_force_ssim(pred, gt):
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(taps, taps) / taps.sum() ** 2
    values = []
    for row in range(5, gt.shape[0] - 5):
        for col in range(5, gt.shape[1] - 5):
            p, g = (m[row - 5 : row + 6, col - 5 : col + 6] for m in (pred, gt))
            mp, mg = (window * p).sum(), (window * g).sum()
            vp, vg = (window * (p - mp) ** 2).sum(), (window * (g - mg) ** 2).sum()
            cov = (window * (p - mp) * (g - mg)).sum()
            values.append((2 * mp * mg + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mg**2 + 1e-4) * (vp + vg + 9e-4)))
    return np.mean(values)


def test_ssim_is_the_published_sum():
    gt, pred = colours(0, (17, 19)), colours(1, (17, 19))
    everywhere = np.ones(gt.shape, bool)
    assert ssim(pred, gt, everywhere) == pytest.approx(brute_force_ssim(pred, gt), rel=1e-10)
    both = np.stack([pred, gt], 2), np.stack([gt, gt], 2)
    assert ssim(*both, everywhere) == pytest.approx((brute_force_ssim(pred, gt) + 1) / 2, rel=1e-10)


def test_masked_ssim_renormalises_its_windows():
    valid = np.random.default_rng(4).random((30, 30)) > 0.5
    flat = 2 * 0.3 * 0.6 + 1e-4, 0.3**2 + 0.6**2 + 1e-4  # constant images: only the luminance term is not 1
    found = ssim(np.full((30, 30), 0.3), np.full((30, 30), 0.6), valid)
    assert found == pytest.approx(flat[0] / flat[1], rel=1e-9)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e9])
def test_masked_garbage_changes_nothing(garbage):
    valid = np.random.default_rng(5).random((40, 50)) > 0.3
    gt, pred = lit((40, 50)), lit((40, 50)) + colours(2, (40, 50))
    spoilt = [np.where(valid, m, garbage) for m in (pred, gt)]
    assert depth_metrics(*spoilt, valid) == depth_metrics(pred, gt, valid)
    gt, pred = colours(0), colours(1)
    spoilt = [np.where(valid[..., None], m, garbage) for m in (pred, gt)]
    assert albedo_metrics(*spoilt, valid) == albedo_metrics(pred, gt, valid)


def test_albedo_that_cannot_be_scored_is_refused():
    small = np.ones((8, 8))
    with pytest.raises(ValueError, match="at least 5 from the border"):
        albedo_metrics(small, small, small > 0)
    with pytest.raises(ValueError, match="no window"):
        local_mse(small, 0 * small, small > 0)
    with pytest.raises(ValueError, match="mask is empty"):
        albedo_metrics(small, small, small > 1)


def judgements(*comparisons):
    points = [{"id": i, "x": (i + 0.5) / 4, "y": 0.5, "opaque": i != 3} for i in range(4)]
    keys = ("point1", "point2", "darker", "darker_score")
    return {"intrinsic_points": points, "intrinsic_comparisons": [dict(zip(keys, c)) for c in comparisons]}


def test_whdr_by_hand():
    albedo = np.array([[[0.2] * 3, [0.4] * 3, [0.43] * 3, [0.9] * 3]])
    said = judgements(
        (0, 1, "1", 3.0),  # right: point 1 is darker
        (1, 0, "1", 2.0),  # wrong
        (1, 2, "E", 1.0),  # right: 0.43 / 0.40 is within 10 %
        (1, 2, "1", 4.0),  # wrong
        (0, 3, "1", 50.0),  # not opaque
        (0, 1, "2", 0.0),  # no weight
        (0, 1, "2", -5.0),  # this neither
        (0, 1, None, None),  # no verdict
    )
    assert whdr(albedo, said) == pytest.approx(6 / 10)
    assert whdr(7 * albedo, said) == pytest.approx(6 / 10)
    assert whdr(albedo, said, threshold=0.05) == pytest.approx((2 + 1) / 10)


@pytest.mark.parametrize(
    "broken", [{}, [], judgements((0, 9, "1", 1.0)), {"intrinsic_points": [], "intrinsic_comparisons": [{}]}]
)
def test_judgements_that_are_none_of_iiw(broken):
    with pytest.raises(ValueError, match="IIW"):
        whdr(np.ones((4, 4)), broken)


def test_judgements_that_cannot_be_scored_are_refused():
    albedo = np.ones((4, 4))
    with pytest.raises(ValueError, match="no comparison counts"):
        whdr(albedo, judgements((0, 3, "1", 1.0)))
    with pytest.raises(ValueError, match="not finite"):
        whdr(np.full((4, 4), np.nan), judgements((0, 1, "1", 1.0)))


# Protocol rules


def test_frames_convert_as_known_surfaces_do():
    frames = ("opencv", "opengl", "dsine", "directx", "blender")
    assert FRAMES["omnidata"] == FRAMES["opencv"]  # what the released code trains on
    wall = dict(zip(frames, ([0, 0, -1], [0, 0, 1], [0, 0, 1], [0, 0, 1], [0, -1, 0])))  # it faces the camera
    floor = dict(zip(frames, ([0, -1, 0], [0, 1, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1])))
    left_wall = dict(zip(frames, ([1, 0, 0], [1, 0, 0], [-1, 0, 0], [1, 0, 0], [1, 0, 0])))  # it faces right
    for surface in (wall, floor, left_wall):
        for frame, normal in surface.items():
            assert convert_frame(np.array(normal), frame).tolist() == surface["opencv"]
            assert to_frame(np.array(surface["opencv"]), frame).tolist() == normal
    normals = random_normals(10)
    for frame in FRAMES:
        np.testing.assert_array_equal(to_frame(convert_frame(normals, frame), frame), normals)


def test_a_reports_depth_runs_from_white_at_the_2nd_percentile_to_black_at_the_98th():
    gt = np.arange(1.0, 102.0)[None]
    valid = gt < 101  # 1 to 100 metres: percentile p is 1 + 0.99 p
    maps, text = DEPTH.map_kind.figures(gt + 96, gt, valid, Rules(DEPTH, "plain"))
    assert text == "white 2.98 m, black 98.02 m"
    grey = ((98.02 - gt) / (98.02 - 2.98))[..., None]
    np.testing.assert_allclose(maps[1], np.repeat(grey, 3, axis=2))
    np.testing.assert_allclose(maps[1] - maps[0], 96 / (98.02 - 2.98))


def test_depth_crops():
    gt = np.full((480, 640), 3.0)
    assert DEPTH.map_kind.depth_valid(gt, "nyuv2").sum() == (471 - 45) * (601 - 41)
    gt[100:200] = 10.0  # the range is open
    assert DEPTH.map_kind.depth_valid(gt, "nyuv2").sum() == (471 - 45 - 100) * (601 - 41)
    with pytest.raises(ValueError, match="480x640"):
        DEPTH.map_kind.depth_valid(np.ones((481, 640)), "nyuv2")
    assert kitti_window((375, 1242)) == (slice(23, 375), slice(13, 13 + 1216))
    rows, cols = np.nonzero(DEPTH.map_kind.depth_valid(np.full((352, 1216), 5.0), "kitti"))
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (117, 320, 43, 1171)
    with pytest.raises(ValueError, match="smaller than"):
        kitti_window((300, 1242))
    assert center_window((768, 1024)) == (slice(0, 768), slice(128, 896))
    assert center_window((5, 4)) == (slice(0, 4), slice(0, 4))


def test_depth_is_clipped_to_the_ranges_of_the_published_evaluation():
    """Marigold (arXiv 2312.02145) and its released evaluation: metres, and which truth counts."""
    ranges = {name: (rule.min_depth, rule.max_depth, rule.in_range) for name, rule in DEPTH_RULES.items()}
    assert ranges == {
        "plain": (None, None, False),
        "diode": (0.6, 350, False),
        "nyuv2": (1e-3, 10, True),
        "kitti": (1e-5, 80, True),
        "eth3d": (1e-5, math.inf, True),
        "scannet": (1e-3, 10, True),
    }
    assert {name: rule.fit_side for name, rule in DEPTH_RULES.items() if rule.fit_side} == {"eth3d": 1024}
    assert [name for name, rule in DEPTH_RULES.items() if rule.needs_mask] == ["diode"]


def test_depth_validity():
    gt = np.array([[0.0, -1, np.nan, np.inf, 0.5, 400, 20]])
    assert DEPTH.map_kind.depth_valid(gt, "plain").tolist() == [[False] * 4 + [True] * 3]
    assert DEPTH.map_kind.depth_valid(gt, "diode", np.ones(gt.shape, bool)).tolist() == [[False] * 4 + [True] * 3]
    assert DEPTH.map_kind.depth_valid(gt, "scannet").tolist() == [[False] * 4 + [True, False, False]]
    assert DEPTH.map_kind.depth_valid(gt, "eth3d", gt != 20).tolist() == [[False] * 4 + [True, True, False]]


def test_a_prediction_shows_the_whole_image_or_what_was_kept_of_it():
    """Whichever has its proportions, within 2 %; a ramp shows where its columns went."""
    full = np.tile(np.arange(64.0), (32, 1))
    window = center_window(full.shape)
    truth = Truth(full[window], np.ones((32, 32), bool), full.shape, window, {})

    def fitted(pred):
        found, distorted = fit_to(pred, truth)
        return np.abs(found - truth.gt)[:, 2:-2].max(), distorted  # but for the edges of the resizing

    assert fitted(full) == fitted(full[window]) == (0, False)
    assert fitted(full[::2, ::2] + 0.5) == (pytest.approx(0, abs=1e-4), False)
    assert fitted(full[window][::2, ::2] + 0.5) == (pytest.approx(0, abs=1e-4), False)
    assert [fit_to(np.zeros(shape), truth)[1] for shape in ((100, 199), (100, 195), (100, 103), (99, 100))] == [
        False, True, True, False,
    ]  # fmt: skip


def test_erosion_widens_holes_but_not_the_border():
    valid = np.ones((9, 11), bool)
    assert erode(valid, 2).all()  # beyond the image counts as valid
    valid[4, 5] = False
    hole = np.zeros_like(valid)
    hole[2:7, 3:8] = True
    assert (erode(valid, 2) == ~hole).all()


def test_srgb_and_linear_are_inverse():
    assert to_linear(np.array(0.5)) == pytest.approx(0.21404114)
    values = np.linspace(-0.2, 1.5, 200)
    np.testing.assert_allclose(to_srgb(to_linear(values)), values, atol=1e-7)


def test_validation_scores_the_angles_of_the_valid_pixels():
    normal = torch.tensor([0.0, 0.0, -1.0]).view(3, 1, 1).repeat(1, 2, 3)
    prediction, valid = normal.clone(), torch.ones(1, 2, 3, dtype=torch.bool)
    prediction[:, 0, 1] = torch.tensor([0.0, -1.0, -1.0])  # 45 degrees off, and of another length
    prediction[:, 1, 2] = 0  # points nowhere: 90 degrees
    prediction[:, 1, 0], valid[0, 1, 0] = 1, False
    scores = NORMAL.map_kind.score(prediction, normal, valid, "plain")
    assert scores["mean"] == pytest.approx((45 + 90) / 5) and scores["below_5"] == pytest.approx(60)
    assert NORMAL.map_kind.score(prediction, normal, valid & False, "plain") is None


# Sets of images


def image_score(angles, name="x"):
    angles = np.asarray(angles, np.float32)
    counts = np.bincount(angle_bins(angles), minlength=ANGLE_BINS)
    return aggregation.ImageScore(name, None, len(angles), (1, len(angles)), normal_metrics(angles), counts, angles)


angle_lists = st.lists(st.lists(st.floats(0, 180, width=32), min_size=1, max_size=30), min_size=1, max_size=6)


@given(angle_lists)
@settings(max_examples=100, deadline=None)
def test_pool_equals_one_long_image(lists):
    pooled = aggregation.pooled_metrics([image_score(angles) for angles in lists])
    expected = normal_metrics(np.concatenate([np.asarray(a, np.float32) for a in lists]))
    assert pooled == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_pooled_is_not_per_image():
    scores = [image_score([0] * 100), image_score([40] * 300)]
    assert aggregation.pooled_metrics(scores)["mean"] == pytest.approx(30)
    assert aggregation.pooled_metrics(scores)["median"] == 40
    assert aggregation.mean_metrics(scores)["mean"] == pytest.approx(20)
    assert aggregation.mean_metrics(scores)["median"] == pytest.approx(20)


@pytest.mark.parametrize("pooled", [True, False])
def test_intervals_agree_with_a_plain_bootstrap(pooled):
    rng = np.random.default_rng(1)
    lists = [rng.gamma(2, 5 + i, size=rng.integers(20, 200)) for i in range(12)]
    scores = [image_score(angles) for angles in lists]
    found = aggregation.intervals(scores, pooled, resamples=2000, seed=1)
    draws = []
    for _ in range(2000):
        chosen = [scores[i] for i in rng.integers(12, size=12)]
        draws.append(aggregation.pooled_metrics(chosen) if pooled else aggregation.mean_metrics(chosen))
    for key, (low, high) in found.items():
        width = np.ptp(np.percentile([d[key] for d in draws], [2.5, 97.5]))
        expected = np.percentile([d[key] for d in draws], [2.5, 97.5])
        assert np.abs(np.array([low, high]) - expected).max() < 0.1 * width, key
    assert aggregation.intervals(scores, pooled, resamples=2000, seed=1) == found
    assert aggregation.intervals(scores, pooled, resamples=2000, seed=2) != found


def test_intervals_are_percentiles_of_1000_resamples_of_images():
    """2.5 and 97.5, of means over resampled images (Efron 1979); the same numbers as drawn here."""
    values = np.random.default_rng(2).uniform(size=7)
    scores = [aggregation.ImageScore(str(value), None, 1, (1, 1), {"rmse": value}) for value in values]
    rng = np.random.default_rng(0)
    means = np.concatenate([values[rng.integers(7, size=(50, 7))].mean(axis=1) for _ in range(20)])
    assert aggregation.intervals(scores, pooled=False)["rmse"] == pytest.approx(np.percentile(means, [2.5, 97.5]))


def test_a_pool_counts_opposite_normals_and_lacks_no_image():
    scores = [image_score([180, 180, 10]), image_score([180])]
    assert aggregation.pooled_metrics(scores)["median"] == 180
    assert aggregation.total_errors(scores)[[10 * BINS_PER_DEGREE, -1]].tolist() == [1, 3]
    assert aggregation.total_errors([*scores, scores[0]._replace(errors=None)]) is None


def test_a_histograms_median_is_linear_inside_its_bin():
    counts = np.zeros((3, ANGLE_BINS), np.float32)
    counts[0, 10] = 4  # half of them lie below the bin's middle
    counts[1, 0] = 4  # the first bin has none before it
    counts[2, 100:103] = 1, 4, 3  # 3 more than the 1 below reach half of 8
    medians = aggregation._histogram_medians(counts)
    assert medians == pytest.approx(np.array([10.5, 0.5, 101.75]) / BINS_PER_DEGREE)


def test_intervals_of_equal_images_have_no_width():
    scores = [image_score([10.01, 20.01, 30.01])] * 5
    low, high = aggregation.intervals(scores, pooled=True)["mean"]
    assert low == pytest.approx(high) == pytest.approx(20.01)
    assert aggregation.intervals(scores[:1], pooled=True) is None


def test_infinite_and_missing_metrics_stay_local():
    scores = [
        aggregation.ImageScore("a", None, 1, (1, 1), {"psnr": math.inf, "rmse": 0.0}),
        aggregation.ImageScore("b", None, 1, (1, 1), {"psnr": 20.0, "rmse": 0.1, "whdr": 0.25}),
    ]
    assert aggregation.mean_metrics(scores) == pytest.approx({"psnr": math.inf, "rmse": 0.05, "whdr": 0.25})
    found = aggregation.intervals(scores, pooled=False)
    assert np.isnan(found["psnr"]).all() and found["rmse"] == pytest.approx((0, 0.1))
    assert found["whdr"] == pytest.approx((0.25, 0.25))
