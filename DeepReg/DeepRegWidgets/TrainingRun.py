"""One training, from volumes or a folder to a model file, in the worker process."""

from __future__ import annotations

from DeepRegLib.bridge.training import collect_training

from .WorkerRun import WorkerRun


class TrainingRun(WorkerRun):
    """A training in progress; the scene is read at its beginning and never written to.

    Args:
        worker: Process that computes; see `Worker.sharedWorker`.
        request: What to learn from (`DeepRegLib.bridge.training.TrainingRequest`).
        onEvent: Called with each event of the worker (`DeepRegLib.job.JobEvent`).
        onDone: Called with what the job gives: ``model``, ``path``, ``card``, ``figures`` …
        onError: Called with the exception; `Cancelled` if the user cancelled.
    """

    def __init__(self, worker, request, onEvent=None, onDone=None, onError=None):
        WorkerRun.__init__(self, worker, onEvent, onDone, onError)
        self._request = request

    def start(self, byTimer=True) -> None:
        """Begins the training; returns at once.

        Args:
            byTimer: Go on by a timer; otherwise the caller has to call `step` until `finished`.

        Raises:
            DeepRegError: If the volumes cannot be used; nothing has happened then.
        """
        self._checkFree()
        self._begin(collect_training(self._request).save, byTimer)

    def _take(self, event) -> None:
        self.outcome = event.data
        self._step = self._tell
