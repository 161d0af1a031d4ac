"""What the cooperative autoencoder has to show: fewer modes at equal accuracy, and robustness.

The ablation has smoothness alone. Its weight is the one of the published network, and its Dice has
to be that of the system (within 0.01), or the comparison of the modes says nothing.

Both learn from pairs as they lie, as the system takes random poses away.

- modes: the fields of all ordered pairs of the training people, which lie on one grid. How many
  principal modes hold 95 % of their variance inside the brain; between two numbers of modes the
  share is interpolated. The test pairs, twelve only, are shown beside.
- occlusion: a box that holds a quarter of the moving brain's voxels is emptied. How much Dice is
  lost, over the labels outside and inside of it alike, as the labels are whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from common import data_folder
from torch import Tensor, nn

from DeepRegLib.registration.trainable import Trainable
from DeepRegLib.training.field_modes import FieldModes
from DeepRegLib.training.preparation import prepare
from DeepRegLib.training.subjects import find_subjects

from .cases import CACHE, FRAME, SPACING_MM, evaluation_pairs
from .figures import Figures, measured
from .plans import Check, Plan, Rows, Variant, at_least, mean, near

SHARE = 0.95
#: Share of the moving brain that is emptied, and boxes for each pair.
_OCCLUDED, _BOXES = 0.25, 2


def training_pairs() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Fixed image, moving image and fixed brain of all ordered pairs of the training people."""
    folder = data_folder() / "brain_t1_oasis" / "train_2mm"
    people = prepare(
        find_subjects(folder, "*_t1.nii.gz", "*_seg.nii.gz"), FRAME, CACHE / "prepared"
    )
    for one in range(len(people)):
        labels = people.labels(one)
        assert labels is not None
        for other in range(len(people)):
            if one != other:
                yield people.image(one), people.image(other), labels > 0


def modes(algorithm: Trainable, network: nn.Module) -> Figures:
    """Principal modes that hold 95 % of the variance of the fields."""
    figures: Figures = {}
    tests = [(p.fixed, p.moving, p.inside) for p in evaluation_pairs()]
    for name, pairs in (("modes", training_pairs()), ("test_modes", iter(tests))):
        fields, inside = [], torch.ones(1, 1, *FRAME.shape, dtype=torch.bool)
        for fixed, moving, brain in pairs:
            with torch.no_grad():
                found = algorithm.predict(network, fixed, moving, SPACING_MM).displacement
            assert found is not None
            # Half the resolution holds what modes of this share are made of.
            fields.append(torch.nn.functional.avg_pool3d(found, 2) / 2.0)
            inside = inside & brain
        inside = torch.nn.functional.avg_pool3d(inside.float(), 2) >= 0.5
        a, b, c = fields[0].shape[2:]
        grid = evaluation_pairs()[0].grid.resized((a, b, c))
        names = tuple(str(number) for number in range(len(fields)))
        population = FieldModes(names, torch.cat(fields), grid, inside)
        figures[name] = interpolated(population.explained(), SHARE)
        figures[f"{name}_size_mm"] = population.size_mm()
    return figures


def interpolated(explained: Sequence[float], share: float) -> float:
    """How many modes hold a share of the variance, with a fraction of the last one."""
    before = 0.0
    for count, part in enumerate(explained):
        if part >= share:
            return count + (share - before) / (part - before)
        before = part
    return float(len(explained))


def occlusion(algorithm: Trainable, network: nn.Module) -> Figures:
    """Dice that is lost when a quarter of the moving brain is not to be seen."""
    lost, reached = [], []
    for number, pair in enumerate(evaluation_pairs()):
        with torch.no_grad():
            whole = algorithm.predict(network, pair.fixed, pair.moving, SPACING_MM).displacement
        dice = measured(pair, whole)["dice"]
        for box in range(_BOXES):
            generator = torch.Generator().manual_seed(_BOXES * number + box)
            moving = occluded(pair.moving, pair.moving_labels > 0, generator)
            with torch.no_grad():
                found = algorithm.predict(network, pair.fixed, moving, SPACING_MM).displacement
            reached.append(measured(pair, found)["dice"])
            lost.append(dice - reached[-1])
    return {"occluded_dice": float(np.mean(reached)), "occlusion_loss": float(np.mean(lost))}


def occluded(image: Tensor, brain: Tensor, generator: torch.Generator) -> Tensor:
    """Returns an image without what a box around a random voxel of the brain holds.

    The box has the proportions of the grid and grows until it holds the share of the brain.
    """
    voxels = brain[0, 0].nonzero()
    center = voxels[int(torch.randint(len(voxels), (1,), generator=generator))].float()
    size = torch.tensor([float(n) for n in image.shape[2:]])
    reach = ((voxels.float() - center).abs() / size).amax(dim=1)
    limit = float(reach.sort().values[int(_OCCLUDED * len(voxels))])
    axes = [torch.arange(n, dtype=torch.float32) for n in image.shape[2:]]
    where = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    away = ((where - center.view(3, 1, 1, 1)).abs() / size.view(3, 1, 1, 1)).amax(dim=0)
    return torch.where((away <= limit)[None, None], torch.zeros_like(image), image)


def checks(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    """Judges mean figures over the seeds."""
    ours, plain = (mean(rows, name, "modes") for name in ("full", "smoothness"))
    losses = [mean(rows, name, "occlusion_loss") for name in ("full", "smoothness")]
    return [
        near("Dice as with smoothness alone", mean(rows, "full", "dice"),
             mean(rows, "smoothness", "dice"), 0.01),
        at_least("modes for 95 % fewer than with smoothness alone, share", 1.0 - ours / plain,
                 0.2, "{:.3f}"),
        Check("less Dice lost when a quarter is occluded", f"{losses[0]:.4f} < {losses[1]:.4f}",
              losses[0] < losses[1]),
        at_least("Dice above affine", mean(rows, "full", "dice") - base["affine"]["dice"], 0.05),
    ]  # fmt: skip


PLAN = Plan(
    {"full": Variant(), "smoothness": Variant({"cooperation": 0.0})},
    checks,
    steps=1000,
    extra=("modes", "occlusion"),
)
EXTRA = {"modes": modes, "occlusion": occlusion}
