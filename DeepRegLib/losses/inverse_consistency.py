"""How far two displacements are from undoing each other."""

from __future__ import annotations

from torch import Tensor

from ..geometry.field import compose_displacements


def inverse_residual(forward: Tensor, backward: Tensor) -> Tensor:
    """Returns where there and back leads: u(x) + w(x + u(x)), zero for exact inverses.

    The inverse of a displacement is not its negation: w is read where u leads.

    Convention:
        Both are (B, 3, D, H, W) in voxels of one grid, component c along tensor axis c; so is the
        result.

    Args:
        forward: u, which is applied first.
        backward: w.
    """
    return compose_displacements(backward, forward)


def inverse_consistency(forward: Tensor, backward: Tensor) -> Tensor:
    """Mean over the voxels of the squared residuals in both orders, voxel²; differentiable.

    Zhang 2018, arXiv:1809.03443, with sums of squares in place of the mean over components;
    Christensen & Johnson 2001, doi:10.1109/42.932742.

    Args:
        forward: (B, 3, D, H, W) in voxels.
        backward: On the same grid.
    """
    there = inverse_residual(forward, backward).square().sum(dim=1).mean()
    back = inverse_residual(backward, forward).square().sum(dim=1).mean()
    return there + back
