"""Images and label maps from and to files, by SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry.grid import Grid
from ..registration.base import Image
from .files import PathLike, as_volume, check_suffix, read_sitk, write_whole
from .itk_transform import ItkGeometry, check_grid, grid_from_itk, grid_to_itk

#: Largest side of an image in mm that is taken at its word. Below, meters were written for
#: millimeters (or a microscope's unit is unfit for parameters in mm); above, micrometers.
SMALLEST_EXTENT_MM = 0.5
LARGEST_EXTENT_MM = 5000.0


def read_image(path: PathLike) -> Image:
    """Reads a scalar image from any file that SimpleITK reads, or a folder with a DICOM series.

    Convention:
        The tensor is (1, 1, k, j, i), float32; the grid is in the same order, RAS mm.

    Args:
        path: File, or folder with one DICOM series. 2-D images become one slice.

    Returns:
        The image; `pixel_type` is the type that the voxels have in the file.

    Raises:
        FileFormatError: If the file is missing, cut short, or not an image.
        InputError: If it is a time series, a vector or color image, holds NaN or infinite values,
            is constant, or its spacing cannot be in millimeters.

    Example:
        >>> image = read_image("brain.nii.gz")  # doctest: +SKIP
    """
    image = from_sitk(read_sitk(path))
    name = Path(path).name
    check_values(image, name)
    check_extent(image.grid, name)
    return image


def read_labels(path: PathLike) -> Image:
    """Reads a label map or mask; its integer type is kept.

    Floating label maps whose values are whole are accepted and become int16 or int32.

    Raises:
        FileFormatError: If the file is missing, cut short, or not an image.
        InputError: If it is not a 3-D map of whole numbers, or its spacing cannot be in mm.
    """
    found = read_sitk(path)
    try:
        image = from_sitk(found, labels=True)
    except InputError as error:
        raise InputError(f"'{Path(path).name}': {error}") from error
    check_extent(image.grid, Path(path).name)
    return image


def from_sitk(image: sitk.Image, labels: bool = False) -> Image:
    """Makes an image (float32) or a label map (integer type kept) from a SimpleITK image.

    Raises:
        InputError: If `labels` is asked for and the voxels are not whole numbers.
    """
    image = as_volume(image)
    array = sitk.GetArrayFromImage(image)
    grid = grid_from_sitk(image)
    if labels:
        return Image.from_array(_whole_numbers(array), grid)
    channels = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    data = torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32))
    return Image(data[None], grid, str(array.dtype))


def to_sitk(image: Image) -> sitk.Image:
    """Makes a SimpleITK image of the pixel type that the image had, rounded and clipped to it."""
    array = _cast(image.data[0].detach().cpu().numpy(), np.dtype(image.pixel_type))
    vector = array.shape[0] > 1
    result = sitk.GetImageFromArray(np.moveaxis(array, 0, -1) if vector else array[0], vector)
    geometry = grid_to_itk(image.grid)
    result.SetOrigin(geometry.origin)
    result.SetSpacing(geometry.spacing)
    result.SetDirection(geometry.direction)
    return result


def write_image(image: Image, path: PathLike) -> None:
    """Writes an image in its own pixel type, whole or not at all.

    Raises:
        FileFormatError: If the suffix is unknown, the folder cannot be written to, or NIfTI cannot
            hold the (sheared) grid.
    """
    check_suffix(path, ("image",))
    check_grid(image.grid, path)
    result = to_sitk(image)
    write_whole(path, lambda temporary: sitk.WriteImage(result, str(temporary), True))


def grid_from_sitk(image: sitk.Image) -> Grid:
    """Returns the grid of a SimpleITK image, in the order of its array (k, j, i), RAS mm."""
    image = as_volume(image)
    geometry = ItkGeometry(
        image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection()
    )
    return grid_from_itk(geometry)


def check_values(image: Image, name: str) -> None:
    """Refuses an image that cannot be registered because of its values.

    Raises:
        InputError: If a voxel is NaN or infinite, or all are alike.
    """
    data = image.data
    low, high = (float(v) for v in torch.aminmax(data))
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int((~torch.isfinite(data)).sum())
        raise InputError(
            f"'{name}' has {count} voxels that are NaN or infinite; replace them, for example by "
            "the background value."
        )
    if low == high:
        raise InputError(
            f"'{name}' has the value {low:g} everywhere, so there is nothing to align; check that "
            "the right image was chosen."
        )


def check_extent(grid: Grid, name: str) -> None:
    """Refuses an image whose spacing cannot be in millimeters.

    Raises:
        InputError: If its largest side is below `SMALLEST_EXTENT_MM` or above `LARGEST_EXTENT_MM`.
    """
    extent = float((np.array(grid.shape) * grid.spacing_mm).max())
    size = f"'{name}' is {extent:.3g} mm across (spacing {min(grid.spacing_mm):.3g} mm)"
    if extent < SMALLEST_EXTENT_MM:
        raise InputError(
            f"{size}, too small for millimeters: its spacing was probably written in meters. "
            "Multiply spacing and origin by 1000 (also for microscopy, which then counts in "
            "micrometers)."
        )
    if extent > LARGEST_EXTENT_MM:
        raise InputError(
            f"{size}, too large for millimeters: its spacing was probably written in micrometers. "
            "Divide spacing and origin by 1000."
        )


def _whole_numbers(array: NDArray) -> NDArray:
    if array.ndim != 3:
        raise InputError("a label map has one number in each voxel, but this has several.")
    if array.dtype.kind != "f":
        return array
    if not np.isfinite(array).all():
        raise InputError("a label map holds whole numbers, but this has NaN or infinite voxels.")
    odd = array[array != np.rint(array)]
    if odd.size or np.abs(array).max() > np.iinfo(np.int32).max:
        example = float(odd[0]) if odd.size else float(np.abs(array).max())
        raise InputError(
            f"a label map holds whole numbers, but this holds values such as {example:g}; "
            "threshold it (or its probabilities) first."
        )
    small = np.abs(array).max() <= np.iinfo(np.int16).max
    return array.astype(np.int16 if small else np.int32)


def _cast(array: NDArray, kind: np.dtype) -> NDArray:
    if kind.kind == "b":
        kind = np.dtype(np.uint8)
    if kind == np.float16:
        kind = np.dtype(np.float32)
    if kind.kind not in "iu" or array.dtype == kind:
        return array.astype(kind)
    info = np.iinfo(kind)
    if array.dtype.kind in "iu":
        return np.clip(array, max(info.min, np.iinfo(array.dtype).min),
                       min(info.max, np.iinfo(array.dtype).max)).astype(kind)  # fmt: skip
    # The largest 64-bit integer is no float64; the next float below it is.
    high = float(info.max) if kind.itemsize < 8 else np.nextafter(float(info.max), 0.0)
    return np.clip(np.rint(array.astype(np.float64)), float(info.min), high).astype(kind)
