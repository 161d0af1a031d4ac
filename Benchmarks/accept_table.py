"""Writes docs/acceptance.md from results/acceptance/*.json.

Usage: python Benchmarks/accept_table.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from acceptance.systems import PLANS, UNTRAINED

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "Benchmarks" / "results" / "acceptance"
PAGE = ROOT / "docs" / "acceptance.md"
HEAD = """# What the learned systems have shown

Made by `python Benchmarks/accept_table.py` from `Benchmarks/results/acceptance/*.json`; `make
acceptance SYSTEM=vxm` measures a system anew. Unless it says otherwise, trainings ran on the
fifteen people of `brain_t1_oasis/train_2mm` at 3 mm, with every test on the twelve ordered pairs of
the four people of `eval_1mm`, resampled to 3 mm and aligned by our affine registration; no system
saw a test person or any label in training, unless it says so. Dice is the mean over 138 manual
labels. Means are over the seeds, with the range in brackets.

Other data have: `deep_metric` (T1 and FLAIR images of `brain_t1_flair`, four people to train with
and two to test on, at 1.5 mm); `deep_similarity` and `rl_rigid` (`mouse_skull_ct`, ten strains to
train with, four to test on, posed by their landmarks, and enlarged so that a voxel of 0.45 mm is
one of 3 mm); `label_reg` (T1 with another contrast, and with FLAIR images of other people).
`raw_domain` needs no training: its cases are known warps and real motion, each with a sampling mask
of its own, and the comparator of its errors ends farther away than it began, so these two say
little.

The thresholds stand in `Benchmarks/acceptance`. They were fixed before anything was trained. What
was changed later: a check was added that the motions of `dual_prnet` become smaller from level to
level; the warps of `deep_metric` were made as large as they were meant, and its voxels smaller, as
the warps were less than one; `deep_similarity` and `rl_rigid` moved from brains, on which mutual
information never fails, to skulls, where what the agents find is refined inside the skull, as whole
images draw it to the forelegs; `error_map` is compared with plain differences besides the smoothed
ones; `coop_ae` learns from pairs as they lie, as random poses are no part of a population.
"""
SHIPPED = (
    "Trained on images that are generated from label maps, on two cores, and tested on the same\n"
    "pairs of real brains (`python Benchmarks/shipped_models.py`)."
)
COLUMNS = (
    ("dice", "Dice", "{:.4f}"),
    ("folds_percent", "folds %", "{:.5f}"),
    ("sdlogj", "SDlogJ", "{:.3f}"),
    ("round_trip_voxel", "round trip voxel", "{:.4f}"),
    ("spearman", "Spearman", "{:.3f}"),
    ("dice_shifted", "Dice, shifted", "{:.4f}"),
    ("dice_affine", "Dice, affine", "{:.4f}"),
    ("dice_coarse", "Dice, coarse", "{:.4f}"),
    ("corner_voxel", "corner error voxel", "{:.2f}"),
    ("prediction_seconds", "s a pair", "{:.2f}"),
)
#: Kept, but not shown.
UNSHOWN = (
    "seconds", "pairs", "folds_count", "dice_shifted_before", "corner_before_voxel",
    "known_error_mm", "known_initial_mm",
)  # fmt: skip


def read(name: str) -> dict[str, Any] | None:
    """What is kept of a system; None if there is nothing."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def spread(values: Sequence[float], form: str) -> str:
    """Mean, with the range of several."""
    text = form.format(float(np.mean(values)))
    if len(values) < 2:
        return text
    low, high = form.format(min(values)), form.format(max(values))
    return text if low == high else f"{text} ({low} to {high})"


def columns_of(rows: Sequence[Mapping[str, float]]) -> list[tuple[str, str, str]]:
    """Key, heading and format of the figures that any row has, the usual ones first."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in UNSHOWN)
    usual = [column for column in COLUMNS if column[0] in keys]
    known = [key for key, _, _ in usual]
    return usual + [(k, k.replace("_", " "), "{:.4g}") for k in keys if k not in known]


def table(first: str, rows: Mapping[str, Sequence[Mapping[str, float]]], count: str) -> list[str]:
    """A row with means for each of the kinds; `first` and `count` head the first columns."""
    columns = columns_of([row for found in rows.values() for row in found])
    headings = " | ".join(heading for _, heading, _ in columns)
    lines = [f"| {first} | {count} | {headings} |", "|---|---:|" + "---:|" * len(columns)]
    for name, found in rows.items():
        cells = [spread([row[key] for row in found], form) if key in found[0] else "–"
                 for key, _, form in columns]  # fmt: skip
        lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return lines


def judged(content: Mapping[str, Any]) -> list[str]:
    """The checks of a system; nothing if it was not judged yet."""
    checks = content.get("checks", [])
    if not checks:
        return []
    lines = ["", "| check | reached | |", "|---|---|---|"]
    return lines + [f"| {c['text']} | {c['reached']} | {state(c)} |" for c in checks]


def state(check: Mapping[str, Any]) -> str:
    """Whether a check is met."""
    return "met" if check["passed"] else "**not met**"


def section(system: str, content: Mapping[str, Any]) -> list[str]:
    """The tables of a system that is trained."""
    rows: dict[str, list[dict[str, float]]] = {}
    for name in PLANS[system].variants:
        found = [e["figures"] for e in content["trainings"] if e["variant"] == name]
        if found:
            rows[system if name == "full" else name] = found
    first = content["trainings"][0]
    seconds = np.mean([e["training_seconds"] for e in content["trainings"]])
    batch = int(next(iter(PLANS[system].variants.values())).settings.get("batch", 1))
    pairs = "one pair" if batch == 1 else f"{batch} pairs"
    return ["", f"## {system}", "", *table("training", rows, "seeds"), "",
            f"{first['steps']} steps of {pairs}; a training took {seconds / 60:.0f} minutes "
            f"({first['machine']}); commit {first['commit']}.", *judged(content)]  # fmt: skip


def come_along(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The table of the models that come with DeepReg; nothing if none was measured."""
    if not models:
        return []
    rows = {f"{name} ({entry['steps']} steps)": [entry["figures"]]
            for name, entry in sorted(models.items())}  # fmt: skip
    title = "## Models that come with DeepReg"
    return ["", title, "", SHIPPED, "", *table("model", rows, "trainings")]


def overview(contents: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """A row for each system with all its checks, or how far its measuring has come."""
    lines = ["", "## All systems", "", "| system | checks met | reached |", "|---|---:|---|"]
    for system, content in contents.items():
        checks = (content or {}).get("checks", [])
        texts = [f"{c['text']}: {c['reached']}, {state(c)}" for c in checks]
        met = f"{sum(c['passed'] for c in checks)} of {len(checks)}" if checks else "–"
        begun = "begun, with too few trainings to judge" if content else "not measured yet"
        lines.append(f"| {system} | {met} | {'<br>'.join(texts) or begun} |")
    return lines


def main() -> None:
    """Writes the page."""
    lines = [HEAD, "## Without training", "", "| method | Dice | folds % | SDlogJ | s a pair |",
             "|---|---:|---:|---:|---:|"]  # fmt: skip
    names = {"identity": "centers of mass", "rigid": "rigid", "affine": "affine",
             "demons": "SimpleITK diffeomorphic demons", "engine": "greedy (balanced)"}  # fmt: skip
    figures = (read("baselines") or {"figures": {}})["figures"]
    for key, name in names.items():
        if key in figures:
            row = figures[key]
            rest = ["–"] * 3
            if "sdlogj" in row:
                rest = [f"{row['folds_percent']:.4f}", f"{row['sdlogj']:.3f}",
                        f"{row['seconds']:.1f}"]  # fmt: skip
            lines.append(f"| {name} | {row['dice']:.4f} | " + " | ".join(rest) + " |")
    lines += come_along((read("shipped") or {}).get("models", {}))
    contents = {system: read(system) for system in (*PLANS, *UNTRAINED)}
    lines += overview(contents)
    for system, content in contents.items():
        if content and system in UNTRAINED:
            lines += ["", f"## {system}", "", *table("cases", content["figures"], "number"),
                      *judged(content)]  # fmt: skip
        elif content and content["trainings"]:
            lines += section(system, content)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
