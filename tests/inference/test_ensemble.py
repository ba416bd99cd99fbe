"""Merging several drawings: on members whose truth is known."""

import numpy as np
import pytest
import torch

from utils.inference.prediction import uncertainty_picture
from utils.intrinsics import DEPTH, INTRINSICS, NORMAL
from utils.kinds.alignment import align_members


def scene(side=40) -> torch.Tensor:
    """A depth drawing (H,W) in [-1,1] with a slope and a step."""
    x = torch.linspace(-1, 1, side)
    plane = 0.4 * x[None] + 0.3 * x[:, None]
    plane[10:20, 10:20] += 0.3
    return plane


def grey(depth: torch.Tensor) -> torch.Tensor:
    return depth.expand(3, -1, -1)


def test_depth_is_aligned_before_it_is_merged():
    truth = scene()
    members = torch.stack([grey(a * truth + b) for a, b in ((1, 0), (0.5, 0.4), (0.8, -0.3), (1.2, 0.1), (0.9, 0.2))])
    merged, doubt = DEPTH.map_kind.merge(members)
    assert merged.shape == (3, 40, 40) and doubt.shape == (40, 40)
    assert doubt.max() < 1e-6  # they all say the same
    slope, shift = np.polyfit(truth.flatten().numpy(), merged[0].flatten().numpy(), 1)
    assert np.allclose(slope * truth.numpy() + shift, merged[0], atol=1e-6)
    assert slope == pytest.approx(0.88, abs=1e-4) and shift == pytest.approx(0.08, abs=1e-4)  # the members' averages


def test_astray_members_do_not_move_the_depth():
    truth = scene()
    good = [grey(truth), grey(0.7 * truth + 0.2), grey(1.1 * truth)]
    merged, doubt = DEPTH.map_kind.merge(torch.stack([*good, grey(-truth)]))
    assert np.corrcoef(merged[0].flatten(), truth.flatten())[0, 1] > 0.999
    inverted = align_members(torch.stack([truth, 0.7 * truth, truth, -truth]))[3]
    assert inverted.std() < 1e-6  # it is in error: not turned around and not left inverted
    hole = truth.clone()
    hole[25:35, 25:35] = 3.0
    merged, doubt = DEPTH.map_kind.merge(torch.stack([*good, grey(truth), grey(hole)]))
    assert np.corrcoef(merged[0].flatten(), truth.flatten())[0, 1] > 0.999
    assert doubt.max() < 0.01
    noisy = truth + torch.randn(9, 40, 40, generator=torch.Generator().manual_seed(0)) * 0.1
    merged, doubt = DEPTH.map_kind.merge(torch.stack([grey(one) for one in noisy]))
    assert (merged[0] - truth).std() < 0.05 < (noisy[0] - truth).std() and 0.03 < doubt.mean() < 0.1


def test_alignment_survives_constants():
    members = torch.stack([scene(), scene(), torch.zeros(40, 40)])
    assert align_members(members).isfinite().all()
    assert DEPTH.map_kind.merge(torch.zeros(3, 3, 8, 8))[0].abs().max() == 0


def test_normals_merge_to_the_mean_direction():
    def facing(degrees):
        angle = torch.deg2rad(torch.tensor(degrees))
        return torch.stack([angle.sin(), torch.tensor(0.0), -angle.cos()])[:, None, None].expand(3, 4, 4)

    merged, doubt = NORMAL.map_kind.merge(
        torch.stack([2.0 * facing(-10.0), 0.5 * facing(10.0)])
    )  # lengths do not count
    torch.testing.assert_close(merged[:, 0, 0], torch.tensor([0.0, 0.0, -1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(doubt, torch.full((4, 4), 10.0))
    merged, doubt = NORMAL.map_kind.merge(torch.stack([facing(30.0)] * 3))
    torch.testing.assert_close(merged, facing(30.0))
    assert doubt.max() < 1e-4


@pytest.mark.parametrize("task", ["albedo", "shading"])
def test_colours_merge_to_the_median(task):
    members = torch.tensor([0.1, 0.2, 0.9])[:, None, None, None].expand(3, 3, 4, 4).clone()
    members[:, 1] = 0.5
    merged, doubt = INTRINSICS[task].map_kind.merge(members)
    assert merged[0, 0, 0] == 0.2 and merged[1, 0, 0] == 0.5
    torch.testing.assert_close(doubt, torch.full((4, 4), 2 * 0.1 / 3))
    merged, _ = INTRINSICS[task].map_kind.merge(members[:2])
    torch.testing.assert_close(merged[0], torch.full((4, 4), 0.15))


def test_uncertainty_images_share_one_scale():
    doubt = torch.tensor([[0.0, 22.5], [45.0, 90.0]])
    assert uncertainty_picture(doubt, NORMAL).tolist() == [[0, 128], [255, 255]]
