"""Writes Benchmarks/COMPARISON.md and pictures from results/compare/*.json.

Usage: python Benchmarks/compare_table.py
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import readme_table
from compare import LEARNED

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "results" / "compare"
Entry = dict[str, Any]
Box = tuple[float, float, float, float]

HEAD = """# Side by side with other programs

Made by `python Benchmarks/compare_table.py` from `results/compare/*.json`, which keep every pair
with commit, machine, versions, date and how fast the machine was at that moment. `python
Benchmarks/compare.py` measures anew: every program runs on the same pairs and the same cores, in a
process of its own, with the settings that its authors recommend (cited in `peers/run_*.py`), and
all results are measured by one code (`peers/evaluate.py`) from the displacement that the program
gives. Means are over the pairs that all methods of a table have finished; a second table adds the
programs that were too slow for all pairs.

Seconds are the registration alone, without reading and writing, on average over the pairs during
which the machine was as fast as usual (a fixed piece of work before and after tells); a ~ marks
methods without such a pair. Where the inverse is made by a step
of its own, its seconds stand apart; greedy and ANTs find it along the way. convexAdam has no linear
registration: it gets our affine, whose seconds are added.
"""
TITLES = {
    "brains": "Brains of two people, T1 MRI, 1 mm, 138 manual labels",
    "skulls": "Mouse skulls, micro-CT, from one rigid start",
    "lung": "Lung CT, breathing out and in (EMPIRE10 case 01, 2 mm)",
    "flair": "T1 to FLAIR of one person after a known warp of 8 mm, 2 mm",
}
#: Columns: figure, heading, how it is written.
COLUMNS = (
    ("dice", "Dice", "{:.4f}"),
    ("hd95_mm", "HD95 mm", "{:.2f}"),
    ("tre_median_mm", "TRE median mm", "{:.3f}"),
    ("tre_mean_mm", "TRE mean mm", "{:.3f}"),
    ("error_mm", "error mm", "{:.2f}"),
    ("error_ratio", "of initial", "{:.2f}"),
    ("ncc", "NCC", "{:.4f}"),
    ("lncc", "LNCC", "{:.4f}"),
    ("folds_percent", "folds %", "{:.4f}"),
    ("sdlogj", "SDlogJ", "{:.3f}"),
    ("round_trip_voxel", "round trip voxel", "{:.3f}"),
    ("round_trip_p99_voxel", "99 %", "{:.3f}"),
    ("seconds", "seconds", "{:.0f}"),
    ("inverse_seconds", "+ inverse", "{:.0f}"),
    ("peak_memory_mb", "memory MB", "{:.0f}"),
)
#: The engine's methods that stand beside trained models.
BESIDE = ("deepreg:rigid+affine+greedy:fast", "deepreg:rigid+affine+greedy:balanced")
#: What a picture shows for accuracy, and whether more is better.
ACCURACY = {
    "brains": ("dice", "mean Dice", True),
    "skulls": ("tre_median_mm", "median landmark error, mm", False),
    "lung": ("lncc", "local correlation in the lungs", True),
    "flair": ("error_mm", "mean error, mm", False),
}
#: Names in tables and pictures.
NAMES = {
    "greedy:wncc-sv": "greedy (WNCC, velocity)",
    "greedy:ncc": "greedy (NCC)",
    "greedy:nmi-sv": "greedy (NMI, velocity)",
    "ants:syn-quick": "ANTs SyNQuick (MI)",
    "ants:syn-cc": "ANTs SyN (CC)",
    "ants:syn-mattes": "ANTsPy SyN (Mattes)",
    "fireants:greedy": "FireANTs greedy",
    "fireants:syn": "FireANTs SyN",
    "convexadam:mind": "convexAdam (MIND)",
    "elastix:brain-mi": "elastix Par0035 (MI)",
    "elastix:default-mi": "elastix default (MI)",
    "elastix:default-ncc": "elastix default (NCC)",
    "simpleitk:demons": "SimpleITK demons",
    "simpleitk:bspline-mi": "SimpleITK B-spline (MI)",
}
TIMES = ("seconds", "inverse_seconds")
CALIBRATIONS = ("calibration_before_s", "calibration_after_s")
#: A machine that takes this much longer than usual for the fixed piece of work is not steady.
STEADY = 1.5
OURS_COLOR, PEER_COLOR = "#c2410c", "#475569"


def common_pairs(entries: Iterable[Entry]) -> list[str]:
    """The pairs that every method with a result has finished, in order of appearance."""
    done = [(e["pair"], e["method"]) for e in entries if "error" not in e]
    methods = {method for _, method in done}
    finished = dict.fromkeys(pair for pair, _ in done)
    return [pair for pair in finished if all((pair, m) in done for m in methods)]


def groups(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries of the methods with the most pairs, and all entries where others have fewer."""
    count: dict[str, int] = {}
    for entry in entries:
        count[entry["method"]] = count.get(entry["method"], 0) + ("error" not in entry)
    most = max(count.values(), default=0)
    full = [e for e in entries if count[e["method"]] == most]
    fewer = any(0 < n < most for n in count.values())
    return [full, list(entries)] if fewer else [full]


def means(entries: Sequence[Entry], pairs: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean figures of each method over some pairs; our affine counts where a method needs it.

    `unsteady` is 1 for a method whose seconds were never taken on a steady machine.
    """
    usual = usual_calibration(entries)
    rows: dict[str, list[Entry]] = {}
    for entry in entries:
        if "error" not in entry and entry["pair"] in pairs:
            seconds = entry.get("seconds", float("nan")) + entry.get("affine_seconds", 0.0)
            rows.setdefault(entry["method"], []).append({**entry, "seconds": seconds})
    found = {}
    for method, of in rows.items():
        steady = [row for row in of if _slowness(row, usual) <= STEADY]
        found[method] = {
            key: float(np.mean([row[key] for row in (steady or of if key in TIMES else of)]))
            for key, _, _ in COLUMNS
            if all(key in row for row in of)
        }
        found[method]["unsteady"] = float(not steady)
    return found


def usual_calibration(entries: Sequence[Entry]) -> float:
    """Seconds of the fixed piece of work when nothing disturbs."""
    times = [e[k] for e in entries for k in CALIBRATIONS if k in e]
    return float(np.quantile(times, 0.1)) if times else 1.0


def is_ours(method: str) -> bool:
    """Whether a method is one of this library."""
    return method.startswith("deepreg:")


def name_of(method: str) -> str:
    """The name of a method for readers."""
    if not is_ours(method):
        return NAMES.get(method, method)
    _, stages, preset = [*method.split(":"), "balanced"][:3]
    found = " + ".join(key for key in stages.split("+") if key not in ("rigid", "affine"))
    return f"DeepReg {found} ({preset})"


def section(dataset: str, entries: Sequence[Entry], title: str = "", suffix: str = "") -> str:
    """The tables of one data set, best first, with what failed and where it was measured."""
    lines = [f"## {title or TITLES[dataset]}", ""]
    trained = [entry for entry in entries if entry["method"] in LEARNED]
    others = [entry for entry in entries if entry["method"] not in LEARNED]
    for part in groups(others):
        lines += [*_table(dataset, part), ""]
    if trained:
        lines += ["The models that come with DeepReg, alone and refined, beside the engine:", ""]
        for part in groups(trained):
            engine = [entry for entry in others if entry["method"] in BESIDE]
            lines += [*_table(dataset, [*part, *engine]), ""]
    lines += [*_failures(entries), *_origins(entries)]
    for kind in ("time", "smoothness"):
        if (FOLDER / f"{dataset}{suffix}_{kind}.png").exists():
            lines += ["", f"![{dataset}: {kind}](results/compare/{dataset}{suffix}_{kind}.png)"]
    return "\n".join(lines) + "\n"


def _table(dataset: str, entries: Sequence[Entry]) -> list[str]:
    pairs = common_pairs(entries)
    found = means(entries, pairs)
    key, _, more = ACCURACY[dataset]
    order = sorted(found, key=lambda m: found[m].get(key, math.nan), reverse=more)
    columns = [c for c in COLUMNS if any(c[0] in row for row in found.values())]
    lines = [f"n = {len(pairs)} pairs: {', '.join(pairs)}", ""]
    lines += ["| method | " + " | ".join(heading for _, heading, _ in columns) + " |"]
    lines += ["|---|" + "---:|" * len(columns)]
    for method in order:
        name = f"**{name_of(method)}**" if is_ours(method) else name_of(method)
        row = found[method]
        cells = [
            ("~" if k in TIMES and row["unsteady"] else "") + form.format(row[k])
            if k in row
            else "–"
            for k, _, form in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _failures(entries: Sequence[Entry]) -> list[str]:
    failed = [e for e in entries if "error" in e]
    lines = [
        f"- failed: {name_of(e['method'])}, {e['pair']}: {' '.join(str(e['error']).split())[:200]}"
        for e in failed
    ]
    return lines


def _origins(entries: Sequence[Entry]) -> list[str]:
    """One line with versions, one with machine, commits, and how steady the machine was."""
    versions = sorted({str(e["version"]) for e in entries if "version" in e})
    measured = [e for e in entries if "machine" in e]
    machines = sorted({f"{e['machine']}, {e['threads']} threads" for e in measured})
    commits = sorted({e["commit"] for e in entries if "commit" in e})
    dates = sorted(e["date"][:10] for e in entries if "date" in e)
    if not dates:
        return []
    lines = [
        f"- {'; '.join(versions)}",
        f"- {'; '.join(machines)}; commit {', '.join(commits)}; {dates[0]} to {dates[-1]}",
    ]
    times = [e[k] for e in entries for k in CALIBRATIONS if k in e]
    if times:
        steady = sum(_slowness(e, usual_calibration(entries)) <= STEADY for e in measured)
        lines.append(
            f"- a fixed piece of work took {min(times):.2f} to {max(times):.2f} s; the machine was "
            f"steady in {steady} of {len(measured)} runs"
        )
    return lines


def _slowness(entry: Entry, usual: float) -> float:
    return max((entry[k] / usual for k in CALIBRATIONS if k in entry), default=1.0)


def overlapping(a: Box, b: Box) -> bool:
    """Whether two boxes (left, bottom, right, top) share an area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def place_labels(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], gap: float = 0.012
) -> list[Box]:
    """Finds places for labels beside points so that no label covers a point or another label.

    Convention:
        All in shares of the picture. Each label takes the free place nearest to its point, on
        either side, among ever larger shifts; places outside the picture are not taken.
    """
    taken: list[Box] = [(x - gap, y - gap, x + gap, y + gap) for x, y in points]
    boxes: list[Box] = []
    for (x, y), (width, height) in zip(points, sizes):
        best: Box | None = None
        for step in range(80):
            shift = (step + 1) // 2 * (1 if step % 2 else -1) * height * 0.35
            sides = [(x + 1.3 * gap, y + shift), (x - 1.3 * gap - width, y + shift)]
            boxed = [(a, b - height / 2, a + width, b + height / 2) for a, b in sides]
            free = [
                box for box in boxed
                if min(box[:2]) >= 0 and max(box[2:]) <= 1
                and not any(overlapping(box, other) for other in taken)
            ]  # fmt: skip
            if free:
                best = free[0]
                break
        box = best or (x, y, x + width, y + height)
        taken.append(box)
        boxes.append(box)
    return boxes


def draw(dataset: str, entries: Sequence[Entry], kind: str, suffix: str = "") -> Path | None:
    """Draws accuracy against seconds (``time``) or against SDlogJ (``smoothness``)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    key, label, more = ACCURACY[dataset]
    across, title = {
        "time": ("seconds", "seconds for a pair (logarithmic)"),
        "smoothness": ("sdlogj", "SDlogJ: unevenness of the volume change"),
    }[kind]
    pairs = common_pairs(entries)
    found = {m: f for m, f in means(entries, pairs).items() if key in f and across in f}
    if not found:
        return None
    figure, axes = plt.subplots(figsize=(9.6, 6.0), dpi=130)
    if kind == "time":
        axes.set_xscale("log")
    _limits(axes, [f[across] for f in found.values()], [f[key] for f in found.values()], kind)
    if not more:
        # What is better stands higher in every picture.
        axes.invert_yaxis()
    for method, row in found.items():
        ours = is_ours(method)
        axes.plot(row[across], row[key], "D" if ours else "o", ms=10 if ours else 8, zorder=3,
                  color=OURS_COLOR if ours else PEER_COLOR, mec="white", mew=0.8)  # fmt: skip
    _write_names(figure, axes, {m: (f[across], f[key]) for m, f in found.items()})
    axes.set_xlabel(title + ("" if kind == "time" else "; 0 is even"), fontsize=12)
    axes.set_ylabel(label + (" (more is better)" if more else " (less is better)"), fontsize=12)
    axes.set_title(f"{TITLES[dataset]}, n = {len(pairs)}", fontsize=13, loc="left", pad=12)
    axes.grid(True, which="major", color="#e2e8f0", lw=0.8)
    axes.tick_params(labelsize=11)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path = FOLDER / f"{dataset}{suffix}_{kind}.png"
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
    return path


def _limits(axes: Any, across: Sequence[float], up: Sequence[float], kind: str) -> None:
    """Room for the names around the points, and plain numbers on a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    span = (max(up) - min(up)) or abs(max(up)) * 0.1 or 1.0
    axes.set_ylim(min(up) - 0.12 * span, max(up) + 0.12 * span)
    if kind != "time":
        width = max(across) or 1.0
        axes.set_xlim(max(0.0, min(across) - 0.15 * width), max(across) + 0.15 * width)
        return
    low, high = min(across) / 1.7, max(across) * 1.7
    axes.set_xlim(low, high)
    ticks = [m * 10**e for e in range(-1, 6) for m in (1, 2, 5) if low <= m * 10**e <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _write_names(figure: Any, axes: Any, points: dict[str, tuple[float, float]]) -> None:
    """Writes each name beside its point, with a thin line where it had to go farther away."""
    renderer = figure.canvas.get_renderer()
    texts = []
    for method in points:
        weight = "bold" if is_ours(method) else "normal"
        color = OURS_COLOR if is_ours(method) else "#1e293b"
        texts.append(axes.text(0, 0, name_of(method), transform=axes.transAxes, fontsize=10.5,
                               va="center", weight=weight, color=color, zorder=4))  # fmt: skip
    frame = axes.get_window_extent(renderer)
    boxes = [text.get_window_extent(renderer) for text in texts]
    sizes = [(box.width / frame.width, box.height / frame.height * 1.15) for box in boxes]
    to_axes = axes.transData + axes.transAxes.inverted()
    places = [tuple(to_axes.transform(p)) for p in points.values()]
    for text, (x, y), box in zip(texts, places, place_labels(places, sizes)):
        middle = (box[1] + box[3]) / 2
        text.set_position((box[0], middle))
        if abs(middle - y) > (box[3] - box[1]) * 0.8:
            near = box[0] if box[0] > x else box[2]
            axes.plot([x, near], [y, middle], transform=axes.transAxes, lw=0.7, color="#94a3b8",
                      zorder=2)  # fmt: skip


def _tell_users(entries: Sequence[Entry]) -> None:
    """Writes the methods that have finished all pairs into the README, the best first."""
    full = groups([entry for entry in entries if entry["method"] not in LEARNED])[0]
    pairs = common_pairs(full)
    found = means(full, pairs)
    order = sorted(found, key=lambda method: -found[method]["dice"])
    rows = {f"**{name_of(m)}**" if is_ours(m) else name_of(m): found[m] for m in order}
    readme_table.write(HERE.parent / "README.md", rows, len(pairs))


def main() -> None:
    """Draws all pictures and writes the page."""
    parts = [HEAD]
    for dataset, suffix in itertools.product(TITLES, ("", "_cuda")):
        path = FOLDER / f"{dataset}{suffix}.json"
        if not path.exists():
            continue
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
        title = TITLES[dataset] + (", on a GPU" if suffix else "")
        for kind in ("time", "smoothness"):
            untrained = [entry for entry in entries if entry["method"] not in LEARNED]
            draw(dataset, groups(untrained)[-1], kind, suffix)
        if (dataset, suffix) == ("brains", ""):
            _tell_users(entries)
        parts.append(section(dataset, entries, title, suffix))
    (HERE / "COMPARISON.md").write_text("\n".join(parts), encoding="utf-8")
    print("wrote Benchmarks/COMPARISON.md")


if __name__ == "__main__":
    main()
