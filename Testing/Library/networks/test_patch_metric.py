"""The network of patches: one pass over an image gives the numbers of its patches."""

import pytest
import torch

from DeepRegLib.networks.patch_metric import PATCH, REACH, PatchMetric, framed, squared_weights
from DeepRegLib.networks.patch_sampling import draw_patches, draw_shifts, near_object


def small(seed=0):
    torch.manual_seed(seed)
    network = PatchMetric((4, 5, 6, 7, 8))
    torch.nn.init.normal_(network.head.convolution.weight, 0.0, 0.3)
    return network


def images(shape, seed=1):
    return torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(seed)).split(1)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_pass_over_an_image_gives_the_numbers_of_its_patches(stride):
    network, (fixed, moving) = small(), images((21, 26, 19))
    with torch.no_grad():
        found = network(fixed, moving, stride)
        places = [(n - PATCH) // stride + 1 for n in fixed.shape[2:]]
        assert list(found.shape[2:]) == places
        for place in [(0, 0, 0), tuple(n - 1 for n in places), (0, places[1] - 1, 0)]:
            box = (
                slice(None),
                slice(None),
                *(slice(p * stride, p * stride + PATCH) for p in place),
            )
            alone = network(fixed[box], moving[box])
            assert alone.numel() == 1
            assert float(alone) == pytest.approx(float(found[(0, 0, *place)]), abs=1e-5)


@pytest.mark.parametrize("shape", [(9, 14, 11), (1, 30, 17), (4, 4, 5)])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_patches_everywhere_are_centered_on_the_voxels(shape, stride):
    network, (fixed, moving) = small(), images(shape)
    with torch.no_grad():
        found = network.everywhere(fixed, moving, stride)
        assert list(found.shape[2:]) == [(n - 1) // stride + 1 for n in shape]
        last = [(n - 1) // stride * stride for n in shape]
        wide = [framed(x) for x in (fixed, moving)]
        box = (slice(None), slice(None), *(slice(p, p + 2 * REACH + 1) for p in last))
        assert float(network(wide[0][box], wide[1][box])) == pytest.approx(
            float(found[0, 0, -1, -1, -1]), abs=1e-5
        )


def test_the_number_of_a_patch_does_not_depend_on_its_batch():
    network = small().train()
    fixed, moving = torch.rand(2, 5, 1, PATCH, PATCH, PATCH)
    with torch.no_grad():
        together = network(fixed, moving).flatten()
        alone = [float(network(f[None], m[None])) for f, m in zip(fixed, moving)]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    assert together.std() > 1e-4


def test_a_new_network_says_next_to_nothing():
    torch.manual_seed(0)
    with torch.no_grad():
        found = PatchMetric()(*torch.rand(2, 1, 1, PATCH, PATCH, PATCH))
    assert 0.0 < float(found.abs()) < 1e-2


def test_squared_weights():
    network = small()
    expected = sum(float((p**2).sum()) for n, p in network.named_parameters() if "weight" in n)
    assert float(squared_weights(network)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 60, 50), (12, 50, 20), (1, 40, 40)])
def test_shifts_are_as_large_as_asked_and_stay_inside(shape):
    torch.manual_seed(3)
    center = torch.stack([torch.randint(n, (400,)) for n in shape], dim=1)
    shifts = draw_shifts(center, shape, 2, 16)
    there = center + shifts
    assert bool((there >= 0).all()) and bool((there < torch.tensor(shape)).all())
    largest = shifts.abs().amax(dim=1)
    limit = min(16, max(shape) // 2)
    assert int(largest.min()) >= 2 and int(largest.max()) == limit
    for axis, n in enumerate(shape):
        one = shifts[:, axis]
        assert (n == 1) == bool((one == 0).all())
        if n > 40:
            assert 0.3 < float((one > 0).float().mean()) < 0.7


def test_patches_lie_at_one_place_and_apart():
    torch.manual_seed(0)
    fixed = torch.rand(2, 1, 20, 30, 24)
    drawn = draw_patches(fixed, fixed, 30, 2, 8)
    assert drawn.fixed.shape == (30, 1, PATCH, PATCH, PATCH)
    assert torch.equal(drawn.fixed, drawn.aligned)
    same = (drawn.fixed == drawn.apart).flatten(1).all(dim=1)
    assert not bool(same.any())


def test_patches_are_drawn_where_there_is_something():
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 40, 40, 40)
    image[..., 5:12, 5:12, 5:12] = 0.8
    near = near_object(image)[0, 0]
    inside = near.nonzero()
    assert inside.min() >= 1 and inside.max() <= 15 and bool(near[1:16, 1:16, 1:16].all())
    drawn = draw_patches(image, torch.zeros_like(image), 40, 2, 8)
    assert bool((drawn.fixed.flatten(1).amax(dim=1) > 0.5).all())
    # Without any object every place will do.
    assert draw_patches(0 * image, 0 * image, 3, 2, 8).fixed.shape[0] == 3
