"""What the worker does for each kind of job: files in, computation, files out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from numpy.typing import NDArray

from . import pipeline, worker_training
from .errors import FileFormatError, ParameterError, WorkerError
from .geometry.field import Field
from .geometry.grid import Grid
from .geometry.jacobian import jacobian_determinant
from .geometry.transform import Transform
from .inputs import as_image, as_labels, paired_points, to_array
from .job import IDENTITY, ArrayFile, Job, JobEvent, TransformFile
from .operations import carry_points_ras, choose_interpolation, measure, warp_image
from .registration.base import Image, ImagePair, Progress
from .registration.preprocess import object_region

#: Most voxels of a preview.
_PREVIEW_VOXELS = 300_000
Points = Union[NDArray[np.float64], None]
_REGISTER = ("algorithm", "preset", "settings", "device", "interpolation", "fill",
             "preview_seconds", "names", "maps", "grid_spacing_mm", "follow_landmarks")  # fmt: skip


def greeting() -> dict[str, Any]:
    """Returns what the worker says of itself when it is ready."""
    device, _ = pipeline.choose_device("auto")
    return {"versions": pipeline.versions(), "device": pipeline.device_name(device)}


def run(job: Job, progress: Progress) -> JobEvent:
    """Runs a job and returns its event ``done``.

    Raises:
        DeepRegError: If the job cannot be done.
    """
    if not Path(job.folder).is_dir():
        raise FileFormatError(f"The folder of the job, '{job.folder}', does not exist.")
    operations = {"register": _register, "warp": _warp, "evaluate": _evaluate,
                  "train": worker_training.run}  # fmt: skip
    return operations[job.operation](job, progress)


def free_device_memory() -> None:
    """Gives the GPU's cached memory back; torch and CUDA stay warm."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def write_preview(folder: Path, name: str, transform: Transform) -> TransformFile:
    """Writes a transform so far, thinned out to a million voxels."""
    field = transform.field
    if field is not None and field.grid.size > _PREVIEW_VOXELS:
        factor = (_PREVIEW_VOXELS / field.grid.size) ** (1 / 3)
        shape = [max(1, int(n * factor)) for n in field.grid.shape]
        transform = Transform(transform.linear, field.resized(shape))
    return _write_transform(folder, name, transform)


def _register(job: Job, progress: Progress) -> JobEvent:
    wanted = _checked(job, _REGISTER)
    pair = _read_pair(job)
    result = pipeline.run(
        pair,
        str(wanted.get("algorithm", "greedy")),
        str(wanted.get("preset", "balanced")),
        wanted.get("settings") or {},
        str(wanted.get("device", "auto")),
        progress,
        interpolation=wanted.get("interpolation") or "linear",
        fill=wanted.get("fill"),
        names=wanted.get("names"),
        follow_landmarks=bool(wanted.get("follow_landmarks")),
    )
    folder = Path(job.folder)
    assert result.moved is not None and result.inverse is not None
    result.extras.update(_maps(result.transform, wanted.get("maps") or (), pair.fixed, progress))
    returned = _thinned(result.transform, float(wanted.get("grid_spacing_mm") or 0.0))
    images = {"moved": result.moved, **{f"extra_{k}": v for k, v in result.extras.items()}}
    return JobEvent(
        "done", job.id, fraction=1.0,
        arrays={name: _write_image(folder, name, image) for name, image in images.items()},
        transforms={
            "transform": _write_transform(folder, "transform", returned),
            "inverse": _write_transform(folder, "inverse", result.inverse),
        },
        data={"quality": result.quality, "provenance": result.provenance,
              "history": result.history, "seconds": result.seconds},
    )  # fmt: skip


def _maps(
    transform: Transform, names: Sequence[str], fixed: Image, progress: Progress
) -> dict[str, Image]:
    """Returns maps on the fixed grid: ``jacobian``, the volume change fixed to moving.

    Around the object of the fixed image, where there is no tissue to change, the map is 1.
    """
    for name in names:
        if name != "jacobian":
            raise ParameterError(f"There is no map '{name}'; there is: jacobian.")
    field = transform.field
    if names and field is None:
        progress.message("A linear transform changes the volume alike everywhere; no map was made.")
    if not names or field is None:
        return {}
    scale = float(np.linalg.det(transform.linear[:3, :3]))
    determinant = jacobian_determinant(field.displacement)[:, None] * scale
    determinant = torch.where(object_region(fixed), determinant, torch.ones_like(determinant))
    return {"jacobian": Image(determinant.float(), field.grid)}


def _thinned(transform: Transform, spacing_mm: float) -> Transform:
    """Returns the transform with its field on a coarser grid; as it is for the spacing 0.

    The outermost voxels of the coarse grid lie on or beyond those of the fine one, where the field
    is at rest, so that it still ends in zeros.
    """
    field = transform.field
    if field is None or spacing_mm <= 0.0:
        return transform
    steps = np.maximum(1.0, spacing_mm / np.array(field.grid.spacing_mm))
    if (steps < 1.001).all():
        return transform
    reach = np.array(field.grid.shape) - 1
    counts = np.ceil(reach / steps - 1e-6).astype(int) + 1
    matrix = field.grid.voxel_to_ras.copy()
    matrix[:3, :3] *= steps
    matrix[:3, 3] = field.grid.to_ras((reach - (counts - 1) * steps) / 2)
    coarse = Grid(tuple(int(n) for n in counts), matrix)  # type: ignore[arg-type]
    smooth = field.resized([max(1, round(n / s)) for n, s in zip(field.grid.shape, steps)])
    return Transform(transform.linear, smooth.on_grid(coarse).faded(1))


def _warp(job: Job, progress: Progress) -> JobEvent:
    wanted = _checked(job, ("shape", "voxel_to_ras", "interpolation", "fill"))
    folder = Path(job.folder)
    transform = _read_transform(job, "transform") or Transform()
    if "points" in job.arrays:
        points = carry_points_ras(transform, _read_points(job, "points"))
        done = {"points": ArrayFile(_save(folder, "points-result", points))}
    else:
        image = _read_image(job, "image", labels=wanted.get("interpolation") == "nearest")
        interpolation = choose_interpolation(wanted.get("interpolation"), image.data)
        if not {"shape", "voxel_to_ras"} <= set(wanted):
            raise ParameterError("A warp needs the shape and voxel_to_ras of the fixed grid.")
        fixed = Grid(tuple(wanted["shape"]), np.array(wanted["voxel_to_ras"], np.float64))
        moved = warp_image(image, transform, fixed, interpolation, wanted.get("fill"))
        done = {"image": _write_image(folder, "image-result", moved)}
    return JobEvent("done", job.id, fraction=1.0, arrays=done)


def _evaluate(job: Job, progress: Progress) -> JobEvent:
    _checked(job, ())
    figures = measure(
        _read_region(job, "fixed_labels"),
        _read_region(job, "moved_labels"),
        *_read_landmarks(job),
        _read_transform(job, "transform"),
        _read_transform(job, "inverse"),
    )
    return JobEvent("done", job.id, fraction=1.0, data=figures)


def _checked(job: Job, known: tuple[str, ...]) -> Mapping[str, Any]:
    for name in job.parameters:
        if name not in known:
            raise ParameterError(f"A {job.operation} job has no parameter '{name}'.")
    return job.parameters


def _read_pair(job: Job) -> ImagePair:
    for name in ("fixed", "moving"):
        if name not in job.arrays:
            raise WorkerError(f"A register job needs the array '{name}'.")
    initial = _read_transform(job, "initial")
    return ImagePair(
        _read_image(job, "fixed"),
        _read_image(job, "moving"),
        _read_region(job, "fixed_mask"),
        _read_region(job, "moving_mask"),
        _read_region(job, "fixed_labels"),
        _read_region(job, "moving_labels"),
        *_read_landmarks(job),
        initial=initial,
        initial_is_given=initial is not None,
    )


def _read_landmarks(job: Job) -> tuple[Points, Points]:
    names = ("fixed_landmarks", "moving_landmarks")
    fixed, moving = (_read_points(job, n) if n in job.arrays else None for n in names)
    return paired_points(fixed, moving)


def _read_region(job: Job, name: str) -> Image | None:
    return _read_image(job, name, labels=True) if name in job.arrays else None


def _read_image(job: Job, name: str, labels: bool = False) -> Image:
    described = job.arrays.get(name)
    if described is None or described.voxel_to_ras is None:
        raise WorkerError(f"The job needs the array '{name}' with a voxel_to_ras matrix.")
    array = _load(job, described)
    grid = Grid(array.shape, np.array(described.voxel_to_ras))
    sentence_name = name.replace("_", " ") + ("" if "_" in name else " image")
    image = (as_labels if labels else as_image)((array, grid), sentence_name)
    return replace(image, pixel_type=described.pixel_type or image.pixel_type)


def _read_points(job: Job, name: str) -> NDArray[np.float64]:
    points = np.array(_load(job, job.arrays[name]), np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise WorkerError(f"The points '{name}' must be (N, 3), but are {points.shape}.")
    return points


def _read_transform(job: Job, name: str) -> Transform | None:
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


def _write_image(folder: Path, name: str, image: Image) -> ArrayFile:
    array = to_array(image)
    return ArrayFile(_save(folder, name, array), _rows(image.grid), str(array.dtype))


def _write_transform(folder: Path, name: str, transform: Transform) -> TransformFile:
    field = None
    if transform.field is not None:
        vectors = transform.field.to_ras_mm()[0].detach().float().cpu().numpy()
        field = ArrayFile(_save(folder, name, vectors), _rows(transform.field.grid))
    linear = tuple(tuple(row) for row in transform.linear.tolist()) or IDENTITY
    return TransformFile(linear, field)


def _save(folder: Path, name: str, array: NDArray) -> str:
    """Writes an array under another name first, so that nobody ever reads half of it."""
    file = re.sub("[^A-Za-z0-9_-]", "-", name) + ".npy"
    temporary = folder / (file + ".part")
    with temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
    os.replace(temporary, folder / file)
    return file


def _rows(grid: Grid) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in grid.voxel_to_ras.tolist())
