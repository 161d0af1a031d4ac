"""Latent codes at work: deformations carried to other subjects, drawn ones, and unusual ones.

A code of `cvae` stands for a deformation in the frame of a fixed image, and its decoder looks at
the image that is to be deformed. So the deformation that takes one subject's image to a second
image (a later scan, or a diseased state) can be applied to another subject, once that is aligned.

Example:
    >>> from DeepRegLib.population_latent import transport
    >>> done = transport("later.nrrd", "earlier.nrrd", "other.nrrd")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import registry
from .errors import InputError, ParameterError
from .geometry.field import Field
from .geometry.grid import Grid, Matrix, invert_matrix
from .geometry.transform import Transform
from .inputs import ImageLike, TransformLike, as_image, as_transform, make_pair
from .io.files import PathLike
from .io.images import write_image
from .io.itk_transform import write_transform
from .operations import warp_image
from .outputs import Writer
from .pipeline import choose_device, settled
from .population import Named, displacement_on, table_writer, write_folder
from .registration.base import Event, Image, ImagePair, Progress
from .registration.compose import run_stages, stage_values
from .registration.learned import LearnedRegistration, View, see
from .registration.model_frame import ModelFrame, normalized, onto_frame
from .registration.placement import placed
from .registration.trainable import Prediction
from .training.schedule import mixed_seed

#: The system whose codes can be decoded for other images, and the one that judges displacements.
LATENT, COOPERATIVE = "cvae", "coop_ae"
#: How images are aligned before a network sees them.
ALIGNMENTS = {"affine": ("rigid", "affine"), "rigid": ("rigid",), "none": ()}


@dataclass(frozen=True, eq=False)
class Transported:
    """A subject that was deformed by a code.

    Args:
        transform: Where each point of the deformed image is found in the subject's, RAS mm; its
            field lies on the subject's grid.
        inverse: The other way.
        deformed: The deformed image, on the subject's grid.
        code: The code.
        model: Name of the model.
    """

    transform: Transform
    inverse: Transform
    deformed: Image
    code: tuple[float, ...]
    model: str = ""


class TrainedSystem:
    """A trained system with a latent code, and the frame of its images.

    Args:
        key: Key of the algorithm.
        model: Name or file of the model; the newest if empty.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ParameterError: If there is no such model.
        FileFormatError: If it is damaged.
    """

    def __init__(self, key: str, model: str = "", device: str = "auto") -> None:
        self.device, _ = choose_device(device)
        untrained: LearnedRegistration = registry.create(key, model=model)
        file = untrained.model()
        if file is None or file.card is None:
            raise ParameterError(
                f"There is no trained model for '{key}'; train one "
                f"('train --algorithm {key}'), or name its file."
            )
        #: The system as it was trained: an `Algorithm` of that key.
        self.system: Any
        self.network: nn.Module
        self.system, self.network = untrained.trained(file)
        self.network = self.network.to(self.device).eval().requires_grad_(False)
        self.frame = ModelFrame(file.card.spacing_mm, file.card.shape)
        self.name = file.name

    def see(self, pair: ImagePair) -> View:
        """Returns a pair as the network sees it, the moving image through `pair.initial`."""
        return see(pair.to(self.device), self.frame, self.system.multiple)


class LatentModel(TrainedSystem):
    """A trained model of deformations that short codes stand for.

    Args:
        model: Name or file of a model of ``cvae``; the newest if empty.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    def __init__(self, model: str = "", device: str = "auto") -> None:
        super().__init__(LATENT, model, device)

    @property
    def size(self) -> int:
        """Numbers of a code."""
        return int(self.system.values["latent"])

    def encode(self, pair: ImagePair) -> tuple[float, ...]:
        """Returns the code of the deformation that brings a pair together.

        Args:
            pair: Fixed and moving image, with their linear alignment as `initial`.
        """
        batch = self.see(pair).batch
        with torch.no_grad():
            code, _ = self.system.encode(self.network, batch.fixed, batch.moving)
        return tuple(float(value) for value in code[0])

    def decode(
        self,
        code: Sequence[float],
        subject: Image,
        fixed: Image | None = None,
        linear: Matrix | None = None,
    ) -> Transported:
        """Deforms a subject by a code, in the subject's own space.

        Args:
            code: As many numbers as the model has.
            subject: The image that is deformed.
            fixed: Image in whose frame the code was found; the subject itself if None.
            linear: Alignment of the subject with it, fixed to subject, 4 x 4, RAS mm.

        Raises:
            InputError: If the code has another length.
        """
        if len(code) != self.size:
            raise InputError(
                f"The codes of the model '{self.name}' have {self.size} numbers, but "
                f"{len(code)} were given."
            )
        matrix = np.eye(4) if linear is None else np.asarray(linear, np.float64)
        pair = ImagePair(fixed or subject, subject, initial=Transform(matrix))
        view = self.see(pair)
        numbers = torch.tensor([list(code)], dtype=torch.float32, device=self.device)
        with torch.no_grad():
            found = self.system.decode(self.network, numbers, view.batch.moving)
            transform, inverse = _in_subject(found, view.grid, subject, matrix)
            deformed = warp_image(subject, transform, subject.grid)
        values = tuple(float(v) for v in code)
        return Transported(transform, inverse, deformed, values, self.name)

    def sample(
        self, subject: Image, count: int = 1, seed: int = 0, spread: float = 1.0
    ) -> list[Transported]:
        """Deforms a subject at random: codes of independent normal numbers.

        Args:
            subject: The image.
            count: Number of deformations.
            seed: Decides which; number and seed always give the same.
            spread: Standard deviation of the numbers; 1 is that of the prior.

        Raises:
            ParameterError: If the number is not positive.
        """
        if count < 1:
            raise ParameterError(f"The number of deformations is at least 1, not {count}.")
        found = []
        for number in range(count):
            generator = torch.Generator().manual_seed(mixed_seed(seed, number, "code"))
            code = spread * torch.randn(self.size, generator=generator)
            found.append(self.decode(code.tolist(), subject))
        return found


def transport(
    fixed: ImageLike,
    moving: ImageLike,
    subject: ImageLike,
    model: str = "",
    *,
    strength: float = 1.0,
    alignment: str = "affine",
    initial_transform: TransformLike | None = None,
    subject_transform: TransformLike | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Transported:
    """Applies the deformation of one subject to another one.

    The code z of the pair (fixed, moving) is decoded for the image of the other subject:
    the result shows this subject as `fixed` shows the one of `moving`.

    Args:
        fixed: Image after the change, such as a later scan.
        moving: Image of the same subject before it.
        subject: Image of another subject, before the change.
        model: Model of ``cvae``, by name or file; the newest if empty.
        strength: The code is multiplied by this; 0 does about nothing.
        alignment: ``affine``, ``rigid`` or ``none``: how `moving` and `subject` are aligned with
            `fixed` beforehand.
        initial_transform: Alignment of `moving`, fixed to moving, in place of finding it.
        subject_transform: Alignment of `subject`, fixed to subject, in place of finding it.
        device: Where to compute.
        progress: Gets events, and can cancel.

    Returns:
        The deformed subject with its transform and inverse, in the subject's space.

    Raises:
        ParameterError: If there is no model, or an argument does not fit.
        InputError: If an image cannot be registered.
    """
    if alignment not in ALIGNMENTS:
        raise ParameterError(f"The alignment is {', '.join(ALIGNMENTS)}, not '{alignment}'.")
    progress = progress or Progress()
    latent = LatentModel(model, device)
    first = make_pair(fixed, moving)
    other = as_image(subject, "subject")
    starts = []
    for pair, given, span in (
        (first, initial_transform, (0.0, 0.45)),
        (ImagePair(first.fixed, other), subject_transform, (0.45, 0.9)),
    ):
        if given is not None:
            starts.append(as_transform(given, first.fixed.grid))
        else:
            starts.append(_aligned(pair.to(latent.device), ALIGNMENTS[alignment], progress, span))
    if not starts[1].is_linear:
        raise InputError("The alignment of the subject is linear; give it without a deformation.")
    progress.stage("transport", 0.9, 1.0)
    code = latent.encode(replace(first, initial=starts[0]))
    scaled = [strength * value for value in code]
    done = latent.decode(scaled, other, first.fixed, starts[1].linear)
    progress.update(1.0)
    return done


def write_samples(drawn: Sequence[Transported], folder: PathLike, image: str = ".nii.gz") -> Path:
    """Writes deformed images, their transforms, and a table of their codes.

    Args:
        drawn: What `LatentModel.sample` returned.
        folder: New or empty; gets ``sample_001.h5``, ``sample_001.nii.gz``, ... and
            ``samples.csv``.
        image: Suffix of the images; none are written if empty.

    Returns:
        The table.

    Raises:
        FileFormatError: If the folder is not empty, or cannot be written to.
    """
    rows: list[dict[str, Any]] = []
    writers: list[Writer] = []
    for number, one in enumerate(drawn, start=1):
        row: dict[str, Any] = {"name": f"sample_{number:03d}"}
        row["transform"] = f"{row['name']}.h5"
        writers.append((row["transform"], partial(_write_transform, one)))
        if image:
            row["image"] = f"{row['name']}{image}"
            writers.append((row["image"], partial(write_image, one.deformed)))
        rows.append({**row, **{f"code_{k}": v for k, v in enumerate(one.code, start=1)}})
    table = "samples.csv"
    write_folder(folder, [*writers, (table, table_writer(rows))])
    return Path(folder) / table


def judge_fields(
    transforms: Sequence[Named], fixed: ImageLike, model: str = "", *, device: str = "auto"
) -> list[dict[str, Any]]:
    """Tells how atypical deformations are for the population that ``coop_ae`` learned from.

    Args:
        transforms: Names and transforms, fixed to moving; their linear parts do not count.
        fixed: Their common fixed image.
        model: Model of ``coop_ae``, by name or file; the newest if empty.
        device: Where to compute.

    Returns:
        Rows with rank, name, `atypicality_mm` and the code, the most atypical first.

    Raises:
        ParameterError: If there is no model.
    """
    judge = TrainedSystem(COOPERATIVE, model, device)
    image = as_image(fixed, "fixed image").to(judge.device)
    grid = judge.frame.grid(image, judge.system.multiple)
    seen = onto_frame(normalized(image), image.grid, grid)
    rows = []
    for name, given in transforms:
        field = displacement_on(as_transform(given, image.grid), grid).to(judge.device)
        with torch.no_grad():
            code, _, score = judge.system.judge(judge.network, field, seen, judge.frame.spacing_mm)
        numbers = {f"code_{k}": float(v) for k, v in enumerate(code[0], start=1)}
        rows.append({"name": name, "algorithm": COOPERATIVE, "model": judge.name,
                     "atypicality_mm": round(score, 5), **numbers})  # fmt: skip
    rows.sort(key=lambda row: (-row["atypicality_mm"], row["name"]))
    return [{"rank": rank, **row} for rank, row in enumerate(rows, start=1)]


def _write_transform(one: Transported, path: Path) -> None:
    write_transform(one.transform, path, one.deformed.grid)


def _aligned(
    pair: ImagePair, keys: tuple[str, ...], progress: Progress, span: tuple[float, float]
) -> Transform:
    """Returns the linear alignment of a pair."""
    if not keys:
        return Transform()

    def pass_on(event: Event) -> None:
        start, end = span
        if event.kind == "progress":
            progress.update(start + (end - start) * event.fraction)

    return run_stages(pair, keys, stage_values(keys), Progress(pass_on)).transform.to("cpu")


def _in_subject(
    found: tuple[Tensor, Tensor], grid: Grid, subject: Image, matrix: Matrix
) -> tuple[Transform, Transform]:
    """Returns a deformation of the fixed space as one of the subject's space, both ways.

    With the alignment L from fixed to subject, the deformation phi of the fixed space is
    L phi L^-1 there. On the subject's grid seen from the fixed space (its matrix times L^-1) both
    have the same displacements in voxels.
    """
    seen = Grid(subject.grid.shape, invert_matrix(matrix) @ subject.grid.voxel_to_ras)
    pair = ImagePair(Image(subject.data, seen), subject, initial=Transform(matrix))
    result = placed(Prediction(displacement=found[0], inverse=found[1]), grid, pair)
    assert result.transform.field is not None and result.inverse is not None
    assert result.inverse.field is not None
    parts = []
    for field in (result.transform.field, result.inverse.field):
        there = Transform(np.eye(4), Field(field.displacement.cpu(), subject.grid))
        parts.append(settled(there, subject.grid))
    return parts[0], parts[1]
