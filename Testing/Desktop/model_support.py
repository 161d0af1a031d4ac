"""Model files for the tests of the panel: a card alone, without a network."""

from __future__ import annotations

import json
import os
import shutil

import panel_support as desk

from DeepRegLib.models import ModelCard, metadata

#: Networks as small as they can be, by parameter of the form.
TINY = {"encoder": "4, 4, 4, 4", "decoder": "4, 4, 4, 4", "final": "4"}


def emptied(folder):
    """The folder of models, with nothing in it."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def write_card(folder, name, algorithm="vxm", age=0.0, **more):
    """Writes a file that has a card and no weights, so many seconds old; returns its path."""
    card = ModelCard(name, algorithm, {}, 2.0, (64, 80, 64), **more)
    header = json.dumps({"__metadata__": metadata(card)}).encode()
    path = folder / f"{name}.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    moment = path.stat().st_mtime - age
    os.utime(path, (moment, moment))
    return path


def write_judge(folder, **more):
    """Writes a small network that estimates errors; see `estimator_doubles`."""
    from estimator_doubles import write_judge  # with torch, which few tests of the panel need

    return write_judge(folder, **more)


def write_latent(folder, key="cvae", name="latent", spread=0.1):
    """Writes a small network with a latent code that was never trained; returns its path.

    Args:
        key: ``cvae``, whose codes move voxels, or ``coop_ae``.
        spread: Size of the motion.
    """
    import importlib

    import torch

    from DeepRegLib.networks.model_file import save_model

    part = importlib.import_module(f"DeepRegLib.algorithms.{key}")
    small = {"encoder": (4, 8, 4), "decoder": (8, 8), "final": 8, "cells": (3, 3, 3), "latent": 5}
    if key == "coop_ae":
        small.update(encoder=(4, 8), final=(8,), autoencoder=(4, 8))
    system = part.Algorithm(**part.SPEC.values(**small))
    torch.manual_seed(0)
    network = system.build()
    for head in network.decoder.heads if key == "cvae" else [network.autoencoder.head]:
        torch.nn.init.normal_(head.convolution.weight, 0.0, spread)
    values = {p.name: system.values[p.name] for p in part.SPEC.parameters if p.training}
    path = folder / f"{name}.safetensors"
    save_model(path, network, ModelCard(name, key, values, 4.0, (16, 16, 16)))
    return path


def write_agent(folder, name="agent", action=1):
    """Writes a small agent that was never trained and always takes the same action.

    Its coarse part goes on to the limit of its steps; its fine part rests.
    """
    import torch

    from DeepRegLib.algorithms.rl_rigid import SPEC, Algorithm
    from DeepRegLib.networks.model_file import save_model

    small = {"size": 16, "channels": (2, 2, 2, 2, 2), "hidden": (4,)}
    system = Algorithm(**SPEC.values(**small))
    torch.manual_seed(0)
    network = system.build()
    with torch.no_grad():
        network["coarse"].last.bias[action] = 0.5
    values = {p.name: system.values[p.name] for p in SPEC.parameters if p.training}
    path = folder / f"{name}.safetensors"
    save_model(path, network, ModelCard(name, "rl_rigid", values, 3.0, (24, 24, 24)))
    return path


def entries(panel):
    """The models that are offered: name and text."""
    combo = panel.ui.modelCombo
    return [(combo.itemData(n), combo.itemText(n)) for n in range(combo.count)]


def type_setting(panel, name, text):
    """Enters a value into the form of the training, as a person does."""
    editor = panel.parts.training.form.editor(name)
    if hasattr(editor, "textEdited"):
        editor.selectAll()
        editor.insert(str(text))
        editor.textEdited.emit(str(text))
    elif hasattr(editor, "findText"):
        desk.choose(editor, text)
    else:
        editor.value = text
