"""The discrete search: cost volume, coupled convex steps, inverse consistency.

References:
    Heinrich, Papiez, Schnabel, Handels. Non-parametric discrete registration with convex
    optimisation. WBIR 2014, LNCS 8545:51-61. doi:10.1007/978-3-319-08554-8_6.
    Siebert, Grossbroehmer, Hansen, Heinrich. ConvexAdam: self-configuring dual-optimization-based
    3D multitask medical image registration. IEEE Transactions on Medical Imaging, 2024.
    doi:10.1109/TMI.2024.3436315.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ParameterError
from ..geometry.field import compose_displacements
from ..geometry.grid import Grid
from .adam_refine import FeatureLevel

#: Largest cost volume, and the part of it that a step copies at a time, in bytes.
_MOST_BYTES, _CHUNK_BYTES = 2 * 2**30, 64 * 2**20


def finest_mm(grid: Grid) -> float:
    """Returns the least spacing among the axes of more than one voxel."""
    wide = [s for s, n in zip(grid.spacing_mm, grid.shape) if n > 1]
    return min(wide or grid.spacing_mm)


def search_radii(grid: Grid, displacement: int) -> tuple[int, int, int]:
    """Returns how many nodes the search goes to either side, about as far in mm along each axis.

    An axis of one node is not searched, and none beyond half its length.
    """
    reach = displacement * finest_mm(grid)
    a, b, c = (min(max(1, round(reach / s)), n // 2) for s, n in zip(grid.spacing_mm, grid.shape))
    return a, b, c


def offsets(radii: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Returns all displacements of a search, (count, 3), in nodes; the last axis runs fastest."""
    ranges = [range(-r, r + 1) for r in radii]
    return torch.tensor(list(itertools.product(*ranges)), dtype=torch.float32, device=device)


def cost_volume(
    level: FeatureLevel,
    radii: Sequence[int],
    report: Callable[[float], bool] | None = None,
) -> Tensor | None:
    """Compares every node of the fixed features with every moving node within reach.

    Squared differences, summed over the channels. Beyond the grid the edge is repeated. A
    comparison that a mask forbids costs as much as the mean of those allowed at that node, so it
    neither attracts nor repels; a node outside the fixed mask follows its neighbours.

    Args:
        level: What is compared.
        radii: Reach along each axis, in nodes.
        report: Called with the share that is done; returns True to stop.

    Returns:
        (count, N): displacement as in `offsets`, node; None if stopped.

    Raises:
        ParameterError: If it would not fit into memory.
    """
    nodes, table = level.grid.size, offsets(radii)
    _check_size(nodes, len(table))
    shape, fixed = level.grid.shape, level.fixed[0]
    moving = _padded(level.moving, radii)[0]
    volume = torch.empty(len(table), nodes, device=fixed.device)
    difference = torch.empty_like(fixed)
    for index, start in enumerate(itertools.product(*(range(2 * r + 1) for r in radii))):
        torch.sub(_block(moving, start, shape), fixed, out=difference)
        torch.sum(difference.square_().reshape(len(fixed), -1), dim=0, out=volume[index])
        if report is not None and _is_due(index, fixed.numel()) and report(index / len(table)):
            return None
    return _neutral_where_forbidden(volume, level, radii)


def _is_due(index: int, size: int) -> bool:
    """Whether it is time to report: about every 50 million values."""
    return index % max(1, 50_000_000 // max(size, 1)) == 0


def _check_size(nodes: int, count: int) -> None:
    size = 4 * nodes * count
    if size > _MOST_BYTES:
        raise ParameterError(
            f"The search would compare {nodes} places with {count} displacements each, which takes "
            f"{size / 2**30:.1f} GB; choose a larger search_spacing or a smaller displacement."
        )


def _padded(image: Tensor, radii: Sequence[int], mode: str = "replicate") -> Tensor:
    return F.pad(image, [r for radius in reversed(radii) for r in (radius, radius)], mode=mode)


def _block(image: Tensor, start: Sequence[int], shape: Sequence[int]) -> Tensor:
    for axis, (begin, size) in enumerate(zip(start, shape)):
        image = image.narrow(1 + axis, begin, size)
    return image


def _neutral_where_forbidden(volume: Tensor, level: FeatureLevel, radii: Sequence[int]) -> Tensor:
    if level.moving_mask is not None:
        allowed = _padded(level.moving_mask, radii, "constant")[0]
        starts = list(itertools.product(*(range(2 * r + 1) for r in radii)))
        total, weight = torch.zeros_like(volume[0]), torch.full_like(volume[0], 1e-6)
        for index, start in enumerate(starts):
            share = _block(allowed, start, level.grid.shape).reshape(-1)
            total.addcmul_(volume[index], share)
            weight.add_(share)
        mean = total.div_(weight)
        for index, start in enumerate(starts):
            share = _block(allowed, start, level.grid.shape).reshape(-1)
            volume[index].sub_(mean).mul_(share).add_(mean)
    if level.fixed_mask is not None:
        volume.mul_(level.fixed_mask.reshape(1, -1))
    return volume


def coupled_step(
    volume: Tensor, smooth: Tensor, coefficient: float, radii: Sequence[int], grid: Grid
) -> tuple[Tensor, float]:
    """Finds at each node the displacement of least cost near the smooth displacement there.

    argmin over d of C(x, d) + coefficient |d - v(x)|² (Heinrich et al. 2014, the point-wise half
    of the alternation), with lengths in units of the finest node spacing. It is exact, because
    all displacements are tried.

    Args:
        volume: C, (count, N).
        smooth: v, (1, 3, *shape), in nodes.
        coefficient: Strength of the coupling.
        radii: Reach of the search, in nodes.
        grid: Grid of the nodes.

    Returns:
        Displacement (1, 3, *shape) in nodes, and the mean cost at it.
    """
    table = offsets(radii, volume.device)
    scale = torch.tensor([s / finest_mm(grid) for s in grid.spacing_mm], device=volume.device)
    scaled = table * scale
    # |d - v|² without |v|², which is the same for all d.
    own = coefficient * scaled.square().sum(1, keepdim=True)
    flat = smooth.reshape(3, -1) * scale[:, None]
    width = max(1, _CHUNK_BYTES // (4 * len(table)))
    chosen, value = [], 0.0
    for begin in range(0, volume.shape[1], width):
        part = volume[:, begin : begin + width]
        coupled = torch.addmm(part + own, scaled, flat[:, begin : begin + width],
                              alpha=-2.0 * coefficient)  # fmt: skip
        best = coupled.argmin(dim=0)
        value += float(part.gather(0, best[None]).sum())
        chosen.append(best)
    nearest = table[torch.cat(chosen)].T.reshape(1, 3, *grid.shape).contiguous()
    return nearest, value / volume.shape[1]


def smoothed(displacement: Tensor, grid: Grid) -> Tensor:
    """Averages a displacement over three nodes along each axis, the smooth half of a step.

    Axes whose nodes lie more than twice as far apart as the closest are left alone.
    """
    near = [n > 1 and s < 2.0 * finest_mm(grid) for n, s in zip(grid.shape, grid.spacing_mm)]
    kernel, pad = [3 if a else 1 for a in near], [1 if a else 0 for a in near]
    return F.avg_pool3d(displacement, kernel, 1, pad, count_include_pad=False)


def inverse_consistent(there: Tensor, back: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Brings two displacements towards being each other's inverse.

    Each is replaced by the mean of itself and the inverse that the other stands for,
    u <- (u - w(x + u)) / 2 and w <- (w - u(x + w)) / 2 at the same time (Siebert et al. 2024).

    Args:
        there: u, (1, 3, *shape), in voxels.
        back: w, the same of the other direction.
        rounds: Number of repetitions.
    """
    for _ in range(rounds):
        # compose(w, u) = u + w(x + u), so that u - w(x + u) = 2 u - compose(w, u).
        mended = there - 0.5 * compose_displacements(back, there)
        back = back - 0.5 * compose_displacements(there, back)
        there = mended
    return there, back
