"""What the worker does for each kind of job: files in, computation, files out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import pipeline, worker_check, worker_population, worker_training
from .errors import FileFormatError, ParameterError
from .geometry.grid import Grid
from .geometry.jacobian import jacobian_determinant
from .geometry.transform import Transform
from .job import ArrayFile, Job, JobEvent, TransformFile
from .operations import carry_points_ras, choose_interpolation, measure, warp_image
from .registration.base import Image, Progress
from .registration.preprocess import object_region
from .worker_files import (
    checked,
    read_image,
    read_landmarks,
    read_pair,
    read_points,
    read_region,
    read_transform,
    save_array,
    write_image,
    write_transform,
)

#: Most voxels of a preview.
_PREVIEW_VOXELS = 300_000
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
                  "train": worker_training.run, "check": worker_check.run,
                  "transport": worker_population.run_transport,
                  "population": worker_population.run_population}  # fmt: skip
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
    return write_transform(folder, name, transform)


def _register(job: Job, progress: Progress) -> JobEvent:
    wanted = checked(job, _REGISTER)
    pair = read_pair(job)
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
        arrays={name: write_image(folder, name, image) for name, image in images.items()},
        transforms={
            "transform": write_transform(folder, "transform", returned),
            "inverse": write_transform(folder, "inverse", result.inverse),
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
    wanted = checked(job, ("shape", "voxel_to_ras", "interpolation", "fill"))
    folder = Path(job.folder)
    transform = read_transform(job, "transform") or Transform()
    if "points" in job.arrays:
        points = carry_points_ras(transform, read_points(job, "points"))
        done = {"points": ArrayFile(save_array(folder, "points-result", points))}
    else:
        image = read_image(job, "image", labels=wanted.get("interpolation") == "nearest")
        interpolation = choose_interpolation(wanted.get("interpolation"), image.data)
        if not {"shape", "voxel_to_ras"} <= set(wanted):
            raise ParameterError("A warp needs the shape and voxel_to_ras of the fixed grid.")
        fixed = Grid(tuple(wanted["shape"]), np.array(wanted["voxel_to_ras"], np.float64))
        moved = warp_image(image, transform, fixed, interpolation, wanted.get("fill"))
        done = {"image": write_image(folder, "image-result", moved)}
    return JobEvent("done", job.id, fraction=1.0, arrays=done)


def _evaluate(job: Job, progress: Progress) -> JobEvent:
    checked(job, ())
    figures = measure(
        read_region(job, "fixed_labels"),
        read_region(job, "moved_labels"),
        *read_landmarks(job),
        read_transform(job, "transform"),
        read_transform(job, "inverse"),
    )
    return JobEvent("done", job.id, fraction=1.0, data=figures)
