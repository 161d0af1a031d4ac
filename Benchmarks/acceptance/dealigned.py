"""Test pairs that are turned and shifted at random, and how far a map is from undoing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from common import register
from torch import Tensor

from DeepRegLib.geometry.transform import Transform
from DeepRegLib.registration.base import Image, ImagePair
from DeepRegLib.registration.rigid_motion import (
    motion_matrix,
    motions_of_error,
    surface_points,
    target_error_mm,
)

from .cases import SPACING_MM, EvaluationPair

#: The pairs are aligned, so the truth is no motion at all.
STILL = torch.eye(4, dtype=torch.float64)
_SEED = 20171


@dataclass(frozen=True, eq=False)
class Start:
    """Where a registration of a pair starts.

    Args:
        pair: The pair, linearly aligned.
        matrix: The start, (4, 4) in voxels of its grid, float64; the truth is the identity.
    """

    pair: EvaluationPair
    matrix: Tensor

    @property
    def images(self) -> ImagePair:
        """The pair for the engine, with the start; nothing of the moving image is cut off."""
        grid = self.pair.grid
        start = grid.voxel_to_ras @ self.matrix.numpy() @ grid.ras_to_voxel
        return ImagePair(
            Image(self.pair.fixed, grid), Image(self.pair.moving, grid),
            initial=Transform(start), initial_is_given=True,
        )  # fmt: skip


def starts_within(
    pairs: Sequence[EvaluationPair], count: int, shift_voxel: float, turn_deg: float
) -> list[Start]:
    """Starts that are shifted and turned evenly within bounds along and about each axis."""
    generator = torch.Generator().manual_seed(_SEED)
    bounds = torch.tensor([shift_voxel * SPACING_MM] * 3 + [turn_deg] * 3, dtype=torch.float64)
    found = []
    for number in range(count):
        pair = pairs[number % len(pairs)]
        drawn = bounds * (2.0 * torch.rand(6, generator=generator, dtype=torch.float64) - 1.0)
        middle = [(n - 1) / 2 for n in pair.fixed.shape[2:]]
        found.append(Start(pair, motion_matrix(drawn, SPACING_MM, middle)))
    return found


def starts_of_error(
    pairs: Sequence[EvaluationPair], count: int, low_mm: float, high_mm: float
) -> list[Start]:
    """Starts whose target registration errors are evenly spread between two numbers."""
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        for number in range(count):
            pair = pairs[number % len(pairs)]
            points = surface_points(pair.fixed, 500)
            error = torch.tensor([low_mm + (high_mm - low_mm) * (number + 0.5) / count])
            motion, _ = motions_of_error(points, error, SPACING_MM)
            found.append(Start(pair, motion[0]))
    return found


def tre_mm(pair: EvaluationPair, matrix: Tensor) -> float:
    """Target registration error at the surface of the fixed object, mm."""
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        points = surface_points(pair.fixed, 500)
    return float(target_error_mm(points, matrix.double()[None], STILL[None], SPACING_MM))


def corner_voxel(pair: EvaluationPair, matrix: Tensor) -> float:
    """Mean distance of the corners of the fixed object's box from the truth, voxels."""
    voxels = pair.inside[0, 0].nonzero().double()
    ends = torch.stack([voxels.amin(dim=0), voxels.amax(dim=0)])
    corners = torch.cartesian_prod(*ends.T)
    return float(target_error_mm(corners[None], matrix.double()[None], STILL[None], 1.0))


def one_level(start: Start, similarity: str, mask: Image | None = None) -> Tensor:
    """Rigid map of the gradient-based engine at the resolution of the images alone, in voxels.

    Args:
        start: Where it starts.
        similarity: What it compares.
        mask: Where the fixed image counts; everywhere if omitted.
    """
    settings = {"similarity": similarity, "sizes": (max(start.pair.grid.shape),)}
    pair = replace(start.images, fixed_mask=mask)
    result, _ = register(pair, "rigid", "balanced", **settings)
    return _in_voxels(start.pair, result.transform.linear)


def refined(
    start: Start, matrix: Tensor, similarity: str = "mi", mask: Image | None = None
) -> Tensor:
    """A map after the same engine has refined it."""
    return one_level(Start(start.pair, matrix.double()), similarity, mask)


def _in_voxels(pair: EvaluationPair, linear: np.ndarray) -> Tensor:
    return torch.from_numpy(pair.grid.ras_to_voxel @ linear @ pair.grid.voxel_to_ras)
