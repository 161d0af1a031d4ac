"""Random changes: of the right size, the same for images and labels, and none unless asked for."""

import math
from dataclasses import replace

import pytest
import torch

from DeepRegLib.errors import InputError
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import voxel_coordinates
from DeepRegLib.registration.trainable import Batch
from DeepRegLib.training.augment import Augmentation, random_pose, smooth_noise

SHAPE = (20, 28, 16)


def ball(center, radius):
    axes = torch.meshgrid(*[torch.arange(float(n)) for n in SHAPE], indexing="ij")
    square = sum((a - c) ** 2 for a, c in zip(axes, center))
    return (square < radius**2)[None, None]


@pytest.fixture
def batch():
    """Two pairs of a body with two structures; brightness is a function of the label."""
    middle = (9.5, 13.5, 7.5)
    labels = ball(middle, 7).long()
    labels[ball((6, 13, 8), 2.6)] = 2
    labels[ball((12.5, 9, 6), 2.2)] = 3
    image = torch.tensor([0.0, 0.5, 1.0, 0.75])[labels]
    return Batch(image.repeat(2, 1, 1, 1, 1), image.repeat(2, 1, 1, 1, 1), 2.0,
                 labels.repeat(2, 1, 1, 1, 1), labels.repeat(2, 1, 1, 1, 1))  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def centroid(mask):
    return mask[0].nonzero().double().mean(0)


def test_nothing_is_changed_unless_asked_for(batch):
    same = Augmentation()(batch, generator())
    assert torch.equal(same.fixed, batch.fixed)
    assert torch.equal(same.moving_labels, batch.moving_labels)


def test_labels_move_with_their_images(batch):
    changed = Augmentation(rotation_deg=15, scale=0.1, shift_mm=3, misalignment=0.5, bend_mm=2)(
        batch, generator()
    )
    for image, labels, before in (
        (changed.fixed, changed.fixed_labels, batch.fixed_labels),
        (changed.moving, changed.moving_labels, batch.moving_labels),
    ):
        assert not torch.equal(labels, before)
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3} and labels.dtype == torch.int64
        expected = torch.tensor([0.0, 0.5, 1.0, 0.75])[labels]
        # Only voxels at the edges are mixtures.
        assert ((image - expected).abs() > 0.2).float().mean() < 0.06
    # Each pair has a pose of its own, and each image some of its own.
    assert not torch.equal(changed.fixed_labels[0], changed.fixed_labels[1])
    assert not torch.equal(changed.fixed_labels[0], changed.moving_labels[0])


def test_a_shared_deformation_moves_both_images_alike(batch):
    same = replace(batch, moving=batch.fixed, moving_labels=batch.fixed_labels)
    changed = Augmentation(together_mm=4.0, bend_width_mm=10.0)(same, generator())
    assert torch.equal(changed.fixed, changed.moving)
    assert torch.equal(changed.fixed_labels, changed.moving_labels)
    assert not torch.equal(changed.fixed_labels, batch.fixed_labels)
    # Each pair of a batch has its own; one that an image has for itself comes on top.
    twice = replace(same, **{
        name: getattr(same, name)[:1].repeat(2, 1, 1, 1, 1)
        for name in ("fixed", "moving", "fixed_labels", "moving_labels")
    })  # fmt: skip
    pairs = Augmentation(together_mm=4.0, bend_width_mm=10.0)(twice, generator())
    assert not torch.equal(pairs.fixed[0], pairs.fixed[1])
    assert "together_mm" not in Augmentation(flip=0.5).told()
    assert Augmentation(**Augmentation(together_mm=4.0).told()) == Augmentation(together_mm=4.0)
    own = Augmentation(together_mm=4.0, bend_mm=2.0, bend_width_mm=10.0)(same, generator())
    assert not torch.equal(own.fixed, own.moving)


def test_maps_that_are_not_known_stay_unknown(batch):
    unknown = batch.fixed_labels.clone()
    unknown[1] = -1
    changed = Augmentation(rotation_deg=15, shift_mm=6)(
        replace(batch, fixed_labels=unknown), generator()
    )
    assert bool((changed.fixed_labels[1] == -1).all())
    assert set(changed.fixed_labels[0].unique().tolist()) <= {0, 1, 2, 3}


def test_without_misalignment_both_images_move_alike(batch):
    changed = Augmentation(rotation_deg=15, scale=0.1, shift_mm=3)(batch, generator())
    assert torch.equal(changed.fixed_labels, changed.moving_labels)
    assert torch.equal(changed.fixed, changed.moving)
    apart = Augmentation(shift_mm=6, misalignment=0.5)(batch, generator())
    where = voxel_coordinates(SHAPE)[0]
    for fixed, moving in zip(apart.fixed, apart.moving):
        one, other = (((i * where).sum((1, 2, 3)) / i.sum()) for i in (fixed, moving))
        assert 0.2 < (other - one).abs().max() <= 1.6  # half of 6 mm are 1.5 voxels


def test_left_and_right_change_places_only_if_asked_for(batch):
    flipped = Augmentation(flip=1.0)(batch, generator())
    assert torch.equal(flipped.fixed_labels, batch.fixed_labels.flip(2))
    assert torch.allclose(flipped.moving, batch.moving.flip(2), atol=1e-5)
    usual = Augmentation.usual(bend_mm=0.0)
    for seed in range(5):
        labels = usual(batch, generator(seed)).fixed_labels[0]
        assert centroid(labels == 2)[0] < centroid(labels == 3)[0]


def test_poses_have_the_size_asked_for():
    state, turns, sizes, shifts = generator(), [], [], []
    for _ in range(200):
        matrix = torch.from_numpy(random_pose(SHAPE, 10.0, 0.1, 3.0, state))
        lengths = matrix[:3, :3].norm(dim=0)
        sizes.append(lengths)
        rotation = matrix[:3, :3] / lengths
        cosine = (torch.trace(rotation) - 1) / 2
        turns.append(math.degrees(math.acos(min(float(cosine), 1.0))))
        middle = torch.tensor([9.5, 13.5, 7.5], dtype=torch.float64)
        shifts.append(matrix[:3, :3] @ middle + matrix[:3, 3] - middle)
    assert 5.0 < max(turns) < 10.0 * math.sqrt(3) + 1e-6
    sizes, shifts = torch.stack(sizes), torch.stack(shifts)
    assert 0.9 <= sizes.min() < 0.92 and 1.08 < sizes.max() <= 1.1
    assert 2.8 < shifts.abs().max() <= 3.0 + 1e-9
    assert shifts.mean(0).abs().max() < 0.5


@pytest.mark.parametrize("width", [4.0, 12.0, 30.0])
def test_smooth_noise_is_smooth_and_of_unit_size(width):
    noise = smooth_noise((40, 52, 36), 6, 3, width, generator())
    assert noise.shape == (6, 3, 40, 52, 36)
    assert 0.75 < noise.square().mean().sqrt() < 1.15
    for axis in (2, 3, 4):
        size = noise.shape[axis] - 1
        step = noise.narrow(axis, 1, size) - noise.narrow(axis, 0, size)
        assert step.square().mean().sqrt() < 2.5 / width
        near = min(round(width / 4), 3) or 1
        pairs = noise.narrow(axis, near, size - near) * noise.narrow(axis, 0, size - near)
        assert pairs.mean() > 0.4 * noise.square().mean()
    far = (noise[..., :3, :3, :3] * noise[..., -3:, -3:, -3:]).mean()
    assert abs(far) < 0.5


def test_usual_bends_do_not_fold():
    from DeepRegLib.training import augment

    usual = Augmentation.usual()
    width, size = usual.bend_width_mm / 2.0, usual.bend_mm / 2.0
    bend = size * augment.smooth_noise((48, 56, 40), 4, 3, width, generator())
    assert jacobian_determinant(bend).min() > 0.3


def test_intensities_change_but_zero_stays(batch):
    shade = Augmentation(gamma=0.3, contrast=0.1, bias=0.3, noise=0.05)
    changed = shade(batch, generator())
    assert torch.equal(changed.fixed_labels, batch.fixed_labels)
    for before, after in ((batch.fixed, changed.fixed), (batch.moving, changed.moving)):
        assert (after[before == 0] == 0).all()
        assert after.min() >= 0 and after.max() <= 1 and torch.isfinite(after).all()
        assert (after - before)[before > 0].abs().mean() > 0.01
    assert not torch.equal(changed.fixed, changed.moving)
    # A brighter structure stays brighter.
    for image, labels in zip(changed.fixed, changed.fixed_labels):
        assert image[labels == 2].mean() > image[labels == 1].mean()


def test_numbers_that_cannot_be():
    for bad in ({"flip": 1.5}, {"noise": -0.1}, {"scale": 1.0}, {"bend_width_mm": 0.0},
                {"gamma": math.nan}):  # fmt: skip
        with pytest.raises(InputError, match="augmentation"):
            Augmentation(**bad)
