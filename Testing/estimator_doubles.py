"""A small network that estimates errors, for tests of what is done with its model."""

from __future__ import annotations

import torch

from DeepRegLib.estimators.error_map import SPEC, Algorithm
from DeepRegLib.models import ModelCard
from DeepRegLib.networks.model_file import save_model

SMALL = {"channels": (3, 4), "hidden": (4, 3), "window": 1, "patch": 20}


def write_judge(folder, name="judge", spacing_mm=3.0, shape=(24, 24, 24), **values):
    """Writes one that was never trained; returns its path.

    It says about a third of the largest error everywhere.
    """
    system = Algorithm(**SPEC.values(**SMALL, **values))
    used = {p.name: system.values[p.name] for p in SPEC.parameters if p.training}
    torch.manual_seed(0)
    card = ModelCard(name, "error_map", used, spacing_mm, shape, figures={"rmse_mm": 0.8})
    path = folder / f"{name}.safetensors"
    save_model(path, system.build(), card)
    return path
