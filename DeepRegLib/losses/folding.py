"""Penalty of folds along an axis, as the inverse-consistent network has it."""

from __future__ import annotations

from torch import Tensor


def axis_folding(displacement: Tensor) -> Tensor:
    """Mean over the voxels of the squared slope of each component along its own axis, at folds.

    Zhang 2018, arXiv:1809.03443: the sum over the axes i of R(-(d_i u_i + 1)) (d_i u_i)², where R
    is the positive part and d_i the difference to the next voxel along axis i. Where neighbors pass
    each other along an axis, d_i u_i < -1. Only the derivative of a component along its own axis
    counts: shear, however strong, is no fold.

    Convention:
        `displacement` is (B, 3, D, H, W) in voxels, component c along tensor axis c.

    Returns:
        A scalar; differentiable.
    """
    voxels = displacement.numel() // 3
    penalty = displacement.new_zeros(())
    for axis in range(3):
        slope = displacement[:, axis].diff(dim=axis + 1)
        penalty = penalty + ((-1.0 - slope).clamp(min=0.0) * slope.square()).sum()
    return penalty / voxels
