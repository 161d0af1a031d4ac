"""Soft Dice of label probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Similarity, check_images, full, taped


class Dice(Similarity):
    """One minus the soft Dice, averaged over the channels that the fixed image has.

    Milletari et al. 2016, doi:10.1109/3DV.2016.79, with squared denominators.

    Convention:
        One channel per label, values 0 ... 1, as `one_hot` makes them.
    """

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`. Its autograd gradient is the analytic one."""
        return taped(self, fixed, moved, mask)

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and analytic gradient; see `Similarity`."""
        check_images(fixed, moved, mask)
        fixed, moved = full(fixed), full(moved)
        w = torch.ones_like(moved[:, :1]) if mask is None else mask.to(moved.dtype)
        dims = (0, 2, 3, 4)
        both = (w * fixed * moved).sum(dims)
        either = (w * (fixed**2 + moved**2)).sum(dims).clamp(min=1e-8)
        present = ((w * fixed).sum(dims) > 0).to(moved.dtype)
        share = present / present.sum().clamp(min=1.0)
        dice = 2.0 * both / either
        # d(2 B / E) / dm = 2 w (f - dice m) / E
        factor, ratio = ((x.view(1, -1, 1, 1, 1)) for x in (-2.0 * share / either, dice))
        gradient = (fixed - ratio * moved).mul_(factor).mul_(w)
        return 1.0 - (dice * share).sum(), gradient


def one_hot(labels: Tensor, values: Sequence[int]) -> Tensor:
    """Returns (B, len(values), D, H, W) float 0 or 1 from an integer label map (B, 1, D, H, W)."""
    return torch.cat([(labels == value) for value in values], dim=1).float()
