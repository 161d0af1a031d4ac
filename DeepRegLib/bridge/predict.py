"""How long a registration will take, and how much memory, before it runs.

The constants are fitted to six runs of this library on real brain images (T1 of people of OASIS at
1 and 2 mm, 0.6 to 5.8 million voxels), on the CPU with one thread: affine, greedy and syn, presets
fast and balanced. They fit those runs within about a quarter. Another computer is faster or slower;
more threads are faster. No run was made with the preset accurate, with other deformable algorithms,
or on a GPU: there the time is None, and the memory is that of the same arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..geometry.grid import Grid

Kind = Literal["linear", "bspline", "dense"]

#: Seconds of the rigid stage and of each further linear stage; hardly depend on the size.
_LINEAR_SECONDS = {"fast": (4.3, 0.55), "balanced": (5.1, 1.05)}
#: Seconds of the dense stage for a million voxels of its finest grid.
_DENSE_SECONDS = {"fast": 1.14, "balanced": 1.9}
#: How much longer other dense algorithms take; of the rest the time is not known.
_DENSE_FACTOR = {"greedy": 1.0, "syn": 2.1}
#: Seconds to finish (warp, inverse, quality) for a million voxels, fixed (linear), moving (dense).
_FINISH_SECONDS = {"linear": 0.06, "dense": 1.85}
#: MiB of the process before it holds an image.
_PROCESS_MB = 360.0
#: MiB: constant, and for a million fixed and moving voxels.
_LINEAR_MB = (40.0, 38.0, 38.0)
_DENSE_MB = {"fast": (100.0, 55.0, 100.0), "balanced": (100.0, 55.0, 100.0)}


@dataclass(frozen=True)
class Prediction:
    """What a run is expected to take.

    Args:
        seconds: Time on one CPU thread; None where nothing was measured.
        memory_mb: Peak memory in MiB, of the process, or of the GPU's arrays.
    """

    seconds: float | None
    memory_mb: float


@dataclass(frozen=True)
class TransformSize:
    """Size of a grid transform.

    Args:
        shape: Vectors along each axis.
        memory_mb: MiB in memory, three float32 each.
        file_mb: MiB of the file that Slicer writes, three float64 each, not compressed.
    """

    shape: tuple[int, int, int]
    memory_mb: float
    file_mb: float


def predict(
    fixed_shape: Sequence[int],
    fixed_spacing_mm: Sequence[float],
    moving_shape: Sequence[int],
    algorithm_kind: Kind,
    preset: str = "balanced",
    *,
    device: str = "cpu",
    linear_stages: int | None = None,
    finest_mm: float = 0.0,
    algorithm: str = "greedy",
) -> Prediction:
    """Predicts time and memory of a run.

    Args:
        fixed_shape: Voxels of the fixed image along each axis.
        fixed_spacing_mm: Its spacing.
        moving_shape: Voxels of the moving image.
        algorithm_kind: ``linear``, ``bspline`` or ``dense``.
        preset: ``fast``, ``balanced`` or ``accurate``.
        device: ``cpu`` or ``cuda``; resolve ``auto`` first.
        linear_stages: Linear stages that run; 1 for linear algorithms and 2 before others if None.
        finest_mm: Voxel size of the finest level; that of the fixed image if 0.
        algorithm: Key of the dense algorithm.
    """
    fixed, moving = (float(np.prod(shape)) / 1e6 for shape in (fixed_shape, moving_shape))
    linear = algorithm_kind == "linear"
    constant, per_fixed, per_moving = (
        _LINEAR_MB if linear else _DENSE_MB.get(preset, _DENSE_MB["balanced"])
    )
    memory = constant + per_fixed * fixed + per_moving * moving
    on_cpu = device == "cpu"
    memory += _PROCESS_MB if on_cpu else 0.0
    if not on_cpu or preset not in _LINEAR_SECONDS or algorithm_kind == "bspline":
        return Prediction(None, memory)
    stages = (1 if linear else 2) if linear_stages is None else linear_stages
    first, further = _LINEAR_SECONDS[preset]
    seconds = (first + further * (stages - 1)) if stages else 0.0
    if linear:
        return Prediction(seconds + _FINISH_SECONDS["linear"] * fixed, memory)
    finest = fixed
    for spacing in fixed_spacing_mm:
        finest *= min(1.0, spacing / finest_mm) if finest_mm > 0 else 1.0
    if algorithm not in _DENSE_FACTOR:
        return Prediction(None, memory)
    dense = _DENSE_SECONDS[preset] * _DENSE_FACTOR[algorithm]
    seconds += dense * finest + _FINISH_SECONDS["dense"] * moving
    return Prediction(seconds, memory)


def transform_size_mb(grid: Grid, spacing_mm: float = 0.0) -> TransformSize:
    """Predicts the size of a grid transform over a grid.

    Args:
        grid: Grid of the fixed image.
        spacing_mm: Wished spacing; the grid's own if 0.
    """
    result = grid.with_spacing(spacing_mm) if spacing_mm > 0 else grid
    memory = result.size * 3 * 4 / 2**20
    return TransformSize(result.shape, memory, 2 * memory)
