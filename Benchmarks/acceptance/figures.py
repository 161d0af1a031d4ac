"""Figures of a displacement on a test pair, the same for networks, the engine and SimpleITK."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import SimpleITK as sitk
import torch
from common import register
from torch import Tensor

from DeepRegLib.geometry.field import Field, compose_displacements
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.metrics.overlap import dice_per_label, labels_present, mean_dice

from .cases import EvaluationPair

Figures = dict[str, float]


def overlap(pair: EvaluationPair, transform: Transform) -> float:
    """Mean Dice over the labels of both people, nearest voxel."""
    moved = transform.warp(pair.moving_labels, pair.grid, pair.grid, "nearest")
    both = set(labels_present(pair.fixed_labels)) & set(labels_present(pair.moving_labels))
    return mean_dice(dice_per_label(pair.fixed_labels, moved), both)


def regularity(displacement: Tensor, inside: Tensor) -> Figures:
    """Folds in percent and SDlogJ, inside the fixed brain."""
    det = jacobian_determinant(displacement)[0][inside[0, 0]].double()
    return {
        "folds_percent": float((det <= 0).double().mean() * 100),
        "folds_count": float((det <= 0).sum()),
        "sdlogj": float(det.clamp(1e-9, 1e9).log().std(unbiased=False)),
    }


def round_trip_voxel(forward: Tensor, backward: Tensor, inside: Tensor) -> float:
    """Mean distance |backward(forward(x)) - x| inside the fixed brain, voxels."""
    back = compose_displacements(backward, forward)
    return float(back.norm(dim=1, keepdim=True)[inside].double().mean())


def measured(
    pair: EvaluationPair, displacement: Tensor | None, linear: np.ndarray | None = None
) -> Figures:
    """Dice, folds and SDlogJ of a displacement in voxels (none: the pair as it is)."""
    if displacement is None:
        return {"dice": overlap(pair, Transform(_ras(linear, pair)))}
    transform = Transform(_ras(linear, pair), Field(displacement, pair.grid))
    return {"dice": overlap(pair, transform), **regularity(displacement, pair.inside)}


def _ras(linear: np.ndarray | None, pair: EvaluationPair) -> np.ndarray:
    """A matrix between voxels of the grid of a pair as one between RAS mm."""
    if linear is None:
        return np.eye(4)
    return np.asarray(pair.grid.voxel_to_ras @ linear @ pair.grid.ras_to_voxel)


def engine(pair: EvaluationPair, algorithm: str = "+greedy", preset: str = "balanced") -> Tensor:
    """Displacement that the engine finds on the same images, voxels."""
    result, _ = register(pair.as_images(), algorithm, preset)
    assert result.transform.field is not None
    return result.transform.field.displacement


def demons(pair: EvaluationPair) -> Tensor:
    """Displacement of SimpleITK's diffeomorphic demons in three resolutions, voxels."""
    images = [sitk.GetImageFromArray(image[0, 0].numpy()) for image in (pair.fixed, pair.moving)]
    matcher = sitk.HistogramMatchingImageFilter()
    matcher.SetNumberOfHistogramLevels(256)
    matcher.SetNumberOfMatchPoints(15)
    matcher.ThresholdAtMeanIntensityOn()
    fixed, moving = images[0], matcher.Execute(images[1], images[0])
    field: sitk.Image | None = None
    for factor, iterations in ((4, 60), (2, 60), (1, 30)):
        small = [_shrunk(image, factor) for image in (fixed, moving)]
        demons_filter = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons_filter.SetNumberOfIterations(iterations)
        demons_filter.SetStandardDeviations(1.5)
        demons_filter.SetSmoothDisplacementField(True)
        if field is None:
            field = demons_filter.Execute(*small)
        else:
            resample = sitk.ResampleImageFilter()
            resample.SetReferenceImage(small[0])
            resample.SetInterpolator(sitk.sitkLinear)
            field = demons_filter.Execute(*small, resample.Execute(field))
    assert field is not None
    vectors = torch.from_numpy(sitk.GetArrayFromImage(field).astype(np.float32))
    # SimpleITK's components run along x, y, z, which are tensor axes 2, 1, 0.
    return vectors.flip(-1).permute(3, 0, 1, 2)[None].contiguous()


def _shrunk(image: sitk.Image, factor: int) -> sitk.Image:
    return sitk.Shrink(sitk.DiscreteGaussian(image, (0.5 * factor) ** 2), [factor] * 3)


def over_pairs(
    pairs: Sequence[EvaluationPair], register_pair: Callable[[EvaluationPair], Figures]
) -> dict[str, float]:
    """Mean figures of a method over the pairs, with its seconds."""
    rows = []
    for pair in pairs:
        started = time.perf_counter()
        rows.append({**register_pair(pair), "seconds": 0.0})
        rows[-1]["seconds"] = time.perf_counter() - started
    keys = [key for key in rows[0] if all(key in row for row in rows)]
    mean = {key: float(np.nanmean([row[key] for row in rows])) for key in keys}
    return {**mean, "pairs": len(rows)}
