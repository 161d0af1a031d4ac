"""Registration of raw data from a scanner, and raw data that is simulated."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .api import ProgressLike, Registered, register
from .errors import InputError
from .geometry.grid import Grid
from .inputs import ImageLike, TransformLike, as_image
from .io.files import PathLike
from .registration.base import Image
from .registration.kspace import cartesian_mask
from .registration.raw_data import RawData, read_raw, write_raw

_KEY = "raw_domain"
#: Names of the images that come with a registration to raw data.
RECONSTRUCTION, ZERO_FILLED = "moving_reconstruction", "moving_zero_filled"


@dataclass(frozen=True, eq=False)
class RegisteredRaw:
    """A finished registration to raw data.

    Args:
        registered: Transform, inverse and quality card, as of any registration; its moved image is
            the zero-filled one.
        reconstruction: Motion-compensated image on the grid of the scan.
        zero_filled: Image with zeros in place of the samples that are missing.
    """

    registered: Registered
    reconstruction: Image
    zero_filled: Image


def register_raw(
    fixed: ImageLike,
    raw: PathLike | NDArray | RawData,
    grid: Grid | ImageLike | None = None,
    *,
    mask: NDArray | None = None,
    stages: str = "rigid+affine+raw_domain",
    preset: str = "balanced",
    initial_transform: TransformLike | None = None,
    device: str = "auto",
    progress: ProgressLike = None,
    **settings: object,
) -> RegisteredRaw:
    """Registers under-sampled Cartesian k-space to a fixed image of the same contrast.

    The linear stages look at the zero-filled image, the last one at the samples alone.

    Args:
        fixed: Image that stays; see `api.register`.
        raw: File of numpy, complex array (grid.shape, frequency zero in the middle), or `RawData`.
        grid: Where the scan lies: a grid, or an image on it. That of the file, or of `RawData`, if
            omitted.
        mask: Which samples of an array were taken; those that are not zero if omitted.
        stages: Algorithms, the last one ``raw_domain``; ``+raw_domain`` leaves out the linear ones.
        preset: ``fast``, ``balanced`` or ``accurate``.
        initial_transform: Where to start, fixed to moving.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: See `api.register`.
        **settings: Parameters, such as ``smoothness``, or ``rigid.samples`` for another
            stage.

    Raises:
        DeepRegError: If something does not fit; the message says what to do.
    """
    if stages.split("+")[-1].strip() != _KEY:
        raise InputError(f"The last of the stages '{stages}' has to be '{_KEY}'.")
    data = as_raw(raw, grid, mask)
    zero_filled = data.zero_filled()
    with tempfile.TemporaryDirectory(prefix="deepreg-") as folder:
        path = Path(folder) / "scan.npz"
        write_raw(data, path)
        # Those without a stage are meant for this one, not for the linear ones.
        own = {name if "." in name else f"{_KEY}.{name}": value for name, value in settings.items()}
        given: dict[str, Any] = {f"{_KEY}.raw": str(path), **own}
        if initial_transform is not None:
            given["initial_transform"] = initial_transform
        found = register(
            fixed, zero_filled, stages, preset=preset, device=device, progress=progress, **given
        )
    extras = found.result.extras
    return RegisteredRaw(found, extras[RECONSTRUCTION], extras[ZERO_FILLED])


def as_raw(
    raw: PathLike | NDArray | RawData,
    grid: Grid | ImageLike | None = None,
    mask: NDArray | None = None,
) -> RawData:
    """Returns raw data from whatever is given; see `register_raw`.

    Raises:
        InputError: If an array comes without a grid, or does not fit it.
        FileFormatError: If a file cannot be read.
    """
    place: Grid | None = grid if isinstance(grid, Grid) else None
    if grid is not None and place is None:
        place = as_image(grid, "image of the scan").grid  # type: ignore[arg-type]
    if isinstance(raw, RawData):
        return raw if place is None else RawData(raw.samples, raw.mask, place)
    if isinstance(raw, (str, Path)):
        return read_raw(raw, place)
    if place is None:
        raise InputError("An array of raw data needs the grid of its image; give 'grid'.")
    return RawData.of_arrays(raw, place, mask)  # type: ignore[arg-type]


def simulate_raw(
    image: ImageLike,
    acceleration: float = 4.0,
    center: float = 0.08,
    pattern: str = "points",
    readout: int | None = None,
    seed: int = 0,
) -> RawData:
    """Returns what an accelerated scan without noise would give of a magnitude image.

    Args:
        image: The image.
        acceleration: All samples over those that are taken.
        center: See `registration.kspace.cartesian_mask`.
        pattern: Likewise.
        readout: Likewise.
        seed: Likewise.

    Raises:
        DeepRegError: If something does not fit; the message says what to do.
    """
    volume = as_image(image, "image")
    mask = cartesian_mask(volume.grid.shape, acceleration, center, pattern, readout, seed)
    return RawData.simulated(volume, mask)
