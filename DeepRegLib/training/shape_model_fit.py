"""Makes a model of shape and appearance from images: an unbiased template, shapes, textures.

All images are registered to a template, which begins as the image that is nearest to their mean.
The velocities that take it to the images are averaged and taken out of it, and so are the
intensities, a few times over: the template becomes the mean of all, in shape and appearance,
whichever image it began with (Guimond et al. 2000, doi:10.1006/cviu.1999.0815; Joshi et al. 2004,
doi:10.1016/j.neuroimage.2004.07.068). Velocities are averaged, so that the mean is one of
deformations that can be inverted (Arsigny et al. 2006, doi:10.1007/11866565_113). They are the
logarithms of the displacements, whatever algorithm finds these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .. import registry
from ..errors import InputError, ParameterError
from ..geometry.field import compose_displacements
from ..geometry.grid import Grid
from ..geometry.sampling import sample, voxel_coordinates
from ..geometry.velocity import exponential, logarithm
from ..io.files import PathLike
from ..networks.blocks import resized_vectors
from ..registration.base import Image, ImagePair, Progress
from ..registration.compose import run_stages, stage_values
from .cache import Cache, key_of
from .shape_model import AnatomyModel

#: Goes into all keys; another one registers everything anew.
_VERSION = 1
#: Least number of images that have statistics.
LEAST = 3
#: Voxels of the images for each voxel of the velocities, along an axis; the engine has as many.
_COARSER = 2


@dataclass(frozen=True)
class ModelSettings:
    """How a model of anatomies is made.

    Args:
        engine: Algorithm that registers, without its linear stages.
        preset: Its preset.
        rounds: How often the template is made anew; all images are registered once more in the end.
        locality_mm: Distances over which shapes vary together, one a scale; 0 is everywhere.
        texture_locality_mm: The same for intensities.
    """

    engine: str = "svf"
    preset: str = "balanced"
    rounds: int = 2
    locality_mm: tuple[float, ...] = (0.0, 60.0, 30.0)
    texture_locality_mm: tuple[float, ...] = (0.0, 30.0)

    def __post_init__(self) -> None:
        if (
            registry.spec(self.engine).transform != "dense"
            or registry.spec(self.engine).needs.training
        ):
            raise ParameterError(
                f"'{self.engine}' cannot register the images of a model; take one that finds a "
                "displacement without training, such as svf or greedy."
            )
        if self.rounds < 0:
            raise ParameterError(f"The template is made anew 0 times or more, not {self.rounds}.")


class FieldMaker:
    """Registers images that lie on one grid, and keeps what it found.

    Args:
        grid: The grid.
        settings: Which algorithm registers.
        folder: Keeps what was found, under a key of all that it depends on.
        progress: Gets messages and the share that is done, and can cancel.
        device: Where to compute.
    """

    def __init__(
        self,
        grid: Grid,
        settings: ModelSettings,
        folder: PathLike,
        progress: Progress,
        device: torch.device | str = "cpu",
    ) -> None:
        self._grid, self._settings, self._progress = grid, settings, progress
        self._cache, self._device = Cache(folder), torch.device(device)
        self._done = 0.0

    @property
    def lattice(self) -> tuple[int, int, int]:
        """Voxels of the fields that are found."""
        a, b, c = (max(1, -(-n // _COARSER)) for n in self._grid.shape)
        return a, b, c

    def displacements(
        self, pairs: Sequence[tuple[Tensor, Tensor]], span: tuple[float, float] = (0.0, 1.0)
    ) -> Tensor:
        """Returns the displacements of pairs of a fixed and a moving image.

        Args:
            pairs: Images (1, 1, *grid.shape).
            span: Part of the whole progress.

        Returns:
            (N, 3, *lattice), in voxels of the lattice.

        Raises:
            Cancelled: If the user cancelled; what was found is kept.
        """
        return self._found("displacement", pairs, span)

    def velocities(
        self, pairs: Sequence[tuple[Tensor, Tensor]], span: tuple[float, float] = (0.0, 1.0)
    ) -> Tensor:
        """Returns the logarithms of `displacements`, whose exponentials can be inverted."""
        return self._found("velocity", pairs, span)

    def _found(
        self, kind: str, pairs: Sequence[tuple[Tensor, Tensor]], span: tuple[float, float]
    ) -> Tensor:
        def report(fraction: float) -> None:
            self._done = span[0] + (span[1] - span[0]) * fraction
            self._progress.update(self._done)

        keys = [self._key(kind, *pair) for pair in pairs]
        self._cache.fill(
            {key: _later(self._make, kind, *pair) for key, pair in zip(keys, pairs)}, report
        )
        found = [self._cache.get(key) for key in keys]
        if any(entry is None for entry in found):
            raise InputError(
                f"What was registered is missing or damaged in '{self._cache.folder}'; try again, "
                "and it is made anew."
            )
        return torch.stack([entry[kind] for entry in found if entry is not None])

    def _make(self, kind: str, fixed: Tensor, moving: Tensor) -> dict[str, Tensor]:
        engine, preset = self._settings.engine, self._settings.preset
        pair = ImagePair(Image(fixed, self._grid), Image(moving, self._grid)).to(self._device)
        # Its events only serve to cancel in the midst of it.
        inner = Progress(lambda event: self._progress.update(self._done))
        result = run_stages(pair, (engine,), stage_values((engine,), preset), inner)
        field = result.transform.field
        if field is None:
            return {kind: torch.zeros(3, *self.lattice)}
        with torch.no_grad():
            displacement = field.on_grid(self._grid).displacement
            vectors = resized_vectors(displacement, self.lattice)
            if kind == "velocity":
                vectors = logarithm(vectors)
        return {kind: vectors[0].float().cpu()}

    def _key(self, kind: str, fixed: Tensor, moving: Tensor) -> str:
        s, spacing = self._settings, [round(v, 6) for v in self._grid.spacing_mm]
        return key_of(_VERSION, kind, s.engine, s.preset, spacing, _digest(fixed), _digest(moving))


def fit_anatomies(
    images: Sequence[Tensor],
    grid: Grid,
    settings: ModelSettings | None = None,
    folder: PathLike = "prepared",
    progress: Progress | None = None,
    *,
    labels: Sequence[Tensor | None] = (),
    names: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> AnatomyModel:
    """Makes a model from images that are aligned with each other, such as those of a `PreparedSet`.

    Args:
        images: (1, 1, *grid.shape), 0 to 1.
        grid: Their grid.
        settings: See `ModelSettings`.
        folder: Keeps the registrations; a second call with the same images reads them.
        progress: Gets events, and can cancel.
        labels: Their label maps, (1, 1, *grid.shape); the template gets one if all images have.
        names: Who they are.
        device: Where to register.

    Raises:
        InputError: If there are fewer than three images, or they do not lie on the grid.
        Cancelled: If the user cancelled; registrations that are done are kept.
    """
    settings, progress = settings or ModelSettings(), progress or Progress()
    if len(images) < LEAST:
        raise InputError(
            f"A model of anatomies needs at least {LEAST} images, and eight or more to be of use, "
            f"but there are {len(images)}; add images."
        )
    if any(tuple(image.shape) != (1, 1, *grid.shape) for image in images):
        raise InputError(f"The images of a model all lie on its grid, {grid}.")
    maker = FieldMaker(grid, settings, folder, progress, device)
    with torch.no_grad():
        velocities = _to_template(images, maker, settings.rounds, progress)
        textures = _on_template(images, velocities, grid)
        regions = _common_labels(labels, velocities, grid)
    about = {"names": list(names), **_plain(settings), "labels": regions is not None}
    progress.update(1.0)
    return AnatomyModel(
        grid, velocities, textures, regions, settings.locality_mm, settings.texture_locality_mm,
        about,
    )  # fmt: skip


def _to_template(
    images: Sequence[Tensor], maker: FieldMaker, rounds: int, progress: Progress
) -> Tensor:
    """Registers all images to their mean, made `rounds` times anew, (n, 3, *lattice)."""
    shape = images[0].shape[2:]
    template = images[_nearest_to_mean(images)]
    velocities = torch.zeros(0)
    for number in range(rounds + 1):
        progress.message(
            f"Model of anatomies: registering {len(images)} images to the template, "
            f"{number + 1} of {rounds + 1}."
        )
        span = (number / (rounds + 1), (number + 1) / (rounds + 1))
        velocities = maker.velocities([(template, image) for image in images], span)
        if number == rounds:
            break
        # A point x of the new template is at exp(-mean)(x) in the old one, and from there in image
        # i at exp(v_i): so the new one lies in the middle of all.
        to_old = exponential(-velocities.mean(dim=0, keepdim=True))
        total = torch.zeros_like(template)
        for image, velocity in zip(images, velocities):
            there = compose_displacements(exponential(velocity[None]), to_old)
            total += _warped(image, resized_vectors(there, shape))
        template = total / len(images)
    return velocities


def _on_template(images: Sequence[Tensor], velocities: Tensor, grid: Grid) -> Tensor:
    """Returns the images in the shape of the template, (n, 1, *shape)."""
    return torch.cat([
        _warped(image, resized_vectors(exponential(velocity[None]), grid.shape))
        for image, velocity in zip(images, velocities)
    ])  # fmt: skip


def _common_labels(
    labels: Sequence[Tensor | None], velocities: Tensor, grid: Grid
) -> Tensor | None:
    """Returns for each voxel of the template the label that most images have there."""
    known = [item for item in labels if item is not None]
    if len(known) != len(velocities):
        return None
    moved = []
    for region, velocity in zip(known, velocities):
        u = resized_vectors(exponential(velocity[None]), grid.shape)
        where = voxel_coordinates(grid.shape) + u
        moved.append(sample(region, where, "nearest", padding="fill"))
    return torch.cat(moved).to(torch.int64).mode(dim=0, keepdim=True).values


def _warped(image: Tensor, displacement: Tensor) -> Tensor:
    """Returns an image through a displacement, by splines: samples are resampled once more."""
    where = voxel_coordinates(displacement.shape[2:]) + displacement
    return sample(image, where, "bspline", padding="fill").clamp_(0.0, 1.0)


def _nearest_to_mean(images: Sequence[Tensor]) -> int:
    mean = torch.cat(list(images)).mean(dim=0, keepdim=True)
    return int(torch.stack([(image - mean).square().mean() for image in images]).argmin())


def _plain(settings: ModelSettings) -> dict[str, object]:
    """How a model was made, but for the scales, which its file tells elsewhere."""
    return {k: v for k, v in asdict(settings).items() if not k.endswith("locality_mm")}


def _digest(image: Tensor) -> str:
    """A short name of the values of an image."""
    values = image.detach().float().cpu().contiguous().numpy()
    return hashlib.sha256(values.tobytes()).hexdigest()[:24]


def _later(
    task: Callable[..., dict[str, Tensor]], *values: object
) -> Callable[..., dict[str, Tensor]]:
    return lambda: task(*values)
