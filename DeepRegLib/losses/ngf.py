"""Normalised gradient fields: edges that lie alike, whatever their contrast."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry.jacobian import spatial_gradient
from .base import Similarity, check_images, full, weights


class NGF(Similarity):
    """One minus the mean squared cosine between the gradients of the two images.

    Haber & Modersitzki 2006, doi:10.1007/11866763_89. Gradients well below eta count as noise.

    Args:
        spacing_mm: Voxel size along the tensor axes; gradients are per mm.
        eta: Noise level of the gradients (intensity per mm); by default their mean length.
    """

    local = True

    def __init__(
        self, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0), eta: float | None = None
    ) -> None:
        self.spacing_mm, self.eta = spacing_mm, eta

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`."""
        check_images(fixed, moved, mask)
        f, m = self._gradient(fixed), self._gradient(moved)
        eta_f, eta_m = self._noise(f), self._noise(m)
        inner = (f * m).sum(2)
        lengths = (f.square().sum(2) + eta_f**2) * (m.square().sum(2) + eta_m**2)
        cosine = inner**2 / lengths.clamp(min=1e-20)
        return (weights(cosine, mask) * (1.0 - cosine)).sum()

    def _gradient(self, image: Tensor) -> Tensor:
        gradient = spatial_gradient(full(image))
        spacing = torch.tensor(self.spacing_mm, device=image.device, dtype=gradient.dtype)
        return gradient / spacing.view(1, 1, 3, 1, 1, 1)

    def _noise(self, gradient: Tensor) -> Tensor:
        if self.eta is not None:
            return torch.tensor(self.eta, device=gradient.device, dtype=gradient.dtype)
        # A level, not a variable: the moved image must not gain by becoming noisy.
        return gradient.detach().square().sum(2).sqrt().mean().clamp(min=1e-8)
