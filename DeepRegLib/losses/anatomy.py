"""Losses of structures: supervised segmentation, and the overlap of a moved with a fixed map.

The number of structures may be large (more than a hundred), so no loss makes one image for each of
them but where a network gives one anyway. Dice is the soft one with plain denominators,
2 sum(p q) / (sum(p) + sum(q)), averaged over the classes that occur, without the background.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import GeometryError
from ..geometry.corners import linear_corners
from ..geometry.sampling import voxel_coordinates

_TINY = 1e-6


def class_map(labels: Tensor, structures: Sequence[int]) -> Tensor:
    """Returns a label map with its labels replaced by numbers of classes.

    Args:
        labels: Label map of any shape, int64.
        structures: Labels, positive; the first becomes class 1, and so on.

    Returns:
        A map of the same shape, int64; 0 where none of the structures is.
    """
    table = torch.zeros(max(structures, default=0) + 2, dtype=torch.int64, device=labels.device)
    where = torch.tensor(list(structures), dtype=torch.int64, device=labels.device)
    table[where] = torch.arange(1, len(where) + 1, device=labels.device)
    # What lies beyond the table falls on its last entry, which is background.
    known = (labels >= 0) & (labels < len(table))
    return table[torch.where(known, labels, len(table) - 1)]


def probabilities(logits: Tensor) -> Tensor:
    """Returns softmax(logits) over the classes, (B, C, D, H, W), with the channels last in memory.

    torch would copy logits whose channels lie last, which is what the losses want them to do.
    """
    return logits.movedim(1, -1).softmax(dim=-1).movedim(-1, 1)


def segmentation_loss(
    logits: Tensor, classes: Tensor, dice: float = 1.0, entropy: float = 1.0
) -> Tensor:
    """Weighted sum of one minus the soft Dice and of the cross entropy of a segmentation.

    Milletari et al. 2016, doi:10.1109/3DV.2016.79 (Dice; here with plain denominators), of the
    probabilities softmax(logits).

    Convention:
        `logits` is (B, C, D, H, W), floating, class 0 the background; fast where the channels lie
        last in memory. Only they get a gradient, which is analytic: with g the derivative by the
        probabilities p, that by the logits is p (g - sum_c g_c p_c).

    Args:
        logits: What the network says.
        classes: True classes, (B, 1, D, H, W), int64, 0 to C - 1.
        dice: Weight of one minus the Dice, averaged over the classes that occur.
        entropy: Weight of the cross entropy, averaged over the voxels.

    Returns:
        A scalar.

    Raises:
        GeometryError: If the shapes do not fit.
    """
    if logits.ndim != 5 or classes.shape != (len(logits), 1, *logits.shape[2:]):
        raise GeometryError(
            "A segmentation is compared with a map of classes (B, 1, D, H, W) of its shape, but "
            f"got {tuple(logits.shape)} and {tuple(classes.shape)}."
        )
    return _Supervised.apply(_rows(logits), classes.reshape(-1), dice, entropy)  # type: ignore[no-any-return]


def anatomy_loss(moving: Tensor, fixed: Tensor, displacement: Tensor, classes: int) -> Tensor:
    """One minus the soft Dice of a moved and a fixed map of structures.

    Xu & Niethammer 2019, doi:10.1007/978-3-030-32245-8_47: Dice(S_M o phi, S_F) with
    phi(x) = x + u(x). Each map is known, or one of them consists of probabilities that a network
    gives. A known map counts as one image for each class, sampled linearly, which is nowhere made.

    Convention:
        A known map is (1, 1, D, H, W), int64, 0 (background) to `classes` - 1; probabilities are
        (1, classes, D, H, W), floating. `displacement` is (1, 3, D, H, W) in voxels, component c
        along tensor axis c; the edge is repeated. Differentiable by displacement and probabilities.

    Args:
        moving: Structures of the moving image, S_M.
        fixed: Structures of the fixed image, S_F.
        displacement: u.
        classes: Number of classes with the background.

    Returns:
        A scalar; the mean is over the structures that occur in a known map.

    Raises:
        GeometryError: If neither map is known, or the shapes do not fit.
    """
    shape = displacement.shape[2:]
    if len(displacement) != 1 or moving.shape[2:] != shape or fixed.shape[2:] != shape:
        raise GeometryError(
            "Structures are compared for one pair of maps of the shape of the displacement, but "
            f"got {tuple(moving.shape)}, {tuple(fixed.shape)} and {tuple(displacement.shape)}."
        )
    if moving.is_floating_point() and fixed.is_floating_point():
        raise GeometryError("One of two maps of structures has to be known, a map of classes.")
    where = voxel_coordinates(shape, displacement.device, displacement.dtype) + displacement
    index, weight = (part[0] for part in linear_corners(where, shape))
    voxels = index.shape[1]
    # How much of the fixed grid falls on each moving voxel: with it, the sum of a moved map needs
    # each voxel of the map once, however many classes there are.
    falling = _summed(index, weight, voxels)
    if moving.is_floating_point():
        rows, there = _rows(moving), fixed.reshape(-1)
        found = rows.reshape(-1).gather(0, (index * classes + there).reshape(-1))
        both = _summed(there, (weight * found.view_as(weight)).sum(dim=0), classes)
        sizes = falling @ rows + _counts(there, classes)
        known = [there]
    else:
        here = moving.reshape(-1)
        labels = here[index]
        sizes, known = _summed(here, falling, classes), [here]
        if fixed.is_floating_point():
            rows = _rows(fixed)
            found = rows.gather(1, labels.T).T
            both = _summed(labels, weight * found, classes)
            sizes = sizes + rows.sum(dim=0)
        else:
            there = fixed.reshape(-1)
            both = _summed(there, (weight * (labels == there)).sum(dim=0), classes)
            sizes, known = sizes + _counts(there, classes), [here, there]
    share = _shares(known, classes)
    return 1.0 - (share * 2.0 * both / sizes.clamp(min=_TINY)).sum()


class _Supervised(torch.autograd.Function):
    """The loss of `segmentation_loss` on rows of logits (n, C), with its gradient."""

    @staticmethod
    def forward(ctx, logits, classes, dice, entropy):  # type: ignore[no-untyped-def]
        voxels, count = logits.shape
        logarithms = torch.log_softmax(logits.float(), dim=1)
        own = logarithms.gather(1, classes[:, None])[:, 0]
        p = logarithms.exp_()
        probability = own.exp()
        share = dice * _shares([classes], count)
        both = _summed(classes, probability, count)
        sizes = (p.sum(dim=0) + _counts(classes, count)).clamp(min=_TINY)
        value = dice * bool(share.any()) - (share * 2.0 * both / sizes).sum()
        value = value - entropy * own.mean()
        # Derivatives by the probability of each class, and by that of the true one besides.
        every, true = share * 2.0 * both / sizes.square(), (share * -2.0 / sizes)[classes]
        inner = p @ every + probability * true - entropy / voxels
        gradient = (p * every).addcmul_(p, inner[:, None], value=-1.0)
        mine = probability * true - entropy / voxels
        gradient.scatter_add_(1, classes[:, None], mine[:, None])
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx, slope):  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return gradient * slope, None, None, None


def _rows(image: Tensor) -> Tensor:
    """Returns an image (B, C, D, H, W) as rows (voxels, C); a view where channels lie last."""
    return image.movedim(1, -1).reshape(-1, image.shape[1])


def _summed(index: Tensor, values: Tensor, size: int) -> Tensor:
    """Returns the sums of values by an index, (size,)."""
    return values.new_zeros(size).scatter_add(0, index.reshape(-1), values.reshape(-1))


def _counts(classes: Tensor, count: int) -> Tensor:
    return torch.bincount(classes, minlength=count).float()


def _shares(known: Sequence[Tensor], count: int) -> Tensor:
    """Returns the weight of each class in a mean over those that occur in known maps."""
    present = torch.stack([_counts(classes, count) for classes in known]).sum(dim=0) > 0
    present[0] = False
    return present.float() / present.sum().clamp(min=1)
