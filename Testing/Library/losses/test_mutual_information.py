import numpy as np
import pytest
import torch

from DeepRegLib.losses.mutual_information import MutualInformation


def spline(x):
    x = abs(x)
    if x < 1:
        return 2 / 3 - x**2 + x**3 / 2
    return (2 - x) ** 3 / 6 if x < 2 else 0.0


def slow_information(fixed, moved, weights, bins, normalized):
    joint = np.zeros((bins, bins))
    for f, m, w in zip(fixed.ravel(), moved.ravel(), weights.ravel()):
        row = int(np.floor(np.clip(f, 0, 1) * (bins - 1) + 0.5))
        position = np.clip(m, 0, 1) * (bins - 5) + 2
        for column in range(bins):
            joint[row, column] += w * spline(position - column)
    joint /= joint.sum()

    def entropy(p):
        return -sum(x * np.log(x) for x in p.ravel() if x > 0)

    single, together = entropy(joint.sum(0)) + entropy(joint.sum(1)), entropy(joint)
    return single / together - 1 if normalized else single - together


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("bins", [8, 13])
def test_slow_version(bins, normalized, case):
    fixed, moved = 1.3 * case.fixed - 0.1, case.moved  # also beyond the range
    similarity = MutualInformation(bins, normalized)
    for mask in (case.mask, None):
        weights = torch.ones_like(case.mask) if mask is None else mask
        expected = np.mean(
            [
                slow_information(
                    *(x.numpy() for x in (fixed[b, c], moved[b, c], weights[b])), bins, normalized
                )
                for b, c in np.ndindex(2, 2)
            ]
        )
        assert similarity(fixed, moved, mask).item() == pytest.approx(-expected, abs=1e-9)


@pytest.mark.parametrize("normalized", [False, True])
def test_gradient_in_every_voxel(normalized, case):
    fixed, moved = case.fixed[:, :, :3, :3], case.moved[:, :, :3, :3].clone().requires_grad_(True)
    similarity = MutualInformation(9, normalized)
    mask = case.mask[:, :, :3, :3]
    assert torch.autograd.gradcheck(lambda m: similarity(fixed, m, mask), moved)


def test_remapped_contrast_is_as_good(noise):
    image = noise(1, 1, 20, 18, 22, seed=1, dtype=torch.float32)
    similarity = MutualInformation()
    remapped = 1.0 - image**2
    shuffled = noise(1, 1, 20, 18, 22, seed=2, dtype=torch.float32)
    same, other = similarity(image, image), similarity(image, remapped)
    assert abs(same - other) < 0.15 * abs(same)
    assert similarity(image, shuffled) > 0.3 * other


def test_independent_images_share_nothing():
    generator = torch.Generator().manual_seed(0)
    fixed, moved = (torch.rand(1, 1, 40, 50, 30, generator=generator) for _ in range(2))
    assert -0.02 < MutualInformation(16)(fixed, moved).item() <= 0.0


def test_known_and_derived_ranges(case):
    plain = MutualInformation(16)
    scaled = MutualInformation(16, fixed_range=(-100.0, 300.0), moved_range=(5.0, 7.0))
    fixed, moved = 400.0 * case.fixed - 100.0, 2.0 * case.moved + 5.0
    value, gradient = plain.value_and_gradient(case.fixed, case.moved, case.mask)
    other, other_gradient = scaled.value_and_gradient(fixed, moved, case.mask)
    assert other.item() == pytest.approx(value.item(), rel=1e-9)
    assert torch.allclose(2.0 * other_gradient, gradient)
    derived = MutualInformation(16, fixed_range=None, moved_range=None)
    one = derived(case.fixed, case.moved, case.mask)
    two = derived(fixed, moved, case.mask)
    assert one.item() == pytest.approx(two.item(), rel=1e-9) and one < -0.1


def test_beyond_the_range_there_is_no_gradient(case):
    moved = 2.0 * case.moved - 0.5
    _, gradient = MutualInformation().value_and_gradient(case.fixed, moved)
    outside = (moved <= 0) | (moved >= 1)
    assert outside.any() and (gradient[outside] == 0).all() and (gradient[~outside] != 0).any()


def test_a_large_background_keeps_its_weight():
    """Single precision would lose small weights in a bin of millions of voxels."""
    fixed, moved = torch.zeros(1, 1, 100, 160, 150), torch.full((1, 1, 100, 160, 150), 0.61)
    fixed[..., :50], moved[..., :50] = 1.0, 0.13
    value = MutualInformation().value_and_gradient(fixed, moved)[0].item()
    small = (..., slice(0, None, 10), slice(0, None, 10), slice(None))
    assert value == pytest.approx(
        MutualInformation()(fixed[small].double(), moved[small].double()).item(), abs=1e-5
    )
