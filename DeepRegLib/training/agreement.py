"""How well estimates agree with what is known."""

from __future__ import annotations

import torch
from torch import Tensor

#: Below this nothing varies but rounding.
_FLAT = 1e-9


def agreement(said: Tensor, true: Tensor) -> dict[str, float]:
    """Returns how well estimated distances agree with known ones.

    Args:
        said: Estimates in mm, any shape.
        true: What is known, the same shape.

    Returns:
        ``correlation`` (0 where either is the same everywhere), ``rmse_mm``, ``deviation_mm``
        (standard deviation of what is known, which is what a constant reaches at best) and
        ``score``, the share of the variance that is explained; empty for fewer than two numbers.
    """
    if said.numel() < 2:
        return {}
    pair = torch.stack([said.flatten(), true.flatten()]).double().cpu()
    square = float((pair[0] - pair[1]).square().mean())
    spread = float(pair[1].std(unbiased=False))
    flat = float(pair.std(dim=1).min()) < _FLAT
    return {
        "correlation": 0.0 if flat else float(torch.corrcoef(pair)[0, 1]),
        "rmse_mm": square**0.5,
        "deviation_mm": spread,
        "score": 1.0 - square / max(spread**2, 1e-12),
    }
