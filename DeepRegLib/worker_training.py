"""The worker's job ``train``: volumes of the scene or a folder in, a model file out."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .errors import FileFormatError, InputError, ParameterError, WorkerError
from .geometry.grid import Grid
from .inputs import as_image, as_labels
from .io.images import write_image
from .job import Job, JobEvent
from .registration.base import Image, Progress

_IMAGE = re.compile(r"image_(\d+)")
_LABELS = re.compile(r"labels_(\d+)")
#: Parameters of the job that are no options of the training.
_OWN = ("names", "people")


def run(job: Job, progress: Progress) -> JobEvent:
    """Trains a system, and returns the event ``done``.

    Raises:
        DeepRegError: If something does not fit, or the user cancelled.
    """
    # Training takes time to load, and most jobs are of other kinds.
    from .training.options import TrainingOptions
    from .training.session import train

    options = {k: v for k, v in job.parameters.items() if k not in _OWN and v is not None}
    if job.arrays:
        if options.get("data"):
            raise ParameterError("Train either on volumes or on a folder; leave one of them out.")
        folder = Path(job.folder)
        options["data"] = str(_write_table(job, folder / "volumes"))
        # Copies of the volumes go when the job's folder does.
        options["cache"] = str(folder / "prepared")
    trained = train(TrainingOptions.of(options), progress)
    if trained is None:
        raise WorkerError("The worker trains by itself; start several processes with torchrun.")
    return JobEvent(
        "done", job.id, fraction=1.0,
        data={
            "model": trained.card.name, "path": str(trained.path), "card": asdict(trained.card),
            "figures": trained.card.figures, "ended": trained.ended, "history": trained.history,
            "curves": str(trained.folder),
        },
    )  # fmt: skip


def _write_table(job: Job, folder: Path) -> Path:
    """Writes the volumes of a job as files and lists them in a table.

    Files and not arrays, so that volumes of the scene and images of a folder take the same path.
    """
    numbers = sorted(int(m.group(1)) for name in job.arrays if (m := _IMAGE.fullmatch(name)))
    for name in job.arrays:
        match = _LABELS.fullmatch(name)
        if not _IMAGE.fullmatch(name) and not (match and int(match.group(1)) in numbers):
            raise WorkerError(f"A train job has arrays image_N and labels_N, but no '{name}'.")
    if len(numbers) < 2:
        raise InputError("A training needs at least two volumes; choose more.")
    names, people = (job.parameters.get(n) or {} for n in _OWN)
    _check_texts(names, people)
    rows = []
    try:
        folder.mkdir(exist_ok=True)
        for number in numbers:
            row = {"image": f"image_{number}.nrrd", "name": names.get(f"image_{number}", ""),
                   "group": people.get(f"image_{number}", ""), "labels": ""}  # fmt: skip
            write_image(_read(job, f"image_{number}"), folder / row["image"])
            if f"labels_{number}" in job.arrays:
                row["labels"] = f"labels_{number}.nrrd"
                write_image(_read(job, f"labels_{number}", labels=True), folder / row["labels"])
            rows.append(row)
        table = folder / "volumes.csv"
        with table.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise FileFormatError(
            f"The volumes cannot be written to '{folder}' ({error.strerror}); make room."
        ) from error
    return table


def _check_texts(*given: object) -> None:
    for texts in given:
        if not isinstance(texts, Mapping) or not all(isinstance(t, str) for t in texts.values()):
            raise WorkerError("The names of volumes and people are texts by the name of an array.")


def _read(job: Job, name: str, labels: bool = False) -> Image:
    described = job.arrays[name]
    if described.voxel_to_ras is None:
        raise WorkerError(f"The array '{name}' needs a voxel_to_ras matrix.")
    try:
        array: Any = np.load(Path(job.folder) / described.file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileFormatError(f"The array '{described.file}' cannot be read ({error}).") from error
    grid = Grid(array.shape, np.array(described.voxel_to_ras))
    title = (job.parameters.get("names") or {}).get(name, name.replace("_", " "))
    return (as_labels if labels else as_image)((array, grid), title)
