"""Mutual information with a Parzen window, for any two contrasts."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import kernels
from .base import Similarity, check_images, full, taped


class MutualInformation(Similarity):
    """Negative mutual information of the intensities.

    Mattes et al. 2003, doi:10.1109/TMI.2003.809072: the joint histogram takes the fixed image by
    its bin and spreads the moved one over four bins with a cubic B-spline, so that it changes
    smoothly with the moved image. All samples are alike: points (B, C, N, 1, 1) do as well as
    whole images. Channels are pooled into one histogram only if there is one channel; several are
    averaged.

    Convention:
        Intensities run from 0 to 1 (`rescale_intensity`); what lies beyond is cut off.

    Args:
        bins: Bins of either image.
        normalized: Use the normalised form (H(f) + H(m)) / H(f, m) - 1 (Studholme 1999,
            doi:10.1016/S0031-3203(98)00091-0), which depends less on the overlap.
    """

    def __init__(self, bins: int = 32, normalized: bool = False) -> None:
        self.bins, self.normalized = int(bins), normalized

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`. Its autograd gradient is the analytic one."""
        return taped(self, fixed, moved, mask)

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and analytic gradient; see `Similarity`."""
        check_images(fixed, moved, mask)
        fixed, moved = full(fixed), full(moved)
        weight = None if mask is None else mask.to(moved.dtype).expand(moved[:, :1].shape)
        channels = fixed.shape[1]
        value = torch.zeros((), dtype=moved.dtype, device=moved.device)
        gradient = torch.empty_like(moved)
        for c in range(channels):
            w = None if weight is None else weight.reshape(-1)
            one, slope = self._channel(fixed[:, c].reshape(-1), moved[:, c].reshape(-1), w)
            value = value + one / channels
            gradient[:, c] = slope.reshape(moved[:, c].shape) / channels
        return value, gradient

    def _channel(self, f: Tensor, m: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor]:
        bins = self.bins
        joint = kernels.joint_histogram(f, m, bins, w)
        if joint is not None:
            number = m.numel() if w is None else w.sum() + 1e-12
            value, table = self._derivative(joint / number)
            fused = kernels.histogram_slope(f, m, table * ((bins - 5) / number), w)
            if fused is not None:
                return value.to(m.dtype), fused
        row = (f.clamp(0.0, 1.0) * (bins - 1) + 0.5).long().mul_(bins)
        # Two bins on either side hold the tails of the spline.
        position = m.clamp(0.0, 1.0) * (bins - 5) + 2.0
        start = position.floor()
        offset = position - start
        index = row + start.long() - 1
        total = float(m.numel()) if w is None else float(w.sum()) + 1e-12
        joint = torch.zeros(bins * bins, dtype=torch.float64, device=m.device)
        for k, kernel in enumerate(_spline(offset)):
            kernel = kernel if w is None else kernel * w
            joint += torch.bincount(index + k, kernel, minlength=bins * bins)
        value, table = self._derivative((joint / total).reshape(bins, bins))
        table = table.to(m.dtype).reshape(-1)
        slope = torch.zeros_like(m)
        for k, kernel in enumerate(_spline_slope(offset)):
            slope.addcmul_(kernel, table[index + k])
        slope.mul_((bins - 5) / total)
        slope.mul_((m > 0.0) & (m < 1.0))
        return value.to(m.dtype), slope if w is None else slope.mul_(w)

    def _derivative(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Value and its derivative by each entry of the joint histogram."""
        log_joint = joint.clamp(min=1e-12).log()
        rows, columns = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
        log_rows, log_columns = rows.clamp(min=1e-12).log(), columns.clamp(min=1e-12).log()
        if not self.normalized:
            table = log_joint - log_rows - log_columns
            # The fixed marginal does not depend on the moved image, so its term is a constant
            # along a row; the spline's weights sum to one, which removes constants.
            return -(joint * table).sum(), -table
        single = -(rows * log_rows).sum() - (columns * log_columns).sum()
        together = -(joint * log_joint).sum().clamp(max=-1e-12)
        ratio = single / together
        return 1.0 - ratio, (log_columns - ratio * log_joint) / together


def _spline(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cubic B-spline weights of the bins at -1, 0, 1, 2 from the bin below, for 0 <= t < 1."""
    s = 1.0 - t
    return (
        s**3 / 6.0,
        2.0 / 3.0 - t * t + 0.5 * t**3,
        2.0 / 3.0 - s * s + 0.5 * s**3,
        t**3 / 6.0,
    )


def _spline_slope(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of `_spline` with respect to t."""
    s = 1.0 - t
    return (-0.5 * s * s, -2.0 * t + 1.5 * t * t, 2.0 * s - 1.5 * s * s, 0.5 * t * t)
