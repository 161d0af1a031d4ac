"""What the latent registration has to show: accuracy, codes that tell, and deformations on loan.

The changes are made of test people by known warps of their lateral ventricles: the velocity points
along the gradient of the smoothed ventricles, so that they grow or shrink, by a random amount; a
random smooth velocity is added, so that no two changes of one kind are alike.

- families: pairs of a test person and the same person changed. A linear classifier that learns the
  two kinds from the codes of three people tells them for the fourth.
- transport: the code of a changed person, decoded for another test person, has to change the
  ventricles of that one alike. Their volume there and here is that of the labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from DeepRegLib.algorithms.cvae import Algorithm
from DeepRegLib.geometry.jacobian import jacobian_determinant, spatial_gradient
from DeepRegLib.geometry.sampling import gaussian_smooth, sample, voxel_coordinates
from DeepRegLib.geometry.velocity import exponential
from DeepRegLib.networks.blocks import warped
from DeepRegLib.registration.trainable import Trainable
from DeepRegLib.training.augment import smooth_noise

from . import measure
from .cases import SPACING_MM, EvaluationPair, evaluation_pairs
from .figures import Figures
from .plans import Check, Plan, Rows, Variant, at_least, at_most, mean

#: Right and left lateral ventricle.
VENTRICLES = (51, 52)
#: Changes of each kind and person.
CHANGES = 12
#: Largest velocity of a change in mm, from and to, the width of the ventricles' surroundings that
#: move in voxels, and size and width of what is added at random.
_LEAST_MM, _MOST_MM, _AROUND = 1.5, 3.5, 1.5
_NOISE_MM, _NOISE_WIDTH_MM = 0.7, 24.0
#: Weight of the squares of the classifier, whose inputs have variance one.
_RIDGE = 1.0
#: Codes that are drawn for each person.
DRAWN = 10


@dataclass(frozen=True, eq=False)
class Change:
    """A person whose ventricles were changed.

    Args:
        person: Number of the person.
        grows: Whether they grew.
        before: Image before, (1, 1, *shape).
        after: Image after.
        amount: Logarithm of their volume after over that before.
    """

    person: int
    grows: bool
    before: Tensor
    after: Tensor
    amount: float


def people() -> list[EvaluationPair]:
    """One pair of each test person, who is its fixed image."""
    return list({pair.name.split("<-")[0]: pair for pair in evaluation_pairs()}.values())


def changes(pairs: Sequence[EvaluationPair], count: int) -> list[Change]:
    """Returns changes of the fixed people of pairs, `count` of each kind."""
    found = []
    for person, pair in enumerate(pairs):
        inside = ventricles(pair.fixed_labels)
        # Towards the ventricles; a changed image reads there where they are to grow.
        slope = spatial_gradient(gaussian_smooth(inside, _AROUND))[:, 0]
        slope = slope / slope.norm(dim=1).max()
        generator = torch.Generator().manual_seed(person)
        for number in range(2 * count):
            grows = number % 2 == 0
            share = float(torch.rand(1, generator=generator))
            size = (_LEAST_MM + share * (_MOST_MM - _LEAST_MM)) / SPACING_MM
            noise = smooth_noise(inside.shape[2:], 1, 3, _NOISE_WIDTH_MM / SPACING_MM, generator)
            velocity = (size if grows else -size) * slope
            velocity = velocity + noise * (_NOISE_MM / SPACING_MM / 3**0.5)
            u = exponential(velocity)
            amount = volume_change(inside, u)
            found.append(Change(person, grows, pair.fixed, warped(pair.fixed, u), amount))
    return found


def ventricles(labels: Tensor) -> Tensor:
    """Returns where the lateral ventricles are, (1, 1, *shape), 0 or 1."""
    return torch.isin(labels, torch.tensor(VENTRICLES)).float()


def volume_change(inside: Tensor, displacement: Tensor) -> float:
    """Logarithm of a region's volume after it was pulled back, over that before."""
    where = voxel_coordinates(inside.shape[2:]) + displacement
    after = sample(inside, where, padding="fill")
    return math.log(float(after.sum().clamp(min=1e-3)) / float(inside.sum()))


def families(algorithm: Algorithm, network: nn.Module) -> Figures:
    """Share of changes whose kind a linear classifier tells from the code, person left out."""
    cases = changes(people(), CHANGES)
    codes = torch.cat([_code(algorithm, network, case.after, case.before) for case in cases])
    truth = torch.tensor([1.0 if case.grows else -1.0 for case in cases])
    person = torch.tensor([case.person for case in cases])
    right = torch.zeros(len(cases))
    for left_out in person.unique():
        test = person == left_out
        weights, center, scale = classifier(codes[~test], truth[~test])
        said = ((codes[test] - center) / scale) @ weights[:-1] + weights[-1]
        right[test] = (said.sign() == truth[test]).float()
    return {
        "families_accuracy": float(right.mean()),
        "families_grown": float(np.mean([c.amount for c in cases if c.grows])),
        "families_shrunk": float(np.mean([c.amount for c in cases if not c.grows])),
    }


def classifier(codes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares of the kinds +1 and -1 by the codes, with a small weight on their squares.

    Returns:
        The weights, the last of which is constant; and the mean and the standard deviation that
        codes are brought to zero and one with.
    """
    center, scale = codes.mean(0), codes.std(0).clamp(min=1e-6)
    inputs = torch.cat([(codes - center) / scale, torch.ones(len(codes), 1)], dim=1).double()
    damping = _RIDGE * torch.eye(inputs.shape[1], dtype=torch.float64)
    damping[-1, -1] = 0.0
    weights = torch.linalg.solve(inputs.T @ inputs + damping, inputs.T @ truth.double())
    return weights.float(), center, scale


def transported(algorithm: Algorithm, network: nn.Module) -> Figures:
    """What becomes of a change of one person when its code is decoded for another."""
    rows = []
    for pair in evaluation_pairs():
        for case in changes([pair], 1):
            code = _code(algorithm, network, case.after, case.before)
            with torch.no_grad():
                there, _ = algorithm.decode(network, code, pair.moving)
                own, _ = algorithm.decode(network, code, case.before)
            reached = volume_change(ventricles(pair.moving_labels), there)
            itself = volume_change(ventricles(pair.fixed_labels), own)
            share = reached / case.amount
            rows.append({
                "transport_sign": float(share > 0),
                "transport_half": float(share >= 0.5),
                "transport_share": share,
                "registration_share": itself / case.amount,
            })  # fmt: skip
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def drawn(algorithm: Algorithm, network: nn.Module) -> Figures:
    """Folds and sizes of deformations from drawn codes."""
    generator = torch.Generator().manual_seed(0)
    folds, sizes = 0.0, []
    for pair in people():
        codes = torch.randn(DRAWN, int(algorithm.values["latent"]), generator=generator)
        for code in codes:
            with torch.no_grad():
                u, _ = algorithm.decode(network, code[None], pair.fixed)
            folds += float((jacobian_determinant(u) <= 0).sum())
            sizes.append(float(u.norm(dim=1, keepdim=True)[pair.inside].mean()) * SPACING_MM)
    return {"drawn_folds_count": folds, "drawn_motion_mm": float(np.mean(sizes))}


def _code(algorithm: Algorithm, network: nn.Module, fixed: Tensor, moving: Tensor) -> Tensor:
    with torch.no_grad():
        code, _ = algorithm.encode(network, fixed, moving)
    return code


def checks(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    """Judges mean figures over the seeds."""

    def full(key: str) -> float:
        return mean(rows, "full", key)

    rough, plain = full("sdlogj"), mean(rows, "vxm", "sdlogj")
    return [
        at_least("Dice beside vxm", full("dice") - mean(rows, "vxm", "dice"), -0.02),
        Check("SDlogJ below vxm's", f"{rough:.4f} < {plain:.4f}", rough < plain),
        Check("no folds", f"{full('folds_count'):.2f} voxels", full("folds_count") == 0.0),
        at_most("inverse error, voxel", full("round_trip_voxel"), 0.1),
        at_least("growth and shrinkage told apart by the code", full("families_accuracy"), 0.9,
                 "{:.3f}"),
        at_least("transports with the right sign", full("transport_sign"), 0.8, "{:.3f}"),
        at_least("transports of at least half the size", full("transport_half"), 0.8, "{:.3f}"),
        Check("no folds in drawn deformations", f"{full('drawn_folds_count'):.2f} voxels",
              full("drawn_folds_count") == 0.0),
    ]  # fmt: skip


def latent(algorithm: Trainable, network: nn.Module) -> Figures:
    """All further figures; the variant vxm has neither codes nor an inverse of its own."""
    if not isinstance(algorithm, Algorithm):
        return {}
    measures = (measure.inverse, families, transported, drawn)
    return {k: v for each in measures for k, v in each(algorithm, network).items()}


#: Smooth deformations of each image for itself: a code of a few numbers for a whole deformation
#: needs more different pairs than fifteen people make.
_BENDS = {"bend_mm": 2.0, "bend_width_mm": 30.0}
PLAN = Plan(
    {"full": Variant(changes=_BENDS), "vxm": Variant(algorithm="vxm")},
    checks,
    steps=3000,
    extra=("latent",),
)
EXTRA = {"latent": latent}
