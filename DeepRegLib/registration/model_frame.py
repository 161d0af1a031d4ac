"""The grid that a trained network sees: upright, of one voxel size, around the object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import GeometryError
from ..geometry.grid import Grid
from ..geometry.sampling import gaussian_smooth, mask_voxels
from ..geometry.transform import Transform
from .base import Image
from .preprocess import foreground, quantiles, rescale_intensity

#: Free space that a grid keeps around the object, in voxels.
_MARGIN = 1
#: Voxels that the extent of an object is measured with.
_MOST_POINTS = 200_000


@dataclass(frozen=True)
class ModelFrame:
    """Voxel size and shape of the images that a model was trained on.

    Convention:
        The tensor axes run to R, A and S, whatever the axes of the image; the frame is placed
        around the object of the fixed image.

    Args:
        spacing_mm: Voxel size along all axes.
        shape: Voxels along R, A and S.
    """

    spacing_mm: float
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if not 0.0 < self.spacing_mm < 1e3 or len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(
                f"A model has a positive voxel size and three positive sizes, not "
                f"{self.spacing_mm} mm and {self.shape}."
            )

    def grid(self, fixed: Image, multiple: int = 16, mask: Tensor | None = None) -> Grid:
        """Returns the model's grid around the object of a fixed image.

        The grid has the shape that the model was trained on, or a larger one (a multiple along
        each axis) where the object needs it.

        Args:
            fixed: The fixed image.
            multiple: The shape is a multiple of this where it is not the trained one.
            mask: Where the object is, (1, 1, *shape); the foreground of the image if omitted.
        """
        low, high = _extent_ras(fixed, mask)
        needed = np.ceil((high - low) / self.spacing_mm).astype(int) + 2 * _MARGIN
        shape = [
            have if need <= have else -(-int(need) // multiple) * multiple
            for have, need in zip(self.shape, needed)
        ]
        matrix = np.diag([self.spacing_mm] * 3 + [1.0])
        matrix[:3, 3] = (low + high) / 2 - self.spacing_mm * (np.array(shape) - 1) / 2
        return Grid(tuple(shape), matrix)  # type: ignore[arg-type]


def _extent_ras(image: Image, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper RAS corner of the voxels that show the object."""
    inside = (foreground(image) if mask is None else mask > 0)[0, 0]
    voxels = mask_voxels(inside, _MOST_POINTS).cpu().numpy()
    if len(voxels) == 0:
        corners = image.grid.corners_ras()
        return corners.min(0), corners.max(0)
    points = image.grid.to_ras(voxels)
    # A few bright voxels far away are no part of the object.
    return np.quantile(points, 0.001, axis=0), np.quantile(points, 0.999, axis=0)


def normalized(image: Image) -> Tensor:
    """Returns the first channel with intensities as models take them, (1, 1, *shape), 0 to 1.

    The upper end is a quantile of the foreground, so that the amount of background around the
    object does not matter.
    """
    data = image.data[:, :1].float()
    low = rescale_intensity(data, None, 0.001, 0.999)
    inside = foreground(Image(low, image.grid))
    top = quantiles(low[inside], [0.99])[0] if 0 < int(inside.sum()) <= 10_000_000 else low.max()
    return (low / top.clamp(min=1e-6)).clamp_(0.0, 1.0)


def onto_frame(
    data: Tensor, source: Grid, grid: Grid, transform: Transform | None = None
) -> Tensor:
    """Resamples an image on a grid of a model, smoothed first where that is coarser.

    Args:
        data: (1, C, *source.shape), floating.
        source: Grid of the data.
        grid: Grid of the model, in the fixed space.
        transform: Fixed to moving, for a moving image.

    Returns:
        (1, C, *grid.shape); zero where the source has no voxel.
    """
    spacing = min(grid.spacing_mm)
    sigmas = [
        0.5 * max(spacing**2 - s**2, 0.0) ** 0.5 / s if n > 1 else 0.0
        for s, n in zip(source.spacing_mm, source.shape)
    ]
    smooth = gaussian_smooth(data, sigmas)
    return (transform or Transform()).warp(smooth, source, grid)


def labels_onto_frame(
    labels: Tensor, source: Grid, grid: Grid, transform: Transform | None = None
) -> Tensor:
    """Resamples a label map (1, 1, *source.shape) on a grid of a model, nearest voxel, int64."""
    moved = (transform or Transform()).warp(labels, source, grid, "nearest")
    return moved.to(torch.int64)
