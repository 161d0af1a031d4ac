"""Discrete search by coupled convex optimisation, made inverse consistent, refined by Adam.

References:
    Heinrich, Papiez, Schnabel, Handels. Non-parametric discrete registration with convex
    optimisation. WBIR 2014, LNCS 8545:51-61. doi:10.1007/978-3-319-08554-8_6 (the cost volume and
    the alternation between point-wise search and smoothing).
    Siebert, Grossbroehmer, Hansen, Heinrich. ConvexAdam: self-configuring dual-optimization-based
    3D multitask medical image registration. IEEE Transactions on Medical Imaging, 2024.
    doi:10.1109/TMI.2024.3436315 (inverse consistency and refinement).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ParameterError
from ..geometry.field import Field, rim_motion
from ..geometry.grid import Grid
from ..geometry.sampling import inside_image, sample
from ..geometry.transform import Transform
from ..losses.mind import MIND
from .adam_refine import AdamSettings, FeatureLevel, refine
from .base import ImagePair, Progress, Result
from .convex_search import (
    cost_volume,
    coupled_step,
    finest_mm,
    inverse_consistent,
    search_radii,
    smoothed,
)
from .folds import without_folds
from .landmark_start import LandmarkPull
from .preprocess import make_level, mask_on_grid, rescale_intensity

#: Most voxels that features are computed for; larger images are taken at a coarser spacing.
_MOST_VOXELS = 8_000_000
#: Fewest nodes that coarsening leaves along an axis, for the search and for the refinement.
_LEAST_NODES = {"search": 12, "refinement": 16}
#: Rounds of the mutual correction of the two directions.
_CONSISTENCY_ROUNDS = 15
#: Width of the rim over which the result fades to zero, in voxels of the fixed image.
_RIM = 4
#: Pulls that bring landmarks together, each by two voxels at most.
_PULLS = 8
#: Share of the stage's time that features, each search and the refinement take.
_SEARCH_BEGINS, _SEARCH_ENDS = 0.05, 0.35


@dataclass(frozen=True)
class ConvexSettings:
    """Settings of the engine; see `algorithms/convexadam.py` for their meaning."""

    search_spacing: int
    displacement: int
    coupling: tuple[float, ...]
    inverse_consistency: bool
    adam_spacing: tuple[int, ...]
    adam_iterations: tuple[int, ...]
    step: float
    diffusion: float
    features: str
    intensity_weight: float
    mind_radius: int
    mind_dilation: int
    finest_mm: float
    modality: str = "same"


@dataclass(eq=False)
class _Run:
    """What the steps of one registration share."""

    pair: ImagePair
    start: Transform
    progress: Progress
    history: list[dict[str, Any]] = field(default_factory=list)

    def report(self, fraction: float, value: float | None = None) -> bool:
        """Reports, and says whether to stop."""
        self.progress.update(fraction, value)
        return self.progress.stop_requested

    def whole(self, found: Field) -> Transform:
        """Returns the start after a found displacement."""
        before = self.start.field
        if before is not None:
            outer = before.to(found.displacement.device).on_grid(found.grid)
            found = outer.compose(found)
        return Transform(self.start.linear, found)


class ConvexEngine:
    """Registers by search over all displacements in reach, then by Adam at finer resolution."""

    def __init__(self, settings: ConvexSettings) -> None:
        self._settings = settings

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair from `pair.initial` (or the stored positions).

        Raises:
            ParameterError: If resolutions and iterations differ in number, or the search would
                take too much memory.
        """
        s = self._settings
        if len(s.adam_spacing) != len(s.adam_iterations):
            raise ParameterError(
                f"There are {len(s.adam_spacing)} values in adam_spacing but "
                f"{len(s.adam_iterations)} in adam_iterations; give one number of iterations for "
                "each resolution."
            )
        run = _Run(pair, pair.initial or Transform(), progress)
        with torch.no_grad():
            found = self._find(run)
            transform = self._finished(run, found)
        return Result(transform, history=run.history)

    def _find(self, run: _Run) -> Field | None:
        """Returns the displacement to be applied before the start; None if stopped too early."""
        if run.report(0.001):
            return None
        levels = self._levels(run)
        if run.report(_SEARCH_BEGINS):
            return None
        found = self._search(run, levels.pop(0))
        if found is None or run.progress.stop_requested:
            return found
        return self._refine(run, levels, found)

    def _levels(self, run: _Run) -> list[FeatureLevel]:
        """Returns the level of the search and those of the refinement."""
        s, pair = self._settings, run.pair
        fixed, moving, fixed_mask, moving_mask, grid = prepared_images(pair, run.start, s.finest_mm)
        factors = [coarsening(grid, s.search_spacing, "search")]
        factors += [coarsening(grid, n, "refinement") for n in s.adam_spacing]
        fixed_levels = self._features(fixed, fixed_mask, factors)
        moving_levels = self._features(moving, moving_mask, factors)
        masks = [[None if m is None else pooled(m, f) for f in factors]
                 for m in (fixed_mask, moving_mask)]  # fmt: skip
        grids = [pooled_grid(grid, f) for f in factors]
        return [FeatureLevel(*parts) for parts in zip(fixed_levels, moving_levels, *masks, grids)]

    def _features(
        self, image: Tensor, mask: Tensor | None, factors: Sequence[tuple[int, ...]]
    ) -> list[Tensor]:
        """Computes features at full resolution and averages them for each level."""
        s = self._settings
        mind = MIND(s.mind_radius, s.mind_dilation).prepare(image)
        if mask is not None:
            mind = mind.mul_(mask)
            image = image * mask
        levels = [pooled(mind, f) for f in factors]
        if s.features == "mind+intensity":
            levels = [torch.cat([m, pooled(image, f) * s.intensity_weight**0.5], dim=1)
                      for m, f in zip(levels, factors)]  # fmt: skip
        if mask is not None:
            # The mean over the voxels in the mask, not diluted by those outside.
            levels = [m / pooled(mask, f).clamp(min=1e-3) for m, f in zip(levels, factors)]
        return levels

    def _search(self, run: _Run, level: FeatureLevel) -> Field | None:
        """Returns the displacement on the grid of the search."""
        s = self._settings
        radii = search_radii(level.grid, s.displacement)
        span = _SEARCH_ENDS - _SEARCH_BEGINS
        middle = _SEARCH_BEGINS + span * (0.5 if s.inverse_consistency else 1.0)
        there = self._one_way(run, level, radii, (_SEARCH_BEGINS, middle), record=True)
        if there is None or run.progress.stop_requested:
            return None if there is None else Field(there, level.grid)
        if s.inverse_consistency:
            swapped = FeatureLevel(
                level.moving, level.fixed, level.moving_mask, level.fixed_mask, level.grid
            )
            back = self._one_way(run, swapped, radii, (middle, _SEARCH_ENDS), record=False)
            if back is not None:
                there, _ = inverse_consistent(there, back, _CONSISTENCY_ROUNDS)
        found = Field(there, level.grid)
        if run.progress.wants_preview():
            run.progress.preview(run.whole(faded_rim(found, 1)))
        return found

    def _one_way(
        self,
        run: _Run,
        level: FeatureLevel,
        radii: tuple[int, int, int],
        span: tuple[float, float],
        record: bool,
    ) -> Tensor | None:
        """Searches in one direction; None if stopped before there is a result."""
        begin, length = span[0], span[1] - span[0]
        volume = cost_volume(level, radii, lambda done: run.report(begin + 0.8 * length * done))
        if volume is None:
            return None
        displacement = torch.zeros(1, 3, *level.grid.shape, device=volume.device)
        coupling = self._settings.coupling
        for index, coefficient in enumerate(coupling):
            nearest, value = coupled_step(volume, displacement, coefficient, radii, level.grid)
            displacement = smoothed(nearest, level.grid)
            if record:
                run.history.append({"level": 0, "iteration": index, "value": value})
            done = 0.8 + 0.2 * (index + 1) / len(coupling)
            if run.report(begin + length * done, value if record else None):
                break
        return displacement

    def _refine(self, run: _Run, levels: list[FeatureLevel], found: Field) -> Field:
        s = self._settings
        costs = np.array([n * lv.grid.size for n, lv in zip(s.adam_iterations, levels)], float)
        ends = np.concatenate([[0.0], np.cumsum(costs) / max(costs.sum(), 1e-9)])
        for index, level in enumerate(levels):
            begin, end = (_SEARCH_ENDS + (0.97 - _SEARCH_ENDS) * float(e)
                          for e in ends[index : index + 2])  # fmt: skip
            report = self._reporter(run, level.grid, index, (begin, end))
            rim = max(1, round(_RIM * min(run.pair.fixed.grid.spacing_mm)
                               / min(level.grid.spacing_mm)))  # fmt: skip
            settings = AdamSettings(s.adam_iterations[index], s.step, s.diffusion, rim)
            start = found.on_grid(level.grid).displacement
            found = Field(refine(level, start, settings, report), level.grid)
            if run.progress.stop_requested:
                break
        return found

    def _reporter(self, run: _Run, grid: Grid, index: int, span: tuple[float, float]) -> Any:
        total = self._settings.adam_iterations[index]

        def report(iteration: int, value: float, displacement: Tensor) -> bool:
            run.history.append({"level": index + 1, "iteration": iteration, "value": value})
            stop = run.report(span[0] + (span[1] - span[0]) * (iteration + 1) / total, value)
            if run.progress.wants_preview():
                run.progress.preview(run.whole(Field(displacement, grid)))
            return stop

        return report

    def _finished(self, run: _Run, found: Field | None) -> Transform:
        """Brings the displacement to the fixed grid: at rest at the rim, without folds."""
        grid = run.pair.fixed.grid
        if found is None:
            found = Field.identity(grid, run.pair.device)
        transform = run.whole(faded_rim(found.on_grid(grid), _RIM))
        assert transform.field is not None
        displacement = _met_landmarks(run.pair, transform)
        return Transform(transform.linear, Field(without_folds(displacement), grid))


def convex_settings(values: Mapping[str, Any]) -> ConvexSettings:
    """Makes settings from the parameters of `algorithms/convexadam.py`.

    Raises:
        ParameterError: If intensities are to be compared across contrasts.
    """
    values = dict(values)
    if values["features"] == "auto":
        values["features"] = "mind+intensity" if values["modality"] == "same" else "mind"
    if values["features"] != "mind" and values["modality"] != "same":
        raise ParameterError(
            "Intensities of different contrasts cannot be compared; set features to mind or auto."
        )
    return ConvexSettings(**values)


def prepared_images(
    pair: ImagePair, start: Transform, least_mm: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Grid]:
    """Brings both images onto one grid, the moving one through the whole start.

    Features such as MIND are not invariant to rotation, so the linear map, and a deformation to
    begin with, come before them.

    Returns:
        Fixed image, moving image, mask of each (or None) and the grid.
    """
    device, fixed_grid = pair.device, pair.fixed.grid
    spacing = max(min(fixed_grid.spacing_mm), least_mm)
    while _size_at(fixed_grid, spacing) > _MOST_VOXELS:
        spacing *= 1.1
    fixed_mask = mask_on_grid(pair.fixed_mask, fixed_grid, device)
    moving_mask = mask_on_grid(pair.moving_mask, pair.moving.grid, device)
    fixed = make_level(rescale_intensity(pair.fixed.data[:, :1], fixed_mask), fixed_grid, spacing)
    # The moving image is smoothed to the same resolution, but never below its own.
    moving = make_level(
        rescale_intensity(pair.moving.data[:, :1], moving_mask), pair.moving.grid, spacing
    )
    where = start.moving_coordinates(fixed.grid, moving.grid, device)
    aligned = sample(moving.data, where)
    inside = inside_image(where, moving.grid.shape)
    there = None if bool(inside.all()) else inside.float()
    if moving_mask is not None:
        mask = make_level(moving_mask, pair.moving.grid, spacing).data
        there = sample(mask, where) * inside
    if fixed_mask is not None:
        fixed_mask = make_level(fixed_mask, fixed_grid, spacing).data
    return fixed.data, aligned, fixed_mask, there, fixed.grid


def _size_at(grid: Grid, spacing_mm: float) -> float:
    return float(np.prod([n * min(1.0, s / spacing_mm)
                          for n, s in zip(grid.shape, grid.spacing_mm)]))  # fmt: skip


def coarsening(grid: Grid, spacing: int, purpose: str) -> tuple[int, int, int]:
    """Returns how many voxels make one node along each axis.

    The nodes are about `spacing` voxels of the finest axis apart in mm, so thick slices are
    grouped less or not at all; an axis of few voxels keeps enough nodes to be worth searching.
    """
    a, b, c = (
        max(1, min(round(spacing * finest_mm(grid) / s), n // _LEAST_NODES[purpose]))
        for s, n in zip(grid.spacing_mm, grid.shape)
    )
    return a, b, c


def pooled(image: Tensor, factors: Sequence[int]) -> Tensor:
    """Averages blocks of voxels; the edge is repeated where the last block is not full."""
    if tuple(factors) == (1, 1, 1):
        return image
    rest = [-n % f for n, f in zip(image.shape[2:], factors)]
    if any(rest):
        image = F.pad(image, [p for r in reversed(rest) for p in (0, r)], mode="replicate")
    return F.avg_pool3d(image, list(factors))


def pooled_grid(grid: Grid, factors: Sequence[int]) -> Grid:
    """Returns the grid of `pooled`: block by block, so its last voxels may reach further out."""
    nodes = [-(-n // f) for n, f in zip(grid.shape, factors)]
    return grid.cropped((0, 0, 0), [n * f for n, f in zip(nodes, factors)]).resized(nodes)


def faded_rim(found: Field, least: int) -> Field:
    """Returns a field that comes to rest at its edge, over twice what its edge moves by.

    That slope of a half cannot fold by itself.
    """
    motion = rim_motion(found.displacement)
    return found.faded(max(least, int(np.ceil(2.0 * motion))))


def _met_landmarks(pair: ImagePair, transform: Transform) -> Tensor:
    """Returns the displacement, moved until it meets the landmarks if they are to lead."""
    assert transform.field is not None
    displacement, grid = transform.field.displacement, transform.field.grid
    fixed, moving = pair.fixed_landmarks_ras, pair.moving_landmarks_ras
    if not pair.landmarks_lead or fixed is None or moving is None:
        return displacement
    pull = LandmarkPull(fixed, moving, transform.linear, grid, pair.device)
    for _ in range(_PULLS):
        displacement = pull.held(displacement)
    return displacement
