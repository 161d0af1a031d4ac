"""The run: one button from Register to Cancel, progress, messages, log and live preview."""

from __future__ import annotations

import html
import time

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegLib import registry
from DeepRegLib.bridge import mrml, preflight
from DeepRegLib.bridge.companions import check_companions
from DeepRegLib.errors import Cancelled, DeepRegError

from .AlgorithmPart import stageKeys
from .Installer import ensureSafetensors, ensureTorch
from .Parameters import companionsOf
from .PreviewOverlay import PreviewOverlay
from .RegistrationRun import followsResult
from .Requests import TO_LANDMARKS, refinementOf, requestOf, wantedOf
from .Texts import clock, duration, message

_CHECK_DELAY_MS = 120
#: How often, and how long each time, voxels are looked at.
_SCAN_MS, _SCAN_SECONDS = 30, 0.01
_SCALAR = "vtkMRMLScalarVolumeNode"


class RunPart:
    """Ties the run's widgets to the parameter node and drives the runs.

    Args:
        ui: The panel's widgets.
        logic: `DeepRegLogic`, which starts the runs.
        problems: Function that returns sentences of other sections that keep a run from starting.
        occupied: Function that returns why the worker is not free, or an empty text.
        onBusy: Called when a run begins and when it ends.
        onOutcome: Called with (outcome, request, linear start) after each successful run.
    """

    def __init__(self, ui, logic, problems, occupied, onBusy, onOutcome):
        self._ui, self._logic = ui, logic
        self._problems, self._occupied = problems, occupied
        self._onBusy, self._onOutcome = onBusy, onOutcome
        self._node = None
        self._run = self._request = self._overlay = None
        #: Request and transform of the last result, and how it can be refined.
        self._last, self._refinement = (None, None), ""
        self._started = 0.0
        self._fraction = 0.0
        self._stage = ""
        #: Where "automatic" runs, as far as a run has told.
        self._knownDevice = "cpu"
        self._engine = ""
        self._cache = preflight.VolumeCache()
        self._blocked = True
        self._lastSentence = None
        self._checkTimer = qt.QTimer()
        self._checkTimer.setSingleShot(True)
        self._checkTimer.setInterval(_CHECK_DELAY_MS)
        self._checkTimer.connect("timeout()", self.check)
        self._unscanned = []
        self._scanTimer = qt.QTimer()
        self._scanTimer.setInterval(_SCAN_MS)
        self._scanTimer.connect("timeout()", self._scan)
        self._clockTimer = qt.QTimer()
        self._clockTimer.setInterval(500)
        self._clockTimer.connect("timeout()", self._showStatus)
        ui.applyButton.connect("clicked(bool)", self._onApply)
        ui.stopButton.connect("clicked(bool)", self._onStop)
        ui.rerunButton.connect("clicked(bool)", lambda checked=False: self.start(TO_LANDMARKS))
        ui.refineButton.connect("clicked(bool)", lambda checked=False: self.start(self._refinement))
        ui.previewCheckBox.connect("toggled(bool)", self._onPreviewToggled)

    @property
    def running(self) -> bool:
        """Whether a run is going on."""
        return self._run is not None

    @property
    def previewsShown(self) -> int:
        """How many previews of the present run have been shown."""
        return 0 if self._overlay is None else self._overlay.shown

    def setParameterNode(self, parameterNode) -> None:
        """Works for another parameter node; None ends a run that is going on."""
        if parameterNode is None and self._run is not None:
            self._run.cancel()
        if parameterNode is None:
            self._request, self._last = None, (None, None)
        self._node = parameterNode
        self._lastSentence = None
        self.update()

    def update(self) -> None:
        """Has the inputs checked soon; called at every change."""
        if self._node is not None:
            self._checkTimer.start()

    def check(self) -> None:
        """Checks the inputs now and shows what is found."""
        self._checkTimer.stop()
        if self._node is None or self.running:
            return
        findings = self._findings()
        errors = [f.text for f in findings if f.level == "error"] + list(self._problems())
        missing = None in (self._node.fixedVolume, self._node.movingVolume)
        occupied = self._occupied()
        self._blocked = missing or bool(errors) or bool(occupied)
        self._ui.applyButton.enabled = not self._blocked
        self._ui.applyButton.text = occupied or self._invitation()
        wait = _("Wait for its end, or cancel it there.")
        ready = wait if occupied else _("Start the registration.")
        self._ui.applyButton.toolTip = errors[0] if errors else ready
        # What is missing stands on the button already.
        lines = [] if missing else [message("error", text) for text in errors]
        lines += [message(f.level, f.text) for f in findings if f.level != "error"]
        if self._lastSentence is not None:
            lines.insert(0, message(*self._lastSentence))
        self._ui.messageLabel.text = "<br>".join(lines)
        self._ui.messageLabel.visible = bool(lines)
        self._showRefine()
        self._scanSoon()

    def _scanSoon(self) -> None:
        """Has all voxels looked at, bit by bit; the check above knows a sample of them only."""
        volumes = (self._node.fixedVolume, self._node.movingVolume)
        rest = [v for v in volumes if v is not None and v.GetImageData() is not None]
        self._unscanned = [v for v in rest if not self._cache.scanned(v)]
        if self._unscanned:
            self._scanTimer.start()

    def _scan(self) -> None:
        if self._node is None or self.running or not self._unscanned:
            self._scanTimer.stop()
            return
        volume = self._unscanned[0]
        if volume.GetScene() is None or self._cache.scan(volume, _SCAN_SECONDS):
            self._unscanned.pop(0)
            if not self._unscanned:
                self._scanTimer.stop()
                self.check()

    def showRerun(self, shown: bool) -> None:
        """Offers the quick run after landmarks have moved."""
        self._ui.rerunButton.visible = bool(shown) and not self.running

    def _showRefine(self) -> None:
        """Offers to refine the last result, if a trained model found it."""
        button = self._ui.refineButton
        self._refinement, text = refinementOf(self._node, *self._last)
        button.visible = bool(text)
        button.enabled = not self._blocked
        button.text = text

    def _invitation(self) -> str:
        missing = {
            (True, True): _("Select a fixed and a moving volume"),
            (True, False): _("Select a fixed volume"),
            (False, True): _("Select a moving volume"),
        }
        absent = (self._node.fixedVolume is None, self._node.movingVolume is None)
        return missing.get(absent, _("Register"))

    def _findings(self) -> list:
        node = self._node
        kind = registry.spec(stageKeys(node.stages)[-1]).transform
        try:
            findings = preflight.check(
                node.fixedVolume, node.movingVolume,
                fixed_mask=node.fixedMask, fixed_segment=node.fixedSegment,
                moving_mask=node.movingMask, moving_segment=node.movingSegment,
                fixed_points=node.fixedPoints, moving_points=node.movingPoints,
                initial=node.initialTransform, start_from_scene=node.startFromScene,
                algorithm_kind=kind, cache=self._cache, translate=_,
            )  # fmt: skip
        except DeepRegError as error:
            return [preflight.Finding("error", "input", str(error))]
        hasVolumes = None not in (node.fixedVolume, node.movingVolume)
        if not hasVolumes or any(f.level == "error" for f in findings):
            return findings
        harden = node.companionMode.value == "copy"
        companions = [
            c for c in companionsOf(node) if harden or not followsResult(c, node.movingVolume)
        ]
        findings += [
            preflight.Finding("error", "companion", text)
            for text in check_companions(
                companions, node.movingVolume, node.fixedVolume, harden=harden
            )
        ]  # fmt: skip
        return findings + self._prediction(kind)

    def _prediction(self, kind: str) -> list:
        fixed, moving = (mrml.grid_of(v) for v in (self._node.fixedVolume, self._node.movingVolume))
        chosen = self._node.device.value
        device = self._knownDevice if chosen == "auto" else chosen
        stages = stageKeys(self._node.stages)
        guess = preflight.predict(
            fixed.shape, fixed.spacing_mm, moving.shape, kind, self._node.preset.value,
            device=device,
            linear_stages=sum(registry.spec(key).transform == "linear" for key in stages),
            algorithm=stages[-1],
        )  # fmt: skip
        if guess.seconds is None:
            text = _("Needs about {memory}.").format(memory=_memory(guess.memory_mb))
        else:
            text = _("Takes about {time} and {memory} on the processor.").format(
                time=duration(guess.seconds), memory=_memory(guess.memory_mb)
            )
        return [preflight.Finding("note", "prediction", text)]

    def _onApply(self, checked=False) -> None:
        if self.running:
            self._ui.applyButton.enabled = False
            self._ui.applyButton.text = _("Cancelling...")
            self._run.cancel()
        else:
            self.start()

    def _onStop(self, checked=False) -> None:
        if self.running:
            self._ui.stopButton.enabled = False
            self._run.stopAndKeep()

    def start(self, goesOn: str = "") -> None:
        """Starts a run with the choices of the panel.

        Args:
            goesOn: How it goes on from the last result, if it does; see `requestOf`.
        """
        self.check()
        if self._blocked or self.running:
            return
        try:
            if not ensureTorch(self._log):
                self._say("warning", _("PyTorch is needed to register; nothing was changed."))
                return
            if self._learned() and not ensureSafetensors(self._log):
                self._say("warning", _("Models need safetensors; nothing was changed."))
                return
            self._request = requestOf(self._node, goesOn)
            wanted = wantedOf(self._node)
            companions = companionsOf(self._node)
            self._begin()
            self._run = self._logic.startRun(
                self._request, wanted, companions,
                harden=self._node.companionMode.value == "copy",
                applyToMoving=self._node.applyToMoving,
                onEvent=self._onEvent, onPreview=self._onPreview,
                onDone=self._onDone, onError=self._onError,
            )  # fmt: skip
            self._onBusy()
        except Exception as error:
            self._onError(error)

    def _begin(self) -> None:
        ui = self._ui
        self._started, self._fraction, self._stage = time.monotonic(), 0.0, ""
        self._lastSentence = None
        ui.logText.clear()
        ui.messageLabel.visible = False
        ui.rerunButton.visible = ui.refineButton.visible = False
        ui.applyButton.text = _("Cancel")
        ui.applyButton.toolTip = _("End the run now; the scene stays as it is.")
        ui.stopButton.visible = ui.stopButton.enabled = True
        ui.progressBar.value = 0
        ui.progressBar.visible = ui.statusLabel.visible = True
        self._setInputsEnabled(False)
        self._overlay = PreviewOverlay(self._request.fixed, self._request.moving)
        self._log(_("Starting"))
        if self._engine and self._logic.workerIsWarm():
            self._log(self._engine)
        self._showStatus()
        self._clockTimer.start()

    def _learned(self) -> bool:
        """Whether a network takes part."""
        return any(registry.spec(key).needs.training for key in stageKeys(self._node.stages))

    def _finish(self) -> None:
        self._clockTimer.stop()
        if self._overlay is not None:
            self._overlay.dispose()
        self._overlay = self._run = None
        self._ui.stopButton.visible = False
        self._ui.progressBar.visible = self._ui.statusLabel.visible = False
        self._setInputsEnabled(True)
        self._onBusy()

    def _setInputsEnabled(self, enabled: bool) -> None:
        for name in ("parameterSetSelector", "inputsButton", "algorithmButton", "outputsButton"):
            getattr(self._ui, name).enabled = enabled

    def _onEvent(self, event) -> None:
        if event.kind == "ready":
            versions = event.data.get("versions", {})
            text = _("Running on {device}, PyTorch {version}")
            device = event.data.get("device", "?")
            self._knownDevice = "cuda" if device.startswith("cuda") else "cpu"
            self._engine = text.format(device=device, version=versions.get("torch", "?"))
            self._log(self._engine)
        elif event.kind == "stage":
            self._stage = _stageTitle(event.stage)
            self._log(self._stage)
        elif event.kind == "message":
            self._log(event.text)
        if event.kind in ("stage", "progress"):
            self._fraction = max(self._fraction, event.fraction)
            self._ui.progressBar.value = round(1000 * self._fraction)

    def _onPreview(self, linear, deformation, grid) -> None:
        if self._overlay is not None and self._node is not None and self._node.livePreview:
            self._overlay.show(linear, deformation, grid)

    def _onPreviewToggled(self, on) -> None:
        if not on and self._overlay is not None:
            self._overlay.close()

    def _onDone(self, outcome) -> None:
        run = self._run
        seconds = time.monotonic() - self._started
        self._finish()
        self._log(_("Finished after {time}").format(time=duration(seconds)))
        for sentence in outcome.remarks:
            self._log(sentence)
        self._keepNodes(outcome)
        self._last = (self._request, outcome.transform)
        self._onOutcome(outcome, self._request, run.startLinear)
        self.check()

    def _keepNodes(self, outcome) -> None:
        """Shows the nodes of the result as outputs, so that the next run overwrites them."""
        if self._node is None:
            return
        with slicer.util.NodeModify(self._node.parameterNode):
            self._node.resultTransform = outcome.transform
            if outcome.moved is not None and outcome.moved.GetClassName() == _SCALAR:
                self._node.movedVolume = outcome.moved
            if outcome.inverse is not None:
                self._node.inverseTransform = outcome.inverse

    def _onError(self, error) -> None:
        self._finish()
        if isinstance(error, Cancelled):
            self._say("note", _("Cancelled; nothing was changed."))
        elif isinstance(error, DeepRegError):
            self._say("error", str(error))
        else:
            self._say("error", _("Something unexpected went wrong ({error}); the scene is "
                                 "unharmed. The log tells more.").format(error=error))  # fmt: skip
        for line in self._logic.workerLog():
            self._log(line)

    def _say(self, level: str, sentence: str) -> None:
        self._lastSentence = (level, sentence)
        self._log(sentence)
        self.check()

    def _log(self, text: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        self._ui.logText.appendPlainText(f"{stamp}  {text}")

    def _showStatus(self) -> None:
        passed = time.monotonic() - self._started
        parts = [html.escape(self._stage or _("Preparing"))]
        parts.append(_("{time} elapsed").format(time=clock(passed)))
        if 0.05 < self._fraction < 1.0:
            left = passed * (1.0 - self._fraction) / self._fraction
            parts.append(_("about {time} left").format(time=clock(left)))
        self._ui.statusLabel.text = " · ".join(parts)

    def close(self) -> None:
        """Ends a run that is going on and stops all timers."""
        if self._run is not None:
            self._run.cancel()
        for timer, slot in (
            (self._checkTimer, self.check),
            (self._scanTimer, self._scan),
            (self._clockTimer, self._showStatus),
        ):
            timer.stop()
            # PythonQt would keep this object alive by the connection.
            timer.disconnect("timeout()", slot)


def _stageTitle(key: str) -> str:
    if key == "finish":
        return _("Finishing")
    specs = registry.specs()
    return specs[key].title if key in specs else key


def _memory(megabytes: float) -> str:
    if megabytes >= 1024:
        return _("{size} GB of memory").format(size=f"{megabytes / 1024:.1f}")
    return _("{size} MB of memory").format(size=f"{megabytes:.0f}")
