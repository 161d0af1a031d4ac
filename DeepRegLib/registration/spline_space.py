"""The free-form deformations of one level: what they look like, what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry.bspline import BSpline, BSplineLattice, apply_along_axes
from ..geometry.grid import Grid

#: Points of the Gauss-Legendre rule on [0, 1] that integrates polynomials of degree 7 exactly.
_GAUSS = (
    (0.0694318442029737, 0.1739274225687269),
    (0.3300094782075719, 0.3260725774312731),
    (0.6699905217924281, 0.3260725774312731),
    (0.9305681557970263, 0.1739274225687269),
)
#: Where the volume change is looked at within an element, along each axis.
_LOOKS = (0.25, 0.75)
#: Deformations that shrink a place to less than this share of its volume are refused.
LEAST_VOLUME = 0.05


class SplineSpace:
    """Cubic B-splines that are zero at the ends of their domain, as functions of free parameters.

    The deformation is zero at an end where c(0) = 0 and c(-1) = -c(1), so these follow from the
    control points inside, which are the parameters. An axis of one voxel has a single parameter,
    and nothing moves along it.

    Convention:
        Parameters are (3, *shape), displacements (3, *grid.shape), both in mm along the tensor
        axes. Parameters are float64, displacements float32.

    Args:
        lattice: Where the control points lie.
        grid: Grid of the images, parallel to the lattice.
        flat: For each axis, whether it has one voxel only.
        device: Where to compute.
    """

    def __init__(
        self, lattice: BSplineLattice, grid: Grid, flat: Sequence[bool], device: torch.device
    ) -> None:
        self.lattice, self.grid, self.flat = lattice, grid, tuple(flat)
        self._expansion = [_expansion(m, f) for m, f in zip(lattice.mesh, flat)]
        self.shape = tuple(e.shape[1] for e in self._expansion)
        self._device = device
        evaluate = [
            lattice.basis(axis, p) @ self._expansion[axis]
            for axis, p in enumerate(lattice.positions(grid))
        ]
        self._evaluate = [m.to(device, torch.float32) for m in evaluate]
        self._gather = [m.T.contiguous() for m in self._evaluate]
        self._project = [torch.linalg.pinv(m) for m in evaluate]
        self._gram = [self._gram_matrices(axis) for axis in range(3)]
        self._looks = [self._look_matrices(axis) for axis in range(3)]
        self._moves = torch.tensor([0.0 if f else 1.0 for f in flat], dtype=torch.float64)
        self._moves = self._moves.to(device).view(3, 1, 1, 1)

    def zero(self) -> Tensor:
        """Returns the parameters of the deformation that moves nothing."""
        return torch.zeros(3, *self.shape, dtype=torch.float64, device=self._device)

    def displacement_mm(self, parameters: Tensor) -> Tensor:
        """Returns the displacement on the grid."""
        return apply_along_axes(self._evaluate, parameters.float())

    def gathered(self, gradient: Tensor) -> Tensor:
        """Returns the gradient by the parameters from one by the displacement (3, *grid.shape).

        Motion along axes of one voxel is not held back yet, see `held`.
        """
        return apply_along_axes(self._gather, gradient).double()

    def held(self, parameters: Tensor) -> Tensor:
        """Returns parameters without motion along axes of one voxel."""
        return parameters * self._moves

    def projected(self, displacement_mm: Tensor) -> Tensor:
        """Returns the parameters that come nearest to a displacement (3, *grid.shape)."""
        matrices = [m.to(displacement_mm.device) for m in self._project]
        return self.held(apply_along_axes(matrices, displacement_mm.double()).to(self._device))

    def refined(self, parameters: Tensor, finer: SplineSpace) -> Tensor:
        """Returns the parameters of the same deformation in a space of half the spacing."""
        _, matrices = self.lattice.refined(finer.lattice.mesh)
        control = apply_along_axes([m.to(parameters) for m in matrices], self._control(parameters))
        inner = [slice(1, 2) if f else slice(2, -2) for f in self.flat]
        return control[(slice(None), *inner)].contiguous()

    def spline(self, parameters: Tensor) -> BSpline:
        """Returns the deformation with its control points in RAS mm."""
        grid = self.lattice.grid
        columns = torch.tensor(grid.voxel_to_ras[:3, :3] / grid.spacing_mm).to(parameters)
        control = self._control(parameters)
        vectors = (columns @ control.flatten(1)).reshape(control.shape)
        return BSpline(self.lattice, vectors[None])

    def bending(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean squared second derivative in mm² per mm⁴, and its gradient.

        Rueckert et al. 1999, eq. 4, integrated exactly over the domain.
        """
        moving = [axis for axis in range(3) if not self.flat[axis]]
        gradient = torch.zeros_like(parameters)
        for a in moving:
            for b in moving:
                orders = [(a == axis) + (b == axis) for axis in range(3)]
                matrices = [self._gram[axis][order] for axis, order in enumerate(orders)]
                gradient += apply_along_axes(matrices, parameters)
        gradient = self.held(gradient)
        return (parameters * gradient).sum(), gradient.mul_(2.0)

    def volume(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean of (log det J)² over points in every element, and its gradient.

        The value is infinite if a place folds or shrinks to less than `LEAST_VOLUME`. With J = I +
        du/dx, the derivative of log det J by J is the transposed inverse of J.
        """
        jacobian = torch.stack([self._derivative(parameters, a) for a in range(3)], dim=1)
        for axis in range(3):
            jacobian[axis, axis] += 1.0
        cofactor = _cofactors(jacobian)
        determinant = (jacobian[0] * cofactor[0]).sum(0)
        if float(determinant.min()) < LEAST_VOLUME:
            return determinant.new_tensor(math.inf), torch.zeros_like(parameters)
        log = determinant.log()
        slope = log.mul(2.0 / log.numel()).div_(determinant)
        gradient = torch.zeros_like(parameters)
        for axis in range(3):
            matrices = [self._looks[b][int(a)].T for b, a in enumerate(_one_hot(axis))]
            gradient += apply_along_axes(matrices, cofactor[:, axis] * slope).double()
        return log.square().mean().double(), self.held(gradient)

    def smallest_volume(self, parameters: Tensor) -> float:
        """Returns the smallest determinant of the Jacobian at the points of `volume`."""
        jacobian = torch.stack([self._derivative(parameters, a) for a in range(3)], dim=1)
        for axis in range(3):
            jacobian[axis, axis] += 1.0
        return float((jacobian[0] * _cofactors(jacobian)[0]).sum(0).min())

    def _derivative(self, parameters: Tensor, axis: int) -> Tensor:
        matrices = [self._looks[b][int(a)] for b, a in enumerate(_one_hot(axis))]
        return apply_along_axes(matrices, parameters.float())

    def _control(self, parameters: Tensor) -> Tensor:
        return apply_along_axes([e.to(parameters) for e in self._expansion], parameters)

    def _gram_matrices(self, axis: int) -> list[Tensor]:
        """Means over the domain of products of basis functions: values, slopes, curvatures."""
        mesh, spacing = self.lattice.mesh[axis], self.lattice.spacing_mm[axis]
        elements = torch.arange(mesh, dtype=torch.float64)
        position = torch.cat([elements + place for place, _ in _GAUSS])
        weight = torch.cat([torch.full_like(elements, w / mesh) for _, w in _GAUSS])
        matrices = []
        for order in range(3):
            basis = self.lattice.basis(axis, position, order) @ self._expansion[axis]
            basis = basis / spacing**order
            matrices.append((basis.T @ (basis * weight[:, None])).to(self._device))
        return matrices

    def _look_matrices(self, axis: int) -> list[Tensor]:
        elements = torch.arange(self.lattice.mesh[axis], dtype=torch.float64)
        looks = (0.5,) if self.flat[axis] else _LOOKS
        position = torch.cat([elements + place for place in looks])
        spacing = self.lattice.spacing_mm[axis]
        return [
            (self.lattice.basis(axis, position, order) @ self._expansion[axis] / spacing**order)
            .to(self._device, torch.float32)
            for order in range(2)
        ]  # fmt: skip


def _expansion(mesh: int, flat: bool) -> Tensor:
    """Matrix (mesh + 3, parameters) from the parameters to all control points of an axis."""
    if flat:
        return torch.ones(mesh + 3, 1, dtype=torch.float64)
    matrix = torch.zeros(mesh + 3, mesh - 1, dtype=torch.float64)
    matrix[2:-2] = torch.eye(mesh - 1, dtype=torch.float64)
    matrix[0], matrix[-1] = -matrix[2], -matrix[-3]
    return matrix


def _one_hot(axis: int) -> list[bool]:
    return [axis == other for other in range(3)]


def _cofactors(m: Tensor) -> Tensor:
    """Cofactors of matrices (3, 3, ...): the determinant's derivatives by their entries."""
    rows = []
    for r in range(3):
        a, b = m[(r + 1) % 3], m[(r + 2) % 3]
        rows.append(torch.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2],
                                 a[0] * b[1] - a[1] * b[0]]))  # fmt: skip
    return torch.stack(rows)
