"""What keeping freed memory saves: one pair, with and without it in turn.

Usage: python Benchmarks/freed_memory.py [--algorithm NAMES] [--preset NAME] [--rounds N]

Each registration has a process of its own. Processor time, page faults and the largest memory are
kept in results/freed_memory.json; the first round is left out of the ratio, as it reads the files
and compiles the modules for the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch
from common import brain, register, save

from DeepRegLib.allocator import keep_freed_memory
from DeepRegLib.registration.base import ImagePair


def measured(algorithm: str, preset: str, keep: bool) -> dict[str, float]:
    """Registers two brains at 1 mm in this process; returns what it took."""
    import resource  # not on Windows, where there is nothing to compare

    if keep and not keep_freed_memory():
        sys.exit("The C library of this system has no such setting.")
    pair = ImagePair(brain("1101")[0], brain("1104")[0])
    began, faults = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    register(pair, algorithm, preset)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "processor_seconds": time.process_time() - began,
        "page_faults": used.ru_minflt - faults,
        "peak_mb": used.ru_maxrss / 1024,
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--algorithm", default="rigid+affine+greedy")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", choices=("kept", "usual"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(measured(options.algorithm, options.preset, options.one == "kept")))
        return
    rows: dict[str, list[dict[str, Any]]] = {"usual": [], "kept": []}
    for number in range(options.rounds + 1):
        for name, found in rows.items():
            words = [sys.executable, __file__, *sys.argv[1:], "--one", name]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            row = json.loads(done.stdout)
            print(name, row, flush=True)
            if number:
                found.append(row)
    usual, kept = (sum(row["processor_seconds"] for row in found) for found in rows.values())
    print(f"processor time with freed memory kept: {kept / usual:.3f} of the usual")
    save("freed_memory", {"options": vars(options), "share": kept / usual, "runs": rows})


if __name__ == "__main__":
    main()
