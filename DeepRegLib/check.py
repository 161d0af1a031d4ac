"""Checks a registration: an error in mm at every voxel, whatever method the transform came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import pipeline, registry
from .errors import FileFormatError, InputError, ParameterError
from .geometry.sampling import inside_image
from .geometry.transform import Transform
from .inputs import ImageLike, TransformLike, as_image, as_labels, as_transform, like
from .io.files import IMAGE_SUFFIXES, PathLike, suffix_of
from .io.images import write_image
from .models import ModelCard, find_model
from .operations import warp_image
from .outputs import check_outputs, json_writer, write_together
from .registration.base import Image, ImagePair, Progress
from .registration.learned import LearnedRegistration, see
from .registration.model_frame import ModelFrame
from .registration.placement import placed
from .registration.preprocess import mask_on_grid, object_region

#: The system that estimates errors, and the map that it gives.
KEY, MAP = "error_map", "error_mm"
#: Errors above this are too large, unless the user says otherwise.
THRESHOLD_MM = 2.0
#: Share of the object with too large errors, up to which the verdict is green and amber.
GREEN_PERCENT, AMBER_PERCENT = 5.0, 25.0
#: Share of the object that has to lie inside the moving image.
LEAST_INSIDE_PERCENT = 50.0
#: Share of the largest error that is the least that is said of a voxel: 0 stands where nothing was
#: judged, and is not shown.
LEAST = 1 / 200
#: Bars of the histogram.
BINS = 24
#: Share of the work that is done when the images are read, seen as the network does, and judged.
_READ, _SEEN, _ESTIMATED = 0.05, 0.2, 0.9


@dataclass(frozen=True, eq=False)
class Checked:
    """A registration that was checked.

    Args:
        error: Estimated error in mm on the fixed grid, 0 outside the object and where the fixed
            image has no counterpart.
        figures: ``mean_mm median_mm p95_mm share_above_percent threshold_mm largest_mm
            judged_voxels inside_percent``: of the voxels that were judged.
        histogram: ``edges_mm`` and ``shares`` (which add up to 1).
        verdict: ``green``, ``amber`` or ``red``.
        sentence: Why, for people.
        provenance: The model, and what was checked.
        fixed: The fixed image.
        moved: The moving image through the transform.
        example: The fixed image as it was given, for the type of `volume`.
    """

    error: Image
    figures: dict[str, float]
    histogram: dict[str, list[float]]
    verdict: str
    sentence: str
    provenance: dict[str, Any]
    fixed: Image
    moved: Image
    example: object = None

    @property
    def volume(self) -> Any:
        """The error in mm: SimpleITK, array or `Image`, as the fixed image was given."""
        return like(self.error, self.example)

    def __str__(self) -> str:
        rows = [
            ("Error, mean", f"{self.figures['mean_mm']:.2f} mm"),
            ("Error, median", f"{self.figures['median_mm']:.2f} mm"),
            ("Error, 95 %", f"{self.figures['p95_mm']:.2f} mm"),
            (f"Above {self.figures['threshold_mm']:g} mm",
             f"{self.figures['share_above_percent']:.1f} %"),
        ]  # fmt: skip
        lines = [f"{self.verdict.upper()}: {self.sentence}"]
        return "\n".join([*lines, *(f"{name:<16}{value}" for name, value in rows)]) + "\n"

    def report(self) -> dict[str, Any]:
        """Returns what a report file holds."""
        return {
            "verdict": self.verdict, "sentence": self.sentence, **self.figures,
            "histogram": self.histogram, "provenance": self.provenance,
        }  # fmt: skip

    def picture(self) -> bytes:
        """Returns the picture of the check, a PNG file; see `pictures.error.error_picture`."""
        from .pictures.error import error_picture

        return error_picture(
            self.fixed.numpy(), self.moved.numpy(), self.fixed.grid, self.error.numpy(),
            self.histogram["shares"], self.histogram["edges_mm"], self.figures["threshold_mm"],
            self.figures["share_above_percent"],
        )  # fmt: skip

    def save(
        self,
        volume: PathLike | None = None,
        report: PathLike | None = None,
        picture: PathLike | None = None,
    ) -> None:
        """Writes results; either all that are asked for or none.

        Args:
            volume: Error in mm, such as ``.nrrd`` or ``.nii.gz``.
            report: Figures, histogram and provenance as ``.json``.
            picture: The picture, ``.png``.

        Raises:
            FileFormatError: If one of them cannot be written.
        """
        check_files(volume, report, picture)
        writers: list[Any] = []
        if volume is not None:
            writers.append((volume, lambda path: write_image(self.error, path)))
        if report is not None:
            writers.append((report, json_writer(self.report())))
        if picture is not None:
            content = self.picture()
            writers.append((picture, lambda path: path.write_bytes(content)))
        write_together(writers)


def check_registration(
    fixed: ImageLike,
    moving: ImageLike,
    transform: TransformLike | None = None,
    *,
    fixed_mask: ImageLike | None = None,
    model: str = "",
    step: int = 2,
    threshold_mm: float = THRESHOLD_MM,
    device: str = "auto",
    progress: Progress | None = None,
) -> Checked:
    """Estimates how far a registration is off, at every voxel of the fixed image.

    The transform may come from anywhere: it is applied to the moving image on the grid of a model
    that was trained with ``train --algorithm error_map``, and the model looks at both images.

    Args:
        fixed: Image that stays; see `api.register` for what images may be.
        moving: Image as it was before the registration.
        transform: Fixed to moving: file, SimpleITK transform, 4 x 4 matrix or `Transform`. None
            checks the images as they lie.
        fixed_mask: Where errors count; the object of the fixed image if omitted.
        model: Trained model, by name or file; empty takes the newest.
        step: Voxels of the model between places that are judged, 1, 2 or 4.
        threshold_mm: Errors above are too large.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: Takes the reports.

    Returns:
        The error, its histogram and figures, and a verdict.

    Raises:
        DeepRegError: If something does not fit; the message says what to do.

    Example:
        >>> found = check_registration("ct.nrrd", "mr.nrrd", "mr_to_ct.h5")  # doctest: +SKIP
        >>> print(found)  # doctest: +SKIP
    """
    if not 0.0 < threshold_mm < 1e3:
        raise ParameterError(f"The threshold is a length above 0 mm, not {threshold_mm:g}.")
    progress = progress or Progress()
    progress.stage(KEY, 0.0, 1.0)
    pair, given = _pair(fixed, moving, transform, fixed_mask)
    progress.update(_READ)
    system = registry.create(KEY, model=model, step=step)
    assert isinstance(system, LearnedRegistration)
    chosen, _ = pipeline.choose_device(device)
    card, error = _estimated(system, pair.to(chosen), progress)
    progress.update(_ESTIMATED)
    judged, inside = _judged(pair, given)
    where = "object" if fixed_mask is None else "mask"
    values = error.data[judged].double().numpy()
    if not values.size:
        raise InputError(
            f"No part of the {where} of the fixed image falls inside the moving image, so there is "
            "nothing to judge; check the transform and its direction (fixed to moving)."
        )
    largest = float(card.parameters["largest_mm"])
    figures = _figures(values, threshold_mm, largest, inside)
    verdict, sentence = _verdict(figures, card, where)
    moved = warp_image(pair.moving, given, pair.fixed.grid)
    return Checked(
        _judged_only(error, judged, largest), figures,
        _histogram(values, largest), verdict, sentence, _provenance(card, system, chosen),
        pair.fixed, moved, fixed,
    )  # fmt: skip


def check_files(
    volume: PathLike | None, report: PathLike | None, picture: PathLike | None, *inputs: PathLike
) -> None:
    """Makes sure that results can be written, before anything is computed.

    Raises:
        FileFormatError: If one cannot, or would replace an input.
    """
    kinds = [(path, kind) for path, kind in ((volume, "image"), (report, "json"))
             if path is not None]  # fmt: skip
    check_outputs(kinds, inputs)
    if picture is not None and suffix_of(picture) != ".png":
        raise FileFormatError(f"The picture is a .png file, not '{Path(picture).name}'.")


def files_beside(volume: PathLike) -> tuple[Path, Path]:
    """Returns the names of report and picture that belong to an error volume."""
    path = Path(volume)
    stem = path.name
    for suffix in IMAGE_SUFFIXES:
        if stem.lower().endswith(suffix):
            stem = stem[: -len(suffix)]
            break
    return path.with_name(f"{stem}.json"), path.with_name(f"{stem}.png")


def _pair(
    fixed: ImageLike,
    moving: ImageLike,
    transform: TransformLike | None,
    fixed_mask: ImageLike | None,
) -> tuple[ImagePair, Transform]:
    """Returns the images as a pair whose start is the transform that is checked."""
    one, other = as_image(fixed, "fixed image"), as_image(moving, "moving image")
    given = Transform() if transform is None else as_transform(transform, one.grid)
    mask = None if fixed_mask is None else as_labels(fixed_mask, "fixed mask", one.grid)
    return ImagePair(one, other, mask, initial=given), given


def _estimated(
    system: LearnedRegistration, pair: ImagePair, progress: Progress
) -> tuple[ModelCard, Image]:
    """Returns the card of the model and what it says, on the fixed grid, on the CPU."""
    file = find_model(KEY, str(system.values["model"]))
    trained, network = system.trained(file)
    card = file.card
    assert card is not None
    progress.message(f"The model is '{file.name}'.")
    frame = ModelFrame(card.spacing_mm, card.shape)
    # The mask tells where errors count; the network sees all of both images.
    seen = ImagePair(pair.fixed, pair.moving, initial=pair.initial)
    with torch.no_grad():
        view = see(seen, frame, trained.multiple)
        progress.update(_SEEN)
        said = trained.predict(
            network.to(pair.device).eval(), view.batch.fixed, view.batch.moving, frame.spacing_mm
        )
        error = placed(said, view.grid, seen).extras[MAP]
    return card, error.to("cpu")


def _judged(pair: ImagePair, given: Transform) -> tuple[Tensor, float]:
    """Returns where the fixed image shows something that lies in the moving one, and its share."""
    grid = pair.fixed.grid
    region = object_region(pair.fixed)
    mask = mask_on_grid(pair.fixed_mask, grid, pair.device)
    if mask is not None:
        region = mask > 0
        if not bool(region.any()):
            raise InputError(
                "The mask holds no voxel of the fixed image; leave it out, or draw it."
            )
    if not bool(region.any()):
        region = torch.ones_like(region)
    where = given.moving_coordinates(grid, pair.moving.grid)
    inside = inside_image(where, pair.moving.grid.shape) & region
    return inside, 100.0 * float(inside.sum()) / float(region.sum())


def _judged_only(error: Image, judged: Tensor, largest_mm: float) -> Image:
    """Returns the errors of the voxels that were judged, and 0 at the others."""
    values = error.data.clamp(min=LEAST * largest_mm)
    return Image(torch.where(judged, values, torch.zeros_like(values)), error.grid)


def _figures(
    values: NDArray[np.float64], threshold_mm: float, largest_mm: float, inside_percent: float
) -> dict[str, float]:
    return {
        "mean_mm": float(values.mean()),
        "median_mm": float(np.median(values)),
        "p95_mm": float(np.percentile(values, 95)),
        "share_above_percent": 100.0 * float((values > threshold_mm).mean()),
        "threshold_mm": float(threshold_mm),
        "largest_mm": largest_mm,
        "judged_voxels": float(values.size),
        "inside_percent": inside_percent,
    }


def _histogram(values: NDArray[np.float64], largest_mm: float) -> dict[str, list[float]]:
    edges = np.linspace(0.0, largest_mm, BINS + 1)
    counts, _ = np.histogram(np.clip(values, 0.0, largest_mm), edges)
    return {"edges_mm": edges.tolist(), "shares": (counts / values.size).tolist()}


def _verdict(figures: dict[str, float], card: ModelCard, where: str) -> tuple[str, str]:
    """Returns a color and a sentence with what speaks for it."""
    share, threshold = figures["share_above_percent"], figures["threshold_mm"]
    told = (
        f"the estimated error is {figures['mean_mm']:.1f} mm in the mean, and above {threshold:g} "
        f"mm in {share:.0f} % of the {where}"
    )
    if figures["inside_percent"] < LEAST_INSIDE_PERCENT:
        return "red", (
            f"Only {figures['inside_percent']:.0f} % of the fixed {where} falls inside the moving "
            "image: the transform, or its direction, does not belong to these images."
        )
    own = card.figures.get("rmse_mm")
    known = "" if own is None else f" (the estimate itself is off by about {own:.1f} mm)"
    if share <= GREEN_PERCENT:
        return "green", f"The images are aligned: {told}{known}."
    if share <= AMBER_PERCENT:
        return "amber", f"The images are aligned but for some places, look at them: {told}{known}."
    return "red", f"The images are not aligned: {told}{known}; register again, or start elsewhere."


def _provenance(
    card: ModelCard, system: LearnedRegistration, device: torch.device
) -> dict[str, Any]:
    return {
        "algorithm": KEY,
        "model": {"name": card.name, "anatomy": card.anatomy, "contrast": card.contrast,
                  "data": card.data, "terms": card.terms, "figures": dict(card.figures)},
        "network_spacing_mm": card.spacing_mm,
        "step": system.values["step"],
        "device": pipeline.device_name(device),
        "versions": pipeline.versions(),
    }  # fmt: skip
