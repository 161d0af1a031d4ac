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
from ..geometry.sampling import apply_matrix, sample, sample_grid, sampling_matrix, slope_at
from ..geometry.transform import Transform
from ..losses.base import Similarity
from .base import ImagePair, Progress, Result
from .initialize import candidates, from_landmarks, moments
from .metric_similarity import similarity_for
from .preprocess import (
    Level,
    make_level,
    mask_on_grid,
    pyramid,
    quantiles,
    rescale_intensity,
    subsample,
)
from .quasi_newton import minimize
from .remembered import Remembered
from .samples import (
    Samples,
    draw_points,
    lattice_points,
    sampling_weights,
    thinned,
    to_ras,
)
from .thin import are_slices, frame_of, slice_candidates

#: Orientations that are refined at the coarsest level, and starts that go on to the second.
_REFINED, _KEPT = 24, 4
#: Iterations after which a refinement of many starts goes on with the best few.
_GLANCE, _PROMISING = 8, 8
#: Points that are enough to tell the starts apart.
_GLANCED_POINTS = 8000
#: How much better (share of the objective's gain) a turned start must be than an upright one.
_TURNED_MARGIN = 0.03
#: Step of the differences by the parameters, which are all lengths.
_DIFFERENCE_MM = 1e-3
#: Share of the points that must fall into the moving image.
_LEAST_OVERLAP = 0.1

#: Points and similarities of each level, by fixed image.
_LEVELS: Remembered[tuple[list[Samples], list[Similarity]]] = Remembered()


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
    metric_model: str = ""


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
        initial = pair.initial or Transform()
        center, radius = _center_and_radius(pair)
        levels, measures = self._levels(pair, initial)
        matrices = self._starts(pair, levels[0])
        for index, samples in enumerate(levels):
            matrices = self._refine_all(
                pair,
                matrices,
                samples,
                measures[index],
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

    def _starts(self, pair: ImagePair, coarse: Samples) -> list[Matrix]:
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
        samples: Samples,
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
        samples: Samples,
        similarity: Similarity,
        pivot: tuple[np.ndarray, float],
        progress: Progress,
    ) -> list[Matrix]:
        """Refines many starts a little, and returns the best few of them, the best first."""
        found = []
        few = thinned(samples, _GLANCED_POINTS)
        for start in matrices:
            objective = _Objective(pair, few, similarity, "rigid", start, *pivot)
            found.append(objective.minimize(min(_GLANCE, self._settings.iterations)))
            progress.update(0.0, found[-1][0])
            if progress.stop_requested:
                break
        return _rank(found)[:_PROMISING]

    def _levels(
        self, pair: ImagePair, initial: Transform
    ) -> tuple[list[Samples], list[Similarity]]:
        """Returns the points of each level, and what compares them there."""
        if initial.field is not None:
            return self._made_levels(pair, initial)
        s = self._settings
        # Rigid and affine stages look at the same points, unless the user sets them apart.
        settings = (s.similarity, s.metric_model, s.samples, s.sizes, s.seed)
        others = (pair.moving, pair.fixed_mask, pair.moving_mask)
        return _LEVELS.get(pair.fixed, others, settings, lambda: self._made_levels(pair, initial))

    def _made_levels(
        self, pair: ImagePair, initial: Transform
    ) -> tuple[list[Samples], list[Similarity]]:
        device = pair.device
        generator = torch.Generator().manual_seed(self._settings.seed)
        fixed_mask = mask_on_grid(pair.fixed_mask, pair.fixed.grid, device)
        moving_mask = mask_on_grid(pair.moving_mask, pair.moving.grid, device)
        fixed = rescale_intensity(pair.fixed.data[:, :1], fixed_mask)
        moving = rescale_intensity(pair.moving.data[:, :1], moving_mask)
        weights = sampling_weights(pair, fixed_mask)
        extent = max(np.array(pair.fixed.grid.shape) * pair.fixed.grid.spacing_mm)
        spacings = [extent / size for size in self._settings.sizes]
        fixed_levels = pyramid(fixed, pair.fixed.grid, spacings)
        moving_levels = pyramid(moving, pair.moving.grid, spacings)
        levels, measures = [], []
        for index, spacing in enumerate(spacings):
            fixed_level, moving_level = fixed_levels[index], moving_levels[index]
            mask = None
            if moving_mask is not None:
                mask = make_level(moving_mask, pair.moving.grid, spacing).data
            measure = self._measure(fixed_level.grid, device)
            moving_level = Level(measure.rescaled(moving_level.data, mask), moving_level.grid)
            rest = (moving_level, mask, _ground(moving_level.data))
            if measure.local:
                fixed_level = Level(measure.rescaled(fixed_level.data), fixed_level.grid)
                samples = lattice_points(
                    fixed_level, weights, fixed_mask is not None, initial, rest
                )
            else:
                count = self._settings.samples // 2 ** (len(self._settings.sizes) - 1 - index)
                points = draw_points(weights, count, generator).to(device)
                on_level = apply_matrix(pair.fixed.grid.voxel_to_voxel(fixed_level.grid), points)
                ras = to_ras(points, pair.fixed.grid, initial)
                samples = Samples(ras, sample(fixed_level.data, on_level), *rest)
            levels.append(samples)
            measures.append(measure)
        return levels, measures

    def _measure(self, grid: Grid, device: torch.device) -> Similarity:
        name, model = self._settings.similarity, self._settings.metric_model
        return similarity_for(name, grid.spacing_mm, model, device)


class _Objective:
    """Similarity at the sample points as a function of the linear parameters."""

    def __init__(
        self,
        pair: ImagePair,
        samples: Samples,
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
        grid = samples.moving.grid
        self._onto_grid = torch.from_numpy(sampling_matrix(grid.ras_to_voxel, grid.shape))
        # The extent of the image with the tolerance of `inside_image`, in the grid's numbers.
        sizes = samples.fixed_ras.new_tensor(grid.shape[::-1])
        self._rim = 1.0 + 0.002 / sizes

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
        full = parameters.new_zeros(*parameters.shape[:-1], PARAMETER_COUNT[self._kind])
        full[..., self._free] = parameters
        turn = linear_matrix(full, self._kind, np.zeros(3), self._radius)
        return self._basis @ turn @ self._back @ torch.tensor(self._start)

    def _matrices(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Fixed RAS to the moving grid's numbers (4, 4), and its changes by parameter (P, 4, 4).

        The change is a central difference in float64, exact to ten digits: for a dozen numbers it
        is several times faster than a tape.
        """
        count = len(parameters)
        steps = _DIFFERENCE_MM * torch.eye(count, dtype=parameters.dtype)
        all_of_them = torch.cat([parameters[None], parameters + steps, parameters - steps])
        found = self._onto_grid @ self._matrix(all_of_them)
        change = (found[1 : count + 1] - found[count + 1 :]) / (2.0 * _DIFFERENCE_MM)
        return found[0], change

    def _value_and_gradient(self, values: np.ndarray) -> tuple[float, np.ndarray]:
        s = self._samples
        image = s.moving.data
        to_grid, change = self._matrices(torch.from_numpy(values))
        m = to_grid.to(s.fixed_ras)
        where = torch.addmm(m[:3, 3], s.fixed_ras, m[:3, :3].T)
        where = where.reshape(1, *s.intensities.shape[2:], 3)
        moved = sample_grid(image, where)
        weights = (where.abs() <= self._rim).all(-1, keepdim=True)
        weights = weights.reshape(moved.shape[0], 1, *moved.shape[2:]).float()
        if s.moving_mask is not None:
            weights = weights * sample_grid(s.moving_mask, where)
        counted = weights if s.fixed_mask is None else weights * s.fixed_mask
        value, slope = self._similarity.value_and_gradient(s.intensities, moved, counted)
        by_grid = slope_at(image, where, slope).reshape(-1, 3)
        by_matrix = torch.zeros(4, 4, dtype=torch.float64)
        by_matrix[:3, :3] = (by_grid.T @ s.fixed_ras).to(by_matrix)
        by_matrix[:3, 3] = by_grid.sum(0).to(by_matrix)
        gradient = (change * by_matrix).sum((1, 2))
        # Too little overlap makes any similarity meaningless; such a step is refused.
        if float(weights.mean()) < _LEAST_OVERLAP:
            return float("inf"), gradient.numpy()
        return float(value), gradient.numpy()


def joint_information(samples: Samples, matrices: np.ndarray, bins: int = 16) -> Tensor:
    """Mutual information of the samples for many matrices at once, by plain histograms.

    Args:
        samples: Points of the coarsest level.
        matrices: (K, 4, 4), fixed RAS to moving RAS.
        bins: Number of intensity bins of either image.

    Returns:
        (K,) values in nats; larger is better.
    """
    step = max(1, len(samples.fixed_ras) // 4000)
    points = samples.fixed_ras[::step].T
    fixed = samples.intensities.reshape(-1)[::step]
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


def _ground(image: Tensor) -> float:
    """Brightness of the background, about."""
    return float(quantiles(subsample(image), [0.02])[0])


def _center_and_radius(pair: ImagePair) -> tuple[np.ndarray, float]:
    center, covariance = moments(pair.fixed, pair.fixed_mask)
    # For a solid ellipsoid the rim lies sqrt(5) standard deviations from the centre.
    return center, float(np.sqrt(5.0 * np.trace(covariance) / 3.0))


def settings_from(kind: LinearKind, values: dict[str, Any]) -> LinearSettings:
    """Makes settings from the parameters of a linear algorithm."""
    return replace(LinearSettings(kind, "mi", "auto", 0, 0, 0, ()), **values)
