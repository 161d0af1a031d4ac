"""Whether a pair of images can be registered, and what is unusual about it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..geometry.grid import Grid
from ..geometry.sampling import mask_voxels
from ..registration.base import Image, ImagePair
from .images import check_extent, check_values

#: Ratio of the sizes of two images that only a wrong unit explains.
IMPOSSIBLE_SIZE_RATIO = 100.0
#: Ratio of the sizes of two images that is worth a remark.
UNUSUAL_SIZE_RATIO = 2.5
#: Ratio of the largest to the smallest spacing that is worth a remark.
UNUSUAL_ANISOTROPY = 4.0


def check_pair(pair: ImagePair) -> list[str]:
    """Refuses what cannot be registered, and returns remarks on what is unusual but sound.

    Returns:
        Sentences for the user; none if all is usual.

    Raises:
        InputError: If an image is constant, has several channels, NaN or infinite values, or a
            size that cannot be in millimeters; if both images are one and the same, or differ in
            size a hundredfold; if a mask, label map or landmark list does not fit.
    """
    for name, image in (("fixed image", pair.fixed), ("moving image", pair.moving)):
        if image.data.shape[1] != 1:
            raise InputError(
                f"The {name} has {image.data.shape[1]} components in each voxel, but one is "
                "needed; extract one, or convert it to gray values."
            )
        check_values(image, name)
        check_extent(image.grid, name)
    _check_same(pair)
    _check_sizes(pair.fixed.grid, pair.moving.grid)
    _check_region("fixed mask", pair.fixed_mask, pair.fixed.grid)
    _check_region("moving mask", pair.moving_mask, pair.moving.grid)
    _check_region("fixed label map", pair.fixed_labels, pair.fixed.grid)
    _check_region("moving label map", pair.moving_labels, pair.moving.grid)
    _check_landmarks(pair.fixed_landmarks_ras, pair.moving_landmarks_ras)
    return _remarks(pair)


def _check_same(pair: ImagePair) -> None:
    fixed, moving = pair.fixed, pair.moving
    if not fixed.grid.matches(moving.grid):
        return
    if torch.equal(fixed.data, moving.data.to(fixed.data.device)):
        raise InputError(
            "The fixed and the moving image are the same volume; choose two different ones."
        )


def _check_sizes(fixed: Grid, moving: Grid) -> None:
    ratio = _extent(moving) / _extent(fixed)
    if max(ratio, 1 / ratio) <= IMPOSSIBLE_SIZE_RATIO:
        return
    larger, smaller = ("moving", "fixed") if ratio > 1 else ("fixed", "moving")
    raise InputError(
        f"The {larger} image is {max(ratio, 1 / ratio):.0f} times as large as the {smaller} image "
        f"({_extent(fixed):.3g} mm fixed, {_extent(moving):.3g} mm moving): one of them is "
        "probably in meters or micrometers. Correct its spacing and origin by a factor of 1000."
    )


def _check_region(name: str, region: Image | None, grid: Grid) -> None:
    """Refuses a mask or label map without any voxel above zero inside its image."""
    if region is None:
        return
    voxels = _positive_voxels(region.data)
    if len(voxels) == 0:
        raise InputError(f"The {name} is empty (no voxel above zero); draw it, or leave it out.")
    where = grid.to_voxel(region.grid.to_ras(voxels))
    inside = ((where >= -0.5) & (where <= np.array(grid.shape) - 0.5)).all(axis=1)
    if not inside.any():
        raise InputError(
            f"The {name} lies entirely outside its image; check that it belongs to that image."
        )


def _positive_voxels(data: Tensor, most: int = 200_000) -> NDArray[np.int64]:
    return mask_voxels(data[0, 0] > 0, most).cpu().numpy()


def _check_landmarks(fixed: NDArray | None, moving: NDArray | None) -> None:
    if fixed is None and moving is None:
        return
    if fixed is None or moving is None or len(fixed) != len(moving):
        counts = [0 if points is None else len(points) for points in (fixed, moving)]
        raise InputError(
            f"There are {counts[0]} fixed and {counts[1]} moving landmarks; they must correspond "
            "one to one, in the same order."
        )
    if not np.isfinite([fixed, moving]).all():
        raise InputError("Some landmarks are not placed; place them, or remove them in both lists.")


def _remarks(pair: ImagePair) -> list[str]:
    fixed, moving = pair.fixed.grid, pair.moving.grid
    remarks = []
    if not pair.initial_is_given and not _overlap(fixed, moving):
        remarks.append(
            "The images do not overlap as they are stored; the registration starts from their "
            "centers."
        )
    for name, grid in (("fixed", fixed), ("moving", moving)):
        if min(grid.shape) == 1:
            remarks.append(
                f"The {name} image is a single slice; motion across the slice cannot be found."
            )
        elif max(grid.spacing_mm) > UNUSUAL_ANISOTROPY * min(grid.spacing_mm):
            sizes = " x ".join(f"{s:.3g}" for s in grid.spacing_mm)
            remarks.append(
                f"The {name} image has voxels of {sizes} mm; along the thick slices the result is "
                "less exact."
            )
    ratio = _extent(moving) / _extent(fixed)
    if max(ratio, 1 / ratio) > UNUSUAL_SIZE_RATIO:
        larger = "moving" if ratio > 1 else "fixed"
        remarks.append(
            f"The {larger} image shows a region {max(ratio, 1 / ratio):.1f} times as long as the "
            "other; crop it, or give a mask, if the result is poor."
        )
    return remarks


def _extent(grid: Grid) -> float:
    return float((np.array(grid.shape) * grid.spacing_mm).max())


def _overlap(fixed: Grid, moving: Grid) -> bool:
    """Tells whether a lattice of points over the extent of one image meets the other."""
    for one, other in ((fixed, moving), (moving, fixed)):
        axes = [np.linspace(-0.49, n - 0.51, 17) for n in one.shape]
        points = one.to_ras(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))
        where = other.to_voxel(points)
        if ((where >= -0.5) & (where <= np.array(other.shape) - 0.5)).all(axis=1).any():
            return True
    return False
