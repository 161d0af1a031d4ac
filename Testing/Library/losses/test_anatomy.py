"""Losses of structures, against slow versions that make one image for each class."""

import pytest
import torch
import torch.nn.functional as F

from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.losses.anatomy import anatomy_loss, class_map, probabilities, segmentation_loss

SHAPE, CLASSES = (5, 8, 6), 6


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_map(seed, present=(0, 1, 2, 4)):
    """A map of blocks in which some classes do not occur."""
    coarse = torch.randint(len(present), (1, 1, 3, 4, 3), generator=generator(seed))
    blocks = F.interpolate(coarse.float(), size=SHAPE, mode="nearest").long()
    return torch.tensor(present)[blocks]


def random_probabilities(seed):
    return torch.randn(1, CLASSES, *SHAPE, generator=generator(seed)).softmax(dim=1)


def displacement(seed=3):
    """Up to several voxels, beyond the image as well."""
    return 2.0 * torch.randn(1, 3, *SHAPE, generator=generator(seed))


def hot(map_):
    if map_.is_floating_point():
        return map_
    return torch.cat([(map_ == c).float() for c in range(CLASSES)], dim=1)


def slow_dice(moved, fixed, known):
    """Mean Dice over the classes of the known maps, one class after the other."""
    values = []
    for c in range(1, CLASSES):
        if not any((map_ == c).any() for map_ in known):
            continue
        p, q = moved[:, c], fixed[:, c]
        values.append(2 * (p * q).sum() / (p.sum() + q.sum()).clamp(min=1e-6))
    return torch.stack(values).mean()


def slow_anatomy(moving, fixed, u):
    moved = sample(hot(moving), voxel_coordinates(SHAPE) + u)
    known = [map_ for map_ in (moving, fixed) if not map_.is_floating_point()]
    return 1.0 - slow_dice(moved, hot(fixed), known)


CASES = {
    "both known": (random_map(0), random_map(1, (0, 1, 3, 5))),
    "moving known": (random_map(0), random_probabilities(1)),
    "fixed known": (random_probabilities(0), random_map(1)),
}


@pytest.mark.parametrize("case", list(CASES))
def test_anatomy_is_the_dice_of_sampled_maps(case):
    moving, fixed = CASES[case]
    slopes, values = [], []
    for loss in (lambda *a: anatomy_loss(*a, CLASSES), slow_anatomy):
        parts = [part.clone().requires_grad_() if part.is_floating_point() else part
                 for part in (moving, fixed)]  # fmt: skip
        u = displacement().requires_grad_()
        value = loss(*parts, u)
        value.backward()
        values.append(value.item())
        slopes.append([u.grad, *(p.grad for p in parts if p.is_floating_point())])
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    for ours, theirs in zip(*slopes):
        assert theirs.abs().max() > 1e-4
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_equal_maps_agree_and_disjoint_ones_do_not():
    map_, still = random_map(0), torch.zeros(1, 3, *SHAPE)
    assert anatomy_loss(map_, map_, still, CLASSES).item() == pytest.approx(0.0, abs=1e-5)
    other = torch.where(map_ > 0, 5, 0)
    assert anatomy_loss(map_, other, still, CLASSES).item() == pytest.approx(1.0, abs=1e-5)


def test_the_moving_map_is_read_where_the_displacement_points():
    moving, fixed = (torch.zeros(1, 1, *SHAPE, dtype=torch.int64) for _ in range(2))
    fixed[0, 0, 2, 3, 2], moving[0, 0, 2, 5, 2] = 4, 4
    u = torch.zeros(1, 3, *SHAPE)
    u[:, 1] = 2.0
    assert anatomy_loss(moving, fixed, u, CLASSES).item() == pytest.approx(0.0, abs=1e-5)
    assert anatomy_loss(moving, fixed, -u, CLASSES).item() == pytest.approx(1.0, abs=1e-5)


def test_maps_without_structures_teach_nothing():
    u = displacement().requires_grad_()
    empty = torch.zeros(1, 1, *SHAPE, dtype=torch.int64)
    anatomy_loss(empty, random_probabilities(0), u, CLASSES).backward()
    assert not u.grad.any()


def test_a_displacement_without_numbers_gives_none():
    u = torch.full((1, 3, *SHAPE), float("nan"))
    assert not anatomy_loss(random_map(0), random_map(1), u, CLASSES).isfinite()


def test_two_predictions_and_other_shapes_are_refused():
    with pytest.raises(GeometryError, match="has to be known"):
        anatomy_loss(random_probabilities(0), random_probabilities(1), displacement(), CLASSES)
    with pytest.raises(GeometryError, match="of the shape"):
        anatomy_loss(random_map(0)[..., 1:], random_map(1), displacement(), CLASSES)
    with pytest.raises(GeometryError, match="map of classes"):
        segmentation_loss(torch.zeros(1, 3, *SHAPE), random_map(0)[:, 0])


def slow_segmentation(logits, classes, dice, entropy):
    p = logits.softmax(dim=1)
    overlap = slow_dice(p, hot(classes), [classes])
    return dice * (1.0 - overlap) + entropy * F.cross_entropy(logits, classes[:, 0])


@pytest.mark.parametrize(("dice", "entropy"), [(1.0, 0.0), (0.0, 1.0), (0.7, 2.0)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_supervised_loss_and_its_gradient(dice, entropy, layout):
    classes = torch.cat([random_map(0), random_map(1, (0, 1, 5))])
    values, slopes = [], []
    for loss in (segmentation_loss, slow_segmentation):
        logits = 2.0 * torch.randn(2, CLASSES, *SHAPE, generator=generator(2))
        logits = logits.contiguous(memory_format=layout).requires_grad_()
        value = 3.0 * loss(logits, classes, dice, entropy)
        value.backward()
        values.append(value.item())
        slopes.append(logits.grad)
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert torch.allclose(*slopes, atol=1e-7, rtol=1e-4) and slopes[1].abs().max() > 1e-4


def test_the_background_alone_gives_no_dice():
    logits = torch.zeros(1, CLASSES, *SHAPE, requires_grad=True)
    empty = torch.zeros(1, 1, *SHAPE, dtype=torch.int64)
    value = segmentation_loss(logits, empty, 1.0, 0.0)
    value.backward()
    assert value.item() == 0.0 and not logits.grad.any()
    alone = torch.zeros(1, 1, *SHAPE, requires_grad=True)
    assert segmentation_loss(alone, empty).item() == 0.0


def test_probabilities_lie_with_the_channels_last():
    logits = torch.randn(2, CLASSES, *SHAPE, generator=generator(0))
    for given in (logits, logits.contiguous(memory_format=torch.channels_last_3d)):
        found = probabilities(given)
        assert torch.allclose(found, logits.softmax(dim=1), atol=1e-6)
        assert found.movedim(1, -1).is_contiguous()


def test_labels_become_classes():
    labels = torch.tensor([0, 17, 53, 4, 2035, -1, 5, 9999]).reshape(1, 1, 2, 2, 2)
    classes = class_map(labels, (4, 17, 2035))
    assert classes.shape == labels.shape and classes.dtype == torch.int64
    assert classes.flatten().tolist() == [0, 2, 0, 1, 3, 0, 0, 0]
    assert not class_map(labels, ()).any()
