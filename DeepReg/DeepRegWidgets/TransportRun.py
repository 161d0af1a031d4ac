"""One deformation that is carried to another subject, in the worker process."""

from __future__ import annotations

from DeepRegLib.bridge.transport import collecting_transport, place_transport

from .RequestRun import PlacingRun


class TransportRun(PlacingRun):
    """A run in progress.

    The request is a `DeepRegLib.bridge.transport.TransportRequest`, the outcome a `Carried`.
    """

    def _collecting(self):
        return collecting_transport(self._request)

    def _place(self, scene, loaded):
        return place_transport(scene, self._request, loaded)
