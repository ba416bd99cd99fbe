"""The arithmetic of each kind of map, on maps that are small enough to compute by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from utils.image_io.colour_space import to_linear
from utils.image_io.files import Raw
from utils.intrinsics import ALBEDO, DEPTH, INTRINSICS, NORMAL, SHADING
from utils.kinds.alignment import align_members, aligned
from utils.kinds.base import MapKind, Rules, against_label, label_as_truth, median, score_of
from utils.kinds.colour import albedo_metrics
from utils.kinds.evidence import Finding


def pixels(*values: object) -> torch.Tensor:
    """Values (3,) or numbers of a row of pixels -> (3,1,W)."""
    return torch.tensor([value if isinstance(value, tuple) else (value,) * 3 for value in values]).T[:, None].float()


def test_a_mirrored_prediction_is_averaged_with_x_turned():
    """As directions, whatever their lengths."""
    plain, mirrored = pixels((0.6, 0.0, -0.8))[None], 3 * pixels((-0.6, 0.0, -0.8))[None]
    torch.testing.assert_close(NORMAL.map_kind.mirrored_mean(plain, mirrored), plain)
    mirrored = 3 * pixels((-0.8, 0.0, -0.6))[None]  # 0.8 to the right in the image itself
    expected = pixels((1.4, 0.0, -1.4))[None] / (1.4 * 2**0.5)
    torch.testing.assert_close(NORMAL.map_kind.mirrored_mean(plain, mirrored), expected)
    assert ALBEDO.map_kind.mirrored_mean(pixels(0.25), pixels(0.75)).flatten().tolist() == [0.5] * 3


def test_normals_of_windows_are_directions_and_so_is_their_mean():
    for one in (
        NORMAL.map_kind.tile(pixels((0, 1.2, -1.6)), None),
        NORMAL.map_kind.untiled(pixels((0, 0.3, -0.4))),
    ):
        torch.testing.assert_close(one, pixels((0, 0.6, -0.8)))


def test_normals_merge_to_their_mean_direction_and_mean_angle():
    half = 3**0.5 / 2
    members = torch.stack([pixels((0.5, 0, -half), (0, 0, -1)), pixels((-1, 0, -2 * half), (0, 0, -3))])
    merged, uncertainty = NORMAL.map_kind.merge(members)
    torch.testing.assert_close(merged, pixels((0, 0, -1), (0, 0, -1)))
    torch.testing.assert_close(uncertainty, torch.tensor([[30.0, 0.0]]))


def test_colours_merge_to_their_median_and_its_median_deviation():
    merged, uncertainty = ALBEDO.map_kind.merge(
        torch.stack([pixels((0, 0.5, 0)), pixels((0.2, 0.5, 0.3)), pixels((0.8, 0.5, 0.9))])
    )
    torch.testing.assert_close(merged, pixels((0.2, 0.5, 0.3)))
    torch.testing.assert_close(uncertainty, torch.tensor([[(0.2 + 0 + 0.3) / 3]]))
    assert median(torch.tensor([4.0, 1, 3, 8])) == 3.5 and median(torch.tensor([4.0, 1, 3])) == 3


def test_depths_merge_on_their_mean_scale_and_shift():
    depth = torch.tensor([[0.0, 1, 5]])
    merged, uncertainty = DEPTH.map_kind.merge(
        torch.stack([depth, 2 * depth + 1]).expand(3, -1, -1, -1).transpose(0, 1)
    )
    torch.testing.assert_close(merged, (1.5 * depth + 0.5).expand(3, -1, -1))
    torch.testing.assert_close(uncertainty, torch.zeros(1, 3), atol=1e-6, rtol=0)
    three = align_members(torch.stack([depth, 2 * depth + 1, 3 - depth]))  # the third runs against the others
    torch.testing.assert_close(three[0], (depth - 2) * 4 / 3 + (2 + 5 + 1) / 3)
    torch.testing.assert_close(three[0], three[1])
    torch.testing.assert_close(three[2], torch.full((1, 3), 8 / 3))


def test_a_window_of_depth_is_put_on_the_scale_of_its_reference():
    reference = torch.tensor([[1.0, 3, 11]])
    torch.testing.assert_close(aligned(torch.tensor([[0.0, 1, 5]]), reference), reference)
    torch.testing.assert_close(aligned(-reference, reference), torch.full((1, 3), 5.0))  # never inverted


def test_truth_is_shown_like_labels_with_unknown_pixels_black():
    known = torch.tensor([[[True, True, True, True, False]]])
    linear = torch.tensor([[[-1.0, 0.21404114, 1, 2, 0.5]]]).expand(3, -1, -1)  # the second is 0.5 of sRGB
    for intrinsic, middle in ((ALBEDO, 0.0), (replace(ALBEDO, coding="linear"), 2 * 0.21404114 - 1)):
        expected = torch.tensor([[[-1, middle, 1, 1, -1]]]).expand(3, -1, -1)
        torch.testing.assert_close(intrinsic.map_kind.truth_panel(linear, known), expected)
    depth = DEPTH.map_kind.truth_panel(torch.arange(101.0)[None, None], torch.arange(101)[None, None] != 7)
    low, high = np.percentile(np.delete(np.arange(101.0), 7), [1, 99])
    expected = 1 - 2 * ((np.arange(101) - low) / (high - low)).clip(0, 1)
    expected[7] = -1
    np.testing.assert_allclose(depth.numpy(), np.broadcast_to(expected, (3, 1, 101)), atol=1e-6)
    normal = NORMAL.map_kind.truth_panel(pixels((0, 0.6, -0.8), 0), torch.tensor([[[True, False]]]))
    torch.testing.assert_close(normal, pixels((0, 0.6, -0.8), -1))
    nothing = DEPTH.map_kind.truth_panel(torch.ones(1, 1, 2), torch.zeros(1, 1, 2, dtype=torch.bool))
    assert nothing.tolist() == pixels(-1, -1).tolist()


def test_a_new_kind_of_map_inherits_values_from_0_to_1():
    kind, known = MapKind(ALBEDO), torch.tensor([[[True, True, True, False]]])
    panel = kind.truth_panel(torch.tensor([[[-1, 0.25, 2, 0.5]]]), known)
    assert panel.tolist() == [[[-1, -0.5, 1, -1]]] * 3
    truth, valid = kind.label_truth(pixels(-1, 0.5), known)
    assert truth.tolist() == [[[0, 0.75]]] * 3 and valid is known
    pred, gt = np.array([[[0.0, 0.5, 1.0]]]), np.array([[[0.25, 0.25, 0.25]]])
    rules, everywhere = Rules(ALBEDO, "per_image"), np.ones((1, 1), bool)
    assert kind.compare(pred, gt, everywhere, rules)[1] == pytest.approx(np.array([[1.25 / 3]]))
    assert kind.compare(pred[..., 0], gt[..., 0], everywhere, rules)[1].tolist() == [[0.25]]
    maps, words = kind.figures(pred, gt[..., 0], everywhere, rules)
    assert [one.tolist() for one in maps] == [pred.tolist(), gt.tolist()] and words.endswith("clipped to [0, 1]")
    assert kind.truth_warnings([1e9], None) == [] and kind.truth_median(gt) is kind.facing_away(gt) is None


def test_predictions_as_values_and_as_8_bit_images():
    prediction = pixels((-1, 0, 1), (0.5, 0.5, 0.5))
    assert ALBEDO.map_kind.values(prediction).tolist() == [[[0, 0.5, 1], [0.75, 0.75, 0.75]]]
    assert DEPTH.map_kind.values(prediction).tolist() == [[0, 0.5]]
    assert NORMAL.map_kind.values(2 * pixels((0, 0.6, -0.8))).tolist() == [[pytest.approx([0, 0.6, -0.8])]]
    assert ALBEDO.map_kind.image8(prediction).tolist() == [[[0, 127, 255], [191, 191, 191]]]  # truncated
    grey = DEPTH.map_kind.image8(pixels(-1, 0, 1, (-1, 0, 1)))
    assert grey.tolist() == [[0, 127, 255, 127]]  # the least to the largest of all channels, truncated


def test_pixels_without_truth_are_zero_and_a_label_is_truth_everywhere():
    values, known = ALBEDO.map_kind.filled(np.full((1, 2, 3), 7.0), np.array([[True, False]]))
    assert values.tolist() == [[[7, 7, 7], [0, 0, 0]]] and known.tolist() == [[True, False]]
    target = pixels((-1, 0, 1), 0.5)
    for intrinsic in INTRINSICS.values():
        valid = label_as_truth(intrinsic, target)[1]
        assert valid.shape == (1, 1, 2) and valid.dtype == torch.bool and valid.all() == (intrinsic is not DEPTH)
    torch.testing.assert_close(label_as_truth(NORMAL, target)[0].norm(dim=0), torch.ones(1, 2))


@pytest.mark.parametrize("coding", ["srgb", "linear"])
def test_validation_scores_colours_in_linear_light(coding):
    """The prediction is clamped and decoded; what is not finite is black."""
    rng = np.random.default_rng(0)
    gt, known = rng.uniform(0.1, 1, (12, 14, 3)), rng.random((12, 14)) > 0.1
    coded = rng.uniform(-0.1, 1.1, gt.shape)
    coded[3, 4, 1] = np.nan
    clipped = np.nan_to_num(coded.clip(0, 1))
    expected = albedo_metrics(to_linear(clipped) if coding == "srgb" else clipped, gt, known)
    prediction = torch.from_numpy(2 * coded - 1).permute(2, 0, 1)
    kind = replace(ALBEDO, coding=coding).map_kind
    found = kind.score(prediction, torch.from_numpy(gt).permute(2, 0, 1), torch.from_numpy(known)[None], "per_image")
    assert found == pytest.approx(expected, rel=1e-9)


def test_depth_is_predicted_in_one_channel_or_three_equal_ones():
    grey = np.arange(6.0).reshape(2, 3)
    assert DEPTH.map_kind.one_channel(Raw(np.stack([grey] * 3, axis=2), {})).array.tolist() == grey.tolist()
    for other in (grey, np.stack([grey, grey, grey + 1], axis=2), np.stack([grey, grey + 1, grey + 2], axis=2)):
        assert DEPTH.map_kind.one_channel(Raw(other, {})).array is other


def test_scores_against_a_label_have_names_of_their_own():
    score, prediction = score_of(NORMAL), pixels((0, 0, -1))
    known = torch.ones(1, 1, 1, dtype=torch.bool)
    assert score(prediction, prediction, known)["mean"] == 0
    assert against_label(score)(prediction, prediction, known)["label_mean"] == 0
    assert score(prediction, prediction, ~known) is against_label(score)(prediction, prediction, ~known) is None
    assert against_label(score).description == f"Against the label, which is no measurement: {score.description}"


def test_the_best_constant_normal_is_a_direction_and_few_face_away():
    assert NORMAL.map_kind.constant(np.array([0.0, 0.3, -0.4])).tolist() == pytest.approx([0, 0.6, -0.8])
    z = np.array([-1, -0.31, 0.31, 0.29, -0.29])  # the last two do not clearly face one way
    assert NORMAL.map_kind.facing_away(np.stack([z, z, z], axis=1)) == pytest.approx(1 / 3)
    assert NORMAL.map_kind.facing_away(np.zeros((4, 3))) is None


@pytest.mark.parametrize(("off", "known"), [(3e-6, False), (5e-6, True)])
def test_a_decoded_mid_grey_has_no_direction(off, known):
    """127 and 128 of 255, as 2 v / 255 - 1 in float32, whatever axes were flipped since."""
    raw = np.array([[[1 / 255 + off, -1 / 255, 1 / 255], [1 / 255, 0.5, 1 / 255]]])
    assert NORMAL.map_kind.known_pixels(raw).pixels.tolist() == [[known, True]]


@pytest.mark.parametrize(("value", "known"), [(0, False), (126, True), (127, False), (128, False), (129, True)])
def test_grey_normals_of_8_and_16_bits(value, known):
    for dtype in (np.uint8, np.uint16):
        raw = np.full((1, 1, 3), value * (np.iinfo(dtype).max // 255), dtype)
        assert NORMAL.map_kind.known_pixels(raw).pixels.tolist() == [[known]]


def test_shading_is_shown_by_its_mean_only_where_it_is_grey():
    assert SHADING.map_kind.panel(pixels((0, 0.5, 1))).tolist() == pixels((0, 0.5, 1)).tolist()
    assert DEPTH.map_kind.panel(pixels((0, 0.5, 1))).tolist() == pixels(0.5).tolist()


def test_channels_are_averaged_for_grey_truth_and_never_made_up():
    colour, grey = np.array([[[0.0, 0.5, 1.0]]]), np.array([[0.25]])
    assert SHADING.map_kind.fitted(colour, grey, False).tolist() == [[0.5]]
    assert (
        SHADING.map_kind.fitted(grey, grey, False) is grey and ALBEDO.map_kind.fitted(colour, colour, True) is colour
    )
    with pytest.raises(ValueError, match="is grey, but the ground truth has colours"):
        ALBEDO.map_kind.fitted(grey, colour, False)


@pytest.mark.parametrize(
    ("intrinsic", "key", "words"),
    [
        (ALBEDO, ("decode", "rgb"), "re-export them sRGB-coded once"),
        (ALBEDO, ("as is", "bgr"), "re-export them in RGB order"),
        (ALBEDO, ("normals",), "pass labels of albedo"),
        (DEPTH, ("inverted",), "re-export them with near = white"),
        (DEPTH, ("colours",), "re-export the depth itself"),
        (DEPTH, ("log", "depth"), "pass --depth_coding log"),
        (DEPTH, ("linear", "disparity"), "make labels linear in depth"),
        (DEPTH, ("linear", "sqrt"), "re-export them linear in depth"),
        (NORMAL, ("grey",), "pass labels of normals"),
        (NORMAL, ("shifted", 0), "re-export them as 255"),
        (NORMAL, ("plain", 1), "their axes are those of opengl"),
    ],
)
def test_every_finding_of_labels_has_its_remedy(intrinsic, key, words):
    assert intrinsic.map_kind.label_fix(Finding(key, "", 4, 4, True)).startswith(words)
