"""What people give to the library (files, SimpleITK images, arrays) as the library's own types."""

from __future__ import annotations

import os
from typing import Any, Union

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .geometry.grid import Grid
from .geometry.transform import Transform
from .io.images import check_extent, check_values, from_sitk, read_image, read_labels, to_sitk
from .io.itk_transform import read_transform, transform_from_sitk
from .io.landmarks import Landmarks, match_landmarks, read_landmarks
from .registration.base import Image, ImagePair

#: A file (or folder with a DICOM series), a SimpleITK image, an array with its grid, an array of
#: voxels of 1 mm, or the library's own image.
ImageLike = Union[str, "os.PathLike[str]", sitk.Image, "tuple[NDArray, Grid]", NDArray, Image]
#: A file, a landmark list, or points (N, 3) in RAS mm.
PointsLike = Union[str, "os.PathLike[str]", Landmarks, ArrayLike]
#: A file, a SimpleITK transform, a 4 x 4 matrix (fixed to moving, RAS mm), or a transform.
TransformLike = Union[str, "os.PathLike[str]", sitk.Transform, Transform, ArrayLike]


def as_image(value: ImageLike, name: str = "image") -> Image:
    """Returns a gray-value image, float32.

    Args:
        value: What was given.
        name: What it is called in complaints.

    Raises:
        InputError: If it is not an image that can be registered.
    """
    if _is_path(value):
        return read_image(value)  # type: ignore[arg-type]
    if isinstance(value, sitk.Image):
        image = from_sitk(_one_volume(value, name))
    elif isinstance(value, Image):
        image = value
    else:
        array, grid = _array_and_grid(value, name, None)
        data = torch.from_numpy(np.array(array, np.float32))
        image = Image(data[None, None], grid, str(array.dtype))
    check_values(image, name)
    check_extent(image.grid, name)
    return image


def as_labels(value: ImageLike, name: str = "label map", grid: Grid | None = None) -> Image:
    """Returns a label map or mask of an integer type.

    Args:
        value: What was given.
        name: What it is called in complaints.
        grid: Grid of a bare array.
    """
    if _is_path(value):
        return read_labels(value)  # type: ignore[arg-type]
    if isinstance(value, Image):
        if not value.data.is_floating_point():
            return value
        value = (value.numpy(), value.grid)
    if isinstance(value, sitk.Image):
        return _labels(value, name)
    array, grid = _array_and_grid(value, name, grid)
    if array.dtype.kind == "f":
        # One place decides which floating arrays are label maps.
        whole = _labels(sitk.GetImageFromArray(array), name)
        return Image(whole.data, grid, whole.pixel_type)
    return Image.from_array(array, grid)


def as_either(value: ImageLike, name: str = "image") -> Image:
    """Returns a label map where the voxels are whole numbers, and a gray-value image otherwise."""
    try:
        return as_labels(value, name)
    except InputError:
        # Fractions, or no image at all: reading it as gray values tells which.
        return as_image(value, name)


def as_points(value: PointsLike, name: str = "landmarks") -> Landmarks:
    """Returns a landmark list, RAS mm."""
    if isinstance(value, Landmarks):
        return value
    if _is_path(value):
        return read_landmarks(value)  # type: ignore[arg-type]
    points = np.asarray(value, np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"The {name} must be (N, 3) points in RAS mm, but got {points.shape}.")
    return Landmarks(points, [str(i + 1) for i in range(len(points))])


def as_transform(value: TransformLike, fixed: Grid | None = None) -> Transform:
    """Returns a transform from the fixed to the moving space.

    Args:
        value: What was given.
        fixed: Grid of the fixed image, on which B-splines are evaluated.
    """
    if isinstance(value, Transform):
        return value
    if _is_path(value):
        return read_transform(value, fixed)  # type: ignore[arg-type]
    if isinstance(value, sitk.Transform):
        return transform_from_sitk(value, fixed)
    return Transform(np.asarray(value, np.float64))


def make_pair(
    fixed: ImageLike,
    moving: ImageLike,
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    fixed_labels: ImageLike | None = None,
    moving_labels: ImageLike | None = None,
    fixed_landmarks: PointsLike | None = None,
    moving_landmarks: PointsLike | None = None,
    initial_transform: TransformLike | None = None,
) -> ImagePair:
    """Reads and converts everything that a registration takes; see `api.register`."""
    fixed_image, moving_image = as_image(fixed, "fixed image"), as_image(moving, "moving image")
    regions: dict[str, Any] = {}
    for name, value, image in (
        ("fixed_mask", fixed_mask, fixed_image),
        ("moving_mask", moving_mask, moving_image),
        ("fixed_labels", fixed_labels, fixed_image),
        ("moving_labels", moving_labels, moving_image),
    ):
        if value is not None:
            regions[name] = as_labels(value, name.replace("_", " "), image.grid)
    points = paired_points(fixed_landmarks, moving_landmarks)
    initial = None
    if initial_transform is not None:
        initial = as_transform(initial_transform, fixed_image.grid)
    return ImagePair(
        fixed_image, moving_image, **regions,
        fixed_landmarks_ras=points[0], moving_landmarks_ras=points[1],
        initial=initial, initial_is_given=initial is not None,
    )  # fmt: skip


def paired_points(
    fixed: PointsLike | None, moving: PointsLike | None
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Returns two lists of corresponding points, those placed in both.

    Raises:
        InputError: If only one list is given, or they do not correspond.
    """
    if fixed is None and moving is None:
        return None, None
    if fixed is None or moving is None:
        given = "moving" if fixed is None else "fixed"
        raise InputError(f"Only {given} landmarks were given; give both lists, or none.")
    one, other = as_points(fixed, "fixed landmarks"), as_points(moving, "moving landmarks")
    points = match_landmarks(one, other)
    return points[0], points[1]


def like(image: Image, example: object) -> Any:
    """Returns an image in the type of another: SimpleITK, array, or (otherwise) `Image`."""
    if isinstance(example, sitk.Image):
        return to_sitk(image)
    if isinstance(example, (np.ndarray, tuple)):
        return to_array(image)
    return image


def to_array(image: Image) -> NDArray:
    """Returns the voxels in the pixel type that the image had, rounded and clipped to it."""
    return sitk.GetArrayFromImage(to_sitk(image))


def _is_path(value: object) -> bool:
    return isinstance(value, (str, os.PathLike))


def _labels(value: sitk.Image, name: str) -> Image:
    try:
        return from_sitk(_one_volume(value, name), labels=True)
    except InputError as error:
        raise InputError(f"The {name}: {error}") from error


def _one_volume(value: sitk.Image, name: str) -> sitk.Image:
    if any(n > 1 for n in value.GetSize()[3:]):
        raise InputError(
            f"The {name} has {value.GetDimension()} dimensions; extract one volume of it first."
        )
    return value


def _array_and_grid(value: object, name: str, grid: Grid | None) -> tuple[NDArray, Grid]:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Grid):
        array, grid = np.asarray(value[0]), value[1]
    elif isinstance(value, np.ndarray):
        array = value
    else:
        raise InputError(
            f"The {name} must be a file, a SimpleITK image, an array, or (array, Grid), but got "
            f"{type(value).__name__}."
        )
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise InputError(
            f"The {name} must have three axes of numbers, but got {array.shape} of {array.dtype}."
        )
    if grid is None:
        grid = Grid(array.shape, np.eye(4))
    if grid.shape != array.shape:
        raise InputError(
            f"The {name} has the shape {array.shape}, but its grid has {grid.shape}; give the grid "
            "that belongs to it."
        )
    return array, grid
