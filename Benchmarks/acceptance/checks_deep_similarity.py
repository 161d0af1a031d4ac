"""What deep similarity has to show: estimates that are right, and a registration by them.

Trained and tested on the mouse skulls (`skulls`): on whole brains mutual information never fails
from such starts, so that nothing could succeed more often.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from DeepRegLib.algorithms.deep_similarity import Algorithm
from DeepRegLib.losses import similarity
from DeepRegLib.networks.composite import moved_by
from DeepRegLib.registration.rigid_search import RigidSearch, SearchSettings
from DeepRegLib.registration.trainable import Trainable

from .cases import SPACING_MM
from .dealigned import Start, starts_of_error, tre_mm
from .figures import Figures
from .plans import Check, Plan, Rows, Variant, at_least, at_most, mean
from .skulls import skull_pairs, skulls

#: Alignments that are judged, and starts that are registered.
_JUDGED, _REGISTERED = 240, 48
#: A registration succeeds below this, two voxels.
_SUCCESS_MM = 2.0 * SPACING_MM


def estimates(algorithm: Trainable, network: nn.Module) -> Figures:
    """Correlation of estimated and true errors from 0 to 20 mm, and their mean distance."""
    found, truth = [], []
    with torch.no_grad():
        for start in starts_of_error(skull_pairs(), _JUDGED, 0.0, 20.0):
            moved = moved_by(start.pair.moving, start.matrix[None].float(), None)
            found.append(float(network(start.pair.fixed, moved)))
            truth.append(tre_mm(start.pair, start.matrix))
    return {
        "r": float(np.corrcoef(found, truth)[0, 1]),
        "estimate_error_mm": float(np.abs(np.subtract(found, truth)).mean()),
    }


def by_estimates(algorithm: Trainable, network: nn.Module) -> Figures:
    """Error after the registration from 10 to 20 mm, beside mutual information's."""
    assert isinstance(algorithm, Algorithm)
    rows = []
    for start in _starts():
        pair = start.pair
        own = algorithm.search(network, pair.fixed, pair.moving, SPACING_MM, start.matrix).linear
        assert own is not None
        rows.append([tre_mm(pair, matrix) for matrix in (start.matrix, own)])
    before, after = np.array(rows).T
    other = _errors_by_information(algorithm._settings())
    return {
        "tre_before_mm": float(np.median(before)),
        "tre_after_mm": float(np.median(after)),
        "tre_mi_mm": float(np.median(other)),
        "success": float((after < _SUCCESS_MM).mean()),
        "success_mi": float((other < _SUCCESS_MM).mean()),
    }


@cache
def _starts() -> list[Start]:
    return starts_of_error(skull_pairs(), _REGISTERED, 10.0, 20.0)


@cache
def _errors_by_information(settings: SearchSettings) -> NDArray[np.float64]:
    """Errors after the same search with mutual information (negative, so less is better), mm."""
    information = similarity("mi")

    def measure(fixed: Tensor, moved: Tensor) -> Tensor:
        return torch.stack([information(f[None], m[None]) for f, m in zip(fixed, moved)])

    errors = []
    for start in _starts():
        pair = start.pair
        search = RigidSearch(measure, pair.fixed, pair.moving, SPACING_MM, settings, start.matrix)
        errors.append(tre_mm(pair, search.run()[1]))
    return np.array(errors)


def checks(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    """Judges the trainings."""
    left = mean(rows, "full", "tre_after_mm") / mean(rows, "full", "tre_before_mm")
    won = mean(rows, "full", "success") - mean(rows, "full", "success_mi")
    shown = f"{mean(rows, 'full', 'success'):.3f} > {mean(rows, 'full', 'success_mi'):.3f}"
    return [
        at_least("r of estimated and true error", mean(rows, "full", "r"), 0.9, "{:.3f}"),
        at_most("median error left, share of the start's", left, 0.25, "{:.3f}"),
        Check("more succeed than by mutual information", shown, won > 0.0),
    ]


EXTRA = {"estimates": estimates, "by_estimates": by_estimates}
PLAN = Plan(
    {"full": Variant(settings={"batch": 2}, wrap=skulls)},
    checks,
    steps=3000,
    extra=("estimates", "by_estimates"),
    usual=False,
)
