"""Modality-independent neighbourhood descriptor with self-similarity context (MIND-SSC)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Similarity, check_images, full
from .box import box_sum
from .mse import MSE

_SIX = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
#: The twelve pairs of the six neighbours that are not opposite each other.
_PAIRS = tuple(
    (a, b) for a, b in itertools.combinations(_SIX, 2) if sum(x * y for x, y in zip(a, b)) == 0
)


class MIND(Similarity):
    """Mean squared difference of MIND-SSC descriptors, for any two contrasts.

    Heinrich et al. 2013, doi:10.1007/978-3-642-40811-3_24: twelve channels exp(-D / V), where D
    are the squared distances between patches around pairs of neighbouring voxels and V is their
    local mean. The descriptor is not invariant to rotation, so images should be turned alike
    before `prepare`.

    Convention:
        `__call__` takes images (one channel) or descriptors (twelve); `value_and_gradient` takes
        descriptors from `prepare` and treats those of the moving image as a warped image.

    Args:
        radius: Half width of the patches, in voxels.
        dilation: Distance of the neighbours, in voxels.
    """

    local = True

    def __init__(self, radius: int = 1, dilation: int = 2) -> None:
        self.radius, self.dilation = int(radius), int(dilation)
        self._difference = MSE()

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`."""
        check_images(fixed, moved, mask)
        if fixed.shape[1] == 1:
            fixed, moved = self.prepare(fixed), self.prepare(moved)
        return self._difference(fixed, moved, mask)

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and analytic gradient with respect to the moved descriptors."""
        if fixed.shape[1] == 1:
            return super().value_and_gradient(fixed, moved, mask)
        return self._difference.value_and_gradient(fixed, moved, mask)

    def prepare(self, image: Tensor) -> Tensor:
        """Returns the descriptors (B, 12, D, H, W) of the first channel; the edge is repeated."""
        image = full(image[:, :1])
        d = self.dilation
        padded = F.pad(image, (d,) * 6, mode="replicate")
        distances = []
        for a, b in _PAIRS:
            square = (_shifted(padded, image, a, d) - _shifted(padded, image, b, d)) ** 2
            distances.append(box_sum(square, self.radius))
        distance = torch.cat(distances, dim=1)
        distance = distance - distance.amin(dim=1, keepdim=True)
        spread = distance.mean(dim=1, keepdim=True)
        # Flat regions would divide noise by nothing, single edges would flatten the rest.
        typical = float(spread.detach().mean().clamp(min=1e-12))
        spread = spread.clamp(min=typical * 1e-3, max=typical * 1e3)
        return torch.exp(-distance / spread)


def _shifted(padded: Tensor, image: Tensor, offset: tuple[int, int, int], d: int) -> Tensor:
    for axis, step in enumerate(offset):
        padded = padded.narrow(2 + axis, d + step * d, image.shape[2 + axis])
    return padded
