"""Trilinear sampling with coordinates made in the kernel, and the force of a similarity."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .volumes import OPTIONS, POINTS, batch_stride, blocks, common_batch, dense, on_device


@triton.jit
def _axis_taps(coordinate, size):
    """Lower and upper neighbour along an axis and the weight of the upper; the edge repeats.

    The order of the two bounds sends NaN to 0, so that no address leaves the image.
    """
    coordinate = tl.minimum(tl.maximum(coordinate, 0.0), size - 1.0)
    lower = tl.floor(coordinate)
    first = lower.to(tl.int32)
    return first, tl.minimum(first + 1, size - 1), coordinate - lower


@triton.jit
def _matrix_row(matrix, row, c0, c1, c2):
    """One coordinate of a 3 x 4 matrix times (c0, c1, c2, 1)."""
    m = matrix + 4 * row
    return tl.load(m) * c0 + tl.load(m + 1) * c1 + tl.load(m + 2) * c2 + tl.load(m + 3)


@triton.jit
def _trilinear(volume, z0, z1, y0, y1, x0, x1, wz, wy, wx, s0, s1, valid):
    """Value between the eight neighbours of a point in one volume of strides s0, s1, 1."""
    a, b, c, d = z0 * s0 + y0 * s1, z0 * s0 + y1 * s1, z1 * s0 + y0 * s1, z1 * s0 + y1 * s1
    v000 = tl.load(volume + a + x0, valid, other=0.0).to(tl.float32)
    v001 = tl.load(volume + a + x1, valid, other=0.0).to(tl.float32)
    v010 = tl.load(volume + b + x0, valid, other=0.0).to(tl.float32)
    v011 = tl.load(volume + b + x1, valid, other=0.0).to(tl.float32)
    v100 = tl.load(volume + c + x0, valid, other=0.0).to(tl.float32)
    v101 = tl.load(volume + c + x1, valid, other=0.0).to(tl.float32)
    v110 = tl.load(volume + d + x0, valid, other=0.0).to(tl.float32)
    v111 = tl.load(volume + d + x1, valid, other=0.0).to(tl.float32)
    low = (v000 * (1.0 - wx) + v001 * wx) * (1.0 - wy) + (v010 * (1.0 - wx) + v011 * wx) * wy
    high = (v100 * (1.0 - wx) + v101 * wx) * (1.0 - wy) + (v110 * (1.0 - wx) + v111 * wx) * wy
    return low * (1.0 - wz) + high * wz


#: Sizes that the compiler takes as they come: one machine code for all levels of a pyramid.
_SIZES = ["image_stride", "source_stride", "channels", "n0", "n1", "n2", "m1", "m2", "voxels"]


@triton.jit(do_not_specialize=_SIZES)
def _sample_kernel(
    image, source, matrix, scale, out, inside, image_stride, source_stride,
    channels, n0, n1, n2, m1, m2, voxels,
    displaced: tl.constexpr, transformed: tl.constexpr, scaled: tl.constexpr,
    added: tl.constexpr, counted: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Samples (n0, n1, n2) images at `voxels` points, laid out as (.., m1, m2).

    The points are read (`source`), or are voxel + displacement (`displaced`), the displacement
    times a scalar (`scaled`); then an affine matrix is applied (`transformed`). `added` puts the
    displacement on top of the samples: composition. `counted` writes where the image is.
    """
    item = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * block + tl.arange(0, block)
    valid = index < voxels
    # 64 bits wherever channels or batches are skipped: features pass 2^31 elements early.
    source += item * source_stride
    step = tl.full((), 1, tl.int64) * voxels
    u0 = tl.load(source + index, valid, other=0.0).to(tl.float32)
    u1 = tl.load(source + step + index, valid, other=0.0).to(tl.float32)
    u2 = tl.load(source + 2 * step + index, valid, other=0.0).to(tl.float32)
    if scaled:
        factor = tl.load(scale).to(tl.float32)
        u0, u1, u2 = u0 * factor, u1 * factor, u2 * factor
    c0, c1, c2 = u0, u1, u2
    if displaced:
        rows = index // m2
        c0 += (rows // m1).to(tl.float32)
        c1 += (rows % m1).to(tl.float32)
        c2 += (index % m2).to(tl.float32)
    if transformed:
        q0 = _matrix_row(matrix, 0, c0, c1, c2)
        q1 = _matrix_row(matrix, 1, c0, c1, c2)
        q2 = _matrix_row(matrix, 2, c0, c1, c2)
        c0, c1, c2 = q0, q1, q2
    if counted:
        # As `geometry.sampling.inside_image`: half a voxel around the centres, and a tolerance.
        here = (c0 >= -0.501) & (c0 <= n0 - 1 + 0.501) & (c1 >= -0.501) & (c1 <= n1 - 1 + 0.501)
        here = here & (c2 >= -0.501) & (c2 <= n2 - 1 + 0.501)
        tl.store(inside + item * voxels + index, here.to(tl.float32), valid)
    z0, z1, wz = _axis_taps(c0, n0)
    y0, y1, wy = _axis_taps(c1, n1)
    x0, x1, wx = _axis_taps(c2, n2)
    volume = image + item * image_stride
    out += item * channels * step
    for channel in range(channels):
        value = _trilinear(volume, z0, z1, y0, y1, x0, x1, wz, wy, wx, n1 * n2, n2, valid)
        if added:
            value += tl.where(channel == 0, u0, tl.where(channel == 1, u1, u2))
        tl.store(out + index, value, valid)
        volume += n0 * n1 * n2
        out += step


@triton.jit(do_not_specialize=["channels", "n0", "n1", "n2", "voxels"])
def _force_kernel(moved, slope, out, f0, f1, f2, channels, n0, n1, n2, voxels, block: tl.constexpr):
    """Central differences inside, one-sided at the ends, times the slope, over all channels."""
    item = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * block + tl.arange(0, block)
    valid = index < voxels
    x = index % n2
    y = (index // n2) % n1
    z = index // (n1 * n2)
    # Offsets to the neighbours; 0 at an end, where the difference spans one voxel, not two.
    back0, ahead0 = tl.where(z > 0, n1 * n2, 0), tl.where(z < n0 - 1, n1 * n2, 0)
    back1, ahead1 = tl.where(y > 0, n2, 0), tl.where(y < n1 - 1, n2, 0)
    back2, ahead2 = tl.where(x > 0, 1, 0), tl.where(x < n2 - 1, 1, 0)
    h0 = tl.where((back0 > 0) & (ahead0 > 0), 0.5, 1.0)
    h1 = tl.where((back1 > 0) & (ahead1 > 0), 0.5, 1.0)
    h2 = tl.where((back2 > 0) & (ahead2 > 0), 0.5, 1.0)
    g0 = tl.zeros((block,), tl.float32)
    g1 = tl.zeros((block,), tl.float32)
    g2 = tl.zeros((block,), tl.float32)
    step = tl.full((), 1, tl.int64) * voxels
    moved += item * channels * step
    slope += item * channels * step
    for _ in range(channels):
        s = tl.load(slope + index, valid, other=0.0).to(tl.float32)
        here = moved + index
        d0 = tl.load(here + ahead0, valid, other=0.0).to(tl.float32)
        d1 = tl.load(here + ahead1, valid, other=0.0).to(tl.float32)
        d2 = tl.load(here + ahead2, valid, other=0.0).to(tl.float32)
        g0 += (d0 - tl.load(here - back0, valid, other=0.0).to(tl.float32)) * h0 * s
        g1 += (d1 - tl.load(here - back1, valid, other=0.0).to(tl.float32)) * h1 * s
        g2 += (d2 - tl.load(here - back2, valid, other=0.0).to(tl.float32)) * h2 * s
        moved += step
        slope += step
    out += item * 3 * step
    tl.store(out + index, g0 * f0, valid)
    tl.store(out + step + index, g1 * f1, valid)
    tl.store(out + 2 * step + index, g2 * f2, valid)


def sample_volumes(
    image: Tensor,
    source: Tensor,
    matrix: Tensor | None = None,
    scale: Tensor | None = None,
    displaced: bool = False,
    added: bool = False,
    counted: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Starts the sampling kernel; see `operations` for what the forms mean."""
    image, source = dense(image), dense(source)
    batch, shape, out_shape = common_batch(image, source), image.shape[2:], source.shape[2:]
    dtype = torch.promote_types(image.dtype, source.dtype) if displaced else image.dtype
    out = torch.empty((batch, image.shape[1], *out_shape), dtype=dtype, device=image.device)
    inside = None
    if counted:
        inside = torch.empty((batch, 1, *out_shape), dtype=torch.float32, device=image.device)
    voxels = out_shape.numel()
    with on_device(image):
        _sample_kernel[(blocks(voxels, POINTS), batch)](
            image, source, image if matrix is None else matrix, image if scale is None else scale,
            out, out if inside is None else inside, batch_stride(image), batch_stride(source),
            image.shape[1], *shape, out_shape[1], out_shape[2], voxels,
            displaced=displaced, transformed=matrix is not None, scaled=scale is not None,
            added=added, counted=counted, block=POINTS, **OPTIONS,
        )  # fmt: skip
    return out, inside


def force(moved: Tensor, slope: Tensor, factors: tuple[float, float, float]) -> Tensor:
    """Starts the force kernel; see `operations.force`."""
    moved, slope = moved.contiguous(), slope.contiguous()
    batch, channels, *shape = moved.shape
    out = torch.empty((batch, 3, *shape), dtype=torch.float32, device=moved.device)
    voxels = moved.shape[2:].numel()
    with on_device(moved):
        _force_kernel[(blocks(voxels, POINTS), batch)](
            moved, slope, out, *factors, channels, *shape, voxels, block=POINTS, **OPTIONS
        )
    return out
