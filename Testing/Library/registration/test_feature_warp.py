"""The warp that back-propagation finds: its parts, its penalties, and what it recovers."""

from dataclasses import replace

import pytest
import torch

from DeepRegLib.errors import InputError
from DeepRegLib.geometry.sampling import gaussian_smooth, sample, voxel_coordinates
from DeepRegLib.losses.mse import MSE
from DeepRegLib.registration.feature_warp import (
    Reference,
    Warp,
    WarpSettings,
    align,
    node_distance,
    node_weights,
    nodes_of,
    penalty,
)

SHAPE = (18, 26, 22)


def texture(shape=SHAPE, seed=0, sigma=2.0):
    noise = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    sigmas = [sigma if n > 1 else 0.0 for n in shape]
    image = gaussian_smooth(noise, sigmas)
    return (image - image.min()) / (image.max() - image.min())


def some_warp(shape=SHAPE, upsampling="spline", seed=1, size=1.0):
    settings = WarpSettings(upsampling=upsampling)
    warp = Warp.identity(shape, settings, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    warp.vectors = size * torch.randn(warp.vectors.shape, generator=generator)
    warp.theta = size * torch.randn(3, 4, generator=generator)
    return warp


@pytest.mark.parametrize("upsampling", ["spline", "linear"])
def test_vectors_between_the_nodes(upsampling):
    nodes = nodes_of(24, 6.0, upsampling)
    assert nodes == (7 if upsampling == "spline" else 5)
    assert node_distance(24, nodes, upsampling) == 6.0
    weights = node_weights(24, nodes, upsampling)
    torch.testing.assert_close(weights.sum(1), torch.ones(24).double())
    # A straight line stays one: nodes lie at the outer edges and every 6 voxels.
    first = -6.5 if upsampling == "spline" else -0.5
    places = first + 6.0 * torch.arange(nodes).double()
    torch.testing.assert_close(weights @ places, torch.arange(24).double())
    assert nodes_of(1, 6.0, upsampling) == 1 and node_weights(1, 1, upsampling).shape == (1, 1)


@pytest.mark.parametrize("upsampling", ["spline", "linear"])
def test_grids_of_any_resolution_hold_the_same_transform(upsampling):
    warp = some_warp((16, 24, 32), upsampling)
    fine, coarse = warp.positions((16, 24, 32)), warp.positions((4, 12, 16))
    where = voxel_coordinates((4, 12, 16))
    ratio = torch.tensor([4.0, 2.0, 2.0]).view(1, 3, 1, 1, 1)
    # Where the coarse centers lie in the fine grid, and where they are taken.
    at = sample(fine, ratio * (where + 0.5) - 0.5)
    there = ratio * (coarse + 0.5) - 0.5
    assert (there - at).abs().max() < (0.05 if upsampling == "spline" else 0.5)
    assert (at - (ratio * (where + 0.5) - 0.5)).abs().mean() > 0.3


def test_the_affine_map_turns_about_the_middle_after_the_displacement():
    warp = some_warp((11, 21, 31))
    matrix = warp.matrix(warp.shape)[0]
    middle = torch.tensor([5.0, 10.0, 15.0])
    torch.testing.assert_close(
        matrix[:3, :3] @ middle + matrix[:3, 3], middle + warp.theta[:, 3], atol=1e-4, rtol=1e-5
    )
    # A linear part of 1 voxel moves a voxel at half the longest side by 1 voxel.
    torch.testing.assert_close(matrix[:3, :3] - torch.eye(3), warp.theta[:, :3] / 15.5)
    where = voxel_coordinates(warp.shape) + warp.displacement(warp.shape)
    expected = matrix[:3, :3] @ where.flatten(2) + matrix[:3, 3:]
    torch.testing.assert_close(warp.positions(warp.shape), expected.reshape(where.shape))


def test_nothing_moves_across_a_section():
    warp = some_warp((1, 20, 24))
    moved = warp.positions((1, 20, 24)) - voxel_coordinates((1, 20, 24))
    assert moved[:, 0].abs().max() == 0.0 and moved[:, 1:].abs().max() > 0.5
    # The across component of the vectors is free of charge and of use.
    other = replace(warp, vectors=warp.vectors + torch.tensor([5.0, 0, 0]).view(1, 3, 1, 1, 1))
    settings = WarpSettings()
    assert float(penalty(other, settings)) == pytest.approx(float(penalty(warp, settings)))


def test_penalties_are_those_of_the_formula():
    warp = some_warp((12, 24, 18), "linear")
    v = warp.vectors
    only = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0}
    parts = {
        "alpha": (warp.theta**2).sum(),
        "beta": (v**2).sum(1).mean(),
        "gamma": sum((torch.diff(v, dim=2 + a) / 6.0).square().sum(1).mean() for a in range(3)),
    }
    for name, expected in parts.items():
        found = penalty(warp, WarpSettings(**{**only, name: 0.7}))
        assert float(found) == pytest.approx(0.7 * float(expected), rel=1e-5)


@pytest.mark.parametrize("shape", [SHAPE, (1, 40, 34)])
def test_a_known_transform_is_found(shape):
    """moving(x) = image(x - d): what is looked for at x lies at x + d in the moving image."""
    image = texture(shape)
    shift = torch.tensor([0.0 if shape[0] == 1 else 1.0, -2.0, 1.5]).view(1, 3, 1, 1, 1)
    where = voxel_coordinates(shape)
    bend = 0.8 * torch.sin(where[:, [2, 1, 1]] / 4.0)
    bend[:, 0] *= float(shape[0] > 1)
    fixed = sample(image, where + shift + bend)
    seen = []
    warp = align(
        [Reference(fixed)], Reference(image), lambda ratio: MSE(),
        WarpSettings(gamma=0.001, iterations=(30, 30, 20)),
        report=lambda level, iteration, value, w: seen.append((level, iteration, value)) or False,
    )  # fmt: skip
    error = (warp.positions(shape) - where - shift - bend)[..., 4:-4, 4:-4]
    error = error if shape[0] == 1 else error[:, :, 4:-4]
    assert error.norm(dim=1).mean() < 0.35 * (shift + bend).norm(dim=1).mean()
    assert [s[:2] for s in seen] == [(n, i) for n, c in enumerate((30, 30, 20)) for i in range(c)]
    assert [e["value"] for e in warp.history] == [s[2] for s in seen]
    assert not warp.vectors.requires_grad


def test_masks_and_weights_decide_which_reference_counts():
    image = texture()
    one, other = (torch.roll(image, s, 3) for s in (2, -2))
    half = torch.zeros_like(image)
    half[..., :13, :] = 1.0
    settings = WarpSettings(affine=True, iterations=(30, 20), factors=(2, 1), gamma=0.01)

    def shift(*references):
        warp = align(references, Reference(image), lambda ratio: MSE(), settings)
        return float(warp.matrix(warp.shape)[0, 1, 3] + warp.displacement(SHAPE)[0, 1].mean())

    assert shift(Reference(one, weight=1.0), Reference(other, weight=1e-6)) < -0.8
    assert shift(Reference(one, weight=1e-6), Reference(other, weight=1.0)) > 0.8
    # What a mask leaves out may be anything.
    spoiled = torch.where(half > 0, one, torch.rand_like(one))
    kept = [align([Reference(i, half)], Reference(image), lambda ratio: MSE(),
                  replace(settings, factors=(1,), iterations=(10,))).history[-1]["value"]
            for i in (one, spoiled)]  # fmt: skip
    assert kept[0] == pytest.approx(kept[1], rel=1e-5)


def test_it_ends_when_asked_and_refuses_what_does_not_fit():
    image = texture()
    warp = align([Reference(image)], Reference(image), lambda ratio: MSE(), WarpSettings(),
                 report=lambda level, iteration, value, w: iteration == 2)  # fmt: skip
    assert len(warp.history) == 3
    with pytest.raises(InputError, match="3 levels but 1"):
        WarpSettings(iterations=(10,))


def test_settled_fields_do_not_fold():
    from DeepRegLib.geometry.jacobian import jacobian_determinant

    warp = some_warp(size=6.0)
    assert float(jacobian_determinant(warp.displacement(SHAPE)).min()) < 0.0
    assert float(jacobian_determinant(warp.settled()).min()) > 0.0
