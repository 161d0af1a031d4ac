"""The optimizers that train networks: Muon for hidden layers with Adam for the rest, or Adam alone.

Muon replaces the gradient of a layer, as a matrix from its inputs to its outputs, by the nearest
matrix whose singular values are about 1. Directions in which the gradient is weak learn as fast as
those in which it is strong, so a network needs several times fewer steps than with Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

#: Step size of hidden layers as a multiple of Adam's.
_HIDDEN = 20.0
#: Share of the mean gradient that is kept from step to step.
_MOMENTUM = 0.95
#: Coefficients of the iteration that leads singular values to between 0.7 and 1.2, and its length.
_QUINTIC, _ROUNDS = (3.4445, -4.7750, 2.0315), 5
#: A gradient counts at most so many times the usual length, which is a mean over some steps: one
#: outlier would lead the momentum astray for long, as Muon's steps are never small.
_OUTLIER, _USUAL = 3.0, 0.05
#: Adam's means, and what keeps it from dividing by zero.
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class NetworkOptimizer(Optimizer):
    """Muon for the groups of weights marked ``hidden``, Adam for the others.

    Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; Adam: Kingma & Ba 2015,
    arXiv:1412.6980, algorithm 1. The kernel of a convolution is a matrix with a row for each
    channel that comes out.

    Args:
        groups: Groups of weights; each has ``params`` and ``hidden``.
        rate: Step size of Adam. Muon's is twenty times as large; see `set_rate`.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], rate: float) -> None:
        super().__init__([group for group in groups if group["params"]], {"lr": rate})
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Sets the step size of Adam, and Muon's with it."""
        for group in self.param_groups:
            group["lr"] = rate * (_HIDDEN if group["hidden"] else 1.0)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Changes the weights that have a gradient; a closure is not called."""
        for group in self.param_groups:
            change = _muon if group["hidden"] else _adam
            for weight in group["params"]:
                if weight.grad is not None:
                    change(weight, self.state[weight], group["lr"])


def network_optimizer(
    kind: str, network: nn.Module, weights: Sequence[nn.Parameter], rate: float
) -> NetworkOptimizer:
    """Makes the optimizer of a network.

    Args:
        kind: ``muon`` or ``adam``.
        network: The network.
        weights: Those of its weights that learn.
        rate: Step size of Adam.
    """
    hidden = hidden_weights(network) if kind == "muon" else set()
    groups = [
        {"params": [w for w in weights if (id(w) in hidden) == inside], "hidden": inside}
        for inside in (True, False)
    ]
    return NetworkOptimizer(groups, rate)


def hidden_weights(network: nn.Module) -> set[int]:
    """Returns the identities (`id`) of the kernels and matrices of all layers but the last ones.

    Last layers are those that `blocks.result_layer` marks.
    """
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
    last = {
        id(weight)
        for module in network.modules()
        if getattr(module, "gives_result", False)
        for weight in module.parameters()
    }
    return {id(m.weight) for m in network.modules() if isinstance(m, layers)} - last


def orthogonal(matrix: Tensor) -> Tensor:
    """Returns about the nearest matrix with singular values of 1, by a Newton-Schulz iteration.

    Args:
        matrix: (rows, columns).
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    found = matrix if wide else matrix.T
    found = found / found.norm().clamp_min(1e-12)
    a, b, c = _QUINTIC
    # All rounds multiply from the left by polynomials of the first Gram matrix, which commute; so
    # the long matrix is needed before and after them only.
    gram = found @ found.T
    unit = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor = unit
    for _ in range(_ROUNDS):
        turn = torch.addmm(a * unit + b * gram, gram, gram, alpha=c)
        factor = turn @ factor
        gram = turn @ gram @ turn
    found = factor @ found
    return found if wide else found.T


def _muon(weight: Tensor, state: dict[str, Tensor], rate: float) -> None:
    gradient = weight.grad
    assert gradient is not None
    length = gradient.norm()
    if not state:
        state["momentum"], state["usual"] = torch.zeros_like(weight), length.clone()
    # Before the layers behind it have learned something, a layer may have no gradient at all.
    usual = torch.where(state["usual"] > 0, state["usual"], length)
    allowed = torch.minimum(length, _OUTLIER * usual)
    state["usual"].copy_(usual.lerp(allowed, _USUAL))
    gradient = gradient * (allowed / length.clamp_min(1e-30))
    state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
    ahead = gradient.lerp(state["momentum"], _MOMENTUM)
    rows = ahead.shape[0]
    change = orthogonal(ahead.reshape(rows, -1))
    # More outputs than inputs: columns of length 1 would make each output change too little.
    largest = math.sqrt(max(1.0, rows / change.shape[1]))
    weight.add_(change.reshape(weight.shape), alpha=-rate * largest)


def _adam(weight: Tensor, state: dict[str, Tensor], rate: float) -> None:
    if not state:
        state["step"] = torch.zeros(())
        state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
    gradient = weight.grad
    assert gradient is not None
    state["step"] += 1
    count = float(state["step"])
    state["mean"].lerp_(gradient, 1 - _BETAS[0])
    state["square"].mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
    spread = (state["square"] / (1 - _BETAS[1] ** count)).sqrt_().add_(_EPSILON)
    weight.addcdiv_(state["mean"], spread, value=-rate / (1 - _BETAS[0] ** count))
