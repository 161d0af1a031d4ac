"""What is done with a transform once it is known: carry images and points, and measure."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .errors import InputError, ParameterError
from .geometry.grid import Grid, transform_points
from .geometry.inverse import invert, solve_inverse
from .geometry.sampling import Interpolation
from .geometry.transform import Transform
from .metrics.landmarks import tre_mm, tre_summary
from .metrics.overlap import dice_per_label, hd95_per_label, labels_present, mean_dice
from .metrics.regularity import inverse_consistency_mm, regularity
from .registration.base import Image
from .registration.preprocess import quantiles, subsample

INTERPOLATIONS: tuple[Interpolation, ...] = ("linear", "nearest", "bspline")
#: A label map holds at most so many different whole numbers …
MOST_LABELS = 1024
#: … and at least this share of its neighbouring foreground voxels are equal. Noise keeps images of
#: few gray values far below (8-bit brains and skulls reach 0.13), label maps reach 0.74 to 0.82.
_LEAST_EQUAL = 0.6


def background_value(image: Image) -> float:
    """Returns what is filled in where a moving image has no voxel: the low end of its values.

    That is the 0.1st percentile: the air of a CT (about -1000), the 0 of a skull-stripped brain.
    A few odd voxels do not count. It is whole for images of whole numbers.
    """
    low = float(quantiles(subsample(image.data[:, :1].float()), [0.001])[0])
    return float(round(low)) if np.dtype(image.pixel_type).kind in "iub" else low


def looks_like_labels(data: Tensor) -> bool:
    """Tells whether an image is a label map: few whole numbers in patches of one value."""
    if data.is_floating_point() and bool((data != data.round()).any()):
        return False
    if len(torch.unique(data)) > MOST_LABELS:
        return False
    axis = 2 + int(np.argmax(data.shape[2:]))
    last = data.shape[axis] - 1
    one, next_one = data.narrow(axis, 1, last), data.narrow(axis, 0, last)
    shown = (one != 0) & (next_one != 0)
    if not bool(shown.any()):
        return True
    return float((one == next_one)[shown].float().mean()) >= _LEAST_EQUAL


def choose_interpolation(wanted: str | None, data: Tensor) -> Interpolation:
    """Returns the interpolation for an image: ``nearest`` for label maps, else ``linear``.

    Args:
        wanted: The user's choice, or None.
        data: The image.

    Raises:
        ParameterError: If the choice is unknown.
    """
    for known in INTERPOLATIONS:
        if wanted == known:
            return known
    if wanted is not None:
        raise ParameterError(f"Interpolation '{wanted}' is not one of {', '.join(INTERPOLATIONS)}.")
    return "nearest" if looks_like_labels(data) else "linear"


def warp_image(
    image: Image,
    transform: Transform,
    fixed: Grid,
    interpolation: Interpolation = "linear",
    fill: float | None = None,
) -> Image:
    """Resamples a moving image or label map on the fixed grid, in one step.

    Args:
        image: Image of the moving space.
        transform: Fixed to moving.
        fixed: Grid of the result.
        interpolation: ``nearest`` for label maps.
        fill: Value where the moving image has no voxel; by default 0 for ``nearest`` on whole
            numbers and `background_value` otherwise.
    """
    data = image.data
    whole = not data.is_floating_point()
    if fill is None:
        fill = 0.0 if whole and interpolation == "nearest" else background_value(image)
    if whole and interpolation != "nearest":
        data = data.float()
    with torch.no_grad():
        moved = transform.to(data.device).warp(data, image.grid, fixed, interpolation, fill)
    return Image(moved, fixed, image.pixel_type)


def carry_points_ras(transform: Transform, points_ras: ArrayLike) -> NDArray[np.float64]:
    """Carries points of the moving space into the fixed space, where the moved image shows them.

    A transform maps fixed to moving points (images are pulled back through it), so points go
    through its inverse, which is solved for each point: p + u(p) = A^-1 q.

    Args:
        transform: Fixed to moving.
        points_ras: (N, 3) in the moving space, RAS mm; rows with NaN stay NaN.

    Returns:
        (N, 3) in the fixed space, RAS mm.

    Raises:
        InputError: If the transform cannot be undone at a point, because it folds there.
    """
    points = np.array(points_ras, np.float64).reshape(-1, 3)
    placed = np.isfinite(points).all(axis=1)
    points[placed] = transform_points(np.linalg.inv(transform.linear), points[placed])
    field = transform.field
    if field is None or not placed.any():
        return points
    targets = torch.from_numpy(np.ascontiguousarray(field.grid.to_voxel(points[placed]).T))
    displacement = field.displacement[:1].double().cpu()
    found, error = solve_inverse(
        displacement, targets.reshape(1, 3, -1, 1, 1), iterations=200, tolerance_voxel=1e-6
    )
    missed = int((error > 0.1).sum())
    if missed:
        raise InputError(
            f"{missed} of {int(placed.sum())} points lie where the transform folds, so they have "
            "no one place in the fixed image; register more smoothly, or remove them."
        )
    points[placed] = field.grid.to_ras(found.reshape(3, -1).T.numpy())
    return points


def measure(
    fixed_labels: Image | None = None,
    moved_labels: Image | None = None,
    fixed_points_ras: NDArray[np.float64] | None = None,
    moving_points_ras: NDArray[np.float64] | None = None,
    transform: Transform | None = None,
    inverse: Transform | None = None,
) -> dict[str, Any]:
    """Measures whatever can be measured from what is given.

    Returns:
        ``dice_mean dice_per_label hd95_mean_mm hd95_per_label_mm`` of label maps; ``tre_mean_mm
        tre_median_mm tre_max_mm tre_count`` of landmarks (under the transform, or as they lie);
        the figures of `metrics.regularity.regularity` and, unless the transform is linear and no
        inverse is given, ``inverse_*`` of `metrics.regularity.inverse_consistency_mm`.

    Raises:
        ParameterError: If there is nothing to measure, or half of a couple is missing.
    """
    if (fixed_labels is None) != (moved_labels is None):
        raise ParameterError("Label maps are compared in couples: give fixed and moved labels.")
    if inverse is not None and transform is None:
        raise ParameterError("An inverse is measured against its transform; give that, too.")
    figures: dict[str, Any] = {}
    if fixed_labels is not None and moved_labels is not None:
        figures |= _overlap(fixed_labels, moved_labels)
    if fixed_points_ras is not None and moving_points_ras is not None:
        errors = tre_mm(transform or Transform(), fixed_points_ras, moving_points_ras)
        figures |= {f"tre_{name}": value for name, value in tre_summary(errors).items()}
    if transform is not None:
        figures |= regularity(transform)
        figures |= _inverse(transform, inverse)
    if not figures:
        raise ParameterError(
            "There is nothing to measure; give fixed and moved labels, fixed and moving "
            "landmarks, or a transform."
        )
    return figures


def _overlap(fixed: Image, moved: Image) -> dict[str, Any]:
    if not fixed.grid.matches(moved.grid, tolerance_voxel=0.01):
        raise InputError(
            "The fixed and the moved label map lie on different voxels; carry the moving labels "
            "onto the fixed grid first (command warp, interpolation nearest)."
        )
    if not labels_present(fixed.data) or not labels_present(moved.data):
        raise InputError("One of the label maps is empty (no voxel but 0); choose another.")
    dice = dice_per_label(fixed.data, moved.data)
    distance = hd95_per_label(fixed.data, moved.data, fixed.grid.spacing_mm)
    finite = [d for d in distance.values() if np.isfinite(d)]
    return {
        "dice_mean": mean_dice(dice),
        "dice_per_label": {str(label): value for label, value in dice.items()},
        "hd95_mean_mm": float(np.mean(finite)) if finite else None,
        "hd95_per_label_mm": {str(label): value for label, value in distance.items()},
    }


def _inverse(transform: Transform, inverse: Transform | None) -> dict[str, float]:
    grids = [t.field.grid for t in (transform, inverse) if t is not None and t.field is not None]
    if not grids:
        if inverse is None:
            return {}
        return _linear_consistency(transform, inverse)
    if inverse is None:
        # No moving grid is known; the fixed one, carried along by the linear part, covers the same.
        inverse, _ = invert(
            transform, Grid(grids[0].shape, transform.linear @ grids[0].voxel_to_ras)
        )
    return inverse_consistency_mm(transform, inverse, grids[0])


def _linear_consistency(transform: Transform, inverse: Transform) -> dict[str, float]:
    """Two linear maps: the rest motion of a head-sized cube about the origin."""
    corners = np.stack(np.meshgrid(*[(-100.0, 100.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    error = np.linalg.norm(
        inverse.map_points_ras(transform.map_points_ras(corners)) - corners, axis=1
    )
    return {"inverse_mean_mm": float(error.mean()), "inverse_max_mm": float(error.max())}
