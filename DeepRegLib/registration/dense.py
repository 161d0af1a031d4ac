"""The dense optimisation engine: compositive, multi-resolution, diffeomorphic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.field import Field, compose_displacements, fade_window
from ..geometry.grid import Grid, Matrix
from ..geometry.jacobian import axis_gradient
from ..geometry.sampling import (
    apply_matrix,
    gaussian_smooth,
    inside_image,
    sample,
    voxel_coordinates,
)
from ..geometry.transform import Transform
from ..losses import similarity as make_similarity
from ..losses.base import Similarity
from .base import ImagePair, Progress, Result
from .landmark_start import LandmarkPull
from .preprocess import make_level, mask_on_grid, rescale_intensity

#: Iterations over which the slope of the objective is judged.
_WINDOW = 10


@dataclass(frozen=True)
class DenseSettings:
    """Settings of the dense engine; see `algorithms/greedy.py` for their meaning."""

    similarity: str
    radius: int
    factors: tuple[int, ...]
    iterations: tuple[int, ...]
    step: float
    update_sigma: float
    field_sigma: float
    tolerance: float
    finest_mm: float
    modality: str = "same"
    rim: int = 4


#: Smoothing of the update and of the field, in voxels: the two regularity presets.
REGULARITY = {"detailed": (1.7, 0.7), "smooth": (2.5, 1.2)}
#: Different contrasts agree less well, so their noisier forces are smoothed this much more, and
#: correlation needs windows this much wider (measured on T1 to FLAIR, Benchmarks/README.md).
_DIFFERENT_SIGMA, _DIFFERENT_RADIUS = (2.35, 2.85), 2


def dense_settings(values: Mapping[str, Any]) -> DenseSettings:
    """Makes settings from the parameters of a dense algorithm, such as `algorithms/greedy.py`."""
    update_sigma, field_sigma = REGULARITY[values["regularity"]]
    rest = {name: value for name, value in values.items() if name != "regularity"}
    return DenseSettings(**rest, update_sigma=update_sigma, field_sigma=field_sigma)


def for_modality(settings: DenseSettings) -> DenseSettings:
    """Returns settings whose similarity and smoothing fit the contrasts of the pair."""
    if settings.similarity == "auto":
        settings = replace(settings, similarity="lncc")
    if settings.modality == "same":
        return settings
    return replace(
        settings,
        radius=settings.radius * _DIFFERENT_RADIUS,
        update_sigma=settings.update_sigma * _DIFFERENT_SIGMA[0],
        field_sigma=settings.field_sigma * _DIFFERENT_SIGMA[1],
    )


@dataclass(eq=False)
class _Stage:
    """Everything that one resolution level needs."""

    fixed: Tensor
    moving: Tensor
    fixed_mask: Tensor | None
    moving_mask: Tensor | None
    grid: Grid
    to_moving: Matrix  # level voxel of the fixed grid -> voxel of `moving`
    partial: bool  # whether the moving image may end inside the fixed one


class DenseEngine:
    """Pulls the moving image onto the fixed one by many small smooth steps.

    At every step the gradient of the similarity, smoothed (a "fluid" regularity), is scaled to a
    largest length and composed with the field so far, which is then smoothed a little itself (an
    "elastic" regularity). As each step is invertible, so is the whole.
    """

    def __init__(self, settings: DenseSettings) -> None:
        self._settings = for_modality(settings)
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
        field = None if initial.field is None else initial.field.on_grid(pair.fixed.grid)
        costs = np.array([n / f**3 for n, f in zip(s.iterations, s.factors)])
        ends = np.concatenate([[0.0], np.cumsum(costs) / max(costs.sum(), 1e-9)])
        with torch.no_grad():
            for index in range(len(s.factors)):
                stage = self._stage(pair, initial.linear, s.factors[index])
                field = _to_level(field, stage.grid, pair.device)
                span = (float(ends[index]), float(ends[index + 1]))
                pull = _pull_of(pair, stage.grid, initial.linear)
                field = self._run(stage, field, index, span, initial.linear, progress, pull)
                if progress.stop_requested:
                    break
            field = _to_level(field, pair.fixed.grid, pair.device)
        return Result(Transform(initial.linear, field), history=self._history)

    def _stage(self, pair: ImagePair, linear: Matrix, factor: int) -> _Stage:
        device, s = pair.device, self._settings
        finest = max(min(pair.fixed.grid.spacing_mm), s.finest_mm)
        spacing = factor * finest
        fixed_mask = mask_on_grid(pair.fixed_mask, pair.fixed.grid, device)
        moving_mask = mask_on_grid(pair.moving_mask, pair.moving.grid, device)
        fixed = make_level(rescale_intensity(pair.fixed.data, fixed_mask), pair.fixed.grid, spacing)
        moving_data = rescale_intensity(pair.moving.data, moving_mask)
        # The moving image is smoothed to the level's resolution, but never below its own.
        moving = make_level(moving_data, pair.moving.grid, spacing)
        to_moving = fixed.grid.voxel_to_voxel(moving.grid, linear)
        corners = fixed.grid.to_voxel(fixed.grid.corners_ras()) @ to_moving[:3, :3].T
        corners = corners + to_moving[:3, 3]
        partial = bool(
            (corners < -0.6).any() or (corners > np.array(moving.grid.shape) - 0.4).any()
        )
        return _Stage(
            fixed=fixed.data,
            moving=moving.data,
            fixed_mask=None
            if fixed_mask is None
            else make_level(fixed_mask, pair.fixed.grid, spacing).data,
            moving_mask=None
            if moving_mask is None
            else make_level(moving_mask, pair.moving.grid, spacing).data,
            grid=fixed.grid,
            to_moving=to_moving,
            partial=partial,
        )

    def _similarity(self, spacing_mm: tuple[float, float, float]) -> Similarity:
        s = self._settings
        options: dict[str, Any] = {}
        if s.similarity == "lncc":
            options["radius"] = s.radius
        if s.similarity == "ngf":
            options["spacing_mm"] = spacing_mm
        return make_similarity(s.similarity, **options)

    def _run(
        self,
        stage: _Stage,
        field: Field,
        index: int,
        span: tuple[float, float],
        linear: Matrix,
        progress: Progress,
        pull: LandmarkPull | None = None,
    ) -> Field:
        s = self._settings
        similarity = self._similarity(stage.grid.spacing_mm)
        stage = _with_features(stage, similarity)
        bound = similarity.bind(stage.fixed, stage.fixed_mask)
        identity = voxel_coordinates(stage.grid.shape, stage.fixed.device)
        window = fade_window(stage.grid.shape, s.rim, stage.fixed.device)
        relative = np.array(stage.grid.spacing_mm) / min(stage.grid.spacing_mm)
        displacement, values = field.displacement, []
        total = s.iterations[index]
        for iteration in range(total):
            moved, mask = _pull(stage, identity, displacement)
            value, slope = bound.value_and_gradient(moved, mask)
            values.append(float(value))
            update = _descent(moved, slope, relative)
            update = gaussian_smooth(update, list(s.update_sigma / relative)).mul_(window)
            length = _largest(update, relative)
            if length == 0.0:
                break
            update.mul_(s.step / length)
            displacement = compose_displacements(displacement, update)
            displacement = gaussian_smooth(displacement, list(s.field_sigma / relative))
            if pull is not None:
                displacement = pull.held(displacement)
            self._history.append({"level": index, "iteration": iteration, "value": values[-1]})
            done = (iteration + 1) / total
            progress.update(span[0] + (span[1] - span[0]) * done, values[-1])
            if progress.wants_preview():
                progress.preview(Transform(linear, Field(displacement, stage.grid)))
            if progress.stop_requested or _settled(values, s.tolerance):
                break
        return Field(displacement, stage.grid)


def _pull_of(pair: ImagePair, grid: Grid, linear: Matrix) -> LandmarkPull | None:
    fixed, moving = pair.fixed_landmarks_ras, pair.moving_landmarks_ras
    if not pair.landmarks_lead or fixed is None or moving is None:
        return None
    return LandmarkPull(fixed, moving, linear, grid, pair.device)


def _to_level(field: Field | None, grid: Grid, device: torch.device) -> Field:
    if field is None:
        return Field.identity(grid, device)
    return field.to(device).resized(grid.shape)


def _with_features(stage: _Stage, similarity: Similarity) -> _Stage:
    """Replaces images by the features that a similarity compares, if it compares features.

    Features such as MIND are not invariant to rotation, so they are taken from the moving image
    after the linear map, on the fixed grid.
    """
    if type(similarity).prepare is Similarity.prepare:
        return stage
    where = apply_matrix(stage.to_moving, voxel_coordinates(stage.grid.shape, stage.fixed.device))
    aligned = sample(stage.moving, where)
    mask = stage.moving_mask
    if mask is not None or stage.partial:
        inside = inside_image(where, stage.moving.shape[2:]).float()
        mask = inside if mask is None else inside * sample(mask, where)
    return _Stage(
        fixed=similarity.prepare(stage.fixed),
        moving=similarity.prepare(aligned),
        fixed_mask=stage.fixed_mask,
        moving_mask=mask,
        grid=stage.grid,
        to_moving=np.eye(4),
        partial=False,
    )


def _pull(stage: _Stage, identity: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns the moving image through the field, and where the objective counts."""
    where = identity + displacement
    if not np.array_equal(stage.to_moving, np.eye(4)):
        where = apply_matrix(stage.to_moving, where)
    moved = sample(stage.moving, where)
    mask = stage.fixed_mask
    if stage.partial:
        inside = inside_image(where, stage.moving.shape[2:]).to(moved.dtype)
        mask = inside if mask is None else mask * inside
    if stage.moving_mask is not None:
        there = sample(stage.moving_mask, where)
        mask = there if mask is None else mask * there
    return moved, mask


def _descent(moved: Tensor, slope: Tensor, relative: np.ndarray) -> Tensor:
    """Steepest descent direction for the update, in voxels, (1, 3, *shape).

    The update is composed on the right, so the derivative is that of the moved image itself. On an
    anisotropic grid the direction is steepest in mm: a component scales with one over its spacing
    twice, once for the derivative and once for the vector.
    """
    parts = []
    for axis in range(3):
        force = axis_gradient(moved, axis).mul_(slope).sum(1, keepdim=True)
        parts.append(force.mul_(-1.0 / float(relative[axis]) ** 2))
    return torch.cat(parts, dim=1)


def _largest(update: Tensor, relative: np.ndarray) -> float:
    """Largest length of the update in units of the smallest voxel edge."""
    square = torch.zeros_like(update[:, :1])
    for axis in range(3):
        square.addcmul_(update[:, axis : axis + 1], update[:, axis : axis + 1],
                        value=float(relative[axis]) ** 2)  # fmt: skip
    return float(square.max()) ** 0.5


def _settled(values: list[float], tolerance: float) -> bool:
    """Whether the objective has stopped falling: its fitted slope, relative to the whole gain."""
    if tolerance <= 0 or len(values) < 2 * _WINDOW:
        return False
    recent = np.array(values[-_WINDOW:])
    slope = -np.polyfit(np.arange(_WINDOW), recent, 1)[0]
    gain = max(values[0] - min(values), 1e-12)
    return bool(slope < tolerance * gain)
