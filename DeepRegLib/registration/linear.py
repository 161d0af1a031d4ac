"""Multi-resolution rigid, similarity and affine registration of any two modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.affine import PARAMETER_COUNT, LinearKind, linear_matrix, rotation_angle_deg
from ..geometry.grid import Grid, Matrix
from ..geometry.sampling import apply_matrix, inside_image, sample
from ..geometry.transform import Transform
from ..losses import similarity as make_similarity
from ..losses.base import Similarity
from .base import ImagePair, Progress, Result
from .initialize import candidates, from_landmarks, moments
from .preprocess import (
    Level,
    foreground,
    make_level,
    mask_on_grid,
    pyramid,
    rescale_intensity,
)
from .quasi_newton import minimize
from .thin import are_slices, frame_of, slice_candidates

#: Orientations that are refined at the coarsest level, and starts that go on to the second.
_REFINED, _KEPT = 24, 4
#: Iterations after which a refinement of many starts goes on with the best few.
_GLANCE, _PROMISING = 8, 8
#: How much better (share of the objective's gain) a turned start must be than an upright one.
_TURNED_MARGIN = 0.03
#: Share of the points that must fall into the moving image.
_LEAST_OVERLAP = 0.1


@dataclass(frozen=True)
class LinearSettings:
    """Settings that the linear algorithms share; see `algorithms/rigid.py` for their meaning."""

    kind: LinearKind
    similarity: str
    initialization: str
    rotations: int
    samples: int
    iterations: int
    sizes: tuple[int, ...]
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Samples:
    """Points of the fixed image with their intensities, at one level.

    `fixed_ras` are in RAS mm after the initial deformation, if there is one.
    """

    fixed_ras: Tensor  # (1, 3, N, 1, 1)
    intensities: Tensor  # (1, 1, N, 1, 1)
    moving: Level
    moving_mask: Tensor | None  # on the moving level's grid
    moving_ground: float


class LinearEngine:
    """Finds the best linear map: candidate starts, then BFGS on sampled points at each level."""

    def __init__(self, settings: LinearSettings) -> None:
        self._settings = settings
        self._history: list[dict[str, Any]] = []

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair, from `pair.initial` or from a start of its own.

        Args:
            pair: The images.
            progress: Gets events.

        Returns:
            Result with transform and history.
        """
        self._history = []
        similarity = make_similarity(self._settings.similarity)
        initial = pair.initial or Transform()
        center, radius = _center_and_radius(pair)
        levels = self._levels(pair, initial)
        matrices = self._starts(pair, levels[0])
        for index, samples in enumerate(levels):
            matrices = self._refine_all(
                pair,
                matrices,
                samples,
                similarity,
                (center, radius),
                (index, len(levels)),
                progress,
            )
            matrices = matrices[: _KEPT if index == 0 else 1]
            if progress.wants_preview():
                progress.preview(Transform(matrices[0], initial.field))
            if progress.stop_requested:
                break
        return Result(Transform(matrices[0], initial.field), history=self._history)

    def _starts(self, pair: ImagePair, coarse: _Samples) -> list[Matrix]:
        method = self._settings.initialization
        if pair.initial is not None:
            return [pair.initial.linear]
        has_landmarks = pair.fixed_landmarks_ras is not None and len(pair.fixed_landmarks_ras) >= 3
        if method == "landmarks" or (method == "auto" and has_landmarks):
            return [from_landmarks(pair, self._settings.kind)]
        if are_slices(pair):
            return slice_candidates(pair, method)
        starts = candidates(pair, method, self._settings.rotations)
        if len(starts) <= 7:
            return starts
        upright = starts[:7] if method == "auto" else starts[:1]
        scores = joint_information(coarse, np.stack(starts))
        order = torch.argsort(scores, descending=True).tolist()
        return upright + [starts[i] for i in order[:_REFINED]]

    def _refine_all(
        self,
        pair: ImagePair,
        matrices: Sequence[Matrix],
        samples: _Samples,
        similarity: Similarity,
        pivot: tuple[np.ndarray, float],
        level: tuple[int, int],
        progress: Progress,
    ) -> list[Matrix]:
        """Refines several starts at one level and returns them, the best first."""
        found = []
        kind: LinearKind = self._settings.kind if level[0] > 0 or len(matrices) == 1 else "rigid"
        if len(matrices) > 2 * _PROMISING:
            matrices = self._promising(pair, matrices, samples, similarity, pivot, progress)
        for number, start in enumerate(matrices):
            objective = _Objective(pair, samples, similarity, kind, start, *pivot)
            value, matrix = objective.minimize(self._settings.iterations)
            found.append((value, matrix))
            self._history.append({"level": level[0], "iteration": number, "value": value})
            share = (level[0] + (number + 1) / len(matrices)) / level[1]
            progress.update(share, value)
            if progress.stop_requested:
                break
        return _rank(found)

    def _promising(
        self,
        pair: ImagePair,
        matrices: Sequence[Matrix],
        samples: _Samples,
        similarity: Similarity,
        pivot: tuple[np.ndarray, float],
        progress: Progress,
    ) -> list[Matrix]:
        """Refines many starts a little, and returns the best few of them, the best first."""
        found = []
        for start in matrices:
            objective = _Objective(pair, samples, similarity, "rigid", start, *pivot)
            found.append(objective.minimize(min(_GLANCE, self._settings.iterations)))
            progress.update(0.0, found[-1][0])
            if progress.stop_requested:
                break
        return _rank(found)[:_PROMISING]

    def _levels(self, pair: ImagePair, initial: Transform) -> list[_Samples]:
        device = pair.device
        generator = torch.Generator().manual_seed(self._settings.seed)
        fixed_mask = mask_on_grid(pair.fixed_mask, pair.fixed.grid, device)
        moving_mask = mask_on_grid(pair.moving_mask, pair.moving.grid, device)
        fixed = rescale_intensity(pair.fixed.data[:, :1], fixed_mask)
        moving = rescale_intensity(pair.moving.data[:, :1], moving_mask)
        weights = _sampling_weights(pair, fixed_mask)
        extent = max(np.array(pair.fixed.grid.shape) * pair.fixed.grid.spacing_mm)
        spacings = [extent / size for size in self._settings.sizes]
        fixed_levels = pyramid(fixed, pair.fixed.grid, spacings)
        moving_levels = pyramid(moving, pair.moving.grid, spacings)
        levels = []
        for index, spacing in enumerate(spacings):
            fixed_level, moving_level = fixed_levels[index], moving_levels[index]
            count = self._settings.samples // 2 ** (len(self._settings.sizes) - 1 - index)
            points = _draw_points(weights, count, generator).to(device)
            on_level = apply_matrix(pair.fixed.grid.voxel_to_voxel(fixed_level.grid), points)
            levels.append(
                _Samples(
                    fixed_ras=_to_ras(points, pair.fixed.grid, initial),
                    intensities=sample(fixed_level.data, on_level),
                    moving=moving_level,
                    moving_mask=None
                    if moving_mask is None
                    else make_level(moving_mask, pair.moving.grid, spacing).data,
                    moving_ground=float(moving_level.data.quantile(0.02))
                    if moving_level.data.numel() < 1e7
                    else float(moving_level.data.min()),
                )
            )
        return levels


class _Objective:
    """Similarity at the sample points as a function of the linear parameters."""

    def __init__(
        self,
        pair: ImagePair,
        samples: _Samples,
        similarity: Similarity,
        kind: LinearKind,
        start: Matrix,
        center_ras: np.ndarray,
        radius_mm: float,
    ) -> None:
        self._samples, self._similarity, self._kind = samples, similarity, kind
        self._start, self._radius = start, radius_mm
        # The pivot lies in the moving space: the parameters turn the start about it.
        pivot = start[:3, :3] @ center_ras + start[:3, 3]
        frame = frame_of(pair, kind, start, pivot)
        self._free = torch.tensor(frame.free)
        self._basis = torch.from_numpy(frame.basis.copy())
        self._back = torch.from_numpy(np.linalg.inv(frame.basis))

    def minimize(self, iterations: int) -> tuple[float, Matrix]:
        """Returns the least value met, with its matrix."""
        resolution = min(self._samples.moving.grid.spacing_mm)
        value, parameters = minimize(
            self._value_and_gradient,
            np.zeros(len(self._free)),
            iterations,
            first_step=resolution,
            longest_step=4.0 * resolution,
            tolerance=1e-3 * resolution,
        )
        return value, self._matrix(torch.from_numpy(parameters)).numpy()

    def _matrix(self, parameters: Tensor) -> Tensor:
        full = parameters.new_zeros(PARAMETER_COUNT[self._kind])
        full = full.index_copy(0, self._free, parameters)
        turn = linear_matrix(full, self._kind, np.zeros(3), self._radius)
        return self._basis @ turn @ self._back @ torch.tensor(self._start)

    def _value_and_gradient(self, values: np.ndarray) -> tuple[float, np.ndarray]:
        s = self._samples
        parameters = torch.from_numpy(values).requires_grad_(True)
        with torch.enable_grad():
            matrix = self._matrix(parameters)
            to_voxel = torch.from_numpy(s.moving.grid.ras_to_voxel.copy()) @ matrix
            m = to_voxel.to(s.fixed_ras)
            flat = m[:3, :3] @ s.fixed_ras.reshape(3, -1) + m[:3, 3:]
            where = flat.reshape(1, 3, -1, 1, 1)
            moved = sample(s.moving.data, where)
        weights = inside_image(where.detach(), s.moving.grid.shape).float()
        if s.moving_mask is not None:
            weights = weights * sample(s.moving_mask, where.detach())
        overlap = float(weights.mean())
        value, slope = self._similarity.value_and_gradient(s.intensities, moved.detach(), weights)
        (gradient,) = torch.autograd.grad(moved, parameters, slope)
        # Too little overlap makes any similarity meaningless; such a step is refused.
        if overlap < _LEAST_OVERLAP:
            return float("inf"), gradient.numpy()
        return float(value), gradient.numpy()


def joint_information(samples: _Samples, matrices: np.ndarray, bins: int = 16) -> Tensor:
    """Mutual information of the samples for many matrices at once, by plain histograms.

    Args:
        samples: Points of the coarsest level.
        matrices: (K, 4, 4), fixed RAS to moving RAS.
        bins: Number of intensity bins of either image.

    Returns:
        (K,) values in nats; larger is better.
    """
    step = max(1, samples.fixed_ras.shape[2] // 4000)
    points = samples.fixed_ras[:, :, ::step].reshape(3, -1)
    fixed = samples.intensities[:, :, ::step].reshape(-1)
    fixed_bin = (fixed * (bins - 1e-3)).long().clamp_(0, bins - 1)
    scores = []
    for chunk in np.array_split(matrices, max(1, len(matrices) // 64)):
        m = torch.from_numpy(samples.moving.grid.ras_to_voxel @ chunk).to(points)
        where = (m[:, :3, :3] @ points + m[:, :3, 3:]).permute(1, 0, 2)[None, ..., None]
        # Beyond the moving image lies its background: a start must not win by leaving it.
        moved = sample(samples.moving.data, where, "linear", "fill", samples.moving_ground)
        moved_bin = (moved[0, 0, :, :, 0] * (bins - 1e-3)).long().clamp_(0, bins - 1)
        joint_bin = fixed_bin * bins + moved_bin
        joint = torch.zeros(len(chunk), bins * bins, device=points.device)
        joint.scatter_add_(1, joint_bin, torch.ones_like(joint_bin, dtype=joint.dtype))
        scores.append(_information(joint.reshape(-1, bins, bins)))
    return torch.cat(scores)


def _information(joint: Tensor) -> Tensor:
    p = joint / joint.sum((1, 2), keepdim=True).clamp(min=1e-12)

    def entropy(q: Tensor) -> Tensor:
        return -(q * q.clamp(min=1e-12).log()).flatten(1).sum(1)

    return entropy(p.sum(1)) + entropy(p.sum(2)) - entropy(p)


def _rank(found: list[tuple[float, Matrix]]) -> list[Matrix]:
    """Sorts by value; a start that kept the orientation wins unless another is clearly better.

    Headers usually tell the orientation, and a body is often nearly symmetric.
    """
    # A start without overlap has no value; it must neither win nor stretch the tolerance.
    found = sorted((item for item in found if np.isfinite(item[0])), key=lambda item: item[0])
    if not found:
        raise InputError(
            "No start lets the two images overlap; give an initial transform, or set "
            "initialization to 'mass' or 'search'."
        )
    best, worst = found[0][0], found[-1][0]
    tolerance = _TURNED_MARGIN * (worst - best)
    near = [item for item in found if item[0] <= best + tolerance]
    upright = [item for item in near if rotation_angle_deg(item[1]) < 45.0]
    if upright and upright[0] is not found[0]:
        found = [upright[0], *(item for item in found if item is not upright[0])]
    return [matrix for _, matrix in found]


def _center_and_radius(pair: ImagePair) -> tuple[np.ndarray, float]:
    center, covariance = moments(pair.fixed, pair.fixed_mask)
    # For a solid ellipsoid the rim lies sqrt(5) standard deviations from the centre.
    return center, float(np.sqrt(5.0 * np.trace(covariance) / 3.0))


def _sampling_weights(pair: ImagePair, fixed_mask: Tensor | None) -> Tensor:
    """Where points are drawn: in the mask, or else in the box around the foreground."""
    if fixed_mask is not None:
        return fixed_mask
    inside = foreground(pair.fixed)[0, 0]
    box = torch.zeros_like(inside)
    slices = []
    for axis in range(3):
        other = [a for a in range(3) if a != axis]
        hits = inside.amax(dim=other[0]).amax(dim=other[1] - 1).nonzero()
        size = inside.shape[axis]
        low, high = (0, size) if len(hits) == 0 else (int(hits.min()), int(hits.max()) + 1)
        margin = max(1, (high - low) // 10)
        slices.append(slice(max(0, low - margin), min(size, high + margin)))
    box[tuple(slices)] = True
    return box[None, None].float()


def _draw_points(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws jittered voxel positions where the weights are positive, (1, 3, N, 1, 1).

    The jitter avoids the grid artefacts of mutual information (Tsao 2003,
    doi:10.1109/TMI.2003.812259).
    """
    voxels = weights[0, 0].nonzero().cpu()
    chosen = torch.randint(len(voxels), (count,), generator=generator)
    points = voxels[chosen].float() + torch.rand(count, 3, generator=generator) - 0.5
    return points.T.reshape(1, 3, -1, 1, 1)


def _to_ras(points_voxel: Tensor, grid: Grid, initial: Transform) -> Tensor:
    """Converts points to RAS (float32 resolves 0.02 micrometres), moved by the initial field."""
    if initial.field is not None:
        field = initial.field.on_grid(grid).to(points_voxel.device)
        points_voxel = points_voxel + field.at(points_voxel)
    return apply_matrix(grid.voxel_to_ras, points_voxel)


def settings_from(kind: LinearKind, values: dict[str, Any]) -> LinearSettings:
    """Makes settings from the parameters of a linear algorithm."""
    return replace(LinearSettings(kind, "mi", "auto", 0, 0, 0, ()), **values)
