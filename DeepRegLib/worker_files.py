"""What the jobs of the worker read from their folder, and write to it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import FileFormatError, ParameterError, WorkerError
from .geometry.field import Field
from .geometry.grid import Grid
from .geometry.transform import Transform
from .inputs import as_image, as_labels, paired_points, to_array
from .job import IDENTITY, ArrayFile, Job, TransformFile
from .registration.base import Image, ImagePair

Points = Union[NDArray[np.float64], None]


def checked(job: Job, known: tuple[str, ...]) -> Mapping[str, Any]:
    """Returns the parameters of a job.

    Raises:
        ParameterError: If there is one that this kind of job does not have.
    """
    for name in job.parameters:
        if name not in known:
            raise ParameterError(f"A {job.operation} job has no parameter '{name}'.")
    return job.parameters


def read_pair(job: Job) -> ImagePair:
    """Returns the images of a job with all that belongs to them."""
    for name in ("fixed", "moving"):
        if name not in job.arrays:
            raise WorkerError(f"A {job.operation} job needs the array '{name}'.")
    initial = read_transform(job, "initial")
    return ImagePair(
        read_image(job, "fixed"),
        read_image(job, "moving"),
        read_region(job, "fixed_mask"),
        read_region(job, "moving_mask"),
        read_region(job, "fixed_labels"),
        read_region(job, "moving_labels"),
        *read_landmarks(job),
        initial=initial,
        initial_is_given=initial is not None,
    )


def read_landmarks(job: Job) -> tuple[Points, Points]:
    """Returns the landmarks of both images; None where there are none."""
    names = ("fixed_landmarks", "moving_landmarks")
    fixed, moving = (read_points(job, n) if n in job.arrays else None for n in names)
    return paired_points(fixed, moving)


def read_region(job: Job, name: str) -> Image | None:
    """Returns a mask or a label map; None if the job has none of this name."""
    return read_image(job, name, labels=True) if name in job.arrays else None


def read_image(job: Job, name: str, labels: bool = False) -> Image:
    """Returns an image of a job, or a label map."""
    described = job.arrays.get(name)
    if described is None or described.voxel_to_ras is None:
        raise WorkerError(f"The job needs the array '{name}' with a voxel_to_ras matrix.")
    array = _load(job, described)
    grid = Grid(array.shape, np.array(described.voxel_to_ras))
    sentence_name = name.replace("_", " ") + ("" if "_" in name else " image")
    image = (as_labels if labels else as_image)((array, grid), sentence_name)
    return replace(image, pixel_type=described.pixel_type or image.pixel_type)


def read_points(job: Job, name: str) -> NDArray[np.float64]:
    """Returns points (N, 3), RAS mm."""
    points = np.array(_load(job, job.arrays[name]), np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise WorkerError(f"The points '{name}' must be (N, 3), but are {points.shape}.")
    return points


def read_transform(job: Job, name: str) -> Transform | None:
    """Returns a transform of a job; None if it has none of this name."""
    described = job.transforms.get(name)
    if described is None:
        return None
    linear = np.array(described.linear)
    if described.field is None:
        return Transform(linear)
    vectors = np.array(_load(job, described.field), np.float32)
    if vectors.ndim != 4 or vectors.shape[0] != 3 or not np.isfinite(vectors).all():
        raise WorkerError(
            f"The deformation '{name}' must be (3, *shape) and finite, but is {vectors.shape}."
        )
    grid = Grid(vectors.shape[1:], np.array(described.field.voxel_to_ras))
    return Transform(linear, Field.from_ras_mm(torch.from_numpy(vectors)[None], grid))


def _load(job: Job, described: ArrayFile) -> NDArray:
    path = Path(job.folder) / described.file
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileFormatError(f"The array '{described.file}' cannot be read ({error}).") from error


def write_image(folder: Path, name: str, image: Image) -> ArrayFile:
    """Writes an image into the folder of its job."""
    array = to_array(image)
    return ArrayFile(save_array(folder, name, array), _rows(image.grid), str(array.dtype))


def write_transform(folder: Path, name: str, transform: Transform) -> TransformFile:
    """Writes a transform into the folder of its job."""
    field = None
    if transform.field is not None:
        vectors = transform.field.to_ras_mm()[0].detach().float().cpu().numpy()
        field = ArrayFile(save_array(folder, name, vectors), _rows(transform.field.grid))
    linear = tuple(tuple(row) for row in transform.linear.tolist()) or IDENTITY
    return TransformFile(linear, field)


def save_array(folder: Path, name: str, array: NDArray) -> str:
    """Writes an array under another name first, so that nobody ever reads half of it."""
    file = re.sub("[^A-Za-z0-9_-]", "-", name) + ".npy"
    temporary = folder / (file + ".part")
    with temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
    os.replace(temporary, folder / file)
    return file


def _rows(grid: Grid) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in grid.voxel_to_ras.tolist())
