"""The one place that samples images: linear, nearest and cubic B-spline at voxel coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .. import kernels
from ..errors import GeometryError

Interpolation = Literal["linear", "nearest", "bspline"]
Padding = Literal["border", "fill"]

#: Pole of the cubic B-spline prefilter (Unser 1999, doi:10.1109/79.799930).
_POLE = 3.0**0.5 - 2.0
#: Terms of the prefilter kept on each side: 0.27^18 is below the resolution of float32.
_PREFILTER_RADIUS = 18
#: Numbers of a sampling grid below which cutting it up for the threads does not pay.
_LEAST_PARALLEL = 10_000


def voxel_coordinates(
    shape: Sequence[int],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns the voxel coordinates of every voxel, shape (1, 3, *shape), along tensor axes."""
    axes = [torch.arange(n, device=device, dtype=dtype) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample(
    image: Tensor,
    coordinates_voxel: Tensor,
    interpolation: Interpolation = "linear",
    padding: Padding = "border",
    fill: float = 0.0,
) -> Tensor:
    """Samples an image at voxel coordinates.

    Convention:
        `coordinates_voxel[:, c]` runs along tensor axis c of `image`; voxel centres are integers
        and the image covers -0.5 ... n - 0.5. Within that extent values are extended from the
        outermost centres; beyond it `padding` decides. This is what ITK and VTK do.

    Args:
        image: Shape (B, C, D, H, W), a floating type (`nearest` takes any type).
        coordinates_voxel: Shape (B or 1, 3, *out), three output axes.
        interpolation: ``linear``, ``nearest`` or ``bspline`` (cubic, interpolating).
        padding: ``border`` repeats the edge for ever, ``fill`` gives `fill` outside the image.
        fill: Value outside the image, such as -1000 for CT.

    Returns:
        Samples of shape (B, C, *out), in the type of the image.

    Raises:
        GeometryError: If the shapes do not fit.

    Example:
        >>> image = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
        >>> where = torch.tensor([1.0, 2.0, 0.5]).reshape(1, 3, 1, 1, 1)
        >>> sample(image, where).item()
        20.5
    """
    if image.ndim != 5 or coordinates_voxel.ndim != 5 or coordinates_voxel.shape[1] != 3:
        raise GeometryError(
            "Sampling takes an image (B, C, D, H, W) and coordinates (B, 3, D, H, W), but got "
            f"{tuple(image.shape)} and {tuple(coordinates_voxel.shape)}."
        )
    batch = max(image.shape[0], coordinates_voxel.shape[0])
    image = image.expand(batch, *image.shape[1:])
    coordinates_voxel = coordinates_voxel.expand(batch, *coordinates_voxel.shape[1:])
    if interpolation == "linear":
        samples = _sample_linear(image, coordinates_voxel)
    elif interpolation == "nearest":
        samples = _sample_nearest(image, coordinates_voxel)
    elif interpolation == "bspline":
        samples = _sample_bspline(image, coordinates_voxel)
    else:
        raise GeometryError(f"Interpolation '{interpolation}' is not linear, nearest or bspline.")
    if padding == "fill":
        inside = inside_image(coordinates_voxel, image.shape[2:])
        samples = torch.where(inside, samples, torch.full_like(samples[:1, :1, :1, :1, :1], fill))
    return samples


def inside_image(coordinates_voxel: Tensor, shape: Sequence[int]) -> Tensor:
    """Tells which coordinates lie inside an image of a shape (-0.5 ... n - 0.5).

    A thousandth of a voxel of tolerance keeps rounding in float32 from punching holes into the
    outermost layer of an image that is sampled on its own grid edge.

    Returns:
        Boolean tensor (B, 1, *out).
    """
    low, high = -0.501, 0.501
    inside = None
    for axis, size in enumerate(shape):
        c = coordinates_voxel[:, axis : axis + 1]
        here = (c >= low) & (c <= size - 1 + high)
        inside = here if inside is None else inside & here
    assert inside is not None
    return inside


def mask_voxels(inside: Tensor, most: int | None = None) -> Tensor:
    """Returns the positions of the voxels of a mask (D, H, W), in the order of the memory, (N, 3).

    With `most`, voxels at even steps only where there are at least twice as many.
    """
    # Along one dimension `nonzero` takes a third of the time.
    flat = inside.flatten().nonzero()[:, 0]
    if most is not None:
        flat = flat[:: max(1, len(flat) // most)]
    return voxels_at(flat, inside.shape)


def voxels_at(flat: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns the positions (N, 3) in a volume of elements of the same volume made flat, (N,)."""
    # `torch.unravel_index` imports sympy first, which takes more than a second.
    _, height, width = shape
    return torch.stack([flat // (height * width), flat // width % height, flat % width], dim=1)


def apply_matrix(matrix: ArrayLike, coordinates: Tensor) -> Tensor:
    """Applies a 4 x 4 affine matrix to coordinates of shape (B, 3, *out)."""
    m = torch.tensor(np.asarray(matrix, np.float64), device=coordinates.device)
    m = m.to(coordinates.dtype)
    flat = coordinates.reshape(coordinates.shape[0], 3, -1)
    # Product and sum in one pass take half as long as one after the other.
    moved = torch.baddbmm(m[None, :3, 3:], m[:3, :3].expand(len(flat), 3, 3), flat)
    return moved.reshape(coordinates.shape)


def resize_image(image: Tensor, shape: Sequence[int], antialias: bool = True) -> Tensor:
    """Resamples an image (B, C, D, H, W) to another shape over the same extent, linearly.

    With `antialias`, an axis that shrinks is first smoothed with a Gaussian whose width is that of
    the new voxel (standard deviation 0.5 new voxel less the 0.5 old voxel that it has already).
    The grid of the result is `Grid.resized(shape)`.
    """
    old = image.shape[2:]
    if tuple(old) == tuple(shape):
        return image
    ratios = [o / n for o, n in zip(old, shape)]
    if antialias:
        sigmas = [0.5 * max(r * r - 1.0, 0.0) ** 0.5 for r in ratios]
        image = gaussian_smooth(image, sigmas)
    # Extent-preserving means align_corners=False, which is also Grid.resized.
    return F.interpolate(image, size=tuple(shape), mode="trilinear", align_corners=False)


def interpolation_variance(old: int, new: int) -> float:
    """Returns how much linear resampling of an axis smooths: its mean variance, old voxels squared.

    A sample at the share t between two voxels is a mean of both, whose variance is t (1 - t).
    """
    share = np.mod((np.arange(new) + 0.5) * old / new - 0.5, 1.0)
    return float((share * (1.0 - share)).mean())


def gaussian_smooth(image: Tensor, sigma_voxel: float | Sequence[float]) -> Tensor:
    """Smooths (B, C, D, H, W) with a separable Gaussian; the edge is repeated outside.

    Args:
        image: Floating tensor.
        sigma_voxel: Standard deviation in voxels, one for all or one for each tensor axis.
    """
    sigmas = [float(sigma_voxel)] * 3 if isinstance(sigma_voxel, (int, float)) else sigma_voxel
    weights = [
        gaussian_kernel(float(sigma)) if sigma > 1e-3 and size > 1 else None
        for sigma, size in zip(sigmas, image.shape[2:])
    ]
    fused = kernels.convolve(image, weights)
    if fused is not None:
        return fused
    for axis, kernel in enumerate(weights):
        if kernel is not None:
            image = convolve_axis(image, kernel, axis)
    return image


def gaussian_kernel(sigma_voxel: float, truncate: float = 3.0) -> list[float]:
    """Returns the weights of a sampled Gaussian, normalised to sum 1."""
    radius = max(1, round(truncate * sigma_voxel + 0.5))
    x = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (x / sigma_voxel) ** 2)
    return list(weights / weights.sum())


def convolve_axis(
    image: Tensor, kernel: Sequence[float], axis: int, mirror: bool = False
) -> Tensor:
    """Convolves one spatial axis with a symmetric odd kernel; the edge is repeated or mirrored.

    A sum of shifted copies is several times faster on the CPU than a convolution with a kernel of
    one row, which falls back to a slow general path.
    """
    dim = 2 + axis
    radius = len(kernel) // 2
    size = image.shape[dim]
    padded = image.index_select(dim, _padding_index(size, radius, mirror, image.device))
    result = padded.narrow(dim, radius, size) * float(kernel[radius])
    for k in range(1, radius + 1):
        pair = padded.narrow(dim, radius - k, size) + padded.narrow(dim, radius + k, size)
        result = result.add_(pair, alpha=float(kernel[radius + k]))
    return result


def spline_coefficients(image: Tensor) -> Tensor:
    """Returns the coefficients of the interpolating cubic B-spline with mirrored borders."""
    terms = [_POLE ** abs(k) for k in range(-_PREFILTER_RADIUS, _PREFILTER_RADIUS + 1)]
    kernel = [-6.0 * _POLE / (1.0 - _POLE**2) * t for t in terms]
    for axis in range(3):
        if image.shape[2 + axis] > 1:
            image = convolve_axis(image, kernel, axis, mirror=True)
    return image


def _padding_index(size: int, radius: int, mirror: bool, device: torch.device) -> Tensor:
    index = torch.arange(-radius, size + radius, device=device)
    if not mirror or size == 1:
        return index.clamp_(0, size - 1)
    period = 2 * (size - 1)
    index = index % period
    return torch.where(index < size, index, period - index)


def sampling_grid(coordinates_voxel: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns voxel coordinates as `sample_grid` takes them, (B, *out, 3).

    The grid is affine in the coordinates: components in reverse order, from -1 to 1 over the extent
    of an image of the given shape. Loops that sample again and again may so combine the grids of
    their parts.
    """
    if coordinates_voxel.requires_grad:
        parts = [
            coordinates_voxel[:, axis] * (2.0 / size) + (1.0 / size - 1.0)
            for axis, size in reversed(list(enumerate(shape)))
        ]
        return torch.stack(parts, dim=-1)
    b, _, *out = coordinates_voxel.shape
    grid = coordinates_voxel.new_empty((b, *out, 3))
    for axis, size in enumerate(shape):
        part = grid[..., 2 - axis]
        torch.mul(coordinates_voxel[:, axis], 2.0 / size, out=part).add_(1.0 / size - 1.0)
    return grid


def sampling_vectors(matrix: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """Returns the 3 x 3 matrix that takes vectors, mapped by `matrix`, to those of a grid.

    With it, sampling_grid(M (x + u)) = sampling_grid(M x) + V u, V u with channels in its order.
    """
    scale = np.diag([2.0 / size for size in shape])
    return np.ascontiguousarray((scale @ matrix[:3, :3])[::-1])


def sampling_matrix(matrix: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """Returns the 4 x 4 matrix that takes points to the grid's numbers at M x (`sampling_grid`)."""
    sizes = np.array(shape, np.float64)
    onto = np.zeros((4, 4))
    onto[[2, 1, 0], [0, 1, 2]] = 2.0 / sizes
    onto[[2, 1, 0], 3] = 1.0 / sizes - 1.0
    onto[3, 3] = 1.0
    return np.asarray(onto @ matrix)


def sample_grid(image: Tensor, grid: Tensor) -> Tensor:
    """Samples linearly, with a repeated edge, at a grid from `sampling_grid`."""
    return _grid_sample(image, grid)


def slope_at(image: Tensor, grid: Tensor, slope: Tensor) -> Tensor:
    """Gradient of a sum of samples by the positions, without an autograd tape.

    Args:
        image: Shape (1, C, D, H, W).
        grid: Positions from `sampling_grid`, (1, *out, 3).
        slope: Weight of each sample in the sum, (1, C, *out).

    Returns:
        Shape (1, *out, 3): by the grid's numbers, in their order and units.
    """
    slabs = torch.get_num_threads() if image.device.type == "cpu" else 1
    if grid.shape[1] % slabs:
        slabs = 1
    thickness = grid.shape[1] // slabs
    # Slabs pose as a batch for the threads, as in `_grid_sample`.
    batch = grid.reshape(slabs, thickness, *grid.shape[2:])
    weights = slope[0].reshape(-1, slabs, thickness, *grid.shape[2:4]).transpose(0, 1)
    _, gradient = torch.ops.aten.grid_sampler_3d_backward(
        weights.contiguous(), image.expand(slabs, *image.shape[1:]), batch, 0, 1, False,
        (False, True),
    )  # fmt: skip
    return gradient.reshape(grid.shape)


def _sample_linear(image: Tensor, coordinates: Tensor) -> Tensor:
    dtype = image.dtype
    if dtype not in (torch.float32, torch.float64):
        image = image.float()
    grid = sampling_grid(coordinates.to(image.dtype), image.shape[2:])
    return _grid_sample(image, grid).to(dtype)


def _grid_sample(image: Tensor, grid: Tensor) -> Tensor:
    """Samples linearly with a repeated edge; on the CPU with all threads.

    PyTorch's CPU kernel works on the images of a batch in parallel, and on one image with one
    thread only. So the output of one image is cut into slabs that pose as a batch.
    """
    slabs = torch.get_num_threads() if image.device.type == "cpu" and image.shape[0] == 1 else 1
    thickness = grid.shape[1] // slabs
    if slabs == 1 or thickness == 0 or grid.numel() < _LEAST_PARALLEL:
        return F.grid_sample(
            image, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
    cut = slabs * thickness
    batch = grid[0, :cut].reshape(slabs, thickness, *grid.shape[2:])
    parts = F.grid_sample(
        image.expand(slabs, *image.shape[1:]),
        batch,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    samples = parts.transpose(0, 1).reshape(1, image.shape[1], cut, *grid.shape[2:4])
    if cut == grid.shape[1]:
        return samples
    rest = F.grid_sample(
        image, grid[:, cut:], mode="bilinear", padding_mode="border", align_corners=False
    )
    return torch.cat([samples, rest], dim=2)


def _sample_nearest(image: Tensor, coordinates: Tensor) -> Tensor:
    """Gathers by index, so that label maps of any integer type keep their exact values."""
    index = torch.zeros(coordinates.shape[:1] + coordinates.shape[2:], dtype=torch.int64,
                        device=coordinates.device)  # fmt: skip
    for axis, size in enumerate(image.shape[2:]):
        nearest = torch.floor(coordinates[:, axis] + 0.5).clamp(0, size - 1).to(torch.int64)
        index = index * size + nearest
    return _gather(image.reshape(*image.shape[:2], -1), index)


def _gather(flat: Tensor, index: Tensor) -> Tensor:
    batch, channels = flat.shape[:2]
    expanded = index.reshape(batch, 1, -1).expand(batch, channels, -1)
    return flat.gather(2, expanded).reshape(batch, channels, *index.shape[1:])


def _sample_bspline(image: Tensor, coordinates: Tensor) -> Tensor:
    if not image.is_floating_point():
        raise GeometryError(
            "B-spline interpolation needs a floating image; use nearest for labels."
        )
    shape = image.shape[2:]
    flat = spline_coefficients(image).reshape(*image.shape[:2], -1)
    taps = [_spline_taps(coordinates[:, axis], size) for axis, size in enumerate(shape)]
    samples = torch.zeros(
        (*image.shape[:2], *coordinates.shape[2:]), dtype=image.dtype, device=image.device
    )
    for index0, weight0 in taps[0]:
        for index1, weight1 in taps[1]:
            index01, weight01 = index0 * shape[1] + index1, weight0 * weight1
            for index2, weight2 in taps[2]:
                values = _gather(flat, index01 * shape[2] + index2)
                samples += values * (weight01 * weight2).to(image.dtype)[:, None]
    return samples


def _spline_taps(coordinate: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Returns the four (index, weight) pairs of the cubic B-spline along one axis."""
    if size == 1:
        return [(torch.zeros_like(coordinate, dtype=torch.int64), torch.ones_like(coordinate))]
    coordinate = coordinate.clamp(0.0, size - 1.0)  # constant beyond the outermost centres
    start = torch.floor(coordinate)
    taps = []
    for offset in (-1, 0, 1, 2):
        index = (start + offset).to(torch.int64)
        index = index.abs()
        index = torch.where(index > size - 1, 2 * (size - 1) - index, index).clamp(0, size - 1)
        taps.append((index, cubic_bspline(coordinate - start - offset)))
    return taps


def cubic_bspline(t: Tensor) -> Tensor:
    """Evaluates the cubic B-spline basis function at distance `t` (support -2 ... 2)."""
    a = t.abs()
    near = 2.0 / 3.0 - a * a + 0.5 * a**3
    far = (2.0 - a).clamp(min=0.0) ** 3 / 6.0
    return torch.where(a < 1.0, near, far)
