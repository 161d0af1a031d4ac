"""Deep and classical image registration: rigid, affine and deformable, on the GPU or the CPU.

Importing this package loads neither torch nor numpy; that happens at the first use of a name.

Example:
    >>> import DeepRegLib
    >>> result = DeepRegLib.register("ct.nrrd", "mr.nrrd", "rigid+affine")  # doctest: +SKIP
    >>> result.save(output_image="mr_on_ct.nrrd", output_transform="mr_to_ct.h5")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Large tensors come and go in every iteration. In huge pages, which torch asks Linux for if this is
# set before its first tensor, that takes less than half the time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    from .api import Registered, evaluate, list_algorithms, register, warp
    from .check import Checked, check_registration
    from .geometry.grid import Grid
    from .geometry.transform import Transform
    from .raw import register_raw, simulate_raw
    from .registration.base import Event, Image, ImagePair, Progress, Result

#: Where the public names live. (The list of algorithms is not called `algorithms`: importing the
#: subpackage of that name would hide it.)
_HOME = {
    "Checked": ".check",
    "Event": ".registration.base",
    "Grid": ".geometry.grid",
    "Image": ".registration.base",
    "ImagePair": ".registration.base",
    "Progress": ".registration.base",
    "Registered": ".api",
    "Result": ".registration.base",
    "Transform": ".geometry.transform",
    "check_registration": ".check",
    "evaluate": ".api",
    "list_algorithms": ".api",
    "register": ".api",
    "register_raw": ".raw",
    "simulate_raw": ".raw",
    "warp": ".api",
}

__all__ = [
    "Checked", "Event", "Grid", "Image", "ImagePair", "Progress", "Registered", "Result",
    "Transform", "check_registration", "evaluate", "list_algorithms", "register", "register_raw",
    "simulate_raw", "warp",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
