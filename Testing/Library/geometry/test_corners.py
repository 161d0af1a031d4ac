"""Corners and weights add up to what sampling gives."""

import pytest
import torch

from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry.corners import linear_corners
from DeepRegLib.geometry.sampling import sample

SHAPE = (5, 7, 4)


def positions(seed=0, out=(3, 4, 6)):
    """Positions inside and up to two voxels beyond the image, for a batch of two."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor(SHAPE).view(1, 3, 1, 1, 1) + 3.0
    return torch.rand(2, 3, *out, generator=generator, dtype=torch.float64) * extent - 2.0


def looked_up(image, index, weight):
    flat = image.reshape(len(image), -1)
    return torch.stack([(flat[b][index[b]] * weight[b]).sum(0) for b in range(len(image))])


def test_they_sample_linearly_with_a_repeated_edge():
    image = torch.rand(2, 1, *SHAPE, dtype=torch.float64)
    where = positions()
    index, weight = linear_corners(where, SHAPE)
    assert index.dtype == torch.int64 and index.shape == weight.shape == (2, 8, 72)
    found = looked_up(image, index, weight).view(2, 1, 3, 4, 6)
    assert torch.allclose(found, sample(image, where), atol=1e-10)
    assert torch.allclose(weight.sum(1), torch.ones(2, 72, dtype=torch.float64))


def test_voxels_themselves_and_the_last_one():
    where = torch.tensor([[4.0, 6.0, 3.0], [0.0, 0.0, 0.0], [2.0, 6.0, 1.0]]).T.reshape(
        1, 3, 3, 1, 1
    )
    index, weight = linear_corners(where, SHAPE)
    image = torch.arange(5 * 7 * 4.0)
    found = (image[index[0]] * weight[0]).sum(0)
    assert found.tolist() == [139.0, 0.0, 2 * 28 + 6 * 4 + 1]
    assert int(index.max()) == 139


def test_weights_carry_the_gradient_of_sampling():
    image = torch.rand(2, 1, *SHAPE, dtype=torch.float64)
    slopes = []
    for way in ("corners", "sample"):
        where = positions().requires_grad_()
        if way == "corners":
            looked_up(image, *linear_corners(where, SHAPE)).square().sum().backward()
        else:
            sample(image, where).square().sum().backward()
        slopes.append(where.grad)
    # Beyond the outermost centers nothing changes, by either way.
    assert torch.allclose(*slopes, atol=1e-8) and slopes[0].abs().max() > 0.1


def test_an_axis_of_one_voxel_and_what_is_no_number():
    where = torch.tensor([0.3, 1.25, -0.4]).reshape(1, 3, 1, 1, 1)
    index, weight = linear_corners(where, (1, 3, 1))
    assert (torch.arange(3.0)[index[0]] * weight[0]).sum().item() == pytest.approx(1.25)
    where = torch.full((1, 3, 1, 1, 1), float("nan"))
    index, weight = linear_corners(where, SHAPE)
    assert int(index.min()) >= 0 and int(index.max()) < 140 and not weight.isfinite().any()


def test_other_shapes_are_refused():
    with pytest.raises(GeometryError, match="three axes"):
        linear_corners(torch.zeros(1, 2, 3, 4, 5), SHAPE)
    with pytest.raises(GeometryError, match="three axes"):
        linear_corners(torch.zeros(1, 3, 3, 4, 5), (4, 5))
