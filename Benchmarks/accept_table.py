"""Writes docs/acceptance.md from results/acceptance/*.json.

Usage: python Benchmarks/accept_table.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from acceptance.systems import PLANS

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "Benchmarks" / "results" / "acceptance"
PAGE = ROOT / "docs" / "acceptance.md"
HEAD = """# What the learned systems have shown

Made by `python Benchmarks/accept_table.py` from `Benchmarks/results/acceptance/*.json`;
`make acceptance SYSTEM=vxm` measures a system anew. Every training ran on the fifteen people of
`brain_t1_oasis/train_2mm` at 3 mm, with every test on the twelve ordered pairs of the four people
of `eval_1mm`, resampled to 3 mm and aligned by our affine registration; no system saw a test
person or any label in training, unless it says so. Dice is the mean over 138 manual labels. Means
are over the seeds, with the range in brackets. The thresholds are those of
`Benchmarks/acceptance/plans.py`, fixed before anything was trained.
"""
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


def section(system: str, content: dict[str, Any]) -> list[str]:
    """The tables of one system."""
    rows: dict[str, list[dict[str, float]]] = {}
    for entry in content["trainings"]:
        rows.setdefault(entry["variant"], []).append(entry["figures"])
    every = [row for found in rows.values() for row in found]
    columns = [c for c in COLUMNS if any(c[0] in row for row in every)]
    lines = ["", f"## {system}", "", "| training | seeds | "
             + " | ".join(heading for _, heading, _ in columns) + " |",
             "|---|---:|" + "---:|" * len(columns)]  # fmt: skip
    for name in PLANS[system].variants:
        if name not in rows:
            continue
        found = rows[name]
        cells = [spread([row[key] for row in found], form) if key in found[0] else "–"
                 for key, _, form in columns]  # fmt: skip
        shown = system if name == "full" else name
        lines.append(f"| {shown} | {len(found)} | " + " | ".join(cells) + " |")
    first = content["trainings"][0]
    seconds = np.mean([e["training_seconds"] for e in content["trainings"]])
    batch = int(PLANS[system].variants["full"].settings.get("batch", 1))
    pairs = "one pair" if batch == 1 else f"{batch} pairs"
    lines += ["", f"{first['steps']} steps of {pairs}; a training took {seconds / 60:.0f} minutes "
              f"({first['machine']}); commit {first['commit']}."]  # fmt: skip
    checks = content.get("checks", [])
    if checks:
        lines += ["", "| check | reached | |", "|---|---|---|"]
        lines += [f"| {c['text']} | {c['reached']} | {'met' if c['passed'] else '**not met**'} |"
                  for c in checks]  # fmt: skip
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
    for system in PLANS:
        content = read(system)
        if content and content["trainings"]:
            lines += section(system, content)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
