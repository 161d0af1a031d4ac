"""The end-point error, voxel by voxel, and at several resolutions in one unit."""

import pytest
import torch

from DeepRegLib.errors import GeometryError
from DeepRegLib.losses.end_point import (
    end_point_error,
    level_shares,
    multiscale_end_point_errors,
)


def slow(found, truth, weight):
    total = count = 0.0
    for b in range(len(found)):
        for index in torch.cartesian_prod(*(torch.arange(n) for n in found.shape[2:])).tolist():
            gap = [float(found[b, c][tuple(index)] - truth[b, c][tuple(index)]) for c in range(3)]
            w = float(weight[b, 0][tuple(index)])
            total += w * sum(g * g for g in gap) ** 0.5
            count += w
    return total / count


def test_agrees_with_loops():
    torch.manual_seed(0)
    found, truth = torch.randn(2, 2, 3, 3, 4, 5, dtype=torch.float64)
    weight = torch.rand(2, 1, 3, 4, 5, dtype=torch.float64)
    assert end_point_error(found, truth, weight).item() == pytest.approx(slow(found, truth, weight))
    ones = torch.ones_like(weight)
    assert end_point_error(found, truth).item() == pytest.approx(slow(found, truth, ones))


def test_has_a_slope_also_where_nothing_is_left():
    truth = torch.ones(1, 3, 2, 3, 4)
    found = truth.clone()
    found[:, :, 0] = 0.0
    found.requires_grad_(True)
    end_point_error(found, truth).backward()
    assert torch.isfinite(found.grad).all()
    assert (found.grad[:, :, 0] < 0).all() and (found.grad[:, :, 1] == 0).all()


def test_shapes_that_differ_are_refused():
    with pytest.raises(GeometryError, match="one grid"):
        end_point_error(torch.zeros(1, 3, 2, 3, 4), torch.zeros(1, 3, 2, 4, 3))
    with pytest.raises(GeometryError, match="one for each"):
        multiscale_end_point_errors(
            [torch.zeros(1, 3, 2, 2, 2)], torch.zeros(1, 3, 4, 4, 4), [1, 2]
        )


def test_all_scales_count_in_voxels_of_the_truth():
    shape, shift = (12, 20, 16), torch.tensor([3.0, -4.0, 1.0]).view(1, 3, 1, 1, 1)
    truth = shift.expand(2, 3, *shape)
    flows = []
    for small in ((3, 5, 4), (6, 10, 8), (5, 7, 16)):
        ratio = torch.tensor([s / n for s, n in zip(small, shape)]).view(1, 3, 1, 1, 1)
        flows.append((shift * ratio).expand(2, 3, *small))
    errors = multiscale_end_point_errors(flows, truth, (1.0, 1.0, 1.0))
    assert max(float(e) for e in errors) < 1e-5
    # The same vectors without their scale would be off by nearly all.
    wrong = multiscale_end_point_errors([truth[..., :3, :5, :4]], truth, (1.0,))[0]
    assert wrong.item() == pytest.approx((9**2 + 12**2 + 3**2) ** 0.5, rel=1e-4)
    one_off = [flow.clone() for flow in flows]
    one_off[0][:, 1] += 1.0  # a voxel of the coarsest grid is four of the truth
    errors = multiscale_end_point_errors(one_off, truth, (0.5, 1.0, 1.0))
    assert errors[0].item() == pytest.approx(2.0, rel=1e-4) and errors[1].item() < 1e-5


def test_the_truth_is_averaged_over_the_voxels_of_a_scale():
    truth = torch.zeros(1, 3, 16, 16, 16)
    truth[:, 0, ::2] = 4.0  # alternates from voxel to voxel
    flow = torch.zeros(1, 3, 4, 4, 4)
    flow[:, 0] = 0.5
    error = multiscale_end_point_errors([flow], truth, (1.0,))[0]
    assert error < 0.4


def test_a_region_counts_more():
    truth = torch.zeros(1, 3, 8, 8, 8)
    region = torch.full((1, 1, 8, 8, 8), 0.1)
    region[:, :, :4] = 1.0
    flow = torch.zeros(1, 3, 4, 4, 4)
    flow[:, 2, 2:] = 1.0  # wrong where little counts
    error = multiscale_end_point_errors([flow], truth, (1.0,), region)[0]
    assert error.item() == pytest.approx(2.0 * 0.1 / 1.1, rel=1e-4)


def test_weights_of_sums_become_weights_of_means():
    shares = level_shares((0.32, 0.08, 0.02, 0.01, 0.005))
    assert sum(shares) == pytest.approx(1.0)
    assert shares[:3] == pytest.approx([shares[0]] * 3)
    assert shares[3] == pytest.approx(2 * shares[0]) and shares[4] == pytest.approx(4 * shares[0])
