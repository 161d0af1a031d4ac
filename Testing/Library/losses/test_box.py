import numpy as np
import pytest
import torch

from DeepRegLib.losses.box import box_sum


def slow_box_sum(image, radius):
    result = np.zeros_like(image)
    for where in np.ndindex(*image.shape[2:]):
        window = tuple(slice(max(0, i - radius), i + radius + 1) for i in where)
        result[(..., *where)] = image[(..., *window)].sum(axis=(2, 3, 4))
    return result


@pytest.mark.parametrize("radius", [0, 1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(9, 7, 11), (1, 7, 3), (5, 1, 1), (1, 1, 1)])
def test_box_sum(radius, shape):
    image = torch.randn(2, 3, *shape, dtype=torch.float64)
    before = image.clone()
    result = box_sum(image, radius)
    assert np.allclose(result.numpy(), slow_box_sum(image.numpy(), radius))
    assert torch.equal(image, before) and result is not image


def test_box_sum_is_differentiable():
    image = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: box_sum(x, 1) ** 2, image)
    assert torch.autograd.gradgradcheck(lambda x: box_sum(x, 1) ** 2, image)


def test_long_axes_lose_no_digits():
    image = 100.0 + torch.rand(1, 1, 3, 3, 20_000)
    exact = box_sum(image.double(), 2)
    assert ((box_sum(image, 2) - exact).abs() / exact).max() < 1e-6
