"""Side by side with other registration programs: same pairs, same cores, one after the other.

Usage: python Benchmarks/compare.py [--peers ants greedy:wncc-sv] [--data brains lung] [--pairs N]
           [--device cuda]
       python Benchmarks/compare.py --peers learned --data brains    (the models that come along)

Every peer is installed into an environment of its own (build/peers), registers in a process of its
own (peers/run_<peer>.py) and is measured by the same code (peers/evaluate.py). Each data set, pair
and method is one entry of results/compare/<data set>.json; what is there is not run again unless
asked for with --again. Methods take turns pair by pair, so that a slow hour hits all alike.
`python Benchmarks/compare_table.py` makes the tables and pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from common import ORIGIN, RESULTS, rounded
from peers import cases
from peers.environments import PEERS, python_of
from peers.evaluate import read_field

from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import read_image

FOLDER = RESULTS / "compare"
OURS = (
    "deepreg:rigid+affine+greedy:fast",
    "deepreg:rigid+affine+greedy:balanced",
    "deepreg:rigid+affine+syn:balanced",
)
#: Systems with a model that comes with DeepReg: alone, and refined by the engine.
TRAINED = ("vxm", "vxm_prob", "faim", "icnet", "dlir", "dual_prnet", "pmrn")
LEARNED = tuple(
    f"deepreg:rigid+affine+{key}{rest}" for key in TRAINED for rest in (":balanced", "+greedy:fast")
)
SAME = (
    *OURS, "greedy:wncc-sv", "greedy:ncc", "ants:syn-quick", "ants:syn-mattes", "fireants:greedy",
    "fireants:syn", "convexadam:mind", "elastix:brain-mi", "elastix:default-ncc",
    "simpleitk:demons", "simpleitk:bspline-mi", "ants:syn-cc",
)  # fmt: skip
#: Methods of each data set: "peer:variant".
METHODS = {
    "brains": SAME,
    "skulls": SAME,
    "lung": SAME,
    "flair": (
        *OURS, "greedy:nmi-sv", "ants:syn-mattes", "ants:syn-quick", "convexadam:mind",
        "elastix:brain-mi", "elastix:default-mi", "simpleitk:bspline-mi",
    ),
}  # fmt: skip
#: Peers that can use a GPU.
ON_GPU = ("deepreg", "fireants")
#: Longest tail of what a failed program printed that is kept.
TAIL = 600


def chosen_methods(dataset: str, wanted: Sequence[str] | None) -> list[str]:
    """The methods to run: all, all of a named peer, `learned`, or the very ones that are named.

    Raises:
        SystemExit: If a name is no peer.
    """
    if not wanted:
        return list(METHODS[dataset])
    wanted = [n for name in wanted for n in (LEARNED if name == "learned" else [name])]
    unknown = [name for name in wanted if name.partition(":")[0] not in PEERS]
    if unknown:
        sys.exit(f"There is no peer {', '.join(unknown)}; choose from {', '.join(PEERS)}.")
    named = [name for name in wanted if ":" in name]
    return [
        *(m for m in METHODS[dataset] if m.partition(":")[0] in wanted or m in named),
        *(m for m in named if m not in METHODS[dataset]),
    ]


def missing(
    entries: Sequence[dict[str, Any]], names: Sequence[str], methods: Sequence[str]
) -> list[tuple[str, str]]:
    """What has no entry yet, pair by pair with the methods in turn."""
    done = {(entry["pair"], entry["method"]) for entry in entries}
    return [(name, m) for name in names for m in methods if (name, m) not in done]


def file_of(dataset: str, device: str = "cpu") -> Path:
    """Where the entries of a data set are kept."""
    return FOLDER / (f"{dataset}.json" if device == "cpu" else f"{dataset}_{device}.json")


def read_entries(dataset: str, device: str = "cpu") -> list[dict[str, Any]]:
    """The entries that are kept for a data set."""
    path = file_of(dataset, device)
    return json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else []


def keep(dataset: str, entry: dict[str, Any], device: str = "cpu") -> None:
    """Adds an entry to the file of a data set, in place of an older one of the same pair."""
    key = (entry["pair"], entry["method"])
    # Read anew: another run may have added entries in the meantime.
    entries = [e for e in read_entries(dataset, device) if (e["pair"], e["method"]) != key]
    path = file_of(dataset, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"dataset": dataset, "entries": [*entries, rounded(entry)]}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def calibration_seconds(threads: int) -> float:
    """Seconds of a small fixed piece of work: how fast the machine is at this moment."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    image = torch.ones(1, 8, 48, 48, 48)
    kernel = torch.ones(8, 8, 3, 3, 3) / 216
    started = time.perf_counter()
    for _ in range(20):
        image = torch.nn.functional.conv3d(image, kernel, padding=1)
    seconds = time.perf_counter() - started
    torch.set_num_threads(before)
    return seconds


def run_method(
    case: cases.Case, dataset: str, method: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Registers one pair with one method and measures the result."""
    threads = options.threads
    name, _, variant = method.partition(":")
    peer = PEERS[name]
    folder = cases.CACHE / "runs" / dataset / case.folder_name / method.replace(":", "_")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entry: dict[str, Any] = {
        "pair": case.name,
        "method": method,
        **{key: ORIGIN[key] for key in ("commit", "machine", "python")},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "threads": threads,
        "calibration_before_s": calibration_seconds(threads),
        "load_before": os.getloadavg()[0],
    }
    try:
        python = python_of(peer)
        case, linear = _with_affine(case, dataset) if peer.needs_affine else (case, None)
        report = _run(python, peer.runner, _job(case, variant, options, folder), options.timeout)
        entry |= report
        entry |= {"calibration_after_s": calibration_seconds(threads),
                  "load_after": os.getloadavg()[0]}  # fmt: skip
        if linear is not None:
            entry["affine_seconds"] = linear
        if "error" not in entry:
            entry |= _measured(case, folder)
    except (Exception, SystemExit) as error:
        entry["error"] = f"{type(error).__name__}: {error}"[:TAIL]
    if not options.keep_fields:
        shutil.rmtree(folder, ignore_errors=True)
    return entry


def _job(case: cases.Case, variant: str, options: argparse.Namespace, folder: Path) -> Path:
    job = {
        "fixed": str(case.fixed), "moving": str(case.moving), "variant": variant,
        "threads": options.threads, "folder": str(folder), "modality": case.modality,
        "aligned": case.aligned, "device": options.device,
    }  # fmt: skip
    path = folder / "job.json"
    path.write_text(json.dumps(job, indent=1), encoding="utf-8")
    return path


def _run(python: Path, runner: Path, job: Path, timeout_s: float) -> dict[str, Any]:
    """Runs a runner and returns its report; a crash becomes a report with an error."""
    folder, log = job.parent, job.parent / "log.txt"
    threads = str(json.loads(job.read_text(encoding="utf-8"))["threads"])
    environment = dict(os.environ, OMP_NUM_THREADS=threads, OMP_WAIT_POLICY="passive",
                       ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=threads)  # fmt: skip
    environment.pop("PYTHONPATH", None)
    with log.open("w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(
                [str(python), str(runner), str(job)], cwd=folder, env=environment, stdout=stream,
                stderr=subprocess.STDOUT, timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": f"stopped after {timeout_s:.0f} s"}
    report = folder / "report.json"
    if report.exists():
        return json.loads(report.read_text(encoding="utf-8"))
    tail = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
    return {"error": f"ended with status {done.returncode}: {tail}"}


def _with_affine(case: cases.Case, dataset: str) -> tuple[cases.Case, float]:
    """The case with a moving image that our affine registration has brought onto the fixed one."""
    fixed, moving = read_image(case.fixed), read_image(case.moving)
    settings = {"initialization": "stored"} if case.aligned else {}
    folder = cases.CACHE / dataset / case.folder_name
    matrix, seconds = cases.linear_start(folder, "rigid+affine", fixed, moving, **settings)
    path = cases.moved_by(folder / "affine.nii.gz", fixed, moving, matrix)
    after = matrix if case.after is None else case.after @ matrix
    return replace(case, moving=path, after=after, aligned=True), seconds


def _measured(case: cases.Case, folder: Path) -> dict[str, float]:
    """Measures the displacement files that a runner has left."""
    fixed, moving = read_image(case.fixed), read_image(case.moving)
    forward = read_field(folder / "forward.nrrd", fixed)
    inverse: Transform | None = None
    if case.after is not None:
        # The inverse leads to the resampled image, not to the moving one.
        forward = forward.then_linear(case.after)
    elif (folder / "inverse.nrrd").exists():
        inverse = read_field(folder / "inverse.nrrd", moving)
    return case.measure(forward, inverse)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--peers", nargs="+", help=f"peers ({' '.join(PEERS)}) or peer:variant")
    parser.add_argument("--data", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--pairs", type=int, help="only the first pairs of each data set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for the peers that can")
    parser.add_argument("--timeout", type=float, default=7200.0, help="seconds for one method")
    parser.add_argument("--again", action="store_true", help="also what has an entry already")
    parser.add_argument("--keep-fields", action="store_true", help="keep build/compare/runs")
    return parser.parse_args(words)


def main() -> None:
    """Runs what is missing."""
    options = arguments()
    torch.set_num_threads(options.threads)
    for dataset in options.data:
        methods = chosen_methods(dataset, options.peers)
        names = cases.names(dataset)[: options.pairs]
        if options.device != "cpu":
            methods = [m for m in methods if m.partition(":")[0] in ON_GPU]
        kept = [] if options.again else read_entries(dataset, options.device)
        for name, method in missing(kept, names, methods):
            print(f"{dataset} {name} {method} ...", flush=True)
            case = cases.case(dataset, name)
            entry = run_method(case, dataset, method, options)
            keep(dataset, entry, options.device)
            shown = ("error", "dice", "tre_median_mm", "error_ratio", "sdlogj", "seconds")
            print("  ", {key: entry[key] for key in shown if key in entry}, flush=True)


if __name__ == "__main__":
    main()
