"""Soft Dice of label probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import GeometryError, InputError
from .base import Similarity, check_images, full_pair


class Dice(Similarity):
    """One minus the soft Dice, averaged over the labels that each fixed sample has.

    Squared denominators, so that equal probabilities reach zero. A sample without any of the
    labels costs one and gives no gradient.

    Convention:
        One channel per label, values 0 ... 1, as `one_hot` makes them; background is a label like
        any other, so it is usually left out.

    References:
        Milletari et al. 2016, doi:10.1109/3DV.2016.79.
    """

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`."""
        check_images(fixed, moved, mask)
        fixed, moved = full_pair(fixed, moved)
        w = torch.ones_like(moved[:1, :1]) if mask is None else mask.to(moved.dtype)
        dims = (2, 3, 4)
        both = (w * fixed * moved).sum(dims)
        either = (w * (fixed**2 + moved**2)).sum(dims)
        present = ((w * fixed).sum(dims) > 0).to(moved.dtype)
        dice = 2.0 * both / either.clamp(min=1e-8)
        return 1.0 - (dice * present).sum() / present.sum().clamp(min=1.0)


def one_hot(labels: Tensor, values: Sequence[int] | None = None) -> Tensor:
    """Returns label probabilities 0 or 1 from a label map.

    Args:
        labels: (B, 1, D, H, W), an integer type (or floating with whole numbers).
        values: Label of each channel; by default all but 0 that occur, in rising order.

    Returns:
        (B, len(values), D, H, W), float32.

    Raises:
        GeometryError: If the shape is another.
        InputError: If there is no label.

    Example:
        >>> one_hot(torch.tensor([0, 3, 5, 3]).reshape(1, 1, 1, 1, 4)).flatten(2).tolist()
        [[[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]]
    """
    if labels.ndim != 5 or labels.shape[1] != 1:
        raise GeometryError(
            f"A label map has the shape (B, 1, D, H, W), but got {tuple(labels.shape)}."
        )
    if values is None:
        values = [int(value) for value in torch.unique(labels).tolist() if value != 0]
    if len(values) == 0:
        raise InputError("The label map has no label other than 0; give one with segments.")
    return torch.cat([(labels == value) for value in values], dim=1).float()
