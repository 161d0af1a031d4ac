"""Tries settings of a learned system on people that are held out of the training people.

Usage: python Benchmarks/tune.py ALGORITHM [--steps N] [--seed N] [--shift VOXELS] [NAME=VALUE ...]

Trains on twelve of the fifteen people of `brain_t1_oasis/train_2mm`, at the resolution of the
acceptance checks, and measures on the pairs of the other three. The people that the acceptance
checks test on are never looked at, so that settings may be chosen by what this prints. What was
tried is kept in results/acceptance/tuning.json. A NAME is a parameter of the algorithm, a setting
of the training, or a random change of its pairs; a VALUE is JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields

import torch
from accept import keep, read
from acceptance import training
from acceptance.plans import Variant
from common import ORIGIN, rounded

from DeepRegLib.allocator import keep_freed_memory
from DeepRegLib.training.augment import Augmentation
from DeepRegLib.training.settings import TrainingSettings


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("algorithm")
    parser.add_argument("values", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shift", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    given = {name: json.loads(value) for name, _, value in
             (text.partition("=") for text in options.values)}  # fmt: skip
    settings, changes = ({f.name for f in fields(of)} for of in (TrainingSettings, Augmentation))
    variant = Variant(
        {name: value for name, value in given.items() if name not in settings | changes},
        options.algorithm,
        {name: value for name, value in given.items() if name in settings},
        options.shift,
        {name: value for name, value in given.items() if name in changes},
    )
    _, result = training.train("", variant, options.seed, options.steps, hold_out=True)
    entry = {
        "algorithm": options.algorithm, "given": given, "shift": options.shift,
        "steps": options.steps, "seed": options.seed, "figures": result.figures,
        "training_seconds": result.seconds, "commit": ORIGIN["commit"],
    }  # fmt: skip
    print(json.dumps(rounded(entry)))
    content = read("tuning")
    keep("tuning", {**content, "trainings": [*content["trainings"], entry]})


if __name__ == "__main__":
    main()
