"""Refinement of a displacement by Adam on feature images, and the repair of folds.

The displacement is a box-smoothed grid of free vectors. All gradients are analytic: no tape is
recorded, which makes an iteration cost little more than sampling the features once.

References:
    Siebert, Grossbroehmer, Hansen, Heinrich. ConvexAdam: self-configuring dual-optimization-based
    3D multitask medical image registration. IEEE Transactions on Medical Imaging, 2024.
    doi:10.1109/TMI.2024.3436315 (section on instance optimization).
    Kingma, Ba. Adam: a method for stochastic optimization. ICLR 2015, arXiv:1412.6980
    (algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..geometry.field import fade_window
from ..geometry.grid import Grid
from ..geometry.jacobian import axis_gradient
from ..geometry.sampling import sample, voxel_coordinates

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
#: Box averages over three voxels along the finest axis.
_PASSES = 3

#: Gets iteration, objective and displacement; says whether to stop.
Report = Callable[[int, float, Tensor], bool]


@dataclass(frozen=True, eq=False)
class FeatureLevel:
    """Features of both images on one grid, at one resolution.

    Convention:
        Features are (1, C, *grid.shape), masks (1, 1, *grid.shape) with weights 0 ... 1 or None
        for everywhere. The moving features are in the fixed space already, so a displacement in
        voxels of `grid` is all that is left to find.
    """

    fixed: Tensor
    moving: Tensor
    fixed_mask: Tensor | None
    moving_mask: Tensor | None
    grid: Grid


@dataclass(frozen=True)
class AdamSettings:
    """Settings of one refinement.

    Args:
        iterations: Number of steps.
        step: Length of the first steps, in voxels of the finest axis.
        diffusion: Weight of the squared gradient of the displacement (mm per mm).
        rim: Voxels over which the displacement fades to zero at the edge.
    """

    iterations: int
    step: float
    diffusion: float
    rim: int


def refine(
    level: FeatureLevel, start: Tensor, settings: AdamSettings, report: Report | None = None
) -> Tensor:
    """Lowers the objective (see `objective`) by Adam, beginning at a displacement.

    Iterations look at the even and the odd channels in turn, which halves their cost: Adam's
    memory of past gradients makes up for the other half. The step falls to a tenth over the last
    half, so that the result does not hang on the moment at which the iterations end.

    Args:
        level: What is compared.
        start: (1, 3, *shape) in voxels of the level's grid.
        settings: See `AdamSettings`.
        report: Called after each iteration with its number, the value before it and the
            displacement after it; ends the iterations by returning True.

    Returns:
        Displacement (1, 3, *shape) in voxels, zero at the edge.
    """
    spacing = level.grid.spacing_mm
    passes = smoothing_passes(level.grid)
    window = fade_window(level.grid.shape, settings.rim, start.device)
    # A step has the same length in mm along every axis, and so has the smoothing.
    steps = torch.tensor([min(spacing) / s for s in spacing], device=start.device)
    steps = steps.view(1, 3, 1, 1, 1)
    identity = voxel_coordinates(level.grid.shape, start.device)
    free = start.clone()
    mean, square = torch.zeros_like(free), torch.zeros_like(free)
    displacement = box_smooth(free, passes).mul_(window)
    parts, values = _in_turn(level), [float("nan")] * 2
    for iteration in range(settings.iterations):
        turn, share = iteration % len(parts), 1.0 / len(parts)
        value, slope = objective(parts[turn], displacement, settings.diffusion * share, identity)
        values[turn] = float(value)
        # Box averages with zeros outside are their own adjoint.
        slope = box_smooth(slope.mul_(window), passes)
        mean.lerp_(slope, 1.0 - _BETA1)
        square.mul_(_BETA2).addcmul_(slope, slope, value=1.0 - _BETA2)
        k = iteration + 1
        root = (square / (1.0 - _BETA2**k)).sqrt_().add_(_EPSILON)
        length = settings.step * _falling(iteration / max(settings.iterations - 1, 1))
        update = mean.div(root).mul_(steps).mul_(length / (1.0 - _BETA1**k))
        free.sub_(update)
        displacement = box_smooth(free, passes).mul_(window)
        both = values[0] + values[1] if len(parts) == 2 and iteration else values[0] * len(parts)
        if report is not None and report(iteration, both, displacement):
            break
    return displacement


def _in_turn(level: FeatureLevel) -> list[FeatureLevel]:
    """Returns the level with its even and with its odd channels; the whole if there is one."""
    if level.fixed.shape[1] == 1:
        return [level]
    return [
        replace(
            level,
            fixed=level.fixed[:, k::2].contiguous(),
            moving=level.moving[:, k::2].contiguous(),
        )
        for k in (0, 1)
    ]


def _falling(done: float) -> float:
    return 1.0 if done < 0.5 else 1.0 - 0.9 * (done - 0.5) / 0.5


def objective(
    level: FeatureLevel, displacement: Tensor, diffusion: float, identity: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the objective and its gradient with respect to the displacement.

    mean over the mask of |moving(x + u) - fixed(x)|² (summed over the channels) + `diffusion`
    times the mean squared gradient of u (summed over components and axes, in mm per mm).

    Returns:
        Value (scalar) and gradient, both for the mean over the voxels of the objective times the
        number of voxels, so that the gradient does not vanish on large grids.
    """
    if identity is None:
        identity = voxel_coordinates(level.grid.shape, displacement.device)
    where = identity + displacement
    moved = sample(level.moving, where)
    weight = level.fixed_mask
    if level.moving_mask is not None:
        there = sample(level.moving_mask, where)
        weight = there if weight is None else weight * there
    difference = moved - level.fixed
    density = difference.square().sum(1, keepdim=True)
    if weight is not None:
        weight = weight / weight.mean().clamp(min=1e-6)
        density = density * weight
    value = density.mean()
    parts = [axis_gradient(moved, a).mul_(difference).sum(1) for a in range(3)]
    force = _through_inverse_jacobian(parts, displacement)
    if weight is not None:
        force = force * weight
    penalty, slope = diffusion_and_gradient(displacement, level.grid.spacing_mm)
    return value + diffusion * penalty, force.mul_(2.0).add_(slope, alpha=diffusion)


def _through_inverse_jacobian(parts: Sequence[Tensor], displacement: Tensor) -> Tensor:
    """Turns sums with the gradient of the moved image into sums with that of the moving image.

    grad(m o phi) = J^T (grad m) o phi with J = I + grad u, so (grad m) o phi = J^-T grad(m o phi):
    cofactors over the determinant. Differentiating the moved features saves sampling three more
    images for each channel.
    """
    u = displacement
    rows = [[axis_gradient(u[:, c : c + 1], a)[:, 0] for a in range(3)] for c in range(3)]
    for c in range(3):
        rows[c][c] += 1.0
    cofactor = [[_minor(rows, c, a) for a in range(3)] for c in range(3)]
    det = sum(rows[0][a] * cofactor[0][a] for a in range(3))
    assert isinstance(det, Tensor)
    det = det.clamp(min=0.1)  # a place that is about to fold gets a bounded force
    force = [
        (cofactor[c][0] * parts[0] + cofactor[c][1] * parts[1] + cofactor[c][2] * parts[2]) / det
        for c in range(3)
    ]
    return torch.stack(force, dim=1)


def _minor(rows: list[list[Tensor]], row: int, column: int) -> Tensor:
    """Cofactor of an entry of a 3 x 3 matrix; the cyclic order takes care of the sign."""
    a, b = (row + 1) % 3, (row + 2) % 3
    c, d = (column + 1) % 3, (column + 2) % 3
    return rows[a][c] * rows[b][d] - rows[a][d] * rows[b][c]


def diffusion_and_gradient(
    displacement: Tensor, spacing_mm: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Mean squared forward differences of a displacement, in mm per mm, with their gradient.

    The gradient is scaled by the number of voxels, as in `objective`. Forward differences see the
    checkerboards that central ones (`losses/diffusion.py`) are blind to.

    Args:
        displacement: (1, 3, D, H, W) in voxels.
        spacing_mm: Voxel size along the tensor axes.
    """
    count = displacement[0, 0].numel()
    gradient = torch.zeros_like(displacement)
    value = displacement.new_zeros(())
    for axis in range(3):
        dim, size = 2 + axis, displacement.shape[2 + axis]
        if size == 1:
            continue
        ratio = torch.tensor([(s / spacing_mm[axis]) ** 2 for s in spacing_mm])
        difference = torch.diff(displacement, dim=dim)
        scaled = difference * ratio.to(displacement).view(1, 3, 1, 1, 1)
        value = value + (difference * scaled).sum() / count
        gradient.narrow(dim, 1, size - 1).add_(scaled, alpha=2.0)
        gradient.narrow(dim, 0, size - 1).sub_(scaled, alpha=2.0)
    return value, gradient


def smoothing_passes(grid: Grid) -> tuple[int, int, int]:
    """Box averages along each axis, fewer along coarse ones: their variances add up in mm²."""
    finest = min(grid.spacing_mm if grid.size == 1 else
                 [s for s, n in zip(grid.spacing_mm, grid.shape) if n > 1])  # fmt: skip
    a, b, c = (
        0 if n == 1 else round(_PASSES * min(1.0, finest / s) ** 2)
        for s, n in zip(grid.spacing_mm, grid.shape)
    )
    return a, b, c


def box_smooth(image: Tensor, passes: Sequence[int]) -> Tensor:
    """Averages over three voxels so many times along each axis, with zeros outside.

    Zeros outside make it symmetric, so that it is its own adjoint.
    """
    for axis, count in enumerate(passes):
        dim, size = 2 + axis, image.shape[2 + axis]
        for _ in range(count):
            result = image / 3.0
            result.narrow(dim, 1, size - 1).add_(image.narrow(dim, 0, size - 1), alpha=1 / 3)
            result.narrow(dim, 0, size - 1).add_(image.narrow(dim, 1, size - 1), alpha=1 / 3)
            image = result
    return image
