"""The model of a learned algorithm: which there are, which is chosen, what it was trained on."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegLib import models, registry
from DeepRegLib.errors import DeepRegError

from .AlgorithmPart import MODEL, stagesText
from .Parameters import settingsOf
from .Section import Section
from .Texts import message

_LOOK_MS = 2000


class ModelPart(Section):
    """Shows the models of the chosen algorithm, if it is one that learns.

    Args:
        ui: The panel's widgets.
        onTrain: Called with the key of the algorithm when a model is to be trained.
        onChanged: Called when other models are there, or another one was chosen.
    """

    def __init__(self, ui, onTrain, onChanged):
        Section.__init__(self, ui)
        self._onTrain, self._onChanged = onTrain, onChanged
        self._files, self._seen = [], None
        self._problem = ""
        # A timer, as network folders tell nobody of their changes.
        self._timer = qt.QTimer()
        self._timer.setInterval(_LOOK_MS)
        self._timer.connect("timeout()", self.look)
        ui.modelCombo.connect("currentIndexChanged(int)", self._onModel)
        ui.modelBrowseButton.connect("clicked(bool)", self._onBrowse)
        ui.trainModelButton.connect("clicked(bool)", self._onTrainClicked)

    def problems(self) -> list:
        """Returns a sentence if the chosen model cannot be used."""
        return [self._problem] if self._problem and self._spec is not None else []

    def look(self) -> None:
        """Shows what has changed in the folders of models."""
        if self._node is not None and _stamp() != self._seen:
            self.update()
            self._onChanged()

    def choose(self, algorithm: str, name: str) -> None:
        """Chooses an algorithm and a model of it, such as one that was just trained."""
        self._seen = None
        if self._node is None:
            return
        spec = registry.spec(algorithm)
        with slicer.util.NodeModify(self._node.parameterNode):
            self._remember(algorithm, name)
            if self._node.algorithm != algorithm:
                self._node.algorithm = algorithm
                self._node.stages = stagesText([*spec.stages, algorithm])
        self.update()
        self._onChanged()

    def close(self) -> None:
        """Stops looking."""
        self._timer.stop()
        self._timer.disconnect("timeout()", self.look)

    @property
    def _spec(self):
        """Description of the chosen algorithm; None if it needs no model."""
        spec = None if self._node is None else registry.specs().get(self._node.algorithm)
        return spec if spec is not None and spec.needs.training else None

    def setParameterNode(self, parameterNode) -> None:
        """Shows the model of another parameter node."""
        if parameterNode is None:
            self._timer.stop()
        Section.setParameterNode(self, parameterNode)

    def _show(self) -> None:
        spec, ui = self._spec, self._ui
        ui.modelLabel.visible = ui.modelWidget.visible = spec is not None
        ui.modelInfoLabel.visible = ui.trainModelButton.visible = spec is not None
        if spec is None:
            self._timer.stop()
            self._problem = ""
            return
        self._timer.start()
        stamp = _stamp()
        if stamp != self._seen:
            self._files, self._seen = models.list_models(), stamp
        chosen = str(settingsOf(self._node).get(f"{spec.key}.{MODEL}") or "")
        known = [f for f in self._files if f.card is not None and f.card.algorithm == spec.key]
        self._fill(known, chosen)
        self._describe(spec, known, chosen)

    def _fill(self, known, chosen: str) -> None:
        combo = self._ui.modelCombo
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

    def _describe(self, spec, known, chosen: str) -> None:
        self._problem = ""
        if not known and not chosen:
            text = _(
                "There is no trained model for this algorithm. Its network will be fitted to this "
                "pair alone, which is slow and gives less; or train a model once."
            )
            self._ui.modelInfoLabel.text = message("warning", text)
            return
        try:
            file = models.find_model(spec.key, chosen)
        except DeepRegError as error:
            self._problem = str(error)
            self._ui.modelInfoLabel.text = message("error", self._problem)
            return
        self._ui.modelInfoLabel.text = description(file)

    def _onModel(self, index) -> None:
        if self._listens and self._spec is not None:
            self._take(self._ui.modelCombo.itemData(index) or "")

    def _onBrowse(self, checked=False) -> None:
        if self._spec is None:
            return
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Choose a model"), str(models.user_folder()),
            _("Models (*.safetensors)"),
        )  # fmt: skip
        if path:
            self._take(path)

    def _take(self, name: str) -> None:
        with self._deaf():
            self._remember(self._spec.key, name)
        self.update()
        self._onChanged()

    def _remember(self, algorithm: str, name: str) -> None:
        settings = {**settingsOf(self._node), f"{algorithm}.{MODEL}": name}
        if not name:
            del settings[f"{algorithm}.{MODEL}"]
        self._node.settings = json.dumps(settings, sort_keys=True)

    def _onTrainClicked(self, checked=False) -> None:
        if self._spec is not None:
            self._onTrain(self._spec.key)


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
    if card.terms:
        parts.append(_("Terms: {terms}.").format(terms=_sentence(card.terms)))
    return " ".join(parts)


def _sentence(text: str) -> str:
    return html.escape(text.strip().rstrip("."))


def _stamp() -> tuple:
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
