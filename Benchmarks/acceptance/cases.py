"""The test pairs of the acceptance checks, on the grid that the networks see.

Four people of `brain_t1_oasis/eval_1mm` give twelve ordered pairs, each brought into line by our
affine registration once. All methods get the same resampled images and labels at 3 mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from common import BRAINS, ROOT, brain, ordered_pairs, register
from safetensors.torch import load_file, save_file
from torch import Tensor

from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.geometry.velocity import exponential
from DeepRegLib.registration.base import Image, ImagePair
from DeepRegLib.registration.model_frame import (
    ModelFrame,
    labels_onto_frame,
    normalized,
    onto_frame,
)

CACHE = ROOT / "build" / "acceptance"
SPACING_MM = 3.0
FRAME = ModelFrame(SPACING_MM, (48, 64, 48))


@dataclass(frozen=True, eq=False)
class EvaluationPair:
    """A pair of the test people on the grid of the models, linearly aligned.

    Args:
        name: fixed<-moving.
        fixed: Image, (1, 1, *FRAME.shape), 0 to 1.
        moving: The same of the moving person.
        fixed_labels: Label map of the same shape.
        moving_labels: Label map of the same shape.
        linear: The alignment, fixed RAS to moving RAS, (4, 4), float64.
        voxel_to_ras: Where the grid lies in the space of the fixed person, (4, 4), float64.
    """

    name: str
    fixed: Tensor
    moving: Tensor
    fixed_labels: Tensor
    moving_labels: Tensor
    linear: Tensor
    voxel_to_ras: Tensor

    @property
    def inside(self) -> Tensor:
        """Voxels of the fixed object, (1, 1, *FRAME.shape)."""
        return self.fixed_labels > 0

    @property
    def grid(self) -> Grid:
        """The grid of the images."""
        return Grid(FRAME.shape, self.voxel_to_ras.numpy())

    def as_images(self) -> ImagePair:
        """The pair for the engine."""
        return ImagePair(Image(self.fixed, self.grid), Image(self.moving, self.grid))


def evaluation_pairs(start: str = "affine") -> list[EvaluationPair]:
    """Returns the twelve ordered pairs.

    Args:
        start: ``affine`` (rigid and affine registration), ``rigid``, or ``mass`` (the centers of
            mass alone).
    """
    return [_pair(a, b, start) for a, b in ordered_pairs(BRAINS)]


def _pair(a: str, b: str, start: str) -> EvaluationPair:
    path = CACHE / "test" / f"{a}_{b}_{start}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(_prepared(a, b, start), str(path))
    tensors = load_file(str(path))
    return EvaluationPair(
        f"{a}<-{b}",
        **{name: tensors[name].float() for name in ("fixed", "moving")},
        **{name: tensors[name].long() for name in ("fixed_labels", "moving_labels")},
        **{name: tensors[name] for name in ("linear", "voxel_to_ras")},
    )


def _prepared(a: str, b: str, start: str) -> dict[str, Tensor]:
    (fixed, fixed_labels), (moving, moving_labels) = brain(a), brain(b)
    stages = {"affine": "rigid+affine", "rigid": "rigid", "mass": "rigid"}[start]
    settings = {"iterations": 0, "initialization": "mass"} if start == "mass" else {}
    result, _ = register(ImagePair(fixed, moving), stages, "balanced", **settings)
    grid = FRAME.grid(fixed)
    if grid.shape != FRAME.shape:
        raise RuntimeError(f"{a} does not fit into {FRAME.shape}")
    linear = result.transform
    return {
        "fixed": onto_frame(normalized(fixed), fixed.grid, grid).half(),
        "moving": onto_frame(normalized(moving), moving.grid, grid, linear).half(),
        "fixed_labels": _labels(fixed_labels, grid, Transform()),
        "moving_labels": _labels(moving_labels, grid, linear),
        "linear": torch.tensor(linear.linear),
        "voxel_to_ras": torch.tensor(grid.voxel_to_ras),
    }


def _labels(labels: Image, grid: Grid, transform: Transform) -> Tensor:
    return labels_onto_frame(labels.data, labels.grid, grid, transform).to(torch.int16)


def shifted(
    pairs: Sequence[EvaluationPair], most_voxel: int, seed: int = 0
) -> list[EvaluationPair]:
    """Returns the pairs with the moving person shifted at random, whole voxels along each axis."""
    generator = torch.Generator().manual_seed(seed)
    moved = []
    for pair in pairs:
        by = torch.randint(-most_voxel, most_voxel + 1, (3,), generator=generator).tolist()
        shift = torch.tensor(by, dtype=torch.float32).reshape(1, 3, 1, 1, 1)
        field = Field(shift.expand(1, 3, *FRAME.shape).contiguous(), pair.grid)
        transform = Transform(np.eye(4), field)
        moved.append(
            replace(
                pair,
                moving=transform.warp(pair.moving, pair.grid, pair.grid),
                moving_labels=transform.warp(pair.moving_labels, pair.grid, pair.grid, "nearest"),
            )
        )
    return moved


def known_warps(
    count: int, most_mm: float = 9.0, seed: int = 0
) -> list[tuple[EvaluationPair, Tensor]]:
    """Pairs of one person and the same person bent by a known smooth deformation, with noise.

    Returns:
        Pairs with the displacement u that brings the moving image back onto the fixed one,
        (1, 3, *shape) in voxels: moving(x + u(x)) is the fixed image.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    # One pair of each fixed person.
    people = list({pair.name.split("<-")[0]: pair for pair in evaluation_pairs()}.values())
    for number in range(count):
        pair = people[number % len(people)]
        noise = torch.randn(1, 3, *FRAME.shape, generator=generator)
        velocity = gaussian_smooth(noise, 4.0)
        # Smoothing leaves more at the edges of the grid, so the largest is that in the brain.
        largest = velocity.norm(dim=1, keepdim=True)[pair.inside].max()
        velocity = velocity * (most_mm / SPACING_MM / largest)
        # moving = fixed o exp(-v), so that moving(x + u(x)) = fixed(x) with u = exp(v) - id.
        bend = Transform(np.eye(4), Field(exponential(-velocity), pair.grid))
        moving = bend.warp(pair.fixed, pair.grid, pair.grid)
        moving = (moving**1.1 + 0.02 * torch.randn(moving.shape, generator=generator)).clamp(0, 1)
        labels = bend.warp(pair.fixed_labels, pair.grid, pair.grid, "nearest")
        bent = replace(pair, moving=moving, moving_labels=labels, name=f"{pair.name} bent {number}")
        found.append((bent, exponential(velocity)))
    return found
