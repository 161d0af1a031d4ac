"""What the models that come with DeepReg do on real brains that they never saw.

Usage: python Benchmarks/shipped_models.py [MODEL ...] [--threads N]

They are trained on images that are generated from label maps (`tools/train_models.py`), and tested
here as the systems of the acceptance checks are: on the twelve ordered pairs of four people at
3 mm, aligned by our affine registration. Keeps results/acceptance/shipped.json, from which
`accept_table.py` takes its rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accept import keep, read
from acceptance.figures import Figures
from acceptance.measure import evaluate
from common import ORIGIN, ROOT, rounded

from DeepRegLib import models, registry
from DeepRegLib.networks.model_file import load_weights
from DeepRegLib.registration.learned import LearnedRegistration

FOLDER = ROOT / "Resources" / "Models"


def deformable() -> list[Path]:
    """The files of the models that find a deformation of the images."""
    return [path for path in sorted(FOLDER.glob("*.safetensors"))
            if registry.spec(models.read_card(path).algorithm).transform == "dense"]  # fmt: skip


def figures_of(path: Path) -> Figures:
    """Mean figures of a model over the test pairs."""
    card = models.read_card(path)
    system = registry.create(card.algorithm, **card.parameters)
    assert isinstance(system, LearnedRegistration)
    network = system.build()
    network.load_state_dict(load_weights(path))
    return evaluate(system, network, {})


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("models", nargs="*", help="names of models; all if omitted")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for path in deformable():
        if options.models and path.stem not in options.models:
            continue
        card = models.read_card(path)
        entry = {"algorithm": card.algorithm, "steps": card.training["steps"], "origin": ORIGIN,
                 "figures": figures_of(path)}  # fmt: skip
        print(path.stem, rounded(entry["figures"]), flush=True)
        keep("shipped", {"models": {**read("shipped").get("models", {}), path.stem: entry}})


if __name__ == "__main__":
    main()
