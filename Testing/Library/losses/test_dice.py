import numpy as np
import pytest
import torch

from DeepRegLib.errors import GeometryError, InputError
from DeepRegLib.losses.dice import Dice, one_hot


def labels(seed, *shape):
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed))


def test_hard_labels_give_the_usual_dice():
    fixed, moved = labels(0, 2, 1, 5, 6, 7), labels(1, 2, 1, 5, 6, 7)
    mask = torch.zeros(1, 1, 5, 6, 7)
    mask[..., 2:, :, 1:] = 1.0
    loss = Dice()(one_hot(fixed, (1, 2, 3)), one_hot(moved, (1, 2, 3)), mask)
    values, inside = [], mask[0, 0].numpy() > 0
    for b, label in np.ndindex(2, 3):
        f, m = (x[b, 0].numpy()[inside] == label + 1 for x in (fixed, moved))
        values.append(2 * (f & m).sum() / (f.sum() + m.sum()))
    assert loss.item() == pytest.approx(1 - np.mean(values), abs=1e-6)


def test_labels_that_the_fixed_image_lacks_do_not_count():
    fixed, moved = labels(0, 1, 1, 5, 6, 7), labels(1, 1, 1, 5, 6, 7)
    one = Dice()(one_hot(fixed, (1, 2)), one_hot(moved, (1, 2)))
    two = Dice()(one_hot(fixed, (1, 2, 9)), one_hot(moved, (1, 2, 9)))
    assert one.item() == pytest.approx(two.item())
    fixed, moved = (one_hot(x, (1, 2)).double() for x in (fixed, moved))
    assert Dice()(fixed, fixed).item() == pytest.approx(0.0)
    absent, gradient = Dice().value_and_gradient(torch.zeros_like(fixed), moved)
    assert absent.item() == 1.0 and (gradient == 0).all()


def test_gradient(case):
    moved = case.moved[:, :, :4, :3, 3:7].clone().requires_grad_(True)
    fixed, mask = case.fixed[:, :, :4, :3, 3:7], case.mask[:, :, :4, :3, 3:7]
    assert torch.autograd.gradcheck(lambda m: Dice()(fixed, m, mask), moved)


def test_one_hot():
    label_map = torch.tensor([[0, 7], [2, 7]]).reshape(1, 1, 1, 2, 2)
    assert one_hot(label_map)[0, :, 0].tolist() == [[[0, 0], [1, 0]], [[0, 1], [0, 1]]]
    assert one_hot(label_map.to(torch.uint8), [7, 0]).shape == (1, 2, 1, 2, 2)
    assert one_hot(label_map).dtype == torch.float32
    with pytest.raises(GeometryError, match="label map"):
        one_hot(label_map[0])
    with pytest.raises(InputError, match="label"):
        one_hot(torch.zeros(1, 1, 2, 2, 2, dtype=torch.int16))
