"""Mean squared difference, for images of the same contrast and scale."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Similarity, check_images, full_pair, weights


class MSE(Similarity):
    """Mean over the mask and the channels of (moved - fixed)².

    Convention:
        As `Similarity`; takes sampled points (B, C, N, 1, 1) as well.

    Example:
        >>> fixed, moved = torch.zeros(1, 1, 2, 3, 4), torch.full((1, 1, 2, 3, 4), 2.0)
        >>> MSE()(fixed, moved).item()
        4.0
    """

    symmetric = True

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`."""
        check_images(fixed, moved, mask)
        fixed, moved = full_pair(fixed, moved)
        return (weights(moved, mask) * (moved - fixed) ** 2).sum()

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and analytic gradient; see `Similarity`."""
        check_images(fixed, moved, mask)
        with torch.no_grad():
            fixed, moved = full_pair(fixed, moved)
            gradient = moved - fixed
            weight = weights(gradient, mask)
            value = torch.zeros((), dtype=gradient.dtype, device=gradient.device)
            # Channel by channel, so that descriptors of many channels need little extra memory.
            for channel in gradient.split(1, dim=1):
                square = channel * channel
                value += square.mul_(weight).sum()
            return value, gradient.mul_(2.0 * weight)
