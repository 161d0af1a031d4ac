"""Bending energy of dense fields, by differences between direct neighbors."""

from __future__ import annotations

from torch import Tensor


def curvature_energy(displacement: Tensor) -> Tensor:
    """Mean over the voxels of all squared second differences: a bending energy without gaps.

    Rueckert et al. 1999, doi:10.1109/42.796284, eq. 4, with compact stencils. Second differences
    that are central differences twice (as in `bending.bending_energy`, which suits splines) do not
    see a field that alternates from voxel to voxel; these do. Zero for linear maps.

    Convention:
        `displacement` is (B, 3, D, H, W) in voxels of an isotropic grid, component c along tensor
        axis c; mixed derivatives count twice, as in the sum over both orders.

    Returns:
        A scalar; differentiable.
    """
    voxels = displacement.numel() // max(1, displacement.shape[1])
    energy = displacement.new_zeros(())
    for one in (2, 3, 4):
        first = displacement.diff(dim=one)
        energy = energy + first.diff(dim=one).square().sum()
        for other in range(one + 1, 5):
            energy = energy + 2.0 * first.diff(dim=other).square().sum()
    return energy / voxels
