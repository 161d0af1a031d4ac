"""A statistical model of shape and appearance that makes new anatomies from few images.

The training images are registered to a template, their mean in shape and intensities
(`shape_model_fit`). The shape of an anatomy is a stationary velocity v on the template, whose
exponential phi = exp(v) takes points of the template to the anatomy and exp(-v) takes them back, so
that a sample is invertible whatever its coefficients. Its texture T is the image on the template.
Both have a mean and a covariance with locality (`local_statistics`), which gives far more freedom
than the n - 1 modes of n images. A sample is the image (Uzunova et al. 2017,
doi:10.1007/978-3-319-66182-7_26)

    I(x) = T(exp(-v)(x)).

Between two samples the exact correspondence is known: x of the first is at phi_2(phi_1^-1(x)) in
the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, ParameterError
from ..geometry.grid import Grid
from ..geometry.sampling import sample, voxel_coordinates
from ..geometry.velocity import exponential
from ..networks.blocks import resized_vectors
from .local_statistics import LocalCovariance
from .schedule import mixed_seed

#: Values of the template above which a voxel belongs to the object.
_OBJECT = 0.05
#: Looks at how far a point of an anatomy is from where it should be.
_STEPS = 3
#: Modes whose share of the variance a summary tells.
_TOLD = 10


@dataclass(frozen=True, eq=False)
class Shapes:
    """Deformations of the template, both ways.

    Convention:
        Displacements (B, 3, *shape) in voxels of one grid, component c along tensor axis c.

    Args:
        forward: phi - id, from points of the template to points of the anatomy.
        back: phi^-1 - id, from points of the anatomy to points of the template.
        paired: Whether each is the inverse of the other, but for errors of sampling.
    """

    forward: Tensor
    back: Tensor
    paired: bool = True

    @classmethod
    def of(cls, velocity: Tensor, shape: Sequence[int]) -> Shapes:
        """Integrates velocities, (B, 3, *lattice) in voxels of their lattice, on a finer grid."""
        # One by one, as the number of squarings follows from the largest velocity.
        forward, back = (
            torch.cat([resized_vectors(exponential(sign * v[None]), shape) for v in velocity])
            for sign in (1.0, -1.0)
        )
        return cls(forward, back)

    @classmethod
    def identity(cls, shape: Sequence[int]) -> Shapes:
        """Returns the shape of the template itself."""
        return cls(torch.zeros(1, 3, *shape), torch.zeros(1, 3, *shape))

    def __len__(self) -> int:
        return len(self.forward)

    def __getitem__(self, index: int) -> Shapes:
        part = slice(index, index + 1)
        return Shapes(self.forward[part], self.back[part], self.paired)

    def anatomy_points(self, points: Tensor) -> Tensor:
        """Returns where points of the template, (B, 3, *out) in voxels, are in the anatomy.

        Images are made with `back`, so that its inverse is what counts: what sampling makes of
        `forward` is the first guess, and the best of a few fixed-point steps is taken.
        """
        there = best = points + sample(self.forward, points)
        if not self.paired:
            return there
        least: Tensor | None = None
        for _ in range(_STEPS):
            miss = there + sample(self.back, there) - points
            error = miss.square().sum(dim=1, keepdim=True)
            if least is None:
                least = error
            else:
                best = torch.where(error < least, there, best)
                least = torch.minimum(error, least)
            there = there - miss
        return best

    def to(self, other: Shapes) -> Tensor:
        """Returns the displacement from these anatomies to others, (B, 3, *shape).

        With images I of these (fixed) and J of the others (moving), J(x + u(x)) = I(x).
        """
        where = voxel_coordinates(self.back.shape[2:])
        return other.anatomy_points(where + self.back) - where


@dataclass(frozen=True, eq=False)
class Anatomies:
    """Samples of a model, on its grid.

    Args:
        images: (B, 1, *shape), 0 to 1.
        shapes: Their deformations.
        labels: (B, 1, *shape), int64; None if the model has no label map.
        grid: The grid.
    """

    images: Tensor
    shapes: Shapes
    labels: Tensor | None
    grid: Grid


@dataclass(frozen=True, eq=False)
class AnatomyModel:
    """Shapes and textures of a few people, and what follows for others.

    Convention:
        `velocities` are (n, 3, *lattice) in voxels of ``grid.resized(lattice)``; `textures` are
        (n, 1, *grid.shape), 0 to 1, on the template; `labels` (1, 1, *grid.shape), int64, too.

    Args:
        grid: Grid of the template and of the samples.
        velocities: Shapes of the training images.
        textures: The training images in the shape of the template.
        labels: Label map of the template, if all training images had one.
        locality_mm: Distances over which shapes vary together, one a scale; 0 is everywhere.
        texture_locality_mm: The same for textures.
        about: What the model was made from and how, as JSON holds it.

    Raises:
        InputError: If there are fewer than three training images, or the arrays do not fit.
    """

    grid: Grid
    velocities: Tensor
    textures: Tensor
    labels: Tensor | None = None
    locality_mm: tuple[float, ...] = (0.0,)
    texture_locality_mm: tuple[float, ...] = (0.0,)
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.velocities)
        if n < 3 or len(self.textures) != n:
            raise InputError(
                f"A statistical model needs at least three images, each with its shape and its "
                f"texture, but got {n} and {len(self.textures)}."
            )
        maps = [m for m in (self.textures, self.labels) if m is not None]
        fits = all(tuple(m.shape[1:]) == (1, *self.grid.shape) for m in maps)
        if not fits or self.velocities.ndim != 5 or self.velocities.shape[1] != 3:
            raise InputError(
                f"The arrays of a model on {self.grid} do not fit: velocities "
                f"{tuple(self.velocities.shape)}, textures {tuple(self.textures.shape)}."
            )

    @property
    def subjects(self) -> int:
        """Number of training images."""
        return len(self.velocities)

    @property
    def lattice(self) -> Grid:
        """Grid of the velocities."""
        a, b, c = self.velocities.shape[2:]
        return self.grid.resized((a, b, c))

    @cached_property
    def template(self) -> Tensor:
        """Mean texture, (1, 1, *shape)."""
        return self.textures.mean(dim=0, keepdim=True)

    @cached_property
    def mean_velocity(self) -> Tensor:
        """Mean shape, (1, 3, *lattice)."""
        return self.velocities.mean(dim=0, keepdim=True)

    @cached_property
    def shape_statistics(self) -> LocalCovariance:
        """Covariance of the velocities."""
        deviations = self.velocities - self.mean_velocity
        return LocalCovariance(deviations, self.lattice.spacing_mm, self.locality_mm)

    @cached_property
    def texture_statistics(self) -> LocalCovariance:
        """Covariance of the textures."""
        deviations = self.textures - self.template
        return LocalCovariance(deviations, self.grid.spacing_mm, self.texture_locality_mm)

    def draw_velocities(
        self, count: int, generator: torch.Generator, spread: float = 1.0
    ) -> Tensor:
        """Returns velocities of random shapes, (count, 3, *lattice)."""
        return self.mean_velocity + spread * self.shape_statistics.draw(count, generator)

    def draw_shapes(self, count: int, generator: torch.Generator, spread: float = 1.0) -> Shapes:
        """Returns random shapes, on the grid of the images.

        Args:
            count: Number of shapes.
            generator: Where the random numbers come from.
            spread: Size of the deviations from the mean; 1 is that of the training images.
        """
        return Shapes.of(self.draw_velocities(count, generator, spread), self.grid.shape)

    def draw_textures(self, count: int, generator: torch.Generator, spread: float = 1.0) -> Tensor:
        """Returns random images in the shape of the template, (count, 1, *shape), 0 to 1."""
        drawn = self.texture_statistics.draw(count, generator)
        return (self.template + spread * drawn).clamp_(0.0, 1.0)

    def own_textures(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns textures of so many different training images, (count, 1, *shape)."""
        return self.textures[torch.randperm(self.subjects, generator=generator)[:count]]

    def sample(
        self, count: int = 1, seed: int = 0, spread: float = 1.0, texture_spread: float = 1.0
    ) -> Anatomies:
        """Returns random anatomies: the first ones of a seed, whatever their number.

        Args:
            count: Number of anatomies.
            seed: Decides which.
            spread: Size of the deviations of shape.
            texture_spread: Size of the deviations of texture; 0 gives all the mean texture.

        Raises:
            ParameterError: If the number is not positive.
        """
        if count < 1:
            raise ParameterError(f"The number of anatomies is at least 1, not {count}.")
        velocities, textures = [], []
        for number in range(count):
            generator = torch.Generator().manual_seed(mixed_seed(seed, number, "anatomy"))
            velocities.append(self.draw_velocities(1, generator, spread))
            textures.append(self.draw_textures(1, generator, texture_spread))
        shapes = Shapes.of(torch.cat(velocities), self.grid.shape)
        return self.rendered(shapes, torch.cat(textures))

    def along_mode(self, mode: int, deviations: Sequence[float] = (-2.0, 0.0, 2.0)) -> Anatomies:
        """Returns the mean texture in shapes along one mode of variation.

        Args:
            mode: Number of the mode, from 0.
            deviations: How far to go, in standard deviations.

        Raises:
            ParameterError: If there is no such mode.
        """
        _, modes = self.shape_statistics.modes(mode + 1)
        if not 0 <= mode < len(modes):
            raise ParameterError(f"The model has {len(modes)} modes, so none of number {mode}.")
        steps = torch.tensor(list(deviations), dtype=torch.float32).view(-1, 1, 1, 1, 1)
        shapes = Shapes.of(self.mean_velocity + steps * modes[mode], self.grid.shape)
        return self.rendered(shapes, self.template.expand(len(shapes), -1, -1, -1, -1))

    def rendered(self, shapes: Shapes, textures: Tensor) -> Anatomies:
        """Returns textures on the template in given shapes, I = T o phi^-1."""
        where = voxel_coordinates(self.grid.shape) + shapes.back
        images = sample(textures, where, padding="fill")
        labels = None
        if self.labels is not None:
            labels = sample(self.labels, where, "nearest", padding="fill")
        return Anatomies(images, shapes, labels, self.grid)

    def size_mm(self) -> float:
        """Returns the root mean square length of the shapes' deviations where the object is."""
        inside = sample(self.template, _centers(self.grid, self.lattice)) > _OBJECT
        spacing = torch.tensor(self.lattice.spacing_mm).view(1, 3, 1, 1, 1)
        squares = (self.shape_statistics.deviations * spacing).square().sum(dim=(0, 1))
        inside = inside[0, 0]
        chosen = squares[inside] if bool(inside.any()) else squares
        return math.sqrt(float(chosen.mean()) / (self.subjects - 1))

    def summary(self) -> dict[str, Any]:
        """Returns what stands in the file of a model: sizes, scales, and shares of the variance."""
        shares = {}
        for name, statistics in (
            ("shape", self.shape_statistics), ("texture", self.texture_statistics)
        ):  # fmt: skip
            values, _ = statistics.modes(_TOLD)
            part = (values.cumsum(0) / max(statistics.total, 1e-30)).tolist()
            shares[name] = [round(value, 4) for value in part]
        return {
            "subjects": self.subjects,
            "spacing_mm": [round(value, 6) for value in self.grid.spacing_mm],
            "shape": list(self.grid.shape),
            "locality_mm": list(self.locality_mm),
            "texture_locality_mm": list(self.texture_locality_mm),
            "size_mm": round(self.size_mm(), 4),
            "variance_explained": shares,
            "effective_modes": round(self.shape_statistics.effective_modes(), 1),
        }


def _centers(grid: Grid, lattice: Grid) -> Tensor:
    """Voxels of a lattice over the same extent, in voxels of a grid, (1, 3, *lattice)."""
    where = voxel_coordinates(lattice.shape)
    ratio = [n / m for n, m in zip(grid.shape, lattice.shape)]
    scale = torch.tensor(ratio).view(1, 3, 1, 1, 1)
    return (where + 0.5) * scale - 0.5
