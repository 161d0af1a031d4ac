"""Pairs of images with their exact displacement: from a model, from random fields, or a teacher.

Each source begins with two images in a common space and their deformations of it, gives both a
random pose, and follows every voxel of the fixed image through the common space to the moving one.
The images are resampled once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.grid import Grid, Matrix, invert_matrix
from ..geometry.sampling import apply_matrix, sample, voxel_coordinates
from ..networks.blocks import resized_vectors
from ..registration.model_frame import ModelFrame
from ..registration.source import BatchSource
from ..registration.trainable import Batch
from .augment import Augmentation, random_pose, smooth_noise, uniform
from .shape_model import AnatomyModel, Shapes


@dataclass(frozen=True, eq=False)
class Sides:
    """Two images in a common space, and their deformations of it.

    Args:
        images: Fixed and moving image in the common space, (1, 1, *shape).
        labels: Their label maps, where they are known.
        fixed: Deformation from the common space to the fixed image.
        moving: The same for the moving image.
    """

    images: tuple[Tensor, Tensor]
    labels: tuple[Tensor | None, Tensor | None]
    fixed: Shapes
    moving: Shapes


class SupervisedPairs(ABC):
    """Pairs whose displacement is known; a `BatchSource`.

    Args:
        base: The user's pairs, whose frame and pairs for validation are taken.
        augmentation: Random poses and intensities; its bends are left out, as the shapes come from
            the source.
    """

    #: What the displacements are, for the card of a model.
    kind = ""

    def __init__(self, base: BatchSource, augmentation: Augmentation | None = None) -> None:
        self._base, self._augmentation = base, augmentation

    @property
    def frame(self) -> ModelFrame:
        """Voxel size and shape of all batches."""
        return self._base.frame

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs with their displacements for one training step, on the CPU."""
        drawn = [self._posed(self._sides(generator), generator) for _ in range(count)]
        batch = _joined(drawn)
        return batch if self._augmentation is None else self._shaded(batch, generator)

    def validation(self) -> Sequence[Batch]:
        """Returns the user's pairs for validation."""
        return self._base.validation()

    def structures(self) -> list[int]:
        """Returns the labels that occur, without the background."""
        return self._base.structures()

    def labeled(self) -> BatchSource:
        """Returns itself, if all pairs have label maps.

        Raises:
            InputError: If they have none.
        """
        if not self._has_labels():
            raise InputError(
                "The images that the pairs are made from have no label maps; give label maps of "
                "all of them."
            )
        return self

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data."""
        return {**self._base.describe(), "displacements": self.kind, **self._told()}

    @abstractmethod
    def _sides(self, generator: torch.Generator) -> Sides:
        """Draws two images with their deformations."""

    @abstractmethod
    def _has_labels(self) -> bool:
        """Tells whether all pairs have label maps."""

    @abstractmethod
    def _told(self) -> dict[str, Any]:
        """What `describe` says of this source besides."""

    def _posed(self, sides: Sides, generator: torch.Generator) -> Batch:
        common, own = self._poses(generator)
        return posed_pair(sides, self.frame.spacing_mm, common, common @ own)

    def _poses(self, generator: torch.Generator) -> tuple[Matrix, Matrix]:
        """Returns the pose of both images, and what the moving one has in addition."""
        change, shape = self._augmentation, self.frame.shape
        if change is None:
            return np.eye(4), np.eye(4)
        both = []
        for share in (1.0, change.misalignment):
            shift = share * change.shift_mm / self.frame.spacing_mm
            both.append(
                random_pose(
                    shape, share * change.rotation_deg, share * change.scale, shift, generator
                )
            )
        common, own = both
        if change.flip > 0.0 and uniform(generator) < change.flip:
            mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
            mirror[0, 3] = shape[0] - 1
            common = common @ mirror
        if change.shift_voxels:
            most = int(change.shift_voxels)
            own[:3, 3] += torch.randint(-most, most + 1, (3,), generator=generator).numpy()
        return common, own

    def _shaded(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Changes intensities alone; the displacements stay known."""
        assert self._augmentation is not None
        still = replace(self._augmentation, flip=0.0, rotation_deg=0.0, scale=0.0, shift_mm=0.0,
                        shift_voxels=0, bend_mm=0.0)  # fmt: skip
        changed = still(batch, generator)
        return replace(batch, fixed=changed.fixed, moving=changed.moving)


class ModelPairs(SupervisedPairs):
    """Two samples of a model of anatomies, and the exact displacement between them.

    Args:
        base: The user's pairs.
        model: The model, on their grid.
        augmentation: See `SupervisedPairs`.
        shared_texture: Probability that both images of a pair have one texture, as two images of
            one person do.
        spread: Size of the deviations of shape; 1 is that of the training images.
        own_texture: Probability that textures are those of training images. Mixtures of several
            are less sharp than any image is.
    """

    kind = "between samples of a model of anatomies"

    def __init__(
        self,
        base: BatchSource,
        model: AnatomyModel,
        augmentation: Augmentation | None = None,
        shared_texture: float = 0.5,
        spread: float = 1.0,
        own_texture: float = 1.0,
    ) -> None:
        super().__init__(base, augmentation)
        if model.grid.shape != base.frame.shape:
            raise InputError(
                f"The model of anatomies has {model.grid.shape} voxels, and the pairs have "
                f"{base.frame.shape}; make the model from the images of these pairs."
            )
        self.model, self._shared, self._spread = model, shared_texture, spread
        self._own = own_texture

    def _sides(self, generator: torch.Generator) -> Sides:
        return two_samples(self.model, generator, self._shared, self._spread, self._own)

    def _has_labels(self) -> bool:
        return self.model.labels is not None

    def _told(self) -> dict[str, Any]:
        model = self.model
        return {
            "images": model.subjects, "shared_texture": self._shared, "spread": self._spread,
            "own_texture": self._own,
            "locality_mm": list(model.locality_mm),
            "texture_locality_mm": list(model.texture_locality_mm), **model.about,
        }  # fmt: skip


class RandomPairs(SupervisedPairs):
    """A training image under two random smooth deformations, which know nothing of anatomy.

    Args:
        base: The user's pairs.
        images: Training images, (n, 1, *shape).
        labels: Their label maps, where they are known.
        size_mm: Root mean square length of the velocities.
        widths_mm: Distances over which they change; they add up, with equal shares.
        augmentation: See `SupervisedPairs`.
    """

    kind = "random smooth fields"

    def __init__(
        self,
        base: BatchSource,
        images: Tensor,
        labels: Sequence[Tensor | None] = (),
        size_mm: float = 4.0,
        widths_mm: Sequence[float] = (16.0, 32.0, 64.0),
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(base, augmentation)
        self._images = images
        self._labels = list(labels) or [None] * len(images)
        self._size_mm, self._widths_mm = size_mm, tuple(widths_mm)
        # Smooth fields are integrated on every other voxel, eight times as fast.
        a, b, c = (max(1, -(-n // 2)) for n in base.frame.shape)
        self._lattice = Grid(base.frame.shape, np.diag([base.frame.spacing_mm] * 3 + [1.0]))
        self._lattice = self._lattice.resized((a, b, c))

    def velocities(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns random velocities, (count, 3, *lattice) in voxels of the lattice."""
        spacing = torch.tensor(self._lattice.spacing_mm).view(1, 3, 1, 1, 1)
        total = torch.zeros(count, 3, *self._lattice.shape)
        for width in self._widths_mm:
            wide = width / min(self._lattice.spacing_mm)
            total += smooth_noise(self._lattice.shape, count, 3, wide, generator)
        return total * (self._size_mm / math.sqrt(3 * len(self._widths_mm))) / spacing

    def _sides(self, generator: torch.Generator) -> Sides:
        chosen = int(torch.randint(len(self._images), (), generator=generator))
        image, labels = self._images[chosen : chosen + 1], self._labels[chosen]
        shapes = Shapes.of(self.velocities(2, generator), self.frame.shape)
        return Sides((image, image), (labels, labels), shapes[0], shapes[1])

    def _has_labels(self) -> bool:
        return all(item is not None for item in self._labels)

    def _told(self) -> dict[str, Any]:
        return {
            "images": len(self._images), "size_mm": round(self._size_mm, 2),
            "widths_mm": list(self._widths_mm),
        }  # fmt: skip


class TeacherPairs(SupervisedPairs):
    """Two training images, and what a registration found between them, right or wrong.

    Args:
        base: The user's pairs.
        images: Training images, (n, 1, *shape).
        labels: Their label maps, where they are known.
        pairs: Positions of fixed and moving image.
        fields: Displacements of these pairs, (N, 3, *lattice), in voxels of the lattice.
        augmentation: See `SupervisedPairs`.
    """

    kind = "fields of a registration"

    def __init__(
        self,
        base: BatchSource,
        images: Tensor,
        labels: Sequence[Tensor | None],
        pairs: Sequence[tuple[int, int]],
        fields: Tensor,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(base, augmentation)
        self._images, self._pairs, self._fields = images, tuple(pairs), fields
        self._labels = list(labels) or [None] * len(images)

    def _sides(self, generator: torch.Generator) -> Sides:
        chosen = int(torch.randint(len(self._pairs), (), generator=generator))
        i, j = self._pairs[chosen]
        shape = self.frame.shape
        still = Shapes.identity(shape)
        # The fixed image is the common space itself, and the moving one is at x + u(x); it is read
        # at its own voxels, so that its way back is not needed.
        u = resized_vectors(self._fields[chosen : chosen + 1], shape)
        images = (self._images[i : i + 1], self._images[j : j + 1])
        return Sides(
            images, (self._labels[i], self._labels[j]), still, Shapes(u, still.back, False)
        )

    def _has_labels(self) -> bool:
        return all(item is not None for item in self._labels)

    def _told(self) -> dict[str, Any]:
        return {"images": len(self._images), "registered_pairs": len(self._pairs)}


def two_samples(
    model: AnatomyModel,
    generator: torch.Generator,
    shared_texture: float,
    spread: float,
    own_texture: float = 0.0,
) -> Sides:
    """Returns two random anatomies of a model; see `ModelPairs` for the arguments."""
    shapes = model.draw_shapes(2, generator, spread)
    one, own = uniform(generator) < shared_texture, uniform(generator) < own_texture
    textures = (model.own_textures if own else model.draw_textures)(1 if one else 2, generator)
    labels = (model.labels, model.labels)
    return Sides((textures[:1], textures[-1:]), labels, shapes[0], shapes[1])


def posed_pair(sides: Sides, spacing_mm: float, fixed: Matrix, moving: Matrix) -> Batch:
    """Returns a pair with its displacement, each image in a pose.

    A voxel x of the fixed image shows the anatomy at P x, which is phi_1^-1(P x) in the common
    space and phi_2(phi_1^-1(P x)) in the other anatomy. The moving image shows it at Q x, so that

        x + u(x) = Q^-1 phi_2(phi_1^-1(P x)).

    Args:
        sides: Images and deformations.
        spacing_mm: Voxel size.
        fixed: P, from voxels of the fixed image to those of its anatomy, 4 x 4.
        moving: Q, the same for the moving image.
    """
    where = voxel_coordinates(sides.images[0].shape[2:])
    places = []
    for shapes, pose in ((sides.fixed, fixed), (sides.moving, moving)):
        point = apply_matrix(pose, where)
        places.append(point + sample(shapes.back, point))
    images = [sample(i, p, padding="fill") for i, p in zip(sides.images, places)]
    labels = [
        None if region is None else sample(region, place, "nearest", padding="fill")
        for region, place in zip(sides.labels, places)
    ]
    there = sides.moving.anatomy_points(places[0])
    truth = apply_matrix(invert_matrix(moving), there) - where
    return Batch(images[0], images[1], spacing_mm, labels[0], labels[1], truth)


def _joined(parts: Sequence[Batch]) -> Batch:
    """Returns one batch; label maps that are not known are -1 where others are."""
    sides = []
    for name in ("fixed_labels", "moving_labels"):
        found = [getattr(part, name) for part in parts]
        unknown = torch.full(parts[0].fixed.shape, -1, dtype=torch.int64)
        sides.append([unknown if region is None else region for region in found])
    known = any(p.fixed_labels is not None or p.moving_labels is not None for p in parts)
    labels = [torch.cat(side) if known else None for side in sides]
    truths = [part.truth for part in parts if part.truth is not None]
    return Batch(
        torch.cat([part.fixed for part in parts]), torch.cat([part.moving for part in parts]),
        parts[0].spacing_mm, labels[0], labels[1], torch.cat(truths),
    )  # fmt: skip
