"""Writes Benchmarks/README.md from the kept results. Usage: python Benchmarks/make_table.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HEAD = """# Benchmarks

Made by `python Benchmarks/make_table.py` from `results/*.json`, which keep commit, machine and
every pair. `python Benchmarks/main_job.py` (or `make benchmark`) measures anew on the volumes of
`DEEPREG_DATA`; single parts: `retest turned skulls brains flair warped`. Seconds are wall time of
the whole registration on the machine named below, on which other programs ran too: compare ratios
of one run, never seconds of two.

| what | asked | reached |
|---|---|---|
"""


def rows() -> list[tuple[str, str, str]]:
    """Returns what was measured, what was asked and what was reached."""
    found = {path.stem: json.loads(path.read_text()) for path in (HERE / "results").glob("*.json")}
    makers = {
        "retest": _retest, "turned": _turned, "skulls": _skulls, "flair": _flair, "warped": _warped,
    }  # fmt: skip
    table = [makers[name](found[name]) for name in makers if name in found]
    table += [_brains(name, found[name]) for name in sorted(found) if name.startswith("brains_")]
    return table


def _retest(r: dict[str, Any]) -> tuple[str, str, str]:
    parts = [f"{p} {v['dice']:.4f} ({v['seconds']:.0f} s)" for p, v in r["rigid"].items()]
    return "`rigid`, one person scanned twice (1003, 1023): mean Dice", r["asked"], ", ".join(parts)


def _turned(r: dict[str, Any]) -> tuple[str, str, str]:
    dice = [row["dice"] for row in r["starts"]]
    straight = f"{r['straight_dice']:.4f}"
    reached = f"{r['within']} of {len(dice)}; least Dice {min(dice):.4f}, straight {straight}"
    return "the same, turned up to 60° and shifted up to 60 mm", r["asked"], reached


def _skulls(r: dict[str, Any]) -> tuple[str, str, str]:
    reached = f"median {r['median_tre_mm']:.2f} mm, worst pair {r['worst_pair_mm']:.2f} mm"
    return "`rigid`, mouse skulls in arbitrary pose, 12 pairs: landmark error", r["asked"], reached


def _brains(name: str, r: dict[str, Any]) -> tuple[str, str, str]:
    reached = (
        f"mean Dice {r['mean_dice']:.4f} (affine {r['mean_affine_dice']:.4f}), least "
        f"{r['least_dice']:.4f}; folds {r['most_folds_percent']:.4f} %; SDlogJ mean "
        f"{r['mean_sdlogj']:.3f}, most {r['most_sdlogj']:.3f}; round trip at most "
        f"{r['most_round_trip_voxel']:.3f} voxel; {r['mean_seconds']:.0f} s a pair"
    )
    preset = name.removeprefix("brains_")
    return f"`affine+greedy` ({preset}), four people, 12 pairs, 1 mm", r["asked"], reached


def _flair(r: dict[str, Any]) -> tuple[str, str, str]:
    parts = [
        f"{s['subject']}: {s['difference_mm']:.2f} mm, {s['difference_deg']:.2f}° (offset "
        f"{s['corrected_mm']:.0f} mm)"
        for s in r["subjects"]
    ]
    text = "`rigid`, T1 to FLAIR: distance from the best of six SimpleITK runs"
    return text, r["asked"], "; ".join(parts)


def _warped(r: dict[str, Any]) -> tuple[str, str, str]:
    kinds = sorted({s["similarity"] for s in r["subjects"]})
    parts = []
    for kind in kinds:
        shares = [s["final_mm"] / s["initial_mm"] for s in r["subjects"] if s["similarity"] == kind]
        listed = ", ".join(f"{share:.2f}" for share in shares)
        parts.append(f"{kind}: {listed} of the initial error")
    text = "`greedy`, T1 to FLAIR after a known warp of 8 mm (01, 04, 12, 17)"
    return text, r["asked"], "; ".join(parts)


def page() -> str:
    """Returns the whole page."""
    lines = ["| " + " | ".join(row) + " |" for row in rows()]
    origins = []
    for path in sorted((HERE / "results").glob("*.json")):
        o = json.loads(path.read_text(encoding="utf-8")).get("origin")
        if o is None:  # a page of its own, with the origin of each entry
            continue
        origins.append(
            f"- `{path.name}`: commit {o['commit']}, {o['date']}, {o['machine']}, {o['threads']} "
            f"threads, {o['device']}, torch {o['torch']}"
        )
    return HEAD + "\n".join(lines) + "\n\n" + "\n".join(origins) + "\n"


if __name__ == "__main__":
    (HERE / "README.md").write_text(page(), encoding="utf-8")
    print("wrote Benchmarks/README.md")
