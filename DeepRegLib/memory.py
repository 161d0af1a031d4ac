"""How much memory a run took, and whether an error means that memory ran out."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch

from .errors import OutOfMemoryError

#: What the allocators of torch, CUDA and their libraries say when they fail.
_COMPLAINTS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
)
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error means that the memory of the GPU or of the computer ran out."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError, OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(c in str(error).lower() for c in _COMPLAINTS)


class PeakMemory:
    """Measures the largest memory from its making on: the GPU's, or else the process's.

    Linux can restart the process's peak, so that one run in a long-lived worker is measured by
    itself; elsewhere it is the peak since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with contextlib.suppress(OSError):  # not on Linux, or not allowed: the peak goes on
            _CLEAR.write_text("5")

    def megabytes(self) -> float | None:
        """Returns the peak in MiB; None where the system does not tell it."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        if _STATUS.exists():
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return _resource_peak()


def _resource_peak() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
