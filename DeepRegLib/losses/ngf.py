"""Normalized gradient fields: edges that lie alike, whatever their contrast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ParameterError
from ..geometry.jacobian import axis_gradient
from .base import (
    BoundSimilarity,
    Similarity,
    check_images,
    check_mask,
    full,
    full_pair,
    taped,
    weights,
)


class NGF(Similarity):
    """One minus the mean squared cosine between the gradients of the two images.

    Gradients well below a noise level eta count as flat, and flat regions cost one wherever they
    lie. With a mask a voxel counts only if its neighbors do, as gradients are made of them.

    Convention:
        As `Similarity`; not for sampled points, which have no neighbors. The automatic eta is the
        mean length of the image's gradients in the mask; it counts as constant in the gradient
        of the value, so that the moved image gains nothing by becoming noisy.

    Args:
        spacing_mm: Voxel size along the tensor axes; image gradients are per mm.
        eta: Noise level of the gradients of both images (intensity per mm), or None for automatic.

    Raises:
        ParameterError: If a spacing or eta is not positive.

    References:
        Haber & Modersitzki 2006, doi:10.1007/11866763_89.
    """

    symmetric = True

    def __init__(
        self, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0), eta: float | None = None
    ) -> None:
        spacing = tuple(float(s) for s in spacing_mm)
        if len(spacing) != 3 or not min(spacing) > 0.0 or (eta is not None and not eta > 0.0):
            raise ParameterError(
                "NGF needs three positive spacings and a positive eta (or None), but got "
                f"{spacing} and {eta}."
            )
        self.spacing_mm, self.eta = spacing, eta

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`. Its autograd gradient is the analytic one."""
        return taped(self, fixed, moved, mask)

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and analytic gradient; see `Similarity`."""
        check_images(fixed, moved, mask)
        fixed, moved = full_pair(fixed, moved)
        return _BoundNGF(self, fixed, mask).value_and_gradient(moved)

    def bind(self, fixed: Tensor, mask: Tensor | None = None) -> BoundSimilarity:
        """Returns the similarity to one image, with its gradients kept."""
        return _BoundNGF(self, fixed, mask)


@dataclass(frozen=True, eq=False)
class _Edges:
    parts: list[Tensor]  # derivative along each axis, per mm
    eta: Tensor  # (B, C, 1, 1, 1)
    square: Tensor  # squared length with eta²


class _BoundNGF(BoundSimilarity):
    def __init__(self, similarity: NGF, fixed: Tensor, mask: Tensor | None) -> None:
        super().__init__(similarity, full(fixed.detach()), mask)
        self._settings = similarity
        check_images(fixed, fixed, mask)
        with torch.no_grad():
            self._inner = _inner_mask(self._fixed, mask)
            self._edges = self._make_edges(self._fixed, self._inner)

    def value_and_gradient(
        self, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and gradient; see `BoundSimilarity`."""
        check_images(self._fixed, moved, mask)
        with torch.no_grad():
            inner_mask, f = self._inner, self._edges
            if mask is not None:
                inner_mask = _inner_mask(self._fixed, mask)
                f = self._make_edges(self._fixed, inner_mask)
            m = self._make_edges(moved.to(self._fixed.dtype), inner_mask)
            inner = f.parts[0] * m.parts[0]
            for one, other in zip(f.parts[1:], m.parts[1:]):
                inner.addcmul_(one, other)
            slope = inner / f.square
            slope.div_(m.square)
            w = weights(inner, inner_mask)
            cosine = (inner * slope).mul_(w)
            value = w.sum() * (cosine.numel() / w.numel()) - cosine.sum()
            slope.mul_(-2.0 * w)
            inner.div_(m.square)
            gradient = torch.zeros_like(slope)
            for axis, spacing in enumerate(self._settings.spacing_mm):
                force = (f.parts[axis] - m.parts[axis].mul_(inner)).mul_(slope)
                _add_adjoint(gradient, force.div_(spacing), axis)
            return value, gradient

    def _make_edges(self, image: Tensor, inner_mask: Tensor | None) -> _Edges:
        parts = [
            axis_gradient(image, axis).div_(s) for axis, s in enumerate(self._settings.spacing_mm)
        ]
        square = parts[0] * parts[0]
        for part in parts[1:]:
            square.addcmul_(part, part)
        eta = self._eta(image, square, inner_mask)
        return _Edges(parts, eta, square.add_(eta * eta))

    def _eta(self, image: Tensor, square: Tensor, inner_mask: Tensor | None) -> Tensor:
        dims = (2, 3, 4)
        if self._settings.eta is not None:
            return square.new_full((*square.shape[:2], 1, 1, 1), self._settings.eta)
        if inner_mask is None:
            mean = square.sqrt().mean(dims, keepdim=True)
            size = image.abs().amax(dims, keepdim=True)
        else:
            total = inner_mask.sum(dims, keepdim=True).clamp(min=1e-12)
            mean = (square.sqrt() * inner_mask).sum(dims, keepdim=True) / total
            size = (image.abs() * (inner_mask > 0.0)).amax(dims, keepdim=True)
        # What is left of a constant image is rounding, which must stay below eta.
        eta = mean + 10.0 * torch.finfo(image.dtype).eps * size
        return torch.where(eta > 0.0, eta, torch.ones_like(eta))


def _inner_mask(image: Tensor, mask: Tensor | None) -> Tensor | None:
    """Keeps of a mask what the neighbors along the axes allow."""
    check_mask(image, mask)
    if mask is None:
        return None
    mask = mask.detach().to(image.dtype)
    result = mask.clone()
    for dim in (2, 3, 4):
        rest = mask.shape[dim] - 1
        for here, there in ((0, 1), (1, 0)):
            part = result.narrow(dim, here, rest)
            torch.minimum(part, mask.narrow(dim, there, rest), out=part)
    return result


def _add_adjoint(total: Tensor, slope: Tensor, axis: int) -> None:
    """Adds to `total` what the adjoint of `axis_gradient` makes of `slope`."""
    dim, size = 2 + axis, total.shape[2 + axis]
    if size == 1:
        return
    first, last = slope.narrow(dim, 0, 1), slope.narrow(dim, size - 1, 1)
    total.narrow(dim, 1, 1).add_(first)
    total.narrow(dim, 0, 1).sub_(first)
    total.narrow(dim, size - 1, 1).add_(last)
    total.narrow(dim, size - 2, 1).sub_(last)
    if size > 2:
        inside = slope.narrow(dim, 1, size - 2)
        total.narrow(dim, 2, size - 2).add_(inside, alpha=0.5)
        total.narrow(dim, 0, size - 2).sub_(inside, alpha=0.5)
