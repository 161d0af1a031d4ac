"""Pairs of images that are registered imperfectly, by a displacement that is known at every voxel.

Aligned images are taken apart again by smooth random velocities of several widths, which are strong
in some places and leave others alone. Aligned images are: one image twice, each with its own change
of intensities; pairs whose true displacement is known (generated ones); and images of two people
that an algorithm registered. What that algorithm leaves is not known, so for the latter the known
displacement is what comes on top of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.field import compose_displacements
from ..geometry.sampling import gaussian_smooth, sample, voxel_coordinates
from ..geometry.velocity import exponential
from ..io.files import PathLike
from ..networks.blocks import resized_vectors
from ..pipeline import choose_device
from ..registration.base import Event, Progress
from ..registration.model_frame import ModelFrame
from ..registration.source import BatchSource
from ..registration.trainable import Batch
from .augment import Augmentation, evenly, smooth_noise, uniform
from .shape_model_fit import FieldMaker, ModelSettings

#: Seed of the pairs for validation.
_VALIDATION_SEED = 20180502
#: Squarings that integrate a velocity.
_SQUARINGS = 5
#: Distance in mm over which velocities become strong or weak, and how sharply.
_GATE_MM, _SHARPNESS = 60.0, 4.0
#: Changes of intensity of each image for itself.
SHADES = Augmentation(gamma=0.1, contrast=0.05, bias=0.1, noise=0.02)


@dataclass(frozen=True)
class Residual:
    """How large errors are.

    Args:
        size_mm: Largest standard deviation of the velocities, at each of their widths.
        widths_mm: Distances over which they change; they add up.
        present: Probability that a width is among those of a pair. If all always were, errors of
            short reach alone, which are what a registration leaves, would never be seen.
        blur_voxel: Largest standard deviation of the blur that resampling leaves in a moved image.
        registered: Probability that a pair shows two people whom an algorithm registered.

    Raises:
        InputError: If a number is negative, or there is no width.
    """

    size_mm: float = 2.0
    widths_mm: tuple[float, ...] = (12.0, 24.0, 48.0, 96.0)
    present: float = 0.5
    blur_voxel: float = 0.6
    registered: float = 0.15

    def __post_init__(self) -> None:
        if min(self.size_mm, self.blur_voxel, *self.widths_mm) < 0.0 or not self.widths_mm:
            raise InputError("Errors have sizes and widths of 0 mm or more.")
        if not all(0.0 <= share <= 1.0 for share in (self.registered, self.present)):
            raise InputError("Probabilities of registered pairs and widths lie between 0 and 1.")

    def draw(
        self, frame: ModelFrame, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns random displacements and their inverses.

        Both are (count, 3, *frame.shape), in voxels: r, which takes images apart, and u, which is
        missing then. Smooth fields are integrated on every other voxel.
        """
        shape = [max(1, n // 2) for n in frame.shape]
        spacing = 2.0 * frame.spacing_mm
        velocity = torch.zeros(count, 3, *shape)
        for width in self.widths_mm:
            there = (evenly(count, generator) < self.present).float()
            size = self.size_mm / spacing * evenly(count, generator) * there
            noise = smooth_noise(shape, count, 3, max(width / spacing, 1.0), generator)
            velocity = velocity + size * noise
        gate = smooth_noise(shape, count, 1, _GATE_MM / spacing, generator)
        bias = 2.0 * evenly(count, generator) - 1.0
        velocity = velocity * torch.sigmoid(_SHARPNESS * (gate + bias))
        apart, missing = (exponential(sign * velocity, _SQUARINGS) for sign in (-1.0, 1.0))
        return resized_vectors(apart, frame.shape), resized_vectors(missing, frame.shape)


@dataclass(frozen=True, eq=False)
class RegisteredPeople:
    """Images of different people with the displacements that register them.

    Args:
        images: (N, 1, *shape), 0 to 1.
        pairs: Positions of fixed and moving image.
        displacements: For each pair, (P, 3, *lattice), in voxels of the lattice.
    """

    images: Tensor
    pairs: Sequence[tuple[int, int]]
    displacements: Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Returns fixed images, moving images, and what registers them, in voxels."""
        chosen = torch.randint(len(self.pairs), (count,), generator=generator).tolist()
        fixed, moving = (self.images[[self.pairs[i][side] for i in chosen]] for side in (0, 1))
        return fixed, moving, resized_vectors(self.displacements[chosen], self.images.shape[2:])


class ResidualPairs:
    """Pairs with the displacement that their registration still lacks; a `BatchSource`.

    In a batch, `moving` is the moved image, and `truth` the displacement u that is missing at each
    voxel: moved(x + u(x)) is aligned with fixed(x). Its length is the error.

    Args:
        pairs: Where the images come from.
        residual: How large errors are.
        people: Registered pairs, if there are some.
        mixed: Pairs in place of each that is asked for. Statistics of a batch (batch normalization)
            know nothing of the size of errors if it holds one pair alone.
    """

    def __init__(
        self,
        pairs: BatchSource,
        residual: Residual | None = None,
        people: RegisteredPeople | None = None,
        mixed: int = 1,
    ) -> None:
        self._pairs, self._residual, self._people = pairs, residual or Residual(), people
        self._mixed = mixed

    @property
    def frame(self) -> ModelFrame:
        """Voxel size and shape of all batches."""
        return self._pairs.frame

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs, times as many as are mixed, for one training step, on the CPU."""
        count, of_people = count * self._mixed, 0
        if self._people is not None:
            chances = torch.rand(count, generator=generator)
            of_people = int((chances < self._residual.registered).sum())
        parts = []
        if of_people and self._people is not None:
            drawn = self._people.draw(of_people, generator)
            parts.append(self._apart(*drawn, generator))
        if count > of_people:
            batch = self._pairs.draw(count - of_people, generator)
            parts.append(self._of_batch(batch, generator))
        fixed, moving, truth = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("fixed", "moving", "truth")
        )
        return Batch(fixed, moving, self.frame.spacing_mm, truth=truth)

    def validation(self) -> Sequence[Batch]:
        """Returns the pairs that validation uses, one pair a batch; the same at each call."""
        generator = torch.Generator().manual_seed(_VALIDATION_SEED)
        return [self._of_batch(batch, generator) for batch in self._pairs.validation()]

    def structures(self) -> list[int]:
        """Returns the labels that occur in training, without the background."""
        return self._pairs.structures()

    def labeled(self) -> ResidualPairs:
        """Returns the same with labeled pairs only; see `registration.source.BatchSource`."""
        return ResidualPairs(self._pairs.labeled(), self._residual, self._people, self._mixed)

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data."""
        count = 0 if self._people is None else len(self._people.pairs)
        return {
            **self._pairs.describe(),
            "residual": asdict(self._residual),
            "registered_pairs": count,
            "mixed": self._mixed,
        }

    def _of_batch(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Takes a pair apart whose truth is known, or else its fixed image from itself."""
        if batch.truth is not None:
            return self._apart(batch.fixed, batch.moving, batch.truth, generator)
        still = torch.zeros(len(batch.fixed), 3, *batch.shape)
        return self._apart(batch.fixed, batch.fixed, still, generator)

    def _apart(
        self, fixed: Tensor, moving: Tensor, aligning: Tensor, generator: torch.Generator
    ) -> Batch:
        """Returns pairs that are registered, but for a random displacement."""
        frame, residual = self.frame, self._residual
        apart, missing = residual.draw(frame, len(fixed), generator)
        where = voxel_coordinates(frame.shape) + compose_displacements(aligning, apart)
        blur = residual.blur_voxel * uniform(generator)
        moved = gaussian_smooth(sample(moving, where, padding="fill"), blur)
        shaded = SHADES(Batch(fixed, moved, frame.spacing_mm), generator)
        return Batch(shaded.fixed, shaded.moving, frame.spacing_mm, truth=missing)


def registered_people(
    pairs: BatchSource, count: int, engine: str, folder: PathLike, progress: Progress
) -> RegisteredPeople | None:
    """Registers images of the user's people with each other; None if they are too few.

    Args:
        pairs: The user's pairs.
        count: Most pairs that are registered, taken evenly from all; 0 for none.
        engine: Algorithm that registers, without its linear stages.
        folder: Keeps what was found.
        progress: Gets messages, and can cancel.

    Raises:
        ParameterError: If the algorithm finds no displacement.
        Cancelled: If the user cancelled; what was found is kept.
    """
    prepared: Any = getattr(pairs, "prepared", None)
    if count < 1 or prepared is None:
        return None
    train = prepared()[0]
    images = [train.image(i) for i in range(len(train))]
    groups = [train.subjects[i].group for i in range(len(train))]
    every = [
        (i, j) for i in range(len(groups)) for j in range(len(groups)) if groups[i] != groups[j]
    ]
    if not every:
        return None
    count = min(count, len(every))
    chosen = [every[i * len(every) // count] for i in range(count)]
    progress.message(f"{count} pairs are registered, to learn from what is left of them.")
    settings = ModelSettings(engine=engine)
    inner = Progress(lambda event: _forward(event, progress))
    maker = FieldMaker(train.grid, settings, folder, inner, choose_device("auto")[0])
    fields = maker.displacements([(images[i], images[j]) for i, j in chosen])
    return RegisteredPeople(torch.cat(images), chosen, fields)


def _forward(event: Event, progress: Progress) -> None:
    """Passes messages on and lets the user cancel, and leaves the bar alone."""
    if event.kind == "message":
        progress.message(event.text)
    progress.update(1.0)
