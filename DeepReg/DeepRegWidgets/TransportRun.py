"""One deformation that is carried to another subject, in the worker process."""

from __future__ import annotations

from DeepRegLib.bridge.outcome import load
from DeepRegLib.bridge.transport import collecting_transport, place_transport

from .WorkerRun import Background, WorkerRun


class TransportRun(WorkerRun):
    """A run in progress; nothing is added to the scene before the worker has succeeded.

    Args:
        worker: Process that computes; see `Worker.sharedWorker`.
        request: What to carry where (`DeepRegLib.bridge.transport.TransportRequest`).
        onEvent: Called with each event of the worker (`DeepRegLib.job.JobEvent`).
        onDone: Called with the `DeepRegLib.bridge.transport.Carried`.
        onError: Called with the exception; `Cancelled` if the user cancelled.
    """

    def __init__(self, worker, request, onEvent=None, onDone=None, onError=None):
        WorkerRun.__init__(self, worker, onEvent, onDone, onError)
        self._request = request

    def start(self, byTimer=True) -> None:
        """Begins; returns at once.

        Args:
            byTimer: Go on by a timer; otherwise the caller has to call `step` until `finished`.

        Raises:
            DeepRegError: If the nodes cannot be used; nothing has happened then.
        """
        self._checkFree()
        steps = collecting_transport(self._request)
        self._beginInSteps(steps, byTimer)
        self._scene = self._request.fixed.GetScene()

    def _take(self, event) -> None:
        self._background = Background(lambda: load(event, self._folder.name))
        self._step = self._placeWhenLoaded

    def _placeWhenLoaded(self) -> None:
        if self._background.done:
            self.outcome = place_transport(self._scene, self._request, self._background.result())
            self._step = self._tell
