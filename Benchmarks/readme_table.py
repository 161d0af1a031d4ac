"""The short comparison in the README, between two marks; `compare_table.py` writes it anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

BEGIN = "<!-- written by Benchmarks/compare_table.py -->"
END = "<!-- as far as here -->"
HEAD = """
Brains of two people, T1 MRI at 1 mm; means of {pairs} pairs; two CPU cores, one program after the
other. Dice is the overlap of 138 structures that were outlined by hand; a smaller SDlogJ is a
smoother deformation.

| program | Dice | SDlogJ | seconds |
|---|---:|---:|---:|
"""


def written(readme: str, rows: Mapping[str, Mapping[str, float]], pairs: int) -> str:
    """Returns the text of the README with a new table.

    Args:
        readme: The text so far.
        rows: Mean figures by name, in the order of the table.
        pairs: Over how many pairs they are means.

    Raises:
        ValueError: If the marks are not there.
    """
    before, found, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"The README has no '{BEGIN}' followed by '{END}'.")
    lines = [
        f"| {name} | {row['dice']:.3f} | {row['sdlogj']:.2f} | "
        f"{'~' if row.get('unsteady') else ''}{row['seconds']:.0f} |"
        for name, row in rows.items()
    ]
    table = HEAD.format(pairs=pairs) + "\n".join(lines)
    return f"{before}{BEGIN}\n{table}\n\n{END}{after}"


def write(path: Path, rows: Mapping[str, Mapping[str, float]], pairs: int) -> None:
    """Writes the table into a README."""
    path.write_text(written(path.read_text(encoding="utf-8"), rows, pairs), encoding="utf-8")
