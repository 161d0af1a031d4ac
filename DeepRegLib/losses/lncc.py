"""Squared local correlation with an analytic gradient by box sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ParameterError
from .base import (
    BoundSimilarity,
    Similarity,
    check_images,
    check_mask,
    full,
    full_pair,
    spatial_sum,
    taped,
    weights,
)
from .box import box_sum


class LNCC(Similarity):
    """One minus the mean squared correlation in a cube around every voxel.

    Invariant to a change of scale and offset of either image, up to the floor. With a mask the
    windows see only voxels inside it (weights within the window), so what lies outside has no
    influence and gets no gradient; a window counts as much as its center voxel. Windows without
    contrast, also those of a single voxel, count as uncorrelated.

    Convention:
        As `Similarity`; not for sampled points, which have no neighbors. At the border of the
        image the windows end there.

    Args:
        radius: Half width of the cube in voxels.
        signed: Use the correlation itself, so that inverted contrast is not rewarded.
        floor: Added to the variance in a window: windows with much less contrast than that are
            noise. The default suits intensities of order one, as `rescale_intensity` makes them.
        relative: Take the floor as a share of the variance of the whole image (in the mask, per
            sample and channel), so that it suits any intensities; about 2e-3 is then like the
            default for an image of a head.

    Raises:
        ParameterError: If the radius is below 1 or the floor is not positive.

    References:
        Avants et al. 2008, doi:10.1016/j.media.2007.06.004, eq. 5 (the squared form).
    """

    symmetric = True

    def __init__(
        self, radius: int = 2, signed: bool = False, floor: float = 1e-4, relative: bool = False
    ) -> None:
        if int(radius) < 1 or not floor > 0.0:
            raise ParameterError(
                "The local correlation needs a radius of at least 1 voxel and a positive floor, "
                f"but got {radius} and {floor}."
            )
        self.radius, self.signed = int(radius), bool(signed)
        self.floor, self.relative = float(floor), bool(relative)

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`. Its autograd gradient is the analytic one."""
        return taped(self, fixed, moved, mask)

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and analytic gradient; see `Similarity`."""
        check_images(fixed, moved, mask)
        fixed, moved = full_pair(fixed, moved)
        return _BoundLNCC(self, fixed, mask).value_and_gradient(moved)

    def bind(self, fixed: Tensor, mask: Tensor | None = None) -> BoundSimilarity:
        """Returns the similarity to one image, with its local means and variances kept."""
        return _BoundLNCC(self, fixed, mask)


@dataclass(frozen=True, eq=False)
class _Windows:
    """Local statistics of one image."""

    image: Tensor  # minus its mean in the mask, zero outside the mask
    mean: Tensor  # in each window
    variance: Tensor  # in each window, with the floor


@dataclass(frozen=True, eq=False)
class _Support:
    """A mask and what depends on it alone."""

    mask: Tensor | None
    scale: Tensor  # one over the weight in each window
    total: Tensor  # weight of the mask, (B or 1, 1, 1, 1, 1)
    share: Tensor  # of each window in the value
    spread: Tensor  # share times scale


class _BoundLNCC(BoundSimilarity):
    """LNCC to one fixed image; the fixed statistics are kept as long as the mask stays."""

    def __init__(self, similarity: LNCC, fixed: Tensor, mask: Tensor | None) -> None:
        super().__init__(similarity, full(fixed.detach()), mask)
        self._settings = similarity
        check_images(fixed, fixed, mask)
        with torch.no_grad():
            self._support = self._make_support(mask)
            self._windows = self._statistics(self._fixed, self._support)

    def value_and_gradient(
        self, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and gradient; see `BoundSimilarity`."""
        check_images(self._fixed, moved, mask)
        with torch.no_grad():
            support, f = self._support, self._windows
            if mask is not None:
                support = self._make_support(mask)
                f = self._statistics(self._fixed, support)
            m = self._statistics(moved.to(self._fixed.dtype), support)
            product = f.image * m.image
            if support.mask is not None:
                product.mul_(support.mask)
            covariance = box_sum(product, self._settings.radius).mul_(support.scale)
            covariance.addcmul_(f.mean, m.mean, value=-1.0)
            value, a, b = self._correlate(covariance, f, m, support)
            return value, self._gradient(f, m, a, b, support)

    def _make_support(self, mask: Tensor | None) -> _Support:
        image = self._fixed
        check_mask(image, mask)
        if mask is None:
            ones = torch.ones_like(image[:1, :1])
            count = box_sum(ones, self._settings.radius)
            scale, share = count.reciprocal_(), weights(image, None)
            return _Support(None, scale, spatial_sum(ones), share, scale * share)
        mask = mask.detach().to(image.dtype)
        count = box_sum(mask, self._settings.radius)
        scale, share = count.clamp_(min=1e-6).reciprocal_(), weights(image, mask)
        total = spatial_sum(mask).clamp_(min=1e-12)
        return _Support(mask, scale, total, share, scale * share)

    def _statistics(self, image: Tensor, support: _Support) -> _Windows:
        """Local mean and variance.

        Variances from sums of squares lose few digits around a mean of zero, so the mean of the
        whole image goes first.
        """
        mask, scale, radius = support.mask, support.scale, self._settings.radius
        average = spatial_sum(image if mask is None else image * mask) / support.total
        image = image - average
        weighted = image
        if mask is not None:
            # Outside the mask anything may stand; it must not come in by rounding.
            image.masked_fill_(mask <= 0.0, 0.0)
            weighted = image * mask
        mean = box_sum(weighted, radius).mul_(scale)
        square = weighted * image
        # What is left of a constant image is rounding, which must stay below the floor.
        precision = torch.finfo(image.dtype)
        contrast = spatial_sum(square) / support.total if self._settings.relative else 1.0
        floor = contrast * self._settings.floor + (10.0 * precision.eps * average) ** 2
        floor.clamp_(min=precision.tiny**0.5)
        variance = box_sum(square, radius).mul_(scale).addcmul_(mean, mean, value=-1.0)
        return _Windows(image, mean, variance.clamp_(min=0.0).add_(floor))

    def _correlate(
        self, covariance: Tensor, f: _Windows, m: _Windows, support: _Support
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Value, and the factors of (f - mean) and (m - mean) in its derivative per window.

        Overwrites the covariance.
        """
        if self._settings.signed:
            a = (f.variance.sqrt() * m.variance.sqrt()).reciprocal_()
        else:
            a = covariance / f.variance
            a.div_(m.variance)
        similarity = covariance.mul_(a)
        if support.mask is None:
            value = 1.0 - similarity.mean()
        else:
            value = 1.0 - (similarity * support.share).sum()
        b = similarity.div_(m.variance)
        return value, a, b

    def _gradient(
        self, f: _Windows, m: _Windows, a: Tensor, b: Tensor, support: _Support
    ) -> Tensor:
        """Gathers over all windows that contain a voxel: three box sums.

        The derivative of a window's similarity by one of its voxels is
        a (f - mean f) - b (m - mean m), divided by the window's weight, and twice that for the
        squared form. A relative floor depends on the moved image as well, which adds a multiple of
        m. Overwrites a, b and the means of m.
        """
        radius, factor = self._settings.radius, 1.0 if self._settings.signed else 2.0
        through_floor = None
        if self._settings.relative:
            through_floor = spatial_sum(b * support.share) * (self._settings.floor / support.total)
        a.mul_(support.spread)
        b.mul_(support.spread)
        rest = m.mean.mul_(b).addcmul_(a, f.mean, value=-1.0)
        gradient = box_sum(b, radius)
        if through_floor is not None:
            gradient.add_(through_floor)
        gradient.mul_(m.image)
        gradient.sub_(box_sum(rest, radius))
        gradient.addcmul_(box_sum(a, radius), f.image, value=-1.0)
        return gradient.mul_(factor if support.mask is None else support.mask * factor)
