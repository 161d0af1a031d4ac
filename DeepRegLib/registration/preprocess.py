"""Intensities, foreground and resolution levels, before any registration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..geometry.grid import Grid
from ..geometry.sampling import (
    apply_matrix,
    gaussian_smooth,
    interpolation_variance,
    resize_image,
    sample,
    voxel_coordinates,
)
from .base import Image

#: Voxels that percentiles are estimated from.
_MOST_SAMPLES = 500_000


def subsample(values: Tensor, most: int = _MOST_SAMPLES) -> Tensor:
    """Returns every n-th element of a flat tensor, at most `most` of them."""
    flat = values.reshape(-1)
    return flat[:: max(1, flat.numel() // most)]


def quantiles(values: Tensor, levels: Sequence[float]) -> Tensor:
    """Returns quantiles of all elements of a tensor, interpolated linearly, float32 on its device.

    The numbers are those of `torch.quantile`; on a CPU they are found without sorting, several
    times as fast.
    """
    flat = values.detach().float().reshape(-1)
    wanted = torch.tensor(levels, device=flat.device)
    if flat.device.type != "cpu":
        return torch.quantile(flat, wanted)
    place = wanted * (flat.numel() - 1)
    ends = [place.floor().long(), place.ceil().long()]
    ordered = torch.from_numpy(np.partition(flat.numpy(), torch.cat(ends).unique().numpy()))
    low, high = (ordered[end] for end in ends)
    return low.lerp(high, place - ends[0])


def rescale_intensity(
    image: Tensor, mask: Tensor | None = None, low: float = 0.001, high: float = 0.999
) -> Tensor:
    """Maps the range between two quantiles to 0 ... 1 and cuts off what lies beyond.

    Args:
        image: (1, C, D, H, W).
        mask: (1, 1, D, H, W); quantiles are taken where it is positive.
        low: Lower quantile.
        high: Upper quantile.

    Returns:
        float32 image of the same shape; a constant channel becomes zero.
    """
    channels = []
    for channel in image.float().split(1, dim=1):
        values = channel if mask is None else channel[mask > 0.5]
        values = subsample(values)
        ends = quantiles(values, (low, high))
        if ends[1] <= ends[0]:
            # Sparse images (few bright voxels on a constant ground) have equal quantiles.
            ends = torch.stack([values.min(), values.max()])
        scale = (ends[1] - ends[0]).clamp(min=1e-12)
        channels.append(((channel - ends[0]) / scale).clamp_(0.0, 1.0))
    return torch.cat(channels, dim=1)


def otsu_threshold(image: Tensor, bins: int = 256) -> float:
    """Threshold between background and foreground (Otsu 1979, doi:10.1109/TSMC.1979.4310076)."""
    values = subsample(image.float())
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return low
    histogram = torch.histc(values, bins, low, high).double().cpu().numpy()
    centers = low + (np.arange(bins) + 0.5) * (high - low) / bins
    below, total = np.cumsum(histogram), histogram.sum()
    mean_below = np.cumsum(histogram * centers)
    weight = below * (total - below)
    # Beyond the last voxel the weight is zero but the difference is a rounding error, not zero.
    difference = mean_below[-1] * below / total - mean_below
    between = np.divide(difference**2, weight, out=np.zeros(bins), where=weight > 0)
    # The best threshold is often a plateau of empty bins; its middle is the safest.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(centers[best].mean())


def foreground(image: Image) -> Tensor:
    """Tells where an image shows an object: above its Otsu threshold, (1, 1, *shape), bool."""
    data = image.data[:, :1].float()
    return data > otsu_threshold(data)


def object_region(image: Image, reach_mm: float = 12.0) -> Tensor:
    """Tells where an image shows an object or what it encloses, (1, 1, *shape), bool.

    The foreground with gaps up to twice `reach_mm` closed, so that dark parts inside (ventricles,
    airways) belong to it; it ends a little outside the object.

    Args:
        image: Image.
        reach_mm: Half the width of the widest gap that is closed.
    """
    shown = foreground(image).float()
    coarse = image.grid.with_spacing([max(s, reach_mm / 3) for s in image.grid.spacing_mm])
    small = torch.nn.functional.adaptive_max_pool3d(shown, coarse.shape)
    reach = [round(reach_mm / s) for s in coarse.spacing_mm]
    window = [2 * r + 1 for r in reach]
    # An object that the edge of the image cuts off grows beyond it, and is not worn away there.
    twice = [2 * r for r in reversed(reach) for _ in range(2)]
    padded = torch.nn.functional.pad(small, twice)
    grown = torch.nn.functional.max_pool3d(padded, window, stride=1)
    kept = 1.0 - torch.nn.functional.max_pool3d(1.0 - grown, window, stride=1)
    return resize_image(kept, image.grid.shape) > 0.3


def mask_on_grid(mask: Image | None, grid: Grid, device: torch.device) -> Tensor | None:
    """Resamples a mask of any grid to another grid, (1, 1, *grid.shape), float 0 or 1."""
    if mask is None:
        return None
    where = voxel_coordinates(grid.shape, device)
    where = apply_matrix(grid.voxel_to_voxel(mask.grid), where)
    binary = (mask.data[:, :1] > 0).float().to(device)
    return (sample(binary, where, padding="fill") >= 0.5).float()


@dataclass(frozen=True, eq=False)
class Level:
    """An image at one resolution."""

    data: Tensor
    grid: Grid


def level_grid(grid: Grid, spacing_mm: float) -> Grid:
    """Returns a coarser grid of the same extent; axes that are already coarser stay as they are."""
    wanted = [max(s, spacing_mm) for s in grid.spacing_mm]
    # A small tolerance keeps an axis as it is instead of resampling it by a few per cent.
    shape = [
        n if w < 1.2 * s else max(1, round(n * s / w))
        for n, s, w in zip(grid.shape, grid.spacing_mm, wanted)
    ]
    return grid.resized(shape)


def make_level(data: Tensor, grid: Grid, spacing_mm: float) -> Level:
    """Smooths and resamples an image to about a spacing."""
    coarse = level_grid(grid, spacing_mm)
    return Level(resize_image(data, coarse.shape), coarse)


def pyramid(data: Tensor, grid: Grid, spacings_mm: Sequence[float]) -> list[Level]:
    """Returns an image at several spacings, each made from the next finer one.

    Each level is smoothed as much as `make_level` does at once, at a fraction of the cost.

    Args:
        data: (1, C, *grid.shape).
        grid: Its grid.
        spacings_mm: In any order.
    """
    levels: dict[float, Level] = {}
    finer = Level(data, grid)
    blur = np.zeros(3)
    for spacing in sorted(set(spacings_mm)):
        wanted = level_grid(grid, spacing)
        sigmas, blur = _smoothing_between(grid.shape, finer.grid.shape, wanted.shape, blur)
        smooth = gaussian_smooth(finer.data, sigmas)
        finer = Level(resize_image(smooth, wanted.shape, antialias=False), wanted)
        levels[spacing] = finer
    return [levels[spacing] for spacing in spacings_mm]


def _smoothing_between(
    whole: Sequence[int], finer: Sequence[int], coarser: Sequence[int], blur: NDArray
) -> tuple[list[float], NDArray]:
    """Returns what smooths one level for the next, and the blur of that next level.

    The interpolation smooths as well, and does so once more at every level; the Gaussians are
    narrower by so much.

    Args:
        whole: Shape of the image.
        finer: Shape of the level.
        coarser: Shape of the next level.
        blur: Variance of all that smoothed the level, for each axis in voxels of the image.

    Returns:
        Standard deviation of the Gaussian for each axis, voxels of the level; the new blur.
    """
    sigmas, total = [], []
    for axis, done in enumerate(blur):
        old, new, size = finer[axis], coarser[axis], whole[axis]
        voxel = size / old
        wanted = 0.25 * ((size / new) ** 2 - 1.0) + interpolation_variance(size, new)
        once_more = interpolation_variance(old, new)
        variance = max((wanted - done) / voxel**2 - once_more, 0.0)
        sigmas.append(variance**0.5)
        total.append(done + (variance + once_more) * voxel**2)
    return sigmas, np.array(total)
