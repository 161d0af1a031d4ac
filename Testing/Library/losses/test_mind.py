import itertools

import numpy as np
import pytest
import torch

from DeepRegLib.errors import GeometryError
from DeepRegLib.losses.mind import MIND

NEIGHBORS = [
    np.array(n) for n in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (0, -1, 0), (0, 0, -1))
]
PAIRS = [(a, b) for a, b in itertools.combinations(NEIGHBORS, 2) if a @ b == 0]


def slow_mind(image, mask, radius, dilation):
    """Voxel by voxel: patches around the pairs of neighbors, on an image with repeated border."""
    shape = np.array(image.shape)

    def at(array, where):
        return array[tuple(np.clip(where, 0, shape - 1))]

    distance = np.zeros((12, *shape))
    offsets = [np.array(o) for o in itertools.product(range(-radius, radius + 1), repeat=3)]
    for n, (a, b) in enumerate(PAIRS):
        for voxel in np.ndindex(*shape):
            total = weight = 0.0
            for offset in offsets:
                center = np.array(voxel) + offset
                if (center < 0).any() or (center >= shape).any():
                    continue  # patches end at the border
                one = np.array(voxel) + dilation * a + offset
                two = np.array(voxel) + dilation * b + offset
                w = 1.0 if mask is None else at(mask, one) * at(mask, two)
                total += w * (at(image, one) - at(image, two)) ** 2
                weight += w
            distance[(n, *voxel)] = total if mask is None else total / max(weight, 1e-6)
    distance -= distance.min(0)
    spread = distance.mean(0)
    typical = spread.mean() if mask is None else np.average(spread, weights=mask)
    return np.exp(-distance / np.clip(spread, 1e-3 * typical, 1e3 * typical))


def sorted_channels(features):
    """The order of the channels is free, as long as it is the same for all images."""
    columns = features.reshape(12, -1)
    return columns[np.argsort(columns @ np.sin(np.arange(columns.shape[1])))]


@pytest.mark.parametrize("radius, dilation", [(1, 2), (0, 1), (2, 1)])
@pytest.mark.parametrize("use_mask", [False, True])
def test_slow_version(radius, dilation, use_mask, case):
    image, mask = case.fixed[:1, :1, :5, :3, 2:8], case.mask[:1, :, :5, :3, 2:8]
    features = MIND(radius, dilation).prepare(image, mask if use_mask else None)
    assert features.shape == (1, 12, 5, 3, 6)
    expected = slow_mind(
        image[0, 0].numpy(), mask[0, 0].numpy() if use_mask else None, radius, dilation
    )
    assert np.allclose(sorted_channels(features[0].numpy()), sorted_channels(expected), atol=1e-9)


@pytest.mark.parametrize("remap", [lambda x: 1e4 * x - 2e4, lambda x: 1e-5 * x, lambda x: 3.0 - x])
def test_contrast_does_not_matter(remap, case):
    image = case.fixed.float()
    assert torch.allclose(MIND().prepare(image), MIND().prepare(remap(image)), atol=5e-3)


def test_different_contrast_is_closer_than_different_anatomy(noise):
    image, other = (noise(1, 1, 16, 14, 18, seed=s, sigma=1.5) for s in (1, 2))
    mind = MIND()
    assert mind(image, 1.0 - image**2) < 0.2 * mind(image, other)


def test_channels_describe_one_after_the_other(case):
    both = MIND().prepare(case.fixed)
    assert both.shape == (2, 24, 9, 7, 11)
    assert torch.equal(both[:, 12:], MIND().prepare(case.fixed[:, 1:]))


def test_outside_the_mask_anything_may_stand(case):
    image = case.fixed[:, :1].clone()
    features = MIND().prepare(image, case.mask)
    image[case.mask <= 0] = 1e5
    inside = (case.mask > 0).expand(features.shape)
    assert torch.allclose(MIND().prepare(image, case.mask)[inside], features[inside], atol=1e-9)


def test_images_are_prepared_on_the_way(case):
    fixed, moved = case.fixed[:, :1], case.moved[:, :1]
    mind = MIND()
    expected = mind(mind.prepare(fixed), mind.prepare(moved))
    value, gradient = mind.value_and_gradient(fixed, moved)
    assert value.item() == pytest.approx(expected.item()) and gradient.shape == moved.shape
    with pytest.raises(GeometryError, match="prepare"):
        mind(case.fixed, case.moved)
    with pytest.raises(GeometryError):
        mind(fixed, mind.prepare(moved))
    with pytest.raises(GeometryError):
        mind.prepare(fixed[0])


@pytest.mark.parametrize("use_mask", [False, True])
def test_descriptor_is_differentiable(use_mask, case):
    image = case.fixed[:1, :1, :3, :2, :4].clone().requires_grad_(True)
    mask = case.mask[:1, :, :3, :2, :4].clone()
    mask[..., 0, 0, :] = 1.0
    assert torch.autograd.gradcheck(
        lambda x: MIND(1, 1).prepare(x, mask if use_mask else None), image
    )


def test_constant_image():
    assert (MIND().prepare(torch.full((1, 1, 5, 6, 7), 3.0)) == 1.0).all()
