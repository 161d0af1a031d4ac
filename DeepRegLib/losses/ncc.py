"""Correlation over the whole image, for linearly related contrasts."""

from __future__ import annotations

from torch import Tensor

from .base import Similarity, check_images, full, weights

_TINY = 1e-10


class NCC(Similarity):
    """One minus the weighted Pearson correlation, per channel, averaged over channels."""

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`."""
        w, f, m = _centred(fixed, moved, mask)
        norm = _norm(w, f, m)
        return 1.0 - (_sum(w * f * m) / norm).mean()

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and analytic gradient; see `Similarity`."""
        w, f, m = _centred(fixed, moved, mask)
        norm = _norm(w, f, m)
        correlation = _sum(w * f * m) / norm
        variance = _sum(w * m * m) + _TINY
        gradient = w * (f / norm - m * (correlation / variance))
        return 1.0 - correlation.mean(), gradient / -float(correlation.numel())


def _centred(fixed: Tensor, moved: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    check_images(fixed, moved, mask)
    fixed, moved = full(fixed), full(moved)
    w = weights(moved, mask)
    w = w / _sum(w).clamp(min=1e-12)
    return w, fixed - _sum(w * fixed), moved - _sum(w * moved)


def _norm(w: Tensor, f: Tensor, m: Tensor) -> Tensor:
    return ((_sum(w * f * f) + _TINY) * (_sum(w * m * m) + _TINY)).sqrt()


def _sum(x: Tensor) -> Tensor:
    return x.sum(dim=(2, 3, 4), keepdim=True)
