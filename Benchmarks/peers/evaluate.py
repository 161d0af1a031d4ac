"""All measures of all methods, from the displacement files that they wrote, by one code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from DeepRegLib.geometry.inverse import round_trip_error_mm
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import inside_image
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.itk_transform import read_transform
from DeepRegLib.losses.lncc import LNCC
from DeepRegLib.metrics.landmarks import tre_mm
from DeepRegLib.metrics.overlap import dice_per_label, hd95_per_label, labels_present, mean_dice
from DeepRegLib.metrics.similarity import normalized_correlation
from DeepRegLib.registration.base import Image

Figures = dict[str, float]


def read_field(path: Path, fixed: Image) -> Transform:
    """Reads a displacement file and checks that it lies on the grid of its image.

    Raises:
        ValueError: If it lies on another grid, or does not hold finite vectors.
    """
    transform = read_transform(path)
    assert transform.field is not None
    if not transform.field.grid.matches(fixed.grid, 1e-2):
        raise ValueError(f"{path.name} lies on {transform.field.grid}, not on {fixed.grid}")
    return transform


def overlap(transform: Transform, fixed: Image, moving: Image) -> Figures:
    """Mean Dice and mean 95 % Hausdorff distance (mm) over the labels that both maps have.

    A label that is lost in the warp has Dice 0; it counts for no distance, but is counted.
    """
    moved = transform.warp(moving.data, moving.grid, fixed.grid, "nearest", 0)
    both = sorted(set(labels_present(fixed.data)) & set(labels_present(moving.data)))
    keep = torch.tensor(both, dtype=fixed.data.dtype)
    fixed_kept = torch.where(torch.isin(fixed.data, keep), fixed.data, 0)
    moved_kept = torch.where(torch.isin(moved, keep.to(moved.dtype)), moved, 0)
    distances = hd95_per_label(fixed_kept, moved_kept, fixed.grid.spacing_mm)
    finite = [d for d in (distances.get(label, np.inf) for label in both) if np.isfinite(d)]
    return {
        "dice": mean_dice(dice_per_label(fixed.data, moved), both),
        "hd95_mm": float(np.mean(finite)) if finite else float("nan"),
        "labels": len(both),
        "labels_lost": len(both) - len(finite),
    }


def regularity(transform: Transform, inside: torch.Tensor) -> Figures:
    """Folds (det J <= 0, percent) and SDlogJ of the total displacement inside a region.

    A linear part changes neither, so all methods are measured on their total displacement.
    """
    assert transform.field is not None
    det = jacobian_determinant(transform.field.displacement)[0][inside[0, 0]]
    return {
        "folds_percent": float((det <= 0).double().mean() * 100),
        "sdlogj": float(det.double().clamp(1e-9, 1e9).log().std(unbiased=False)),
    }


def round_trip(
    transform: Transform, inverse: Transform, fixed: Image, moving: Image, inside: torch.Tensor
) -> Figures:
    """Distance of inverse(T(p)) from p in voxels, where T(p) lies in the moving image."""
    where = transform.moving_coordinates(fixed.grid, moving.grid)
    inside = inside & inside_image(where, moving.grid.shape)
    error = round_trip_error_mm(transform, inverse, fixed.grid)[inside].numpy()
    voxel = fixed.grid.voxel_volume_mm3 ** (1 / 3)
    if not error.size:
        return {"round_trip_voxel": float("nan"), "round_trip_p99_voxel": float("nan")}
    return {
        "round_trip_voxel": float(error.mean(dtype=np.float64) / voxel),
        "round_trip_p99_voxel": float(np.percentile(error, 99) / voxel),
    }


def landmark_error(transform: Transform, fixed_ras: np.ndarray, moving_ras: np.ndarray) -> Figures:
    """Median and mean target registration error, mm."""
    error = tre_mm(transform, fixed_ras, moving_ras)
    return {
        "tre_median_mm": float(np.nanmedian(error)),
        "tre_mean_mm": float(np.nanmean(error)),
    }


def likeness(transform: Transform, fixed: Image, moving: Image, inside: torch.Tensor) -> Figures:
    """NCC, and mean squared local NCC (windows of 9 voxels), inside a region of the fixed image."""
    moved = transform.warp(moving.data, moving.grid, fixed.grid, "linear", float(moving.data.min()))
    a, b = (image.float() / image[inside].float().std() for image in (fixed.data, moved))
    return {
        "ncc": normalized_correlation(fixed.data[inside], moved[inside]),
        "lncc": 1.0 - float(LNCC(radius=4)(a, b, inside.float())),
    }


def distance_from(transform: Transform, answer: Transform, inside: torch.Tensor) -> Figures:
    """Mean distance from a known displacement, mm and relative to that of doing nothing."""
    assert answer.field is not None and transform.field is not None
    truth = answer.displacement_ras_mm(answer.field.grid)
    found = transform.displacement_ras_mm(answer.field.grid)
    error = float((found - truth).norm(dim=1, keepdim=True)[inside].double().mean())
    initial = float(truth.norm(dim=1, keepdim=True)[inside].double().mean())
    return {"error_mm": error, "initial_mm": initial, "error_ratio": error / initial}
