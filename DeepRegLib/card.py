"""The quality card as people read it: names, units, order. Standard library only.

What the figures mean stands in `metrics.report`, which measures them.
"""

from __future__ import annotations

from typing import Any

_MODEL = "Model of the estimate"
#: Rows of the card for people: name, key before, key after, format.
ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("Normalized mutual information", "nmi_before", "nmi_after", "{:.3f}"),
    ("Correlation (NCC)", "ncc_before", "ncc_after", "{:.3f}"),
    ("Overlap of the images", "overlap_before_percent", "overlap_percent", "{:.0f} %"),
    ("Dice, mean over labels", "dice_before", "dice_after", "{:.3f}"),
    ("Landmark error, mean", "tre_mean_before_mm", "tre_mean_after_mm", "{:.2f} mm"),
    ("Landmark error, median", "tre_median_before_mm", "tre_median_after_mm", "{:.2f} mm"),
    ("Landmark error, maximum", "tre_max_before_mm", "tre_max_after_mm", "{:.2f} mm"),
    ("Estimated error (TRE)", "", "estimated_tre_mm", "{:.1f} mm"),
    (_MODEL, "", "estimated_tre_model", "{}"),
    ("Folded voxels", "", "folds_percent", "{:.3f} %"),
    ("Jacobian, 1st percentile", "", "jacobian_p01", "{:.2f}"),
    ("Jacobian, 99th percentile", "", "jacobian_p99", "{:.2f}"),
    ("SDlogJ", "", "sdlogj", "{:.3f}"),
    ("Deformation, mean", "", "deformation_mean_mm", "{:.2f} mm"),
    ("Deformation, maximum", "", "deformation_max_mm", "{:.2f} mm"),
    ("Displacement, mean", "", "displacement_mean_mm", "{:.2f} mm"),
    ("Displacement, maximum", "", "displacement_max_mm", "{:.2f} mm"),
    ("Inverse consistency, mean", "", "inverse_mean_mm", "{:.3f} mm"),
    ("Inverse consistency, 95 %", "", "inverse_p95_mm", "{:.3f} mm"),
    ("Inverse consistency, maximum", "", "inverse_max_mm", "{:.3f} mm"),
    ("Time", "", "seconds", "{:.1f} s"),
    ("Peak memory", "", "peak_memory_mb", "{:.0f} MB"),
)


def card_rows(card: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the known figures as texts: name, before (or empty), after; for tables."""
    rows = []
    for name, before, after, form in ROWS:
        if card.get(after) is None:
            continue
        old = card.get(before)
        known = form.format(old) if old is not None else ("-" if before else "")
        rows.append((name, known, form.format(card[after])))
    return rows


def card_text(card: dict[str, Any]) -> str:
    """Returns the card as a plain text table."""
    lines = [f"{card['verdict'].upper()}: {card['sentence']}"]
    lines += [f"  also: {reason}" for reason in card["reasons"] if reason != card["sentence"]]
    rows = [("", "before", "after"), *card_rows(card)]
    # A name may be long; it sticks out, and the figures stay together.
    figures = [row for row in rows if row[0] != _MODEL]
    widths = [max(len(row[column]) for row in figures) for column in range(3)]
    for name, before, after in rows:
        lines.append(f"{name:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}")
    return "\n".join(lines) + "\n"
