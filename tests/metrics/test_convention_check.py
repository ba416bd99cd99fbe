"""The convention check on rendered scenes: every wrong convention is named, and no right one."""

import numpy as np
import pytest

from studies.conventions import disparity, shots
from utils.image_io.colour_space import to_linear, to_srgb
from utils.intrinsics import ALBEDO, DEPTH, INTRINSICS, NORMAL
from utils.kinds.alignment import align_scale_shift, depth_evidence, depth_findings, encode_far
from utils.kinds.axes import (
    ALL_AXES,
    convert_frame,
    frame_of,
    normals_evidence,
    normals_findings,
    to_frame,
    true_frame_of,
    unit_vectors,
)
from utils.kinds.base import MapKind
from utils.kinds.colour import colour_evidence, colour_findings
from utils.kinds.evidence import Evidence, Finding, best_finding, odd_finding
from utils.kinds.frames import FRAMES


@pytest.fixture(scope="module")
def scenes():
    return {task: shots(task, 6, (0,)) for task in INTRINSICS}


def of_labels(intrinsic, scenes, change=lambda label: label):
    evidence = [intrinsic.map_kind.label_evidence(change(shot.label), shot.truth, shot.known) for shot in scenes]
    return intrinsic.map_kind.label_findings(evidence)


@pytest.mark.parametrize("task", INTRINSICS)
def test_right_labels_are_left_alone(scenes, task):
    assert of_labels(INTRINSICS[task], scenes[task]) == []


def test_each_of_48_axes_is_distinguished(scenes):
    """Values that must be read as new = old[order] * signs are recognised as such, from one frame and another."""
    for index, (order, signs) in enumerate(ALL_AXES):
        inverse = np.argsort(order)
        evidence = [
            normals_evidence((shot.truth * signs)[..., inverse], shot.truth, shot.known) for shot in scenes["normal"]
        ]
        for frame in ("opencv", "opengl", "blender"):
            found = normals_findings(evidence, frame)
            if ALL_AXES[index] == (tuple(abs(a) - 1 for a in FRAMES[frame]), tuple(np.sign(FRAMES[frame]))):
                assert found == []
            else:
                assert [one.key for one in found] == [("plain", index)] and found[0].sure and found[0].after < 1e-3


@pytest.mark.parametrize("frame", sorted({FRAMES[name]: name for name in FRAMES}.values()))
def test_the_flag_that_puts_axes_right_is_found_for_predictions_and_for_truth(scenes, frame):
    shot = scenes["normal"][0]
    found = normals_findings([normals_evidence(to_frame(shot.truth, frame), shot.truth, shot.known)], "opengl")
    if FRAMES[frame] == FRAMES["opengl"]:
        assert found == []
        return
    assert FRAMES[frame_of(found[0])] == FRAMES[frame]
    raw, read = to_frame(shot.truth, frame), "opengl"  # the truth's file has `frame`, and is read as opengl
    found = normals_findings([normals_evidence(shot.truth, convert_frame(raw, read), shot.known)], "opencv")
    assert FRAMES[true_frame_of(found[0], "opencv", read)] == FRAMES[frame]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n: n[..., ::-1], "swapping the axes x and z (red and blue: BGR channel order)"),
        (lambda n: n * (1, -1, -1), "flipping y and z"),
        (lambda n: n[..., [1, 2, 0]], "taking the axes in the order z, x, y"),
        (lambda n: n / 2 + 0.5, "are in [0,1] and were never shifted back"),
        (lambda n: 2 * to_srgb(n / 2 + 0.5) - 1, "undoing the sRGB curve"),
        (lambda n: 2 * to_linear(n / 2 + 0.5) - 1, "redoing the sRGB curve"),
        (lambda n: n / 2, "are far from unit length"),
        (lambda n: 127.5 * (n + 1), "were never decoded from 8 bits"),
    ],
)
def test_wrong_normals_are_named(scenes, change, words):
    found = of_labels(NORMAL, scenes["normal"], change)
    assert len(found) == 1 and words in found[0].change and found[0].images == 6


@pytest.mark.parametrize("noise", [0, 0.01])
def test_what_shows_without_truth_is_named_without_truth(scenes, noise):
    rng = np.random.default_rng(0)

    def seen(task, intrinsic, change):
        labels = [change(shot.label) for shot in scenes[task]]
        labels = [label + rng.normal(0, noise, label.shape) for label in labels]
        found = intrinsic.map_kind.label_findings(
            [intrinsic.map_kind.label_evidence(label, None, None) for label in labels]
        )
        return [one.change.split(":")[0] for one in found]

    assert seen("depth", NORMAL, lambda grey: grey) == ["are grey"]
    assert seen("normal", DEPTH, lambda colours: colours) == ["have colours"]
    assert seen("normal", NORMAL, lambda n: n / 2 + 0.5)[0].startswith("are in [0,1]")
    assert seen("normal", NORMAL, lambda n: n) == seen("depth", DEPTH, lambda grey: grey) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda grey: -grey, ("inverted",)),
        (lambda grey: 1 - 2 * encode_far((1 - grey) / 2, "log"), ("log", "depth")),
        (lambda grey: 1 - 2 * encode_far((1 - grey) / 2, "sqrt"), ("sqrt", "depth")),
    ],
)
def test_wrong_depth_is_named(scenes, change, key):
    found = of_labels(DEPTH, scenes["depth"], change)
    assert [one.key for one in found] == [key] and found[0].sure


def test_disparity_and_depth_are_distinguished(scenes):
    made = [disparity(shot) for shot in scenes["depth"]]
    found = of_labels(DEPTH, made)
    assert [one.key for one in found] == [("linear", "disparity")] and found[0].sure
    evidence = [depth_evidence(shot.label, shot.truth[..., 0], shot.known) for shot in made]
    assert depth_findings(evidence, domain="disparity") == []
    evidence = [depth_evidence(shot.label, shot.truth[..., 0], shot.known) for shot in scenes["depth"]]
    assert [one.key for one in depth_findings(evidence, domain="disparity")] == [("linear", "depth")]


def test_near_flat_or_random_depth_is_no_disparity():
    rng = np.random.default_rng(0)
    flat = [3 + 0.01 * rng.normal(size=(40, 50)) for _ in range(8)]
    evidence = [depth_evidence(1 / d + 0.001 * rng.normal(size=d.shape), d) for d in flat]
    evidence += [depth_evidence(rng.normal(size=d.shape), np.exp(rng.normal(size=d.shape))) for d in flat]
    assert depth_findings(evidence) == []


@pytest.mark.parametrize(("known", "names"), [(15, 0), (16, 6)])
def test_colours_are_compared_from_16_known_pixels_on(known, names):
    truth = np.random.default_rng(0).uniform(0.1, 0.9, (4, 5, 3))
    assert len(colour_evidence(truth, truth, np.arange(20).reshape(4, 5) < known, "linear").errors) == names


def test_colours_are_not_compared_with_black():
    """No scale would tell one curve from another."""
    black = np.zeros((4, 5, 3))
    assert colour_evidence(black + 0.5, black, None, "linear").errors == {}
    assert len(colour_evidence(black + 0.5, black + 1e-6, None, "linear").errors) == 6


def test_errors_of_colours_are_shares_of_the_truths_root_mean_square():
    truth = np.random.default_rng(0).uniform(0.1, 0.9, (9, 9, 3))
    for strength in (1, 100):
        found = colour_evidence(
            strength * (truth + 0.1 * (-1.0) ** np.arange(9)[:, None, None]), strength * truth, None, "linear"
        )
        assert 0.1 < found.errors["as is", "rgb"] < 0.2


def test_a_kind_that_looks_for_nothing_finds_nothing():
    """The default of the base class, for new kinds of map."""
    kind = MapKind(NORMAL)
    assert kind.label_findings([kind.label_evidence(np.zeros((2, 2, 3)), None, None)]) == []
    assert kind.value_findings([]) == []


@pytest.mark.parametrize("task", ["albedo", "shading"])
def test_wrong_colours_are_named(scenes, task):
    shots_of = scenes[task]
    for space, key in (("linear", ("decode", "rgb")), ("srgb", ("encode", "rgb"))):
        # an sRGB file read as linear; a linear file read as sRGB
        files = [to_srgb(shot.truth) if space == "linear" else shot.truth for shot in shots_of]
        evidence = [colour_evidence(file, shot.truth, shot.known, space) for file, shot in zip(files, shots_of)]
        assert [one.key for one in colour_findings(evidence)] == [key]
    swapped = of_labels(ALBEDO, scenes["albedo"], lambda label: label[..., ::-1])
    assert [one.key for one in swapped] == [("as is", "bgr")]
    bytes_ = [colour_evidence(255 * to_srgb(shot.truth), shot.truth, shot.known) for shot in shots_of]
    assert [one.key for one in colour_findings(bytes_)] == [("255",)]


def test_one_image_makes_it_likely_and_four_sure_unless_some_disagree(scenes):
    right = [normals_evidence(shot.truth, shot.truth, shot.known) for shot in scenes["normal"]]
    wrong = [normals_evidence(shot.truth * (1, -1, -1), shot.truth, shot.known) for shot in scenes["normal"]]
    assert not normals_findings(wrong[:1])[0].sure and normals_findings(wrong[:4])[0].sure
    assert not normals_findings([*wrong, wrong[0], right[0]])[0].sure  # 7 of 8 agree
    assert normals_findings(wrong[:3] + right[3:]) == []


@pytest.mark.parametrize(
    ("images", "after", "constant", "sure"),
    [
        (4, 0.69, 9, False),
        (4, 0.71, 9, None),
        (4, 0.51, 9, False),
        (4, 0.49, 9, True),
        (3, 0.51, 9, None),
        (3, 0.49, 9, False),
        (4, 0.49, 0.99, True),
        (4, 0.49, 0.97, None),
    ],
)
def test_how_far_the_error_must_fall(images, after, constant, sure):
    """To less than 0.7 of what it was, half of fewer than four images, and half of the best constant's; sure: half."""
    evidence = [Evidence({("as read",): 1.0, ("other",): after}, constant)] * images
    found = best_finding(evidence, ("as read",), "(relative)")
    if sure is None:
        assert found is None
    else:
        assert (found.key, found.agree, found.images, found.sure) == (("other",), images, images, sure)
        assert (found.before, found.after) == pytest.approx((1.0, after))


@pytest.mark.parametrize(("errors", "best"), [((0.104, 0.1), 0), ((0.106, 0.1), 1), ((1e-10, 0), 0), ((1e-8, 0), 1)])
def test_among_equal_candidates_the_first_is_named(errors, best):
    evidence = [Evidence({("as read",): 1.0} | {(number,): error for number, error in enumerate(errors)}, 9)] * 4
    assert best_finding(evidence, ("as read",), "").key == (best,)


def test_an_image_agrees_from_a_fall_by_a_fifth():
    def agree(*after):
        found = best_finding([Evidence({("as read",): 1.0, ("other",): one}, 9) for one in after], ("as read",), "")
        return found and found.agree

    assert agree(0.1, 0.1, 0.1, 0.79) == 4 and agree(0.1, 0.1, 0.1, 0.81) == 3 and agree(0.1, 0.1, 0.81, 0.81) is None


def test_no_frame_is_the_remedy_of_values_that_are_not_plain():
    undone = Finding(("srgb", 0), "", 4, 4, True)
    assert frame_of(undone) is true_frame_of(undone, "opencv", "opengl") is None


@pytest.mark.parametrize(("largest", "odd"), [(15.5, ()), (16.5, ("255",))])
def test_normals_beyond_16_were_never_decoded(largest, odd):
    """Of no sign; 8-bit values of any image reach farther, and lengths of no network do."""
    assert normals_evidence(np.full((3, 4, 3), (largest, 3.0, 2.0))).odd == odd


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize(("apart", "odd"), [(0.07, ()), (0.09, ("colours",))])
def test_depth_has_colours_where_channels_differ_by_8_percent_of_white(white, apart, odd):
    grey = np.linspace(0, 0.9, 99).reshape(9, 11, 1)
    assert depth_evidence(white * (grey + np.array([0, apart, 0]))).odd == odd


def test_fitted_depths_end_at_half_the_nearest_and_twice_the_farthest():
    """Of the middle nine tenths of the truth: a wild value has a bounded error."""
    truth = np.linspace(1, 101, 1001)[None]  # the 5th and 95th percentile are 6 and 96
    values = truth.copy()
    values[0, [500, 501]] = -500, 600
    inside = (truth >= 6) & (truth <= 96)
    scale, shift = align_scale_shift(values, truth, inside)
    error = np.abs(np.clip(scale * values + shift, 3, 192) - truth) / truth
    assert scale * 600 + shift > 3 * 96 and scale * -500 + shift < 0  # so both limits count
    assert depth_evidence(values, truth).errors["linear", "depth"] == pytest.approx(error[inside].mean(), rel=1e-12)


@pytest.mark.parametrize(("odd", "images", "sure"), [(2, 4, None), (3, 4, False), (4, 4, True), (9, 10, True)])
def test_an_oddity_needs_three_quarters_of_the_images(odd, images, sure):
    evidence = [Evidence({}, odd=("bytes",) if number < odd else ()) for number in range(images)]
    found = odd_finding(evidence, {"length": "not unit vectors", "bytes": "0 to 255"})
    assert found is None if sure is None else (found.agree, found.images, found.sure) == (odd, images, sure)


@pytest.mark.parametrize(("inverted", "sure"), [(7, None), (8, False), (9, True)])
def test_an_inversion_is_sure_from_nine_of_ten_images(inverted, sure):
    evidence = [Evidence({}, nearness=-1.0 if number < inverted else 0.0) for number in range(10)]
    assert [(one.key, one.agree, one.sure) for one in depth_findings(evidence)] == (
        [] if sure is None else [(("inverted",), inverted, sure)]
    )


def test_a_constant_or_random_map_is_not_turned_to_fit_the_truth():
    """The constant (1,0,0), with its axes permuted, would fit a wall far better; so would noise around it."""
    rng = np.random.default_rng(0)
    truth = unit_vectors(rng.normal((0, -0.3, -1), 0.4, (40, 50, 3)))
    for values in (np.broadcast_to((1.0, 0.0, 0.0), truth.shape), rng.normal((1, 0, 0), 0.3, truth.shape)):
        evidence = normals_evidence(values, truth)
        errors = evidence.errors
        assert min(errors.values()) < 0.5 * errors["plain", 0]  # which alone would be a finding
        assert normals_findings([evidence] * 8) == []


def test_no_random_number_is_drawn(scenes):
    before = np.random.get_state()[1].copy()
    of_labels(NORMAL, scenes["normal"])
    assert (np.random.get_state()[1] == before).all()
