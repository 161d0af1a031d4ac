"""One examination of a population, from nodes to a transform along its modes, in the worker."""

from __future__ import annotations

from DeepRegLib.bridge.population import collecting_population, load_population, place_population

from .RequestRun import PlacingRun


class PopulationRun(PlacingRun):
    """A run in progress.

    The request is a `DeepRegLib.bridge.population.PopulationRequest`, the outcome a `Population`.
    """

    def _collecting(self):
        return collecting_population(self._request)

    def _load(self, event, folder):
        return load_population(event, folder)

    def _place(self, scene, loaded):
        return place_population(scene, self._request, *loaded)
