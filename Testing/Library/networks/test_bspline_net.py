"""The network that gives control points."""

import pytest
import torch
from torch import nn

from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.networks.bspline_net import (
    SplineNetwork,
    fitted_coefficients,
    halvings_of,
    unit_lattice,
)

SHAPE = (16, 24, 32)


@pytest.mark.parametrize("halvings", [0, 1, 2, 3])
def test_one_output_for_each_control_point(halvings):
    network = SplineNetwork(halvings, 4)
    image = torch.rand(2, 1, *SHAPE)
    found = network(image, image)
    lattice = network.lattice(SHAPE)
    assert tuple(found.shape) == (2, 3, *lattice.control_grid.shape)
    assert tuple(found.shape[2:]) == tuple(n // 2**halvings + 3 for n in SHAPE)
    assert lattice.spacing_mm == (2.0**halvings,) * 3
    assert not found.any(), "nothing moves before training"


def test_outputs_lie_where_their_control_points_are():
    network = SplineNetwork(2, 4, bounded=False)
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            with torch.no_grad():
                if layer is network.corners:
                    layer.weight[:] = 1.0 / (8 * layer.in_channels)
                else:
                    a, b, c = (n // 2 for n in layer.kernel_size)
                    layer.weight[:, :, a, b, c] = 1.0 / layer.in_channels
    ramp = torch.arange(float(SHAPE[1]))[None, :, None].expand(SHAPE)[None, None]
    found = network(ramp, ramp)[0, 0, 3, :, 4]
    control = network.lattice(SHAPE).control_grid.voxel_to_ras
    where = control[1, 3] + control[1, 1] * torch.arange(len(found))
    inside = slice(2, -2)  # further out the padding takes part
    assert torch.allclose(found[inside], where[inside].float(), atol=1e-4)


def test_bounded_control_points_never_fold():
    torch.manual_seed(0)
    image = torch.rand(1, 1, *SHAPE)
    for bounded, folds in ((True, False), (False, True)):
        network = SplineNetwork(2, 4, bounded)
        nn.init.normal_(network.vectors.weight, 0.0, 300.0)
        nn.init.normal_(network.vectors.bias, 0.0, 300.0)
        coefficients = network(image, torch.rand(1, 1, *SHAPE))
        # Signs that differ from point to point are the worst that can happen.
        coefficients = coefficients * torch.randn(coefficients.shape).sign()
        determinant = jacobian_determinant(network.lattice(SHAPE).evaluate(coefficients))
        assert bool((determinant <= 0).any()) == folds
        assert bool(coefficients.abs().max() <= 0.4 * network.spacing + 1e-5) == bounded


def test_every_weight_learns():
    network = SplineNetwork(1, 4)
    nn.init.normal_(network.vectors.weight)
    network(torch.rand(1, 1, 8, 8, 12), torch.rand(1, 1, 8, 8, 12)).square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


def test_a_shape_without_whole_elements_is_refused():
    with pytest.raises(GeometryError, match="multiples of 8"):
        SplineNetwork(3, 4)(torch.rand(1, 1, 12, 16, 16), torch.rand(1, 1, 12, 16, 16))


def test_fit_gives_a_spline_back_and_is_nearest_otherwise():
    torch.manual_seed(1)
    lattice = unit_lattice(SHAPE, (4, 6, 8))
    coefficients = torch.randn(2, 3, 7, 9, 11)
    again = fitted_coefficients(lattice, lattice.evaluate(coefficients))
    assert torch.allclose(again, coefficients, atol=1e-3)
    rough = torch.randn(1, 3, *SHAPE)
    best = fitted_coefficients(lattice, rough)

    def error(c):
        return float((lattice.evaluate(c) - rough).square().sum())

    for _ in range(5):
        assert error(best + 0.05 * torch.randn(best.shape)) > error(best)


@pytest.mark.parametrize(
    ("spacing", "expected"), [(1, 0), (4, 2), (32, 5), (3, None), (6, None), (0, None)]
)
def test_spacings_are_powers_of_two(spacing, expected):
    assert halvings_of(spacing) == expected
