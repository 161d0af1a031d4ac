"""Soft Dice of label probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Similarity, check_images, full


class Dice(Similarity):
    """One minus the soft Dice, averaged over the channels that the fixed image has.

    Milletari et al. 2016, doi:10.1109/3DV.2016.79, with squared denominators.

    Convention:
        One channel per label, values 0 ... 1, as `one_hot` makes them.
    """

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`."""
        check_images(fixed, moved, mask)
        fixed, moved = full(fixed), full(moved)
        w = torch.ones_like(moved[:, :1]) if mask is None else mask.to(moved.dtype)
        dims = (0, 2, 3, 4)
        both = (w * fixed * moved).sum(dims)
        either = (w * (fixed**2 + moved**2)).sum(dims)
        present = ((w * fixed).sum(dims) > 0).to(moved.dtype)
        dice = 2.0 * both / either.clamp(min=1e-8)
        return 1.0 - (dice * present).sum() / present.sum().clamp(min=1.0)


def one_hot(labels: Tensor, values: Sequence[int]) -> Tensor:
    """Returns (B, len(values), D, H, W) float 0 or 1 from an integer label map (B, 1, D, H, W)."""
    return torch.cat([(labels == value) for value in values], dim=1).float()
