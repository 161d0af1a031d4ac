"""The library as Python sees it: register, warp, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from . import pipeline, registry
from .errors import InputError
from .geometry.grid import Grid
from .geometry.transform import Transform
from .inputs import (
    ImageLike,
    PointsLike,
    TransformLike,
    as_either,
    as_image,
    as_labels,
    as_points,
    as_transform,
    like,
    make_pair,
    paired_points,
)
from .io.files import PathLike
from .io.images import write_image
from .io.itk_transform import write_transform
from .io.landmarks import Landmarks
from .metrics.report import card_text
from .operations import carry_points_ras, choose_interpolation, measure, warp_image
from .outputs import Writer, check_outputs, json_writer, write_together
from .registration.base import Event, ImagePair, Progress, Result
from .spec import AlgorithmSpec

#: None, True for a bar in the terminal, a function that gets each event, or a `Progress`.
ProgressLike = Union[None, bool, Callable[[Event], None], Progress]


@dataclass(frozen=True, eq=False)
class Registered:
    """A finished registration.

    Args:
        result: Everything that came out, in the library's own types.
        pair: What was registered.
        example: The moving image as it was given, for the type of `moved`.
    """

    result: Result
    pair: ImagePair
    example: object = field(default=None, repr=False)

    @property
    def moved(self) -> Any:
        """Moving image on the fixed grid: SimpleITK, array or `Image`, as the moving one was."""
        assert self.result.moved is not None
        return like(self.result.moved, self.example)

    @property
    def transform(self) -> Transform:
        """Maps fixed to moving points, RAS mm: images are pulled back through it."""
        return self.result.transform

    @property
    def inverse(self) -> Transform:
        """Maps moving to fixed points, RAS mm."""
        assert self.result.inverse is not None
        return self.result.inverse

    @property
    def quality(self) -> dict[str, Any]:
        """The quality card; see `metrics.report.quality_card`."""
        return self.result.quality

    @property
    def provenance(self) -> dict[str, Any]:
        """How the result was made; ``provenance["python"]`` repeats it."""
        return self.result.provenance

    def __str__(self) -> str:
        return card_text(self.quality)

    def save(
        self,
        output_image: PathLike | None = None,
        output_transform: PathLike | None = None,
        output_inverse: PathLike | None = None,
        report: PathLike | None = None,
    ) -> None:
        """Writes results; either all that are asked for or none.

        Args:
            output_image: Moved image, such as ``.nrrd`` or ``.nii.gz``.
            output_transform: ``.h5``, for linear ones also ``.tfm``, or a displacement image.
            output_inverse: The inverse, likewise.
            report: Quality card, provenance and history as ``.json``.

        Raises:
            FileFormatError: If one of them cannot be written.
        """
        fixed, moving = self.pair.fixed.grid, self.pair.moving.grid
        moved, transform, inverse = self.result.moved, self.transform, self.inverse
        assert moved is not None
        kinds = output_kinds(output_image, output_transform, output_inverse, report,
                             deformable=not transform.is_linear)  # fmt: skip
        check_outputs(kinds)
        writers: list[Writer] = []
        if output_image is not None:
            writers.append((output_image, lambda p: write_image(moved, p)))
        if output_transform is not None:
            writers.append((output_transform, lambda p: write_transform(transform, p, fixed)))
        if output_inverse is not None:
            writers.append((output_inverse, lambda p: write_transform(inverse, p, moving)))
        if report is not None:
            writers.append((report, json_writer(pipeline.report(self.result))))
        write_together(writers)


def register(
    fixed: ImageLike,
    moving: ImageLike,
    algorithm: str = "greedy",
    *,
    preset: str = "balanced",
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    fixed_labels: ImageLike | None = None,
    moving_labels: ImageLike | None = None,
    fixed_landmarks: PointsLike | None = None,
    moving_landmarks: PointsLike | None = None,
    initial_transform: TransformLike | None = None,
    device: str = "auto",
    progress: ProgressLike = None,
    interpolation: str = "linear",
    fill: float | None = None,
    **settings: object,
) -> Registered:
    """Brings a moving image onto a fixed one.

    Images are files, folders with a DICOM series, SimpleITK images, arrays with a grid ``(array,
    Grid)``, arrays of 1 mm voxels, or `Image`. Masks and label maps likewise; a bare array lies on
    the grid of its image.

    Args:
        fixed: Image that stays.
        moving: Image that is moved.
        algorithm: Keys joined by ``+``; a deformable one alone runs its linear stages first.
        preset: ``fast``, ``balanced`` or ``accurate``.
        fixed_mask: Where the fixed image counts; one mask alone is fine.
        moving_mask: Where the moving image counts.
        fixed_labels: Label map of the fixed image, for the quality card.
        moving_labels: Label map of the moving image.
        fixed_landmarks: File, `Landmarks`, or points (N, 3) in RAS mm.
        moving_landmarks: The corresponding points.
        initial_transform: Where to start: file, SimpleITK transform, 4 x 4 matrix (fixed to
            moving, RAS mm) or `Transform`.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: True for a bar in the terminal, or a function that gets each `Event`.
        interpolation: Of the moved image: ``linear``, ``bspline`` or ``nearest``.
        fill: Value of the moved image where the moving image has no voxel; by default the low end
            of its values.
        **settings: Parameters of the algorithm, by name or ``key.name`` for one stage.

    Returns:
        The moved image, the transform, its inverse, and how good they are.

    Raises:
        DeepRegError: If something does not fit; the message says what to do.

    Example:
        >>> result = register("ct.nrrd", "mr.nrrd", "rigid")  # doctest: +SKIP
        >>> print(result)  # doctest: +SKIP
    """
    given = {
        "fixed": fixed, "moving": moving, "fixed_mask": fixed_mask, "moving_mask": moving_mask,
        "fixed_labels": fixed_labels, "moving_labels": moving_labels,
        "fixed_landmarks": fixed_landmarks, "moving_landmarks": moving_landmarks,
        "initial_transform": initial_transform,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    pair = make_pair(**given)  # type: ignore[arg-type]
    with _progress(progress) as events:
        result = pipeline.run(
            pair, algorithm, preset, settings, device, events,
            interpolation=interpolation, fill=fill, names=_names(given),  # type: ignore[arg-type]
        )  # fmt: skip
    return Registered(result, pair, moving)


def warp(
    moving: ImageLike,
    transform: TransformLike,
    fixed: ImageLike | Grid,
    interpolation: str | None = None,
    fill: float | None = None,
) -> Any:
    """Resamples an image or label map of the moving space on the fixed grid.

    Args:
        moving: Image or label map.
        transform: Fixed to moving.
        fixed: Image that gives the grid, or the grid.
        interpolation: ``linear``, ``nearest`` or ``bspline``. By default ``nearest`` for label maps
            (few whole numbers in patches of one value) and ``linear`` for other images.
        fill: Value where the moving image has no voxel.

    Returns:
        The moved image in the type of `moving` (an `Image` for files).
    """
    grid = fixed if isinstance(fixed, Grid) else as_image(fixed, "fixed image").grid
    image = as_either(moving)
    chosen = choose_interpolation(interpolation, image.data)
    if chosen != "nearest":
        image = as_image(moving, "moving image")
    moved = warp_image(image, as_transform(transform, grid), grid, chosen, fill)
    return like(moved, moving)


def warp_points(moving: PointsLike, transform: TransformLike, fixed: Grid | None = None) -> Any:
    """Carries landmarks of the moving image to where the moved image shows them.

    Args:
        moving: Landmarks of the moving space.
        transform: Fixed to moving, the same that moves the image; it is inverted at each point.
        fixed: Grid of the fixed image, needed for B-splines.

    Returns:
        `Landmarks` of the fixed space, or an array if an array was given.
    """
    points = as_points(moving, "landmarks")
    carried = carry_points_ras(as_transform(transform, fixed), points.points_ras)
    if isinstance(moving, (str, Path, Landmarks)):
        return Landmarks(carried, points.labels, points.source)
    return carried


def evaluate(
    fixed_labels: ImageLike | None = None,
    moved_labels: ImageLike | None = None,
    fixed_landmarks: PointsLike | None = None,
    moving_landmarks: PointsLike | None = None,
    transform: TransformLike | None = None,
    inverse: TransformLike | None = None,
    reference: ImageLike | Grid | None = None,
) -> dict[str, Any]:
    """Measures a registration from whatever is given; see `operations.measure` for the figures.

    Args:
        fixed_labels: Label map of the fixed image.
        moved_labels: Label map of the moving image, already on the fixed grid.
        fixed_landmarks: Landmarks of the fixed image.
        moving_landmarks: Landmarks of the moving image, as they were before.
        transform: Fixed to moving.
        inverse: Moving to fixed; computed from the transform if omitted.
        reference: Fixed image, on whose grid B-spline transforms are evaluated.
    """
    grid = reference if isinstance(reference, Grid) else None
    if reference is not None and not isinstance(reference, Grid):
        grid = as_image(reference, "reference").grid
    points = paired_points(fixed_landmarks, moving_landmarks)
    return measure(
        None if fixed_labels is None else as_labels(fixed_labels, "fixed label map"),
        None if moved_labels is None else as_labels(moved_labels, "moved label map"),
        *points,
        None if transform is None else as_transform(transform, grid),
        None if inverse is None else as_transform(inverse, grid),
    )


def list_algorithms() -> dict[str, AlgorithmSpec]:
    """Returns the descriptions of all algorithms by key."""
    return dict(registry.specs())


def output_kinds(
    output_image: PathLike | None,
    output_transform: PathLike | None,
    output_inverse: PathLike | None,
    report: PathLike | None,
    deformable: bool,
) -> list[tuple[PathLike, str]]:
    """Returns the files that are asked for with what they hold, for `outputs.check_outputs`."""
    transform = "deformable" if deformable else "linear"
    wanted = [(output_image, "image"), (output_transform, transform),
              (output_inverse, transform), (report, "json")]  # fmt: skip
    return [(path, kind) for path, kind in wanted if path is not None]


@contextmanager
def _progress(wanted: ProgressLike) -> Iterator[Progress]:
    if isinstance(wanted, Progress):
        yield wanted
    elif wanted is True:
        from .bar import bar

        with bar() as listener:
            yield Progress(listener)
    else:
        if wanted not in (None, False) and not callable(wanted):
            raise InputError("progress takes None, True, a function, or a Progress.")
        yield Progress(wanted or None)


def _names(given: Mapping[str, object]) -> dict[str, str]:
    """Returns each input as Python text: files by their name, others by that of the argument."""
    return {
        name: repr(str(value)) if isinstance(value, (str, Path)) else name
        for name, value in given.items()
    }
