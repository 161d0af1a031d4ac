"""What image-and-spatial transformers have to show: structures of interest, and refinement.

The structures are the deep gray matter of both sides, which the training maps (2 mm) and the test
maps (1 mm) hold with the same numbers. The networks learn from one map of all of them; Dice counts
each by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from DeepRegLib.geometry.transform import Transform
from DeepRegLib.metrics.overlap import dice_per_label, labels_present, mean_dice
from DeepRegLib.registration.pair_fit import FitSettings, fit
from DeepRegLib.registration.trainable import Batch, Trainable

from .cases import SPACING_MM, EvaluationPair, evaluation_pairs
from .checks_label_reg import transform_of
from .figures import Figures, regularity
from .plans import Check, Plan, Rows, Variant, at_least, at_most, mean, near

#: Thalamus, putamen, caudate, hippocampus, pallidum, amygdala and accumbens, right and left.
STRUCTURES = (59, 60, 57, 58, 36, 37, 47, 48, 55, 56, 31, 32, 23, 30)
#: Adam steps of the refinement.
REFINEMENT = 50
_VARIANTS = ("stn_u", "stn_s", "istn_e", "istn_i")


def structures(algorithm: Trainable, network: nn.Module) -> Figures:
    """SoI Dice before, after one pass, and after refinement; folds too; see `measure.EXTRA`."""
    rows = []
    for pair in evaluation_pairs():
        row = {"soi_before": soi_dice(pair, Transform())}
        row |= _figures(algorithm, network, pair, "soi", "soi_folds_percent")
        # The refined weights are a copy, so that nothing of a pair reaches the next one.
        own = copy.deepcopy(network)
        rate = algorithm.pair_rate  # type: ignore[attr-defined]
        batch = Batch(pair.fixed, pair.moving, SPACING_MM)
        fit(algorithm, own, [batch], FitSettings(REFINEMENT, rate))
        row |= _figures(algorithm, own, pair, "soi_refined", "soi_refined_folds_percent")
        rows.append(row)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def soi_dice(pair: EvaluationPair, transform: Transform) -> float:
    """Mean Dice of the structures of interest that both people have."""
    both = {*labels_present(pair.fixed_labels)} & {*labels_present(pair.moving_labels)}
    moved = transform.warp(pair.moving_labels, pair.grid, pair.grid, "nearest")
    return mean_dice(dice_per_label(pair.fixed_labels, moved), both & {*STRUCTURES})


def _figures(
    algorithm: Trainable, network: nn.Module, pair: EvaluationPair, name: str, folds: str
) -> Figures:
    with torch.no_grad():
        said = algorithm.predict(network, pair.fixed, pair.moving, SPACING_MM)
    found = {name: soi_dice(pair, transform_of(pair, said))}
    if said.displacement is not None:
        found[folds] = regularity(said.displacement, pair.inside)["folds_percent"]
    return found


def checks(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    """Judges the trainings."""
    dice = {name: mean(rows, name, "soi") for name in _VARIANTS}
    gain = {name: mean(rows, name, "soi_refined") - dice[name] for name in _VARIANTS}
    least = min(dice["istn_e"], dice["istn_i"])
    return [
        at_least("SoI Dice above affine", dice["istn_i"] - mean(rows, "istn_i", "soi_before"), 0.0),
        Check("SoI Dice, stn_u < stn_s", f"{dice['stn_u']:.4f} < {dice['stn_s']:.4f}",
              dice["stn_u"] < dice["stn_s"]),
        Check("SoI Dice, stn_s < istn", f"{dice['stn_s']:.4f} < {least:.4f}",
              dice["stn_s"] < least),
        near("SoI Dice, istn_e as istn_i", dice["istn_e"], dice["istn_i"], 0.01),
        at_least("gain of the refinement, istn_e", gain["istn_e"], 0.02),
        at_least("gain of the refinement, istn_i", gain["istn_i"], 0.02),
        at_most("change by the refinement, stn_u", abs(gain["stn_u"]), 0.005),
    ]  # fmt: skip


EXTRA = {"structures": structures}
PLAN = Plan(
    {
        # Mirrored heads would show the left structures on the right.
        name: Variant({"variant": name, "structures": STRUCTURES}, changes={"flip": 0.0})
        for name in _VARIANTS
    },
    checks,
    steps=3000,
    extra=("structures",),
)
