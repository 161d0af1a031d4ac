"""One examination of a population, from nodes to a transform along its modes, in the worker."""

from __future__ import annotations

from DeepRegLib.bridge.population import collecting_population, load_population, place_population

from .WorkerRun import Background, WorkerRun


class PopulationRun(WorkerRun):
    """A run in progress; nothing is added to the scene before the worker has succeeded.

    Args:
        worker: Process that computes; see `Worker.sharedWorker`.
        request: The population (`DeepRegLib.bridge.population.PopulationRequest`).
        onEvent: Called with each event of the worker (`DeepRegLib.job.JobEvent`).
        onDone: Called with the `DeepRegLib.bridge.population.Population`.
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
        steps = collecting_population(self._request)
        self._beginInSteps(steps, byTimer)
        self._scene = self._request.fixed.GetScene()

    def _take(self, event) -> None:
        self._background = Background(lambda: load_population(event, self._folder.name))
        self._step = self._placeWhenLoaded

    def _placeWhenLoaded(self) -> None:
        if self._background.done:
            event, modes = self._background.result()
            self.outcome = place_population(self._scene, self._request, event, modes)
            self._step = self._tell
