"""What the error map has to show: errors of known size on held-out people, and real registrations.

The known errors are warps of one width (`cases.known_warps`), in three sizes, which the training
does not make in this way. The figures are taken over the voxels of all pairs together, inside the
brain.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.registration.trainable import Prediction, Trainable

from .cases import SPACING_MM, EvaluationPair, evaluation_pairs, known_warps
from .checks_label_reg import transform_of
from .figures import Figures, engine
from .measure import spearman
from .plans import Check, Plan, Rows, Variant, at_least, at_most, mean

#: Longest vectors of the known warps.
SIZES_MM = (2.0, 5.0, 8.0)
#: Half widths of the windows of local correlation, in voxels.
_RADII = (1, 2, 3)
#: Smoothings of the difference, in voxels. The published check has the difference as it is; that of
#: one person with itself, smoothed, is nearly proportional to the error.
_SMOOTHED = {f"difference, smoothed by {sigma:g}": sigma for sigma in (1.0, 2.0)}


def known_errors(algorithm: Trainable, network: nn.Module) -> Figures:
    """Agreement with the known error, beside the best hand-made indicator; see `measure.EXTRA`."""
    said, true = [], []
    indicators: dict[str, list[Tensor]] = {}
    for number, size in enumerate(SIZES_MM):
        for pair, truth in known_warps(4, size, seed=number):
            inside = pair.inside
            length = truth.norm(dim=1, keepdim=True) * SPACING_MM
            true.append(length.clamp(max=float(algorithm.values["largest_mm"]))[inside])
            said.append(_estimate(algorithm, network, pair.fixed, pair.moving)[inside])
            for name, values in hand_made(pair).items():
                indicators.setdefault(name, []).append(values[inside])
    known, found = torch.cat(true).double(), torch.cat(said).double()
    r = {name: _pearson(torch.cat(values).double(), known) for name, values in indicators.items()}
    best = max(r, key=lambda name: r[name])
    plain = max((name for name in r if name not in _SMOOTHED), key=lambda name: r[name])
    print(f"best hand-made: {best}, r {r[best]:.3f}; without smoothing {plain}, {r[plain]:.3f}")
    return {
        "error_r": _pearson(found, known),
        "error_spearman": spearman(found, known),
        "error_rmse_mm": float((found - known).square().mean().sqrt()),
        "error_std_mm": float(known.std()),
        "indicator_r": r[best],
        "plain_indicator_r": r[plain],
    }


def hand_made(pair: EvaluationPair) -> dict[str, Tensor]:
    """Indicators of misalignment that need no training, (1, 1, *shape)."""
    found = {}
    difference = (pair.fixed - pair.moving).abs()
    found["difference"] = difference
    for name, sigma in _SMOOTHED.items():
        found[name] = gaussian_smooth(difference, sigma)
    for radius in _RADII:
        found[f"1 - local correlation, radius {radius}"] = 1.0 - _correlation(pair, radius)
    return found


def real_registrations(algorithm: Trainable, network: nn.Module) -> Figures:
    """Share of the test pairs whose registration is judged better than no registration."""
    better, before, after = [], [], []
    for pair in evaluation_pairs():
        moved = transform_of_engine(pair)
        errors = [
            float(_estimate(algorithm, network, pair.fixed, moving)[pair.inside].mean())
            for moving in (pair.moving, moved)
        ]
        before.append(errors[0])
        after.append(errors[1])
        better.append(float(errors[1] < errors[0]))
    return {
        "judged_better_percent": 100.0 * float(np.mean(better)),
        "estimate_before_mm": float(np.mean(before)),
        "estimate_after_mm": float(np.mean(after)),
    }


def transform_of_engine(pair: EvaluationPair) -> Tensor:
    """The moving image as the engine registers it, on the grid of the pair."""
    transform = transform_of(pair, Prediction(displacement=engine(pair)))
    return transform.warp(pair.moving, pair.grid, pair.grid)


def checks(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    """Judges the trainings."""
    r, rmse = mean(rows, "full", "error_r"), mean(rows, "full", "error_rmse_mm")
    return [
        at_least("r of estimated and known error, voxels", r, 0.7, "{:.3f}"),
        at_least("Spearman of both", mean(rows, "full", "error_spearman"), 0.6, "{:.3f}"),
        at_most("RMSE over the standard deviation of the error",
                rmse / mean(rows, "full", "error_std_mm"), 0.6, "{:.3f}"),
        at_least("r above the difference and local correlation",
                 r - mean(rows, "full", "plain_indicator_r"), 0.15, "{:.3f}"),
        at_least("r above the best hand-made indicator, smoothed differences among them",
                 r - mean(rows, "full", "indicator_r"), 0.15, "{:.3f}"),
        at_least("registered pairs judged better, percent",
                 mean(rows, "full", "judged_better_percent"), 95.0, "{:.0f}"),
        at_least("pairs judged better, above training without registered people, percent",
                 mean(rows, "full", "judged_better_percent")
                 - mean(rows, "one person", "judged_better_percent"), 0.0, "{:.0f}"),
    ]  # fmt: skip


def _estimate(algorithm: Trainable, network: nn.Module, fixed: Tensor, moved: Tensor) -> Tensor:
    with torch.no_grad():
        return algorithm.predict(network, fixed, moved, SPACING_MM).maps["error_mm"]


def _correlation(pair: EvaluationPair, radius: int) -> Tensor:
    """Squared local correlation, 0 where a window has no contrast."""
    f, m = pair.fixed, pair.moving

    def average(image: Tensor) -> Tensor:
        return F.avg_pool3d(image, 2 * radius + 1, 1, radius, count_include_pad=False)

    products = average(f * m) - average(f) * average(m)
    variances = [(average(x * x) - average(x) ** 2).clamp(min=0.0) for x in (f, m)]
    return products.square() / (variances[0] * variances[1] + 1e-5)


def _pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


#: Half of the usual features and pairs, for trainings on a CPU.
_NETWORK = {"channels": (16, 32), "hidden": (256, 64), "mixed": 4}
EXTRA = {"known_errors": known_errors, "real_registrations": real_registrations}
PLAN = Plan(
    {"full": Variant(_NETWORK), "one person": Variant({**_NETWORK, "registered_pairs": 0})},
    checks,
    steps=6000,
    extra=("known_errors", "real_registrations"),
    usual=False,
)
