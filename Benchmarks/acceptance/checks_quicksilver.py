"""What Quicksilver has to show, beside its teacher and with its Bayesian version."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from DeepRegLib import registry
from DeepRegLib.algorithms.quicksilver import Algorithm
from DeepRegLib.registration.trainable import Trainable

from .cases import SPACING_MM, EvaluationPair, evaluation_pairs
from .figures import Figures, over_pairs
from .measure import spearman
from .plans import Check, Plan, Rows, Variant, at_least, at_most, mean
from .teachers import distance_voxel, of_teacher, taught

#: The most uncertain share of the voxels.
_MOST_UNCERTAIN = 0.1


def beside_teacher(algorithm: Trainable, network: nn.Module) -> Figures:
    """Distance of the map from the teacher's, with and without correction, and what it tells of it.

    Bayesian versions also say how well their uncertainty ranks that distance.
    """
    assert isinstance(algorithm, Algorithm)
    teacher = algorithm.teacher()
    alone = registry.create("quicksilver", **{**algorithm.values, "correction": False})

    def one(pair: EvaluationPair) -> Figures:
        there, _ = taught(pair, teacher)
        with torch.no_grad():
            found = algorithm.predict(network, pair.fixed, pair.moving, SPACING_MM)
            plain = found
            if not algorithm.values["bayesian"]:
                plain = alone.predict(network, pair.fixed, pair.moving, SPACING_MM)
        assert found.displacement is not None and plain.displacement is not None
        figures = {
            "map_error_voxel": distance_voxel(found.displacement, there, pair),
            "map_error_uncorrected_voxel": distance_voxel(plain.displacement, there, pair),
        }
        spread = found.maps.get("uncertainty_mm")
        if spread is not None:
            error = (found.displacement - there).norm(dim=1, keepdim=True)
            figures |= _ranked(spread[pair.inside], error[pair.inside])
        return {**of_teacher(pair, teacher), **figures}

    figures = over_pairs(evaluation_pairs(), one)
    return {k: v for k, v in figures.items() if k not in ("seconds", "pairs")}


def _ranked(spread: Tensor, error: Tensor) -> Figures:
    """Rank correlation of spread and error, and the error where the spread is largest."""
    most = spread >= spread.quantile(1.0 - _MOST_UNCERTAIN)
    return {
        "teacher_spearman": spearman(spread, error),
        "uncertain_error_ratio": float(error[most].mean() / error.mean()),
    }


def _checks(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    def full(key: str) -> float:
        return mean(rows, "full", key)

    gain = full("dice") - full("affine_dice")
    folds = max(mean(rows, name, "folds_percent") for name in ("full", "bayesian"))
    return [
        at_most("distance from the teacher's map, share of the identity's",
                full("map_error_voxel") / full("teacher_motion_voxel"), 0.5, "{:.3f}"),
        at_least("share of the teacher's gain in Dice",
                 gain / (full("teacher_dice") - full("affine_dice")), 0.9, "{:.3f}"),
        at_least("share of the map error that the correction takes away",
                 1.0 - full("map_error_voxel") / full("map_error_uncorrected_voxel"), 0.1,
                 "{:.3f}"),
        at_least("times faster than the teacher",
                 full("teacher_seconds") / full("prediction_seconds"), 10.0, "{:.1f}"),
        Check("no folds", f"{folds:.5f} %", folds == 0.0),
        at_least("Spearman of uncertainty and error", mean(rows, "bayesian", "teacher_spearman"),
                 0.3, "{:.3f}"),
        at_least("error of the most uncertain tenth, times the mean",
                 mean(rows, "bayesian", "uncertain_error_ratio"), 1.5, "{:.2f}"),
    ]  # fmt: skip


PLAN = Plan(
    {"full": Variant(), "bayesian": Variant({"bayesian": True}, share=0.7)},
    _checks,
    steps=4000,
    extra=("beside_teacher",),
)
EXTRA = {"beside_teacher": beside_teacher}
