"""DeepAtlas: its trainings with few and with all label maps, and what they have to show.

The ablation ``apart`` has no anatomy loss: as
many steps of each network, none of which sees anything of the other one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from DeepRegLib.metrics.overlap import dice_per_label, labels_present, mean_dice
from DeepRegLib.registration.trainable import Trainable

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
