"""One training, from volumes or a folder to a model file, in the worker process."""

from __future__ import annotations

from DeepRegLib.bridge.training import collect_training

from .RequestRun import RequestRun


class TrainingRun(RequestRun):
    """A training in progress; the scene is read at its beginning and never written to.

    The request is a `DeepRegLib.bridge.training.TrainingRequest`, the outcome what the job gives:
    ``model``, ``path``, ``card``, ``figures`` …
    """

    def _collect(self, byTimer) -> None:
        self._begin(collect_training(self._request).save, byTimer)

    def _take(self, event) -> None:
        self.outcome = event.data
        self._step = self._tell
