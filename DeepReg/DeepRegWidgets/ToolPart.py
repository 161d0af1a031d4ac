"""What the tools of the section Tools share: a button, progress, messages, and one run at a time.

A tool is a file of its own beside this one, with a form in `Resources/UI`, and an entry in
`Panel.TOOLS`. It says what is missing, starts its run, and takes what comes of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import qt
from slicer.i18n import tr as _

from DeepRegLib.errors import Cancelled, DeepRegError

from .Installer import ensureSafetensors, ensureTorch
from .Section import Section, TellingSection
from .Texts import clock, message


@dataclass(frozen=True)
class ToolWidgets:
    """The widgets that every tool has.

    Args:
        button: Starts the run, and cancels it.
        progress: How far it is.
        status: What it does, and for how long.
        message: What is wrong, or how it ended.
        form: What is not to be changed while it runs.
    """

    button: qt.QPushButton
    progress: qt.QProgressBar
    status: qt.QLabel
    message: qt.QLabel
    form: qt.QWidget


class ToolPart(TellingSection):
    """A tool of the panel.

    Args:
        ui: The panel's widgets.
        logic: `DeepRegLogic`, which starts the runs.
        occupied: Function that returns why the worker is not free, or an empty text.
        onBusy: Called when a run begins and when it ends.
    """

    #: Name of the `.ui` file, and of the group box in it.
    FORM = ""
    #: What the names of its widgets begin with.
    NAME = ""

    def __init__(self, ui, logic, occupied, onBusy):
        TellingSection.__init__(self, ui)
        self._logic, self._occupied, self._onBusy = logic, occupied, onBusy
        self._run = None
        self._started, self._fraction = 0.0, 0.0
        self._own = self._widgets()
        self._clockTimer = qt.QTimer()
        self._clockTimer.setInterval(500)
        self._clockTimer.connect("timeout()", self._showStatus)
        self._own.button.connect("clicked(bool)", self._onButton)
        ui.toolsButton.connect("contentsCollapsed(bool)", self._onCollapsed)

    def invitation(self) -> str:
        """Returns what stands on the button when nothing is missing."""
        raise NotImplementedError

    def explanation(self) -> str:
        """Returns what the button does, for its tool tip."""
        raise NotImplementedError

    def activity(self) -> str:
        """Returns what goes on while the tool runs."""
        raise NotImplementedError

    def missing(self) -> str:
        """Returns what has to be chosen before the tool can run; an empty text if nothing."""
        raise NotImplementedError

    def findings(self) -> list:
        """Returns (level, sentence) of what speaks against a run; an ``error`` blocks it."""
        return []

    def begin(self, **callbacks):
        """Starts a run with the choices of the tool and returns it."""
        raise NotImplementedError

    def take(self, outcome):
        """Takes what came of a run; returns (level, sentence) to say, or None."""
        raise NotImplementedError

    @property
    def running(self) -> bool:
        """Whether a run of the tool is going on."""
        return self._run is not None

    def setParameterNode(self, parameterNode) -> None:
        """Shows the choices of a parameter node; None ends a run, as its nodes vanish."""
        if parameterNode is None and self.running:
            self._run.cancel()
        self._sentence = None
        Section.setParameterNode(self, parameterNode)

    def update(self) -> None:
        """Shows what the parameter node holds now; when the section is opened if it is closed."""
        if not self._ui.toolsButton.collapsed:
            Section.update(self)
            self.check()

    def check(self) -> None:
        """Shows what keeps the tool from running; called at every change."""
        if self._node is None or self.running or self._ui.toolsButton.collapsed:
            return
        own = self._own
        lacks = self.missing()
        # What is missing stands on the button already.
        found = [] if lacks else self.findings()
        errors = [text for level, text in found if level == "error"]
        lacks = self._occupied() or lacks
        own.button.enabled = not lacks and not errors
        own.button.text = lacks or self.invitation()
        own.button.toolTip = errors[0] if errors else self.explanation()
        lines = [] if self._sentence is None else [self._sentence]
        lines += found
        own.message.text = "<br>".join(message(level, text) for level, text in lines)
        own.message.visible = bool(lines)

    def start(self) -> None:
        """Starts the tool with the choices of its form."""
        self._sentence = None
        self.check()
        if self._node is None or self.running or not self._own.button.enabled:
            return
        try:
            if not (ensureTorch(self._log) and ensureSafetensors(self._log)):
                self._say("warning", _("PyTorch and safetensors are needed; nothing was changed."))
                return
            self._run = self.begin(
                onEvent=self._onEvent, onDone=self._onDone, onError=self._onError
            )
        except Exception as error:
            self._onError(error)
            return
        self._showRun()

    def close(self) -> None:
        """Ends a run that is going on, and the timer."""
        if self.running:
            self._run.cancel()
        self._clockTimer.stop()
        # PythonQt would keep this object alive by the connection.
        self._clockTimer.disconnect("timeout()", self._showStatus)

    def _widgets(self) -> ToolWidgets:
        ui, name = self._ui, self.NAME
        return ToolWidgets(
            getattr(ui, f"{name}Button"), getattr(ui, f"{name}ProgressBar"),
            getattr(ui, f"{name}StatusLabel"), getattr(ui, f"{name}MessageLabel"),
            getattr(ui, f"{name}Form"),
        )  # fmt: skip

    def _onCollapsed(self, collapsed) -> None:
        self.update()

    def _onButton(self, checked=False) -> None:
        if self.running:
            self._own.button.enabled = False
            self._run.cancel()
        else:
            self.start()

    def _showRun(self) -> None:
        own = self._own
        self._started, self._fraction = time.monotonic(), 0.0
        own.button.text = _("Cancel")
        own.button.toolTip = _("End it now; the scene stays as it is.")
        own.progress.value = 0
        own.progress.visible = own.status.visible = True
        own.message.visible = own.form.enabled = False
        self._log(self.activity())
        self._showStatus()
        self._clockTimer.start()
        self._onBusy()

    def _finish(self) -> None:
        self._clockTimer.stop()
        self._run = None
        own = self._own
        own.progress.visible = own.status.visible = False
        own.form.enabled = True
        self._onBusy()

    def _onEvent(self, event) -> None:
        if event.kind == "message":
            self._log(event.text)
        if event.kind in ("stage", "progress"):
            self._fraction = max(self._fraction, event.fraction)
            self._own.progress.value = round(1000 * self._fraction)

    def _onDone(self, outcome) -> None:
        self._finish()
        self._sentence = self.take(outcome)
        self.update()

    def _onError(self, error) -> None:
        wasRunning = self.running
        self._finish()
        if isinstance(error, Cancelled):
            self._say("note", _("Cancelled; nothing was changed."))
        elif isinstance(error, DeepRegError):
            self._say("error", str(error))
        else:
            text = _("Something unexpected went wrong ({error}); the scene is unharmed. The log "
                     "tells more.")  # fmt: skip
            self._say("error", text.format(error=error))
        for line in self._logic.workerLog() if wasRunning else ():
            self._log(line)

    def _showStatus(self) -> None:
        passed = _("{time} elapsed").format(time=clock(time.monotonic() - self._started))
        self._own.status.text = f"{self.activity()} · {passed}"
