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
from DeepRegLib.registration.trainable import Trainable
from DeepRegLib.training.augment import Augmentation
from DeepRegLib.training.pairs import PreparedPairs
from DeepRegLib.training.preparation import prepare
from DeepRegLib.training.settings import TrainingSettings
from DeepRegLib.training.subjects import find_subjects
from DeepRegLib.training.trainer import Trainer, TrainingResult

from .cases import CACHE, FRAME
from .plans import Variant

#: Random changes in every training: sides, small affine differences, intensities.
CHANGES: Mapping[str, Any] = {
    "flip": 0.5, "rotation_deg": 5.0, "scale": 0.05, "shift_mm": 3.0, "misalignment": 0.3,
    "gamma": 0.1, "bias": 0.05, "noise": 0.02,
}  # fmt: skip


def source(shift_voxel: int = 0, hold_out: bool = False) -> PreparedPairs:
    """Pairs of the fifteen people.

    Args:
        shift_voxel: Largest random shift of a pair.
        hold_out: Keep three of the people for validation, for choosing settings.
    """
    folder = data_folder() / "brain_t1_oasis" / "train_2mm"
    subjects = find_subjects(folder, "*_t1.nii.gz", "*_seg.nii.gz")
    prepared = prepare(subjects, FRAME, CACHE / "prepared")
    if prepared.frame != FRAME:
        raise RuntimeError(f"the people do not fit into {FRAME.shape}")
    changes = Augmentation(**CHANGES, shift_voxels=shift_voxel)
    people, held = prepared.split() if hold_out else (prepared, None)
    return PreparedPairs(people, held, "all", augmentation=changes)


def train(
    system: str, variant: Variant, seed: int, steps: int, hold_out: bool = False
) -> tuple[Trainable, TrainingResult]:
    """Trains a variant, or goes on with its training; returns it with its network.

    Two plans that ask for the same training share it.
    """
    key = variant.algorithm or system
    values = registry.spec(key).values("balanced", **variant.values)
    algorithm: Trainable = registry.create(key, **values)
    settings = TrainingSettings(
        steps=steps, seed=seed, validate_every=steps, precision="bfloat16", **variant.settings
    )
    folder = CACHE / ("tuning" if hold_out else "trainings") / _name(key, variant, seed, steps)
    with bar() as listener:
        pairs = source(variant.shift_voxel, hold_out)
        return algorithm, Trainer(algorithm, pairs, settings, folder, Progress(listener)).run()


def _name(key: str, variant: Variant, seed: int, steps: int) -> str:
    """Folder of a training: what it was made with."""
    chosen = {**variant.values, **variant.settings, "shift": variant.shift_voxel}
    words = [f"{name}_{value}" for name, value in sorted(chosen.items()) if value]
    zero = [f"no_{name}" for name, value in sorted(variant.values.items()) if not value]
    text = "-".join([key, *words, *zero, f"seed_{seed}", f"steps_{steps}"])
    return re.sub(r"[^\w.-]+", "_", text)
