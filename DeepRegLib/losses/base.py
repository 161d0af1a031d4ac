"""What every similarity offers: a value, its gradient, and features to compare."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import GeometryError


class Similarity:
    """Compares a moved with a fixed image; lower is better.

    Convention:
        Images are (B, C, D, H, W), finite, of any floating type; half precision is computed in
        single. Masks are (B, 1, D, H, W) or (1, 1, D, H, W) with weights 0 ... 1 and say where the
        comparison counts. The value is a mean over the mask, so it does not depend on the number
        of voxels. Every similarity compares what its `prepare` returns, so
        ``s(s.prepare(fixed), s.prepare(moved))`` is right for all of them. Those without
        neighborhoods (mse, ncc, mi) take sampled points as well, as images (B, C, N, 1, 1).
    """

    #: Whether exchanging the two images keeps the value.
    symmetric = False

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value as a scalar, differentiable by autograd.

        Args:
            fixed: (B, C, D, H, W).
            moved: Of the same shape.
            mask: Where the comparison counts; everywhere by default. Gets no gradient.

        Raises:
            GeometryError: If the shapes do not fit.
        """
        raise NotImplementedError(f"{type(self).__name__} has to say how it compares images.")

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the value and its gradient with respect to `moved`, of the shape of `moved`.

        Subclasses replace this by an analytic form; this one records a tape.

        Args:
            fixed: (B, C, D, H, W).
            moved: Of the same shape.
            mask: Where the comparison counts; everywhere by default.

        Raises:
            GeometryError: If the shapes do not fit.
        """
        with torch.enable_grad():
            variable = full(moved.detach()).requires_grad_(True)
            value = self(fixed.detach(), variable, mask)
            (gradient,) = torch.autograd.grad(value, variable)
        return value.detach(), gradient

    def prepare(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the features that are compared in place of an image; the image by default.

        An engine may compute the features of both images once and warp them like images.

        Args:
            image: (B, C, D, H, W).
            mask: Voxels that features may be made of; all by default.
        """
        return image

    def bind(self, fixed: Tensor, mask: Tensor | None = None) -> BoundSimilarity:
        """Returns the similarity to one fixed image, with what depends on it alone precomputed.

        Args:
            fixed: (B, C, D, H, W), already prepared.
            mask: Where the comparison counts unless a call gives another mask.
        """
        return BoundSimilarity(self, fixed, mask)


class BoundSimilarity:
    """A similarity to one fixed image."""

    def __init__(self, similarity: Similarity, fixed: Tensor, mask: Tensor | None) -> None:
        self._similarity, self._fixed, self._mask = similarity, fixed, mask

    def value_and_gradient(
        self, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and gradient, as `Similarity.value_and_gradient`.

        Args:
            moved: (B, C, D, H, W).
            mask: Replaces the bound mask in this call, as a mask that moves with the image does.
        """
        mask = self._mask if mask is None else mask
        return self._similarity.value_and_gradient(self._fixed, moved, mask)


def check_images(fixed: Tensor, moved: Tensor, mask: Tensor | None) -> None:
    """Checks that images and mask fit together.

    Raises:
        GeometryError: If they do not.
    """
    if fixed.ndim != 5 or fixed.shape != moved.shape or 0 in fixed.shape:
        raise GeometryError(
            "A similarity compares two images of the same shape (B, C, D, H, W), but got "
            f"{tuple(fixed.shape)} and {tuple(moved.shape)}."
        )
    check_mask(fixed, mask)


def check_mask(image: Tensor, mask: Tensor | None) -> None:
    """Checks that a mask fits an image (B, C, D, H, W).

    Raises:
        GeometryError: If it does not.
    """
    if mask is None:
        return
    fits = mask.ndim == 5 and mask.shape[1] == 1 and mask.shape[2:] == image.shape[2:]
    if not fits or mask.shape[0] not in (1, image.shape[0]):
        raise GeometryError(
            f"A mask for images of shape {tuple(image.shape)} has the shape (B, 1, D, H, W), but "
            f"got {tuple(mask.shape)}."
        )


def full(image: Tensor) -> Tensor:
    """Returns a floating image in at least single precision: sums of squares need it."""
    return image if image.dtype in (torch.float32, torch.float64) else image.float()


def full_pair(fixed: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both images in the more precise of their types, at least single."""
    fixed, moved = full(fixed), full(moved)
    dtype = torch.promote_types(fixed.dtype, moved.dtype)
    return fixed.to(dtype), moved.to(dtype)


def weights(image: Tensor, mask: Tensor | None) -> Tensor:
    """Returns weights that sum to one over (B, C, D, H, W), from a mask or uniform.

    Returns:
        One number without a mask, else (B or 1, 1, D, H, W): both broadcast over the image. A mask
        without any voxel gives zero weights, and so a zero value and gradient.
    """
    if mask is None:
        return torch.tensor(1.0 / image.numel(), dtype=image.dtype, device=image.device)
    mask = mask.to(image.dtype)
    copies = image.numel() / mask.numel()
    return mask / (mask.sum() * copies).clamp(min=1e-12)


def spatial_sum(image: Tensor) -> Tensor:
    """Sums over the voxels, (B, C, 1, 1, 1)."""
    return image.sum(dim=(2, 3, 4), keepdim=True)


def taped(similarity: Similarity, fixed: Tensor, moved: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the value of a similarity with its analytic gradient given to autograd.

    `moved` gets a gradient, and so does `fixed` if the similarity is symmetric; a mask is data.
    Cannot be differentiated twice.
    """
    return _Taped.apply(moved, fixed, mask, similarity)  # type: ignore[no-any-return]


class _Taped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, moved, fixed, mask, similarity):  # type: ignore[no-untyped-def]
        value, gradient = similarity.value_and_gradient(fixed, moved, mask)
        both = similarity.symmetric and ctx.needs_input_grad[1]
        other = similarity.value_and_gradient(moved, fixed, mask)[1] if both else None
        ctx.types = moved.dtype, fixed.dtype
        ctx.save_for_backward(gradient, other)
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx, slope):  # type: ignore[no-untyped-def]
        gradient, other = ctx.saved_tensors
        other = None if other is None else (other * slope).to(ctx.types[1])
        return (gradient * slope).to(ctx.types[0]), other, None, None
