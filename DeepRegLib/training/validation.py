"""How well a network registers pairs that it does not learn from, beside leaving them as they are.

All figures are means over the pairs:

- ``dice``: mean over the labels that both maps of a pair hold, if there are label maps.
- ``ncc``: normalized correlation where the fixed image shows something.
- ``folds_percent``, ``sdlogj``: of the displacement, where the fixed image shows something.
- ``error_mm``: distance from the true displacement there, if it is known.
- ``dice_before``, ``ncc_before``, ``error_before_mm``: the same of the pairs as they come, linearly
  aligned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..geometry.field import Field, vector_lengths
from ..geometry.grid import Grid
from ..geometry.sampling import apply_matrix, sample, voxel_coordinates
from ..metrics.overlap import dice_per_label, labels_present, mean_dice
from ..metrics.regularity import measurable, regularity
from ..metrics.similarity import normalized_correlation
from ..registration.base import Image
from ..registration.preprocess import foreground
from ..registration.trainable import Batch, Prediction, Trainable

#: Seed of whatever a prediction draws at random.
_SEED = 20


@contextmanager
def own_random_numbers(device: torch.device, seed: int = _SEED) -> Iterator[None]:
    """Seeds torch's global generators for a block, and leaves them outside as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def validate(
    algorithm: Trainable, network: nn.Module, pairs: Sequence[Batch], device: torch.device
) -> dict[str, float]:
    """Registers the pairs and measures; neither network nor random numbers change.

    Args:
        algorithm: The system. One that learns certain ``structures`` is measured on these alone.
        network: Its network, on the device.
        pairs: One pair a batch.
        device: Where to compute.

    Returns:
        The figures listed at the top of this module; empty if there are no pairs.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    found: list[dict[str, float]] = []
    try:
        with torch.no_grad(), own_random_numbers(device):
            for pair in pairs:
                there = pair.to(device)
                own = algorithm.examine(network, there)
                if own is None:
                    prediction = algorithm.predict(
                        network, there.fixed, there.moving, pair.spacing_mm
                    )
                    own = _figures(pair, prediction, structures_of(algorithm))
                found.append(own)
    finally:
        for module, mode in modes:
            module.training = mode
    return _means(found)


def structures_of(algorithm: Trainable) -> frozenset[int]:
    """Returns the labels that a system learns; empty if it is none or all in particular."""
    chosen = algorithm.values.get("structures") or ()
    return frozenset(int(label) for label in chosen if label)


def untouched(pairs: Sequence[Batch], structures: frozenset[int] = frozenset()) -> dict[str, float]:
    """Returns ``dice_before``, ``ncc_before`` and ``error_before_mm``, as far as known.

    Args:
        pairs: The pairs.
        structures: Labels that Dice is taken over; all that both maps hold if empty.
    """
    renamed = {"dice": "dice_before", "ncc": "ncc_before", "error_mm": "error_before_mm"}
    means = _means([_figures(pair, Prediction(), structures) for pair in pairs])
    return {renamed[name]: value for name, value in means.items() if name in renamed}


def score(figures: dict[str, float]) -> float | None:
    """Returns what the best network is chosen by, more is better.

    The system's own score, Dice, or else the correlation.
    """
    for name in ("score", "dice", "ncc"):
        value = figures.get(name)
        if value is not None:
            return value if np.isfinite(value) else None
    return None


def positions(prediction: Prediction, shape: tuple[int, int, int]) -> Tensor:
    """Returns where a prediction takes each voxel, A(x + u(x)), (1, 3, *shape), on the CPU."""
    where = voxel_coordinates(shape)
    if prediction.displacement is not None:
        where = where + prediction.displacement.detach().float().cpu()
    if prediction.linear is not None:
        where = apply_matrix(prediction.linear.detach().double().cpu().numpy(), where)
    return where


def _figures(pair: Batch, prediction: Prediction, structures: frozenset[int]) -> dict[str, float]:
    where = positions(prediction, pair.shape)
    if not bool(where.isfinite().all()):
        return {"dice": float("nan"), "ncc": float("nan")}
    grid = Grid(pair.shape, np.diag([pair.spacing_mm] * 3 + [1.0]))
    shown = foreground(Image(pair.fixed[:1, :1].float(), grid))
    if not bool(shown.any()):
        shown = torch.ones_like(shown)
    moved = sample(pair.moving.float(), where, padding="fill")
    figures = {"ncc": normalized_correlation(pair.fixed[shown].float(), moved[shown])}
    if pair.fixed_labels is not None and pair.moving_labels is not None:
        figures |= _overlap(pair.fixed_labels, pair.moving_labels, where, structures)
    displacement = prediction.displacement
    u = torch.zeros(1, 3, *pair.shape) if displacement is None else displacement.float().cpu()
    region = shown if measurable(shown, grid) else None
    measured = regularity(Field(u.detach(), grid), region)
    figures |= {name: measured[name] for name in ("folds_percent", "sdlogj")}
    if pair.truth is not None:
        away = where - voxel_coordinates(pair.shape) - pair.truth.float()
        error = vector_lengths(away)[shown].mean()
        figures["error_mm"] = float(error) * pair.spacing_mm
    return figures


def _overlap(
    fixed: Tensor, moving: Tensor, where: Tensor, structures: frozenset[int]
) -> dict[str, float]:
    """Dice over the labels that both maps hold before anything is moved."""
    shared = sorted({*labels_present(fixed)} & {*labels_present(moving)})
    if structures:
        shared = [label for label in shared if label in structures]
    if not shared:
        return {}
    moved = sample(moving, where, "nearest", padding="fill")
    return {"dice": mean_dice(dice_per_label(fixed, moved), shared)}


def _means(found: Sequence[dict[str, float]]) -> dict[str, float]:
    names = list(dict.fromkeys(name for figures in found for name in figures))
    return {
        name: float(np.mean([figures[name] for figures in found if name in figures]))
        for name in names
    }
