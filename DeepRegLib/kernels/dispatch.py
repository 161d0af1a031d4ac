"""Whether a fused kernel may run on given tensors, and what happens when one cannot."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import DeepRegError

Returned = TypeVar("Returned")

#: Types that the kernels read; they compute in float32. Double precision takes the torch path.
_TYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Oldest NVIDIA GPU that Triton supports (Ampere).
_CAPABILITY = (8, 0)
#: Voxels are counted in 32 bits inside a volume (64-bit division is slow on a GPU); the margin
#: lets the last block run past the end. Batches and channels are added in 64 bits.
_MOST_VOXELS = 2**31 - 2**16

_log = logging.getLogger(__name__)
_switched_off: set[str] = set()


def available(*tensors: Tensor) -> bool:
    """Tells whether the fused kernels can work on these tensors.

    They need a CUDA (or ROCm) device that Triton supports, Triton itself, one device for all
    tensors, a type of at most single precision, and no tape: the kernels give values only, so a
    tensor that autograd follows takes the torch path. ``DEEPREG_TRITON=0`` switches them off.
    With ``TRITON_INTERPRET=1`` they run on the CPU, slowly, for tests.

    Args:
        tensors: Everything that the kernel reads, of any shape.
    """
    if not tensors or os.environ.get("DEEPREG_TRITON", "1") == "0":
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    device = tensors[0].device
    if any(t.device != device or t.dtype not in _TYPES or t.numel() == 0 for t in tensors):
        return False
    if any(t.shape[2:].numel() > _MOST_VOXELS for t in tensors):
        return False
    return _device_supported(device) and _triton_imports()


def attempt(name: str, launch: Callable[[], Returned]) -> Returned | None:
    """Runs a kernel, or returns None where the caller has to take the torch path.

    A kernel that fails (no C compiler for its launcher, an unknown GPU) is switched off for the
    rest of the process, with one warning in the log. Lack of memory or wrong input is no such
    failure and is raised.

    Args:
        name: What is switched off.
        launch: Imports and starts the kernel and returns its result.
    """
    if name in _switched_off:
        return None
    try:
        return launch()
    except (DeepRegError, torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        # The driver's and the compiler's errors have no common class.
        _switched_off.add(name)
        _log.warning("The GPU kernel '%s' does not run here (%s); torch does its work.", name,
                     _first_line(error))  # fmt: skip
        return None


def module(name: str) -> Any:
    """Imports a module of kernels; only here, so that nothing else needs Triton."""
    return importlib.import_module(f".{name}", __package__)


def _device_supported(device: torch.device) -> bool:
    if device.type != "cuda":
        return device.type == "cpu" and _interpreted()
    if torch.version.hip:
        return True
    return _capability(device.index or 0) >= _CAPABILITY


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@functools.cache
def _triton_imports() -> bool:
    try:
        import triton  # noqa: F401
    except Exception:  # a broken installation fails in many ways, and torch can do the work
        return False
    return True


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
