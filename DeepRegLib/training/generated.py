"""Pairs of images that are generated from label maps, with their labels and their deformation.

The recipe of SynthMorph (Hoffmann et al. 2022, doi:10.1109/TMI.2021.3116879): a label map is bent
by two random smooth velocities, each bent map becomes an image by drawing the intensities of every
label from a Gaussian of random mean and width, and the images get blur, a bias field, a random
exponent, noise and loss of resolution. A network that was trained with such pairs knows no contrast
in particular. Besides that: two maps may be those of two people, and both images may have the same
contrast, or that of T1 images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.grid import Grid, Matrix, invert_matrix
from ..geometry.sampling import (
    apply_matrix,
    gaussian_smooth,
    resize_image,
    sample,
    voxel_coordinates,
)
from ..geometry.velocity import exponential
from ..registration.base import Image
from ..registration.model_frame import ModelFrame, normalized
from ..registration.trainable import Batch
from .augment import bias_field, evenly, normal, random_pose, smooth_noise, uniform
from .label_maps import FLUID_AROUND, TWINS, t1_brightness
from .prepared import PreparedSet

CONTRASTS = ("independent", "same", "t1")
#: Seed of the pairs for validation.
_VALIDATION_SEED = 20220301
#: Squarings that integrate a velocity; the first step is then a small part of a voxel.
_SQUARINGS = 5


@dataclass(frozen=True)
class Recipe:
    """How images are made from label maps.

    Convention:
        Lengths in mm. A "largest" number is the upper end of numbers that are drawn evenly from 0.

    Args:
        contrast: ``independent`` draws intensities for each image, ``same`` for each pair, ``t1``
            draws them around those of T1 images (labels by FreeSurfer's numbers).
        two_people: Probability that the images of a pair come from two label maps.
        bend_mm: Largest standard deviation of the velocity, at each of its widths.
        widths_mm: Distances over which the velocities change; they add up.
        rotation_deg: Largest rotation of a pair about each axis.
        scale: Largest change of size of a pair, as a share.
        shift_mm: Largest shift of a pair.
        misalignment: Share of these three that the moving image has in addition.
        mean: Range of the mean intensities of labels.
        width: Range of their standard deviations.
        spread: Standard deviation of mean intensities about those of T1 images.
        blur_mm: Range of the standard deviations of the blur.
        bias: Largest standard deviation of the logarithm of the bias field.
        gamma: Standard deviation of the logarithm of the exponent.
        noise: Largest standard deviation of noise after all.
        thick: Probability that an image has thick slices.
        thickness_mm: Largest thickness of these.
        twins: Whether left and right structures (FreeSurfer's numbers) have one contrast.
        fluid: Probability that the fluid around the brain is left (FreeSurfer's label 24), as a
            skull stripping may do or not.
    """

    contrast: str = "independent"
    two_people: float = 0.5
    bend_mm: float = 3.0
    widths_mm: tuple[float, ...] = (16.0, 32.0, 64.0)
    rotation_deg: float = 10.0
    scale: float = 0.1
    shift_mm: float = 5.0
    misalignment: float = 0.15
    mean: tuple[float, float] = (0.1, 0.9)
    width: tuple[float, float] = (0.02, 0.1)
    spread: float = 0.06
    blur_mm: tuple[float, float] = (0.0, 1.5)
    bias: float = 0.2
    gamma: float = 0.25
    noise: float = 0.03
    thick: float = 0.15
    thickness_mm: float = 6.0
    twins: bool = True
    fluid: float = 0.5

    def __post_init__(self) -> None:
        if self.contrast not in CONTRASTS:
            raise InputError(f"The contrast is {', '.join(CONTRASTS)}, not '{self.contrast}'.")
        if (
            min(self.two_people, self.thick, self.fluid) < 0
            or max(self.two_people, self.thick, self.fluid) > 1
        ):
            raise InputError("The probabilities of a recipe lie between 0 and 1.")


class GeneratedPairs:
    """Pairs that are generated from label maps; a `BatchSource`.

    Where both images of a pair come from one map, the batch tells the true displacement.

    Args:
        train: Label maps, prepared with a `LabelMapLoader`; the voxels may be finer than those of
            the images (2 mm for images of 3 mm), which makes better images.
        validation: Label maps of other people.
        frame: Voxel size and shape of the images; those of the maps if omitted.
        recipe: How images are made.
        validation_pairs: Number of pairs for validation.
        text: What the label maps are, for the card of a model.
        terms: On what terms what was trained with them may be used.

    Raises:
        InputError: If a subject has no label map.
    """

    def __init__(
        self,
        train: PreparedSet,
        validation: PreparedSet | None = None,
        frame: ModelFrame | None = None,
        recipe: Recipe | None = None,
        validation_pairs: int = 8,
        text: str = "",
        terms: str = "",
    ) -> None:
        self._recipe = recipe or Recipe()
        self._frame = frame or train.frame
        self._map_grid, self._grid = train.grid, _centered(self._frame, train.grid)
        self._structures = sorted({0, *train.structures()} | set(
            [] if validation is None else validation.structures()))  # fmt: skip
        self._maps = self._load(train)
        self._held = None if validation is None else self._load(validation)
        self._count, self._text, self._terms = validation_pairs, text, terms
        self._table = torch.tensor(self._structures)
        self._level = t1_brightness(self._table)
        # The fluid around the brain is no structure to align where it may be stripped.
        loose = FLUID_AROUND in self._structures and self._recipe.fluid < 1.0
        self._fluid = self._structures.index(FLUID_AROUND) if loose else None
        if loose:
            self._table[self._structures.index(FLUID_AROUND)] = 0
        order = {label: i for i, label in enumerate(self._structures)}
        self._twin = torch.tensor(
            [order.get(TWINS.get(n, n), order[n]) for n in self._structures]
            if self._recipe.twins
            else list(range(len(self._structures)))
        )
        self._validation: list[Batch] | None = None

    @property
    def frame(self) -> ModelFrame:
        """Voxel size and shape of all batches."""
        return self._frame

    @property
    def grid(self) -> Grid:
        """Where the voxels of all images lie, as those of the label maps do."""
        return self._grid

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs for one training step, on the CPU."""
        return self._make(self._maps, count, generator)

    def validation(self) -> Sequence[Batch]:
        """Returns the pairs that validation uses, one pair a batch; the same at each call."""
        if self._validation is None:
            maps, generator = self._held, torch.Generator().manual_seed(_VALIDATION_SEED)
            self._validation = (
                [] if maps is None else [self._make(maps, 1, generator) for _ in range(self._count)]
            )
        return self._validation

    def labeled(self) -> GeneratedPairs:
        """Returns itself: every generated image has its label map."""
        return self

    def structures(self) -> list[int]:
        """Returns the labels that occur, without the background."""
        return [label for label in self._table.tolist() if label]

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data."""
        return {
            "text": self._text or f"Images generated from {len(self._maps)} label maps",
            "terms": self._terms,
            "subjects": len(self._maps),
            "validation_subjects": 0 if self._held is None else len(self._held),
            "validation_pairs": 0 if self._held is None else self._count,
            "recipe": asdict(self._recipe),
        }

    def _load(self, prepared: PreparedSet) -> Tensor:
        """Returns the positions of labels among the structures, (N, 1, *shape), uint8 or int16."""
        maps = []
        for index, subject in enumerate(prepared.subjects):
            labels = prepared.labels(index)
            if labels is None:
                raise InputError(f"'{subject.name}' has no label map to make images from.")
            maps.append(torch.searchsorted(torch.tensor(self._structures), labels))
        kind = torch.uint8 if len(self._structures) <= 256 else torch.int16
        return torch.cat(maps).to(kind)

    def _make(self, maps: Tensor, count: int, generator: torch.Generator) -> Batch:
        recipe, shape = self._recipe, self._frame.shape
        one = torch.randint(len(maps), (count,), generator=generator)
        two_people = uniform(generator) < recipe.two_people and len(maps) > 1
        other = one
        if two_people:
            step = torch.randint(1, len(maps), (count,), generator=generator)
            other = (one + step) % len(maps)
        velocity = self._velocity(2 * count, generator)
        # Smooth fields are integrated on every other voxel, eight times as fast.
        bent = _onto(exponential(velocity, _SQUARINGS), shape)
        common, own = self._poses(count, generator)
        poses = common + [c @ o for c, o in zip(common, own)]
        onto_map = self._grid.voxel_to_voxel(self._map_grid)
        where = voxel_coordinates(shape) + bent
        where = torch.cat([apply_matrix(onto_map @ m, w[None]) for m, w in zip(poses, where)])
        chosen = maps[torch.cat([one, other])]
        index = sample(chosen, where, "nearest", padding="fill")
        images = self._images(chosen, where, generator)
        labels = self._table[index.to(torch.int64)]
        truth = None
        if not two_people:
            back = _onto(exponential(-velocity[count:], _SQUARINGS), shape)
            truth = _between(bent[:count], back, own)
        return Batch(images[:count], images[count:], self._frame.spacing_mm,
                     fixed_labels=labels[:count], moving_labels=labels[count:],
                     truth=truth)  # fmt: skip

    def _velocity(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns smooth velocities on a grid of half as many voxels, in its voxels."""
        shape = [max(1, n // 2) for n in self._frame.shape]
        spacing = 2.0 * self._frame.spacing_mm
        total = torch.zeros(count, 3, *shape)
        for width in self._recipe.widths_mm:
            size = self._recipe.bend_mm / spacing * evenly(count, generator)
            total = total + size * smooth_noise(shape, count, 3, width / spacing, generator)
        return total

    def _poses(self, count: int, generator: torch.Generator) -> tuple[list[Matrix], list[Matrix]]:
        """Returns the poses of the pairs, and what the moving images have in addition."""
        recipe, spacing = self._recipe, self._frame.spacing_mm
        both: tuple[list[Matrix], list[Matrix]] = ([], [])
        for _ in range(count):
            for poses, share in zip(both, (1.0, recipe.misalignment)):
                pose = random_pose(
                    self._frame.shape,
                    share * recipe.rotation_deg,
                    share * recipe.scale,
                    share * recipe.shift_mm / spacing,
                    generator,
                )
                poses.append(pose)
        return both

    def _images(self, maps: Tensor, where: Tensor, generator: torch.Generator) -> Tensor:
        """Makes images of maps; the first half of the batch and the second belong together.

        They are made on the grid of the maps, which may be finer, so that voxels at the edge of
        structures are mixtures, as in scans.
        """
        recipe, spacing, fine = self._recipe, self._frame.spacing_mm, self._map_grid.spacing_mm[0]
        mean, width = self._contrasts(len(maps) // 2, generator)
        low, high = recipe.blur_mm
        made = []
        for number, (labels, position) in enumerate(zip(maps, where)):
            index = labels[0].to(torch.int64)
            image = torch.randn(index.shape, generator=generator)
            image = image.mul_(width[number][index]).add_(mean[number][index])[None, None]
            blur = low + (high - low) * uniform(generator)
            resampling = 0.25 * max(spacing**2 - fine**2, 0.0)
            image = gaussian_smooth(image, (blur**2 + resampling) ** 0.5 / fine)
            image = sample(image, position[None], padding="fill").clamp_(0.0, 1.0)
            if recipe.thick > 0.0 and uniform(generator) < recipe.thick:
                image = _thick(image, recipe.thickness_mm / spacing, generator)
            made.append(image)
        return self._shaded(torch.cat(made), generator)

    def _shaded(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Adds bias field, exponent and noise, and scales intensities as models take them."""
        recipe, count = self._recipe, len(images)
        if recipe.bias > 0.0:
            factor = bias_field(
                self._frame.shape, count, recipe.bias, self._frame.spacing_mm, generator
            )
            images = images * factor
        images = images.clamp(0.0, 1.0) ** torch.exp(recipe.gamma * normal(count, generator))
        level = recipe.noise * evenly(count, generator)
        # Where there is nothing, as around a stripped brain, there is no noise either.
        noise = level * torch.randn(images.shape, generator=generator)
        images = images + noise * (images > 0.02)
        return torch.cat([normalized(Image(i[None], self._grid)) for i in images])

    def _contrasts(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws mean and standard deviation of each structure, (2 count, structures)."""
        recipe, structures = self._recipe, len(self._structures)
        drawn = count if recipe.contrast == "same" else 2 * count
        if recipe.contrast == "t1":
            mean = torch.randn(drawn, structures, generator=generator)
            mean = self._level + recipe.spread * mean
        else:
            low, high = recipe.mean
            mean = low + (high - low) * torch.rand(drawn, structures, generator=generator)
        low, high = recipe.width
        width = low + (high - low) * torch.rand(drawn, structures, generator=generator)
        times = 2 * count // drawn
        mean, width = mean[:, self._twin].repeat(times, 1), width[:, self._twin].repeat(times, 1)
        mean = mean.clamp(min=0.02)
        mean[:, 0] = width[:, 0] = 0.0
        if self._fluid is not None:
            bare = torch.rand(2 * count, generator=generator) >= recipe.fluid
            mean[bare, self._fluid] = width[bare, self._fluid] = 0.0
        return mean, width


def _centered(frame: ModelFrame, around: Grid) -> Grid:
    """Returns the grid of a frame with the middle of another one."""
    matrix = np.diag([frame.spacing_mm] * 3 + [1.0])
    matrix[:3, 3] = around.center_ras - frame.spacing_mm * (np.array(frame.shape) - 1) / 2
    return Grid(frame.shape, matrix)


def _onto(displacement: Tensor, shape: Sequence[int]) -> Tensor:
    """Resamples displacements (B, 3, ...) on a grid of another shape, in its voxels."""
    ratios = [n / o for n, o in zip(shape, displacement.shape[2:])]
    scale = torch.tensor(ratios).view(1, 3, 1, 1, 1)
    return resize_image(displacement, shape, antialias=False) * scale


def _between(fixed: Tensor, back: Tensor, own: Sequence[Matrix]) -> Tensor:
    """Returns the displacement that takes fixed to moving voxels.

    The fixed image shows the map at C(x + f(x)), the moving one at C O(x + m(x)): so x goes to
    (id + m)^-1 O^-1 (x + f(x)).

    Args:
        fixed: f, (B, 3, *shape).
        back: Displacement of the inverse of id + m.
        own: O, for each pair.
    """
    identity = voxel_coordinates(fixed.shape[2:])
    there = identity + fixed
    there = torch.cat([apply_matrix(invert_matrix(o), t[None]) for o, t in zip(own, there)])
    return there + sample(back, there) - identity


def _thick(image: Tensor, most_voxel: float, generator: torch.Generator) -> Tensor:
    """Returns an image (1, 1, *shape) as it looks after a scan with thick slices."""
    axis = int(torch.randint(3, (), generator=generator))
    size = image.shape[2 + axis]
    thickness = 1.0 + (max(most_voxel, 1.0) - 1.0) * uniform(generator)
    shape = list(image.shape[2:])
    shape[axis] = max(2, round(size / thickness))
    return resize_image(resize_image(image, shape), image.shape[2:], antialias=False)
