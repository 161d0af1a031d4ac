"""The command ``models``: lists trained models, describes one, and checks whether one works."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import textwrap
from typing import Any

from .. import models, registry
from ..errors import FileFormatError, ParameterError
from ..models import ModelFile


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    text = "show the trained models, or check one"
    parser = commands.add_parser("models", parents=[common], help=text)
    parser.add_argument("model", nargs="?", help="name or file of the model to describe")
    parser.add_argument("--algorithm", help="list the models of this algorithm only")
    parser.add_argument("--check", metavar="MODEL", help="load this model into its network")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.set_defaults(execute=_execute)


def _execute(chosen: argparse.Namespace) -> int:
    if chosen.check:
        return _check(chosen.check, chosen.json)
    if chosen.algorithm:
        registry.spec(chosen.algorithm)
    if chosen.model:
        files = [_found(chosen.model)]
    else:
        files = models.list_models(chosen.algorithm)
    if chosen.json:
        print(json.dumps([_plain(file) for file in files], indent=2))
    elif chosen.model:
        print("\n".join(_details(files[0])))
    else:
        print("\n".join(_table(files)))
    return 0


def _check(name: str, as_json: bool) -> int:
    """Loads a model as a registration would; what does not fit is an error with a sentence."""
    file = _found(name)
    assert file.card is not None
    from ..registration.learned import LearnedRegistration

    system = registry.create(file.card.algorithm)
    if not isinstance(system, LearnedRegistration):
        raise FileFormatError(
            f"The model '{file.name}' is for '{file.card.algorithm}', which takes no model."
        )
    _, network = system.trained(file)
    count = sum(parameter.numel() for parameter in network.parameters())
    if as_json:
        print(json.dumps({**_plain(file), "numbers": count}, indent=2))
    else:
        print(f"{file.path} is whole and fits '{file.card.algorithm}': {count:,} weights.")
    return 0


def _found(name: str) -> ModelFile:
    """Returns a model by name or file, whatever its algorithm."""
    named = [file for file in models.list_models() if file.name == name]
    if named and named[0].card is None:
        raise FileFormatError(named[0].problem)
    if named:
        return named[0]
    if not models.is_path(name):
        known = ", ".join(file.name for file in models.list_models()) or "none"
        raise ParameterError(f"There is no model '{name}'; there are: {known}.")
    return models.find_model(models.read_card(name).algorithm, name)


def _table(files: list[ModelFile]) -> list[str]:
    if not files:
        return [f"There are no trained models; those that you train go to {models.user_folder()}."]
    rows = [("NAME", "ALGORITHM", "SPACING", "FROM", "FOR")]
    for file in files:
        card, origin = file.card, "DeepReg" if file.bundled else "you"
        if card is None:
            rows.append((file.name, "-", "-", origin, file.problem))
            continue
        about = ", ".join(text for text in (card.anatomy, card.contrast) if text) or "-"
        rows.append((file.name, card.algorithm, f"{card.spacing_mm:g} mm", origin, about))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(t.ljust(w) for t, w in zip(row, widths)), row[4]]) for row in rows]


def _details(file: ModelFile) -> list[str]:
    card = file.card
    assert card is not None
    lines = [f"{file.name}, a model for '{card.algorithm}'", f"  {file.path}"]
    size = " x ".join(map(str, card.shape))
    facts = [
        ("Made for", ", ".join(text for text in (card.anatomy, card.contrast) if text)),
        ("Images", f"{size} voxels of {card.spacing_mm:g} mm"),
        ("Trained on", card.data),
        ("Terms", card.terms),
        ("Written by", f"DeepRegLib {card.library}"),
    ]
    width = min(100, shutil.get_terminal_size().columns)
    for name, text in facts:
        if text:
            start = f"{name + ':':<12}"
            lines += textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * 12)
    for title, entries in (("Figures", card.figures), ("Parameters", card.parameters),
                           ("Training", card.training)):  # fmt: skip
        if entries:
            lines += ["", f"{title}:", *(f"  {name} = {value}" for name, value in entries.items())]
    return lines


def _plain(file: ModelFile) -> dict[str, Any]:
    card = None if file.card is None else dataclasses.asdict(file.card)
    return {"name": file.name, "file": str(file.path), "bundled": file.bundled, "card": card,
            "problem": file.problem}  # fmt: skip
