"""Dice at several scales: its values, and that it attracts what does not overlap."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry.sampling import gaussian_smooth, sample, voxel_coordinates
from DeepRegLib.losses.multiscale_dice import multiscale_dice

SHAPE = (22, 30, 26)


def ball(center, radius, shape=SHAPE):
    away = voxel_coordinates(shape) - torch.tensor(center).view(1, 3, 1, 1, 1)
    return (away.norm(dim=1, keepdim=True) < radius).float()


def slow(fixed, moved, sigmas):
    """Every scale from the labels themselves, channel by channel."""
    values = []
    for sigma in sigmas:
        for one, other in zip(fixed.flatten(0, 1).numpy(), moved.flatten(0, 1).numpy()):
            if sigma > 0:
                one, other = (gaussian_filter(x, sigma, mode="nearest") for x in (one, other))
            values.append(2 * (one * other).sum() / ((one**2).sum() + (other**2).sum()))
    return 1 - np.mean(values)


def test_it_is_the_mean_over_scales_channels_and_images():
    fixed = torch.cat([ball((9.0, 14.0, 12.0), 5.0), ball((12.0, 9.0, 15.0), 4.0)])
    fixed = torch.stack([fixed, fixed.flip(0)])[:, :, 0]
    moved = torch.cat([ball((10.0, 12.0, 12.0), 5.0), ball((12.0, 12.0, 13.0), 3.0)])
    moved = torch.stack([moved, 0.7 * moved.flip(0)])[:, :, 0]
    for sigmas in ((0.0,), (0.0, 1.0, 2.0, 4.0)):
        expected = slow(fixed, moved, sigmas)
        assert float(multiscale_dice(fixed, moved, sigmas)) == pytest.approx(expected, abs=4e-3)


def test_scales_made_one_after_the_other_are_those_made_at_once():
    label, other = ball((10.0, 15.0, 12.0), 4.0), ball((11.0, 13.0, 12.0), 4.0)
    for sigma in (2.0, 4.0):
        smooth = [gaussian_smooth(x, sigma) for x in (label, other)]
        at_once = float(multiscale_dice(*smooth, (0.0,)))
        both = float(multiscale_dice(label, other, (1.0, sigma)))
        first = float(multiscale_dice(label, other, (1.0,)))
        assert 2 * both - first == pytest.approx(at_once, abs=5e-3)


def test_the_order_of_the_scales_makes_no_difference():
    label, other = ball((10.0, 15.0, 12.0), 4.0), ball((11.0, 13.0, 12.0), 4.0)
    values = {float(multiscale_dice(label, other, s)) for s in ((0.0, 1.0, 4.0), (4.0, 0.0, 1.0))}
    assert len(values) == 1


def test_labels_that_agree_cost_nothing_at_any_scale():
    label = ball((10.0, 15.0, 12.0), 4.0)
    assert float(multiscale_dice(label, label, (0.0, 1.0, 3.0))) == pytest.approx(0.0, abs=1e-6)
    smaller = ball((10.0, 15.0, 12.0), 3.0)
    assert float(multiscale_dice(label, smaller, (3.0,))) > 0.01  # size counts, also when smoothed


def test_only_scales_attract_what_does_not_overlap():
    fixed, moving = ball((10.0, 10.0, 12.0), 3.0), ball((10.0, 19.0, 12.0), 3.0)
    slopes = {}
    for sigmas in ((0.0,), (0.0, 2.0, 5.0)):
        shift = torch.zeros(1, 3, 1, 1, 1, requires_grad=True)
        loss = multiscale_dice(fixed, sample(moving, voxel_coordinates(SHAPE) + shift), sigmas)
        loss.backward()
        slopes[len(sigmas)] = shift.grad.flatten()
    assert not slopes[1].any()
    # More of a displacement along the second axis brings them together.
    assert slopes[3][1] < -1e-3 and slopes[3][[0, 2]].abs().max() < 1e-4


def test_a_small_structure_counts_like_a_large_one():
    large, small = ball((11.0, 15.0, 13.0), 8.0), ball((11.0, 15.0, 13.0), 2.0)
    none = torch.zeros_like(large)
    fixed = torch.cat([large, small], dim=1)
    values = [
        float(multiscale_dice(fixed, torch.cat(pair, dim=1), (0.0,)))
        for pair in ((large, none), (none, small))
    ]
    assert values == [pytest.approx(0.5), pytest.approx(0.5)]


def test_channels_that_the_fixed_image_does_not_have_make_no_difference():
    label, other = ball((10.0, 15.0, 12.0), 4.0), ball((11.0, 13.0, 12.0), 4.0)
    none = torch.zeros_like(label)
    alone = float(multiscale_dice(label, other, (0.0, 2.0)))
    pair = torch.cat([label, none], dim=1), torch.cat([other, other], dim=1)
    assert float(multiscale_dice(*pair, (0.0, 2.0))) == pytest.approx(alone)


def test_empty_channels_have_no_slope():
    none = torch.zeros(1, 1, *SHAPE)
    moved = none.clone().requires_grad_(True)
    value = multiscale_dice(none, moved, (0.0, 2.0))
    value.backward()
    assert float(value.detach()) == 1.0 and not moved.grad.any()


def test_shapes_that_differ_are_refused():
    with pytest.raises(GeometryError, match="same shape"):
        multiscale_dice(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 5), (0.0,))
    with pytest.raises(GeometryError, match="0 scales"):
        multiscale_dice(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4), ())
