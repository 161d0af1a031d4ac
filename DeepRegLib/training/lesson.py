"""What a teacher says of a pair: an algorithm that needs no training registers it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import registry
from ..errors import ParameterError
from ..geometry.grid import Grid
from ..geometry.jacobian import jacobian_determinant
from ..geometry.momentum import Momentum
from ..geometry.sampling import voxel_coordinates
from ..geometry.transform import Transform
from ..metrics.similarity import pair_similarity
from ..registration.base import Image, ImagePair, Progress
from ..registration.preprocess import foreground
from ..registration.shooting import ShootingEngine, shooting_settings

#: Share of folded voxels of the object, in percent, from which on an answer is not learned from.
_MOST_FOLDS = 0.1
#: Gain in correlation or mutual information below which it is none.
_LEAST_GAIN = 1e-4
#: The teacher whose answer is an initial momentum.
_SHOOTING = "lddmm"


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a teacher says of a pair.

    Convention:
        The displacement is that of `Batch.truth`, (1, 3, *shape) in voxels; the momentum that of
        `Batch.momentum`, on the lattice of the engine over the images with their margin.

    Args:
        displacement: What brings the moving image onto the fixed one.
        momentum: Initial momentum of the geodesic that ends in it, if the teacher shoots.
        symmetric: Whether it may be mirrored: its lattice begins and ends where the images do.
        seconds: How long it took.
        folds_percent: Share of folded voxels where the fixed image shows something.
        before: Correlation (``ncc``) and mutual information (``nmi``) of the images as they are.
        after: The same of the fixed and the moved image.
    """

    displacement: Tensor
    momentum: Tensor | None
    symmetric: bool
    seconds: float
    folds_percent: float
    before: Mapping[str, float]
    after: Mapping[str, float]

    @property
    def fault(self) -> str:
        """Why nothing can be learned from it; empty if it can."""
        if not bool(torch.isfinite(self.displacement).all()):
            return "its answer has values that are no numbers"
        if self.folds_percent > _MOST_FOLDS:
            return f"{self.folds_percent:.2f} % of the object fold"
        if not any(self.after[n] > self.before[n] + _LEAST_GAIN for n in ("ncc", "nmi")):
            return "the images are no more alike than before"
        return ""


@dataclass(frozen=True)
class Teacher:
    """An algorithm of the registry that needs no training, with its parameters.

    Args:
        key: Key of the algorithm; its transform is deformable.
        preset: Preset of its parameters.
        values: Parameter values that differ from the preset.
        margin: Voxels of background around the images while it works. What the engine finds rests
            at the rim of its grid, which may be the rim of the object.

    Raises:
        ParameterError: If there is no such algorithm, it is none that can teach, or a value does
            not fit.
    """

    key: str
    preset: str = "balanced"
    values: Mapping[str, Any] = field(default_factory=dict)
    margin: int = 0

    def __post_init__(self) -> None:
        spec = registry.spec(self.key)
        if spec.needs.training or spec.transform == "linear":
            raise ParameterError(
                f"'{self.key}' cannot teach: a teacher finds deformations without being trained."
            )
        object.__setattr__(self, "values", spec.values(self.preset, **dict(self.values)))

    def teach(
        self, fixed: Tensor, moving: Tensor, spacing_mm: float, progress: Progress | None = None
    ) -> Lesson:
        """Registers a pair of images (1, 1, *shape) on the grid of a model.

        Raises:
            Cancelled: If the progress says so.
        """
        grid = model_grid(fixed.shape[2:], spacing_mm)
        wide, room = grid.padded(self.margin), [self.margin] * 6
        pair = ImagePair(Image(F.pad(fixed, room), wide), Image(F.pad(moving, room), wide))
        started = time.perf_counter()
        with torch.no_grad():
            transform, momentum = self._register(pair, progress or Progress())
        seconds = time.perf_counter() - started
        where = transform.moving_coordinates(wide, wide, fixed.device)
        displacement = without_margin(
            where - voxel_coordinates(wide.shape, fixed.device), self.margin
        )
        shown = foreground(Image(fixed, grid))[:, 0]
        folded = (jacobian_determinant(displacement) <= 0.0)[shown]
        return Lesson(
            displacement,
            None if momentum is None else momentum.values,
            momentum is None or momentum.grid.matches(wide.resized(momentum.grid.shape)),
            seconds,
            100.0 * float(folded.float().mean()) if len(folded) else 0.0,
            _alike(pair, Transform()),
            _alike(pair, transform),
        )

    def _register(self, pair: ImagePair, progress: Progress) -> tuple[Transform, Momentum | None]:
        if self.key != _SHOOTING:
            found = registry.create(self.key, **self.values).register(pair, progress)
            return found.transform, None
        engine = ShootingEngine(shooting_settings(self.values))
        return engine.register(pair, progress).transform, engine.momentum


def model_grid(shape: Sequence[int], spacing_mm: float) -> Grid:
    """Returns a grid of a model: axes to R, A and S, the first voxel at the origin."""
    return Grid(tuple(shape), np.diag([spacing_mm] * 3 + [1.0]))  # type: ignore[arg-type]


def without_margin(vectors: Tensor, margin: int) -> Tensor:
    """Returns (B, C, D, H, W) without so many voxels at each side of each axis."""
    if margin == 0:
        return vectors
    inner = slice(margin, -margin)
    return vectors[:, :, inner, inner, inner].contiguous()


def _alike(pair: ImagePair, transform: Transform) -> dict[str, float]:
    found = pair_similarity(pair, transform)
    return {name: found[name] for name in ("ncc", "nmi")}
