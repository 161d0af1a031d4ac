"""What FlowNet from a model of anatomy has to show: better fields than those of its alternatives.

All variants see the same eight of the fifteen training people (`images`), the same poses and
intensities, and as many steps. The errors are on people that nobody trained with, whose
displacements no model made:

- people: the field that the engine finds between two test people (model-free, but an opinion);
- warps: a test person bent by such a field of another pair of test people, so that it is exact;
- random: a test person bent by a random smooth velocity, much as the random fields of the ablation
  are, and as large as what sets test people apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from DeepRegLib.geometry.inverse import invert_displacement
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.geometry.velocity import exponential
from DeepRegLib.registration.trainable import Trainable
from DeepRegLib.training.augment import smooth_noise

from .cases import FRAME, SPACING_MM, EvaluationPair, evaluation_pairs
from .figures import Figures, engine
from .plans import Check, Plan, Rows, Variant, at_least, mean

#: Training people that all variants see.
SUBJECTS = 8
#: Random velocities: root mean square length, and distance over which they change.
_SIZE_MM, _WIDTH_MM = 4.0, 24.0
#: Images (fixed, moving), where errors count, and the displacement.
Case = tuple[Tensor, Tensor, Tensor, Tensor]


@cache
def truths() -> Mapping[str, list[Case]]:
    """The cases of each kind, with their displacements in voxels."""
    pairs = evaluation_pairs()
    fields = [engine(pair) for pair in pairs]
    return {
        "people": [(p.fixed, p.moving, p.inside, u) for p, u in zip(pairs, fields)],
        "warps": [_bent(p, fields[_other(pairs, i)]) for i, p in enumerate(pairs)],
        "random": [_at_random(pair, number) for number, pair in enumerate(pairs)],
    }


def _other(pairs: list[EvaluationPair], index: int) -> int:
    """A pair of two people other than the fixed one of a pair."""
    person = pairs[index].name.split("<-")[0]
    others = [i for i, pair in enumerate(pairs) if person not in pair.name.split("<-")]
    return others[index % len(others)]


def _at_random(pair: EvaluationPair, number: int) -> Case:
    """The fixed person, and the same person bent by a random velocity."""
    generator = torch.Generator().manual_seed(number)
    velocity = smooth_noise(FRAME.shape, 1, 3, _WIDTH_MM / SPACING_MM, generator)
    velocity = velocity * (_SIZE_MM / SPACING_MM / 3**0.5)
    return _bent(pair, exponential(velocity), exponential(-velocity))


def _bent(pair: EvaluationPair, field: Tensor, back: Tensor | None = None) -> Case:
    """The fixed person, and the same person bent so that `field` brings it back."""
    if back is None:
        back, _ = invert_displacement(field)
    moving = sample(pair.fixed, voxel_coordinates(field.shape[2:]) + back, padding="fill")
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(moving.shape, generator=generator) * (moving > 0)
    return pair.fixed, (moving**1.1 + noise).clamp(0, 1), pair.inside, field


def end_point(algorithm: Trainable, network: nn.Module) -> Figures:
    """Mean end-point errors in mm inside the fixed brain, beside those of doing nothing."""
    figures: Figures = {}
    for name, cases in truths().items():
        errors, before = [], []
        for fixed, moving, inside, truth in cases:
            with torch.no_grad():
                found = algorithm.predict(network, fixed, moving, SPACING_MM).displacement
            assert found is not None
            errors.append(float((found - truth).norm(dim=1, keepdim=True)[inside].mean()))
            before.append(float(truth.norm(dim=1, keepdim=True)[inside].mean()))
        figures[f"{name}_error_mm"] = float(np.mean(errors)) * SPACING_MM
        figures[f"{name}_before_mm"] = float(np.mean(before)) * SPACING_MM
    return figures


def checks(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    """Judges mean figures over the seeds."""

    def below(name: str) -> float:
        key = f"{name}_error_mm"
        return 1.0 - mean(rows, "full", key) / mean(rows, "random", key)

    words = {"people": "between test people", "warps": "of exact fields of test people",
             "random": "of random warps of test people"}  # fmt: skip
    return [
        *(
            at_least(f"error {text} below that with random fields, share", below(name), 0.05,
                     "{:.3f}")
            for name, text in words.items()
        ),
        Check(
            "Dice above direct supervision by the teacher",
            f"{mean(rows, 'full', 'dice'):.4f} > {mean(rows, 'teacher', 'dice'):.4f}",
            mean(rows, "full", "dice") > mean(rows, "teacher", "dice"),
        ),
        at_least("Dice above affine", mean(rows, "full", "dice") - base["affine"]["dice"], 0.05),
    ]  # fmt: skip


PLAN = Plan(
    {
        "full": Variant({"images": SUBJECTS}),
        "random": Variant({"images": SUBJECTS, "augmentation": "random"}),
        "teacher": Variant({"images": SUBJECTS, "augmentation": "teacher"}),
    },
    checks,
    steps=3000,
    extra=("end_point",),
)
EXTRA = {"end_point": end_point}
