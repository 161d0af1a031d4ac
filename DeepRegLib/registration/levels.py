"""Both images of a pair at one resolution, and the coarser grid that their deformation lives on."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kernels
from ..geometry.field import Field
from ..geometry.grid import Grid, Matrix
from ..geometry.sampling import (
    apply_matrix,
    inside_image,
    sample,
    sample_grid,
    sampling_grid,
    sampling_vectors,
    voxel_coordinates,
)
from ..losses.base import Similarity
from ..losses.blocks import block_sum
from .base import ImagePair
from .preprocess import Level, mask_on_grid, pyramid, rescale_intensity

#: A level on which the image has fewer voxels along its longest axis tells nothing.
_FEWEST = 6


@dataclass(frozen=True, eq=False)
class PairLevel:
    """Both images at one resolution.

    Convention:
        `fixed` is (1, C, *grid.shape); `moving` has a grid of its own, which `to_moving` leads to
        from voxels of `grid`. Intensities run from 0 to 1. Masks are weights of the same grids.

    Args:
        fixed: Fixed image.
        moving: Moving image.
        fixed_mask: Where the fixed image counts; everywhere if None.
        moving_mask: Where the moving image counts; everywhere if None.
        grid: Grid of the fixed image.
        to_moving: Voxel of `grid` to voxel of the moving image, by the linear part alone.
        partial: Whether the moving image may end inside the fixed one.
    """

    fixed: Tensor
    moving: Tensor
    fixed_mask: Tensor | None
    moving_mask: Tensor | None
    grid: Grid
    to_moving: Matrix
    partial: bool

    @classmethod
    def of(
        cls,
        pair: ImagePair,
        linear: Matrix,
        spacing_mm: float,
        lattice: int = 1,
        rescale: bool = True,
    ) -> PairLevel:
        """Smooths and resamples a pair to about a spacing; see `series`."""
        return cls.series(pair, linear, (spacing_mm,), lattice, rescale)[0]

    @classmethod
    def series(
        cls,
        pair: ImagePair,
        linear: Matrix,
        spacings_mm: Sequence[float],
        lattice: int = 1,
        rescale: bool = True,
    ) -> list[PairLevel]:
        """Smooths and resamples a pair to about several spacings, each from the next finer one.

        The moving image is smoothed to the same resolution, but never below its own. The grid of
        the fixed image is extended, its edge repeated, to whole voxels of a lattice of that factor.
        Intensities are rescaled to 0 ... 1 unless they are so already.
        """
        fixed_mask = mask_on_grid(pair.fixed_mask, pair.fixed.grid, pair.device)
        moving_mask = mask_on_grid(pair.moving_mask, pair.moving.grid, pair.device)
        fixed_data, moving_data = pair.fixed.data, pair.moving.data
        if rescale:
            fixed_data = rescale_intensity(fixed_data, fixed_mask)
            moving_data = rescale_intensity(moving_data, moving_mask)
        fixed = pyramid(fixed_data, pair.fixed.grid, spacings_mm)
        moving = pyramid(moving_data, pair.moving.grid, spacings_mm)
        fixed_masks = _masks(fixed_mask, pair.fixed.grid, spacings_mm)
        moving_masks = _masks(moving_mask, pair.moving.grid, spacings_mm)
        return [
            cls._between(*parts, linear, lattice)
            for parts in zip(fixed, moving, fixed_masks, moving_masks)
        ]

    @classmethod
    def _between(
        cls,
        fixed: Level,
        moving: Level,
        fixed_mask: Tensor | None,
        moving_mask: Tensor | None,
        linear: Matrix,
        lattice: int,
    ) -> PairLevel:
        to_moving = fixed.grid.voxel_to_voxel(moving.grid, linear)
        corners = fixed.grid.to_voxel(fixed.grid.corners_ras()) @ to_moving[:3, :3].T
        corners = corners + to_moving[:3, 3]
        beyond = (corners < -0.6).any() or (corners > np.array(moving.grid.shape) - 0.4).any()
        level = cls(
            fixed.data, moving.data, fixed_mask, moving_mask, fixed.grid, to_moving, bool(beyond)
        )
        return level.extended(lattice_factors(fixed.grid, lattice))

    def extended(self, block: tuple[int, int, int]) -> PairLevel:
        """Returns the level with its grid extended behind to whole blocks of voxels."""
        rest = [-n % f for n, f in zip(self.grid.shape, block)]
        if not any(rest):
            return self
        sides = [side for after in reversed(rest) for side in (0, after)]
        mask = self.fixed_mask
        shape = tuple(n + r for n, r in zip(self.grid.shape, rest))
        return replace(
            self,
            fixed=F.pad(self.fixed, sides, mode="replicate"),
            fixed_mask=None if mask is None else F.pad(mask, sides, mode="replicate"),
            grid=self.grid.cropped((0, 0, 0), shape),
        )

    def with_features(self, similarity: Similarity) -> PairLevel:
        """Replaces the images by what a similarity compares: other intensities, or features.

        Features such as MIND are not invariant to rotation, so they are taken from the moving
        image after the linear map, on the fixed grid.
        """
        if type(similarity).rescaled is not Similarity.rescaled:
            self = replace(
                self,
                fixed=similarity.rescaled(self.fixed, self.fixed_mask),
                moving=similarity.rescaled(self.moving, self.moving_mask),
            )
        if type(similarity).prepare is Similarity.prepare:
            return self
        where = apply_matrix(self.to_moving, voxel_coordinates(self.grid.shape, self.fixed.device))
        aligned = sample(self.moving, where)
        mask = self.moving_mask
        if mask is not None or self.partial:
            inside = inside_image(where, self.moving.shape[2:]).float()
            mask = inside if mask is None else inside * sample(mask, where)
        return replace(
            self,
            fixed=similarity.prepare(self.fixed),
            moving=similarity.prepare(aligned),
            moving_mask=mask,
            to_moving=np.eye(4),
            partial=False,
        )

    def pull_moving(self, where: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the moving image at voxels (1, 3, *out) of `grid`, and its weight there.

        The weight is None where everything counts. Loops take a `Puller`.
        """
        where = apply_matrix(self.to_moving, where)
        mask = None if self.moving_mask is None else sample(self.moving_mask, where)
        if self.partial:
            inside = inside_image(where, self.moving.shape[2:]).to(self.moving.dtype)
            mask = inside if mask is None else mask * inside
        return sample(self.moving, where), mask


@dataclass(frozen=True)
class Lattice:
    """The grid that a deformation lives on while images are compared on a finer one.

    A deformation is smooth, so every second voxel of the images holds it, at an eighth of the
    cost. Voxels of `grid` are exactly `factors` voxels of `image_grid` wide; the last may reach
    beyond the images.

    Args:
        image_grid: Grid of the images.
        grid: Grid of the displacement.
        factors: Voxels of the images per voxel of the displacement along each tensor axis.
    """

    image_grid: Grid
    grid: Grid
    factors: tuple[int, int, int]

    @classmethod
    def over(cls, grid: Grid, factor: int) -> Lattice:
        """Returns the lattice over a grid; axes of thick slices or few voxels stay as fine."""
        a, b, c = lattice_factors(grid, factor)
        shape = tuple(-(-n // f) for n, f in zip(grid.shape, (a, b, c)))
        cover = grid.cropped((0, 0, 0), tuple(n * f for n, f in zip(shape, (a, b, c))))  # type: ignore[arg-type]
        return cls(grid, cover.resized(shape), (a, b, c))

    @property
    def relative(self) -> np.ndarray:
        """Spacing of the lattice in units of its smallest."""
        return np.array(self.grid.spacing_mm) / min(self.grid.spacing_mm)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the displacement's grid."""
        return self.grid.shape

    def carried(self, field: Field | None, device: torch.device) -> Tensor:
        """Returns a field of any grid as a displacement (1, 3, *shape) of this lattice."""
        if field is None:
            return Field.identity(self.grid, device).displacement
        return field.to(device).on_grid(self.grid).displacement

    def refined(self, displacement: Tensor) -> Tensor:
        """Returns a displacement of the lattice in voxels of the images, (1, 3, *image shape)."""
        scale = torch.tensor(self.factors, device=displacement.device, dtype=displacement.dtype)
        return self.upsampled(displacement * scale.view(1, 3, 1, 1, 1))

    def upsampled(self, values: Tensor) -> Tensor:
        """Interpolates a map of the lattice on the images' grid, its values as they are."""
        if self.factors == (1, 1, 1):
            return values
        if max(self.factors) == 2 and values.device.type == "cpu":
            for axis in (2, 1, 0):
                if self.factors[axis] == 2:
                    values = _doubled(values, 2 + axis)
        else:
            cover = [n * f for n, f in zip(self.shape, self.factors)]
            values = F.interpolate(values, size=cover, mode="trilinear", align_corners=False)
        a, b, c = self.image_grid.shape
        return values[:, :, :a, :b, :c]

    def gathered(self, gradient: Tensor) -> Tensor:
        """Averages a map of the images' grid (1, C, *image shape) over each lattice voxel."""
        if self.factors == (1, 1, 1):
            return gradient
        rest = [(0, n * f - m) for n, f, m in zip(self.shape, self.factors, self.image_grid.shape)]
        if any(after for _, after in rest):
            gradient = F.pad(gradient, [side for pair in reversed(rest) for side in pair])
        return block_sum(gradient, self.factors).mul_(1.0 / math.prod(self.factors))


def _doubled(values: Tensor, dim: int) -> Tensor:
    """Interpolates between voxels so that an axis has twice as many, its edge repeated.

    New centres lie a quarter of an old voxel from the old ones. Axis by axis this takes half the
    time of PyTorch's trilinear interpolation on a CPU.
    """
    size = values.shape[dim]
    shape = [*values.shape[:dim], 2 * size, *values.shape[dim + 1 :]]
    result = values.new_empty(shape)
    every = [slice(None)] * dim
    before, after = (result[(*every, slice(k, None, 2))] for k in (0, 1))
    torch.mul(values, 0.75, out=before)
    after.copy_(before)
    inner = size - 1
    before.narrow(dim, 1, inner).add_(values.narrow(dim, 0, inner), alpha=0.25)
    before.narrow(dim, 0, 1).add_(values.narrow(dim, 0, 1), alpha=0.25)
    after.narrow(dim, 0, inner).add_(values.narrow(dim, 1, inner), alpha=0.25)
    after.narrow(dim, inner, 1).add_(values.narrow(dim, inner, 1), alpha=0.25)
    return result


class Puller:
    """Samples an image through a displacement that lives on a lattice.

    The displacement is mapped to the image's sampling grid while it is still small, and refined
    there, which saves several passes over volumes of coordinates. A fused kernel needs no grid: it
    takes the refined displacement and makes the coordinates as it goes.

    Args:
        image: (1, C, ...) to sample.
        mask: Its weights; everything counts if None.
        to_image: Voxel of the lattice's image grid to voxel of `image`.
        lattice: Where displacements live.
        partial: Whether the image may end inside the grid; what lies beyond then gets no weight.
    """

    def __init__(
        self, image: Tensor, mask: Tensor | None, to_image: Matrix, lattice: Lattice, partial: bool
    ) -> None:
        # Intensities and features from 0 to 1 have steps of at most 1/2048 in half precision, an
        # error as small as that of the interpolation; kernels compute in float32 all the same.
        self._image = image.half() if kernels.available(image) else image
        self._mask, self._lattice, self._partial = mask, lattice, partial
        shape = image.shape[2:]
        self._to_image = to_image
        # The kernel saves the product with an identity.
        self._kernel_matrix = None if np.array_equal(to_image, np.eye(4)) else to_image
        factors = torch.tensor(lattice.factors, device=image.device, dtype=torch.float32)
        self._factors = factors.view(1, 3, 1, 1, 1)
        # A lattice voxel is `factors` voxels of the images.
        vectors = sampling_vectors(to_image, shape) @ np.diag(lattice.factors)
        self._vectors = torch.from_numpy(vectors).to(image.device, torch.float32)
        self._rim = [1.0 + 1e-3 * 2.0 / size for size in reversed(shape)]

    def pull(self, displacement: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the image at x + u(x) and its weight there, (1, C, *image grid's shape).

        Args:
            displacement: (1, 3, *lattice.shape), in voxels of the lattice.
        """
        fused = self._pull_fused(displacement)
        if fused is not None:
            return fused
        mapped = torch.matmul(self._vectors, displacement.flatten(2)).reshape(displacement.shape)
        fine = self._lattice.upsampled(mapped)
        grid = self._base + fine.permute(0, 2, 3, 4, 1)
        mask = None if self._mask is None else sample_grid(self._mask, grid)
        if self._partial:
            inside = self._inside(grid)
            mask = inside if mask is None else mask.mul_(inside)
        return sample_grid(self._image.float(), grid), mask

    @functools.cached_property
    def _base(self) -> Tensor:
        """Sampling grid without a displacement; kept, but only where torch needs it."""
        where = voxel_coordinates(self._lattice.image_grid.shape, self._image.device)
        return sampling_grid(apply_matrix(self._to_image, where), self._image.shape[2:])

    def _pull_fused(self, displacement: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Does `pull` by kernels, or returns None where they do not run."""
        if not kernels.available(self._image, displacement):
            return None
        # As `Lattice.refined`, but with the factors on the device already: copying them there at
        # every step would make the host wait.
        fine = self._lattice.upsampled(displacement * self._factors)
        both = kernels.warp_with_inside(self._image, fine, self._kernel_matrix)
        if both is None:
            return None
        moved, inside = both
        if self._mask is None:
            return moved, inside if self._partial else None
        mask = kernels.warp(self._mask, fine, self._kernel_matrix)
        if mask is None:
            return None
        return moved, mask.mul_(inside) if self._partial else mask

    def _inside(self, grid: Tensor) -> Tensor:
        inside = None
        for axis, rim in enumerate(self._rim):
            here = grid[..., axis].abs() <= rim
            inside = here if inside is None else inside.logical_and_(here)
        assert inside is not None
        return inside[:, None].float()


def lattice_factors(grid: Grid, factor: int) -> tuple[int, int, int]:
    """Returns the voxels per lattice voxel; axes of thick slices or few voxels stay as fine."""
    finest = min(grid.spacing_mm)
    a, b, c = (
        max(1, min(round(factor * finest / s), n // 4)) for s, n in zip(grid.spacing_mm, grid.shape)
    )
    return a, b, c


def _masks(
    mask: Tensor | None, grid: Grid, spacings_mm: Sequence[float]
) -> Sequence[Tensor | None]:
    if mask is None:
        return [None] * len(spacings_mm)
    return [level.data for level in pyramid(mask, grid, spacings_mm)]


def level_spacings(finest_mm: float, factors: Sequence[int], spacing_mm: Sequence[float]) -> list:
    """Returns the voxel size of each level in mm, the finest at least that of the image."""
    finest = max(min(spacing_mm), finest_mm)
    return [factor * finest for factor in factors]


def levels_with_detail(spacings: Sequence[float], grid: Grid) -> list[int]:
    """Returns the numbers of the levels on which the image is more than a few voxels.

    Args:
        spacings: Voxel size of each level in mm.
        grid: Grid of the fixed image.

    Returns:
        Numbers of the levels that leave `_FEWEST` voxels along the longest axis; the last level is
        always among them.
    """
    longest = max(n * mm for n, mm in zip(grid.shape, grid.spacing_mm))
    last = len(spacings) - 1
    return [k for k, mm in enumerate(spacings) if k == last or longest / mm >= _FEWEST]
