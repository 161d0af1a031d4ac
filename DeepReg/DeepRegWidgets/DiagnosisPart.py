"""The section Diagnosis: what can keep DeepReg from running on this computer, in plain words."""

from __future__ import annotations

import json
import subprocess
import threading

import qt
from slicer.i18n import tr as _

from DeepRegLib.client import worker_environment
from DeepRegLib.errors import WorkerError

from .Texts import message
from .Worker import findPython

_LEVELS = {"ok": "ok", "warn": "warning", "fail": "error"}
_POLL_MS = 200
_SECONDS = 240


class DiagnosisPart:
    """Runs the doctor in a process of its own and shows what it found.

    Args:
        ui: The panel's widgets.
    """

    def __init__(self, ui):
        self._ui = ui
        self._thread = None
        self._findings = []
        self._timer = qt.QTimer()
        self._timer.setInterval(_POLL_MS)
        self._timer.connect("timeout()", self._poll)
        ui.doctorButton.connect("clicked(bool)", self.examine)

    @property
    def running(self) -> bool:
        """Whether the doctor is at work."""
        return self._thread is not None

    def examine(self, checked=False) -> None:
        """Starts the examination; the panel stays alive."""
        if self.running:
            return
        self._ui.doctorButton.enabled = False
        self._ui.doctorLabel.visible = True
        self._ui.doctorLabel.text = message("note", _("Checking; this can take a minute..."))
        self._thread = threading.Thread(target=self._examine, daemon=True)
        self._thread.start()
        self._timer.start()

    def close(self) -> None:
        """Stops waiting for the doctor."""
        self._timer.stop()
        self._timer.disconnect("timeout()", self._poll)

    def _examine(self) -> None:
        """Runs in a thread: no Qt and no nodes here."""
        try:
            self._findings = _findings(findPython())
        except (OSError, ValueError, WorkerError, subprocess.SubprocessError) as error:
            self._findings = [{"name": _("Doctor"), "status": "fail", "text": str(error)}]

    def _poll(self) -> None:
        # In Slicer the event loop holds Python's lock; this lets the thread have it.
        self._thread.join(0.02)
        if self._thread.is_alive():
            return
        self._timer.stop()
        self._thread = None
        lines = [
            message(_LEVELS.get(found["status"], "note"), f"{found['name']}: {found['text']}")
            for found in self._findings
        ]
        self._ui.doctorLabel.text = "<br>".join(lines)
        self._ui.doctorButton.enabled = True


def _findings(python: str) -> list:
    """Asks ``python -m DeepRegLib doctor --json``.

    Raises:
        ValueError: If it says nothing that can be understood.
    """
    done = subprocess.run(
        [python, "-m", "DeepRegLib", "doctor", "--json"], capture_output=True, text=True,
        env=worker_environment(), timeout=_SECONDS, check=False,
    )  # fmt: skip
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        told = (done.stderr or done.stdout).strip()[-400:]
        raise ValueError(
            _("Slicer's Python could not run the check: {text}").format(text=told)
        ) from error
