"""What the agents have to show: from where they find the way, and how near they come.

Trained and tested on the mouse skulls (`skulls`), whose poses are arbitrary. What the agents found
is refined by mutual information inside the skull alone: by the whole images the forelegs, which lie
otherwise in every mouse, draw it away again (1.2 to 1.7 voxels from the landmarks' truth, even from
there).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from DeepRegLib.algorithms.rl_rigid import Algorithm
from DeepRegLib.registration.trainable import Trainable

from .cases import SPACING_MM
from .dealigned import corner_voxel, one_level, refined, starts_within
from .figures import Figures
from .plans import Check, Plan, Rows, Variant, at_least, at_most, mean
from .skulls import skull_mask, skull_pairs, skulls

_STARTS, _SHIFT_VOXEL, _TURN_DEG = 200, 15.0, 15.0
_SUCCESS_VOXEL = 2.0
#: What gradient descent compares.
_SIMILARITIES = ("ncc", "mi")


def starts(algorithm: Trainable, network: nn.Module) -> Figures:
    """Shares of the starts that end below two voxels: agents, coarse agent alone, engine."""
    assert isinstance(algorithm, Algorithm)
    rows = []
    for start in starts_within(skull_pairs(), _STARTS, _SHIFT_VOXEL, _TURN_DEG):
        pair = start.pair
        said = algorithm.act(network, pair.fixed, pair.moving, SPACING_MM, start.matrix)
        assert said.linear is not None
        better = refined(start, said.linear, mask=skull_mask(pair.name))
        matrices = {"own": said.linear, "refined": better}
        matrices |= {name: one_level(start, name) for name in _SIMILARITIES}
        row = {name: corner_voxel(pair, matrix) for name, matrix in matrices.items()}
        row["before"] = corner_voxel(pair, start.matrix)
        row["steps"] = float(sum(said.values["trajectory"]["steps"].values()))
        rows.append(row)
    ends = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    arrived = ends["own"] < _SUCCESS_VOXEL
    return {
        "corner_before_voxel": float(np.median(ends["before"])),
        "corner_after_voxel": float(np.median(ends["own"])),
        "corner_refined_voxel": float(np.median(ends["refined"][arrived])) if arrived.any()
        else float("nan"),
        "success": float(arrived.mean()),
        **{f"success_{n}": float((ends[n] < _SUCCESS_VOXEL).mean()) for n in _SIMILARITIES},
        "actions": float(ends["steps"].mean()),
    }  # fmt: skip


def checks(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    """Judges the trainings."""
    own = mean(rows, "full", "success")
    found = [at_least("share of 200 starts that end below 2 voxels", own, 0.85, "{:.3f}")]
    for name in _SIMILARITIES:
        other = mean(rows, "full", f"success_{name}")
        found.append(
            Check(f"more than gradient descent on {name} at one scale",
                  f"{own:.3f} > {other:.3f}", own > other)
        )  # fmt: skip
    refinement = mean(rows, "full", "corner_refined_voxel")
    return [*found, at_most("voxels after refinement, median", refinement, 1.0, "{:.2f}")]


EXTRA = {"starts": starts}
PLAN = Plan(
    # Starts reach 45 mm and 15 degrees, so the agents learn a little more than that.
    {"full": Variant({"reach_mm": 48.0, "reach_deg": 20.0}, settings={"batch": 2}, wrap=skulls)},
    checks,
    steps=6000,
    extra=("starts",),
    usual=False,
)
