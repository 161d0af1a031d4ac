"""The free-form engine: multi-resolution, by control points of cubic B-splines."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.bspline import BSpline, BSplineLattice
from ..geometry.field import Field
from ..geometry.grid import Grid
from ..geometry.jacobian import axis_gradient, jacobian_determinant
from ..geometry.sampling import apply_matrix, sample, voxel_coordinates
from ..geometry.transform import Transform
from ..losses.base import Similarity
from .base import ImagePair, Progress, Result
from .dense import _spans
from .lbfgs import minimize_lbfgs
from .levels import PairLevel, level_spacings
from .metric_similarity import similarity_for
from .spline_space import LEAST_VOLUME, SplineSpace

#: Iterations over which the progress of the objective is judged.
_WINDOW = 5
#: Share of a control point's spacing that one step may move it: the limit of Choi & Lee 2000,
#: doi:10.1006/gmod.1999.0507, below which a step alone cannot fold.
_LONGEST = 0.4
#: Control point intervals across the image when no spacing is given.
_AUTOMATIC_ELEMENTS = 32
#: Voxels of the fixed image between them at least.
_AUTOMATIC_VOXELS = 3.0
#: Mutual information in nats gains more by a deformation than correlations do, and follows noise,
#: so that what regularises weighs so much more (bending, volume; measured on T1 to FLAIR).
_WEIGHTS_OF_INFORMATION = (50.0, 10.0)
#: How often a deformation that folds is made a tenth smaller before it is given up.
_SHRINKS = 40


@dataclass(frozen=True)
class FreeFormSettings:
    """Settings of the free-form engine; see `algorithms/bspline.py` for their meaning."""

    modality: str
    similarity: str
    radius: int
    spacing_mm: float
    factors: tuple[int, ...]
    iterations: tuple[int, ...]
    bending: float
    volume: float
    voxels: int
    tolerance: float
    metric_model: str = ""


def for_modality(settings: FreeFormSettings) -> FreeFormSettings:
    """Returns settings whose similarity and weights fit the contrasts of the pair."""
    if settings.similarity == "auto":
        name = "lncc" if settings.modality == "same" else "mi"
        settings = replace(settings, similarity=name)
    if settings.similarity != "mi":
        return settings
    return replace(
        settings,
        bending=settings.bending * _WEIGHTS_OF_INFORMATION[0],
        volume=settings.volume * _WEIGHTS_OF_INFORMATION[1],
    )


class FreeFormObjective:
    """Similarity, bending and change of volume of one level, as a function of the control points.

    Voxels count that the first deformation leads into the moving image (and its mask). If these
    changed with the deformation, what fits badly would be pushed out of sight.

    Args:
        level: The images.
        similarity: What compares them.
        space: The deformations.
        bending: Weight of the bending energy in mm² per mm⁴.
        volume: Weight of the change of volume.
    """

    def __init__(
        self,
        level: PairLevel,
        similarity: Similarity,
        space: SplineSpace,
        bending: float,
        volume: float,
    ) -> None:
        self._level = level.with_features(similarity)
        self._bound = similarity.bind(self._level.fixed, self._level.fixed_mask)
        self._space, self._bending, self._volume = space, bending, volume
        self._counted: Tensor | None = None
        self._identity = voxel_coordinates(level.grid.shape, level.fixed.device)
        spacing = torch.tensor(level.grid.spacing_mm, device=level.fixed.device)
        self._spacing = spacing.view(1, 3, 1, 1, 1)
        # One mm along a tensor axis of the fixed image, in voxels of the moving one.
        self._per_mm = self._level.to_moving[:3, :3] / level.grid.spacing_mm
        channels = self._level.moving.split(1, dim=1)
        # Gradients of several channels are made when needed: they would take too much memory.
        self._slopes = _image_gradient(channels[0]) if len(channels) == 1 else None

    def __call__(self, parameters: Tensor) -> tuple[float, Tensor]:
        """Returns value and gradient by the parameters; infinity where the deformation folds."""
        volume, by_volume = self._space.volume(parameters)
        if not math.isfinite(float(volume)):
            return math.inf, by_volume
        bending, by_bending = self._space.bending(parameters)
        value, gradient = self._similarity(parameters)
        gradient.add_(by_bending, alpha=self._bending).add_(by_volume, alpha=self._volume)
        total = value + self._bending * float(bending) + self._volume * float(volume)
        return total, gradient

    def _similarity(self, parameters: Tensor) -> tuple[float, Tensor]:
        """Value of the similarity and its gradient by the parameters.

        With moved(x) = m(A(x + u(x))), the derivative by u is that of the moving image at the
        mapped place, turned back by the linear map: dE/du = A^T grad m (A(x + u)) dE/dmoved. As A
        is the same everywhere, it is applied to the few control points instead of all voxels.
        """
        level = self._level
        where = self._space.displacement_mm(parameters)[None] / self._spacing + self._identity
        moved, mask = level.pull_moving(where)
        if self._counted is None and mask is not None:
            self._counted = mask if level.fixed_mask is None else mask * level.fixed_mask
        value, slope = self._bound.value_and_gradient(moved, self._counted)
        if not np.array_equal(level.to_moving, np.eye(4)):
            where = apply_matrix(level.to_moving, where)
        gradient = self._space.gathered(self._moving_force(where, slope))
        turn = torch.tensor(self._per_mm.T.copy()).to(gradient)
        turned = (turn @ gradient.flatten(1)).reshape(gradient.shape)
        return float(value), self._space.held(turned)

    def _moving_force(self, where: Tensor, slope: Tensor) -> Tensor:
        """Sum over the channels of slope times gradient of the moving image, (3, *shape)."""
        if self._slopes is not None:
            return sample(self._slopes, where)[0] * slope[0]
        force = torch.zeros_like(where[0])
        for channel in range(slope.shape[1]):
            one = self._level.moving[:, channel : channel + 1]
            force.addcmul_(sample(_image_gradient(one), where)[0], slope[0, channel : channel + 1])
        return force


class FreeFormEngine:
    """Moves control points until the images agree.

    From level to level images and control points become twice as fine. Inserting knots halves the
    spacing without changing the deformation, so each level begins exactly where the one before
    ended. Steps that fold are refused.

    A given deformation is taken over by projection: each level starts from what its control points
    can represent of it, plus what the levels before have added to that.

    Args:
        settings: See `FreeFormSettings`.
        measure: Makes the similarity for the grid of a level; that of the settings if omitted.
    """

    def __init__(
        self, settings: FreeFormSettings, measure: Callable[[Grid], Similarity] | None = None
    ) -> None:
        self._settings, self._measure = for_modality(settings), measure
        self._history: list[dict[str, Any]] = []

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair from `pair.initial` (or the stored positions).

        Raises:
            InputError: If factors and iterations differ in number.
        """
        s = self._settings
        if len(s.factors) != len(s.iterations):
            raise InputError(
                f"There are {len(s.factors)} levels but {len(s.iterations)} numbers of iterations; "
                "give one number of iterations for each level."
            )
        self._history = []
        initial = pair.initial or Transform()
        spacing_mm = self._spacing_mm(pair.fixed.grid)
        meshes = control_meshes(pair.fixed.grid, spacing_mm, len(s.factors))
        bending = s.bending * spacing_mm**2  # a number that the size of the object leaves alone
        spacings = level_spacings(spacing_mm / s.voxels, s.factors, pair.fixed.grid.spacing_mm)
        before: tuple[SplineSpace, Tensor] | None = None
        result = initial
        with torch.no_grad():
            for index, span in enumerate(_spans(s.factors, s.iterations)):
                level = PairLevel.of(pair, initial.linear, spacings[index])
                space = spline_space(pair.fixed.grid, meshes[index], level.grid, pair.device)
                base = space.zero()
                if initial.field is not None:
                    base = space.projected(displacement_mm(initial.field, level.grid))
                added = space.zero() if before is None else before[0].refined(before[1], space)
                start = without_folds(base + added, space)
                objective = FreeFormObjective(
                    level, self._similarity(level.grid, pair.device), space, bending, s.volume
                )
                run = _Run(self, index, span, space, initial, progress)
                parameters = self._minimized(objective, start, run)
                result = _result(space.spline(parameters), initial, pair.fixed.grid)
                before = space, parameters - base
                if progress.stop_requested:
                    break
        return Result(result, history=self._history)

    def _spacing_mm(self, grid: Grid) -> float:
        """Spacing of the finest control points; automatic: a share of the size of the image."""
        if self._settings.spacing_mm > 0:
            return self._settings.spacing_mm
        extent = [n * s for n, s in zip(grid.shape, grid.spacing_mm) if n > 1]
        share = float(np.mean(extent)) / _AUTOMATIC_ELEMENTS if extent else 1.0
        return max(share, _AUTOMATIC_VOXELS * min(grid.spacing_mm))

    def _similarity(self, grid: Grid, device: torch.device) -> Similarity:
        if self._measure is not None:
            return self._measure(grid)
        options: dict[str, Any] = {}
        if self._settings.similarity == "lncc":
            options["radius"] = self._settings.radius
        if self._settings.similarity == "ngf":
            options["spacing_mm"] = grid.spacing_mm
        name, model = self._settings.similarity, self._settings.metric_model
        return similarity_for(name, grid.spacing_mm, model, device, **options)

    def _minimized(self, objective: FreeFormObjective, start: Tensor, run: _Run) -> Tensor:
        space, s = run.space, self._settings
        widths = [w for w, flat in zip(space.lattice.spacing_mm, space.flat) if not flat]
        longest = _LONGEST * min(widths, default=1.0)
        first = min(*space.grid.spacing_mm, longest)
        run.tolerance, run.total = s.tolerance, s.iterations[run.index]
        return minimize_lbfgs(objective, start, run.total, first, longest, run)

    def record(self, index: int, iteration: int, value: float) -> None:
        """Notes a value of the objective."""
        self._history.append({"level": index, "iteration": iteration, "value": value})


class _Run:
    """Reports the iterations of one level, and ends it when asked or when it has settled."""

    def __init__(
        self,
        engine: FreeFormEngine,
        index: int,
        span: tuple[float, float],
        space: SplineSpace,
        initial: Transform,
        progress: Progress,
    ) -> None:
        self.index, self.space = index, space
        self.tolerance, self.total = 0.0, 1
        self._engine, self._span = engine, span
        self._initial, self._progress = initial, progress
        self._values: list[float] = []

    def __call__(self, value: float, parameters: Tensor) -> bool:
        values, progress = self._values, self._progress
        values.append(value)
        self._engine.record(self.index, len(values) - 1, value)
        start, end = self._span
        progress.update(start + (end - start) * min(1.0, len(values) / self.total), value)
        if progress.wants_preview():
            field = self.space.spline(parameters).field(self.space.grid)
            progress.preview(Transform(self._initial.linear, field))
        return not (progress.stop_requested or self._settled())

    def _settled(self) -> bool:
        values = self._values
        if self.tolerance <= 0 or len(values) <= _WINDOW:
            return False
        gain = max(values[0] - values[-1], 1e-12)
        return values[-1 - _WINDOW] - values[-1] < _WINDOW * self.tolerance * gain


def control_meshes(grid: Grid, spacing_mm: float, levels: int) -> list[tuple[int, int, int]]:
    """Returns the numbers of elements of each level, the last as near to a spacing as can be.

    Each is the same as or twice the one before. Control points are never closer than the voxels;
    an axis of one voxel has one element, any other at least two.
    """
    meshes = []
    for size, voxel in zip(grid.shape, grid.spacing_mm):
        if size == 1:
            meshes.append([1] * levels)
            continue
        wanted = (size - 1) * voxel / max(spacing_mm, voxel)
        mesh = [max(2, round(wanted / 2 ** max(levels - 1, 0)))]
        while len(mesh) < levels:
            mesh.append(2 * mesh[-1] if 2 * mesh[-1] <= max(2.0, 1.42 * wanted) else mesh[-1])
        meshes.append(mesh)
    return [(a, b, c) for a, b, c in zip(*meshes)]


def spline_space(
    fixed: Grid, mesh: tuple[int, int, int], grid: Grid, device: torch.device
) -> SplineSpace:
    """Returns the deformations over a fixed image, evaluated on the grid of a level."""
    lattice = BSplineLattice.between_centers(fixed, mesh)
    return SplineSpace(lattice, grid, [n == 1 for n in fixed.shape], device)


def displacement_mm(field: Field, grid: Grid) -> Tensor:
    """Returns a field on a grid as mm along the tensor axes, (3, *grid.shape)."""
    vectors = field.on_grid(grid).displacement[0]
    return vectors * torch.tensor(grid.spacing_mm).to(vectors).view(3, 1, 1, 1)


def without_folds(parameters: Tensor, space: SplineSpace) -> Tensor:
    """Returns parameters, made smaller step by step while the deformation folds."""
    for _ in range(_SHRINKS):
        if space.smallest_volume(parameters) > LEAST_VOLUME:
            return parameters
        parameters = parameters * 0.9
    return torch.zeros_like(parameters)


def _result(spline: BSpline, initial: Transform, fixed: Grid) -> Transform:
    """Returns the transform on the fixed grid; there, too, it must not fold."""
    field = spline.field(fixed)
    for _ in range(_SHRINKS):
        if float(jacobian_determinant(field.displacement).min()) > 0.0:
            break
        spline = BSpline(spline.lattice, spline.coefficients * 0.9)
        field = spline.field(fixed)
    return Transform(initial.linear, field, spline)


def _image_gradient(image: Tensor) -> Tensor:
    """Gradient per voxel of one channel, (1, 3, *shape)."""
    return torch.cat([axis_gradient(image, axis) for axis in range(3)], dim=1)
