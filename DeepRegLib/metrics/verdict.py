"""The rules of the verdict: thresholds, and the sentence that goes with each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Share of folded voxels. Diffeomorphic methods leave below 0.01 %; above 1 % regions are torn.
AMBER_FOLDS_PERCENT = 0.01
RED_FOLDS_PERCENT = 1.0
#: Share of the fixed region that falls inside the moving image.
AMBER_OVERLAP_PERCENT = 50.0
RED_OVERLAP_PERCENT = 10.0
#: Volume change by the deformation (1st and 99th percentile): fivefold is beyond anatomy.
AMBER_SHRINKAGE = 0.2
AMBER_GROWTH = 5.0
#: Volume factor of the linear map: people differ by less than 2, growth and species by more.
AMBER_LINEAR_VOLUME = 3.0
#: Inverse consistency, mean and 95th percentile, in voxels of the fixed image.
AMBER_INVERSE_MEAN_VOXEL = 0.5
AMBER_INVERSE_P95_VOXEL = 1.0
#: Losses that are no longer chance: NMI (its sampling error is about 0.002), Dice, and TRE.
RED_NMI_LOSS = 0.01
RED_DICE_LOSS = 0.01
RED_TRE_FACTOR = 1.05
#: Gain of NMI below which nothing was won, unless the images match closely anyway.
AMBER_NMI_GAIN = 0.002
CLOSE_NCC = 0.9
#: Below both, the images share hardly any structure.
AMBER_NMI = 1.02
AMBER_NCC = 0.2
#: Overlap as stored below which similarity "before" is no yardstick.
LEAST_OVERLAP_BEFORE_PERCENT = 25.0


@dataclass(frozen=True)
class Finding:
    """Something that speaks against a result: how bad it is, and a sentence."""

    color: str
    sentence: str


def findings(card: Mapping[str, Any]) -> list[Finding]:
    """Applies every rule to a card; no finding means green."""
    return [*_overlap(card), *_truth(card), *_similarity(card), *_shape(card), *_inverse(card)]


def _overlap(card: Mapping[str, Any]) -> list[Finding]:
    overlap = card["overlap_percent"]
    if overlap < RED_OVERLAP_PERCENT:
        return [Finding("red", f"Only {overlap:.0f} % of the fixed object falls inside the moving "
                        "image: the registration has failed; try another start.")]  # fmt: skip
    if overlap < AMBER_OVERLAP_PERCENT:
        return [Finding("amber", f"Only {overlap:.0f} % of the fixed object falls inside the "
                        "moving image; the rest is extrapolated.")]  # fmt: skip
    return []


def _truth(card: Mapping[str, Any]) -> list[Finding]:
    found = []
    before, after = card.get("tre_mean_before_mm"), card.get("tre_mean_after_mm")
    if before is not None and after is not None and after > before * RED_TRE_FACTOR + 0.01:
        found.append(Finding("red", f"The landmarks are farther apart than before ({before:.2f} "
                             f"mm, now {after:.2f} mm)."))  # fmt: skip
    before, after = card.get("dice_before"), card.get("dice_after")
    if before is not None and after is not None and after < before - RED_DICE_LOSS:
        found.append(Finding("red", f"The labels overlap less than before (Dice {before:.3f}, now "
                             f"{after:.3f})."))  # fmt: skip
    return found


def _similarity(card: Mapping[str, Any]) -> list[Finding]:
    nmi, ncc = card["nmi_after"], card["ncc_after"]
    if nmi is None or ncc is None or card["overlap_percent"] < RED_OVERLAP_PERCENT:
        return []
    found = []
    if nmi < AMBER_NMI and abs(ncc) < AMBER_NCC:
        found.append(Finding("amber", "The images share hardly any structure where they overlap "
                             f"(NMI {nmi:.3f}, NCC {ncc:.2f}); look at them."))  # fmt: skip
    before = card["nmi_before"]
    comparable = (card["overlap_before_percent"] or 0.0) >= LEAST_OVERLAP_BEFORE_PERCENT
    if before is None or not comparable or _truth_improved(card):
        return found
    if nmi < before - RED_NMI_LOSS:
        found.append(Finding("red", f"The images match less than before (NMI {before:.3f}, now "
                             f"{nmi:.3f})."))  # fmt: skip
    elif nmi < before + AMBER_NMI_GAIN and ncc < CLOSE_NCC:
        found.append(Finding("amber", f"The images match no better than before (NMI {before:.3f}, "
                             f"now {nmi:.3f})."))  # fmt: skip
    return found


def _truth_improved(card: Mapping[str, Any]) -> bool:
    """Tells whether labels or landmarks show a gain, which counts more than gray values."""
    dice = card.get("dice_before"), card.get("dice_after")
    tre = card.get("tre_mean_before_mm"), card.get("tre_mean_after_mm")
    better_dice = None not in dice and dice[1] > dice[0]  # type: ignore[operator]
    better_tre = None not in tre and tre[1] < tre[0]  # type: ignore[operator]
    return better_dice or better_tre


def _shape(card: Mapping[str, Any]) -> list[Finding]:
    found = []
    folds, linear = card["folds_percent"], card["linear_determinant"]
    if folds > AMBER_FOLDS_PERCENT:
        red = folds > RED_FOLDS_PERCENT
        found.append(Finding("red" if red else "amber", f"The deformation folds in {folds:.2g} % "
                             "of the voxels; make it smoother."))  # fmt: skip
    if linear <= 0:
        found.append(Finding("red", "The transform mirrors the image (left becomes right); check "
                             "the start and the orientation of both images."))  # fmt: skip
    elif not 1 / AMBER_LINEAR_VOLUME <= linear <= AMBER_LINEAR_VOLUME:
        found.append(Finding("amber", f"The linear part changes volumes by a factor of "
                             f"{linear:.2g}; check that both images show the same "
                             "region."))  # fmt: skip
    ends = [value / linear for value in (card["jacobian_p01"], card["jacobian_p99"])]
    if min(ends) < AMBER_SHRINKAGE or max(ends) > AMBER_GROWTH:
        found.append(Finding("amber", f"The deformation changes volumes by factors of "
                             f"{min(ends):.2f} to {max(ends):.2f} (1st to 99th percentile), which "
                             "is more than anatomy explains."))  # fmt: skip
    return found


def _inverse(card: Mapping[str, Any]) -> list[Finding]:
    mean, p95 = card.get("inverse_mean_voxel"), card.get("inverse_p95_voxel")
    if mean is None or p95 is None:
        return []
    if mean <= AMBER_INVERSE_MEAN_VOXEL and p95 <= AMBER_INVERSE_P95_VOXEL:
        return []
    sentence = (
        f"Going to the moving image and back misses by {mean:.2g} voxels in the mean (95th "
        f"percentile {p95:.2g}); the inverse is not exact."
    )
    return [Finding("amber", sentence)]
