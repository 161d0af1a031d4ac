"""Raw data of magnetic resonance: Cartesian k-space, sampling masks, and images made of them.

Convention:
    K-space is centered: the sample of frequency zero of an axis of n voxels has the index n // 2,
    and so has the origin of the image that phases count from. Transforms are orthonormal. Volumes
    are (1, 1, *shape), k-space and images of it complex64.

References:
    Lustig, Donoho, Pauly. Sparse MRI: the application of compressed sensing for rapid MR imaging.
    Magnetic Resonance in Medicine 58, 2007. doi:10.1002/mrm.21391 (random sampling with a density
    that falls with the frequency).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import ParameterError
from ..geometry.grid import Grid

#: Ways to leave out samples.
PATTERNS = ("points", "lines")
#: Exponent of the falling density of samples.
_FALL = 3.0
#: Shares of the frequencies that the fully sampled center is looked for with, large ones first.
_SHARES = tuple(
    share / 100 for share in (100, 75, 50, 40, 30, 25, 20, 15, 12, 10, 8, 6, 5, 4, 3, 2)
)
_AXES = (-3, -2, -1)


def to_kspace(image: Tensor) -> Tensor:
    """Returns the k-space of an image, real or complex, of the same shape; differentiable."""
    shifted = torch.fft.ifftshift(image, dim=_AXES)
    return torch.fft.fftshift(torch.fft.fftn(shifted, dim=_AXES, norm="ortho"), dim=_AXES)


def to_image(kspace: Tensor) -> Tensor:
    """Returns the complex image of a k-space; the inverse of `to_kspace`."""
    shifted = torch.fft.ifftshift(kspace, dim=_AXES)
    return torch.fft.fftshift(torch.fft.ifftn(shifted, dim=_AXES, norm="ortho"), dim=_AXES)


def cartesian_mask(
    shape: Sequence[int],
    acceleration: float = 4.0,
    center: float = 0.08,
    pattern: str = "points",
    readout: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Returns which samples of a Cartesian scan are taken.

    Along the readout every sample comes for free. ``points`` leaves out whole readouts of a 3-D
    scan (two phase-encoding axes), ``lines`` those of one phase-encoding axis, as in a stack of
    slices. They are drawn with a density that falls with the frequency, and the center is whole.

    Args:
        shape: Voxels along each tensor axis.
        acceleration: All samples over those that are taken, 1 or more.
        center: Share of each phase-encoding axis that is whole around frequency zero.
        pattern: ``points`` or ``lines``.
        readout: Tensor axis that is read out; the longest by default.
        seed: Decides which are drawn.

    Returns:
        (1, 1, *shape), bool, on the CPU.

    Raises:
        ParameterError: If the acceleration is below 1, the center alone takes more samples than it
            allows, or there is no such pattern.
    """
    if pattern not in PATTERNS:
        raise ParameterError(f"Samples are left out as {' or '.join(PATTERNS)}, not '{pattern}'.")
    if acceleration < 1.0 or not 0.0 <= center <= 1.0:
        raise ParameterError(
            f"A scan is accelerated 1 time or more, with a center of a share of 0 to 1, not "
            f"{acceleration:g} times with {center:g}."
        )
    encoded = _encoded_axes(shape, pattern, readout)
    sizes = [shape[axis] for axis in encoded]
    whole = _center_box(sizes, center)
    count = round(math.prod(sizes) / acceleration)
    if int(whole.sum()) > count:
        raise ParameterError(
            f"The center of {center:g} of each axis alone holds more than 1 / {acceleration:g} of "
            "the samples; take a smaller center, or accelerate less."
        )
    density = (1.0 - _radius(sizes)).clamp(min=1e-3) ** _FALL
    density[whole] = 0.0
    generator = torch.Generator().manual_seed(seed)
    more = count - int(whole.sum())
    taken = whole.flatten().clone()
    if more:
        taken[torch.multinomial(density.flatten(), more, generator=generator)] = True
    view = [1, 1] + [shape[axis] if axis in encoded else 1 for axis in range(3)]
    return taken.view(view).expand(1, 1, *shape).contiguous()


def cropped(kspace: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns the middle of a k-space: that of the image at a lower resolution.

    The image keeps its intensities and its field of view; `low_resolution_grid` tells where its
    voxels are.

    Args:
        kspace: (1, 1, *old).
        shape: At most as many samples along each axis.
    """
    old = kspace.shape[2:]
    scale = math.sqrt(math.prod(shape) / math.prod(old))
    return middle(kspace, shape) * scale


def middle(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns the values around the index n // 2 of each axis, unchanged."""
    for axis, size in enumerate(shape):
        start = values.shape[2 + axis] // 2 - size // 2
        values = values.narrow(2 + axis, start, size)
    return values


def low_resolution_grid(grid: Grid, shape: Sequence[int]) -> Grid:
    """Returns the grid of an image whose k-space was cropped from one on `grid`.

    The voxels n // 2 of both lie in one place, which is not so for `Grid.resized`.
    """
    ratio = np.array(grid.shape) / np.array(shape)
    first = np.array(grid.shape) // 2 - (np.array(shape) // 2) * ratio
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, :3] *= ratio
    matrix[:3, 3] = grid.to_ras(first)
    return Grid(tuple(shape), matrix)  # type: ignore[arg-type]


def low_resolution_shape(grid: Grid, factor: float) -> tuple[int, int, int]:
    """Returns how many samples an image of about `factor` times the finest voxel size has.

    Numbers are odd where samples are left out, so that those kept lie symmetrically about zero;
    axes of thick slices stay as they are.
    """
    finest = min(grid.spacing_mm)
    sizes = []
    for n, spacing in zip(grid.shape, grid.spacing_mm):
        ratio = factor * finest / spacing
        kept = 2 * (round(n / ratio) // 2) + 1 if ratio > 1.2 else n
        sizes.append(n if n < 9 else min(n, max(kept, 9)))
    return sizes[0], sizes[1], sizes[2]


def frequencies(grid: Grid) -> Tensor:
    """Returns the length of the frequency of each sample, in cycles per mm, (1, 1, *shape)."""
    axes = [
        (torch.arange(n) - n // 2) / (n * s) if n > 1 else torch.zeros(1)
        for n, s in zip(grid.shape, grid.spacing_mm)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)[None, None]


def smooth_phase(samples: Tensor, sizes: Sequence[int]) -> Tensor:
    """Returns the phase of an image as its low frequencies tell it, as unit numbers.

    The phase of an image changes slowly (fields, coils), so a few low frequencies know it; a Hann
    window keeps them from ringing (McGibney et al. 1993, doi:10.1002/mrm.1910300109).

    Args:
        samples: K-space, (1, 1, *shape).
        sizes: How many samples along each axis count, around frequency zero.

    Returns:
        (1, 1, *shape), complex64, of length one.
    """
    shape = samples.shape[2:]
    window = torch.ones((), device=samples.device)
    for axis, size in enumerate(sizes):
        n = shape[axis]
        ramp = torch.zeros(n, device=samples.device)
        start = n // 2 - size // 2
        inner = torch.hann_window(size + 2, periodic=False, device=samples.device)[1:-1]
        ramp[start : start + size] = inner
        view = [1] * 5
        view[2 + axis] = n
        window = window * ramp.view(view)
    image = to_image(samples * window)
    size_of = image.abs()
    unit = image / size_of.clamp(min=1e-20)
    # Where there is no signal, there is no phase either.
    return torch.where(size_of > 1e-3 * size_of.max(), unit, torch.ones_like(unit))


def fused(samples: Tensor, mask: Tensor, guess: Tensor, trust: float = 0.0) -> Tensor:
    """Returns the k-space that is nearest to the samples and to a guess.

    It minimizes |S k - y|² + trust |k - guess|²: what was not sampled comes from the guess, what
    was sampled from the samples, or from both by their weights.

    Args:
        samples: y, (1, 1, *shape), complex.
        mask: S, (1, 1, *shape), bool.
        guess: K-space of the guess.
        trust: Weight of the guess where there are samples; 0 keeps the samples.
    """
    both = (samples + trust * guess) / (1.0 + trust)
    return torch.where(mask, both, guess)


def _encoded_axes(shape: Sequence[int], pattern: str, readout: int | None) -> list[int]:
    """Returns the axes along which samples are left out."""
    if readout is None:
        readout = max(range(3), key=lambda axis: shape[axis])
    others = [axis for axis in range(3) if axis != readout and shape[axis] > 1]
    if not others:
        raise ParameterError("A scan of one line cannot be accelerated; give an image or volume.")
    if pattern == "lines":
        return [max(others, key=lambda axis: shape[axis])]
    return others


def _center_box(sizes: Sequence[int], share: float) -> Tensor:
    box = torch.zeros(*sizes, dtype=torch.bool)
    kept = [max(1, round(share * n)) for n in sizes]
    box[tuple(slice(n // 2 - k // 2, n // 2 - k // 2 + k) for n, k in zip(sizes, kept))] = True
    return box


def _radius(sizes: Sequence[int]) -> Tensor:
    """Distance from the middle, 1 at the corners."""
    axes = [(torch.arange(n) - n // 2).float() / max(n / 2, 1.0) for n in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0) / math.sqrt(len(sizes))


def whole_center(mask: Tensor) -> tuple[int, int, int]:
    """Returns the sizes of the largest block around the middle that is fully sampled.

    Axes that are whole everywhere are not cut, so the block is as long as they are.

    Args:
        mask: What was sampled, (1, 1, *shape), bool.
    """
    shape = mask.shape[2:]
    rest = mask[0, 0]
    full = [
        bool((rest == rest.narrow(axis, n // 2, 1)).all()) for axis, n in enumerate(shape)
    ]  # constant along the axis: nothing is left out along it
    for share in _SHARES:
        sizes = [n if f else max(1, round(share * n)) for n, f in zip(shape, full)]
        if bool(middle(mask, sizes).all()):
            return sizes[0], sizes[1], sizes[2]
    return 1, 1, 1
