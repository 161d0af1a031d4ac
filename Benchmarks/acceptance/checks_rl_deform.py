"""What the bending agent has to show, beside the gradient descent on the same coefficients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from DeepRegLib.algorithms.rl_deform import Algorithm
from DeepRegLib.losses import similarity
from DeepRegLib.networks.composite import moved_by
from DeepRegLib.networks.deformation_net import DeformationAgent
from DeepRegLib.registration.trainable import Trainable

from .cases import SPACING_MM, EvaluationPair, evaluation_pairs
from .figures import Figures, measured, over_pairs
from .plans import Check, Plan, Rows, Variant, at_least, mean

#: Adam steps of the gradient descent, and its step size in standard deviations.
_STEPS, _RATE = 150, 0.05
#: Starts of the capture, and their largest length in standard deviations.
_STARTS, _LENGTH = 48, 3.0
#: Coefficients are found where this share of the start is left.
_FOUND = 0.25


def descent(network: DeformationAgent, fixed: Tensor, moving: Tensor) -> Tensor:
    """Coefficients (1, m) by gradient descent on the correlation, from zero."""
    measure = similarity("ncc")
    found = torch.zeros(1, len(network.model.modes), requires_grad=True)
    optimizer = torch.optim.Adam([found], lr=_RATE)
    for _ in range(_STEPS):
        shift = network.model.displacement(found, fixed.shape[2:])
        loss = measure(fixed, moved_by(moving, None, shift))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found.detach()


def beside_descent(algorithm: Trainable, network: nn.Module) -> Figures:
    """Dice of the gradient descent on the same modes, and of the pairs as they come."""
    assert isinstance(network, DeformationAgent)

    def one(pair: EvaluationPair) -> Figures:
        found = descent(network, pair.fixed, pair.moving)
        with torch.no_grad():
            shift = network.model.displacement(found, pair.fixed.shape[2:])
        return {
            "dice_descent": measured(pair, shift)["dice"],
            "dice_before": measured(pair, None)["dice"],
        }

    figures = over_pairs(evaluation_pairs(), one)
    return {name: figures[name] for name in ("dice_descent", "dice_before")}


def capture(algorithm: Trainable, network: nn.Module) -> Figures:
    """Shares of known coefficients that are found, and of the rounds that come nearer."""
    assert isinstance(algorithm, Algorithm) and isinstance(network, DeformationAgent)
    generator = torch.Generator().manual_seed(2017)
    pairs, count = evaluation_pairs(), len(network.model.modes)
    own, other, nearer = [], [], []
    for number in range(_STARTS):
        moving = pairs[number % len(pairs)].moving
        truth = torch.randn(1, count, generator=generator) * network.model.known
        truth = truth * (_LENGTH * (number + 1) / _STARTS / truth.norm())
        with torch.no_grad():
            shift = network.model.displacement(truth, moving.shape[2:])
            fixed = moved_by(moving, None, shift)
            values = algorithm.predict(network, fixed, moving, SPACING_MM).values
        path = torch.tensor(values["trajectory"]["coefficients"])
        away = (path - truth).norm(dim=1)
        nearer.append(float((away.diff() < 0).double().mean()) if len(away) > 1 else 0.0)
        own.append(float(away[-1] / truth.norm()) < _FOUND)
        left = (descent(network, fixed, moving) - truth).norm() / truth.norm()
        other.append(float(left) < _FOUND)
    return {
        "captured": float(np.mean(own)), "captured_descent": float(np.mean(other)),
        "nearer_share": float(np.mean(nearer)),
    }  # fmt: skip


def checks(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    """Judges the trainings."""
    dice = mean(rows, "full", "dice")
    captured = [mean(rows, "full", name) for name in ("captured", "captured_descent")]
    return [
        Check("Dice above that of the pairs as they come",
              f"{dice:.4f} > {mean(rows, 'full', 'dice_before'):.4f}",
              dice > mean(rows, "full", "dice_before")),
        at_least("Dice above the descent's", dice - mean(rows, "full", "dice_descent"), -0.01),
        Check("more coefficients found than by the descent",
              f"{captured[0]:.3f} > {captured[1]:.3f}", captured[0] > captured[1]),
        at_least("share of rounds that come nearer", mean(rows, "full", "nearer_share"), 0.8,
                 "{:.3f}"),
    ]  # fmt: skip


EXTRA = {"beside_descent": beside_descent, "capture": capture}
PLAN = Plan(
    {"full": Variant(settings={"batch": 2})},
    checks,
    steps=3000,
    extra=("beside_descent", "capture"),
)
