"""Writes SCALING.md and results/scaling.png from results/scaling.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_HEAD = """# Time and memory against the number of voxels

Made by `python Benchmarks/scaling.py` from `results/scaling.json`: the sample pair resampled to so
many voxels, preset balanced, everything from the images in memory to the quality card. "Finish" is
the inverse, the moved image and the card. Memory is what the process took beyond the two images.
"""


def write(path: Path) -> None:
    """Writes the page and the picture."""
    entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
    timed = [e for e in entries if "profile" not in e]
    lines = [_HEAD]
    for device in sorted({e["device"] for e in timed}):
        for label in sorted({e["label"] for e in timed if e["device"] == device}, reverse=True):
            of = [e for e in timed if e["device"] == device and e["label"] == label]
            lines += _table(of, f"{device}, {label}: {of[0]['machine']}, commit {of[0]['commit']}")
    lines += _profiles([e for e in entries if "profile" in e])
    picture = HERE / "results" / "scaling.png"
    if _draw(timed, picture):
        lines += ["", "![Time and memory against voxels](results/scaling.png)"]
    (HERE / "SCALING.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _table(entries: list[dict[str, Any]], title: str) -> list[str]:
    rows = [
        "",
        f"## {title}",
        "",
        "| algorithm | side | million voxels | linear s | deformable s | finish s | total s | "
        "s per million | memory MB | bytes per voxel |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for e in sorted(entries, key=lambda e: (e["algorithm"], e["size"])):
        million = e["voxels"] / 1e6
        head = f"| {e['algorithm']} | {e['size']} | {million:.2f} | "
        if "error" in e:
            rows.append(head + f"{e['error'][:80]} | | | | | | |")
            continue
        linear = sum(s for k, s in e["stages"].items() if k in ("rigid", "affine"))
        memory = e.get("gpu_memory_mb", e["memory_mb"])
        rows.append(
            head + f"{linear:.1f} | {sum(e['stages'].values()) - linear:.1f} | {e['finish']:.1f} | "
            f"{e['seconds']:.1f} | {e['seconds'] / million:.2f} | {memory:.0f} | "
            f"{memory * 2**20 / e['voxels']:.0f} |"
        )
    return rows


def _profiles(entries: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for e in sorted(entries, key=lambda e: (e["size"], e["label"])):
        lines += [
            "",
            f"## Where the time goes: {e['algorithm']}, {e['size']}^3, {e['label']} "
            f"({e['commit']}), {e['seconds']:.0f} s",
            "",
            "| function, with what it calls in torch | share |",
            "|---|---:|",
        ]
        lines += [f"| `{name}` | {100 * share:.0f} % |" for name, share in e["profile"].items()]
    return lines


def _draw(entries: list[dict[str, Any]], path: Path) -> bool:
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    kinds = sorted({(e["label"], e["algorithm"], e["device"]) for e in entries})
    for kind in kinds:
        of = sorted((e for e in entries if "error" not in e
                     and (e["label"], e["algorithm"], e["device"]) == kind),
                    key=lambda e: e["voxels"])  # fmt: skip
        voxels = [e["voxels"] / 1e6 for e in of]
        name = " ".join(kind)
        left.plot(voxels, [e["seconds"] for e in of], "o-", label=name)
        right.plot(voxels, [e.get("gpu_memory_mb", e["memory_mb"]) for e in of], "o-", label=name)
    for axes, label in ((left, "seconds"), (right, "memory, MB")):
        axes.set(xscale="log", yscale="log", xlabel="million voxels", ylabel=label)
        axes.grid(True, which="both", alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    return True


if __name__ == "__main__":
    write(HERE / "results" / "scaling.json")
