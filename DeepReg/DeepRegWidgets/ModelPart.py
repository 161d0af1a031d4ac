"""The model of a learned algorithm: which there are, which is chosen, what it was trained on."""

from __future__ import annotations

import json

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegLib import models, registry
from DeepRegLib.errors import DeepRegError

from .AlgorithmPart import MODEL, stagesText
from .ModelList import chooseModelFile, description, fillModels, knownModels, stamp
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
        self._seen = None
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
        if self._node is not None and stamp() != self._seen:
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
        self._seen = stamp()
        chosen = str(settingsOf(self._node).get(f"{spec.key}.{MODEL}") or "")
        known = knownModels(spec.key)
        fillModels(ui.modelCombo, known, chosen)
        self._describe(spec, known, chosen)

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
        path = chooseModelFile()
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
