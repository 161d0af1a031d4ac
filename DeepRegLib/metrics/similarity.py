"""How alike two images are under a transform, from a sample of their voxels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..geometry.sampling import apply_matrix, inside_image, sample
from ..geometry.transform import Transform
from ..registration.base import ImagePair
from ..registration.preprocess import foreground, mask_on_grid

#: Voxels that are compared: the sampling error of NCC is at most 0.003.
_SAMPLES = 120_000
_BINS = 48
#: Fewer common voxels than this say nothing.
_FEWEST = 50


def pair_similarity(
    pair: ImagePair, transform: Transform, region: Tensor | None = None
) -> dict[str, float]:
    """Compares the fixed image with the moving image under a transform.

    Args:
        pair: The images; voxels outside the moving mask count as outside the moving image.
        transform: Fixed to moving.
        region: (1, 1, *fixed.shape), where the fixed image is compared; by default its mask, or
            where it shows something.

    Returns:
        ``ncc``: normalized (Pearson) correlation, -1 ... 1.
        ``nmi``: normalized mutual information (H(F) + H(M)) / H(F, M), 1 ... 2 (Studholme et al.
        1999, doi:10.1016/S0031-3203(98)00091-0).
        ``overlap_percent``: share of the region that falls inside the moving image.
        The first two are NaN where hardly a voxel overlaps.
    """
    region = fixed_region(pair) if region is None else region
    voxels = _sampled(region)
    where = _moving_voxels(pair, transform, voxels)
    inside = inside_image(where, pair.moving.grid.shape)
    if pair.moving_mask is not None:
        allowed = mask_on_grid(pair.moving_mask, pair.moving.grid, where.device)
        assert allowed is not None
        inside = inside & (sample(allowed, where, "nearest") > 0)
    keep = inside.flatten()
    fixed = pair.fixed.data[0, 0][voxels.unbind(1)].float()[keep]
    moving = sample(pair.moving.data[:, :1].float(), where).flatten()[keep]
    enough = int(keep.sum()) >= _FEWEST
    return {
        "ncc": normalized_correlation(fixed, moving) if enough else float("nan"),
        "nmi": normalized_mutual_information(fixed, moving) if enough else float("nan"),
        "overlap_percent": 100.0 * float(keep.double().mean()),
    }


def fixed_region(pair: ImagePair) -> Tensor:
    """Returns where the fixed image counts, (1, 1, *shape), bool: its mask, or its foreground."""
    device = pair.fixed.data.device
    mask = mask_on_grid(pair.fixed_mask, pair.fixed.grid, device)
    if mask is not None and bool(mask.any()):
        return mask > 0
    shown = foreground(pair.fixed)
    return shown if bool(shown.any()) else torch.ones_like(shown)


def normalized_correlation(one: Tensor, other: Tensor) -> float:
    """Pearson correlation of two lists of values; 0 if one of them is constant."""
    a, b = (values.detach().cpu().numpy().astype(np.float64) for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def normalized_mutual_information(one: Tensor, other: Tensor, bins: int = _BINS) -> float:
    """(H(A) + H(B)) / H(A, B) from a joint histogram between the 0.5th and 99.5th percentiles."""
    a, b = _binned(one, bins), _binned(other, bins)
    joint = np.bincount(a * bins + b, minlength=bins * bins).reshape(bins, bins) / max(len(a), 1)
    together = _entropy(joint)
    if together == 0:
        return 1.0
    return (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / together


def _sampled(region: Tensor) -> Tensor:
    """Returns voxels of a region (N, 3), always the same ones for the same region."""
    flat = region.flatten().nonzero().flatten()
    if len(flat) > _SAMPLES:
        generator = torch.Generator().manual_seed(0)
        choice = torch.randint(len(flat), (_SAMPLES,), generator=generator)
        flat = flat[choice.to(flat.device)]
    _, rows, columns = region.shape[2:]
    return torch.stack([flat // (rows * columns), flat // columns % rows, flat % columns], dim=1)


def _moving_voxels(pair: ImagePair, transform: Transform, voxels: Tensor) -> Tensor:
    """Returns where fixed voxels (N, 3) fall in the moving image, (1, 3, N, 1, 1)."""
    where = voxels.T.reshape(1, 3, -1, 1, 1).float()
    grid = pair.fixed.grid
    if transform.field is not None:
        where = apply_matrix(grid.voxel_to_voxel(transform.field.grid), where)
        where = where + transform.field.at(where)
        grid = transform.field.grid
    return apply_matrix(grid.voxel_to_voxel(pair.moving.grid, transform.linear), where)


def _binned(values: Tensor, bins: int) -> np.ndarray:
    array = values.detach().cpu().numpy().astype(np.float64)
    low, high = np.percentile(array, (0.5, 99.5))
    if high <= low:
        low, high = array.min(), array.max()
    scale = bins / (high - low) if high > low else 0.0
    return np.clip((array - low) * scale, 0, bins - 1).astype(np.int64)


def _entropy(probabilities: np.ndarray) -> float:
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum())
