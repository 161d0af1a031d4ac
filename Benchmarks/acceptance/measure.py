"""Measures of a trained network on the test pairs, with those that a single system is known for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from DeepRegLib import registry
from DeepRegLib.geometry.grid import transform_points
from DeepRegLib.registration.trainable import Prediction, Trainable

from .cases import SPACING_MM, EvaluationPair, evaluation_pairs, known_warps, shifted
from .figures import Figures, measured, over_pairs, round_trip_voxel

Predict = Callable[[EvaluationPair], Prediction]


#: A measure that not every system has: mean figures of a trained network.
Measure = Callable[[Trainable, nn.Module], Figures]


def evaluate(
    algorithm: Trainable, network: nn.Module, measures: Mapping[str, Measure], usual: bool = True
) -> Figures:
    """Mean figures over the test pairs, the usual ones if they are wanted, and further ones."""
    network.eval()
    predict = _predictor(algorithm, network)
    figures: Figures = {}
    if usual:
        figures |= over_pairs(evaluation_pairs(), lambda pair: _standard(pair, predict))
    for further in measures.values():
        figures |= further(algorithm, network)
    return figures


def _predictor(algorithm: Trainable, network: nn.Module) -> Predict:
    def predict(pair: EvaluationPair) -> Prediction:
        with torch.no_grad():
            return algorithm.predict(network, pair.fixed, pair.moving, SPACING_MM)

    return predict


def _standard(pair: EvaluationPair, predict: Predict) -> Figures:
    started = time.perf_counter()
    prediction = predict(pair)
    seconds = time.perf_counter() - started
    return {**of(pair, prediction), "prediction_seconds": seconds}


def of(pair: EvaluationPair, prediction: Prediction) -> Figures:
    """Dice, folds and SDlogJ of a prediction."""
    linear = None if prediction.linear is None else prediction.linear.double().numpy()
    return measured(pair, prediction.displacement, linear)


def inverse(algorithm: Trainable, network: nn.Module) -> Figures:
    """How far the system's own inverse misses, voxels."""
    predict = _predictor(algorithm, network)

    def one(pair: EvaluationPair) -> Figures:
        found = predict(pair)
        if found.displacement is None or found.inverse is None:
            return {}  # a comparator that gives none
        return {
            "round_trip_voxel": round_trip_voxel(found.displacement, found.inverse, pair.inside)
        }

    return _without_seconds(over_pairs(evaluation_pairs(), one))


def uncertainty(algorithm: Trainable, network: nn.Module) -> Figures:
    """Rank correlation of the spread of sampled maps with the error, on known warps."""
    predict = _predictor(algorithm, network)
    rows = []
    for pair, truth in known_warps(6):
        found = predict(pair)
        if found.displacement is None or "uncertainty_mm" not in found.maps:
            return {}  # a comparator that gives none
        error = (found.displacement - truth).norm(dim=1, keepdim=True)[pair.inside]
        spread = found.maps["uncertainty_mm"][pair.inside]
        rows.append(
            {
                "spearman": spearman(spread, error),
                "known_error_mm": float(error.mean()) * SPACING_MM,
                "known_initial_mm": float(truth.norm(dim=1, keepdim=True)[pair.inside].mean())
                * SPACING_MM,
            }
        )
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def shifts(algorithm: Trainable, network: nn.Module) -> Figures:
    """Dice after random shifts of up to ten voxels.

    Where levels tell how far each moves, also the largest ratio of a level to the coarser one.
    """
    predict = _predictor(algorithm, network)
    pairs = shifted(evaluation_pairs(), 10)
    motions = []

    def one(pair: EvaluationPair) -> Figures:
        prediction = predict(pair)
        if "level_motion_mm" in prediction.values:
            motions.append(prediction.values["level_motion_mm"])
        return of(pair, prediction)

    figures = {"dice_shifted": over_pairs(pairs, one)["dice"]}
    before = over_pairs(pairs, lambda pair: measured(pair, None))
    figures["dice_shifted_before"] = before["dice"]
    if motions:
        levels = np.mean(motions, axis=0)
        figures["level_ratio"] = float((levels[1:] / levels[:-1]).max())
    return figures


def stages(algorithm: Trainable, network: nn.Module) -> Figures:
    """Dice of the affine, coarse and fine stage from a rigid start, and the affine's corner error.

    The error is the mean distance of the corners of the brain's box from where the optimized affine
    takes them.
    """
    figures: Figures = {}
    pairs = evaluation_pairs("rigid")
    for name in ("affine", "coarse", "fine"):
        part = registry.create("dlir", **{**algorithm.values, "last_stage": name})
        predict = _predictor(part, network)
        found = over_pairs(pairs, lambda pair: _standard(pair, predict))  # noqa: B023
        figures |= found if name == "fine" else {f"dice_{name}": found["dice"]}
        if name == "affine":
            errors = [
                _corner_error(rigid, affine, predict(rigid).linear)
                for rigid, affine in zip(pairs, evaluation_pairs())
            ]
            figures["corner_voxel"] = float(np.mean(errors))
            start = [_corner_error(r, a, None) for r, a in zip(pairs, evaluation_pairs())]
            figures["corner_before_voxel"] = float(np.mean(start))
    return figures


def _corner_error(rigid: EvaluationPair, affine: EvaluationPair, found: Tensor | None) -> float:
    """Distance from the optimized affine at the corners of the fixed brain's box, voxels."""
    voxels = rigid.inside[0, 0].nonzero().double().numpy()
    ends = np.stack([voxels.min(0), voxels.max(0)])
    corners = np.array([[ends[i, 0], ends[j, 1], ends[k, 2]]
                        for i in (0, 1) for j in (0, 1) for k in (0, 1)])  # fmt: skip
    to_ras, to_voxel = rigid.grid.voxel_to_ras, rigid.grid.ras_to_voxel
    best = to_voxel @ np.linalg.inv(rigid.linear.numpy()) @ affine.linear.numpy() @ to_ras
    mine = np.eye(4) if found is None else found.double().numpy()
    difference = transform_points(best, corners) - transform_points(mine, corners)
    return float(np.linalg.norm(difference, axis=1).mean())


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two flat tensors."""
    ranks = [torch.argsort(torch.argsort(x.reshape(-1))).double() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def _without_seconds(figures: Figures) -> Figures:
    return {k: v for k, v in figures.items() if k not in ("seconds", "pairs")}


EXTRA: dict[str, Measure] = {
    "inverse": inverse,
    "uncertainty": uncertainty,
    "shifts": shifts,
    "stages": stages,
}
