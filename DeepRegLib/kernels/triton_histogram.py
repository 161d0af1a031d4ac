"""Joint histogram of two images with a cubic B-spline window, and the slope that it gives."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .volumes import BLOCK, OPTIONS, blocks, on_device

#: Voxels that enter a histogram at once, the inner length of the matrix product: the two factors
#: (bins x 32) of the usual 32 bins fit into registers.
CHUNK = 32
#: Programs over which the voxels are spread: several for each multiprocessor of a large GPU, and
#: still few enough that the histograms of all are a small array.
PROGRAMS = 512


@triton.jit
def _bin_of_fixed(f, bins):
    """Bin of the fixed image: the nearest one."""
    return (tl.minimum(tl.maximum(f, 0.0), 1.0) * (bins - 1) + 0.5).to(tl.int32)


@triton.jit
def _place_of_moved(m, bins):
    """Continuous bin of the moved image; two bins on either side hold the spline's tails."""
    return tl.minimum(tl.maximum(m, 0.0), 1.0) * (bins - 5) + 2.0


@triton.jit(do_not_specialize=["samples", "per_program", "bins"])
def _joint_kernel(
    fixed, moved, mask, out, samples, per_program, bins,
    masked: tl.constexpr, precision: tl.constexpr, padded: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    """Histogram of one share of the samples, kept in registers until the end.

    A histogram is the product of two matrices, samples by fixed bins (ones and zeros) and samples
    by moved bins (the spline's weights). Unlike atomic additions it does not slow down where most
    samples fall into one bin, as the background does, and gives the same sums every time.
    """
    rows = tl.arange(0, padded)
    total = tl.zeros((padded, padded), tl.float32)
    begin = tl.program_id(0).to(tl.int64) * per_program
    for start in range(0, per_program, chunk):
        index = begin + start + tl.arange(0, chunk)
        valid = index < samples
        f = tl.load(fixed + index, valid, other=0.0).to(tl.float32)
        m = tl.load(moved + index, valid, other=0.0).to(tl.float32)
        weight = valid.to(tl.float32)
        if masked:
            weight = tl.load(mask + index, valid, other=0.0).to(tl.float32)
        ones = (rows[:, None] == _bin_of_fixed(f, bins)[None, :]).to(tl.float32)
        distance = tl.abs(_place_of_moved(m, bins)[:, None] - rows[None, :].to(tl.float32))
        near = 2.0 / 3.0 - distance * distance + 0.5 * distance * distance * distance
        rest = tl.maximum(2.0 - distance, 0.0)
        spline = tl.where(distance < 1.0, near, rest * rest * rest / 6.0)
        total = tl.dot(ones, spline * weight[:, None], total, input_precision=precision)
    place = rows[:, None] * padded + rows[None, :]
    tl.store(out + tl.program_id(0) * padded * padded + place, total)


@triton.jit(do_not_specialize=["samples", "bins"])
def _slope_kernel(
    fixed, moved, mask, table, out, samples, bins, masked: tl.constexpr, block: tl.constexpr
):
    """Derivative of the moved image's spline times the table of each bin."""
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    valid = index < samples
    f = tl.load(fixed + index, valid, other=0.0).to(tl.float32)
    m = tl.load(moved + index, valid, other=0.0).to(tl.float32)
    place = _place_of_moved(m, bins)
    start = tl.floor(place)
    t = place - start
    s = 1.0 - t
    entry = table + _bin_of_fixed(f, bins) * bins + start.to(tl.int32) - 1
    slope = -0.5 * s * s * tl.load(entry, valid, other=0.0)
    slope += (1.5 * t * t - 2.0 * t) * tl.load(entry + 1, valid, other=0.0)
    slope += (2.0 * s - 1.5 * s * s) * tl.load(entry + 2, valid, other=0.0)
    slope += 0.5 * t * t * tl.load(entry + 3, valid, other=0.0)
    slope = tl.where((m > 0.0) & (m < 1.0), slope, 0.0)
    if masked:
        slope = slope * tl.load(mask + index, valid, other=0.0).to(tl.float32)
    tl.store(out + index, slope, valid)


def joint_histogram(fixed: Tensor, moved: Tensor, mask: Tensor | None, bins: int) -> Tensor:
    """Starts the histogram kernel; see `operations.joint_histogram`."""
    fixed, moved = fixed.contiguous(), moved.contiguous()
    samples = moved.numel()
    padded = max(16, triton.next_power_of_2(bins))  # the least and the steps of a matrix product
    share = -(-samples // (PROGRAMS * CHUNK)) * CHUNK
    programs = -(-samples // share)
    parts = torch.empty((programs, padded, padded), dtype=torch.float32, device=moved.device)
    # Three products with split factors keep single precision on NVIDIA's matrix units.
    precision = "ieee" if torch.version.hip else "tf32x3"
    with on_device(moved):
        _joint_kernel[(programs,)](
            fixed, moved, moved if mask is None else mask.contiguous(), parts, samples, share,
            bins, masked=mask is not None, precision=precision, padded=padded, chunk=CHUNK,
            **OPTIONS,
        )  # fmt: skip
    return parts.sum(0, dtype=torch.float64)[:bins, :bins]


def histogram_slope(fixed: Tensor, moved: Tensor, mask: Tensor | None, table: Tensor) -> Tensor:
    """Starts the slope kernel; see `operations.histogram_slope`."""
    fixed, moved = fixed.contiguous(), moved.contiguous()
    table = table.to(torch.float32).contiguous()
    out = torch.empty(moved.shape, dtype=torch.float32, device=moved.device)
    with on_device(moved):
        _slope_kernel[(blocks(moved.numel()),)](
            fixed, moved, moved if mask is None else mask.contiguous(), table, out,
            moved.numel(), table.shape[0], masked=mask is not None, block=BLOCK, **OPTIONS,
        )  # fmt: skip
    return out
