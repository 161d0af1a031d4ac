"""The fused operations. Each returns None where they cannot run, and the caller takes torch.

The pattern at the place of use, whose own torch code stays the definition of the numbers:

    moved = kernels.warp(image, displacement)
    if moved is None:
        moved = sample(image, voxel_coordinates(shape) + displacement)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..errors import GeometryError
from .dispatch import attempt, available, module

_UNIT = (1.0, 1.0, 1.0)


def sample_linear(
    image: Tensor, coordinates_voxel: Tensor, matrix: ArrayLike | Tensor | None = None
) -> Tensor | None:
    """Samples an image at voxel coordinates, linearly; the edge is repeated for ever.

    Convention:
        As `geometry.sampling.sample`: `coordinates_voxel[:, c]` runs along tensor axis c.

    Args:
        image: Shape (B or 1, C, D, H, W), at most single precision.
        coordinates_voxel: Shape (B or 1, 3, *out), three output axes.
        matrix: 3 x 4 or 4 x 4 affine matrix that is applied to the coordinates first.

    Returns:
        Samples (B, C, *out) in the type of the image, or None.

    Raises:
        GeometryError: If the shapes do not fit.
    """
    if not available(image, coordinates_voxel):
        return None
    _check_sampling(image, coordinates_voxel)

    def launch() -> Tensor:
        rows = _matrix_on(matrix, image.device)
        samples: Tensor = module("triton_sampling").sample_volumes(image, coordinates_voxel, rows)[
            0
        ]
        return samples

    return attempt("sample", launch)


def warp(
    image: Tensor, displacement: Tensor, matrix: ArrayLike | Tensor | None = None
) -> Tensor | None:
    """Pulls an image back: image(matrix (x + u(x))), without storing coordinates.

    Convention:
        `displacement` is (B or 1, 3, *out) in voxels of its own grid, component c along tensor
        axis c; `matrix` leads from voxels of that grid to voxels of `image`.

    Args:
        image: Shape (B or 1, C, D, H, W).
        displacement: The field u.
        matrix: 3 x 4 or 4 x 4 matrix; without it image and field share a grid.

    Returns:
        Moved image (B, C, *out) in the wider type of both, or None: an image that is kept in half
        precision comes out in float32.

    Raises:
        GeometryError: If the shapes do not fit.
    """
    both = _warp(image, displacement, matrix, counted=False)
    return None if both is None else both[0]


def warp_with_inside(
    image: Tensor, displacement: Tensor, matrix: ArrayLike | Tensor | None = None
) -> tuple[Tensor, Tensor] | None:
    """Does `warp`, and tells where the image is: ones and zeros (B, 1, *out), float32.

    They are those of `geometry.sampling.inside_image`.
    """
    both = _warp(image, displacement, matrix, counted=True)
    if both is None or both[1] is None:
        return None
    return both[0], both[1]


def compose(outer: Tensor, inner: Tensor, scale: Tensor | None = None) -> Tensor | None:
    """Returns the displacement of x -> outer(inner(x)): s u_in(x) + u_out(x + s u_in(x)).

    Convention:
        Both are (B or 1, 3, D, H, W) in voxels of one grid.

    Args:
        outer: Displacement that is applied last.
        inner: Displacement that is applied first.
        scale: Factor s of `inner`, one number on the same device; it is read there, so the host
            does not wait for it.

    Returns:
        Displacement (B, 3, D, H, W), or None.

    Raises:
        GeometryError: If the shapes do not fit.
    """
    if not available(outer, inner, *([] if scale is None else [scale])):
        return None
    _check_sampling(outer, inner)
    if outer.shape[1:] != inner.shape[1:] or (scale is not None and scale.numel() != 1):
        raise GeometryError(
            "Displacements of one grid (B, 3, D, H, W) and one factor can be composed, but got "
            f"{tuple(outer.shape)} and {tuple(inner.shape)}."
        )

    def launch() -> Tensor:
        composed: Tensor = module("triton_sampling").sample_volumes(
            outer, inner, scale=scale, displaced=True, added=True
        )[0]
        return composed

    return attempt("sample", launch)


def force(moved: Tensor, slope: Tensor, factors: Sequence[float] = _UNIT) -> Tensor | None:
    """Returns the sum over channels of the gradient of the moved image times the slope.

    Derivatives are those of `geometry.jacobian.axis_gradient`: central inside, one-sided at the
    ends, zero along an axis of one voxel.

    Args:
        moved: Shape (B, C, D, H, W).
        slope: Derivative of the similarity by `moved`, of its shape.
        factors: Factor of each component.

    Returns:
        Shape (B, 3, D, H, W), float32, or None.

    Raises:
        GeometryError: If the shapes differ.
    """
    if not available(moved, slope):
        return None
    _check_pair(moved, slope)
    return attempt("force", lambda: module("triton_sampling").force(moved, slope, _three(factors)))


def lncc(
    fixed: Tensor,
    moved: Tensor,
    mask: Tensor | None = None,
    radius: int = 2,
    signed: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """Returns value and gradient of one minus the local correlation, as `losses.lncc.LNCC`.

    Avants et al. 2008, doi:10.1016/j.media.2007.06.004, eq. 5, in cubes of 2 radius + 1 voxels.

    Args:
        fixed: Shape (B, C, D, H, W), intensities of order one.
        moved: Same shape.
        mask: Weights (B or 1, 1, D, H, W).
        radius: Half width of the cube in voxels.
        signed: Use the correlation itself and not its square.

    Returns:
        Value (no axes) and its gradient by `moved`, float32, or None.

    Raises:
        GeometryError: If the shapes do not fit.
    """
    if not available(fixed, moved):
        return None
    _check_pair(fixed, moved)
    weights = _weights(mask, moved)
    return attempt(
        "lncc",
        lambda: module("triton_boxes").lncc(fixed, moved, weights, int(radius), bool(signed)),
    )


def joint_histogram(
    fixed: Tensor, moved: Tensor, bins: int, weight: Tensor | None = None
) -> Tensor | None:
    """Returns the joint histogram of two images, not normalised.

    Mattes et al. 2003, doi:10.1109/TMI.2003.809072, as `losses.mutual_information` takes it: the
    fixed image by its nearest bin, the moved one spread with a cubic B-spline.

    Args:
        fixed: Samples in 0 ... 1, any shape.
        moved: As many samples, same shape.
        bins: Bins of either image, at least 5.
        weight: Weight of every sample, same shape.

    Returns:
        Shape (bins, bins), float64, fixed image along the rows, or None.

    Raises:
        GeometryError: If the shapes differ.
    """
    weight = None if weight is None else weight.to(moved.dtype)
    if not available(fixed, moved, *([] if weight is None else [weight])):
        return None
    _check_samples(fixed, moved, weight)
    return attempt(
        "histogram",
        lambda: module("triton_histogram").joint_histogram(fixed, moved, weight, int(bins)),
    )


def histogram_slope(
    fixed: Tensor, moved: Tensor, table: Tensor, weight: Tensor | None = None
) -> Tensor | None:
    """Returns the derivative of a function of the joint histogram by every sample of `moved`.

    Args:
        fixed: Samples in 0 ... 1, any shape.
        moved: As many samples, same shape; those outside 0 ... 1 get no derivative.
        table: Derivative of the function by each entry of the histogram, (bins, bins), times the
            derivative of the position in bins by the intensity.
        weight: Weight of every sample, same shape.

    Returns:
        Tensor of the shape of `moved`, float32, or None.

    Raises:
        GeometryError: If the shapes differ, or the table is not square.
    """
    weight = None if weight is None else weight.to(moved.dtype)
    if not available(fixed, moved, *([] if weight is None else [weight])):
        return None
    _check_samples(fixed, moved, weight)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or table.device != moved.device:
        raise GeometryError(f"The table has the shape (bins, bins), but got {tuple(table.shape)}.")
    return attempt(
        "histogram",
        lambda: module("triton_histogram").histogram_slope(fixed, moved, weight, table),
    )


def convolve(image: Tensor, kernels: Sequence[Sequence[float] | None]) -> Tensor | None:
    """Convolves with one symmetric kernel for each spatial axis; the edge is repeated.

    Args:
        image: Shape (B, C, D, H, W).
        kernels: Three symmetric lists of odd length, such as `geometry.sampling.gaussian_kernel`
            gives; None leaves an axis as it is.

    Returns:
        Tensor of the same shape and type (sums are taken in float32), or None.

    Raises:
        GeometryError: If there are not three kernels of odd length.
    """
    if not available(image):
        return None
    if image.ndim != 5 or len(kernels) != 3 or any(k is not None and len(k) % 2 == 0
                                                   for k in kernels):  # fmt: skip
        raise GeometryError(
            "A convolution takes (B, C, D, H, W) and three kernels of odd length, but got "
            f"{tuple(image.shape)} and {len(kernels)} kernels."
        )
    return attempt("convolve", lambda: module("triton_smoothing").convolve(image, kernels))


def max_norm(field: Tensor, factors: Sequence[float] = _UNIT) -> Tensor | None:
    """Returns the length of the longest vector of (B, 3, D, H, W), without a wait of the host.

    Args:
        field: The vectors.
        factors: Unit of each component, such as the spacing.

    Returns:
        One number (no axes) on the device of the field, float32, or None.

    Raises:
        GeometryError: If the shape does not fit.
    """
    if not available(field):
        return None
    if field.ndim != 5 or field.shape[1] != 3:
        raise GeometryError(f"A field has the shape (B, 3, D, H, W), but got {tuple(field.shape)}.")
    return attempt("max_norm", lambda: module("triton_smoothing").longest(field, _three(factors)))


def _warp(
    image: Tensor, displacement: Tensor, matrix: ArrayLike | Tensor | None, counted: bool
) -> tuple[Tensor, Tensor | None] | None:
    if not available(image, displacement):
        return None
    _check_sampling(image, displacement)

    def launch() -> tuple[Tensor, Tensor | None]:
        rows = _matrix_on(matrix, image.device)
        both: tuple[Tensor, Tensor | None] = module("triton_sampling").sample_volumes(
            image, displacement, rows, displaced=True, counted=counted
        )
        return both

    return attempt("sample", launch)


def _matrix_on(matrix: ArrayLike | Tensor | None, device: torch.device) -> Tensor | None:
    """Returns twelve numbers on the device; a matrix from the host is copied there only once."""
    if matrix is None:
        return None
    if isinstance(matrix, Tensor):
        return matrix[:3].to(device, torch.float32).contiguous()
    rows = np.asarray(matrix, np.float64)
    if rows.shape not in ((3, 4), (4, 4)):
        raise GeometryError(f"An affine matrix is 3 x 4 or 4 x 4, but got {rows.shape}.")
    return _kept_matrix(tuple(rows[:3].reshape(-1).tolist()), device)


@functools.lru_cache(maxsize=64)
def _kept_matrix(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=device)


def _three(numbers: Sequence[float]) -> tuple[float, float, float]:
    a, b, c = (float(n) for n in numbers)
    return a, b, c


def _weights(mask: Tensor | None, image: Tensor) -> Tensor | None:
    if mask is None:
        return None
    fits = mask.ndim == 5 and mask.shape[1] == 1 and mask.shape[2:] == image.shape[2:]
    if not fits or mask.shape[0] not in (1, image.shape[0]):
        raise GeometryError(
            f"A mask for images of shape {tuple(image.shape)} has the shape (B, 1, D, H, W), but "
            f"got {tuple(mask.shape)}."
        )
    return mask.to(image.device, torch.float32)


def _check_sampling(image: Tensor, where: Tensor) -> None:
    if image.ndim != 5 or where.ndim != 5 or where.shape[1] != 3:
        raise GeometryError(
            "Sampling takes an image (B, C, D, H, W) and coordinates (B, 3, D, H, W), but got "
            f"{tuple(image.shape)} and {tuple(where.shape)}."
        )


def _check_pair(first: Tensor, second: Tensor) -> None:
    if first.ndim != 5 or first.shape != second.shape:
        raise GeometryError(
            "Two images of the same shape (B, C, D, H, W) are needed, but got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )


def _check_samples(fixed: Tensor, moved: Tensor, weight: Tensor | None) -> None:
    if fixed.shape != moved.shape or (weight is not None and weight.shape != moved.shape):
        raise GeometryError(
            "A joint histogram takes samples of one shape, but got "
            f"{tuple(fixed.shape)} and {tuple(moved.shape)}."
        )
