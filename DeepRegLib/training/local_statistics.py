"""Covariance of a few fields that is damped with distance, without a matrix of all voxels.

From n training fields the sample covariance has n - 1 modes only: every sample is a mixture of the
training fields as wholes. Locality makes more of few fields: the covariance of two voxels is
multiplied by a correlation that falls with their distance (a Hadamard product, positive again by
Schur's theorem), so that far parts vary independently (Wilms et al. 2017,
doi:10.1016/j.media.2017.02.003). The matrix is never made. With deviations d_i from the mean and
independent random fields a_i of mean 0 and covariance E[a_i(p) a_i(q)] = R(p, q),

    x(p) = sum_i a_i(p) d_i(p) / sqrt(n - 1)

has the covariance E[x(p) x(q)'] = R(p, q) sum_i d_i(p) d_i(q)' / (n - 1): R times the sample
covariance S, exactly. A product with a vector field costs as little,

    C v = sum_i d_i R(d_i . v) / (n - 1),

which is all that a search for the leading modes needs. R is the mean of the correlations of
several scales; each is a Gaussian, which is a product of one matrix for each axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError

#: Share of the largest eigenvalue below which a direction of a correlation, or a mode, is left out.
_LEAST, _LEAST_MODE = 1e-6, 1e-5
#: Vectors beyond those asked for, and repetitions, of the search for modes.
_MORE, _REPEATS = 8, 4
#: Samples that the number of effective modes is estimated from.
_SAMPLES = 48


class LocalCovariance:
    """The covariance of a few fields, damped with distance at several scales.

    Convention:
        Fields are (n, C, *shape); the damping is the same for all channels, so that these keep
        their correlation.

    Args:
        deviations: Fields less their mean, (n, C, *shape), n >= 2.
        spacing_mm: Distance of the voxels along each axis.
        lengths_mm: Standard deviations of the Gaussian correlations, one a scale; 0 damps nothing
            (the plain statistics). The scales share the variance alike.

    Raises:
        InputError: If there are too few fields, or a length is negative.
    """

    def __init__(
        self, deviations: Tensor, spacing_mm: Sequence[float], lengths_mm: Sequence[float]
    ) -> None:
        if len(deviations) < 2 or deviations.ndim != 5:
            raise InputError(
                "Statistics need at least two fields (n, C, D, H, W), but got "
                f"{tuple(deviations.shape)}."
            )
        if not lengths_mm or min(lengths_mm) < 0.0:
            raise InputError(f"Lengths of locality are not negative, but got {tuple(lengths_mm)}.")
        self.deviations = deviations
        self._factors = [
            _factors(deviations.shape[2:], spacing_mm, length) if length > 0.0 else None
            for length in lengths_mm
        ]
        #: Sum of the variances of all numbers of a field, which the damping leaves as it is.
        self.total = float(deviations.double().square().sum()) / (len(deviations) - 1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns samples of mean 0 with this covariance, (count, C, *shape)."""
        total = self.deviations.new_zeros((count, *self.deviations.shape[1:]))
        for deviation in self.deviations:
            total.addcmul_(self._weights(count, generator), deviation)
        return total.div_(math.sqrt(len(self.deviations) - 1))

    def apply(self, fields: Tensor) -> Tensor:
        """Returns the product of the covariance with fields, (B, C, *shape)."""
        total = torch.zeros_like(fields)
        for deviation in self.deviations:
            inner = (fields * deviation).sum(dim=1)
            total.addcmul_(self._correlated(inner)[:, None], deviation)
        return total.div_(len(self.deviations) - 1)

    def modes(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns the leading modes, by a search in a random subspace.

        Halko et al. 2011, doi:10.1137/090771806, algorithm 4.4: the range of the covariance is
        found by repeated products with random fields, and the small problem in it is solved.

        Args:
            count: Most modes; fewer where there are fewer.

        Returns:
            Their variances (eigenvalues), (K,), descending, and the modes, (K, C, *shape), each as
            long as one standard deviation.
        """
        shape = self.deviations.shape[1:]
        width = min(count + _MORE, math.prod(shape))
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(width, *shape, generator=generator)
        for _ in range(_REPEATS):
            basis = _orthonormal(self.apply(basis))
        flat = basis.flatten(1)
        small = (flat @ self.apply(basis).flatten(1).T).double()
        values, vectors = torch.linalg.eigh(0.5 * (small + small.T))
        values, vectors = values.flip(0), vectors.flip(1)
        kept = min(count, int((values > _LEAST_MODE * values[0].clamp(min=1e-30)).sum()))
        found = (vectors[:, :kept].T.float() @ flat).unflatten(1, shape)
        sizes = values[:kept].float().sqrt().view(-1, 1, 1, 1, 1)
        return values[:kept].float(), found * sizes

    def effective_modes(self) -> float:
        """Returns about how many modes there are of one size that would vary as much.

        (tr C)^2 / tr C^2, the second from the products of independent samples, whose mean square
        it is. The plain statistics of n fields have at most n - 1.
        """
        drawn = self.draw(_SAMPLES, torch.Generator().manual_seed(0)).flatten(1)
        products = drawn @ drawn.T
        off = products - torch.diag(products.diagonal())
        square = float(off.double().square().sum()) / (_SAMPLES * (_SAMPLES - 1))
        return self.total**2 / max(square, 1e-30)

    def _weights(self, count: int, generator: torch.Generator) -> Tensor:
        """Random fields a, (count, 1, *shape) or (count, 1, 1, 1, 1)."""
        share = math.sqrt(1.0 / len(self._factors))
        total: Tensor | None = None
        for factors in self._factors:
            size = (1, 1, 1) if factors is None else tuple(f.shape[1] for f in factors)
            drawn = torch.randn(count, *size, generator=generator)
            field = drawn if factors is None else _products(factors, drawn)
            total = share * field if total is None else total + share * field
        assert total is not None
        return total[:, None]

    def _correlated(self, fields: Tensor) -> Tensor:
        """Product of the correlation R with fields, (B, *shape)."""
        total = torch.zeros_like(fields)
        for factors in self._factors:
            if factors is None:
                total += fields.sum(dim=(1, 2, 3), keepdim=True)
            else:
                total += _products(factors, _products([f.T for f in factors], fields))
        return total.div_(len(self._factors))


def _factors(
    shape: Sequence[int], spacing_mm: Sequence[float], length_mm: float
) -> tuple[Tensor, ...]:
    """Returns K for each axis, (n, m), so that K K' is the correlation along it.

    The Gaussian of a distance is the product of those of its components. Along an axis a few
    directions hold nearly all of it; the rows are scaled so that every voxel has variance one.
    """
    found = []
    for size, spacing in zip(shape, spacing_mm):
        where = torch.arange(size, dtype=torch.float64) * spacing
        away = where[:, None] - where[None]
        values, vectors = torch.linalg.eigh(torch.exp(-0.5 * (away / length_mm).square()))
        kept = values > _LEAST * values.max()
        factor = vectors[:, kept] * values[kept].sqrt()
        found.append((factor / factor.norm(dim=1, keepdim=True)).float())
    return tuple(found)


def _products(matrices: Sequence[Tensor], fields: Tensor) -> Tensor:
    """Applies one matrix along each axis of fields (B, *shape)."""
    for axis, matrix in enumerate(matrices, start=1):
        fields = torch.matmul(fields.movedim(axis, -1), matrix.T).movedim(-1, axis)
    return fields


def _orthonormal(fields: Tensor) -> Tensor:
    """Returns fields of length one at right angles that span the same."""
    q, _ = torch.linalg.qr(fields.flatten(1).T)
    return q.T.reshape(fields.shape)
