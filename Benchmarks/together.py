"""Pairs at once: how many pairs an hour `batch` registers, one by one and several together.

Usage: python Benchmarks/together.py [--pairs N] [--together 1 2] [--algorithm NAMES] [--device cpu]

The ordered pairs of the four test brains at 1 mm are registered by `DeepRegLib.batch`, in turn with
each number of processes. Keeps results/together.json.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from common import BRAINS, data_folder, ordered_pairs, save

from DeepRegLib.batch import BatchSettings, PairFiles, register_many


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--algorithm", default="greedy")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    stem = data_folder() / "brain_t1_oasis" / "eval_1mm"
    pairs = [
        PairFiles(f"{a}_{b}", {"fixed": f"{stem}/{a}_t1.nii.gz", "moving": f"{stem}/{b}_t1.nii.gz"})
        for a, b in ordered_pairs(BRAINS)[: options.pairs]
    ]
    settings = BatchSettings(options.algorithm, options.preset, device=options.device)
    rows = {}
    for together in options.together:
        folder = Path(tempfile.mkdtemp())
        started = time.perf_counter()
        done = register_many(pairs, folder, settings, together=together)
        seconds = time.perf_counter() - started
        shutil.rmtree(folder)
        failed = [row["error"] for row in done if row["error"]]
        rows[str(together)] = {
            "seconds": seconds, "pairs": len(done), "failed": failed,
            "pairs_per_hour": 3600.0 * len(done) / seconds,
            "peak_memory_mb": max(row.get("peak_memory_mb") or 0.0 for row in done),
        }  # fmt: skip
        print(together, rows[str(together)], flush=True)
    save("together", {"options": vars(options), "together": rows})


if __name__ == "__main__":
    main()
