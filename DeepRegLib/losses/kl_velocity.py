"""Kullback-Leibler divergence of a velocity of independent voxels from a smooth Gaussian prior."""

from __future__ import annotations

import torch
from torch import Tensor


def neighbor_energy(field: Tensor) -> Tensor:
    """Mean over the voxels of the squared differences to the neighbors, each pair counted once.

    This is v' L v / n with the Laplacian L of the graph in which each voxel has its six nearest
    neighbors. Unlike central differences, which do not see a field that alternates from voxel to
    voxel, it is zero for constant fields only. It is also the regularizer of Balakrishnan et al.
    2019, doi:10.1109/TMI.2019.2897538, eq. 7.

    Convention:
        `field` is (B, C, D, H, W) in voxels of an isotropic grid; the channels are added up.

    Returns:
        A scalar; differentiable.
    """
    voxels = field.numel() // max(1, field.shape[1])
    energy = field.new_zeros(())
    for dim in (2, 3, 4):
        energy = energy + field.diff(dim=dim).square().sum()
    return energy / voxels


def kl_velocity(mean: Tensor, log_variance: Tensor, prior_weight: float) -> Tensor:
    """Divergence KL(q || p) for each voxel of the velocity's grid, up to a constant.

    Dalca et al. 2019, doi:10.1016/j.media.2019.07.006, eq. 5 to 9: the posterior is q = N(mean,
    diag(exp(log_variance))), the prior p = N(0, (w L)^-1) with the Laplacian L = D - A of the graph
    in which each voxel has its six nearest neighbors, D its degrees (3 in a corner, 6 inside):

        KL = 1/2 [ tr(w D Sigma) - log |Sigma| + w mean' L mean ] + constant.

    The sum is divided by the number of voxels of the velocity's grid. Where the data term is a mean
    over the voxels of the images, multiply by the number of these voxels over that of those, so
    that both are parts of one evidence bound.

    Convention:
        Both are (B, 3, D, H, W); the velocity is in voxels of its grid.

    Args:
        mean: Mean of the velocity.
        log_variance: Logarithm of its variance.
        prior_weight: w: twice as much makes velocities smoother by a factor of the root of two.

    Returns:
        A scalar; differentiable.
    """
    degree = neighbor_count(mean.shape[2:], mean.device).to(mean.dtype)
    spread = (prior_weight * degree * log_variance.exp() - log_variance).sum(dim=1).mean()
    return 0.5 * (spread + prior_weight * neighbor_energy(mean))


def neighbor_count(
    shape: torch.Size | tuple[int, ...], device: torch.device | str | None = None
) -> Tensor:
    """Returns how many of its six neighbors each voxel has, (1, 1, *shape), float32."""
    count = torch.zeros(1, 1, *shape, device=device)
    for dim, size in enumerate(shape, start=2):
        if size > 1:
            count.narrow(dim, 0, size - 1).add_(1.0)
            count.narrow(dim, 1, size - 1).add_(1.0)
    return count
