"""The worker's jobs ``population`` and ``transport``.

What many registrations have in common, and a deformation that is carried to another subject.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import ParameterError, WorkerError
from .geometry.field import Field, vector_lengths
from .geometry.jacobian import jacobian_determinant
from .job import ArrayFile, Job, JobEvent
from .registration.base import Image, Progress
from .registration.preprocess import object_region
from .training.field_modes import LEAST_COMPARED, FieldModes
from .worker_files import checked, read_image, read_transform, save_array, write_image
from .worker_files import write_transform as save_transform

_TRANSPORT = ("model", "strength", "alignment", "device")
_POPULATION = ("names", "folder", "modes", "linear", "model", "device")
#: Share of the work until the fields are read, and until their modes are known.
_READ, _SOLVED = 0.5, 0.8


def run_transport(job: Job, progress: Progress) -> JobEvent:
    """Applies the deformation of one subject to another one, and returns the event ``done``.

    Raises:
        DeepRegError: If something does not fit, or the user cancelled.
    """
    from .population_latent import transport  # most jobs are of other kinds

    options = {k: v for k, v in checked(job, _TRANSPORT).items() if v is not None}
    subject = read_image(job, "subject")
    done = transport(
        read_image(job, "fixed"), read_image(job, "moving"), subject, progress=progress,
        initial_transform=read_transform(job, "initial"),
        subject_transform=read_transform(job, "subject_transform"), **options,
    )  # fmt: skip
    assert done.transform.field is not None
    folder = Path(job.folder)
    return JobEvent(
        "done", job.id, fraction=1.0,
        arrays={"deformed": write_image(folder, "deformed", done.deformed)},
        transforms={"transform": save_transform(folder, "transform", done.transform)},
        data={**_motion(done.transform.field, subject), "model": done.model,
              "code": list(done.code), "strength": options.get("strength", 1.0),
              "alignment": options.get("alignment", "affine")},
    )  # fmt: skip


def run_population(job: Job, progress: Progress) -> JobEvent:
    """Finds the modes of a population and who is unlike the others; returns the event ``done``.

    Raises:
        DeepRegError: If something does not fit, or the user cancelled.
    """
    from .population import find_transforms, read_fields

    wanted = checked(job, _POPULATION)
    count = int(wanted.get("modes") or 3)
    if count < 1:
        raise ParameterError(f"The number of modes is at least 1, not {count}.")
    fixed = read_image(job, "fixed")
    folder = wanted.get("folder")
    named = find_transforms([folder]) if folder else _transforms_of(job, wanted)
    progress.stage("fields", 0.0, _READ)
    modes = read_fields(named, fixed, linear=bool(wanted.get("linear")), progress=progress)
    progress.stage("modes", _READ, _SOLVED)
    count = min(count, len(modes.variances))
    arrays = _mode_arrays(Path(job.folder), modes, count)
    progress.update(1.0)
    progress.stage("ranking", _SOLVED, 1.0)
    subjects = _subjects(modes, count)
    if wanted.get("model") is not None:
        from .population_latent import judge_fields

        device = str(wanted.get("device") or "auto")
        _add_judgment(subjects, judge_fields(named, fixed, str(wanted["model"]), device=device))
    progress.update(1.0)
    return JobEvent(
        "done", job.id, fraction=1.0, arrays=arrays,
        data={**modes.summary(), "modes": count, "subjects": subjects},
    )  # fmt: skip


def _transforms_of(job: Job, wanted: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns the transforms of a job with the names of their subjects."""
    names = wanted.get("names") or {}
    if not job.transforms:
        raise WorkerError("A population job needs transforms, or the parameter 'folder'.")
    return [(str(names.get(key, key)), read_transform(job, key)) for key in job.transforms]


def _mode_arrays(folder: Path, modes: FieldModes, count: int) -> dict[str, ArrayFile]:
    """Writes the mean and the leading modes, (3, *shape) in RAS mm, at rest at the rim."""
    matrix = tuple(tuple(row) for row in modes.grid.voxel_to_ras.tolist())
    fields = {"mean": modes.mean, **{f"mode_{k + 1}": modes.mode(k) for k in range(count)}}
    arrays = {}
    for name, field in fields.items():
        # ITK does nothing beyond the field and VTK repeats its edge; at rest, both agree.
        vectors = Field(field, modes.grid).faded(1).to_ras_mm()[0].float().numpy()
        arrays[name] = ArrayFile(save_array(folder, name, vectors), matrix)
    return arrays


def _subjects(modes: FieldModes, count: int) -> list[dict[str, Any]]:
    """Returns a row for each subject, the most atypical first; too few are not ranked."""
    along = dict(zip(modes.names, modes.coefficients[:, :count].tolist()))
    if len(modes.names) < LEAST_COMPARED:
        return [{"name": name, "coefficients": along[name]} for name in modes.names]
    return [
        {"name": one.name, "residual_mm": round(one.residual_mm, 5),
         "deviation": round(one.deviation, 4), "coefficients": along[one.name]}
        for one in modes.ranking()
    ]  # fmt: skip


def _add_judgment(subjects: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Adds what a model says of each subject, and puts them into its order."""
    judged = {row["name"]: row for row in rows}
    for subject in subjects:
        row = judged[subject["name"]]
        subject.update(atypicality_mm=row["atypicality_mm"], model=row["model"])
    subjects.sort(key=lambda one: -one["atypicality_mm"])


def _motion(field: Field, subject: Image) -> dict[str, float]:
    """Returns how far the object of an image moves, in mm, and how much of it folds."""
    inside = object_region(subject)[0, 0].cpu()
    inside = inside if bool(inside.any()) else torch.ones_like(inside)
    lengths: Tensor = vector_lengths(field.to_ras_mm())[0, 0][inside]
    folded = (jacobian_determinant(field.displacement)[0] <= 0)[inside]
    return {
        "mean_mm": float(lengths.mean()),
        "largest_mm": float(lengths.max()),
        "folds_percent": 100.0 * float(folded.float().mean()),
    }
