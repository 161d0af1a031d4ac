"""DeepAtlas: its trainings with few and with all label maps, and what they have to show.

Wiring: `VARIANTS`, `checks`, `STEPS` and the measure `segmentation` make a `Plan`; the pairs of a
variant come from `few_labels(prepared, LABELED.get(name))`, and the system from
`registration.source.informed`, with `Algorithm.source` around the pairs. They are changed at random
like those of all systems but for `AUGMENTATION`. The ablation ``apart`` has no anatomy loss: as
many steps of each network, none of which sees anything of the other one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from DeepRegLib.metrics.overlap import dice_per_label, labels_present, mean_dice
from DeepRegLib.registration.trainable import Trainable
from DeepRegLib.training.prepared import PreparedSet

from .cases import SPACING_MM, evaluation_pairs
from .figures import Figures
from .plans import Check, Rows, Variant, at_least, mean

STEPS = 3000
VARIANTS: Mapping[str, Variant] = {
    "full": Variant(),
    "apart": Variant({"anatomy": 0.0}),
    "full, two labels": Variant(),
    "apart, two labels": Variant({"anatomy": 0.0}),
}
#: Changes of the augmentation of all systems: an image mirrored with its label map shows the left
#: structures where every brain has its right ones, which no segmentation could learn.
AUGMENTATION: Mapping[str, float] = {"flip": 0.0}
#: Training people that keep their label map, by variant; the others keep all.
LABELED: Mapping[str, int] = {"full, two labels": 2, "apart, two labels": 2}


def checks(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    """Judges mean figures over the seeds."""

    def gain(labels: str, key: str) -> float:
        return mean(rows, f"full{labels}", key) - mean(rows, f"apart{labels}", key)

    return [
        at_least("two label maps: Dice of the segmentation above it alone",
                 gain(", two labels", "segmentation_dice"), 0.05),
        at_least("two label maps: Dice of the registration above unsupervised",
                 gain(", two labels", "dice"), 0.01),
        at_least("all label maps: Dice of the segmentation above it alone",
                 gain("", "segmentation_dice"), -0.005),
        at_least("all label maps: Dice of the registration above unsupervised",
                 gain("", "dice"), -0.005),
    ]  # fmt: skip


def segmentation(algorithm: Trainable, network: nn.Module) -> Figures:
    """Dice of the segmentations of the test people, over the labels that they have."""
    found: dict[str, list[float]] = {"segmentation_dice": [], "moving_segmentation_dice": []}
    people = {pair.name.split("<-")[0]: pair for pair in evaluation_pairs()}
    with torch.no_grad():
        for pair in people.values():
            maps = algorithm.predict(network, pair.fixed, pair.moving, SPACING_MM).maps
            for name, truth in (("segmentation", pair.fixed_labels),
                                ("moving_segmentation", pair.moving_labels)):  # fmt: skip
                found[f"{name}_dice"].append(_dice(truth, maps[name]))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _dice(truth: Tensor, found: Tensor) -> float:
    truth = truth.long()
    return mean_dice(dice_per_label(truth, found), set(labels_present(truth)))


def few_labels(prepared: PreparedSet, count: int | None) -> PreparedSet:
    """Returns the subjects, of whom only the first so many have a label map; all if None."""
    return prepared if count is None else _FewLabels(prepared, count)


class _FewLabels(PreparedSet):
    """Subjects of whom the first have a label map."""

    def __init__(self, prepared: PreparedSet, count: int) -> None:
        vars(self).update(vars(prepared))
        self._hidden_from = count
        self.subjects = tuple(
            subject if index < count else replace(subject, labels=None)
            for index, subject in enumerate(prepared.subjects)
        )

    def _entry(self, index: int) -> dict[str, Tensor]:
        entry = super()._entry(index)
        if index < self._hidden_from:
            return entry
        return {name: value for name, value in entry.items() if name != "labels"}
