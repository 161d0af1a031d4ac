"""Mutual information with a Parzen window, for any two contrasts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ParameterError
from .base import Similarity, check_images, full_pair, taped

#: Coefficients of the cubic B-spline's weights at the bins -1, 0, 1, 2 from the bin below, as
#: polynomials 1, t, t², t³ of the offset 0 <= t < 1.
_SPLINE = (
    (1 / 6, -1 / 2, 1 / 2, -1 / 6),
    (2 / 3, 0.0, -1.0, 1 / 2),
    (1 / 6, 1 / 2, 1 / 2, -1 / 2),
    (0.0, 0.0, 0.0, 1 / 6),
)
#: Voxels handled at once on a CPU: their intermediate values stay in the cache.
_CHUNK = 1 << 17
#: Voxels that a derived intensity range is estimated from.
_MOST_SAMPLES = 200_000

Range = tuple[float, float]


class MutualInformation(Similarity):
    """Negative mutual information of the intensities, in nats.

    The joint histogram takes the fixed image by its bin and spreads the moved one over four bins
    with a cubic B-spline, so that it changes smoothly with the moved image. As the fixed image is
    binned, autograd gives no gradient to it. Samples and channels have a histogram each; values
    are averaged.

    Convention:
        All voxels are alike: sampled points (B, C, N, 1, 1) do as well as whole images.
        Intensities run over a known range, 0 ... 1 by default (`rescale_intensity`); what lies
        beyond it is moved to its end and gets no gradient.

    Args:
        bins: Bins of either image, at least 8.
        normalized: Use (H(f) + H(m)) / H(f, m) - 1, which depends less on the overlap.
        fixed_range: Lowest and highest intensity. None derives it from the image at each call
            (0.5th and 99.5th percentile in the mask).
        moved_range: The same of the moved image. A derived range counts as constant in the
            gradient; an optimizer is better served by a range that stays.

    Raises:
        ParameterError: If there are too few bins or a range is empty.

    References:
        Mattes et al. 2003, doi:10.1109/TMI.2003.809072;
        Thevenaz & Unser 2000, doi:10.1109/83.887976 (gradient);
        Studholme et al. 1999, doi:10.1016/S0031-3203(98)00091-0 (normalized form).
    """

    def __init__(
        self,
        bins: int = 32,
        normalized: bool = False,
        fixed_range: Range | None = (0.0, 1.0),
        moved_range: Range | None = (0.0, 1.0),
    ) -> None:
        if int(bins) < 8:
            raise ParameterError(f"Mutual information needs at least 8 bins, but got {bins}.")
        for ends in (fixed_range, moved_range):
            if ends is not None and not ends[0] < ends[1]:
                raise ParameterError(f"An intensity range goes from low to high, but got {ends}.")
        self.bins, self.normalized = int(bins), bool(normalized)
        self.fixed_range, self.moved_range = fixed_range, moved_range

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`. Its autograd gradient is the analytic one."""
        return taped(self, fixed, moved, mask)

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and analytic gradient; see `Similarity`."""
        check_images(fixed, moved, mask)
        with torch.no_grad():
            fixed, moved = full_pair(fixed, moved)
            if mask is not None:
                mask = mask.to(moved.dtype)
            count = moved.shape[0] * moved.shape[1]
            value = torch.zeros((), dtype=torch.float64, device=moved.device)
            gradient = torch.empty_like(moved, memory_format=torch.contiguous_format)
            for b in range(moved.shape[0]):
                w = None if mask is None else mask[b % mask.shape[0]].reshape(-1)
                for c in range(moved.shape[1]):
                    part, slope = self._compare(fixed[b, c].reshape(-1), moved[b, c].reshape(-1), w)
                    value += part / count
                    gradient[b, c] = slope.div_(count).reshape(moved.shape[2:])
            return value.to(moved.dtype), gradient

    def _compare(self, f: Tensor, m: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor]:
        low_f, high_f = self.fixed_range or _robust_range(f, w)
        low_m, high_m = self.moved_range or _robust_range(m, w)
        chunk = _CHUNK if m.device.type == "cpu" else m.numel()
        slices = [slice(i, i + chunk) for i in range(0, m.numel(), chunk)]
        cells = []
        for s in slices:
            unit_f = (f[s] - low_f).mul_(1.0 / (high_f - low_f)).clamp_(0.0, 1.0)
            unit_m = (m[s] - low_m).mul_(1.0 / (high_m - low_m)).clamp_(0.0, 1.0)
            cells.append(_Cells.of(unit_f, unit_m, self.bins))
        parts = [None if w is None else w[s] for s in slices]
        total = float(m.numel()) if w is None else float(w.sum()) + 1e-12
        joint = _joint_histogram(cells, parts, self.bins) / total
        value, table = self._derivative(joint)
        polynomial = _slope_polynomial(table.to(m.dtype))
        gradient = torch.empty_like(m)
        step = (self.bins - 5) / (high_m - low_m) / total
        for s, part, cell in zip(slices, parts, cells):
            slope = cell.slope(polynomial).mul_(step)
            slope.mul_((m[s] > low_m) & (m[s] < high_m))
            gradient[s] = slope if part is None else slope.mul_(part)
        return value, gradient

    def _derivative(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Value and its derivative by each entry of the joint histogram."""
        log_joint = joint.clamp(min=1e-12).log()
        rows, columns = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
        log_rows, log_columns = rows.clamp(min=1e-12).log(), columns.clamp(min=1e-12).log()
        if not self.normalized:
            # The fixed marginal does not depend on the moved image; what is constant along a row
            # drops out, as the spline's weights sum to one.
            table = log_joint - log_rows - log_columns
            return -(joint * table).sum(), -table
        single = -(rows * log_rows).sum() - (columns * log_columns).sum()
        together = (-(joint * log_joint).sum()).clamp(min=1e-12)
        ratio = single / together
        return 1.0 - ratio, (log_columns - ratio * log_joint) / together


@dataclass(frozen=True, eq=False)
class _Cells:
    """Where voxels fall in the joint histogram.

    There are `bins` rows (fixed) and bins - 4 cells along each (moved): the other bins hold the
    tails of the spline.
    """

    index: Tensor  # flat, int32
    offset: Tensor  # 0 ... 1 within the cell

    @staticmethod
    def of(unit_f: Tensor, unit_m: Tensor, bins: int) -> _Cells:
        """Makes cells from intensities 0 ... 1."""
        row = unit_f.mul_(bins - 1).add_(0.5).to(torch.int32)
        position = unit_m.mul_(bins - 5)
        start = position.to(torch.int32)
        offset = position.sub_(start)
        return _Cells(row.mul_(bins - 4).add_(start), offset)

    def slope(self, polynomial: Tensor) -> Tensor:
        """Evaluates the polynomial (3, cells) of the offset in every voxel's cell."""
        result = polynomial[2].index_select(0, self.index).mul_(self.offset)
        result.add_(polynomial[1].index_select(0, self.index)).mul_(self.offset)
        return result.add_(polynomial[0].index_select(0, self.index))


def _joint_histogram(cells: list[_Cells], weights: list[Tensor | None], bins: int) -> Tensor:
    """Sum of the spline's weights, (bins, bins), float64.

    Only the moments of the offset are summed voxel by voxel, and in double precision: single would
    lose a small weight added to the millions of a background bin.
    """
    count = bins * (bins - 4)
    moments = torch.zeros(4, count, dtype=torch.float64, device=cells[0].offset.device)
    for cell, w in zip(cells, weights):
        power = torch.ones_like(cell.offset) if w is None else w
        power, offset = power.double(), cell.offset.double()
        for k in range(4):
            moments[k] += torch.bincount(cell.index, power, minlength=count)
            power = power * offset
    spline = torch.tensor(_SPLINE, dtype=torch.float64, device=moments.device)
    spread = torch.einsum("jk,kn->jn", spline, moments).reshape(4, bins, bins - 4)
    joint = torch.zeros(bins, bins, dtype=torch.float64, device=moments.device)
    for j in range(4):
        joint[:, 1 + j : bins - 3 + j] += spread[j]
    return joint.clamp_(min=0.0)


def _slope_polynomial(table: Tensor) -> Tensor:
    """Derivative by the offset of the table spread with the spline: (3, cells) for 1, t, t²."""
    bins = table.shape[0]
    neighbors = torch.stack([table[:, 1 + j : bins - 3 + j] for j in range(4)]).flatten(1)
    spline = torch.tensor(_SPLINE, dtype=table.dtype, device=table.device)
    degree = torch.tensor([1.0, 2.0, 3.0], dtype=table.dtype, device=table.device)
    return (spline[:, 1:] * degree).T @ neighbors


def _robust_range(values: Tensor, w: Tensor | None) -> Range:
    if w is not None:
        values = values[w > 0.0]
    if values.numel() == 0:
        return 0.0, 1.0
    values = values[:: max(1, values.numel() // _MOST_SAMPLES)]
    levels = torch.tensor([0.005, 0.995], dtype=values.dtype, device=values.device)
    low, high = (float(q) for q in torch.quantile(values, levels))
    return (low, high) if low < high else (low, low + 1.0)
