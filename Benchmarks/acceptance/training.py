"""The trainings of the acceptance checks: all on the same people, none with validation or labels.

The weights after the last step are taken, so that nothing is chosen by looking at anybody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from common import data_folder

from DeepRegLib import registry
from DeepRegLib.bar import bar
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.source import BatchSource, informed
from DeepRegLib.registration.trainable import Trainable
from DeepRegLib.training.augment import Augmentation
from DeepRegLib.training.pairs import PreparedPairs
from DeepRegLib.training.preparation import prepare
from DeepRegLib.training.settings import TrainingSettings
from DeepRegLib.training.subjects import find_subjects
from DeepRegLib.training.trainer import Trainer, TrainingResult

from .cases import CACHE, FRAME
from .few_labels import few_labels
from .plans import Variant

#: Random changes in every training: sides, small affine differences, intensities.
CHANGES: Mapping[str, Any] = {
    "flip": 0.5, "rotation_deg": 5.0, "scale": 0.05, "shift_mm": 3.0, "misalignment": 0.3,
    "gamma": 0.1, "bias": 0.05, "noise": 0.02,
}  # fmt: skip


def source(variant: Variant, hold_out: bool = False) -> BatchSource:
    """Pairs of the fifteen people.

    Args:
        variant: The training.
        hold_out: Keep three of the people for validation, for choosing settings.
    """
    folder = data_folder() / "brain_t1_oasis" / "train_2mm"
    subjects = find_subjects(folder, "*_t1.nii.gz", "*_seg.nii.gz")
    prepared = prepare(subjects, FRAME, CACHE / "prepared")
    if prepared.frame != FRAME:
        raise RuntimeError(f"the people do not fit into {FRAME.shape}")
    changes = {**CHANGES, "shift_voxels": variant.shift_voxel, **variant.changes}
    people, held = prepared.split() if hold_out else (prepared, None)
    people = few_labels(people, variant.labeled)
    pairs = PreparedPairs(people, held, "all", augmentation=Augmentation(**changes))
    return pairs if variant.wrap is None else variant.wrap(pairs, changes)


def train(
    system: str, variant: Variant, seed: int, steps: int, hold_out: bool = False
) -> tuple[Trainable, TrainingResult]:
    """Trains a variant, or goes on with its training; returns it with its network.

    Variants that ask for the same training share it: what does not matter to it is left out.
    """
    key = variant.algorithm or system
    of = registry.spec(key)
    settings = TrainingSettings(
        steps=steps, seed=seed, validate_every=steps, precision="bfloat16", **variant.settings
    )
    folder = CACHE / ("tuning" if hold_out else "trainings") / _name(key, variant, seed, steps)
    with bar() as listener:
        progress = Progress(listener)
        pairs = source(variant, hold_out)
        learner = informed(key, of.values("balanced", **_learned_with(key, variant)), pairs)
        algorithm = informed(key, of.values("balanced", **variant.values), pairs)
        taught = learner.source(pairs, CACHE / "made", progress)
        return algorithm, Trainer(learner, taught, settings, folder, progress).run()


def _learned_with(key: str, variant: Variant) -> dict[str, Any]:
    """The values of a variant that matter to its training."""
    matters = {p.name for p in registry.spec(key).parameters if p.training}
    return {name: value for name, value in variant.values.items() if name in matters}


def _name(key: str, variant: Variant, seed: int, steps: int) -> str:
    """Folder of a training: what it was made with."""
    chosen = {
        **_learned_with(key, variant), **variant.settings, **variant.changes,
        **({"shift": variant.shift_voxel} if variant.shift_voxel else {}),
        **({"labeled": variant.labeled} if variant.labeled is not None else {}),
        **({"pairs": variant.wrap.__name__} if variant.wrap is not None else {}),
    }  # fmt: skip
    words = [f"{name}_{value}" for name, value in sorted(chosen.items())]
    text = "-".join([key, *words, f"seed_{seed}", f"steps_{steps}"])
    return re.sub(r"[^\w.-]+", "_", text)
