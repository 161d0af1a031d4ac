"""What the teachers of the supervised systems say of the test pairs; computed once and kept."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from DeepRegLib.training.cache import key_of
from DeepRegLib.training.lesson import Teacher

from .cases import CACHE, SPACING_MM, EvaluationPair
from .figures import Figures, measured


def taught(pair: EvaluationPair, teacher: Teacher) -> tuple[Tensor, float]:
    """Returns the displacement that a teacher finds, (1, 3, *shape) in voxels, and its seconds."""
    key = key_of(teacher.key, dict(teacher.values), teacher.margin)
    path = CACHE / "teachers" / f"{teacher.key}_{key}_{pair.name.replace('<-', '_')}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        lesson = teacher.teach(pair.fixed, pair.moving, SPACING_MM)
        content = {"displacement": lesson.displacement, "seconds": torch.tensor(lesson.seconds)}
        save_file(content, str(path))
    kept = load_file(str(path))
    return kept["displacement"], float(kept["seconds"])


def distance_voxel(one: Tensor, other: Tensor, pair: EvaluationPair) -> float:
    """Mean distance of two displacements inside the fixed brain, voxels."""
    return float((one - other).norm(dim=1, keepdim=True)[pair.inside].double().mean())


def of_teacher(pair: EvaluationPair, teacher: Teacher) -> Figures:
    """Dice of the affine start and of the teacher, how far it moves, its folds and its seconds."""
    found, seconds = taught(pair, teacher)
    figures = measured(pair, found)
    return {
        "affine_dice": measured(pair, None)["dice"],
        "teacher_dice": figures["dice"],
        "teacher_folds_percent": figures["folds_percent"],
        "teacher_motion_voxel": distance_voxel(found, torch.zeros_like(found), pair),
        "teacher_seconds": seconds,
    }
