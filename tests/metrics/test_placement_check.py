"""Maps that are mirrored, turned, or of another image are named; maps that are only bad are not."""

import numpy as np
import pytest

from studies.conventions import as_bytes, blurred, shots
from utils.intrinsics import INTRINSICS, NORMAL
from utils.kinds.evidence import (
    AS_IS,
    GRID,
    Finding,
    Fit,
    Placed,
    in_pairs,
    label_fit,
    placed_of_label,
    placement_findings,
    unrelated,
)

MOVED = {
    "mirroring left to right": lambda a: a[:, ::-1],
    "mirroring top to bottom": lambda a: a[::-1],
    "turning by 180 degrees": lambda a: a[::-1, ::-1],
}
TURNED = {  # of square images; numpy turns counterclockwise, and the finding is what puts it right
    "turning by 90 degrees clockwise": lambda a: np.rot90(a),
    "turning by 90 degrees counterclockwise": lambda a: np.rot90(a, -1),
    "transposing": lambda a: a.transpose(1, 0, 2),
    "transposing along the other diagonal": lambda a: np.rot90(a, 2).transpose(1, 0, 2),
}


@pytest.fixture(scope="module")
def scenes():
    return {task: shots(task, 8, (0,)) for task in INTRINSICS}


def found(intrinsic, made):
    """Findings of (label, shot) pairs, as the check of labels has them."""
    fit = label_fit(intrinsic)
    places = [placed_of_label(intrinsic, label, shot.truth, shot.known) for label, shot in made]
    others = [intrinsic.map_kind.label_evidence(label, shot.truth, shot.known) for label, shot in made]
    return placement_findings(places, fit, intrinsic.map_kind.label_findings(others)) or unrelated(places, intrinsic)


@pytest.mark.parametrize("task", INTRINSICS)
@pytest.mark.parametrize("words", MOVED)
def test_a_flip_of_the_image_is_named(scenes, task, words):
    (one,) = found(INTRINSICS[task], [(MOVED[words](shot.label), shot) for shot in scenes[task]])
    assert one.key == ("placed", words) and one.sure and words in one.text("the labels", "")


@pytest.mark.parametrize("task", INTRINSICS)
@pytest.mark.parametrize("words", TURNED)
def test_a_turn_of_square_images_is_named(scenes, task, words):
    square = [
        shot._replace(**{k: getattr(shot, k)[:64, 16:80] for k in ("label", "truth", "known")})
        for shot in scenes[task]
    ]
    (one,) = found(INTRINSICS[task], [(TURNED[words](shot.label), shot) for shot in square])
    assert one.key == ("placed", words)


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("mirroring left to right", lambda n: n[:, ::-1] * (-1, 1, 1)),
        ("mirroring top to bottom", lambda n: n[::-1] * (1, -1, 1)),
        ("turning by 90 degrees clockwise", lambda n: np.rot90(n)[..., [1, 0, 2]] * (1, -1, 1)),
        ("turning by 90 degrees counterclockwise", lambda n: np.rot90(n, -1)[..., [1, 0, 2]] * (-1, 1, 1)),
    ],
)
def test_normals_of_a_flipped_photo_have_flipped_vectors_too(scenes, words, change):
    square = [
        shot._replace(**{k: getattr(shot, k)[:64, 16:80] for k in ("label", "truth", "known")})
        for shot in scenes["normal"]
    ]
    (one,) = found(NORMAL, [(change(shot.label), shot) for shot in square])
    assert one.key == ("placed", words + " (vectors too)") and one.after < 1


@pytest.mark.parametrize("task", INTRINSICS)
def test_labels_under_the_names_of_others_are_named(scenes, task):
    made = list(zip([shot.label for shot in scenes[task][1:] + scenes[task][:1]], scenes[task]))
    (one,) = found(INTRINSICS[task], made)
    assert one.key == ("paired",) and one.sure and one.agree == 8


def exchanged_maps(share, constant, exchanged, images):
    """Maps of one value each, from the truth of their own image (10, 20, ...) to its neighbour's; and their fit."""

    def image(number):
        own = 10.0 * number
        other = own + 10 * (-1) ** number if number < exchanged else own
        value = own + share * (other - own)
        values, truth = np.full((GRID, GRID, 1), value, np.float32), np.full((GRID, GRID, 1), own, np.float32)
        return Placed({AS_IS: abs(value - own)}, constant, values, truth, np.ones((GRID, GRID), bool))

    fit = Fit(lambda values, truth: (float(np.abs(values - truth).mean()), constant))
    return [image(number) for number in range(images)], fit


@pytest.mark.parametrize(("after", "kept"), [(3.8, True), (4.0, False), (None, False)])
def test_another_convention_explains_maps_first_if_its_error_is_within_3_tenths(after, kept):
    """Exchanged, these have an error of 3."""
    others = [Finding(("plain", 3), "", 2, 2, True, 7.0, after)]
    (one,) = placement_findings(*exchanged_maps(0.7, 99, 2, 2), others)
    assert one.key == (others[0].key if kept else ("paired",))


@pytest.mark.parametrize(
    ("share", "constant", "exchanged", "images", "expected"),
    [
        (0.7, 99, 2, 2, (2, False)),  # 3 from the other's truth, 7 from its own
        (0.6, 99, 2, 2, None),  # 4 and 6: more than half
        (0.7, 6.1, 2, 2, (2, False)),
        (0.7, 5.9, 2, 2, None),  # more than half of the best constant's error
        (1, 99, 2, 5, (2, False)),
        (1, 99, 2, 6, None),  # fewer than four tenths of the images
        (1, 99, 4, 6, (4, True)),
    ],
)
def test_how_well_maps_must_fit_the_truth_of_others(share, constant, exchanged, images, expected):
    found = placement_findings(*exchanged_maps(share, constant, exchanged, images), [])
    assert [(one.key, (one.agree, one.sure)) for one in found] == ([(("paired",), expected)] if expected else [])


def test_of_many_images_evenly_spaced_neighbours_are_compared():
    assert in_pairs(4, 4) == [0, 1, 2, 3] and in_pairs(101, 6) == [0, 1, 49, 50, 99, 100]
    (found,) = placement_findings(*exchanged_maps(1, 99, 40, 40), [])
    assert found.images == 24


@pytest.mark.parametrize(("task", "other"), [("normal", "albedo"), ("albedo", "shading"), ("shading", "depth")])
def test_labels_of_another_intrinsic_are_likely_wrong(scenes, task, other):
    made = [(b.label, a) for a, b in zip(scenes[task], scenes[other])]
    (one,) = found(INTRINSICS[task], made)
    assert one.key == ("unrelated",) and not one.sure
    assert found(INTRINSICS[task], made[:7]) == []  # of fewer than eight images it may be chance


def test_normals_in_place_of_colours_show_without_truth(scenes):
    for task in ("albedo", "shading"):
        evidence = [INTRINSICS[task].map_kind.label_evidence(shot.label, None, None) for shot in scenes["normal"]]
        assert [one.key for one in INTRINSICS[task].map_kind.label_findings(evidence)] == [("normals",)]
    two_greys = np.where(np.arange(64)[:, None, None] < 32, 0.58, -0.58) * np.ones((64, 96, 3))
    assert INTRINSICS["albedo"].map_kind.label_evidence(two_greys, None, None).odd == ()


@pytest.mark.parametrize("task", INTRINSICS)
@pytest.mark.parametrize("first", [0, 48])
def test_good_and_bad_labels_in_place_are_left_alone(scenes, task, first):
    """first: the row from which on pixels are known; 48 leaves floors alone."""
    rng = np.random.default_rng(0)
    shots_of = [shot._replace(known=shot.known & (np.arange(64)[:, None] >= first)) for shot in scenes[task]]

    def noisy(label):
        noise = rng.normal(0, 0.3, label.shape)
        return as_bytes(label + (noise[..., :1] if task == "depth" else noise))

    for change in (lambda label: label, noisy, blurred):
        assert found(INTRINSICS[task], [(change(shot.label), shot) for shot in shots_of]) == []
        assert found(INTRINSICS[task], [(change(shots_of[0].label), shots_of[0])]) == []


def test_few_pixels_flat_scenes_and_one_camera_are_no_finding(scenes):
    shot = scenes["depth"][0]
    depth = INTRINSICS["depth"]
    few = np.zeros_like(shot.known)
    few.flat[np.flatnonzero(shot.known)[:9]] = True
    assert found(depth, [(shot.label[:, ::-1], shot._replace(known=few))] * 8) == []
    rng = np.random.default_rng(0)
    wall = shot._replace(truth=3 + 0.001 * rng.normal(size=shot.truth.shape))
    assert (
        found(depth, [(as_bytes(rng.normal(0, 0.1, (*shot.known.shape, 1)) * np.ones(3)), wall) for _ in range(8)])
        == []
    )
    assert found(NORMAL, [(scenes["normal"][0].label, scenes["normal"][0])] * 8) == []
    assert placed_of_label(depth, shot.label, None, None) is None
    tiny = shot._replace(truth=shot.truth[:1, :1], known=shot.known[:1, :1])
    assert placed_of_label(depth, shot.label[:1, :1], tiny.truth, tiny.known).errors.get(AS_IS) is None
