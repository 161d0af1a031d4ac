"""Time, memory and where the time goes, from 64^3 to 320^3 voxels.

Usage: python Benchmarks/scaling.py [--sizes 64 96 128 192 256 320] [--device cpu]
           [--algorithm greedy] [--profile 128] [--library PATH --label before]

The sample pair (two brain templates, Resources/SampleData) is resampled to so many voxels along
each side and registered, every size in a process of its own, so that its peak memory is its own.
`--library` measures another checkout with the same images. Keeps results/scaling.json and writes
SCALING.md and results/scaling.png from all that is kept.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import pstats
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "Benchmarks" / "results"
SAMPLES = ROOT / "Resources" / "SampleData"
SIZES = (64, 96, 128, 192, 256, 320)
#: Side of the cube that is registered, mm.
FIELD_OF_VIEW_MM = 208.0
#: Functions that a profile names; the rest is summed up.
_NAMED = 14


def measure(size: int, algorithm: str, device: str, profiled: bool) -> dict[str, Any]:
    """Registers the sample pair at one size, in this process."""
    from DeepRegLib import pipeline
    from DeepRegLib.registration.base import ImagePair

    pair = ImagePair(*(cube(SAMPLES / name, size) for name in
                       ("MNI152_T1_brain.nii.gz", "Colin27_T1_brain.nii.gz")))  # fmt: skip
    on_gpu = device.startswith("cuda")
    if on_gpu:
        pipeline.run(pair, algorithm, "balanced", device=device)  # warm-up
    before_mb = _resident_mb()
    profile = cProfile.Profile()
    if profiled:
        profile.enable()
    started = time.perf_counter()
    result = pipeline.run(pair, algorithm, "balanced", device=device)
    seconds = time.perf_counter() - started
    profile.disable()
    stages = dict(result.seconds)
    entry: dict[str, Any] = {
        "size": size, "voxels": size**3, "stages": stages,
        "finish": seconds - sum(stages.values()), "seconds": seconds,
        "memory_mb": result.quality["peak_memory_mb"] - before_mb,
        "resident_before_mb": before_mb,
        "ncc_after": result.quality.get("ncc_after"),
        "folds_percent": result.quality.get("folds_percent"),
        "sdlogj": result.quality.get("sdlogj"),
    }  # fmt: skip
    if on_gpu:
        entry["gpu_memory_mb"] = result.quality["peak_memory_mb"]
    if profiled:
        entry["profile"] = shares(pstats.Stats(profile))
    return entry


def cube(path: Path, size: int) -> Any:
    """The image on a cube of voxels around its middle."""
    import numpy as np

    from DeepRegLib.geometry.grid import Grid
    from DeepRegLib.geometry.sampling import resize_image
    from DeepRegLib.geometry.transform import Transform
    from DeepRegLib.io.images import read_image
    from DeepRegLib.registration.base import Image

    image = read_image(path)
    spacing = FIELD_OF_VIEW_MM / size
    shape = [max(1, round(n * s / max(spacing, s))) for n, s in
             zip(image.grid.shape, image.grid.spacing_mm)]  # fmt: skip
    smooth, grid = resize_image(image.data.float(), shape), image.grid.resized(shape)
    matrix = np.diag([spacing] * 3 + [1.0])
    matrix[:3, 3] = grid.center_ras - spacing * (size - 1) / 2
    target = Grid((size, size, size), matrix)
    return Image(Transform().warp(smooth, grid, target), target)


def shares(stats: pstats.Stats) -> dict[str, float]:
    """Share of the time of each function of the library, with what it calls outside of it."""
    table = stats.stats  # type: ignore[attr-defined]
    found: dict[str, float] = {}

    def ours(function: tuple[str, int, str]) -> bool:
        return "DeepRegLib" in function[0]

    def give(function: tuple[str, int, str], seconds: float, depth: int) -> None:
        """Gives time to the nearest caller that is of the library."""
        if ours(function):
            name = f"{Path(function[0]).stem}.{function[2]}"
            found[name] = found.get(name, 0.0) + seconds
            return
        callers = table[function][4] if function in table else {}
        whole = sum(c[2] for c in callers.values())
        if depth > 12 or whole <= 0.0:
            found["other"] = found.get("other", 0.0) + seconds
            return
        for caller, numbers in callers.items():
            give(caller, seconds * numbers[2] / whole, depth + 1)

    for function, numbers in table.items():
        give(function, numbers[2], 0)
    total = sum(found.values())
    ranked = sorted(((n, s / total) for n, s in found.items() if n != "other"),
                    key=lambda item: -item[1])  # fmt: skip
    named = dict(ranked[:_NAMED])
    return {**named, "all others": 1.0 - sum(named.values())}


def _resident_mb() -> float:
    """Memory of this process at the moment, with the images and the libraries (Linux)."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def in_own_process(options: argparse.Namespace, size: int, profiled: bool) -> dict[str, Any]:
    """Measures one size in a new process, with the library of `options`."""
    words = [sys.executable, __file__, "--one", str(size), "--algorithm", options.algorithm,
             "--device", options.device, *(["--profiled"] if profiled else [])]  # fmt: skip
    environment = dict(os.environ, PYTHONPATH=str(Path(options.library).resolve()),
                       OMP_WAIT_POLICY="passive")  # fmt: skip
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"size": size, "voxels": size**3, "error": done.stderr.strip()[-300:]}
    return json.loads(done.stdout.splitlines()[-1])


def keep(entry: dict[str, Any], options: argparse.Namespace) -> None:
    """Adds an entry to the file, in place of an older one of the same kind."""
    from common import ORIGIN, rounded

    path = RESULTS / "scaling.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else []
    commit = subprocess.run(["git", "-C", options.library, "rev-parse", "--short", "HEAD"],
                            capture_output=True, text=True, check=False).stdout.strip()  # fmt: skip
    entry |= {"label": options.label, "algorithm": options.algorithm, "device": options.device,
              **ORIGIN, "commit": commit, "load": os.getloadavg()[0]}  # fmt: skip
    key = ("label", "algorithm", "device", "size")
    entries = [e for e in entries if any(e[k] != entry[k] for k in key)
               or ("profile" in e) != ("profile" in entry)]  # fmt: skip
    content = {"entries": [*entries, rounded(entry)]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measures all sizes and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--profile", type=int, nargs="*", default=[], help="sizes to profile")
    parser.add_argument("--algorithm", default="greedy")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--library", default=str(ROOT), help="checkout to measure")
    parser.add_argument("--label", default="now")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--profiled", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.algorithm, options.device,
                                 options.profiled)))  # fmt: skip
        return
    jobs = [(n, False) for n in options.sizes] + [(n, True) for n in options.profile]
    for size, profiled in jobs:
        entry = in_own_process(options, size, profiled)
        keep(entry, options)
        print({k: v for k, v in entry.items() if k in ("size", "seconds", "memory_mb", "error",
                                                       "profile")}, flush=True)  # fmt: skip
    from scaling_table import write

    write(RESULTS / "scaling.json")


if __name__ == "__main__":
    main()
