"""What every similarity offers: a value, its gradient, and features to compare."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import GeometryError


class Similarity:
    """Compares a moved with a fixed image; lower is better.

    Convention:
        Images are (B, C, D, H, W), floating; masks are (B, 1, D, H, W) with weights 0 ... 1. The
        value is a mean over the mask, so it does not depend on the number of voxels. Global
        similarities take sampled points as well, as images of shape (B, C, N, 1, 1).
    """

    #: Whether it compares neighborhoods, so that scattered points will not do.
    local: bool = False

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value as a scalar, differentiable by autograd."""
        raise NotImplementedError(f"{type(self).__name__} has to say how it compares images.")

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the value and its gradient with respect to `moved`, of the shape of `moved`.

        Subclasses replace this by an analytic form; this one records a tape.
        """
        with torch.enable_grad():
            variable = moved.detach().requires_grad_(True)
            value = self(fixed.detach(), variable, mask)
            (gradient,) = torch.autograd.grad(value, variable)
        return value.detach(), gradient

    def value_and_both_gradients(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the value and its gradients with respect to `fixed` and to `moved`.

        For symmetric registration. This default holds for similarities that do not change when
        both images trade places, which all of this package are (mutual information up to its
        binning).
        """
        value, by_moved = self.value_and_gradient(fixed, moved, mask)
        _, by_fixed = self.value_and_gradient(moved, fixed, mask)
        return value, by_fixed, by_moved

    def prepare(self, image: Tensor) -> Tensor:
        """Returns the features that are compared in place of an image; the image by default.

        An engine may compute the features once and warp them like an image.
        """
        return image

    def rescaled(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns an image in the intensities that are compared; the image itself by default.

        Args:
            image: (1, C, D, H, W), 0 to 1.
            mask: Where it counts.
        """
        return image

    def bind(self, fixed: Tensor, mask: Tensor | None = None) -> BoundSimilarity:
        """Returns the similarity to one fixed image, with what depends on it alone precomputed."""
        return BoundSimilarity(self, fixed, mask)


class BoundSimilarity:
    """A similarity to one fixed image."""

    def __init__(self, similarity: Similarity, fixed: Tensor, mask: Tensor | None) -> None:
        self._similarity, self._fixed, self._mask = similarity, fixed, mask

    def value(self, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value, differentiable by autograd; `mask` as in `value_and_gradient`."""
        return self._similarity(self._fixed, moved, self._mask if mask is None else mask)

    def value_and_gradient(
        self, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and gradient; `mask` replaces that of the fixed image if given."""
        mask = self._mask if mask is None else mask
        return self._similarity.value_and_gradient(self._fixed, moved, mask)


def check_images(fixed: Tensor, moved: Tensor, mask: Tensor | None) -> None:
    """Checks that images and mask fit together.

    Raises:
        GeometryError: If they do not.
    """
    if fixed.ndim != 5 or fixed.shape != moved.shape:
        raise GeometryError(
            "A similarity compares two images of the same shape (B, C, D, H, W), but got "
            f"{tuple(fixed.shape)} and {tuple(moved.shape)}."
        )
    if mask is not None and (mask.shape[1] != 1 or mask.shape[2:] != fixed.shape[2:]):
        raise GeometryError(
            f"A mask for images of shape {tuple(fixed.shape)} has the shape (B, 1, D, H, W), but "
            f"got {tuple(mask.shape)}."
        )


def full(image: Tensor) -> Tensor:
    """Returns a floating image in at least single precision: sums of squares need it."""
    return image if image.dtype in (torch.float32, torch.float64) else image.float()


def weights(image: Tensor, mask: Tensor | None) -> Tensor:
    """Returns weights (B, C, D, H, W) that sum to one, from a mask or uniform.

    A mask without any voxel gives zero weights, and so a zero value and gradient.
    """
    if mask is None:
        return torch.full_like(image, 1.0 / image.numel())
    spread = mask.to(image.dtype).expand(image.shape)
    return spread / spread.sum().clamp(min=1e-12)


def taped(similarity: Similarity, fixed: Tensor, moved: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the value of a similarity with its analytic gradient given to autograd.

    Only `moved` gets a gradient; the fixed image and the mask are data.
    """
    return _Taped.apply(moved, fixed, mask, similarity)  # type: ignore[no-any-return]


class _Taped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, moved, fixed, mask, similarity):  # type: ignore[no-untyped-def]
        value, gradient = similarity.value_and_gradient(fixed, moved, mask)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx, slope):  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return gradient * slope, None, None, None
