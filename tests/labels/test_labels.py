"""The parts of labelling that need no teacher: coding, closing holes, the self-check, the record."""

import json

import numpy as np
import pytest

from miniworld.reference_room import room_with_sphere
from utils.errors import InputError
from utils.kinds.axes import convert_frame, to_frame
from utils.kinds.frames import FRAMES
from utils.labels.encoding import SKY_NORMAL, encode, fill, nearest, record, write_label
from utils.labels.self_check import check_depth, check_normals, self_check


def test_labels_are_8_bit_linear_and_near_is_white():
    depth = np.linspace(1, 5, 1001).reshape(7, 143)
    label = encode("depth", depth)
    assert label.dtype == np.uint8 and label.shape == (7, 143, 3) and (label[..., 0] == label[..., 2]).all()
    assert label[0, 0, 0] == 255 and label[-1, -1, 0] == 0 and label[3, 71, 0] in (127, 128)  # near white, linear
    assert np.abs(encode("disparity", -depth).astype(int) - label).max() <= 1
    normals = np.zeros((2, 2, 3))
    normals[..., 2] = -1
    assert encode("normal", normals)[0, 0].tolist() == [128, 128, 0]
    assert encode("albedo", np.full((2, 2, 3), 0.5))[0, 0].tolist() == [128] * 3
    assert encode("shading", np.array([[[-0.1, 1.2, 1]]])).tolist() == [[[0, 255, 255]]]  # no value wraps around
    with pytest.raises(InputError, match="1 values are not finite"):
        encode("albedo", np.array([[[1, np.nan, 1]]]))
    assert encode("depth", np.ones((3, 3))).shape == (3, 3, 3)  # a constant has no range and no error


def test_the_percentiles_are_those_of_measured_pixels():
    depth = np.tile(np.linspace(1, 2, 100), (10, 1))
    depth[:3] = 50.0
    measured = np.ones((10, 100), bool)
    measured[:3] = False
    assert (encode("depth", depth, measured)[3:] == encode("depth", depth[3:])).all()


@pytest.mark.parametrize("seed", range(4))
def test_nearest_is_nearest(seed):
    rng = np.random.default_rng(seed)
    valid = rng.random((37, 61)) < (0.002, 0.02, 0.3, 0.9)[seed]
    valid[5, 7] = True
    rows, columns = nearest(valid)
    assert valid[rows, columns].all()
    y, x = np.indices(valid.shape)
    found = np.hypot(rows - y, columns - x)
    points = np.argwhere(valid)
    exact = np.sqrt(((np.stack([y, x], -1)[:, :, None] - points) ** 2).sum(-1)).min(-1)
    assert (found - exact).max() < 1 and (found > exact + 1e-9).mean() < 0.01
    assert (found[valid] == 0).all()


def test_holes_are_filled_from_their_nearest_pixels_and_the_sky_with_its_value():
    values = np.arange(24, dtype=float).reshape(4, 6, 1)
    valid = np.ones((4, 6), bool)
    valid[0, :3] = valid[1, 1] = valid[2, 4] = False
    inside = fill(values, valid, False, (-1,))
    assert inside[2, 4, 0] in (10, 15, 17, 22) and inside[0, 0, 0] == 6 and (inside[valid] == values[valid]).all()
    outside = fill(values, valid, True, (-1,))
    assert outside[0, :3, 0].tolist() == [-1, -1, -1] and outside[1, 1, 0] == -1  # nothing valid above
    assert outside[2, 4, 0] == inside[2, 4, 0]
    with pytest.raises(InputError, match="no valid pixel"):
        fill(values, np.zeros((4, 6), bool), True, (0,))
    assert SKY_NORMAL == (0, 0, -1)


def scene_normals():
    scene = room_with_sphere()
    return convert_frame(scene.normal, "opengl"), scene


def test_the_test_scene_shows_floor_wall_and_sphere():
    normals, scene = scene_normals()
    floor, ball = normals[-1, 320], scene.segment == 0
    assert floor[1] < -0.9 and ball.mean() > 0.03  # the floor looks up: y is down
    assert np.ptp(normals[ball][:, 0]) > 1.8 and scene.valid.mean() > 0.9
    wall = normals[100, 320]
    assert wall[2] < -0.9


@pytest.mark.parametrize("frame", sorted(FRAMES.keys() - {"blender"}))  # that one swaps axes
def test_flipped_axes_are_found(frame):
    """A teacher whose axes are `frame`, taken for opengl: found, with the right flag, unless the two are the same."""
    truth, _ = scene_normals()
    noise = np.random.default_rng(0).normal(0, 0.15, truth.shape)
    as_drawn = convert_frame(to_frame(truth + noise, frame), "opengl")  # drawn in `frame`, converted as if opengl

    def predict(picture):
        return as_drawn

    if frame == "opengl":
        found = self_check(predict, "normal", "opengl", room_with_sphere())
        assert found["verdict"] == "agrees" and found["degrees"] < 15
    else:
        with pytest.raises(InputError, match=r"pass --frame (opencv|dsine|directx)") as failure:
            self_check(predict, "normal", "opengl", room_with_sphere())
        fits = str(failure.value).rsplit(" ", 1)[1]
        assert FRAMES[fits] == FRAMES[frame]


def test_a_single_flipped_axis_is_named():
    truth, scene = scene_normals()
    found = check_normals(truth * (-1, 1, 1), truth, scene.valid)
    assert found["verdict"] == "flipped" and found["flip"] == "x" and found["degrees_flipped"] < 1e-3
    noise = np.random.default_rng(0).normal(size=truth.shape)
    assert check_normals(noise, truth, scene.valid)["verdict"] == "unclear"
    hint = check_normals(0.9 * noise - truth, truth, scene.valid)  # mostly noise: the better flip is not evidence
    assert hint["verdict"] == "unclear" and hint["degrees"] > 110


def test_a_teacher_with_swapped_channels_or_in_zero_to_one_is_refused():
    truth, scene = scene_normals()
    noisy = truth + np.random.default_rng(0).normal(0, 0.1, truth.shape)
    for made, words in ((noisy[..., ::-1], "BGR channel order.*no --frame fits"), (noisy / 2 + 0.5, r"in \[0,1\]")):
        with pytest.raises(InputError, match=words):
            self_check(lambda picture, made=made: made, "normal", "opencv", scene)
    blender = to_frame(noisy, "blender")  # read as opengl
    with pytest.raises(InputError, match=r"swapping the axes.*its axes are blender, not opengl: pass --frame blender"):
        self_check(lambda picture: convert_frame(blender, "opengl"), "normal", "opengl", scene)


def test_a_teacher_whose_depth_is_a_logarithm_is_warned_of(capsys):
    scene = room_with_sphere()
    found = self_check(lambda picture: np.log(scene.depth + 1e-3), "depth", "opengl", scene)
    assert found["verdict"] == "agrees" and "logarithm" in found["change"]
    assert "warning: self-check: reading the logarithm of depth out" in capsys.readouterr().err


def test_inverted_depth_is_found():
    scene = room_with_sphere()
    rng = np.random.default_rng(0)
    assert self_check(lambda picture: scene.depth + 0.1, "depth", "opengl", scene)["verdict"] == "agrees"
    assert self_check(lambda picture: 1 / scene.depth, "disparity", "opengl", scene)["verdict"] == "agrees"
    with pytest.raises(InputError, match=r"near comes out dark .* pass --predicts disparity"):
        self_check(lambda picture: 1 / scene.depth, "depth", "opengl", scene)
    blind = check_depth(rng.integers(0, 255, (*scene.depth.shape, 3)), scene.depth, scene.valid)
    assert blind["verdict"] == "unclear"


def test_labels_of_two_makings_are_not_mixed(tmp_path):
    described = {"task": "depth", "teacher": {"name": "a"}, "self_check": {"verdict": "agrees"}}
    record(tmp_path, described, False)
    record(tmp_path, {**described, "self_check": None}, False)
    with pytest.raises(InputError, match="made with other teacher"):
        record(tmp_path, {**described, "teacher": {"name": "b"}}, False)
    record(tmp_path, {**described, "teacher": {"name": "b"}}, True)
    assert json.loads((tmp_path / "provenance.json").read_text())["teacher"]["name"] == "b"
    write_label(tmp_path / "other" / "x.y", np.zeros((2, 2, 3), np.uint8), np.ones((2, 2)))
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["x.y.npy", "x.y.png"]
    with pytest.raises(InputError, match="of unknown origin"):
        record(tmp_path / "other", described, False)
