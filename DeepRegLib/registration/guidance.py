"""What guides a dense registration beside the images: label maps and landmark pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..errors import InputError
from ..geometry.grid import Grid, Matrix
from ..geometry.transform import Transform
from ..losses.dice import Dice, one_hot
from .base import Image, ImagePair
from .landmark_start import LandmarkPull
from .levels import PairLevel

#: Most structures whose overlap is part of an objective; the largest ones count.
MOST_LABELS = 24


def label_pair(pair: ImagePair) -> ImagePair:
    """Returns the pair with one channel per structure, 0 or 1, in place of the images.

    Raises:
        InputError: If a label map is missing, or both share no structure.
    """
    if pair.fixed_labels is None or pair.moving_labels is None:
        raise InputError(
            "A label weight above zero needs label maps of both images; give them, or set the "
            "weight to 0."
        )
    values, counts = torch.unique(pair.fixed_labels.data, return_counts=True)
    there = set(torch.unique(pair.moving_labels.data).tolist())
    sizes = sorted(zip(counts.tolist(), values.tolist()), reverse=True)
    shared = [int(value) for _, value in sizes if value > 0 and value in there][:MOST_LABELS]
    if not shared:
        raise InputError("The two label maps share no label above zero; give maps of one kind.")
    fixed, moving = (
        Image(one_hot(labels.data, shared).to(pair.device), labels.grid)
        for labels in (pair.fixed_labels, pair.moving_labels)
    )
    # The objective counts on the grid of the fixed image, whatever grid its labels have.
    on_fixed = Transform().warp(fixed.data, fixed.grid, pair.fixed.grid)
    return replace(pair, fixed=Image(on_fixed, pair.fixed.grid), moving=moving)


def label_term(
    pair: ImagePair, weight: float, linear: Matrix, spacing_mm: float, lattice: int
) -> tuple[float, Dice, PairLevel]:
    """Returns the term of a label pair (from `label_pair`) at one resolution."""
    level = PairLevel.of(pair, linear, spacing_mm, lattice, rescale=False)
    return weight, Dice(), level


def landmark_pull(
    pair: ImagePair, grid: Grid, linear: Matrix, weight: float
) -> LandmarkPull | None:
    """Returns the pull to the landmark pairs: firm where they lead, else as strong as `weight`."""
    fixed, moving = pair.fixed_landmarks_ras, pair.moving_landmarks_ras
    strength = 1.0 if pair.landmarks_lead else weight
    if strength <= 0.0 or fixed is None or moving is None or len(fixed) == 0:
        return None
    return LandmarkPull(fixed, moving, linear, grid, pair.device, strength)


def hold_out(pair: ImagePair, share: float) -> tuple[ImagePair, np.ndarray]:
    """Takes every n-th landmark pair out of the pull, so that it can judge the result.

    Args:
        pair: The images with their landmarks.
        share: Share of the landmarks to hold out, 0 to below 1.

    Returns:
        The pair without them, and which ones they are.
    """
    fixed, moving = pair.fixed_landmarks_ras, pair.moving_landmarks_ras
    if fixed is None or moving is None or share <= 0.0 or len(fixed) < 2:
        return pair, np.zeros(0, int)
    number = min(len(fixed) - 1, max(1, round(share * len(fixed))))
    held = np.linspace(0, len(fixed) - 1, number + 2)[1:-1].round().astype(int)
    kept = np.setdiff1d(np.arange(len(fixed)), held)
    return replace(pair, fixed_landmarks_ras=fixed[kept], moving_landmarks_ras=moving[kept]), held


def target_error_mm(pair: ImagePair, transform: Transform, which: np.ndarray) -> np.ndarray:
    """Distances of chosen landmarks from their partners after a transform, in mm."""
    fixed, moving = pair.fixed_landmarks_ras, pair.moving_landmarks_ras
    assert fixed is not None and moving is not None
    return np.linalg.norm(transform.map_points_ras(fixed[which]) - moving[which], axis=1)
