"""One check of a registration, from nodes to an error volume, in the worker process."""

from __future__ import annotations

from DeepRegLib.bridge.check import collecting_check, place_check

from .RequestRun import PlacingRun


class CheckRun(PlacingRun):
    """A check in progress.

    The request is a `DeepRegLib.bridge.check.CheckRequest`, the outcome a `Checked`.
    """

    def _collecting(self):
        return collecting_check(self._request)

    def _place(self, scene, loaded):
        return place_check(scene, self._request, loaded)
