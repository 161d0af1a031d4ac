"""What a registration to raw data knows of a pair: samples, and the image to be bent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.grid import Grid, invert_matrix
from ..geometry.inverse import invert
from ..geometry.transform import Transform
from .base import Image, ImagePair
from .kspace import smooth_phase, whole_center
from .model_frame import onto_frame
from .preprocess import mask_on_grid, quantiles, rescale_intensity, subsample
from .raw_data import RawData

#: Quantile of a moving volume that counts as no signal.
_NOTHING = 0.001


@dataclass(frozen=True, eq=False)
class Scan:
    """The raw data of the moving side, beside the fixed image as the start shows it there.

    Convention:
        Tensors are (1, 1, *raw.grid.shape), on one device.

    Args:
        raw: The samples.
        reference: Fixed image on the grid of the scan, 0 where it has no voxel.
        inside: Weight of what the scan shows; everything counts if None.
        phase: Phase of the scan as unit numbers; none for magnitude images.
        floor: Intensity without signal, added to what is reconstructed.
        origin: Where the samples come from, for the provenance.
    """

    raw: RawData
    reference: Tensor
    inside: Tensor | None = None
    phase: Tensor | None = None
    floor: float = 0.0
    origin: str = "simulated"

    @property
    def device(self) -> torch.device:
        """Device that everything is on."""
        return self.raw.samples.device


def simulated_scan(pair: ImagePair, mask: Tensor) -> Scan:
    """Returns the scan that a moving volume stands for.

    What a mask leaves out is taken out of the volume before its samples are made. One mask alone
    holds for both images.

    Args:
        pair: The images.
        mask: What is sampled, (1, 1, *moving.grid.shape), bool; see `kspace.cartesian_mask`.
    """
    moving, grid = pair.moving, pair.moving.grid
    data = moving.data[:, :1].float()
    floor = float(quantiles(subsample(data), [_NOTHING])[0])
    inside = mask_on_grid(pair.moving_mask, grid, pair.device)
    if inside is None and pair.fixed_mask is not None:
        shown = (pair.fixed_mask.data[:, :1] > 0).float().to(pair.device)
        back = _from_scan(pair, grid)
        inside = (back.warp(shown, pair.fixed_mask.grid, grid) >= 0.5).float()
    values = data - floor if inside is None else (data - floor) * inside
    raw = RawData.simulated(Image(values, grid), mask)
    return Scan(raw, _reference(pair, grid), inside, floor=floor)


def measured_scan(pair: ImagePair, raw: RawData, origin: str) -> Scan:
    """Returns the scan of raw data from a scanner.

    Args:
        pair: The images; the moving one tells where the scan lies.
        raw: Its raw data.
        origin: Where it comes from.

    Raises:
        InputError: If there are not as many samples as the moving volume has voxels.
    """
    if raw.grid.shape != pair.moving.grid.shape:
        raise InputError(
            f"The raw data has {' x '.join(map(str, raw.grid.shape))} samples, but the moving "
            f"volume {' x '.join(map(str, pair.moving.grid.shape))} voxels; the moving volume is "
            "the one that the scanner made of these data."
        )
    raw = RawData(raw.samples, raw.mask, pair.moving.grid).to(pair.device)
    phase = smooth_phase(raw.samples, whole_center(raw.mask))
    return Scan(raw, _reference(pair, raw.grid), phase=phase, origin=origin)


def _reference(pair: ImagePair, grid: Grid) -> Tensor:
    """Returns the fixed image as the start shows it on a grid of the moving space, 0 to 1."""
    fixed = pair.fixed
    mask = mask_on_grid(pair.fixed_mask, fixed.grid, pair.device)
    data = rescale_intensity(fixed.data[:, :1], mask)
    if mask is not None:
        data = data * mask
    return onto_frame(data, fixed.grid, grid, _from_scan(pair, grid))


def _from_scan(pair: ImagePair, grid: Grid) -> Transform:
    """Returns the start backwards, from the scan to the fixed image."""
    start = pair.initial or Transform()
    if start.field is None:
        return Transform(invert_matrix(start.linear))
    return invert(start, grid)[0]
