"""Mean squared difference, for images of the same contrast and scale."""

from __future__ import annotations

from torch import Tensor

from .base import Similarity, check_images, full, weights


class MSE(Similarity):
    """Mean over the mask of (moved - fixed)²."""

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`."""
        check_images(fixed, moved, mask)
        moved = full(moved)
        return (weights(moved, mask) * (moved - fixed) ** 2).sum()

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and analytic gradient; see `Similarity`."""
        check_images(fixed, moved, mask)
        difference = full(moved) - fixed
        gradient = weights(difference, mask).mul_(difference)
        value = (gradient * difference).sum()
        return value, gradient.mul_(2.0)
