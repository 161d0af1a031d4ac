"""Registration in overlapping windows, for networks and images that do not fit into memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OutOfMemoryError
from .trainable import Batch, Prediction, Trainable

#: Share of a window's edge by which it overlaps the next one, at least.
_OVERLAP = 0.25
#: Share of the overlap that a window does not answer for: what it says near its cut is its worst.
_TRIM = 0.25

Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Tiling:
    """Windows that cover a grid.

    All windows have one shape, and begin at multiples of what the network halves the grid by, so
    that its coarse levels fall on the same voxels as they would without windows.

    Args:
        shape: Voxels of the grid, rounded up to a multiple of that.
        size: Voxels of a window.
        overlap: Voxels by which windows overlap at least, along each axis.
        starts: First voxel of each window.
    """

    shape: Sizes
    size: Sizes
    overlap: Sizes
    starts: tuple[Sizes, ...]

    @classmethod
    def of(cls, shape: Sizes, edge: int, multiple: int) -> Tiling:
        """Covers a grid with windows of about an edge length in voxels."""
        whole = [-(-n // multiple) * multiple for n in shape]
        edge = max(multiple, edge // multiple * multiple)
        size = [min(n, edge) for n in whole]
        axes, overlap = [], []
        for n, s in zip(whole, size):
            least = min(s - multiple, -(-int(s * _OVERLAP) // multiple) * multiple)
            step = max(multiple, s - max(least, 0))
            axes.append([*range(0, n - s, step), n - s])
            overlap.append(max(least, 0))
        starts = tuple(itertools.product(*axes))
        return cls(tuple(whole), tuple(size), tuple(overlap), starts)  # type: ignore[arg-type]

    def weights(self, start: Sizes, device: torch.device) -> Tensor:
        """Returns how much a window counts, (1, 1, *size): less towards its cuts, never at them."""
        window = torch.ones(1, 1, *self.size, device=device)
        for axis in range(3):
            n, s, o, begin = (t[axis] for t in (self.shape, self.size, self.overlap, start))
            ramp = _ramp(s, o, begin > 0, begin + s < n).to(device)
            window = window * ramp.view([-1 if d == 2 + axis else 1 for d in range(5)])
        return window


@dataclass
class _Blend:
    """Sums windows up to one tensor; labels come from the window that counts most."""

    tiling: Tiling
    sums: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, part: Tensor, start: Sizes) -> None:
        weight = self.tiling.weights(start, part.device)
        region = _region(start, self.tiling.size)
        if name not in self.sums:
            self.sums[name] = part.new_zeros(*part.shape[:2], *self.tiling.shape)
            self.weights[name] = weight.new_zeros(1, 1, *self.tiling.shape)
        total, known = self.sums[name][region], self.weights[name][region]
        if part.is_floating_point():
            total += weight * part
            known += weight
            return
        better = weight > known
        total.copy_(torch.where(better, part, total))
        known.copy_(torch.where(better, weight, known))

    def result(self, name: str, shape: Sizes) -> Tensor:
        total = self.sums[name]
        if total.is_floating_point():
            total = total / self.weights[name].clamp(min=1e-6)
        return total[..., : shape[0], : shape[1], : shape[2]].contiguous()


def windows(batch: Batch, tiling: Tiling) -> Iterator[tuple[Sizes, Batch]]:
    """Yields the windows of a batch with their first voxels; beyond the grid is background."""
    room = [r for n, w in zip(reversed(batch.shape), reversed(tiling.shape)) for r in (0, w - n)]
    names = ("fixed", "moving", "fixed_labels", "moving_labels", "truth")
    given = {name: value for name in names if (value := getattr(batch, name)) is not None}
    padded: dict[str, Tensor] = {name: F.pad(value, room) for name, value in given.items()}
    for start in tiling.starts:
        region = _region(start, tiling.size)
        parts: dict[str, Any] = {name: value[region] for name, value in padded.items()}
        yield start, replace(batch, **parts)


def predict_in_tiles(
    system: Trainable,
    network: nn.Module,
    batch: Batch,
    tiling: Tiling,
    report: Callable[[float], None] | None = None,
) -> Prediction:
    """Registers a pair window by window and joins what the network says smoothly.

    Args:
        system: The system; its predictions must not have a linear part or control points.
        network: Its network.
        batch: One pair.
        tiling: The windows.
        report: Gets the share that is done after each window.

    Returns:
        One prediction on the grid of the batch; `values` holds one entry for each window.

    Raises:
        OutOfMemoryError: If the system describes the whole at once, so that it has no windows.
    """
    blend = _Blend(tiling)
    maps: list[str] = []
    values: dict[str, list[Any]] = {}
    for count, (start, part) in enumerate(windows(batch, tiling), 1):
        said = system.predict(network, part.fixed, part.moving, batch.spacing_mm)
        if said.linear is not None or said.control_points is not None:
            raise OutOfMemoryError(
                "There is too little memory for the network, and its answer cannot be put together "
                "from parts; crop the images."
            )
        for name in ("displacement", "inverse"):
            vectors = getattr(said, name)
            if vectors is not None:
                blend.add(f".{name}", vectors, start)
        for name, shown in said.maps.items():
            blend.add(name, shown, start)
        maps = list(said.maps)
        for name, value in said.values.items():
            values.setdefault(name, []).append(value)
        if report is not None:
            report(count / len(tiling.starts))
    whole = {name: blend.result(name, batch.shape) for name in blend.sums}
    return Prediction(
        displacement=whole.get(".displacement"),
        inverse=whole.get(".inverse"),
        maps={name: whole[name] for name in maps},
        values=dict(values),
    )


def _region(start: Sizes, size: Sizes) -> tuple[Any, ...]:
    return (..., *(slice(b, b + s) for b, s in zip(start, size)))


def _ramp(size: int, overlap: int, cut_before: bool, cut_after: bool) -> Tensor:
    """Weights along one axis: from 0 at a cut to 1 within the overlap, smoothly."""
    trim = overlap * _TRIM
    inward = torch.arange(size, dtype=torch.float32) + 0.5
    rise = ((inward - trim) / max(overlap - 2.0 * trim, 1.0)).clamp(0.0, 1.0)
    rise = 0.5 - 0.5 * torch.cos(torch.pi * rise)
    weight = torch.ones(size)
    if cut_before:
        weight = weight * rise
    if cut_after:
        weight = weight * rise.flip(0)
    return weight
