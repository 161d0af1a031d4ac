"""How the deformations of a population vary: principal modes, and who is unlike the others.

The fields of n registrations with one fixed image lie on one grid. Their principal modes are those
of the sample covariance, found by `LocalCovariance` without damping; where a region is given, only
its voxels count, and the modes are continued outside by the very mixtures of fields that they are.
With velocities, whose exponentials are the displacements, everything along a mode can be inverted
(Arsigny et al. 2006, doi:10.1007/11866565_113).

A field that was used to find the modes is always explained by them. How atypical it is shows in
what the modes of all the others leave of it, and in how far out it lies along these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, ParameterError
from ..geometry.field import Field
from ..geometry.grid import Grid
from ..geometry.inverse import invert_displacement
from ..geometry.transform import Transform
from ..geometry.velocity import exponential
from ..networks.blocks import resized_vectors
from .local_statistics import LocalCovariance

#: What the fields may be.
KINDS = ("displacement", "velocity")
#: Least number of fields that have modes, and of those that can be compared with the others.
LEAST, LEAST_COMPARED = 3, 4
#: Share of the variance that a population is described by.
SHARE = 0.95
#: Voxels along the longest axis of the fields that are compared with each other.
_COMPARED = 40


@dataclass(frozen=True)
class Atypicality:
    """How unlike all others a field is.

    Args:
        name: Whose it is.
        residual_mm: Root mean square of what the modes of the others do not explain.
        deviation: Root mean square of the coefficients along these modes, in standard deviations.
    """

    name: str
    residual_mm: float
    deviation: float


@dataclass(frozen=True, eq=False)
class FieldModes:
    """Fields of a population and their modes.

    Convention:
        Fields are (n, 3, *grid.shape) in voxels of `grid`, component c along tensor axis c. A mode
        is as long as one standard deviation, and coefficients count standard deviations.

    Args:
        names: Whose fields they are.
        fields: Displacements u with moved(x) = moving(x + u(x)), or stationary velocities.
        grid: Their grid, in the space of the fixed image.
        inside: Where they count, (1, 1, *grid.shape); everywhere if None.
        kind: ``displacement`` or ``velocity``.

    Raises:
        InputError: If there are fewer than three fields, or the arrays do not fit.
    """

    names: tuple[str, ...]
    fields: Tensor
    grid: Grid
    inside: Tensor | None = None
    kind: str = "displacement"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ParameterError(f"Fields are {' or '.join(KINDS)}, not '{self.kind}'.")
        if len(self.fields) < LEAST or len(self.names) != len(self.fields):
            raise InputError(
                f"Modes need at least {LEAST} fields, each with a name, but there are "
                f"{len(self.fields)} and {len(self.names)} names."
            )
        fits = tuple(self.fields.shape[1:]) == (3, *self.grid.shape)
        if not fits or not bool(torch.isfinite(self.fields).all()):
            raise InputError(
                f"Fields on {self.grid} have the shape (n, 3, *grid.shape) and finite values, but "
                f"got {tuple(self.fields.shape)}."
            )

    @property
    def variances(self) -> Tensor:
        """Variances of the modes, (K,), descending, in mm² summed over the voxels that count."""
        return self._solved[0]

    @property
    def coefficients(self) -> Tensor:
        """Coefficients of each field, (n, K)."""
        return self._solved[1]

    @cached_property
    def mean(self) -> Tensor:
        """Mean field, (1, 3, *shape)."""
        return self.fields.mean(dim=0, keepdim=True)

    @cached_property
    def total(self) -> float:
        """Sum of the variances of all modes."""
        return float(self.variances.double().sum())

    @cached_property
    def _solved(self) -> tuple[Tensor, Tensor]:
        deviations = self._weighted(self.fields - self.mean)
        return principal(deviations, self.grid.spacing_mm, len(self.fields) - 1)

    def mode(self, number: int) -> Tensor:
        """Returns a mode, (1, 3, *shape).

        Args:
            number: From 0.

        Raises:
            ParameterError: If there is no such mode.
        """
        count = len(self.variances)
        if not 0 <= number < count:
            raise ParameterError(
                f"There are {count} modes, so none of number {number + 1}; ask for fewer."
            )
        weights = self.coefficients[:, number] / (len(self.fields) - 1)
        return torch.einsum("n,ncdhw->cdhw", weights, self.fields - self.mean)[None]

    def explained(self) -> list[float]:
        """Returns the share of the variance that the first 1, 2, ... modes hold."""
        return shares_of(self.variances)

    def count_for(self, share: float = SHARE) -> int:
        """Returns how many modes hold a share of the variance."""
        return count_for(self.explained(), share)

    def size_mm(self) -> float:
        """Returns the root mean square length of the fields' deviations from their mean."""
        return math.sqrt(self.total / self._counted)

    def transform(self, coefficients: Sequence[float], inverse: bool = False) -> Transform:
        """Returns the deformation with given coefficients along the first modes; the rest are 0.

        Args:
            coefficients: In standard deviations.
            inverse: Whether to return its inverse. Pulled back through that, the fixed image looks
                like the subject; pulled back through the deformation itself, a subject looks like
                the fixed image.
        """
        field = self.mean
        for number, coefficient in enumerate(coefficients):
            if coefficient:
                field = field + float(coefficient) * self.mode(number)
        if self.kind == "velocity":
            field = exponential(-field if inverse else field)
        elif inverse:
            field, _ = invert_displacement(field)
        return Transform(np.eye(4), Field(field, self.grid))

    def along(
        self, mode: int, deviations: Sequence[float], inverse: bool = False
    ) -> list[Transform]:
        """Returns deformations along one mode, at so many standard deviations from the mean."""
        self.mode(mode)
        return [self.transform([0.0] * mode + [d], inverse) for d in deviations]

    def ranking(self, share: float = SHARE) -> list[Atypicality]:
        """Compares each field with the modes of all the others; the most atypical comes first.

        Args:
            share: Share of the others' variance that their modes hold.

        Raises:
            InputError: If there are too few fields.
        """
        if len(self.fields) < LEAST_COMPARED:
            raise InputError(
                f"At least {LEAST_COMPARED} fields can be compared with the others, but there are "
                f"{len(self.fields)}; add registrations."
            )
        small = self._coarser()
        found = [small._beside_others(index, share) for index in range(len(small.fields))]
        return sorted(found, key=lambda one: (-one.residual_mm, one.name))

    def summary(self) -> dict[str, Any]:
        """Returns figures of the population for JSON."""
        return {
            "fields": len(self.fields),
            "names": list(self.names),
            "kind": self.kind,
            "shape": list(self.grid.shape),
            "spacing_mm": [round(v, 6) for v in self.grid.spacing_mm],
            "size_mm": round(self.size_mm(), 5),
            "modes_for_95_percent": self.count_for(0.95),
            "variance_explained": [round(v, 6) for v in self.explained()],
        }

    @property
    def _counted(self) -> float:
        """Number of the voxels that count."""
        return float(self.grid.size if self.inside is None else max(1.0, float(self.inside.sum())))

    def _weighted(self, fields: Tensor) -> Tensor:
        """Returns fields in mm, zero where they do not count."""
        scale = torch.tensor(self.grid.spacing_mm, dtype=fields.dtype).view(1, 3, 1, 1, 1)
        inside = 1.0 if self.inside is None else self.inside.to(fields.dtype)
        return fields * scale * inside

    def _coarser(self) -> FieldModes:
        """Returns the same fields with fewer voxels, for comparisons of each with all."""
        most = max(self.grid.shape)
        if most <= _COMPARED:
            return self
        a, b, c = (max(1, round(n * _COMPARED / most)) for n in self.grid.shape)
        inside = self.inside
        if inside is not None:
            inside = torch.nn.functional.adaptive_avg_pool3d(inside.float(), (a, b, c)) >= 0.5
        fields = resized_vectors(self.fields, (a, b, c))
        return FieldModes(self.names, fields, self.grid.resized((a, b, c)), inside, self.kind)

    def _beside_others(self, index: int, share: float) -> Atypicality:
        others = torch.cat([self.fields[:index], self.fields[index + 1 :]])
        mean = others.mean(dim=0, keepdim=True)
        deviations = self._weighted(others - mean)
        own = self._weighted(self.fields[index : index + 1] - mean)
        covariance = LocalCovariance(deviations, self.grid.spacing_mm, (0.0,))
        variances, modes = covariance.modes(len(others) - 1)
        kept = count_for(shares_of(variances), share)
        modes, variances = modes[:kept], variances[:kept]
        along = (own * modes).sum(dim=(1, 2, 3, 4)) / variances
        left = own - torch.einsum("k,kcdhw->cdhw", along, modes)
        residual = math.sqrt(float(left.double().square().sum()) / self._counted)
        deviation = float(along.double().square().mean().sqrt()) if kept else 0.0
        return Atypicality(self.names[index], residual, deviation)


def principal(deviations: Tensor, spacing_mm: Sequence[float], most: int) -> tuple[Tensor, Tensor]:
    """Returns the variances of the leading modes, (K,), and the coefficients of fields, (n, K).

    Args:
        deviations: Fields less their mean, (n, C, *shape).
        spacing_mm: Voxel size along each axis.
        most: Most modes.
    """
    variances, modes = LocalCovariance(deviations, spacing_mm, (0.0,)).modes(most)
    return variances, (deviations.flatten(1) @ modes.flatten(1).T) / variances


def shares_of(variances: Tensor) -> list[float]:
    """Returns the share of the variance that the first 1, 2, ... modes hold."""
    sums = variances.double().cumsum(0)
    return [] if not len(sums) else (sums / sums[-1].clamp(min=1e-30)).tolist()  # type: ignore[no-any-return]


def count_for(explained: Sequence[float], share: float) -> int:
    """Returns how many modes hold a share of the variance, from the shares of the first 1, 2, ...

    Raises:
        ParameterError: If the share is not between 0 and 1.
    """
    if not 0.0 < share <= 1.0:
        raise ParameterError(f"A share of the variance lies between 0 and 1, not at {share}.")
    return next((k for k, part in enumerate(explained, start=1) if part >= share - 1e-9),
                len(explained))  # fmt: skip
