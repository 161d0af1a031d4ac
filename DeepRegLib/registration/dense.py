"""The dense optimisation engine: multi-resolution, diffeomorphic, on a lattice of the images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..geometry.field import Field
from ..geometry.grid import Grid, Matrix
from ..geometry.transform import Transform
from ..losses import parse_terms
from ..losses.base import Similarity
from .base import ImagePair, Progress, Result
from .cropping import cropped_to_object
from .deformations import DEFORMATIONS, Compositive, Deformation, StepSettings
from .folds import without_folds
from .guidance import hold_out, label_pair, label_term, landmark_pull, target_error_mm
from .landmark_start import LandmarkPull
from .levels import Lattice, PairLevel, level_spacings, levels_with_detail
from .metric_similarity import similarity_for
from .objective import LevelObjective
from .preparation import prepared

#: Iterations over which the slope of the objective is judged.
_WINDOW = 10
#: Rim of a crop over which the deformation fades, in voxels of the lattice.
_FADED = 2
#: Iterations between two looks at the value on a GPU; each look waits for the device.
_LOOK = {"cpu": 1, "cuda": 5}


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
    volume_weight: float
    lattice: int
    tolerance: float
    finest_mm: float
    modality: str = "same"
    more_terms: str = ""
    preparation: str = "none"
    label_weight: float = 0.0
    landmark_weight: float = 0.0
    landmark_holdout: float = 0.0
    rim: int = 4
    metric_model: str = ""


#: Smoothing of the update and of the field in voxels, and the weight of volume change.
REGULARITY = {"detailed": (1.7, 0.7, 0.07), "smooth": (2.5, 1.2, 0.2)}
#: Different contrasts agree less well, so their noisier forces are smoothed this much more, and
#: correlation needs windows this much wider (measured on T1 to FLAIR, Benchmarks/README.md).
_DIFFERENT_SIGMA, _DIFFERENT_RADIUS = (2.35, 2.85), 2


def dense_settings(values: Mapping[str, Any]) -> DenseSettings:
    """Makes settings from the parameters of a dense algorithm, such as `algorithms/greedy.py`."""
    update_sigma, field_sigma, volume_weight = REGULARITY[values["regularity"]]
    rest = {name: value for name, value in values.items() if name != "regularity"}
    return DenseSettings(
        **rest, update_sigma=update_sigma, field_sigma=field_sigma, volume_weight=volume_weight
    )


def for_modality(settings: DenseSettings) -> DenseSettings:
    """Returns settings whose similarity and smoothing fit the contrasts of the pair."""
    if settings.similarity == "auto":
        settings = replace(settings, similarity="lncc")
        if settings.modality == "different" and not settings.more_terms:
            settings = replace(settings, more_terms="1*mi")
    if settings.modality == "same":
        return settings
    return replace(
        settings,
        radius=settings.radius * _DIFFERENT_RADIUS,
        update_sigma=settings.update_sigma * _DIFFERENT_SIGMA[0],
        field_sigma=settings.field_sigma * _DIFFERENT_SIGMA[1],
    )


class DenseEngine:
    """Pulls the moving image onto the fixed one by many small smooth steps.

    At every step the gradient of the similarity, smoothed (a "fluid" regularity), is scaled to a
    largest length and given to the deformation model. The changes of volume are taken back a
    little, and the deformation is smoothed a little itself (an "elastic" regularity). As each step
    is invertible, so is the whole.

    Args:
        settings: See `DenseSettings`.
        deformation: Name of a model of `deformations.DEFORMATIONS`.
    """

    def __init__(self, settings: DenseSettings, deformation: str = "compositive") -> None:
        self._settings = for_modality(settings)
        self._model = DEFORMATIONS[deformation]
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
        whole, pair = pair, cropped_to_object(prepared(pair, s.preparation))
        pair, held = hold_out(pair, s.landmark_holdout)
        labels = label_pair(pair) if s.label_weight > 0.0 else None
        initial = pair.initial or Transform()
        model: Deformation | None = None
        carried: tuple[Field, ...] = ()
        spacings = level_spacings(s.finest_mm, s.factors, pair.fixed.grid.spacing_mm)
        levels = levels_with_detail(spacings, pair.fixed.grid)
        spacings, iterations = ([list(v)[k] for k in levels] for v in (spacings, s.iterations))
        with torch.no_grad():
            # All levels at once: each is made from the next finer one.
            images = PairLevel.series(pair, initial.linear, spacings, s.lattice)
            for index, span in enumerate(_spans(spacings, iterations)):
                objective = self._objective(images[index], labels, initial.linear, spacings[index])
                pull = self._pull(pair, objective.lattice.grid, initial.linear, progress, index)
                model = self._model(objective, self._steps(), initial.field, carried, pull)
                self._run(model, index, iterations[index], span, initial.linear, progress)
                carried = model.carried()
                if progress.stop_requested:
                    break
            if model is None:
                return Result(initial)
            result = self._result(model, pair.fixed.grid, whole.fixed.grid, initial.linear)
        if len(held):
            _tell_held_out(whole, initial, result.transform, held, progress)
        return result

    def _objective(
        self, level: PairLevel, labels: ImagePair | None, linear: Matrix, spacing_mm: float
    ) -> LevelObjective:
        s = self._settings
        lattice = Lattice.over(level.grid, s.lattice)
        more = []
        if labels is not None:
            more = [label_term(labels, s.label_weight, linear, spacing_mm, s.lattice)]
        terms = self._terms(lattice, level.fixed.device)
        return LevelObjective(level, terms, lattice, more)

    def _pull(
        self, pair: ImagePair, grid: Grid, linear: Matrix, progress: Progress, index: int
    ) -> LandmarkPull | None:
        pull = landmark_pull(pair, grid, linear, self._settings.landmark_weight)
        if pull is not None and self._model is not Compositive and index == 0:
            progress.message(
                "Only 'greedy' follows landmarks while it runs; here they give the start alone."
            )
        return pull

    def _result(self, model: Deformation, seen: Grid, grid: Grid, linear: Matrix) -> Result:
        field = model.forward()
        if seen is not grid:
            # Beyond a crop the field repeats its edge, so that has to rest.
            field = field.faded(_FADED)
        field = field.on_grid(grid)
        field = Field(without_folds(field.displacement), field.grid)
        return Result(Transform(linear, field), history=self._history)

    def _steps(self) -> StepSettings:
        s = self._settings
        return StepSettings(s.step, s.update_sigma, s.field_sigma, s.volume_weight, s.rim)

    def _terms(self, lattice: Lattice, device: torch.device) -> list[tuple[float, Similarity]]:
        s = self._settings
        terms = [(1.0, s.similarity)]
        if s.more_terms.strip():
            terms += parse_terms(s.more_terms)
        return [(weight, self._similarity(name, lattice, device)) for weight, name in terms]

    def _similarity(self, name: str, lattice: Lattice, device: torch.device) -> Similarity:
        options: dict[str, Any] = {}
        if name == "lncc":
            # The windows of blocks of two reach half a voxel further than asked.
            options["radius"] = max(1, self._settings.radius // max(lattice.factors))
            options["block"] = lattice.factors
        if name == "ngf":
            options["spacing_mm"] = lattice.image_grid.spacing_mm
        spacing, model = lattice.image_grid.spacing_mm, self._settings.metric_model
        return similarity_for(name, spacing, model, device, **options)

    def _run(
        self,
        model: Deformation,
        index: int,
        total: int,
        span: tuple[float, float],
        linear: Matrix,
        progress: Progress,
    ) -> None:
        values, waiting = [], []
        for iteration in range(total):
            value = model.iterate()
            waiting.append(value)
            last = iteration + 1 == total
            if len(waiting) < _LOOK.get(value.device.type, 1) and not last:
                continue
            values += torch.stack(waiting).tolist()
            self._record(index, values, len(waiting))
            waiting = []
            done = (iteration + 1) / total
            progress.update(span[0] + (span[1] - span[0]) * done, values[-1])
            if progress.wants_preview():
                progress.preview(Transform(linear, model.forward()))
            if progress.stop_requested or _settled(values, self._settings.tolerance):
                break

    def _record(self, index: int, values: list[float], new: int) -> None:
        start = len(values) - new
        self._history += [
            {"level": index, "iteration": start + k, "value": value}
            for k, value in enumerate(values[start:])
        ]


def _spans(spacings: Sequence[float], iterations: Sequence[int]) -> list[tuple[float, float]]:
    """Share of the run that each level begins and ends at, by its voxels times iterations."""
    costs = np.array([n / s**3 for n, s in zip(iterations, spacings)])
    ends = np.concatenate([[0.0], np.cumsum(costs) / max(costs.sum(), 1e-9)])
    return [(float(a), float(b)) for a, b in itertools.pairwise(ends)]


def _tell_held_out(
    pair: ImagePair, before: Transform, after: Transform, held: np.ndarray, progress: Progress
) -> None:
    """Tells how well landmarks agree that the registration did not see."""
    start, end = (float(np.median(target_error_mm(pair, t, held))) for t in (before, after))
    progress.message(
        f"{len(held)} landmarks were held out: their median distance went from {start:.2f} mm to "
        f"{end:.2f} mm."
    )


def _settled(values: list[float], tolerance: float) -> bool:
    """Whether the objective has stopped falling: its fitted slope, relative to the whole gain."""
    if tolerance <= 0 or len(values) < 2 * _WINDOW:
        return False
    recent = np.array(values[-_WINDOW:])
    slope = -np.polyfit(np.arange(_WINDOW), recent, 1)[0]
    gain = max(values[0] - min(values), 1e-12)
    return bool(slope < tolerance * gain)
