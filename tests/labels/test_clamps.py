"""Unknown and clamped values of a teacher do not set the range of a label."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

import pseudo_label
from miniworld.render.diode_tree import Settings, list_samples, render_sample
from utils.errors import InputError
from utils.labels import teachers
from utils.labels.encoding import check_levels, encode, scene_pixels
from utils.labels.teachers import Teacher

TREE = Settings(train=12, val=0, width=160, height=120, seed=5)


@pytest.fixture(scope="module")
def depths() -> list[np.ndarray]:
    """Depths in metres of rooms, known everywhere."""
    rendered = [render_sample(TREE, sample) for sample in list_samples(TREE)]
    return [one.depth.astype(float) for one in rendered if (one.depth > 0).all()]


def released(quantity: str, values: np.ndarray) -> np.ndarray:
    """The label by the released convention: near and far are the 2nd and 98th percentile of all values."""
    low, high = np.percentile(values, [2, 98])
    shade = np.clip((values - low) / (high - low), 0, 1)
    near = 1 - shade if quantity == "depth" else shade
    return np.round(255 * np.repeat(near[..., None], 3, 2)).astype(np.uint8)


def enlarged(values: np.ndarray, mode: str) -> np.ndarray:
    """Twice as wide and high, as a teacher's map is that was predicted at a lower resolution."""
    return interpolate(torch.from_numpy(values)[None, None], scale_factor=2, mode=mode, align_corners=False)[
        0, 0
    ].numpy()


def with_sky(depth: np.ndarray, share: float, far: float, edge: str) -> tuple[np.ndarray, np.ndarray]:
    """(depth with a wavy sky, where the scene is). edge: sharp, or enlarged in depth, or in inverse depth."""
    height, width = depth.shape
    waves = height * share * (1 + 0.3 * np.sin(np.arange(width) / 10))
    sky = np.arange(height)[:, None] < waves
    values = np.where(sky, far, depth)
    if edge == "sharp":
        return values, ~sky
    scene = ~np.kron(sky, np.ones((2, 2), bool))
    return (enlarged(values, "bicubic") if edge == "depth" else 1 / enlarged(1 / values, "bilinear")), scene


def test_labels_without_clamps_are_those_of_the_released_rule(depths):
    for depth in depths:
        unit = (depth - depth.min()) / np.ptp(depth)
        half, brain = (torch.from_numpy(depth).to(kind).double().numpy() for kind in (torch.half, torch.bfloat16))
        wall = np.where(unit > 0.6, depth.max(), depth)  # one value that many pixels share, at the end of the scene
        for values in (depth, unit, -depth, half, brain, enlarged(depth, "bicubic"), np.minimum(unit, 0.9), wall):
            assert np.array_equal(encode("depth", values), released("depth", values))
            assert np.array_equal(encode("disparity", -values), released("disparity", -values))
        assert np.array_equal(encode("disparity", 1 / depth), released("disparity", 1 / depth))
        sky = np.where(unit > 0.8, 0, 1 / depth)  # of disparity, sky at 0 costs few levels
        assert np.array_equal(encode("disparity", sky), released("disparity", sky))


@pytest.mark.parametrize(("share", "edge"), [
    (0.01, "sharp"), (0.03, "sharp"), (0.1, "sharp"), (0.1, "depth"), (0.1, "inverse"), (0.3, "depth"),
    (0.6, "sharp"), (0.6, "depth"), (0.6, "inverse"),
])  # fmt: skip
@pytest.mark.parametrize("far", [80.0, 200.0, 1e4, 65504.0, 1e9])
def test_a_clamped_sky_leaves_the_scene_its_grey_levels(depths, share, far, edge):
    for depth in depths:
        values, scene = with_sky(depth, share, far, edge)
        label = encode("depth", values)[..., 0]
        alone = encode("depth", depth if edge == "sharp" else enlarged(depth, "bicubic"), scene)[..., 0]
        kept, possible = len(np.unique(label[scene])), len(np.unique(alone[scene]))
        assert kept > 0.85 * possible, (kept, possible)
        assert np.abs(label.astype(int) - alone)[scene].mean() < (8 if edge == "sharp" else 25)
        assert (label[~scene & (values >= 0.9 * far)] == 0).all()
        if edge == "sharp":
            mirrored = encode("disparity", -values)[..., 0]
            assert np.abs(mirrored.astype(int) - label).max() <= 1


@pytest.mark.parametrize("unknown", [np.inf, np.nan])
def test_values_that_are_not_finite_are_as_far_as_the_farthest(depths, unknown):
    for depth in depths:
        values, scene = with_sky(depth, 0.3, 1.0, "sharp")
        values = np.where(scene, depth, unknown)
        label = encode("depth", values)
        assert np.array_equal(label[scene], released("depth", depth[scene][None])[0]) and not label[~scene].any()
    near = np.where(scene, 1 / depth, np.inf)
    assert (encode("disparity", near)[~scene] == 255).all()  # no distance at all
    assert not encode("disparity", np.where(scene, 1 / depth, np.nan))[~scene].any()


def test_a_noisy_sky_of_kilometres_is_left_out_and_a_view_from_a_window_is_not(depths):
    rng = np.random.default_rng(0)
    for depth in depths:
        _, scene = with_sky(depth, 0.3, 1.0, "sharp")
        sky = np.where(scene, depth, np.exp(rng.uniform(np.log(2e3), np.log(9e3), depth.shape)))
        assert np.array_equal(scene_pixels("depth", sky), scene)
        view = np.where(scene, depth, rng.uniform(20, 60, depth.shape))
        assert np.array_equal(encode("depth", view), released("depth", view))


def test_a_clamp_at_the_near_end(depths):
    for depth in depths:
        disparity = np.where(np.arange(160) < 8, 1e4, 1 / depth)
        label = encode("disparity", disparity)[..., 0]
        assert (label[:, :8] == 255).all() and len(np.unique(label[:, 8:])) > 80


def test_a_clamp_is_one_value_within_rounding_with_little_beyond_it(depths):
    rng = np.random.default_rng(0)
    for depth in depths:
        clamped = np.arange(160) < 16  # a tenth of the columns
        rounded = 1e4 * (1 - 1.8e-5 * rng.random(depth.shape))
        assert scene_pixels("disparity", np.where(clamped, rounded, 1 / depth))[:, 20:].all()
        assert not scene_pixels("disparity", np.where(clamped, rounded, 1 / depth))[:, :16].any()
        beyond = np.where(np.arange(160) < 12, 2e4 + 1e4 * rng.random(depth.shape), 1e4)  # 7.5 %
        values = np.where(clamped, beyond, 1 / depth)
        assert scene_pixels("disparity", values).all()


def test_pixels_next_to_a_sharp_clamp_are_the_scenes(depths):
    """Also where the scene's range is small next to its distance."""
    for depth in depths:
        values, scene = with_sky(depth + 20, 0.3, 1e4, "sharp")
        assert np.array_equal(scene_pixels("depth", values), scene)


def test_a_normal_without_direction_faces_the_viewer():
    normals = np.zeros((4, 4, 3))
    normals[:2] = (0, -1, 0)
    assert encode("normal", normals)[3, 3].tolist() == [128, 128, 0]
    assert np.array_equal(scene_pixels("normal", normals), np.arange(4)[:, None].repeat(4, 1) < 2)
    with pytest.raises(InputError, match="3 values are not finite"):
        encode("normal", np.where(np.arange(4)[:, None, None] == 3, np.nan, normals)[:, :1])


def test_few_grey_levels_are_refused():
    check_levels(np.arange(8, dtype=np.uint8)[None])
    with pytest.raises(InputError, match="7 grey levels, and fewer than 8 show no depth"):
        check_levels(np.repeat(np.arange(7, dtype=np.uint8)[None, :, None], 3, 2))


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """label(values by image, task) -> (exit status, provenance): the command, with a teacher that returns `values`."""

    def run(values: list[np.ndarray], quantity: str = "depth", *more: str) -> tuple[int, dict]:
        (tmp_path / "in").mkdir(exist_ok=True)
        for number, each in enumerate(values):
            rgb = np.full((*each.shape[:2], 3), number, np.uint8)
            Image.fromarray(rgb).save(tmp_path / "in" / f"{number}.png")
        about = {"teacher": quantity, "labels": "near = white, linear in depth"}
        teacher = Teacher(lambda image, noise: values[np.asarray(image)[0, 0, 0]], quantity, {"name": "a"}, about)
        monkeypatch.setattr(teachers, "load_teacher", lambda *args, **options: teacher)
        task = "depth" if quantity == "disparity" else quantity
        words = ["--task", task, "--teacher", "a/b", "--skip_self_check", "--device", "cpu", *more]
        status = 0
        try:
            pseudo_label.main([*words, "--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")])
        except SystemExit as error:
            status = error.code
        return status, json.loads((tmp_path / "out" / "provenance.json").read_text())

    return run


def test_the_record_counts_what_was_left_out(depths, stand_in, tmp_path, capsys):
    sky = with_sky(depths[0], 0.3, 1e4, "sharp")[0]
    status, made = stand_in([depths[0], sky, np.where(sky > 99, np.nan, sky)])
    assert status == 0 and made["counts"]["complete"] and list(made["out_of_range"]) == ["1", "2"]
    assert made["out_of_range"]["2"] == pytest.approx(0.3, abs=0.02)
    assert made["out_of_range"]["1"] == made["out_of_range"]["2"]
    assert "2 images have pixels whose depth is unknown or clamped" in capsys.readouterr().out
    (tmp_path / "out" / "2.png").unlink()
    status, again = stand_in([depths[0], sky, depths[0]])  # the record keeps its entries of existing labels
    assert list(again["out_of_range"]) == ["1", "2"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((60, 80), 3.0), "1 grey levels"),
        (np.full((60, 80), np.inf), "no value of the depth is finite"),
        (np.where(np.arange(160) < 1, 2.0, 1e4)[None].repeat(60, 0), "1 grey levels"),
    ],
)
def test_a_label_that_shows_nothing_is_an_error_that_names_the_image(values, message, depths, stand_in, capsys):
    status, made = stand_in([depths[0], values])
    assert status == 1 and not made["counts"]["complete"]
    assert f"1.png: {message}" in capsys.readouterr().err.replace("the depth label has ", "")
