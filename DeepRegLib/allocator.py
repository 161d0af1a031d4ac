"""How the C library of Linux keeps memory that was freed. Standard library only.

Registrations and trainings free and ask for the same few megabytes in every step. By default glibc
hands such memory back to the system at once, which has to clear it, page by page, before it comes
again: a seventh of the processor time of a registration (`Benchmarks/freed_memory.py`). Processes
of our own keep freed memory until a job ends. Elsewhere (macOS, Windows, musl) nothing is done.
"""

from __future__ import annotations

import ctypes
import sys

#: Numbers of the settings in <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Largest block that is kept: the most that glibc allows.
_LARGEST_KEPT = 32 * 2**20


def keep_freed_memory() -> bool:
    """Keeps freed memory in this process; returns whether the C library can.

    For processes of our own alone: in somebody else's (Slicer, a notebook) it would be their memory
    that is not handed back.
    """
    library = _glibc()
    if library is None:
        return False
    kept = library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    return bool(kept and library.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT))


def hand_back_freed_memory() -> None:
    """Hands freed memory back to the system, as between two jobs of a process that waits."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    known = all(hasattr(library, name) for name in ("mallopt", "malloc_trim"))
    return library if known else None
