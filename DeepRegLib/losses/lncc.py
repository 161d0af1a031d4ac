"""Squared local correlation with an analytic gradient by box sums."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import BoundSimilarity, Similarity, check_images, full, taped
from .box import box_sum

#: Variance below which a window counts as constant, for intensities of order one.
_FLOOR = 1e-4


class LNCC(Similarity):
    """One minus the mean squared correlation in a cube around every voxel.

    Avants et al. 2008, doi:10.1016/j.media.2007.06.004, eq. 5. With a mask the windows see only
    voxels inside it (weights within the window), so what lies outside has no influence and gets no
    gradient. Windows without contrast count as uncorrelated.

    Convention:
        Intensities should be of order one: a floor of 1e-4 is added to the variances.

    Args:
        radius: Half width of the cube in voxels.
        signed: Use the correlation itself, so that inverted contrast is not rewarded.
    """

    def __init__(self, radius: int = 2, signed: bool = False) -> None:
        self.radius, self.signed = int(radius), signed

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`. Its autograd gradient is the analytic one."""
        return taped(self, fixed, moved, mask)

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and analytic gradient; see `Similarity`."""
        check_images(fixed, moved, mask)
        return _BoundLNCC(self, fixed, mask).value_and_gradient(moved)

    def bind(self, fixed: Tensor, mask: Tensor | None = None) -> BoundSimilarity:
        """Returns the similarity to one image, with its local means and variances kept."""
        return _BoundLNCC(self, fixed, mask)


class _BoundLNCC(BoundSimilarity):
    """LNCC to one fixed image; the fixed statistics are kept as long as the mask stays."""

    def __init__(self, similarity: LNCC, fixed: Tensor, mask: Tensor | None) -> None:
        super().__init__(similarity, fixed, mask)
        self._radius, self._signed = similarity.radius, similarity.signed
        # Variances from sums of squares cancel less around a mean of zero.
        fixed = full(fixed)
        self._image = fixed - fixed.mean()
        self._statistics = self._fixed_statistics(mask)

    def _fixed_statistics(
        self, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Local count, mean and variance of the fixed image, and the mask they belong to."""
        f = self._image
        if mask is None:
            count = box_sum(torch.ones_like(f[:1, :1]), self._radius)
            weighted = f
        else:
            mask = mask.to(f.dtype)
            count = box_sum(mask, self._radius)
            weighted = f * mask
        scale = 1.0 / count.clamp(min=1e-6)
        mean = box_sum(weighted, self._radius).mul_(scale)
        variance = box_sum(weighted * f, self._radius).mul_(scale).sub_(mean * mean)
        return scale, mean, variance.clamp_(min=0.0).add_(_FLOOR), mask

    def value_and_gradient(
        self, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and gradient; see `BoundSimilarity`."""
        statistics = self._statistics if mask is None else self._fixed_statistics(mask)
        scale, mean_f, variance_f, mask = statistics
        m = full(moved)
        m = m - m.mean()
        weighted = m if mask is None else m * mask
        mean_m = box_sum(weighted, self._radius).mul_(scale)
        variance_m = box_sum(weighted * m, self._radius).mul_(scale)
        variance_m.addcmul_(mean_m, mean_m, value=-1.0).clamp_(min=0.0).add_(_FLOOR)
        covariance = box_sum(weighted * self._image, self._radius).mul_(scale)
        covariance.addcmul_(mean_f, mean_m, value=-1.0)
        value, a, b = self._local(covariance, variance_f, variance_m, mask)
        return value, self._gradient(m, mean_f, mean_m, a, b, scale, mask)

    def _local(
        self, covariance: Tensor, variance_f: Tensor, variance_m: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Value, and the factors of (f - mean) and (m - mean) in its derivative per window."""
        if self._signed:
            norm = (variance_f * variance_m).sqrt_()
            similarity = covariance / norm
            a, b = norm.reciprocal_(), similarity / variance_m
        else:
            a = covariance / (variance_f * variance_m)
            similarity = covariance * a
            b = (similarity / variance_m).mul_(2.0)
            a.mul_(2.0)
        if mask is None:
            total = float(similarity.numel())
            return 1.0 - similarity.mean(), a.mul_(1.0 / total), b.mul_(1.0 / total)
        total = float(mask.expand(similarity.shape).sum()) + 1e-12
        value = 1.0 - (similarity * mask).sum() / total
        return value, a.mul_(mask).mul_(1.0 / total), b.mul_(mask).mul_(1.0 / total)

    def _gradient(
        self,
        m: Tensor,
        mean_f: Tensor,
        mean_m: Tensor,
        a: Tensor,
        b: Tensor,
        scale: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Gathers over all windows that contain a voxel: three box sums.

        The derivative of a window's similarity by one of its voxels is
        a (f - mean f) - b (m - mean m), divided by the window's count.
        """
        a.mul_(scale)
        b.mul_(scale)
        rest = (b * mean_m).addcmul_(a, mean_f, value=-1.0)
        gradient = box_sum(a, self._radius).mul_(self._image)
        gradient.addcmul_(box_sum(b, self._radius), m, value=-1.0)
        gradient.add_(box_sum(rest, self._radius)).neg_()
        return gradient if mask is None else gradient.mul_(mask)
