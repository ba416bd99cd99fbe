"""The benchmark on rooms from Blender: the truth that predictions of 64 pixels are scored against; missing data."""

import numpy as np
import pytest

from studies import rooms
from utils.errors import InputError


@pytest.fixture
def data(tmp_path):
    """One held-out image of 256 pixels: columns of 0 and 1 in turns; one pixel that is not valid."""
    values = np.repeat(np.tile([0.0, 1.0], 128)[None, :, None], 256, 0).repeat(3, -1).astype(np.float32)
    valid = np.ones((256, 256), bool)
    valid[5, 9] = False
    for task in ("albedo", "depth"):
        for what, array in (("gt", values if task == "albedo" else values[..., 0]), ("masks", valid)):
            folder = tmp_path / task / what / "val"
            folder.mkdir(parents=True)
            np.save(folder / "study_0000.npy", array)
    return tmp_path


def test_colours_are_scored_against_means_and_a_cell_counts_if_all_of_it_is_valid(data, tmp_path):
    gt, masks = (np.load(folder / "study_0000.npy") for folder in rooms.truth("albedo", data, tmp_path / "out"))
    assert gt.shape == (64, 64, 3) and np.allclose(gt, 0.5)
    assert masks.shape == (64, 64) and not masks[1, 2] and masks.sum() == 64 * 64 - 1


def test_depth_is_scored_against_the_rendered_map(data, tmp_path):
    gt, masks = rooms.truth("depth", data, tmp_path / "out")
    assert (gt, masks) == (data / "depth" / "gt" / "val", data / "depth" / "masks" / "val")


def test_missing_rooms_are_refused_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(InputError, match=r"integrations\.blender\.rooms renders them"):
        rooms.parse(["--data", str(tmp_path)])
