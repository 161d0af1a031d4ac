"""Modality-independent neighborhood descriptor with self-similarity context (MIND-SSC)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import GeometryError, ParameterError
from .base import Similarity, check_mask, full, spatial_sum
from .box import box_sum
from .mse import MSE

#: Descriptor channels for each channel of an image.
CHANNELS = 12
_SIX = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
#: The twelve pairs of the six neighbors that are not opposite each other.
_PAIRS = tuple(
    (a, b) for a, b in itertools.combinations(_SIX, 2) if sum(x * y for x, y in zip(a, b)) == 0
)


class MIND(Similarity):
    """Mean squared difference of MIND-SSC descriptors, for any two contrasts.

    A descriptor has twelve channels exp(-(D - min D) / V) for the twelve pairs of neighboring
    patches that touch the same voxel from two axes: D is the squared distance of the two patches,
    V the mean of D - min D over the pairs, kept within 0.001 ... 1000 of its mean over the image.
    It does not change with the scale, offset or inversion of the intensities, but is not
    invariant to rotation, so images should be turned alike before `prepare`.

    Convention:
        Compares descriptors from `prepare`, (B, 12 C, D, H, W); those of the moving image are
        treated as an image that was warped, so gradients are with respect to the descriptors. Two
        images of one channel are prepared on the way, and gradients go through the descriptor.

    Args:
        radius: Half width of the patches, in voxels.
        dilation: Distance of the patches from the voxel, in voxels.

    Raises:
        ParameterError: If the radius is negative or the dilation below 1.

    References:
        Heinrich et al. 2013, doi:10.1007/978-3-642-40811-3_24.
    """

    symmetric = True

    def __init__(self, radius: int = 1, dilation: int = 2) -> None:
        if int(radius) < 0 or int(dilation) < 1:
            raise ParameterError(
                "MIND needs a radius of at least 0 and a dilation of at least 1 voxel, but got "
                f"{radius} and {dilation}."
            )
        self.radius, self.dilation = int(radius), int(dilation)
        self._difference = MSE()

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`."""
        if _are_images(fixed, moved):
            fixed, moved = self.prepare(fixed, mask), self.prepare(moved, mask)
        return self._difference(fixed, moved, mask)

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and analytic gradient with respect to the moved descriptors."""
        if _are_images(fixed, moved):
            return super().value_and_gradient(fixed, moved, mask)
        return self._difference.value_and_gradient(fixed, moved, mask)

    def prepare(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the descriptors of an image; differentiable.

        Args:
            image: (B, C, D, H, W); neighbors beyond the border repeat it, and patches end there.
            mask: (B, 1, D, H, W). Patches are compared only where both lie in the mask (weighted
                by it), so that nothing outside it shows in the descriptors inside.

        Returns:
            (B, 12 C, D, H, W), values 0 ... 1; the channels of one image channel are neighbors.

        Raises:
            GeometryError: If the shapes do not fit.
        """
        if image.ndim != 5 or 0 in image.shape:
            raise GeometryError(
                f"MIND describes images of shape (B, C, D, H, W), but got {tuple(image.shape)}."
            )
        check_mask(image, mask)
        parts = [self._describe(full(channel), mask) for channel in image.split(1, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _describe(self, image: Tensor, mask: Tensor | None) -> Tensor:
        shape, d, r = image.shape[2:], self.dilation, self.radius
        weight = None
        if mask is not None:
            weight = mask.detach().to(image.dtype)
            # Outside the mask anything may stand; it must not come in by rounding.
            image = image.masked_fill(weight <= 0.0, 0.0)
            weight = F.pad(weight, (d,) * 6, mode="replicate")
        image = F.pad(image, (d,) * 6, mode="replicate")
        distances = []
        for a, b in _PAIRS:
            square = (_shifted(image, shape, a, d) - _shifted(image, shape, b, d)) ** 2
            if weight is None:
                distances.append(box_sum(square, r))
            else:
                both = _shifted(weight, shape, a, d) * _shifted(weight, shape, b, d)
                # Patches without common support count as alike.
                support = box_sum(both, r).clamp(min=1e-6)
                distances.append(box_sum(square * both, r) / support)
        return _normalized(torch.cat(distances, dim=1), mask)


def _normalized(distance: Tensor, mask: Tensor | None) -> Tensor:
    """Makes descriptors of the twelve patch distances."""
    least = distance.amin(dim=1, keepdim=True)
    spread = distance.mean(dim=1, keepdim=True) - least
    if mask is None:
        typical = spread.mean(dim=(2, 3, 4), keepdim=True)
    else:
        w = mask.detach().to(spread.dtype)
        typical = spatial_sum(spread * w) / spatial_sum(w).clamp(min=1e-12)
    # Flat regions would divide noise by nothing, single edges would flatten the rest.
    typical = typical.detach()
    spread = spread.clamp(min=1e-3 * typical, max=1e3 * typical)
    spread = spread.clamp(min=torch.finfo(spread.dtype).tiny ** 0.5)
    exponent = least - distance
    if exponent.requires_grad:
        return torch.exp(exponent / spread)
    return exponent.div_(spread).exp_()


def _shifted(padded: Tensor, shape: torch.Size, offset: tuple[int, int, int], d: int) -> Tensor:
    for axis, step in enumerate(offset):
        padded = padded.narrow(2 + axis, d + step * d, shape[axis])
    return padded


def _are_images(fixed: Tensor, moved: Tensor) -> bool:
    """Tells images of one channel from descriptors."""
    channels = {image.shape[1] if image.ndim == 5 else -1 for image in (fixed, moved)}
    if channels == {1}:
        return True
    if len(channels) == 1 and min(channels) > 0 and min(channels) % CHANNELS == 0:
        return False
    raise GeometryError(
        "MIND compares two descriptors of 12 channels each, as `prepare` makes them, or two images "
        f"of one channel, of the same shape, but got {tuple(fixed.shape)} and {tuple(moved.shape)}."
    )
