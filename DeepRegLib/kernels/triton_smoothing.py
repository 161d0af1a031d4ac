"""Separable convolution with the edge repeated, and the longest vector of a field."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .volumes import BLOCK, OPTIONS, blocks, on_device


@triton.jit(do_not_specialize=["radius", "size", "stride", "voxels"])
def _convolve_kernel(image, out, kernel, radius, size, stride, voxels, block: tl.constexpr):
    """Convolves along an axis of `size` voxels, `stride` elements apart.

    The radius is no constant of the kernel: every width of a Gaussian would compile anew.
    """
    index = tl.program_id(0) * block + tl.arange(0, block)
    volume = tl.program_id(1).to(tl.int64) * voxels
    valid = index < voxels
    place = (index // stride) % size
    here = image + volume + index
    total = tl.load(here, valid, other=0.0).to(tl.float32) * tl.load(kernel + radius)
    for k in range(1, radius + 1):
        back = tl.minimum(place, k) * stride
        ahead = tl.minimum(size - 1 - place, k) * stride
        pair = tl.load(here - back, valid, other=0.0).to(tl.float32)
        pair += tl.load(here + ahead, valid, other=0.0).to(tl.float32)
        total += pair * tl.load(kernel + radius + k)
    tl.store(out + volume + index, total, valid)


@triton.jit(do_not_specialize=["voxels"])
def _longest_kernel(field, partial, f0, f1, f2, voxels, block: tl.constexpr):
    """Largest squared length of the vectors of one block, components times f0, f1, f2."""
    item = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * block + tl.arange(0, block)
    valid = index < voxels
    step = tl.full((), 1, tl.int64) * voxels
    field += item * 3 * step + index
    u0 = tl.load(field, valid, other=0.0).to(tl.float32) * f0
    u1 = tl.load(field + step, valid, other=0.0).to(tl.float32) * f1
    u2 = tl.load(field + 2 * step, valid, other=0.0).to(tl.float32) * f2
    largest = tl.max(u0 * u0 + u1 * u1 + u2 * u2)
    tl.store(partial + item * tl.num_programs(0) + tl.program_id(0), largest)


def convolve(image: Tensor, kernels: Sequence[Sequence[float] | None]) -> Tensor:
    """Starts one pass for each axis with a kernel; see `operations.convolve`."""
    image = original = image.contiguous()
    shape, voxels = image.shape[2:], image.shape[2:].numel()
    volumes = image.shape[0] * image.shape[1]
    spare = None
    with on_device(image):
        for axis, weights in enumerate(kernels):
            if weights is None or shape[axis] == 1:
                continue
            # Two buffers take turns; the image itself is never written.
            out = torch.empty_like(image) if spare is None else spare
            _convolve_kernel[(blocks(voxels), volumes)](
                image, out, _weights(tuple(weights), image.device), len(weights) // 2,
                shape[axis], shape[axis + 1 :].numel(), voxels, block=BLOCK, **OPTIONS,
            )  # fmt: skip
            spare = None if image is original else image
            image = out
    return image


def longest(field: Tensor, factors: tuple[float, float, float]) -> Tensor:
    """Starts the search for the longest vector; see `operations.max_norm`."""
    field = field.contiguous()
    voxels = field.shape[2:].numel()
    grid = (blocks(voxels), field.shape[0])
    partial = torch.empty(grid[0] * grid[1], dtype=torch.float32, device=field.device)
    with on_device(field):
        _longest_kernel[grid](field, partial, *factors, voxels, block=BLOCK, **OPTIONS)
    return partial.max().sqrt()


@functools.lru_cache(maxsize=256)
def _weights(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """Weights on the device; kept, as a copy from the host would stall a captured step."""
    return torch.tensor(weights, dtype=torch.float32, device=device)
