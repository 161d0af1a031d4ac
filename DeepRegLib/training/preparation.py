"""Brings all subjects onto one grid: aligned with a reference, resampled, normalized, kept on disk.

What a network sees in training is made by the same steps as what it sees in use: the linear stages,
`normalized` and `onto_frame`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..geometry.grid import Grid, Matrix, invert_matrix
from ..geometry.transform import Transform
from ..io.files import PathLike
from ..io.images import read_image, read_labels
from ..registration.base import Image, ImagePair, Progress
from ..registration.compose import run_stages, stage_values
from ..registration.model_frame import ModelFrame, labels_onto_frame, normalized, onto_frame
from ..registration.preprocess import object_region
from .cache import Cache, file_identity, key_of
from .prepared import PreparedSet, compact
from .subjects import Subject

#: Goes into all keys; another one makes everything anew.
_VERSION = 1
#: Linear stages of each kind of alignment.
ALIGNMENTS = {"affine": ("rigid", "affine"), "rigid": ("rigid",), "none": ()}
_MULTIPLE = 16
#: Subjects among which the reference is looked for; more subjects do not change it then.
_CANDIDATES = 15
#: Overlap (Dice) of a subject's object with the reference's below which the alignment is doubted.
_LEAST_OVERLAP = 0.8


class Loader(Protocol):
    """Gives image and label map of a subject."""

    @property
    def key(self) -> str:
        """Tells this way of loading from others."""
        ...

    def __call__(self, subject: Subject) -> tuple[Image, Image | None]:
        """Returns the image, and the label map if there is one."""
        ...


class FileLoader:
    """Reads both files as they are."""

    key = "files"

    def __call__(self, subject: Subject) -> tuple[Image, Image | None]:
        """Reads image and label map."""
        return read_image(subject.image), (
            read_labels(subject.labels) if subject.labels is not None else None
        )


def prepare(
    subjects: Sequence[Subject],
    frame: ModelFrame | float,
    folder: PathLike,
    progress: Progress | None = None,
    *,
    reference: str | Path | Subject = "",
    alignment: str = "affine",
    device: torch.device | str = "cpu",
    loader: Loader | None = None,
) -> PreparedSet:
    """Aligns all subjects with a reference and resamples them on its model grid.

    What was prepared is kept; only what is missing or has changed is made. Several processes may
    prepare the same subjects in the same folder, and share the work.

    Args:
        subjects: The subjects.
        frame: Voxel size and shape; or only a voxel size in mm, for the smallest shape (multiples
            of 16) that holds the objects of all subjects.
        folder: Where what was prepared is kept.
        progress: Gets events, and can cancel.
        reference: Name of a subject, or a file; one of middle size among the first 15 if omitted.
        alignment: ``affine``, ``rigid``, or ``none`` for images that are aligned already.
        device: Where images are aligned.
        loader: How files are read.

    Raises:
        InputError: If a file cannot be used, or the alignment or the reference is unknown.
        FileFormatError: If a file cannot be read, or the folder cannot be written to.
        Cancelled: If the user cancelled; what was done is kept.
    """
    if not subjects:
        raise InputError("There are no subjects to prepare; list at least one image.")
    if alignment not in ALIGNMENTS:
        raise InputError(f"The alignment is {', '.join(ALIGNMENTS)}, not '{alignment}'.")
    progress = progress or Progress()
    progress.stage("prepare", 0.0, 1.0)
    cache, loader = Cache(folder), loader or FileLoader()
    chosen = _reference(subjects, reference, loader, cache)
    # A reference from elsewhere is an ordinary image, whatever the subjects are.
    its_loader = loader if chosen in subjects else FileLoader()
    work = _Work(chosen, alignment, torch.device(device), loader, its_loader, cache, progress)
    if isinstance(frame, ModelFrame):
        grid = frame.grid(work.reference_image())
        if grid.shape != frame.shape:
            progress.message(
                f"The object of '{chosen.name}' takes more room than {_text(frame.shape)} "
                f"voxels; there will be {_text(grid.shape)}."
            )
    else:
        tasks = {work.alignment_key(s): _later(work.align, s) for s in subjects}
        work.fill(tasks, 0.0, 0.5)
        grid = _common_grid(work, list(subjects), float(frame))
    keys = [work.key(s, grid) for s in subjects]
    jobs = {key: _later(work.make, s, grid) for key, s in zip(keys, subjects)}
    made = work.fill(jobs, 0.0 if isinstance(frame, ModelFrame) else 0.5, 1.0)
    spacing = grid.spacing_mm[0]
    result = PreparedSet(ModelFrame(spacing, grid.shape), grid, subjects, work.cache, keys)
    progress.message(
        f"{len(subjects)} subjects on {_text(grid.shape)} voxels of {spacing:g} mm "
        f"({len(subjects) - made} were there)."
    )
    _doubt(result, progress)
    return result


@dataclass(eq=False)
class _Work:
    """Makes the entries of the cache."""

    reference: Subject
    alignment: str
    device: torch.device
    loader: Loader
    reference_loader: Loader
    cache: Cache
    progress: Progress

    def __post_init__(self) -> None:
        self._done = 0.0
        self._last: tuple[Subject, tuple[Image, Image | None]] | None = None
        self._reference_image: Image | None = None
        self._region: Tensor | None = None
        self._identity = file_identity(self.reference.image)

    def fill(
        self, tasks: dict[str, Callable[[], dict[str, Tensor]]], start: float, end: float
    ) -> int:
        """Makes what is missing, within a span of the whole; returns how many entries that were."""

        def report(fraction: float) -> None:
            self._done = start + (end - start) * fraction
            self.progress.update(self._done)

        return self.cache.fill(tasks, report)

    def load(self, subject: Subject) -> tuple[Image, Image | None]:
        """Loads a subject; the last one is kept, since its image is needed twice."""
        if self._last is None or self._last[0] != subject:
            self._last = (subject, self.loader(subject))
        return self._last[1]

    def alignment_key(self, subject: Subject) -> str:
        """Key of a subject's alignment."""
        identity = file_identity(subject.image)
        return key_of(_VERSION, "alignment", identity, self._identity, self.alignment,
                      self.loader.key, self.reference_loader.key)  # fmt: skip

    def key(self, subject: Subject, grid: Grid) -> str:
        """Key of a prepared subject."""
        labels = None if subject.labels is None else file_identity(subject.labels)
        place = np.round(grid.voxel_to_ras, 6).tolist()
        return key_of(_VERSION, self.alignment_key(subject), labels, grid.shape, place)

    def align(self, subject: Subject) -> dict[str, Tensor]:
        """Finds where a subject lies, and the corners of its object in the reference's space."""
        image = self.load(subject)[0]
        linear = self._align(subject, image)
        placed = Image(
            image.data, Grid(image.grid.shape, invert_matrix(linear) @ image.grid.voxel_to_ras)
        )
        return {
            "linear": torch.from_numpy(linear),
            "box": torch.from_numpy(np.stack(_box(placed))),
        }

    def make(self, subject: Subject, grid: Grid) -> dict[str, Tensor]:
        """Makes the entry of a prepared subject."""
        key = self.alignment_key(subject)
        found = self.cache.get(key)
        if found is None:
            found = self.align(subject)
            self.cache.put(key, found)
        image, labels = self.load(subject)
        transform = Transform(found["linear"].numpy())
        data = onto_frame(normalized(image), image.grid, grid, transform)
        entry = {
            "image": data[0, 0].half(),
            "linear": found["linear"],
            "overlap": torch.tensor(self._overlap(data, grid)),
        }
        if labels is not None:
            moved = labels_onto_frame(labels.data, labels.grid, grid, transform)[0, 0]
            entry["labels"] = compact(moved)
        return entry

    def reference_image(self) -> Image:
        """Returns the image of the reference."""
        if self._reference_image is None:
            self._reference_image = self.reference_loader(self.reference)[0]
        return self._reference_image

    def _align(self, subject: Subject, image: Image) -> Matrix:
        keys = ALIGNMENTS[self.alignment]
        if not keys or subject.image == self.reference.image:
            return np.eye(4)
        pair = ImagePair(self.reference_image(), image).to(self.device)
        # Its events only serve to cancel in the midst of it.
        inner = Progress(lambda event: self.progress.update(self._done))
        result = run_stages(pair, keys, stage_values(keys, "fast"), inner)
        return np.array(result.transform.linear)

    def _overlap(self, data: Tensor, grid: Grid) -> float:
        """Dice overlap of the object with that of the reference."""
        if self._region is None:
            image = self.reference_image()
            there = onto_frame(normalized(image), image.grid, grid)
            self._region = object_region(Image(there, grid))
        here = object_region(Image(data, grid))
        both = float((here & self._region).sum())
        return 2.0 * both / max(float(here.sum() + self._region.sum()), 1.0)


def _later(task: Callable[..., Any], *values: Any) -> Callable[[], Any]:
    return lambda: task(*values)


def _reference(
    subjects: Sequence[Subject], wanted: str | Path | Subject, loader: Loader, cache: Cache
) -> Subject:
    if isinstance(wanted, Subject):
        return wanted
    if not wanted:
        return _of_middle_size(subjects[:_CANDIDATES], loader, cache)
    for subject in subjects:
        if subject.name == str(wanted):
            return subject
    path = Path(wanted)
    if path.exists():
        return Subject(path.name, path)
    raise InputError(f"The reference '{wanted}' is no subject's name and no file; check it.")


def _of_middle_size(subjects: Sequence[Subject], loader: Loader, cache: Cache) -> Subject:
    """Returns the subject whose object has the median volume."""
    if len(subjects) < 3:
        return subjects[0]
    sizes = []
    for subject in subjects:
        key = key_of(_VERSION, "size", file_identity(subject.image), loader.key)
        found = cache.get(key)
        if found is None:
            low, high = _box(loader(subject)[0])
            found = {"mm": torch.from_numpy(high - low)}
            cache.put(key, found)
        sizes.append(float(found["mm"].prod()))
    return subjects[int(np.argsort(sizes, kind="stable")[(len(sizes) - 1) // 2])]


def _box(image: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper RAS corner of the object of an image, as frames see it."""
    # The margin of a frame is counted in its voxels, so that of a very fine one is next to none.
    corners = ModelFrame(0.01, (1, 1, 1)).grid(image, multiple=1).corners_ras()
    return corners.min(0), corners.max(0)


def _common_grid(work: _Work, subjects: list[Subject], spacing_mm: float) -> Grid:
    """Returns the smallest grid around the reference's object that holds all objects."""
    if not 0.0 < spacing_mm < 1e3:
        raise InputError(f"The voxel size is a positive number of mm, not {spacing_mm:g}.")
    low, high = _box(work.reference_image())
    center = (low + high) / 2
    boxes = [work.cache.get(work.alignment_key(subject)) for subject in subjects]
    corners = np.concatenate([[low, high], *(b["box"].numpy() for b in boxes if b)])
    half = np.abs(corners - center).max(0)
    # A block of two voxels a side whose centers are the corners of the box.
    matrix = np.diag([*(2.0 * half), 1.0])
    matrix[:3, 3] = center - half
    block = Image(torch.ones(1, 1, 2, 2, 2), Grid((2, 2, 2), matrix))
    return ModelFrame(spacing_mm, (_MULTIPLE,) * 3).grid(block, _MULTIPLE, block.data)


def _doubt(prepared: PreparedSet, progress: Progress) -> None:
    """Says which subjects may be misaligned."""
    poor = [s.name for i, s in enumerate(prepared.subjects) if prepared.overlap(i) < _LEAST_OVERLAP]
    if poor:
        progress.message(
            f"The alignment may have failed for {', '.join(poor[:5])}"
            f"{' and others' if len(poor) > 5 else ''}: less than {100 * _LEAST_OVERLAP:.0f} % of "
            "the object lies on that of the reference. Look at the images, or leave them out."
        )


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
