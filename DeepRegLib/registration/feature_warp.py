"""A transform of few numbers, found by back-propagation of any similarity through the warped image.

The transform is x -> A(x + u(x)) in voxels, with u a smooth interpolation of a coarse grid of
vectors v, and A an affine map with the parameters theta. Minimized by Adam, from coarse to fine, is

    E = sum_r w_r similarity(moving o A o (id + u), fixed_r)
        + alpha |theta|² + beta mean |v|² + gamma mean |grad v|²

over one or several reference images. Volumes and single sections are taken alike: nothing moves
along an axis of one voxel.

References:
    Yoo, Hildebrand, Tobin, Lee, Jeong. ssEMnet: Serial-section electron microscopy image
    registration using a spatial transformer network with learned features. 2017, arXiv:1707.07833.
    Kingma, Ba. Adam. 2015, arXiv:1412.6980.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..geometry.bspline import apply_along_axes
from ..geometry.sampling import cubic_bspline, inside_image, resize_image, sample
from ..losses.base import BoundSimilarity, Similarity
from ..networks.composite import composed
from .folds import without_folds

#: Share of the iterations after which the step begins to fall, and what it falls to.
_CONSTANT, _LAST = 0.5, 0.1
#: Gives the similarity for a level whose voxels are so many times those of the finest.
Measure = Callable[[tuple[float, float, float]], Similarity]


@dataclass(frozen=True)
class WarpSettings:
    """How the transform is found; lengths in voxels of the images.

    Args:
        spacing: Distance of the vectors.
        factors: Voxel size of each level in units of the finest.
        iterations: Steps at each level.
        step: Largest change of a vector in one step, in voxels of the level.
        alpha: Weight of the affine map, whose parameters count voxels at the rim of the image.
        beta: Weight of the squared vectors.
        gamma: Weight of their squared differences per distance.
        upsampling: ``spline`` (cubic B-spline) or ``linear``, between the vectors.
        affine: Whether there is an affine map beside the vectors.
    """

    spacing: float = 6.0
    factors: tuple[int, ...] = (4, 2, 1)
    iterations: tuple[int, ...] = (40, 40, 30)
    step: float = 0.2
    alpha: float = 1e-3
    beta: float = 1e-4
    gamma: float = 0.05
    upsampling: str = "spline"
    affine: bool = True

    def __post_init__(self) -> None:
        if len(self.factors) != len(self.iterations):
            raise InputError(
                f"There are {len(self.factors)} levels but {len(self.iterations)} numbers of "
                "iterations; give one number of iterations for each level."
            )


@dataclass(frozen=True, eq=False)
class Reference:
    """An image to be matched.

    Args:
        image: (1, 1, *shape), 0 to 1.
        mask: Where it counts, (1, 1, *shape); everywhere if None.
        weight: How much it counts.
    """

    image: Tensor
    mask: Tensor | None = None
    weight: float = 1.0


@dataclass(eq=False)
class Warp:
    """A transform x -> A(x + u(x)) on a grid of voxels, with its parameters.

    Args:
        vectors: v, (1, 3, *coarse grid), in voxels.
        theta: Deviations of A from the identity, (3, 4): shifts (last column) and linear part, in
            voxels at the distance `radius` from the middle.
        shape: Voxels of the grid.
        upsampling: How vectors become a displacement.
    """

    vectors: Tensor
    theta: Tensor
    shape: tuple[int, int, int]
    upsampling: str
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def identity(cls, shape: Sequence[int], settings: WarpSettings, device: torch.device) -> Warp:
        """Returns the transform that moves nothing."""
        a, b, c = (int(n) for n in shape)
        coarse = [nodes_of(n, settings.spacing, settings.upsampling) for n in shape]
        return cls(
            torch.zeros(1, 3, *coarse, device=device),
            torch.zeros(3, 4, device=device),
            (a, b, c),
            settings.upsampling,
        )

    @property
    def radius(self) -> float:
        """Half the longest side in voxels."""
        return max(self.shape) / 2.0

    def displacement(self, shape: Sequence[int]) -> Tensor:
        """Returns u, (1, 3, *shape), on a grid of any shape over the same extent, in its voxels."""
        matrices, ratios = [], []
        for size, whole, nodes in zip(shape, self.shape, self.vectors.shape[2:]):
            basis = node_weights(size, nodes, self.upsampling)
            matrices.append(basis.to(self.vectors))
            ratios.append(size / whole)
        scale = torch.tensor(ratios).to(self.vectors).view(1, 3, 1, 1, 1)
        return apply_along_axes(matrices, self.vectors) * scale * self._free(3)

    def matrix(self, shape: Sequence[int]) -> Tensor:
        """Returns A, (1, 4, 4), in voxels of a grid of any shape over the same extent."""
        free = self._free(2).reshape(3, 1)
        eye = torch.eye(4).to(self.theta)
        # Along an axis of one voxel nothing moves, and nothing depends on it.
        theta = self.theta * free * torch.cat([free.reshape(1, 3), free.new_ones(1, 1)], dim=1)
        linear = eye[:3, :3] + theta[:, :3] / self.radius
        middle = torch.tensor([(n - 1) / 2 for n in self.shape]).to(theta)
        shift = middle + theta[:, 3] - linear @ middle
        whole = torch.cat([torch.cat([linear, shift[:, None]], dim=1), eye[3:]])
        # Voxel centers of a coarser grid lie at r (x + 1/2) - 1/2 of the finer one.
        ratio = torch.tensor([n / m for n, m in zip(self.shape, shape)]).to(theta)
        onto = torch.diag(torch.cat([ratio, ratio.new_ones(1)]))
        onto[:3, 3] = (ratio - 1.0) / 2.0
        return (torch.linalg.inv(onto) @ whole @ onto)[None]

    def positions(self, shape: Sequence[int]) -> Tensor:
        """Returns where the voxels of a grid of any shape are taken, (1, 3, *shape)."""
        return composed(shape, self.matrix(shape), self.displacement(shape))

    def settled(self) -> Tensor:
        """Returns u on the grid without folds, (1, 3, *shape), without a tape."""
        with torch.no_grad():
            return without_folds(self.displacement(self.shape).contiguous())

    def _free(self, dims: int) -> Tensor:
        """Ones along axes of several voxels, zeros along others; (1, 3, 1, 1, 1) or (3, 1)."""
        free = torch.tensor([float(n > 1) for n in self.shape]).to(self.vectors)
        return free.view(1, 3, 1, 1, 1) if dims == 3 else free.view(3, 1)


#: Gets the level, the iteration, the value and the transform so far; True ends the search.
Report = Callable[[int, int, float, Warp], bool]


def align(
    references: Sequence[Reference],
    moving: Reference,
    measure: Measure,
    settings: WarpSettings,
    start: Warp | None = None,
    report: Report | None = None,
) -> Warp:
    """Finds the transform that takes a moving image to its references.

    Args:
        references: What is to be matched, all of one shape.
        moving: What is moved, on the same grid; its weight does not matter.
        measure: Gives the similarity of each level.
        settings: See `WarpSettings`.
        start: Where to begin; at the identity if omitted.
        report: Called after each step.

    Returns:
        The transform, with the value of each step in its history.
    """
    shape = tuple(moving.image.shape[2:])
    warp = start or Warp.identity(shape, settings, moving.image.device)
    history: list[dict[str, Any]] = []
    for index, (factor, count) in enumerate(zip(settings.factors, settings.iterations)):
        level = _Level(references, moving, measure, factor)
        ended = _descend(warp, level, settings, index, count, history, report)
        if ended:
            break
    warp.vectors, warp.theta = warp.vectors.detach(), warp.theta.detach()
    warp.history = history
    return warp


class _Level:
    """The images at one resolution, and the similarity as a function of the transform."""

    def __init__(
        self, references: Sequence[Reference], moving: Reference, measure: Measure, factor: int
    ) -> None:
        whole = moving.image.shape[2:]
        self.shape = [n if n == 1 else max(2, round(n / factor)) for n in whole]
        a, b, c = (n / m for n, m in zip(whole, self.shape))
        similarity = measure((a, b, c))
        self._moving = self._coarse(moving.image)
        self._mask = None if moving.mask is None else self._coarse(moving.mask)
        self._bound: list[tuple[float, BoundSimilarity, Tensor | None]] = []
        total = sum(r.weight for r in references)
        for reference in references:
            image = self._coarse(reference.image)
            mask = None if reference.mask is None else self._coarse(reference.mask)
            self._bound.append((reference.weight / total, similarity.bind(image, mask), mask))

    def value(self, warp: Warp) -> Tensor:
        """Returns the similarity, with its tape to the parameters."""
        where = warp.positions(self.shape)
        moved = sample(self._moving, where)
        with torch.no_grad():
            inside = inside_image(where, self.shape)
            mask = None if bool(inside.all()) else inside.to(moved.dtype)
            if self._mask is not None:
                there = sample(self._mask, where)
                mask = there if mask is None else mask * there
        total = moved.new_zeros(())
        for weight, bound, own in self._bound:
            both = mask if own is None or mask is None else mask * own
            total = total + weight * bound.value(moved, both)
        return total

    def _coarse(self, image: Tensor) -> Tensor:
        return resize_image(image, self.shape)


def _descend(
    warp: Warp,
    level: _Level,
    settings: WarpSettings,
    index: int,
    count: int,
    history: list[dict[str, Any]],
    report: Report | None,
) -> bool:
    """Makes the steps of one level; returns whether the whole search is to end."""
    warp.vectors = warp.vectors.detach().requires_grad_(True)
    warp.theta = warp.theta.detach().requires_grad_(settings.affine)
    rate = settings.step * settings.factors[index]
    learning = [warp.vectors, warp.theta] if settings.affine else [warp.vectors]
    adam = torch.optim.Adam(learning, lr=rate)
    for iteration in range(count):
        for group in adam.param_groups:
            group["lr"] = rate * _falling(iteration / max(count - 1, 1))
        with torch.enable_grad():
            value = level.value(warp) + penalty(warp, settings)
        if not math.isfinite(float(value.detach())):
            return True
        adam.zero_grad(set_to_none=True)
        value.backward()
        adam.step()
        number = float(value.detach())
        history.append({"level": index, "iteration": iteration, "value": number})
        if report is not None and report(index, iteration, number, warp):
            return True
    return False


def penalty(warp: Warp, settings: WarpSettings) -> Tensor:
    """Returns alpha |theta|² + beta mean |v|² + gamma mean |grad v|², with its tape."""
    v = warp.vectors * warp._free(3)
    total = settings.alpha * warp.theta.square().sum()
    total = total + settings.beta * v.square().sum(dim=1).mean()
    for axis, (size, nodes) in enumerate(zip(warp.shape, v.shape[2:])):
        if size == 1 or nodes < 2:
            continue
        distance = node_distance(size, nodes, warp.upsampling)
        slope = torch.diff(v, dim=2 + axis) / distance
        total = total + settings.gamma * slope.square().sum(dim=1).mean()
    return total


def nodes_of(size: int, spacing: float, upsampling: str) -> int:
    """Returns how many vectors there are along an axis: those of splines reach beyond the ends."""
    if size == 1:
        return 1
    intervals = max(1, round(size / spacing))
    return intervals + (3 if upsampling == "spline" else 1)


def node_distance(size: int, nodes: int, upsampling: str) -> float:
    """Returns the distance of neighboring vectors in voxels."""
    intervals = nodes - (3 if upsampling == "spline" else 1)
    return size / max(intervals, 1)


def node_weights(size: int, nodes: int, upsampling: str) -> Tensor:
    """Returns the weights of the vectors along an axis at each voxel, (size, nodes).

    The vectors are spread evenly between the outer edges of the grid, so that grids of any
    resolution share them.
    """
    if nodes == 1:
        return torch.ones(size, 1)
    reach = 3 if upsampling == "spline" else 1
    intervals = nodes - reach
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / size * intervals
    node = torch.arange(nodes, dtype=torch.float64) - (1.0 if upsampling == "spline" else 0.0)
    away = place[:, None] - node[None]
    if upsampling == "spline":
        return cubic_bspline(away)
    return F.relu(1.0 - away.abs())


def _falling(done: float) -> float:
    if done < _CONSTANT:
        return 1.0
    return 1.0 - (1.0 - _LAST) * (done - _CONSTANT) / (1.0 - _CONSTANT)
