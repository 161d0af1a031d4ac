"""Lists of models: what they say of themselves, how they are chosen, and when they have changed."""

from __future__ import annotations

import html
import os
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegLib import models

#: State of the folders when they were last looked at, and the models then.
_found: tuple = (None, [])


def knownModels(algorithm: str) -> list:
    """Returns the models of a system, the newest first; reads files only if some have changed."""
    global _found
    now = stamp()
    if now != _found[0]:
        _found = (now, models.list_models())
    return [f for f in _found[1] if f.card is not None and f.card.algorithm == algorithm]


def fillModels(combo: qt.QComboBox, known, chosen: str) -> None:
    """Lists models in a combo box, the newest by an entry of its own, and shows the chosen one.

    Args:
        combo: The combo box; the data of its entries are names or paths.
        known: Models that fit (`DeepRegLib.models.ModelFile`), the newest first.
        chosen: Name or path; an empty text for the newest.
    """
    first = _("Newest: {name}").format(name=known[0].name) if known else _("None")
    rows = [("", first, _("The newest of your own models, or else the one of DeepReg."))]
    rows += [(file.name, file.name, outline(file.card)) for file in known]
    if chosen and chosen not in [name for name, _text, _tip in rows]:
        rows.append((chosen, Path(chosen).name.removesuffix(models.SUFFIX), chosen))
    shown = [(combo.itemData(n), combo.itemText(n)) for n in range(combo.count)]
    if shown != [(name, text) for name, text, _tip in rows]:
        combo.clear()
        for name, text, _tip in rows:
            combo.addItem(text, name)
    for index, (_name, _text, tip) in enumerate(rows):
        combo.setItemData(index, tip, qt.Qt.ToolTipRole)
    combo.currentIndex = [name for name, _text, _tip in rows].index(chosen)
    combo.enabled = len(rows) > 1


def chooseModelFile() -> str:
    """Asks for a model file; returns an empty text if the user wants none."""
    return qt.QFileDialog.getOpenFileName(
        slicer.util.mainWindow(), _("Choose a model"), str(models.user_folder()),
        _("Models (*.safetensors)"),
    )  # fmt: skip


def outline(card) -> str:
    """Returns in one line what a model is for."""
    parts = [card.anatomy, card.contrast, _("{size} mm voxels").format(size=f"{card.spacing_mm:g}")]
    return ", ".join(part for part in parts if part)


def description(file) -> str:
    """Returns what a model was trained on, how good it is and its terms, as rich text."""
    card = file.card
    parts = [_("<b>{name}</b>: {what}.").format(name=html.escape(file.name),
                                                what=html.escape(outline(card)))]  # fmt: skip
    if card.data:
        parts.append(_("Trained on {data}.").format(data=_sentence(card.data)))
    before, after = (card.figures.get(name) for name in ("dice_before", "dice"))
    if after is not None:
        text = _("In validation Dice {after}") if before is None else _(
            "In validation Dice {after}, before {before}"
        )  # fmt: skip
        parts.append(text.format(after=f"{after:.2f}", before=f"{before or 0:.2f}") + ".")
    rmse = card.figures.get("rmse_mm")
    if rmse is not None:
        text = _("In validation its estimates are off by {error} mm")
        parts.append(text.format(error=f"{rmse:.1f}") + ".")
    if card.terms:
        parts.append(_("Terms: {terms}.").format(terms=_sentence(card.terms)))
    return " ".join(parts)


def _sentence(text: str) -> str:
    return html.escape(text.strip().rstrip("."))


def stamp() -> tuple:
    """Returns what changes with every change in the folders of models."""
    found = []
    for folder in models.model_folders():
        try:
            for entry in os.scandir(folder):
                if entry.name.endswith(models.SUFFIX):
                    state = entry.stat()
                    found.append((entry.path, state.st_mtime_ns, state.st_size))
        except OSError:
            # A folder that cannot be read, or changes just now: the next look will tell.
            continue
    return tuple(sorted(found))
