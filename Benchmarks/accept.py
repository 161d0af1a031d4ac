"""Acceptance of a learned system: train it and its ablations, measure, judge.

Usage: python Benchmarks/accept.py SYSTEM [--seeds 0 1 2] [--only VARIANT] [--steps N] [--again]

Every training is one entry of results/acceptance/<system>.json; what is there is not trained again,
and a training that was interrupted goes on. Trains on the fifteen people of
`brain_t1_oasis/train_2mm` at 3 mm, tests on the four of `eval_1mm`. The thresholds stand in
acceptance/plans.py. A system that needs no training is measured at once, always anew.
`python Benchmarks/accept_table.py` writes docs/acceptance.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime, timezone
from typing import Any

import torch
from acceptance import training
from acceptance.cases import evaluation_pairs
from acceptance.figures import Figures, demons, engine, measured, over_pairs
from acceptance.measure import evaluate
from acceptance.plans import Check, Plan
from acceptance.systems import MEASURES, PLANS, UNTRAINED
from common import ORIGIN, RESULTS, rounded

from DeepRegLib.allocator import keep_freed_memory

FOLDER = RESULTS / "acceptance"
#: Trainings of each variant that a verdict needs.
SEEDS = 3


def read(system: str) -> dict[str, Any]:
    """What is kept of a system."""
    path = FOLDER / f"{system}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {"system": system, "trainings": []}


def keep(system: str, content: dict[str, Any]) -> None:
    """Writes what is kept of a system."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{system}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(rounded(content), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def baselines() -> dict[str, Figures]:
    """Figures of the methods that need no training; measured once."""
    kept = read("baselines")
    found: dict[str, Figures] = kept.setdefault("figures", {})
    methods = {
        "identity": ("mass", lambda pair: measured(pair, None)),
        "rigid": ("rigid", lambda pair: measured(pair, None)),
        "affine": ("affine", lambda pair: measured(pair, None)),
        "demons": ("affine", lambda pair: measured(pair, demons(pair))),
        "engine": ("affine", lambda pair: measured(pair, engine(pair))),
    }
    for name, (start, method) in methods.items():
        if name not in found:
            with torch.no_grad():
                found[name] = over_pairs(evaluation_pairs(start), method)
            print(name, rounded(found[name]), flush=True)
            keep("baselines", {**kept, "origin": ORIGIN})
    return found


def run(system: str, plan: Plan, options: argparse.Namespace) -> None:
    """Trains and measures what is missing, seed by seed."""
    for seed in options.seeds:
        for name, variant in plan.variants.items():
            steps = round((options.steps or plan.steps) * variant.share)
            content = read(system)
            key = {"variant": name, "seed": seed, "steps": steps}
            if options.only and name not in options.only:
                continue
            old = [e for e in content["trainings"] if all(e[k] == v for k, v in key.items())]
            if old and not options.again:
                continue
            print(f"{system}, {name}, seed {seed}, {steps} steps ...", flush=True)
            algorithm, result = training.train(system, variant, seed, steps)
            measures = {n: MEASURES[n] for n in plan.extra}
            figures = evaluate(algorithm, result.network, measures, plan.usual)
            entry = {
                **key,
                "values": dict(variant.values),
                "algorithm": variant.algorithm or system,
                "figures": figures,
                "validation": result.figures,
                "training_seconds": result.seconds,
                "parameters": sum(p.numel() for p in result.network.parameters()),
                **{k: ORIGIN[k] for k in ("commit", "machine", "torch")},
                "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            }
            print("  ", rounded(figures), flush=True)
            content = read(system)
            rest = [e for e in content["trainings"] if any(e[k] != v for k, v in key.items())]
            keep(system, {**content, "trainings": [*rest, entry]})


def judge(system: str, plan: Plan, options: argparse.Namespace) -> bool:
    """Judges trainings of one length once all seeds are there; keeps and prints the checks."""
    content = read(system)
    rows: dict[str, list[Figures]] = {name: [] for name in plan.variants}
    for entry in content["trainings"]:
        variant = plan.variants.get(entry["variant"])
        length = round((options.steps or plan.steps) * variant.share) if variant else None
        if entry["steps"] == length:
            rows[entry["variant"]].append(entry["figures"])
    lacking = [f"{name} ({len(found)})" for name, found in rows.items() if len(found) < SEEDS]
    if lacking:
        print(f"{system}: fewer than {SEEDS} seeds of {', '.join(lacking)}; nothing is judged")
        return False
    checks = plan.checks(rows, baselines())
    return told(system, content, checks)


def run_untrained(system: str) -> bool:
    """Measures and judges a system that is not trained."""
    rows, checks = UNTRAINED[system]()
    return told(system, {"system": system, "origin": ORIGIN, "figures": rows}, checks)


def told(system: str, content: dict[str, Any], checks: list[Check]) -> bool:
    """Keeps and prints the checks; returns whether all are met."""
    keep(system, {**content, "checks": [vars(check) for check in checks]})
    for check in checks:
        print(f"{'passed' if check.passed else 'FAILED'}  {check.text}: {check.reached}")
    return all(check.passed for check in checks)


def main() -> None:
    """Runs the command line; the exit status is 1 where a check fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("system", choices=[*PLANS, *UNTRAINED, "baselines"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--steps", type=int, help="steps of a training in place of the plan's")
    parser.add_argument("--again", action="store_true", help="train also what is kept")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if options.system in UNTRAINED:
        sys.exit(0 if run_untrained(options.system) else 1)
    baselines()
    if options.system == "baselines":
        return
    plan = PLANS[options.system]
    run(options.system, plan, options)
    sys.exit(0 if judge(options.system, plan, options) else 1)


if __name__ == "__main__":
    main()
