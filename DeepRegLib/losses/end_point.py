"""End-point error: how far displacements lead from where they should, at one scale or several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import GeometryError
from ..geometry.field import vector_lengths


def end_point_error(found: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Returns the mean distance |found - truth|.

    Convention:
        Displacements are (B, 3, D, H, W) in the same units, which are those of the result.

    Args:
        found: Displacements.
        truth: What they should be.
        weight: How much each voxel counts, (B, 1, D, H, W); alike if omitted.

    Returns:
        A scalar; differentiable (with slope zero where both are the same).

    Raises:
        GeometryError: If the shapes differ.
    """
    if found.shape != truth.shape:
        raise GeometryError(
            f"Displacements are compared on one grid, but got {tuple(found.shape)} and "
            f"{tuple(truth.shape)}."
        )
    distance = vector_lengths(found - truth)
    if weight is None:
        return distance.mean()
    return (distance * weight).sum() / weight.sum().clamp(min=1e-6)


def multiscale_end_point_errors(
    flows: Sequence[Tensor],
    truth: Tensor,
    weights: Sequence[float],
    region: Tensor | None = None,
) -> list[Tensor]:
    """Returns the weighted end-point errors of displacements at several resolutions.

    Dosovitskiy et al. 2015, doi:10.1109/ICCV.2015.316, section 4.1: the truth is averaged over the
    voxels of each scale. All errors count in voxels of the truth, whatever the scale, so that a
    displacement in voxels of a coarse grid is multiplied by the size of these.

    Convention:
        Flow l is (B, 3, *shape_l) in voxels of its own grid, over the same extent as `truth`,
        (B, 3, *shape), in voxels of its grid; component c along tensor axis c.

    Args:
        flows: Displacements, in any order.
        truth: The displacement at the full resolution.
        weights: Weight of each; see `level_shares` for those of the publication.
        region: How much each voxel of the truth counts, (B, 1, *shape).

    Returns:
        A scalar for each flow.

    Raises:
        GeometryError: If there are not as many weights as flows.
    """
    if len(flows) != len(weights):
        raise GeometryError(
            f"There are {len(flows)} displacements and {len(weights)} weights; give one for each."
        )
    errors = []
    for flow, weight in zip(flows, weights):
        shape = tuple(flow.shape[2:])
        ratios = [n / m for n, m in zip(truth.shape[2:], shape)]
        scale = torch.tensor(ratios, device=flow.device, dtype=flow.dtype).view(1, 3, 1, 1, 1)
        there = F.interpolate(truth, size=shape, mode="area")
        counts = None if region is None else F.interpolate(region, size=shape, mode="area")
        errors.append(weight * end_point_error(flow * scale, there, counts))
    return errors


def level_shares(weights: Sequence[float]) -> list[float]:
    """Returns weights of sums over pixels as weights of means, which add up to one.

    The weights of the publication multiply sums over the pixels of images, of which each finer
    scale has four times as many. Means have no number of pixels in them, so they get it back.

    Args:
        weights: From the coarsest scale to the finest.
    """
    scaled = [weight * 4.0**level for level, weight in enumerate(weights)]
    return [value / sum(scaled) for value in scaled]
