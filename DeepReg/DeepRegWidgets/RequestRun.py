"""What runs for a request of nodes share: how they begin, and how results get into the scene."""

from __future__ import annotations

from DeepRegLib.bridge.outcome import load

from .WorkerRun import Background, WorkerRun


class RequestRun(WorkerRun):
    """A run in progress; a subclass says what it reads, and what happens with its result.

    Args:
        worker: Process that computes; see `Worker.sharedWorker`.
        request: What to do with which nodes.
        onEvent: Called with each event of the worker (`DeepRegLib.job.JobEvent`).
        onDone: Called with the outcome.
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
        self._collect(byTimer)

    def _collect(self, byTimer) -> None:
        """Reads the nodes, and has the worker begin."""
        raise NotImplementedError


class PlacingRun(RequestRun):
    """A run that adds nodes to the scene, but none before the worker has succeeded."""

    def _collecting(self):
        """Returns a generator that reads the nodes, step by step."""
        raise NotImplementedError

    def _load(self, event, folder):
        """Reads the files of the result; in a thread."""
        return load(event, folder)

    def _place(self, scene, loaded):
        """Adds the result to the scene and returns the outcome."""
        raise NotImplementedError

    def _collect(self, byTimer) -> None:
        self._beginInSteps(self._collecting(), byTimer)
        self._scene = self._request.fixed.GetScene()

    def _take(self, event) -> None:
        self._background = Background(lambda: self._load(event, self._folder.name))
        self._step = self._placeWhenLoaded

    def _placeWhenLoaded(self) -> None:
        if self._background.done:
            self.outcome = self._place(self._scene, self._background.result())
            self._step = self._tell
