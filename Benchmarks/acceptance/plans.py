"""What each learned system has to show: the trainings with their ablations, and the checks.

The thresholds are those that were set before anything was trained; they are not to be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from DeepRegLib.registration.source import BatchSource
from DeepRegLib.training.pairs import PreparedPairs

from .figures import Figures

#: Figures of a variant, one entry for each seed.
Rows = Mapping[str, Sequence[Figures]]


@dataclass(frozen=True)
class Variant:
    """One training.

    Args:
        values: Parameter values of the algorithm that differ from its defaults.
        algorithm: Key of the algorithm, if it is not that of the plan.
        settings: Settings of the training that differ from those of all (see `TrainingSettings`).
        shift_voxel: Pairs are shifted at random by up to so many voxels, in training.
        changes: Other random changes of the pairs than in all trainings (`training.CHANGES`).
        labeled: Only so many of the training people have a label map.
        wrap: Makes other pairs of the prepared ones, with the random changes by name.
        share: Share of the usual number of steps.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    algorithm: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    shift_voxel: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)
    labeled: int | None = None
    wrap: Callable[[PreparedPairs, Mapping[str, Any]], BatchSource] | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Check:
    """A condition with what was reached."""

    text: str
    reached: str
    passed: bool


@dataclass(frozen=True)
class Plan:
    """What a system has to show.

    Args:
        variants: Trainings by name; ``full`` is the system itself.
        checks: Judges mean figures, from the rows of the variants and of the baselines.
        steps: Steps of a training.
        extra: Names of further measures (see `measure.EXTRA`).
        usual: Whether Dice and the like on the test brains are measured, too. They say nothing of
            systems that judge, or that were trained on something else.
    """

    variants: Mapping[str, Variant]
    checks: Callable[[Rows, Mapping[str, Figures]], list[Check]]
    steps: int = 1200
    extra: tuple[str, ...] = ()
    usual: bool = True


def mean(rows: Rows, variant: str, key: str) -> float:
    """Mean of a figure over the seeds."""
    return float(np.mean([row[key] for row in rows[variant]]))


def at_least(text: str, reached: float, asked: float, form: str = "{:.4f}") -> Check:
    """A figure that has to reach a threshold."""
    shown = f"{form.format(reached)} (asked: at least {form.format(asked)})"
    return Check(text, shown, bool(reached >= asked))


def at_most(text: str, reached: float, asked: float, form: str = "{:.4f}") -> Check:
    """A figure that has to stay below a threshold."""
    shown = f"{form.format(reached)} (asked: at most {form.format(asked)})"
    return Check(text, shown, bool(reached <= asked))


def near(text: str, reached: float, other: float, tolerance: float) -> Check:
    """Two figures that have to agree."""
    shown = f"{reached:.4f} and {other:.4f} (asked: within {tolerance:g})"
    return Check(text, shown, bool(abs(reached - other) <= tolerance))


def _vxm(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    dice, affine = mean(rows, "full", "dice"), base["affine"]["dice"]
    gain = base["engine"]["dice"] - affine
    return [
        at_least("Dice above affine", dice - affine, 0.08),
        at_least("share of the engine's gain", (dice - affine) / gain, 0.90, "{:.3f}"),
        at_least(
            "Dice above the same network without smoothness",
            dice - mean(rows, "without smoothness", "dice"),
            0.0,
        ),
    ]


def _vxm_prob(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    folds, plain = mean(rows, "full", "folds_percent"), mean(rows, "vxm", "folds_percent")
    return [
        at_most("folds, percent", folds, 0.001, "{:.5f}"),
        Check(
            "folds at least 100 times fewer than vxm's",
            f"{folds:.5f} % against {plain:.5f} %",
            plain > 0 and folds * 100 <= plain,
        ),
        near("Dice as vxm's", mean(rows, "full", "dice"), mean(rows, "vxm", "dice"), 0.01),
        at_most("inverse error, voxel", mean(rows, "full", "round_trip_voxel"), 0.1),
        at_least("Spearman of spread and error", mean(rows, "full", "spearman"), 0.2, "{:.3f}"),
    ]


def _faim(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    folds, plain = mean(rows, "full", "folds_percent"), mean(rows, "vxm", "folds_percent")
    none = mean(rows, "without penalty", "folds_percent")
    return [
        Check("fewer folds than vxm", f"{folds:.5f} % against {plain:.5f} %", folds < plain),
        near("Dice as vxm's", mean(rows, "full", "dice"), mean(rows, "vxm", "dice"), 0.01),
        Check(
            "fewer folds than without the penalty", f"{folds:.5f} % against {none:.5f} %",
            folds < none,
        ),
    ]  # fmt: skip


def _icnet(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    error = mean(rows, "full", "round_trip_voxel")
    loose = mean(rows, "without inverse consistency", "round_trip_voxel")
    folds = [mean(rows, v, "folds_percent") for v in ("full", "without anti-folding")]
    return [
        at_most("inverse error, share of the ablation's", error / loose, 0.5, "{:.3f}"),
        near(
            "Dice as the ablation's", mean(rows, "full", "dice"),
            mean(rows, "without inverse consistency", "dice"), 0.01,
        ),
        Check(
            "no folds where the ablation has some", f"{folds[0]:.5f} % against {folds[1]:.5f} %",
            folds[0] == 0.0 < folds[1],
        ),
    ]  # fmt: skip


def _dlir(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    steps = [base["rigid"]["dice"]] + [
        mean(rows, "full", key) for key in ("dice_affine", "dice_coarse", "dice")
    ]
    shown = " < ".join(f"{d:.4f}" for d in steps)
    return [
        Check("start < affine < coarse < fine", shown, steps == sorted(set(steps))),
        at_most("corner error of the affine network, voxel", mean(rows, "full", "corner_voxel"),
                1.5, "{:.2f}"),
        at_most("folds, percent", mean(rows, "full", "folds_percent"), 0.1),
    ]  # fmt: skip


def _dual_prnet(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    return [
        at_least(
            "Dice above vxm, aligned", mean(rows, "full", "dice") - mean(rows, "vxm", "dice"), 0.01
        ),
        at_least(
            "Dice above vxm, shifted by up to 10 voxels",
            mean(rows, "full, shifts", "dice_shifted") - mean(rows, "vxm, shifts", "dice_shifted"),
            0.05,
        ),
        at_least(
            "with correlation, Dice above vxm, aligned",
            mean(rows, "with correlation", "dice") - mean(rows, "vxm", "dice"), 0.01,
        ),
        at_most(
            "motion of a level over that of the coarser one, shifted",
            mean(rows, "full, shifts", "level_ratio"), 1.0, "{:.2f}",
        ),
    ]  # fmt: skip


def _pmrn(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    full, single = (mean(rows, v, "dice") for v in ("full", "single level"))
    return [
        Check("above one level of regularisation", f"{full:.4f} > {single:.4f}", full > single),
        at_least("one level above vxm", single - mean(rows, "vxm", "dice"), 0.0),
        at_least(
            "loss without the feature term", full - mean(rows, "without features", "dice"), 0.005
        ),
    ]


_VXM = Variant(algorithm="vxm")
PLANS: dict[str, Plan] = {
    "vxm": Plan(
        {"full": Variant(), "without smoothness": Variant({"smoothness": 0.0})}, _vxm, steps=3000
    ),
    "vxm_prob": Plan(
        # Bent images tell what of a deformation can be found, so its uncertainty means something.
        {"full": Variant(changes={"bend_mm": 1.5, "bend_width_mm": 25.0}),
         "vxm": Variant(algorithm="vxm", share=3000 / 8000)},
        _vxm_prob, steps=8000, extra=("inverse", "uncertainty"),
    ),
    "faim": Plan(
        {"full": Variant(), "without penalty": Variant({"folding": 0.0}),
         "vxm": _VXM},
        _faim,
    ),
    "icnet": Plan(
        {"full": Variant(), "without inverse consistency": Variant({"inverse_consistency": 0.0}),
         "without anti-folding": Variant({"folding": 0.0, "smoothness": 0.02})},
        _icnet, extra=("inverse",),
    ),
    # Its affine network learns little from one pair at a time.
    "dlir": Plan(
        {"full": Variant(settings={"batch": 3})}, _dlir, steps=2000, extra=("stages",), usual=False
    ),
    "dual_prnet": Plan(
        {"full": Variant(), "with correlation": Variant({"correlation": True}), "vxm": _VXM,
         "full, shifts": Variant(shift_voxel=10),
         "vxm, shifts": Variant(algorithm="vxm", shift_voxel=10)},
        _dual_prnet, extra=("shifts",),
    ),
    "pmrn": Plan(
        {"full": Variant(), "single level": Variant({"multilayer": False}),
         "without features": Variant({"feature": 0.0}), "vxm": _VXM},
        _pmrn,
    ),
}  # fmt: skip
