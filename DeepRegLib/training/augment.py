"""Random changes of pairs of images, so that a network sees more than the subjects at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.affine import about_point, rotation_from_vector
from ..geometry.grid import Matrix
from ..geometry.sampling import (
    apply_matrix,
    gaussian_smooth,
    resize_image,
    sample,
    voxel_coordinates,
)
from ..registration.trainable import Batch

#: Changes that came later. They are told of only where they are made, so that a training that was
#: begun before them goes on.
_LATER = ("together_mm",)


@dataclass(frozen=True)
class Augmentation:
    """How pairs are changed at random; nothing is, unless asked for (`usual` asks).

    Convention:
        Motions count in mm, degrees and shares; each is drawn evenly between minus and plus the
        number. Label maps move with their images. An image is resampled once.

    Args:
        flip: Probability that left and right change places, in both images of a pair.
        rotation_deg: Rotation of the pair about each axis.
        scale: Change of size of the pair: by up to this share, along each axis.
        shift_mm: Shift of the pair along each axis.
        misalignment: Share of these three that the moving image has in addition.
        shift_voxels: Shift of the moving image alone along each axis, in whole voxels up to this.
        bend_mm: Standard deviation of a smooth deformation that each image gets for itself.
        together_mm: Standard deviation of a smooth deformation that both images of a pair share: it
            makes other anatomies, whose difference remains about that of the pair.
        bend_width_mm: Distance over which these two change.
        gamma: Standard deviation of the logarithm of the exponent of the intensities.
        contrast: Change of the factor of the intensities, by up to this share.
        bias: Largest standard deviation of the logarithm of a smooth factor (coil sensitivity).
        noise: Largest standard deviation of noise, where the image is not zero.
    """

    flip: float = 0.0
    rotation_deg: float = 0.0
    scale: float = 0.0
    shift_mm: float = 0.0
    misalignment: float = 0.0
    shift_voxels: int = 0
    bend_mm: float = 0.0
    together_mm: float = 0.0
    bend_width_mm: float = 40.0
    gamma: float = 0.0
    contrast: float = 0.0
    bias: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 <= value < 1e3 or (name == "flip" and value > 1.0):
                raise InputError(f"The augmentation '{name}' must not be {value:g}.")
        if self.scale >= 1.0 or self.contrast >= 1.0 or self.bend_width_mm <= 0.0:
            raise InputError("Scale and contrast of the augmentation change by less than all.")

    @classmethod
    def usual(cls, **changes: Any) -> Augmentation:
        """Returns changes that suit heads and bodies, which keep their sides."""
        usual = cls(rotation_deg=10.0, scale=0.1, shift_mm=5.0, misalignment=0.15, bend_mm=1.5,
                    gamma=0.15, contrast=0.05, bias=0.1, noise=0.03)  # fmt: skip
        return replace(usual, **changes)

    def told(self) -> dict[str, float]:
        """Returns the changes by name, for cards and records."""
        return {name: value for name, value in vars(self).items() if value or name not in _LATER}

    def still(self) -> Augmentation:
        """Returns the same changes of the intensities without any motion."""
        return replace(self, flip=0.0, rotation_deg=0.0, scale=0.0, shift_mm=0.0, misalignment=0.0,
                       shift_voxels=0, bend_mm=0.0, together_mm=0.0)  # fmt: skip

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Returns a batch with its pairs changed, each in its own way.

        Args:
            batch: The pairs, on the CPU. A known displacement is dropped.
            generator: Where the random numbers come from.
        """
        count = len(batch.fixed)
        images = torch.cat([batch.fixed, batch.moving])
        where = self._positions(batch, generator)
        if where is not None:
            images = sample(images, where, padding="fill")
        images = self._shade(images, batch.spacing_mm, generator)
        labels = [batch.fixed_labels, batch.moving_labels]
        if where is not None:
            parts = (where[:count], where[count:])
            labels = [
                None if known is None else _moved_labels(known, part)
                for known, part in zip(labels, parts)
            ]
        return replace(batch, fixed=images[:count], moving=images[count:], fixed_labels=labels[0],
                       moving_labels=labels[1], truth=None, momentum=None)  # fmt: skip

    def _positions(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """Where the voxels of all fixed, then all moving images come from, (2 B, 3, *shape)."""
        motions = (self.flip, self.rotation_deg, self.scale, self.shift_mm, self.shift_voxels,
                   self.bend_mm, self.together_mm)  # fmt: skip
        if not any(motions):
            return None
        shape, count = batch.shape, len(batch.fixed)
        where = voxel_coordinates(shape).expand(2 * count, -1, -1, -1, -1)
        width = self.bend_width_mm / batch.spacing_mm
        for strength_mm, copies in ((self.bend_mm, 1), (self.together_mm, 2)):
            if strength_mm > 0.0:
                drawn = smooth_noise(shape, 2 * count // copies, 3, width, generator)
                where = where + strength_mm / batch.spacing_mm * drawn.repeat(copies, 1, 1, 1, 1)
        fixed, moving = [], []
        for _ in range(count):
            common = self._pose(shape, batch.spacing_mm, 1.0, generator)
            if self.flip > 0.0 and uniform(generator) < self.flip:
                mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
                mirror[0, 3] = shape[0] - 1
                common = common @ mirror
            own = self._pose(shape, batch.spacing_mm, self.misalignment, generator)
            if self.shift_voxels:
                most = int(self.shift_voxels)
                own[:3, 3] += torch.randint(-most, most + 1, (3,), generator=generator).numpy()
            fixed.append(common)
            moving.append(common @ own)
        return torch.cat([apply_matrix(m, w[None]) for m, w in zip(fixed + moving, where)])

    def _pose(
        self, shape: Sequence[int], spacing_mm: float, share: float, generator: torch.Generator
    ) -> Matrix:
        return random_pose(shape, self.rotation_deg * share, self.scale * share,
                           self.shift_mm * share / spacing_mm, generator)  # fmt: skip

    def _shade(self, images: Tensor, spacing_mm: float, generator: torch.Generator) -> Tensor:
        """Changes the intensities of each image; zero stays zero."""
        count, shape = len(images), images.shape[2:]
        if self.gamma > 0.0:
            power = torch.exp(self.gamma * normal(count, generator))
            images = images.clamp(min=0.0) ** power
        if self.contrast > 0.0:
            images = images * (1.0 + self.contrast * (2.0 * evenly(count, generator) - 1.0))
        if self.bias > 0.0:
            images = images * bias_field(shape, count, self.bias, spacing_mm, generator)
        if self.noise > 0.0:
            level = self.noise * evenly(count, generator)
            noise = torch.randn(images.shape, generator=generator)
            images = images + level * noise * (images > 0.0)
        return images.clamp(0.0, 1.0)


def _moved_labels(labels: Tensor, where: Tensor) -> Tensor:
    """Samples label maps, background outside; maps that are not known stay so."""
    moved = sample(labels, where, "nearest", padding="fill")
    unknown = (labels < 0).flatten(1).any(dim=1).view(-1, 1, 1, 1, 1)
    return torch.where(unknown, torch.full_like(moved, -1), moved)


def smooth_noise(
    shape: Sequence[int],
    count: int,
    channels: int,
    width_voxel: float,
    generator: torch.Generator,
) -> Tensor:
    """Returns smooth random numbers of mean 0 and standard deviation 1.

    Args:
        shape: Voxels.
        count: Size of the batch.
        channels: Number of channels.
        width_voxel: Distance at which numbers are about independent.
        generator: Where the random numbers come from.

    Returns:
        (count, channels, *shape), float32.
    """
    step = max(width_voxel / 2.0, 1.0)
    # A rim is drawn too and cut off, because a smoothed rim has other statistics.
    coarse = [math.ceil(n / step) + 6 for n in shape]
    noise = torch.randn((count, channels, *coarse), generator=generator)
    noise = gaussian_smooth(noise, 1.0)[:, :, 3:-3, 3:-3, 3:-3]
    # A Gaussian of width s leaves (2 s sqrt(pi))^(-1/2) of the deviation, for each axis.
    noise = noise * (2.0 * math.sqrt(math.pi)) ** 1.5
    return resize_image(noise, shape, antialias=False)


def bias_field(
    shape: Sequence[int],
    count: int,
    strength: float,
    spacing_mm: float,
    generator: torch.Generator,
) -> Tensor:
    """Returns smooth factors about 1, (count, 1, *shape).

    Args:
        shape: Voxels.
        count: Size of the batch.
        strength: Largest standard deviation of their logarithm.
        spacing_mm: Voxel size; they change over about 80 mm.
        generator: Where the random numbers come from.
    """
    level = strength * evenly(count, generator)
    return torch.exp(level * smooth_noise(shape, count, 1, 80.0 / spacing_mm, generator))


def random_pose(
    shape: Sequence[int],
    rotation_deg: float,
    scale: float,
    shift_voxel: float,
    generator: torch.Generator,
) -> Matrix:
    """Returns a random affine map of voxels about the middle of a grid of equal spacings, 4 x 4.

    Args:
        shape: Shape of the grid.
        rotation_deg: Largest rotation about each axis.
        scale: Largest change of size along each axis, as a share.
        shift_voxel: Largest shift along each axis.
        generator: Where the random numbers come from.
    """
    turn, size, shift = 2.0 * torch.rand(3, 3, generator=generator, dtype=torch.float64) - 1.0
    linear = rotation_from_vector(turn * math.radians(rotation_deg)).numpy()
    linear = linear * (1.0 + scale * size.numpy())
    middle = (np.array(shape) - 1) / 2
    return about_point(linear, middle, middle + shift_voxel * shift.numpy())


def uniform(generator: torch.Generator) -> float:
    """Returns a random number from 0 to 1."""
    return float(torch.rand((), generator=generator))


def evenly(count: int, generator: torch.Generator) -> Tensor:
    """Returns random numbers from 0 to 1, (count, 1, 1, 1, 1)."""
    return torch.rand(count, 1, 1, 1, 1, generator=generator)


def normal(count: int, generator: torch.Generator) -> Tensor:
    """Returns random numbers of mean 0 and standard deviation 1, (count, 1, 1, 1, 1)."""
    return torch.randn(count, 1, 1, 1, 1, generator=generator)
