"""The raw data of a scan: samples of k-space, which were taken, and where the image lies."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import FileFormatError, InputError
from ..geometry.grid import Grid
from .base import Image
from .kspace import to_image, to_kspace

#: Names of the arrays in a file.
_SAMPLES, _MASK, _MATRIX = "kspace", "mask", "voxel_to_ras"
#: Suffixes of files.
SUFFIXES = (".npz", ".npy")


@dataclass(frozen=True, eq=False)
class RawData:
    """Under-sampled Cartesian k-space of one volume.

    Convention:
        See `registration.kspace`: centered, orthonormal. `samples` is (1, 1, *grid.shape),
        complex64, zero where nothing was sampled; `mask` the same shape, bool. The tensor axes are
        those of the image, so a readout may run along any of them.

    Args:
        samples: What was measured.
        mask: Where.
        grid: Grid of the image.

    Raises:
        InputError: If the shapes differ, a sample is no number, or there is none.
    """

    samples: Tensor
    mask: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        shape = (1, 1, *self.grid.shape)
        if tuple(self.samples.shape) != shape or tuple(self.mask.shape) != shape:
            raise InputError(
                f"Raw data of {' x '.join(map(str, self.grid.shape))} voxels has as many "
                f"samples, but got {tuple(self.samples.shape[2:])} with a mask of "
                f"{tuple(self.mask.shape[2:])}; give the grid of the scan."
            )
        if not bool(self.mask.any()):
            raise InputError("The raw data has no sample but zeros; give another file.")
        if not bool(torch.isfinite(torch.view_as_real(self.samples)).all()):
            raise InputError("The raw data has samples that are no numbers; read it out again.")

    @property
    def acceleration(self) -> float:
        """All samples over those that were taken."""
        return self.mask.numel() / float(self.mask.sum())

    def to(self, device: torch.device | str) -> RawData:
        """Returns the data on another device."""
        return RawData(self.samples.to(device), self.mask.to(device), self.grid)

    def zero_filled(self) -> Image:
        """Returns the magnitude of the image with zeros where nothing was sampled."""
        return Image(to_image(self.samples).abs(), self.grid)

    @classmethod
    def simulated(cls, image: Image, mask: Tensor) -> RawData:
        """Returns what a scan without noise would give of a magnitude image.

        Args:
            image: The image; its first channel counts.
            mask: What is sampled, (1, 1, *grid.shape), bool; see `kspace.cartesian_mask`.
        """
        mask = mask.to(image.data.device)
        return cls(to_kspace(image.data[:, :1].float()) * mask, mask, image.grid)

    @classmethod
    def of_arrays(
        cls, kspace: NDArray, grid: Grid, mask: NDArray | None = None, centered: bool = True
    ) -> RawData:
        """Makes raw data of arrays.

        Args:
            kspace: Complex samples, grid.shape; multi-coil data has to be combined beforehand.
            grid: Grid of the image.
            mask: Which samples were taken; those that are not zero if omitted.
            centered: Whether frequency zero has the index n // 2, not 0.

        Raises:
            InputError: If an array has another shape or type.
        """
        kspace = np.asarray(kspace)
        if kspace.dtype.kind != "c" or kspace.ndim != 3:
            raise InputError(
                f"Raw data is a complex array of three axes, but got {kspace.ndim} axes of "
                f"{kspace.dtype}; combine coils and choose one frame first."
            )
        taken = kspace != 0 if mask is None else np.asarray(mask) != 0
        taken = np.broadcast_to(taken, kspace.shape) if taken.ndim == 3 else taken
        if not centered:
            kspace, taken = np.fft.fftshift(kspace), np.fft.fftshift(taken)
        samples = torch.from_numpy(np.array(kspace, np.complex64, order="C"))[None, None]
        where = torch.from_numpy(np.array(taken, bool, order="C"))[None, None]
        if where.shape == samples.shape:
            samples = samples * where
        return cls(samples, where, grid)


def read_raw(path: str | Path, grid: Grid | None = None) -> RawData:
    """Reads raw data from a file of numpy.

    An ``.npz`` file holds the array ``kspace`` and, if they are known, ``mask`` and
    ``voxel_to_ras``; an ``.npy`` file the samples alone.

    Args:
        path: The file.
        grid: Grid of the image; that of the file, or voxels of 1 mm, if omitted.

    Raises:
        FileFormatError: If the file is missing, damaged, or of another kind.
        InputError: If its content does not fit.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise FileFormatError(
            f"Raw data is a file of numpy ({' or '.join(SUFFIXES)}), not '{path.name}'; save the "
            "complex array 'kspace' with numpy.savez."
        )
    arrays = _arrays(path)
    if _SAMPLES not in arrays:
        raise FileFormatError(
            f"'{path.name}' has no array '{_SAMPLES}', but {', '.join(arrays) or 'nothing'}."
        )
    kspace = arrays[_SAMPLES]
    if grid is None:
        shape: Any = kspace.shape if kspace.ndim == 3 else (1, 1, 1)
        grid = Grid(shape, arrays.get(_MATRIX, np.eye(4)))
    return RawData.of_arrays(kspace, grid, arrays.get(_MASK))


def write_raw(raw: RawData, path: str | Path) -> None:
    """Writes raw data as ``.npz``, with its mask and its place.

    Raises:
        FileFormatError: If the file cannot be written, or has another suffix.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".npz":
        raise FileFormatError(f"Raw data is written as .npz, not as '{path.name}'.")
    arrays = {
        _SAMPLES: raw.samples[0, 0].cpu().numpy(), _MASK: raw.mask[0, 0].cpu().numpy(),
        _MATRIX: raw.grid.voxel_to_ras,
    }  # fmt: skip
    try:
        with path.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FileFormatError(f"'{path}' cannot be written ({reason}).") from error


def _arrays(path: Path) -> dict[str, NDArray]:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {_SAMPLES: found}
        with found:
            return {name: found[name] for name in found.files}
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FileFormatError(f"The raw data '{path}' cannot be read ({reason}).") from error
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise FileFormatError(
            f"'{path.name}' is damaged, or no file of numpy ({error}); save it again."
        ) from error
