"""Squared local correlation with an analytic gradient by box sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from .base import BoundSimilarity, Similarity, check_images, full, taped
from .blocks import Block, block_sum, spread_blocks
from .box import box_sum

#: Variance below which a window counts as constant, for intensities of order one.
_FLOOR = 1e-4


class LNCC(Similarity):
    """One minus the mean squared correlation in a cube around every voxel.

    Avants et al. 2008, doi:10.1016/j.media.2007.06.004, eq. 5. With a mask the windows see only
    voxels inside it (weights within the window), so what lies outside has no influence and gets no
    gradient. Windows without contrast count as uncorrelated.

    With blocks, windows are centered on blocks of voxels in place of every voxel, and their half
    width counts blocks: every voxel still enters, but the local sums live on a grid eight times
    smaller (for blocks of two), which takes a quarter of the time.

    Convention:
        Intensities should be of order one: a floor of 1e-4 is added to the variances.

    Args:
        radius: Half width of the cube in blocks.
        signed: Use the correlation itself, so that inverted contrast is not rewarded.
        block: Voxels of a block along each tensor axis; must divide the shape of the images.
    """

    local = True

    def __init__(self, radius: int = 2, signed: bool = False, block: Block = (1, 1, 1)) -> None:
        self.radius, self.signed, self.block = int(radius), signed, block

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`. Its autograd gradient is the analytic one."""
        return taped(self, fixed, moved, mask)

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and analytic gradient; see `Similarity`."""
        check_images(fixed, moved, mask)
        return self.bind(fixed, mask).value_and_gradient(moved)

    def value_and_both_gradients(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns value and both gradients from one set of local sums; see `Similarity`."""
        check_images(fixed, moved, mask)
        window = _Window.of(fixed, mask, self)
        f, m = _Local.of(fixed, window), _Local.of(moved, window)
        value, a, by_f, by_m = self._compare(f, m, window)
        return (
            value,
            _gradient(f, m.image, m.mean, a, by_f, window),
            _gradient(m, f.image, f.mean, a, by_m, window),
        )

    def bind(self, fixed: Tensor, mask: Tensor | None = None) -> BoundSimilarity:
        """Returns the similarity to one image, with its local means and variances kept."""
        return _BoundLNCC(self, fixed, mask)

    def _compare(
        self, f: _Local, m: _Local, window: _Window
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Value, and the factors of both images in its derivative per window.

        The derivative of a window's similarity by one of its voxels m is a (f - mean f) -
        b (m - mean m), divided by the window's count, and the same with f and m exchanged.
        """
        covariance = window.average(f.image * m.weighted)
        covariance.addcmul_(f.mean, m.mean, value=-1.0)
        if self.signed:
            a = (f.variance * m.variance).rsqrt_()
            similarity = covariance * a
            factor = 1.0
        else:
            a = covariance / (f.variance * m.variance)
            similarity = covariance * a
            factor = 2.0
        share = window.share(similarity)
        value = 1.0 - (similarity * share).sum()
        share = share * factor
        similarity.mul_(share)
        return value, a.mul_(share), similarity / f.variance, similarity / m.variance


@dataclass(eq=False)
class _Window:
    """Local averages over the cubes, within a mask."""

    mask: Tensor | None
    count: Tensor  # of each block, weighted by the mask
    scale: Tensor  # one over the count of each window
    radius: int
    block: Block

    @classmethod
    def of(cls, image: Tensor, mask: Tensor | None, similarity: LNCC) -> _Window:
        radius, block = similarity.radius, similarity.block
        if mask is None:
            ones = torch.ones_like(image[:1, :1], dtype=torch.float32)
        else:
            ones = mask = mask.to(torch.float32)
        count = block_sum(ones, block)
        scale = 1.0 / box_sum(count, radius).clamp(min=1e-6)
        return cls(mask, count, scale, radius, block)

    def average(self, values: Tensor) -> Tensor:
        """Averages over each window what is weighted by the mask already."""
        return box_sum(block_sum(values, self.block), self.radius).mul_(self.scale)

    def gather(self, factor: Tensor) -> Tensor:
        """Sums a factor of the windows over all windows that hold a voxel, for every voxel."""
        return spread_blocks(box_sum(factor, self.radius), self.block)

    def share(self, similarity: Tensor) -> Tensor:
        """Weight of each window in the mean."""
        weight = self.count.expand(similarity.shape)
        return weight / (weight.sum() + 1e-12)


@dataclass(eq=False)
class _Local:
    """An image with its local statistics."""

    image: Tensor
    weighted: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, image: Tensor, window: _Window) -> _Local:
        image = full(image)
        # Variances from sums of squares cancel less around a mean of zero.
        image = image - image.mean()
        weighted = image if window.mask is None else image * window.mask
        mean = window.average(weighted)
        variance = window.average(weighted * image)
        variance.addcmul_(mean, mean, value=-1.0).clamp_(min=0.0).add_(_FLOOR)
        return cls(image, weighted, mean, variance)


class _BoundLNCC(BoundSimilarity):
    """LNCC to one fixed image; the fixed statistics are kept as long as the mask stays."""

    def __init__(self, similarity: LNCC, fixed: Tensor, mask: Tensor | None) -> None:
        super().__init__(similarity, fixed, mask)
        self._lncc = similarity
        # The fused kernel makes them as it goes; they are made when torch needs them.
        self._kept: tuple[_Window, _Local] | None = None

    def value_and_gradient(
        self, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and gradient; see `BoundSimilarity`."""
        lncc = self._lncc
        if lncc.block == (1, 1, 1):
            seen = self._mask if mask is None else mask
            fused = kernels.lncc(self._fixed, moved, seen, lncc.radius, lncc.signed)
            if fused is not None:
                return fused
        window, f = self._statistics(mask)
        m = _Local.of(moved, window)
        value, a, _, b = lncc._compare(f, m, window)
        return value, _gradient(m, f.image, f.mean, a, b, window)

    def _statistics(self, mask: Tensor | None) -> tuple[_Window, _Local]:
        """Returns the kept statistics of the fixed image, or those within another mask."""
        if mask is None and self._kept is not None:
            return self._kept
        window = _Window.of(self._fixed, self._mask if mask is None else mask, self._lncc)
        statistics = window, _Local.of(self._fixed, window)
        if mask is None:
            self._kept = statistics
        return statistics


def _gradient(
    one: _Local, other: Tensor, other_mean: Tensor, a: Tensor, b: Tensor, window: _Window
) -> Tensor:
    """Gathers the derivative by an image over all windows that contain a voxel: three box sums."""
    a, b = a * window.scale, b * window.scale
    rest = (b * one.mean).addcmul_(a, other_mean, value=-1.0)
    gradient = window.gather(a).mul_(other)
    gradient.addcmul_(window.gather(b), one.image, value=-1.0)
    gradient.add_(window.gather(rest)).neg_()
    return gradient if window.mask is None else gradient.mul_(window.mask)
