"""Aligns a stack of serial sections: each is matched with its neighbors that are aligned already.

The first section to rest is one in the middle. From there on outwards, each section is matched with
the nearest `neighbors` aligned ones, whose weights fall with their distance, by the features of an
autoencoder (`algorithms/ssemnet.py`). Further passes match each section with its neighbors on both
sides, the first one included, so that errors do not add up in one direction. Every section is
resampled once, by its final transform.

Reference:
    Yoo, Hildebrand, Tobin, Lee, Jeong. ssEMnet. 2017, arXiv:1707.07833.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import registry
from ..errors import InputError, ParameterError
from ..geometry.field import Field
from ..geometry.grid import Grid
from ..geometry.jacobian import jacobian_determinant
from ..geometry.sampling import sample, voxel_coordinates
from ..geometry.transform import Transform
from . import learned
from .base import Image, Progress
from .feature_warp import Reference, Warp, WarpSettings, align
from .metric_registration import MetricRegistration, PartOfProgress
from .pair_fit import FitSettings, fit
from .preprocess import rescale_intensity
from .section_regions import counted
from .trainable import Batch

#: System whose features are compared.
_SYSTEM = "ssemnet"
#: Sections that the autoencoder sees in one step.
_BATCH = 4
#: Share of the work that fitting the autoencoder is.
_FITTED = 0.25
#: Least sections of a stack.
_LEAST = 2


@dataclass(frozen=True)
class StackSettings:
    """How a stack is aligned.

    Args:
        neighbors: Sections that each one is matched with.
        falloff: Weight of a neighbor relative to that of the one before it.
        passes: How often; from the second pass on, neighbors on both sides count.
        reference: Section that rests in the first pass, from 0; the middle one if negative.
        steps: Steps that the autoencoder is fitted to the stack; with a model none are needed.
        model: Trained model, by name or file; empty fits an autoencoder to the stack alone.
        values: Parameters of the system that differ from its defaults; sections are also turned
            and stretched (``affine``) unless it is said otherwise.

    Raises:
        ParameterError: If a number makes no sense.
    """

    neighbors: int = 2
    falloff: float = 0.5
    passes: int = 1
    reference: int = -1
    steps: int = 150
    model: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.neighbors < 1 or self.passes < 1 or self.steps < 0:
            raise ParameterError("A stack takes one neighbor and one pass at least, and no "
                                 "negative number of steps.")  # fmt: skip
        if not 0.0 < self.falloff <= 1.0:
            raise ParameterError(f"The falloff is above 0 and at most 1, not {self.falloff:g}.")


@dataclass(frozen=True, eq=False)
class AlignedStack:
    """A stack whose sections fit each other.

    Args:
        image: The stack, each section resampled once.
        transform: Maps points of the aligned stack to the stack as it was, RAS mm; it moves
            nothing across the sections.
        axis: Tensor axis across the sections.
        order: Sections in the order in which they were aligned, the resting one first.
        history: Value of each step: pass (as ``level``), section, iteration, value.
        provenance: Model, parameters, axis.
    """

    image: Image
    transform: Transform
    axis: int
    order: list[int]
    history: list[dict[str, Any]]
    provenance: dict[str, Any]


def across_sections(grid: Grid) -> int:
    """Returns the tensor axis across the sections: that of the thickest voxels, else the shortest.

    Sections are thicker than their pixels in nearly all stacks.
    """
    spacing = np.array(grid.spacing_mm)
    thickest = int(np.argmax(spacing))
    others = np.delete(spacing, thickest)
    return thickest if spacing[thickest] > 1.01 * others.max() else int(np.argmin(grid.shape))


def align_stack(
    stack: Image,
    axis: int | None = None,
    settings: StackSettings | None = None,
    progress: Progress | None = None,
) -> AlignedStack:
    """Aligns the sections of a stack.

    Args:
        stack: The sections, one behind the other along an axis.
        axis: Tensor axis across the sections; see `across_sections` if omitted.
        settings: See `StackSettings`.
        progress: Gets the share that is done and the values, and can cancel or stop.

    Returns:
        The stack with its transform; what was done so far if the progress says stop.

    Raises:
        InputError: If there are too few sections, or they are lines.
        ParameterError: If the axis is none, or a parameter or the model does not fit.
        Cancelled: If the user cancelled.

    Example:
        >>> aligned = align_stack(read_image("stack.nrrd"))  # doctest: +SKIP
    """
    settings, progress = settings or StackSettings(), progress or Progress()
    axis = across_sections(stack.grid) if axis is None else axis
    _check(stack.grid, axis, settings)
    progress.update(0.0)
    sections = _sections(stack, axis)
    with learned._own_randomness(stack.data.device):
        system, network = _network(sections, settings, progress)
        run = _Run(sections, system, network, settings, PartOfProgress(progress, _FITTED, 1.0))
        run.go()
    displacement = _across(torch.cat([run.displacement(i) for i in range(len(sections))]), axis)
    where = voxel_coordinates(stack.grid.shape, displacement.device) + displacement
    moved = sample(stack.data.float(), where)
    progress.update(1.0)
    return AlignedStack(
        Image(moved, stack.grid, stack.pixel_type),
        Transform(np.eye(4), Field(displacement, stack.grid)),
        axis,
        run.order,
        run.history,
        {
            "algorithm": _SYSTEM, "model": settings.model, "axis": axis,
            "parameters": dict(system.values), "neighbors": settings.neighbors,
            "falloff": settings.falloff, "passes": settings.passes, "reference": run.order[0],
            "steps": settings.steps,
        },
    )  # fmt: skip


class _Run:
    """The sections on their way to where they fit."""

    def __init__(
        self, sections: Sequence[Tensor], system: Any, network: nn.Module,
        settings: StackSettings, progress: Progress,
    ) -> None:  # fmt: skip
        self._sections, self._settings, self._progress = sections, settings, progress
        self._system, self._network = system, network
        self._search: WarpSettings = system.settings()
        grid = Grid(tuple(sections[0].shape[2:]), np.eye(4))  # type: ignore[arg-type]
        ignore = bool(system.values["ignore_empty"])
        self._masks = [counted(s, grid, None, ignore, enclosed=False) for s in sections]
        shape = sections[0].shape[2:]
        self._warps = [Warp.identity(shape, self._search, s.device) for s in sections]
        self._aligned: dict[int, Reference] = {}
        self.order = outwards(len(sections), settings.reference)
        self.history: list[dict[str, Any]] = []

    def go(self) -> None:
        """Aligns all sections, pass by pass."""
        first = self.order[0]
        self._aligned[first] = Reference(self._sections[first], self._masks[first])
        total = self._settings.passes * len(self.order)
        for turn in range(self._settings.passes):
            for place, number in enumerate(self.order):
                if self._progress.stop_requested:
                    return
                if turn > 0 or place > 0:
                    self._match(turn, number)
                self._progress.update((turn * len(self.order) + place + 1) / total)

    def displacement(self, number: int) -> Tensor:
        """Returns where the voxels of a section are taken, less where they are."""
        warp = self._warps[number]
        with torch.no_grad():
            moved = unfolded(warp).positions(warp.shape)
        return moved - voxel_coordinates(warp.shape, moved.device)

    def _match(self, turn: int, number: int) -> None:
        references = self._references(number)
        moving = Reference(self._sections[number], self._masks[number])

        def report(level: int, iteration: int, value: float, warp: Warp) -> bool:
            entry = {"level": turn, "section": number, "iteration": iteration, "value": value}
            self.history.append(entry)
            self._progress.update(self._share(turn, number), value)
            return self._progress.stop_requested

        warp = align(references, moving, self._measure, self._search, self._warps[number], report)
        self._warps[number] = warp
        where = self.displacement(number) + voxel_coordinates(warp.shape, moving.image.device)
        mask = None if moving.mask is None else sample(moving.mask, where)
        self._aligned[number] = Reference(sample(moving.image, where), mask)

    def _share(self, turn: int, number: int) -> float:
        count = len(self.order)
        return (turn * count + self.order.index(number)) / (self._settings.passes * count)

    def _references(self, number: int) -> list[Reference]:
        """Returns the nearest aligned sections, with weights that fall with their distance."""
        known = sorted((n for n in self._aligned if n != number), key=lambda n: abs(n - number))
        most = self._settings.neighbors
        if len(self._aligned) == len(self._sections):
            most *= 2  # as many on either side
        return [
            replace(self._aligned[n], weight=self._settings.falloff ** (abs(n - number) - 1))
            for n in known[:most]
        ]

    def _measure(self, ratio: tuple[float, float, float]) -> Any:
        return self._system.measure(self._network, ratio, 1.0)


def outwards(count: int, reference: int = -1) -> list[int]:
    """Returns the numbers of all sections from one outwards, the middle one if negative."""
    start = count // 2 if reference < 0 else reference
    return sorted(range(count), key=lambda n: (abs(n - start), n))


def unfolded(warp: Warp) -> Warp:
    """Returns a warp whose vectors are made smaller until nothing folds."""
    vectors = warp.vectors.detach()
    for _ in range(20):
        found = replace(warp, vectors=vectors)
        if float(jacobian_determinant(found.displacement(warp.shape)).min()) > 0.01:
            return found
        vectors = 0.8 * vectors
    return replace(warp, vectors=torch.zeros_like(vectors))


def _network(
    sections: Sequence[Tensor], settings: StackSettings, progress: Progress
) -> tuple[Any, nn.Module]:
    """Returns the system and its network: that of a model, or one fitted to the stack."""
    values = {"affine": True, **settings.values, "model": settings.model}
    system: Any = registry.create(_SYSTEM, **values)
    assert isinstance(system, MetricRegistration)
    device, scratch = sections[0].device, not settings.model.strip()
    if scratch:
        network = system.build()
    else:
        file = system.model()
        assert file is not None
        system, network = system.trained(file)
    network = network.to(device).eval()
    if scratch and settings.steps > 0:
        batches = []
        for begin in range(0, len(sections), _BATCH):
            part = torch.cat(list(sections[begin : begin + _BATCH]))
            batches.append(Batch(part, part[:0], 1.0))

        def report(done: int, value: float, _: nn.Module) -> bool:
            progress.update(_FITTED * done / settings.steps, value)
            return progress.stop_requested

        rate = system.scratch_rate
        fit(system, network, batches, FitSettings(settings.steps, rate, True), report)
    return system, network.eval().requires_grad_(False)


def _sections(stack: Image, axis: int) -> list[Tensor]:
    """Returns the sections, (1, 1, 1, H, W), each with its own intensities from 0 to 1."""
    along = stack.data[:, :1].float().movedim(2 + axis, 2)
    return [rescale_intensity(part.contiguous()) for part in along.split(1, dim=2)]


def _across(displacements: Tensor, axis: int) -> Tensor:
    """Returns displacements of sections (S, 3, 1, H, W) as those of the stack, (1, 3, *shape)."""
    whole = displacements[:, :, 0].movedim(0, 1)[None]  # (1, 3, S, H, W)
    order = [1, 2]
    order.insert(axis, 0)  # the component across the sections comes first
    return whole[:, order].movedim(2, 2 + axis).contiguous()


def _check(grid: Grid, axis: int, settings: StackSettings) -> None:
    if axis not in (0, 1, 2):
        raise ParameterError(f"The axis across the sections is 0, 1 or 2, not {axis}.")
    count = grid.shape[axis]
    if count < _LEAST:
        raise InputError(
            f"The stack has {count} section along its axis {axis}; give a stack of several "
            "sections, or another axis."
        )
    if min(n for i, n in enumerate(grid.shape) if i != axis) < 8:
        raise InputError("Sections of less than 8 voxels along an axis cannot be aligned.")
    if settings.reference >= count:
        raise ParameterError(
            f"There is no section {settings.reference}; the stack has {count}, from 0."
        )
