"""What autoencoder features have to show: the same search, with features and with intensities.

The autoencoder is trained on the fifteen people; tested are known warps of the four others, as
they are, and with artifacts in both images: tiles that are black, or whose contrast is inverted, on
15 % of the brain. Transform, optimizer, weights of the penalties, and levels are the same for
features and for the mean squared difference of intensities. One variant leaves empty regions in,
another shows the autoencoder unspoiled images only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from DeepRegLib import registry
from DeepRegLib.registration.feature_warp import Reference, align
from DeepRegLib.registration.section_regions import counted
from DeepRegLib.registration.trainable import Trainable

from .cases import SPACING_MM, EvaluationPair, known_warps
from .figures import Figures
from .plans import Check, Plan, Rows, Variant, at_most, mean

#: Warps that are tested, the seed of the artifacts, their share of the brain, width of the tiles.
_COUNT, _SEED, _SHARE, _WIDTH = 6, 20170725, 0.15, (6, 10)


def spoiled(image: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    """Returns an image whose object has black and inverted tiles, in turn."""
    spoiled, covered, turn = image.clone(), torch.zeros_like(inside), 0
    places = inside[0, 0].nonzero()
    while float((covered & inside).sum()) < _SHARE * float(inside.sum()):
        center = places[torch.randint(len(places), (1,), generator=generator)][0].tolist()
        low, high = _WIDTH
        width = torch.randint(low, high + 1, (3,), generator=generator).tolist()
        box = tuple(slice(max(0, c - w // 2), c - w // 2 + w) for c, w in zip(center, width))
        tile = spoiled[0, 0][box]
        tile.copy_(torch.zeros_like(tile) if turn % 2 == 0 else (1.0 - tile) * inside[0, 0][box])
        covered[0, 0][box] = True
        turn += 1
    return spoiled


def artifacts(algorithm: Trainable, network: nn.Module) -> Figures:
    """Errors in mm of features and intensities, with artifacts and without."""
    generator = torch.Generator().manual_seed(_SEED)
    rows = []
    for pair, truth in known_warps(_COUNT):
        bad = replace(
            pair,
            fixed=spoiled(pair.fixed, pair.inside, generator),
            moving=spoiled(pair.moving, pair.moving_labels > 0, generator),
        )
        row = {"before_mm": _error(torch.zeros_like(truth), truth, pair.inside)}
        for name, images in (("clean", pair), ("artifacts", bad)):
            for compare in ("features", "mse"):
                found = _found(algorithm, network, images, compare)
                row[f"{compare}_{name}_mm"] = _error(found, truth, pair.inside)
        rows.append(row)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _found(algorithm: Trainable, network: nn.Module, pair: EvaluationPair, compare: str) -> Tensor:
    """Displacement in voxels; intensities have no masks, as that is part of the method."""
    system = registry.create("ssemnet", **{**algorithm.values, "compare": compare})
    ignore = bool(system.values["ignore_empty"]) and compare == "features"
    fixed, moving = (
        Reference(image, counted(image, pair.grid, None, ignore))
        for image in (pair.fixed, pair.moving)
    )
    warp = align(
        [fixed], moving,
        lambda ratio: system.measure(network, [SPACING_MM * r for r in ratio], SPACING_MM),
        system.settings(),
    )  # fmt: skip
    with torch.no_grad():
        where = torch.stack(
            torch.meshgrid(
                *(torch.arange(n, dtype=torch.float32) for n in warp.shape), indexing="ij"
            )
        )
        return warp.positions(warp.shape) - where  # fmt: skip


def _error(found: Tensor, truth: Tensor, inside: Tensor) -> float:
    return float((found - truth).norm(dim=1, keepdim=True)[inside].mean()) * SPACING_MM


def checks(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    """Judges the trainings."""

    def ratio(variant: str, kind: str) -> float:
        return mean(rows, variant, f"features_{kind}_mm") / mean(rows, variant, f"mse_{kind}_mm")

    return [
        at_most("error relative to intensities, artifacts", ratio("full", "artifacts"), 0.80),
        at_most("error relative to intensities, none", ratio("full", "clean"), 1.10),
        at_most("error relative to that before, artifacts",
                mean(rows, "full", "features_artifacts_mm") / mean(rows, "full", "before_mm"), 1.0),
    ]  # fmt: skip


EXTRA = {"artifacts": artifacts}
PLAN = Plan(
    {
        "full": Variant(),
        "empty regions kept": Variant({"ignore_empty": False}),
        "unspoiled training": Variant({"corruption": 0.0}),
    },
    checks,
    steps=600,
    extra=("artifacts",),
    usual=False,
)
