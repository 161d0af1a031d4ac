"""The quality card: what every run says of its result, with a verdict.

A card is a dictionary that JSON can hold, with None where a figure is not known:

- ``ncc_before ncc_after nmi_before nmi_after overlap_before_percent overlap_percent``: see
  `similarity.pair_similarity`.
- ``dice_before dice_after``: mean over the labels that both maps hold; ``dice_labels``: their
  number; ``dice_per_label``: after, by label (as text). Only if label maps were given.
- ``tre_mean_before_mm tre_mean_after_mm``, the same with ``median`` and ``max``, and ``tre_count``.
  Only if landmarks were given.
- ``estimated_tre_mm estimated_tre_model``: the error of a linear transform as a trained network
  estimates it, and the network; see `registration.tre_estimate`. Only after a registration, and if
  there is a model that fits.
- ``folds_percent sdlogj sdlogj_l2r jacobian_p01 jacobian_p99 deformation_mean_mm
  deformation_max_mm``: see `regularity.regularity`.
- ``linear_determinant``: volume factor of the linear part, negative if it mirrors.
- ``displacement_mean_mm displacement_max_mm``: linear part and deformation together.
- ``inverse_mean_mm inverse_p95_mm inverse_max_mm`` and the same in ``_voxel``: see
  `regularity.inverse_consistency_mm`. Only if there is an inverse.
- ``seconds seconds_per_stage peak_memory_mb``.
- ``verdict``: green, amber or red; ``sentence``: why; ``reasons``: all findings, worst first. The
  rules are in `verdict`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..card import ROWS, card_rows, card_text
from ..geometry.grid import Grid
from ..geometry.transform import Transform
from ..registration.base import Image, ImagePair, Result
from ..registration.preprocess import mask_on_grid
from .landmarks import tre_mm, tre_summary
from .overlap import dice_per_label, labels_present, mean_dice
from .regularity import inverse_consistency_mm, measurable, regularity, total_displacement_mm
from .similarity import fixed_region, pair_similarity
from .verdict import Finding, findings

__all__ = ["ROWS", "card_rows", "card_text", "quality_card"]


def quality_card(
    pair: ImagePair,
    result: Result,
    seconds: float | None = None,
    peak_memory_mb: float | None = None,
) -> dict[str, Any]:
    """Measures a result and judges it.

    Everything is measured inside the fixed mask, or where the fixed image shows something. "Before"
    is the transform that the user gave to start from, or the images as they are stored.

    Args:
        pair: What was registered, as the user gave it.
        result: What came out; `inverse` is measured if it is there.
        seconds: Wall time; the sum of `result.seconds` if omitted.
        peak_memory_mb: Peak memory of the run.

    Returns:
        The card; its keys are listed at the top of this module.
    """
    transform = result.transform.to(pair.device)
    given = pair.initial is not None and pair.initial_is_given
    before = pair.initial.to(pair.device) if given and pair.initial is not None else Transform()
    region = fixed_region(pair)
    card: dict[str, Any] = {}
    for when, mapping in (("before", before), ("after", transform)):
        figures = pair_similarity(pair, mapping, region)
        card[f"ncc_{when}"], card[f"nmi_{when}"] = figures["ncc"], figures["nmi"]
        key = "overlap_percent" if when == "after" else "overlap_before_percent"
        card[key] = figures["overlap_percent"]
    card |= _truth(pair, before, transform)
    card |= regularity(transform, _field_mask(transform, region, pair.fixed.grid))
    card["linear_determinant"] = float(np.linalg.det(transform.linear[:3, :3]))
    card |= total_displacement_mm(transform, pair.fixed.grid, region)
    card |= _inverse(pair, result, transform, region)
    card["seconds"] = sum(result.seconds.values()) if seconds is None else seconds
    card["seconds_per_stage"] = dict(result.seconds)
    card["peak_memory_mb"] = peak_memory_mb
    card = _plain(card)
    return card | _judged(findings(card))


def _truth(pair: ImagePair, before: Transform, after: Transform) -> dict[str, Any]:
    """Dice and landmark errors, where the user gave labels or landmarks."""
    figures: dict[str, Any] = {}
    if pair.fixed_labels is not None and pair.moving_labels is not None:
        fixed, moving = pair.fixed_labels, pair.moving_labels
        common = sorted({*labels_present(fixed.data)} & {*labels_present(moving.data)})
        scores = [_dice(fixed, moving, transform) for transform in (before, after)]
        figures["dice_before"], figures["dice_after"] = (mean_dice(s, common) for s in scores)
        figures["dice_labels"] = len(common)
        figures["dice_per_label"] = {str(label): scores[1].get(label, 0.0) for label in common}
    if pair.fixed_landmarks_ras is not None and pair.moving_landmarks_ras is not None:
        points = pair.fixed_landmarks_ras, pair.moving_landmarks_ras
        for when, transform in (("before", before), ("after", after)):
            errors = tre_mm(transform, *points)
            if not np.isfinite(errors).any():
                break
            summary = tre_summary(errors)
            for name in ("mean", "median", "max"):
                figures[f"tre_{name}_{when}_mm"] = summary[f"{name}_mm"]
            figures["tre_count"] = int(summary["count"])
    return figures


def _dice(fixed: Image, moving: Image, transform: Transform) -> dict[int, float]:
    moved = transform.warp(moving.data, moving.grid, fixed.grid, "nearest")
    return dice_per_label(fixed.data, moved)


def _field_mask(transform: Transform, region: Tensor, fixed: Grid) -> Tensor | None:
    """Returns the region on the grid of the field; None (everywhere) if nothing of it is left."""
    if transform.field is None:
        return None
    grid = transform.field.grid
    if grid.matches(fixed):
        return region if measurable(region, grid) else None
    on_field = mask_on_grid(Image(region.to(torch.uint8), fixed), grid, region.device)
    return on_field if measurable(on_field, grid) else None


def _inverse(
    pair: ImagePair, result: Result, transform: Transform, region: Tensor
) -> dict[str, float]:
    if result.inverse is None:
        return {}
    inverse = result.inverse.to(pair.device)
    return inverse_consistency_mm(transform, inverse, pair.fixed.grid, region)


def _judged(found: list[Finding]) -> dict[str, Any]:
    worst = "red" if any(f.color == "red" for f in found) else "amber" if found else "green"
    sentences = [f.sentence for f in sorted(found, key=lambda f: f.color != "red")]
    good = "The images match, and the transform is smooth and can be inverted."
    return {"verdict": worst, "sentence": sentences[0] if sentences else good,
            "reasons": sentences}  # fmt: skip


def _plain(card: dict[str, Any]) -> dict[str, Any]:
    """Replaces what JSON cannot hold (NaN, infinity) by None."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in card.items()
    }
