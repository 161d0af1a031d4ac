"""Pairs of two contrasts: real ones, or one that is made from the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..registration.model_frame import ModelFrame
from ..registration.source import BatchSource
from ..registration.trainable import Batch
from .augment import Augmentation, bias_field
from .prepared import PreparedSet

#: Seed of what the images for validation are changed by.
_VALIDATION_SEED = 20180703


@dataclass(frozen=True)
class Contrast:
    """Makes another contrast of images: a curve of intensities, a bias field, and noise.

    By default fluid, gray and white matter of a T1 image become dark, bright and dark, so that no
    rising or falling curve leads from one image to the other.

    Args:
        curve: Intensities that take the place of 0 ... 1, at even distances, with straight lines
            between them. The first is that of the background, which should stay 0.
        spread: Standard deviation by which all of them but the first vary from image to image.
        bias: Largest standard deviation of the logarithm of a smooth factor.
        noise: Standard deviation of noise, where the image is not 0.

    Raises:
        InputError: If the curve has less than two nodes, or a number is negative.
    """

    curve: tuple[float, ...] = (0.0, 0.35, 0.75, 0.95, 0.3, 0.6)
    spread: float = 0.0
    bias: float = 0.2
    noise: float = 0.05

    def __post_init__(self) -> None:
        if len(self.curve) < 2 or min(*self.curve, self.spread, self.bias, self.noise) < 0.0:
            raise InputError(
                "A contrast has a curve of at least two intensities, and no negative numbers."
            )

    def __call__(self, images: Tensor, spacing_mm: float, generator: torch.Generator) -> Tensor:
        """Returns images in the other contrast.

        Args:
            images: (B, 1, *shape), 0 to 1, on the CPU.
            spacing_mm: Voxel size.
            generator: Where the random numbers come from.

        Returns:
            (B, 1, *shape), 0 to 1.
        """
        count, shape = len(images), images.shape[2:]
        shown = images > 0.0
        nodes = torch.tensor(self.curve).repeat(count, 1)
        nodes[:, 1:] += self.spread * torch.randn(count, len(self.curve) - 1, generator=generator)
        made = torch.stack([_along(image, node) for image, node in zip(images, nodes)])
        if self.bias > 0.0:
            made = made * bias_field(shape, count, self.bias, spacing_mm, generator)
        noise = torch.randn(images.shape, generator=generator)
        return torch.where(shown, made + self.noise * noise, made).clamp(0.0, 1.0)


class RemappedPairs:
    """Pairs whose moving images are shown in another contrast; a `BatchSource`.

    Args:
        pairs: The pairs.
        contrast: What becomes of the moving images; the usual `Contrast` if omitted.
    """

    def __init__(self, pairs: BatchSource, contrast: Contrast | None = None) -> None:
        self._pairs, self._contrast = pairs, contrast or Contrast()

    @property
    def frame(self) -> ModelFrame:
        """Voxel size and shape of all batches."""
        return self._pairs.frame

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs for one training step, on the CPU."""
        return self._changed(self._pairs.draw(count, generator), generator)

    def validation(self) -> Sequence[Batch]:
        """Returns the pairs that validation uses, one pair a batch; the same at each call."""
        generator = torch.Generator().manual_seed(_VALIDATION_SEED)
        return [self._changed(batch, generator) for batch in self._pairs.validation()]

    def structures(self) -> list[int]:
        """Returns the labels that occur in training, without the background."""
        return self._pairs.structures()

    def labeled(self) -> RemappedPairs:
        """Returns the same with labeled pairs only; see `registration.source.BatchSource`."""
        return RemappedPairs(self._pairs.labeled(), self._contrast)

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data."""
        return {**self._pairs.describe(), "contrast_of_moving": asdict(self._contrast)}

    def _changed(self, batch: Batch, generator: torch.Generator) -> Batch:
        moving = self._contrast(batch.moving, batch.spacing_mm, generator)
        return replace(batch, moving=moving)


class CrossPairs:
    """Pairs of an image of one contrast and one of another, of different people; a `BatchSource`.

    Args:
        fixed: Subjects whose images stay.
        moving: Subjects whose images are moved, prepared on the same grid (with the same
            reference).
        validation: Fixed and moving subjects of other people, for validation.
        augmentation: Random changes of the pairs for training.
        most_validation: Most pairs for validation; they are spread evenly over all.
        text: What the images are, for the card of a model.
        terms: On what terms what was trained with them may be used.

    Raises:
        InputError: If the grids differ, or there is no pair.
    """

    def __init__(
        self,
        fixed: PreparedSet,
        moving: PreparedSet,
        validation: tuple[PreparedSet, PreparedSet] | None = None,
        augmentation: Augmentation | None = None,
        most_validation: int = 12,
        text: str = "",
        terms: str = "",
    ) -> None:
        self._train, self._held = (fixed, moving), validation
        self._augmentation, self._most = augmentation, most_validation
        self._text, self._terms = text, terms
        if any(not fixed.grid.matches(part.grid) for part in (moving, *(validation or ()))):
            raise InputError(
                "The images of both contrasts lie on different grids; prepare them with the same "
                "reference."
            )
        self._pairs = _of_different_people(fixed, moving)
        if not self._pairs:
            raise InputError("There is no pair of different people; add images of either contrast.")

    @property
    def frame(self) -> ModelFrame:
        """Voxel size and shape of all batches."""
        return self._train[0].frame

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs for one training step, on the CPU."""
        chosen = torch.randint(len(self._pairs), (count,), generator=generator).tolist()
        batch = _batch(*self._train, [self._pairs[i] for i in chosen])
        return batch if self._augmentation is None else self._augmentation(batch, generator)

    def validation(self) -> Sequence[Batch]:
        """Returns the pairs that validation uses, one pair a batch; the same at each call."""
        if self._held is None:
            return []
        pairs = _of_different_people(*self._held)
        count = min(self._most, len(pairs))
        return [_batch(*self._held, [pairs[i * len(pairs) // count]]) for i in range(count)]

    def structures(self) -> list[int]:
        """Returns the labels that occur in training, without the background."""
        return sorted({label for part in self._train for label in part.structures()})

    def labeled(self) -> CrossPairs:
        """Returns the same with labeled pairs only; see `registration.source.BatchSource`."""
        if all(part.labeled for part in self._train):
            return self
        known = [[s for s in part.subjects if s.labels is not None] for part in self._train]
        if not all(known):
            raise InputError("This algorithm learns from label maps; give some of both contrasts.")
        fixed, moving = (part.only(some) for part, some in zip(self._train, known))
        return CrossPairs(fixed, moving, self._held, self._augmentation, self._most, self._text,
                          self._terms)  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data."""
        counts = [len(part) for part in self._train]
        return {
            "text": self._text or f"{counts[0]} fixed and {counts[1]} moving images",
            "terms": self._terms,
            "subjects": sum(counts),
            "validation_subjects": sum(len(part) for part in self._held or ()),
            "augmentation": None if self._augmentation is None else self._augmentation.told(),
        }


def _of_different_people(fixed: PreparedSet, moving: PreparedSet) -> list[tuple[int, int]]:
    return [
        (i, j)
        for i, one in enumerate(fixed.subjects)
        for j, other in enumerate(moving.subjects)
        if one.group != other.group
    ]


def _batch(fixed: PreparedSet, moving: PreparedSet, pairs: Sequence[tuple[int, int]]) -> Batch:
    """Returns pairs, with label maps if all images have one."""
    parts = [(fixed, [i for i, _ in pairs]), (moving, [j for _, j in pairs])]
    one, other = (torch.cat([part.image(i) for i in side]) for part, side in parts)
    maps = [[part.labels(i) for i in side] for part, side in parts]
    labels: list[Tensor | None] = [None, None]
    if all(found is not None for side in maps for found in side):
        labels = [torch.cat([x for x in side if x is not None]) for side in maps]
    return Batch(one, other, fixed.frame.spacing_mm, labels[0], labels[1])


def _along(image: Tensor, nodes: Tensor) -> Tensor:
    """Returns the values of a curve through evenly spaced nodes at the intensities of an image."""
    place = image.clamp(0.0, 1.0) * (len(nodes) - 1)
    below = place.floor().clamp(max=len(nodes) - 2)
    index = below.to(torch.int64)
    return torch.lerp(nodes[index], nodes[index + 1], place - below)
