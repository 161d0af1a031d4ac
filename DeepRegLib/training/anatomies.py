"""The model of anatomies as a tool: from a folder of images to the model, and to new images."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import FileFormatError, ParameterError
from ..geometry.field import Field
from ..geometry.grid import Grid
from ..geometry.transform import Transform
from ..io.files import PathLike
from ..io.images import write_image
from ..io.itk_transform import write_transform
from ..models import user_folder
from ..pipeline import choose_device
from ..registration.base import Event, Image, Progress
from ..registration.model_frame import ModelFrame
from .model_pairs import posed_pair, two_samples
from .preparation import prepare
from .schedule import mixed_seed
from .shape_model import AnatomyModel, Shapes
from .shape_model_fit import ModelSettings, fit_anatomies
from .subjects import Subject

#: Share of the work that preparing the images is.
_PREPARED = 0.3
#: Table of the files in a folder of anatomies or pairs.
_TABLES = {"anatomy": "anatomies.csv", "pair": "pairs.csv"}


def make_anatomies(
    subjects: Sequence[Subject],
    frame: ModelFrame | float = 3.0,
    settings: ModelSettings | None = None,
    *,
    folder: PathLike = "",
    reference: str = "",
    alignment: str = "affine",
    device: str = "auto",
    progress: Progress | None = None,
) -> AnatomyModel:
    """Makes a model of anatomies from files: aligned, resampled on one grid, registered.

    Args:
        subjects: The images; see `subjects.find_subjects`.
        frame: Voxel size in mm, or voxel size and shape.
        settings: See `ModelSettings`.
        folder: Keeps prepared images and registrations; beside the trained models if empty.
        reference: Name of the subject that all are aligned with; one of middle size if empty.
        alignment: ``affine``, ``rigid`` or ``none``.
        device: Where to register: ``auto``, ``cpu``, ``cuda``.
        progress: Gets events, and can cancel.

    Raises:
        DeepRegError: If an image cannot be used, or there are too few.
        Cancelled: If the user cancelled; what was done is kept.
    """
    progress = progress or Progress()
    folder = Path(folder) if folder else user_folder() / "prepared"
    chosen, remark = choose_device(device)
    if remark:
        progress.message(remark)
    prepared = prepare(
        subjects, frame, folder, _part(progress, "prepare", 0.0, _PREPARED),
        reference=reference, alignment=alignment, device=chosen,
    )  # fmt: skip
    return fit_anatomies(
        [prepared.image(i) for i in range(len(prepared))], prepared.grid, settings, folder,
        _part(progress, "model", _PREPARED, 1.0),
        labels=[prepared.labels(i) for i in range(len(prepared))],
        names=[subject.name for subject in prepared.subjects], device=chosen,
    )  # fmt: skip


def write_anatomies(
    model: AnatomyModel,
    folder: PathLike,
    count: int,
    seed: int = 0,
    spread: float = 1.0,
    texture_spread: float = 1.0,
    *,
    fields: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Writes random anatomies as NIfTI, with a table that `find_subjects` reads.

    The folder gets ``anatomy_001.nii.gz``, its label map ``anatomy_001_labels.nii.gz`` if the model
    has one, the template, and ``anatomies.csv``.

    Args:
        model: The model.
        folder: New or empty; it is there whole or not at all.
        count: Number of anatomies.
        seed: Decides which; see `AnatomyModel.sample`.
        spread: Size of the deviations of shape.
        texture_spread: Size of the deviations of texture.
        fields: Whether the transform from each anatomy (fixed) to the template (moving) is written.
        progress: Gets events, and can cancel.

    Returns:
        The table.

    Raises:
        FileFormatError: If the folder is not empty, or cannot be written to.
        ParameterError: If the count is not positive.
    """
    progress = progress or Progress()
    _check_count(count, "anatomies")
    rows: list[dict[str, str]] = []
    with _new_folder(folder) as place:
        _write_template(model, place)
        for number in range(count):
            progress.update(number / count)
            # Number by number, so that only one is in memory.
            generator = torch.Generator().manual_seed(mixed_seed(seed, number, "anatomy"))
            velocity = model.draw_velocities(1, generator, spread)
            texture = model.draw_textures(1, generator, texture_spread)
            made = model.rendered(Shapes.of(velocity, model.grid.shape), texture)
            name = f"anatomy_{number + 1:03d}"
            row = {"name": name, "image": f"{name}.nii.gz"}
            _write(made.images, model.grid, place / row["image"])
            if made.labels is not None:
                row["labels"] = f"{name}_labels.nii.gz"
                _write_labels(made.labels, model.grid, place / row["labels"])
            if fields:
                file = place / f"{name}_to_template.nii.gz"
                _write_field(made.shapes.back, model.grid, file)
            rows.append(row)
        _write_table(rows, place / _TABLES["anatomy"])
    progress.update(1.0)
    return Path(folder) / _TABLES["anatomy"]


def write_pairs(
    model: AnatomyModel,
    folder: PathLike,
    count: int,
    seed: int = 0,
    spread: float = 1.0,
    shared_texture: float = 0.5,
    *,
    progress: Progress | None = None,
) -> Path:
    """Writes pairs of random anatomies with the exact transform between them.

    The folder gets ``pair_001_fixed.nii.gz``, ``pair_001_moving.nii.gz`` and
    ``pair_001_transform.nii.gz``, which maps fixed to moving points (a displacement image, LPS mm,
    as ITK and Slicer take it), label maps if the model has one, and ``pairs.csv``.

    Args:
        model: The model.
        folder: New or empty; it is there whole or not at all.
        count: Number of pairs.
        seed: Decides which.
        spread: Size of the deviations of shape.
        shared_texture: Probability that both images of a pair have the same texture.
        progress: Gets events, and can cancel.

    Returns:
        The table.

    Raises:
        FileFormatError: If the folder is not empty, or cannot be written to.
        ParameterError: If the count is not positive.
    """
    progress = progress or Progress()
    _check_count(count, "pairs")
    rows: list[dict[str, str]] = []
    with _new_folder(folder) as place:
        for number in range(count):
            progress.update(number / count)
            generator = torch.Generator().manual_seed(mixed_seed(seed, number, "pair"))
            sides = two_samples(model, generator, shared_texture, spread)
            pair = posed_pair(sides, min(model.grid.spacing_mm), np.eye(4), np.eye(4))
            assert pair.truth is not None
            name = f"pair_{number + 1:03d}"
            row = {"name": name}
            for side, image, labels in (
                ("fixed", pair.fixed, pair.fixed_labels),
                ("moving", pair.moving, pair.moving_labels),
            ):
                row[side] = f"{name}_{side}.nii.gz"
                _write(image, model.grid, place / row[side])
                if labels is not None:
                    row[f"{side}_labels"] = f"{name}_{side}_labels.nii.gz"
                    _write_labels(labels, model.grid, place / row[f"{side}_labels"])
            row["transform"] = f"{name}_transform.nii.gz"
            _write_field(pair.truth, model.grid, place / row["transform"])
            rows.append(row)
        _write_table(rows, place / _TABLES["pair"])
    progress.update(1.0)
    return Path(folder) / _TABLES["pair"]


def write_modes(
    model: AnatomyModel, folder: PathLike, count: int = 3, deviations: float = 2.0
) -> list[Path]:
    """Writes the mean texture at both ends of the leading modes of shape.

    Args:
        model: The model.
        folder: New or empty; gets the template, ``mode_1_minus.nii.gz``, ``mode_1_plus.nii.gz``...
        count: Number of modes.
        deviations: How far the ends are, in standard deviations.

    Raises:
        FileFormatError: If the folder is not empty, or cannot be written to.
        ParameterError: If there are not so many modes.
    """
    _check_count(count, "modes")
    names = []
    with _new_folder(folder) as place:
        names.append(_write_template(model, place))
        for mode in range(count):
            made = model.along_mode(mode, (-deviations, deviations))
            for image, end in zip(made.images, ("minus", "plus")):
                names.append(f"mode_{mode + 1}_{end}.nii.gz")
                _write(image[None], model.grid, place / names[-1])
    return [Path(folder) / name for name in names]


def check_new_folder(folder: PathLike) -> Path:
    """Returns a folder that is new or empty, and can be made.

    Raises:
        FileFormatError: If it cannot.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileFormatError(f"'{path}' is there already; name a folder that is new or empty.")
    if not path.absolute().parent.is_dir():
        raise FileFormatError(f"The folder '{path.parent}' does not exist; make it first.")
    return path


@contextmanager
def _new_folder(folder: PathLike) -> Iterator[Path]:
    """Gives a place for files that become the folder when all are written."""
    path = check_new_folder(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".deepreg-", dir=path.absolute().parent) as around:
            inner = Path(around) / "files"
            inner.mkdir()
            yield inner
            if path.exists():
                path.rmdir()
            os.replace(inner, path)
    except OSError as error:
        raise FileFormatError(
            f"The folder '{path}' could not be written ({error.strerror}); check the permissions "
            "and the free space."
        ) from error


def _write_template(model: AnatomyModel, place: Path) -> str:
    _write(model.template, model.grid, place / "template.nii.gz")
    if model.labels is not None:
        _write_labels(model.labels, model.grid, place / "template_labels.nii.gz")
    return "template.nii.gz"


def _write(image: Tensor, grid: Grid, path: Path) -> None:
    write_image(Image(image.float(), grid), path)


def _write_labels(labels: Tensor, grid: Grid, path: Path) -> None:
    kind = "uint8" if int(labels.max()) <= 255 else "int32"
    write_image(Image(labels.to(torch.int32), grid, kind), path)


def _write_field(displacement: Tensor, grid: Grid, path: Path) -> None:
    write_transform(Transform(np.eye(4), Field(displacement, grid)), path, grid)


def _write_table(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _check_count(count: int, what: str) -> None:
    if count < 1:
        raise ParameterError(f"The number of {what} is at least 1, not {count}.")


def _part(progress: Progress, name: str, start: float, end: float) -> Progress:
    """Returns a progress whose whole is a part of another one's."""
    progress.stage(name, start, end)

    def forward(event: Event) -> None:
        if event.kind == "message":
            progress.message(event.text)
        elif event.kind == "progress":
            progress.update(event.fraction)

    return Progress(forward)
