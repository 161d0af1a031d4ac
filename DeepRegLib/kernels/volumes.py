"""How tensors are handed to the kernels: layout, batches that repeat, launch sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import GeometryError

#: Voxels of one program of a pass along an axis. 512 over four warps are four for each thread:
#: several loads in flight, and registers for the six sums of LNCC without spilling.
BLOCK = 512
#: Points of one program where each has eight neighbours: twice four would need 255 registers.
POINTS = 256
#: Options of every launch. Fused multiply-add is what torch's own kernels are compiled with.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def dense(tensor: Tensor) -> Tensor:
    """Returns a tensor whose volumes lie one after the other; a repeated batch stays as it is."""
    return tensor if tensor[0].is_contiguous() else tensor.contiguous()


def batch_stride(tensor: Tensor) -> int:
    """Elements from one item of the batch to the next; 0 where one item serves all."""
    return 0 if tensor.shape[0] == 1 else tensor.stride(0)


def common_batch(*tensors: Tensor) -> int:
    """Returns the batch size of tensors of which some may have one item for all.

    Raises:
        GeometryError: If they do not go together.
    """
    sizes = {t.shape[0] for t in tensors} - {1}
    if len(sizes) > 1:
        raise GeometryError(f"Batches of {sorted(sizes)} items do not go together.")
    return sizes.pop() if sizes else 1


def blocks(elements: int, block: int = BLOCK) -> int:
    """Number of programs for so many elements."""
    return -(-elements // block)


@contextlib.contextmanager
def on_device(tensor: Tensor) -> Iterator[None]:
    """Makes the device of a tensor the current one: Triton starts kernels there."""
    if tensor.is_cuda:
        with torch.cuda.device(tensor.device):
            yield
    else:
        yield
