"""One check of a registration, from nodes to an error volume, in the worker process."""

from __future__ import annotations

from DeepRegLib.bridge.check import collecting_check, place_check
from DeepRegLib.bridge.outcome import load

from .WorkerRun import Background, WorkerRun


class CheckRun(WorkerRun):
    """A check in progress; nothing is added to the scene before the worker has succeeded.

    Args:
        worker: Process that computes; see `Worker.sharedWorker`.
        request: What to check (`DeepRegLib.bridge.check.CheckRequest`).
        onEvent: Called with each event of the worker (`DeepRegLib.job.JobEvent`).
        onDone: Called with the `DeepRegLib.bridge.check.Checked`.
        onError: Called with the exception; `Cancelled` if the user cancelled.
    """

    def __init__(self, worker, request, onEvent=None, onDone=None, onError=None):
        WorkerRun.__init__(self, worker, onEvent, onDone, onError)
        self._request = request
        self._scene = request.fixed.GetScene()

    def start(self, byTimer=True) -> None:
        """Begins the check; returns at once.

        Args:
            byTimer: Go on by a timer; otherwise the caller has to call `step` until `finished`.

        Raises:
            DeepRegError: If the nodes cannot be checked; nothing has happened then.
        """
        self._checkFree()
        self._beginInSteps(collecting_check(self._request), byTimer)

    def _take(self, event) -> None:
        self._background = Background(lambda: load(event, self._folder.name))
        self._step = self._placeWhenLoaded

    def _placeWhenLoaded(self) -> None:
        if self._background.done:
            self.outcome = place_check(self._scene, self._request, self._background.result())
            self._step = self._tell
