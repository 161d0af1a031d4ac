"""LNCC with windows on blocks of voxels, against a slow readable version and finite differences."""

import numpy as np
import pytest
import torch

from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.losses import similarity
from DeepRegLib.losses.blocks import block_sum, spread_blocks

SHAPE, BLOCK = (12, 14, 9), (2, 2, 1)


def _images(masked):
    generator = torch.Generator().manual_seed(3)
    images = gaussian_smooth(torch.rand(2, 1, *SHAPE, generator=generator), 1.0).double()
    mask = (torch.rand(1, 1, *SHAPE, generator=generator) > 0.4).double() if masked else None
    return images[:1], images[1:], mask


def _slow(fixed, moved, mask, radius, block):
    """Mean over blocks, weighted by their mask, of the squared correlation around them."""
    f, m = (x[0, 0].numpy() - x.numpy().mean() for x in (fixed, moved))
    w = np.ones(SHAPE) if mask is None else mask[0, 0].numpy()
    total = weight = 0.0
    for start in np.ndindex(*(n // b for n, b in zip(SHAPE, block))):
        window, own = [], []
        for i, b, n in zip(start, block, SHAPE):
            window.append(slice(max(0, (i - radius) * b), min(n, (i + radius + 1) * b)))
            own.append(slice(i * b, (i + 1) * b))
        window, own = tuple(window), tuple(own)
        count = max(w[window].sum(), 1e-6)
        mean_f, mean_m = ((w * x)[window].sum() / count for x in (f, m))
        var_f, var_m = ((w * x * x)[window].sum() / count for x in (f, m))
        var_f, var_m = (max(v - u * u, 0) + 1e-4 for v, u in ((var_f, mean_f), (var_m, mean_m)))
        covariance = (w * f * m)[window].sum() / count - mean_f * mean_m
        total += w[own].sum() * covariance**2 / (var_f * var_m)
        weight += w[own].sum()
    return 1.0 - total / weight


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block", [(1, 1, 1), BLOCK])
def test_value_is_the_definition(masked, block):
    fixed, moved, mask = _images(masked)
    value, _ = similarity("lncc", radius=1, block=block).value_and_gradient(fixed, moved, mask)
    assert float(value) == pytest.approx(_slow(fixed, moved, mask, 1, block), rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_both_gradients_are_those_of_the_value(masked, signed):
    fixed, moved, mask = _images(masked)
    lncc = similarity("lncc", radius=1, block=BLOCK, signed=signed)
    value, by_fixed, by_moved = lncc.value_and_both_gradients(fixed, moved, mask)
    assert float(value) == pytest.approx(float(lncc.value_and_gradient(fixed, moved, mask)[0]))
    direction = torch.rand(fixed.shape, generator=torch.Generator().manual_seed(8)).double() - 0.5
    for gradient, ends in (
        (by_fixed, [(fixed + s * direction, moved) for s in (1e-4, -1e-4)]),
        (by_moved, [(fixed, moved + s * direction) for s in (1e-4, -1e-4)]),
    ):
        ahead, behind = (float(lncc.value_and_gradient(f, m, mask)[0]) for f, m in ends)
        assert (ahead - behind) / 2e-4 == pytest.approx(
            float((gradient * direction).sum()), rel=1e-3
        )


def test_blocks_are_spread_by_the_transpose_of_their_sum():
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 2, *SHAPE, generator=generator)
    values = torch.rand(1, 2, 6, 7, 9, generator=generator)
    there = float((block_sum(image, BLOCK) * values).sum())
    assert there == pytest.approx(float((image * spread_blocks(values, BLOCK)).sum()), rel=1e-5)
    with pytest.raises(ValueError, match="cut into blocks"):
        block_sum(image, (5, 1, 1))
