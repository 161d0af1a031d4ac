"""LNCC with its analytic gradient: separable box sums over slabs, so that little is stored.

The derivative of a window's similarity by one of its voxels is a (f - mean f) - b (m - mean m)
over the window's count, with a and b constant in the window (`losses/lncc.py`). Gathering over the
windows that contain a voxel takes box sums of a, b and b mean m - a mean f.

One slab of planes goes through six passes, alternating between two buffers: products summed along
the last axis, sums along the middle one, along the first with the factors a and b at once; then
the same three axes for the gradient. Next to the gradient only the slab's buffers are stored.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .volumes import BLOCK, OPTIONS, batch_stride, blocks, dense, on_device

#: Planes whose gradient is made at once. Each pass adds up to four radii of planes at the ends,
#: so thinner slabs store less and repeat more: 64 repeat an eighth for windows of radius 2.
SLAB = 64
#: Floor of the variances, as in `losses/lncc.py`.
_FLOOR = tl.constexpr(1e-4)


#: Sizes that the compiler takes as they come: one machine code for all levels and slabs.
_PLANES = ["first", "in_first", "in_last", "counted_first", "counted_last"]


@triton.jit(do_not_specialize=["first", "area", "n2", "count", "planes_stride"])
def _products_kernel(
    fixed, moved, mask, fixed_mean, moved_mean, out, first, area, n2, count, planes_stride,
    radius: tl.constexpr, masked: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Sums f, m, ff, mm, fm (and the weights) along the last axis; images less their means."""
    index = tl.program_id(0) * block + tl.arange(0, block)
    voxel = first * area + index
    x = index % n2
    mean_f, mean_m = tl.load(fixed_mean), tl.load(moved_mean)
    f_sum = tl.zeros((block,), tl.float32)
    m_sum = tl.zeros((block,), tl.float32)
    ff_sum = tl.zeros((block,), tl.float32)
    mm_sum = tl.zeros((block,), tl.float32)
    fm_sum = tl.zeros((block,), tl.float32)
    w_sum = tl.zeros((block,), tl.float32)
    for k in tl.static_range(-radius, radius + 1):
        here = (index < count) & (x + k >= 0) & (x + k < n2)
        f = tl.load(fixed + voxel + k, here, other=0.0).to(tl.float32) - mean_f
        m = tl.load(moved + voxel + k, here, other=0.0).to(tl.float32) - mean_m
        w = here.to(tl.float32)
        if masked:
            w = tl.load(mask + voxel + k, here, other=0.0).to(tl.float32)
            w_sum += w
        wf, wm = w * f, w * m
        f_sum += wf
        m_sum += wm
        ff_sum += wf * f
        mm_sum += wm * m
        fm_sum += wf * m
    valid = index < count
    step = tl.full((), 1, tl.int64) * planes_stride
    tl.store(out + index, f_sum, valid)
    tl.store(out + step + index, m_sum, valid)
    tl.store(out + 2 * step + index, ff_sum, valid)
    tl.store(out + 3 * step + index, mm_sum, valid)
    tl.store(out + 4 * step + index, fm_sum, valid)
    if masked:
        tl.store(out + 5 * step + index, w_sum, valid)


@triton.jit(do_not_specialize=["size", "stride", "count", "planes_stride"])
def _box_kernel(
    image, out, size, stride, count, planes_stride, radius: tl.constexpr, block: tl.constexpr
):
    """Sums one of several buffers along an axis of `size` voxels, `stride` elements apart."""
    index = tl.program_id(0) * block + tl.arange(0, block)
    offset = tl.program_id(1).to(tl.int64) * planes_stride
    place = (index // stride) % size
    total = tl.zeros((block,), tl.float32)
    for k in tl.static_range(-radius, radius + 1):
        here = (index < count) & (place + k >= 0) & (place + k < size)
        total += tl.load(image + offset + index + k * stride, here, other=0.0)
    tl.store(out + offset + index, total, index < count)


@triton.jit
def _planes_sum(image, index, plane, low, high, area, valid, radius: tl.constexpr):
    """Box sum of a buffer along its planes, of which `low` to `high` - 1 are there."""
    total = tl.zeros_like(index).to(tl.float32)
    for k in tl.static_range(-radius, radius + 1):
        here = valid & (plane + k >= low) & (plane + k < high)
        total += tl.load(image + index + k * area, here, other=0.0)
    return total


@triton.jit
def _window_count(index, plane, n0, n1, n2, radius: tl.constexpr):
    """Voxels of the window around a voxel, which the edge of the image cuts."""
    x, y = index % n2, (index // n2) % n1
    depth = tl.minimum(plane + radius, n0 - 1) - tl.maximum(plane - radius, 0) + 1
    height = tl.minimum(y + radius, n1 - 1) - tl.maximum(y - radius, 0) + 1
    width = tl.minimum(x + radius, n2 - 1) - tl.maximum(x - radius, 0) + 1
    return (depth * height * width).to(tl.float32)


@triton.jit(do_not_specialize=[*_PLANES, "n0", "n1", "n2", "count", "planes_stride"])
def _factors_kernel(
    sums, out, mask, share, partial, first, in_first, in_last, counted_first, counted_last,
    n0, n1, n2, count, planes_stride,
    radius: tl.constexpr, masked: tl.constexpr, signed: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Sums along the first axis; the window's similarity, a, b and b mean m - a mean f.

    `first` is the plane of the first output, `in_first` that of the first input. Windows of the
    planes `counted_first` to `counted_last` - 1 enter the value, so that no slab counts twice.
    """
    index = tl.program_id(0) * block + tl.arange(0, block)
    valid = index < count
    area = n1 * n2
    plane = first + index // area
    at = index + (first - in_first) * area
    step = tl.full((), 1, tl.int64) * planes_stride
    s_f = _planes_sum(sums, at, plane, in_first, in_last, area, valid, radius)
    s_m = _planes_sum(sums + step, at, plane, in_first, in_last, area, valid, radius)
    s_ff = _planes_sum(sums + 2 * step, at, plane, in_first, in_last, area, valid, radius)
    s_mm = _planes_sum(sums + 3 * step, at, plane, in_first, in_last, area, valid, radius)
    s_fm = _planes_sum(sums + 4 * step, at, plane, in_first, in_last, area, valid, radius)
    weight = tl.load(share).to(tl.float32)
    if masked:
        number = _planes_sum(sums + 5 * step, at, plane, in_first, in_last, area, valid, radius)
        weight = weight * tl.load(mask + first * area + index, valid, other=0.0).to(tl.float32)
    else:
        number = _window_count(index, plane, n0, n1, n2, radius)
    scale = 1.0 / tl.maximum(number, 1e-6)
    mean_f, mean_m = s_f * scale, s_m * scale
    var_f = tl.maximum(s_ff * scale - mean_f * mean_f, 0.0) + _FLOOR
    var_m = tl.maximum(s_mm * scale - mean_m * mean_m, 0.0) + _FLOOR
    covariance = s_fm * scale - mean_f * mean_m
    if signed:
        a = 1.0 / tl.sqrt(var_f * var_m)
        similarity = covariance * a
        b = similarity / var_m
    else:
        a = covariance / (var_f * var_m)
        similarity = covariance * a
        b = 2.0 * similarity / var_m
        a = 2.0 * a
    counted = valid & (plane >= counted_first) & (plane < counted_last)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(counted, similarity * weight, 0.0)))
    a = a * weight * scale
    b = b * weight * scale
    tl.store(out + index, a, valid)
    tl.store(out + step + index, b, valid)
    tl.store(out + 2 * step + index, b * mean_m - a * mean_f, valid)


@triton.jit(do_not_specialize=[*_PLANES[:3], "area", "count", "planes_stride"])
def _gradient_kernel(
    sums, fixed, moved, mask, fixed_mean, moved_mean, out, first, in_first, in_last,
    area, count, planes_stride,
    radius: tl.constexpr, masked: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Sums along the first axis and puts the gradient together."""
    index = tl.program_id(0) * block + tl.arange(0, block)
    valid = index < count
    plane = first + index // area
    at = index + (first - in_first) * area
    step = tl.full((), 1, tl.int64) * planes_stride
    a = _planes_sum(sums, at, plane, in_first, in_last, area, valid, radius)
    b = _planes_sum(sums + step, at, plane, in_first, in_last, area, valid, radius)
    rest = _planes_sum(sums + 2 * step, at, plane, in_first, in_last, area, valid, radius)
    voxel = first * area + index
    f = tl.load(fixed + voxel, valid, other=0.0).to(tl.float32) - tl.load(fixed_mean)
    m = tl.load(moved + voxel, valid, other=0.0).to(tl.float32) - tl.load(moved_mean)
    gradient = b * m - a * f - rest
    if masked:
        gradient = gradient * tl.load(mask + voxel, valid, other=0.0).to(tl.float32)
    tl.store(out + voxel, gradient, valid)


def lncc(
    fixed: Tensor, moved: Tensor, mask: Tensor | None, radius: int, signed: bool
) -> tuple[Tensor, Tensor]:
    """Starts the passes of LNCC; see `operations.lncc`."""
    fixed, moved = fixed.contiguous(), moved.contiguous()
    batch, channels, *_ = moved.shape
    gradient = torch.empty(moved.shape, dtype=torch.float32, device=moved.device)
    means = (fixed.mean(dtype=torch.float32), moved.mean(dtype=torch.float32))
    if mask is None:
        share = torch.full((), 1.0 / moved.numel(), device=moved.device)
    else:
        mask = dense(mask)
        repeats = moved.numel() // mask.numel()
        share = 1.0 / (mask.sum(dtype=torch.float32) * repeats + 1e-12)
    buffers = _buffers(moved, radius, masked=mask is not None)
    partials: list[Tensor] = []
    with on_device(moved):
        for item in range(batch):
            weights = None if mask is None else mask[item if batch_stride(mask) else 0, 0]
            for channel in range(channels):
                pair = (fixed[item, channel], moved[item, channel])
                partials += _one_volume(
                    pair, weights, gradient[item, channel], means, share, buffers, radius, signed
                )
    return 1.0 - torch.cat(partials).sum(dtype=torch.float64).float(), gradient


def _buffers(moved: Tensor, radius: int, masked: bool) -> Tensor:
    """Two sets of sums of one slab, shape (2, sums, planes, H, W)."""
    depth, *plane = moved.shape[2:]
    planes = min(depth, SLAB + 4 * radius)
    return torch.empty((2, 6 if masked else 5, planes, *plane), dtype=torch.float32,
                       device=moved.device)  # fmt: skip


def _one_volume(
    pair: tuple[Tensor, Tensor],
    mask: Tensor | None,
    gradient: Tensor,
    means: tuple[Tensor, Tensor],
    share: Tensor,
    buffers: Tensor,
    radius: int,
    signed: bool,
) -> list[Tensor]:
    """Runs the six passes over every slab of a volume; returns the parts of the similarity."""
    fixed, moved = pair
    weights = moved if mask is None else mask
    n0, n1, n2 = moved.shape
    area, here, there = n1 * n2, buffers[0], buffers[1]
    stride, masked, partials = buffers[0, 0].numel(), mask is not None, []
    same = {"radius": radius, "block": BLOCK, **OPTIONS}
    for start in range(0, n0, SLAB):
        end = min(start + SLAB, n0)
        # Planes of the windows that contain the slab's voxels, and those that the windows see.
        low, high = max(start - radius, 0), min(end + radius, n0)
        first, last = max(low - radius, 0), min(high + radius, n0)
        seen, windows, count = (last - first) * area, (high - low) * area, (end - start) * area
        _products_kernel[(blocks(seen),)](
            fixed, moved, weights, *means, here, first, area, n2, seen, stride,
            masked=masked, **same,
        )  # fmt: skip
        _box_kernel[(blocks(seen), buffers.shape[1])](here, there, n1, n2, seen, stride, **same)
        partial = torch.empty(blocks(windows), dtype=torch.float32, device=moved.device)
        _factors_kernel[(blocks(windows),)](
            there, here, weights, share, partial, low, first, last, start, end, n0, n1, n2,
            windows, stride, masked=masked, signed=signed, **same,
        )  # fmt: skip
        partials.append(partial)
        _box_kernel[(blocks(windows), 3)](here, there, n2, 1, windows, stride, **same)
        _box_kernel[(blocks(windows), 3)](there, here, n1, n2, windows, stride, **same)
        _gradient_kernel[(blocks(count),)](
            here, fixed, moved, weights, *means, gradient, start, low, high, area, count, stride,
            masked=masked, **same,
        )  # fmt: skip
    return partials
