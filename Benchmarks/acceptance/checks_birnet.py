"""What BIRNet has to show, beside its teacher and its ablations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from DeepRegLib.algorithms.birnet import Algorithm
from DeepRegLib.networks.blocks import warped
from DeepRegLib.registration.trainable import Trainable

from .cases import SPACING_MM, EvaluationPair, evaluation_pairs
from .figures import Figures, over_pairs
from .plans import Check, Plan, Rows, Variant, at_least, mean
from .teachers import distance_voxel, of_teacher, taught


def from_teacher(algorithm: Trainable, network: nn.Module) -> Figures:
    """Distance of the field from the teacher's, and how unlike the images are after both."""
    assert isinstance(algorithm, Algorithm)
    teacher = algorithm.teacher()

    def one(pair: EvaluationPair) -> Figures:
        there, _ = taught(pair, teacher)
        with torch.no_grad():
            found = algorithm.predict(network, pair.fixed, pair.moving, SPACING_MM).displacement
        assert found is not None
        unlike = {
            name: float((warped(pair.moving, u) - pair.fixed)[pair.inside].square().mean())
            for name, u in (("image_error", found), ("teacher_image_error", there))
        }
        return {
            **of_teacher(pair, teacher), **unlike,
            "end_point_voxel": distance_voxel(found, there, pair),
        }  # fmt: skip

    figures = over_pairs(evaluation_pairs(), one)
    return {k: v for k, v in figures.items() if k not in ("seconds", "pairs")}


def _above(text: str, one: float, other: float, form: str = "{:.4f}") -> Check:
    """One figure has to be above another."""
    return Check(text, f"{form.format(one)} > {form.format(other)}", one > other)


def _checks(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    dice, phi = (mean(rows, name, "dice") for name in ("full", "field only"))
    apart = {name: mean(rows, name, "end_point_voxel") for name in rows}
    images = {name: mean(rows, name, "image_error") for name in rows}
    return [
        _above("Dice above that of the field alone", dice, phi),
        at_least("Dice above the teacher's", dice - mean(rows, "full", "teacher_dice"), -0.005),
        _above("images less alike when learned from the field alone", images["field only"],
               images["full"], "{:.5f}"),
        _above("farther from the teacher without gap filling", apart["without gap filling"],
               apart["full"]),
    ]  # fmt: skip


PLAN = Plan(
    {
        "full": Variant(),
        "field only": Variant({"image_weight": 0.0}),
        "without gap filling": Variant({"gap_filling": False}),
    },
    _checks,
    extra=("from_teacher",),
)
EXTRA = {"from_teacher": from_teacher}
