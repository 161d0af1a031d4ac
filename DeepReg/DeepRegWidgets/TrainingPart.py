"""The section Training: what to learn from, how long, and the training itself."""

from __future__ import annotations

import html
import json
import time

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegLib import registry
from DeepRegLib.errors import Cancelled, DeepRegError

from .Curve import TrainingCurve
from .Installer import ensureSafetensors, ensureTorch
from .ParameterForm import ParameterForm
from .Parameters import TrainingSource, trainingSettingsOf
from .Section import Section, TellingSection
from .Texts import duration, message
from .TrainingChoices import (
    freeName,
    isUnfinished,
    learningSpecs,
    missing,
    modelName,
    trainingForm,
    trainingRequestOf,
)
from .TrainingData import TrainingData
from .TrainingProgress import TrainingProgress

#: Shortest time between two drawings of the curve.
_DRAW_SECONDS = 0.5


class TrainingPart(TellingSection):
    """Ties the section's widgets to the parameter node and drives a training.

    A training learns from copies, so that it goes on when the scene is changed or closed.

    Args:
        ui: The panel's widgets.
        logic: `DeepRegLogic`, which starts the training.
        occupied: Function that returns why the worker is not free, or an empty text.
        onBusy: Called when a training begins and when it ends.
        onModel: Called with (key of the algorithm, name of the model) after a training.
    """

    def __init__(self, ui, logic, occupied, onBusy, onModel):
        TellingSection.__init__(self, ui)
        self._logic, self._occupied = logic, occupied
        self._onBusy, self._onModel = onBusy, onModel
        self._run = self._request = None
        self._progress, self._drawn = None, 0.0
        self.data = TrainingData(ui, self.check)
        self.form = ParameterForm(ui.trainingParametersBox, self._onSettings)
        self._curve = TrainingCurve(ui.trainingCurveBox)
        self._clockTimer = qt.QTimer()
        self._clockTimer.setInterval(500)
        self._clockTimer.connect("timeout()", self._showStatus)
        for spec in learningSpecs().values():
            ui.trainingAlgorithmCombo.addItem(spec.title, spec.key)
        ui.trainingAlgorithmCombo.connect("currentIndexChanged(int)", self._onAlgorithm)
        ui.trainingFolderButton.connect("clicked(bool)", self._onFolder)
        ui.trainingTableButton.connect("clicked(bool)", self._onTable)
        ui.trainButton.connect("clicked(bool)", self._onTrain)
        ui.trainStopButton.connect("clicked(bool)", self._onStop)

    @property
    def running(self) -> bool:
        """Whether a training is going on."""
        return self._run is not None

    def setParameterNode(self, parameterNode) -> None:
        """Shows the choices of another parameter node; a training goes on."""
        self._sentence = None
        self.data.setParameterNode(parameterNode)
        Section.setParameterNode(self, parameterNode)

    def open(self, algorithm: str) -> None:
        """Opens the section for an algorithm, and brings it into view."""
        if self._node is None:
            return
        if not self.running:
            self._node.trainingAlgorithm = algorithm
        self._ui.trainingButton.collapsed = False
        self.update()
        # The section takes its place in the next turn of the event loop.
        qt.QTimer.singleShot(0, self._bringIntoView)

    def check(self) -> None:
        """Shows what keeps a training from starting; called at every change."""
        if self._node is None or self.running:
            return
        wrong = list(self.form.problems())
        lacks = self._occupied() or missing(self._node)
        if wrong and not lacks:
            lacks = _("Correct the parameters")
        button = self._ui.trainButton
        button.enabled = not lacks
        button.text = lacks or _("Train")
        button.toolTip = wrong[0] if wrong else _("Start the training.")
        lines = [] if self._sentence is None else [message(*self._sentence)]
        lines += [message("error", text) for text in wrong]
        self._ui.trainingMessageLabel.text = "<br>".join(lines)
        self._ui.trainingMessageLabel.visible = bool(lines)

    def start(self) -> None:
        """Starts a training with the choices of the section."""
        self.check()
        if self._node is None or self.running or not self._ui.trainButton.enabled:
            return
        self._sentence = None
        try:
            if not (ensureTorch(self._log) and ensureSafetensors(self._log)):
                self._say("warning", _("PyTorch and safetensors are needed to train."))
                return
            self._request = trainingRequestOf(self._node)
            run = self._logic.startTraining(
                self._request, onEvent=self._onEvent, onDone=self._onDone, onError=self._onError
            )
        except Exception as error:
            self._onError(error)
            return
        self._begin(run)

    def close(self) -> None:
        """Ends a training that is going on, and all timers."""
        if self._run is not None:
            self._run.cancel()
        self.data.close()
        self._clockTimer.stop()
        # PythonQt would keep this object alive by the connection.
        self._clockTimer.disconnect("timeout()", self._showStatus)

    def update(self) -> None:
        """Shows what the parameter node holds now."""
        Section.update(self)
        self.data.update()
        self.check()

    def _show(self) -> None:
        node, ui, specs = self._node, self._ui, learningSpecs()
        if not specs:
            ui.trainingButton.visible = False
            return
        key = node.trainingAlgorithm if node.trainingAlgorithm in specs else next(iter(specs))
        if node.trainingAlgorithm != key:
            node.trainingAlgorithm = key
        ui.trainingAlgorithmCombo.currentIndex = ui.trainingAlgorithmCombo.findData(key)
        ui.trainingSummaryLabel.text = html.escape(specs[key].summary)
        fromScene = node.trainingSource is TrainingSource.SCENE
        ui.trainingTable.visible = fromScene
        ui.trainingPathLabel.visible = ui.trainingPathWidget.visible = not fromScene
        ui.trainingNameEdit.placeholderText = freeName(key)
        ui.trainingResumeCheckBox.visible = isUnfinished(modelName(node))
        form = trainingForm(specs[key])
        self.form.setStages(form, node.trainingLength.value, trainingSettingsOf(node))

    def _bringIntoView(self) -> None:
        section = self._ui.trainingButton
        area = section.parentWidget()
        while area is not None and not area.inherits("QScrollArea"):
            area = area.parentWidget()
        if area is not None:
            area.ensureWidgetVisible(self._ui.trainButton)
            area.ensureWidgetVisible(self._ui.trainingAlgorithmCombo)

    def _onAlgorithm(self, index) -> None:
        key = self._ui.trainingAlgorithmCombo.itemData(index)
        if self._listens and key:
            self._node.trainingAlgorithm = key
            self.update()

    def _onSettings(self, settings) -> None:
        """Keeps the settings of algorithms that are not shown at present."""
        if self._node is None:
            return
        others = {
            name: value
            for name, value in trainingSettingsOf(self._node).items()
            if not name.startswith(tuple(f"{key}." for key in self.form.groups()))
        }
        with self._deaf():
            self._node.trainingSettings = json.dumps({**others, **settings}, sort_keys=True)
        self.check()

    def _onFolder(self, checked=False) -> None:
        path = qt.QFileDialog.getExistingDirectory(
            slicer.util.mainWindow(), _("Choose a folder of images")
        )
        if path and self._node is not None:
            self._node.trainingPath = path

    def _onTable(self, checked=False) -> None:
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Choose a table of images"), "", _("Tables (*.csv)")
        )
        if path and self._node is not None:
            self._node.trainingPath = path

    def _onTrain(self, checked=False) -> None:
        if self.running:
            self._ui.trainButton.enabled = False
            self._run.cancel()
        else:
            self.start()

    def _onStop(self, checked=False) -> None:
        if self.running:
            self._ui.trainStopButton.enabled = False
            self._run.stopAndKeep()

    def _begin(self, run) -> None:
        ui, self._run = self._ui, run
        self._progress = TrainingProgress(self._request.options["settings"]["steps"])
        self._drawn = 0.0
        self._showTitle()
        ui.trainButton.text = _("Cancel")
        ui.trainButton.toolTip = _("End the training now, without a model.")
        ui.trainStopButton.visible = ui.trainStopButton.enabled = True
        ui.trainingProgressBar.value = 0
        ui.trainingProgressBar.visible = ui.trainingStatusLabel.visible = True
        ui.trainingCurveBox.visible = False
        # The form makes room for the course of the training.
        ui.trainingForm.visible = False
        self._curve.show([])
        self._log(_("Training {name}").format(name=self._request.options["name"]))
        self._showStatus()
        self._clockTimer.start()
        self._onBusy()

    def _finish(self) -> None:
        self._clockTimer.stop()
        self._run = None
        ui = self._ui
        ui.trainStopButton.visible = False
        ui.trainingProgressBar.visible = ui.trainingStatusLabel.visible = False
        ui.trainingCurveBox.visible = bool(self._progress and self._progress.points)
        ui.trainingForm.visible = True
        self._onBusy()

    def _onEvent(self, event) -> None:
        if event.kind == "message":
            self._log(event.text)
        isNew = self._progress.take(event)
        self._ui.trainingProgressBar.value = round(1000 * self._progress.fraction)
        now = time.monotonic()
        if isNew and now - self._drawn > _DRAW_SECONDS:
            self._drawn = now
            self._curve.show(self._progress.points)
            self._ui.trainingCurveBox.visible = len(self._progress.points) > 1

    def _onDone(self, outcome) -> None:
        progress = self._progress
        progress.points = outcome.get("history") or progress.points
        self._curve.show(progress.points)
        algorithm, name = self._request.algorithm, outcome["model"]
        self._sentence = _ended(algorithm, name, outcome.get("figures") or {}, progress.seconds)
        self._log(self._sentence[1])
        self._finish()
        if self._node is not None:
            # The next training makes another model.
            self._node.trainingName = ""
        self._onModel(algorithm, name)
        self.update()

    def _onError(self, error) -> None:
        was = self._run
        self._finish()
        if isinstance(error, Cancelled):
            self._say("note", self._farewell())
        elif isinstance(error, DeepRegError):
            self._say("error", str(error))
        else:
            text = _("Something unexpected went wrong ({error}). The log tells more.")
            self._say("error", text.format(error=error))
        if was is not None:
            for line in self._logic.workerLog():
                self._log(line)

    def _farewell(self) -> str:
        if isUnfinished(self._request.options["name"]):
            return _("Cancelled; there is no model yet. A training of the same name can go on.")
        return _("Cancelled; there is no model.")

    def _showStatus(self) -> None:
        self._ui.trainingStatusLabel.text = self._progress.text()

    def _showTitle(self) -> None:
        request = self._request
        count = len(request.volumes)
        files = request.data or request.options.get("generated")
        source = files or _("{count} volumes").format(count=count)
        text = _("{algorithm} learns from {source}: {name}").format(
            algorithm=learningSpecs()[request.algorithm].title, source=source,
            name=request.options["name"],
        )  # fmt: skip
        self._ui.trainingMessageLabel.text = message("note", text)
        self._ui.trainingMessageLabel.visible = True


def _ended(algorithm: str, name: str, figures, seconds: float) -> tuple:
    """Returns how a training ended: level and sentence."""
    text = _("The model {name} is ready after {time}, and chosen above.")
    if algorithm in registry.estimators():
        text = _("The model {name} is ready after {time}, and chosen in the section Tools.")
    text = text.format(name=name, time=duration(seconds))
    off, spread = figures.get("rmse_mm"), figures.get("deviation_mm")
    if off is not None and spread is not None:
        told = _("In validation its estimates are off by {off} mm, where errors vary by {spread}.")
        text += " " + told.format(off=f"{off:.1f}", spread=f"{spread:.1f}")
        return ("ok" if off < spread else "warning"), text
    for key, figure in (("dice", _("Dice")), ("ncc", _("correlation"))):
        after, before = figures.get(key), figures.get(f"{key}_before")
        if after is None or before is None:
            continue
        text += " " + _("In validation {figure} {after}, before {before}.").format(
            figure=figure, after=f"{after:.3f}", before=f"{before:.3f}"
        )
        if after <= before:
            more = _("It is no better than none yet: train longer, or on more images.")
            return "warning", f"{text} {more}"
        return "ok", text
    return "ok", text
