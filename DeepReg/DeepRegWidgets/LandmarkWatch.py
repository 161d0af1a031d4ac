"""Notices that landmarks have moved since the last run."""

from __future__ import annotations

import slicer
from slicer.util import VTKObservationMixin

from DeepRegLib.bridge import mrml

_MOVED_MM = 1e-3


class LandmarkWatch(VTKObservationMixin):
    """Observes both point lists of the parameter node.

    Args:
        onMoved: Called with whether the points differ from those of the last run.
        onChanged: Called at each change, so that the inputs are checked again.
    """

    def __init__(self, onMoved, onChanged):
        VTKObservationMixin.__init__(self)
        self._onMoved, self._onChanged = onMoved, onChanged
        self._node = None
        self._lists = ()
        self._remembered = None

    def setParameterNode(self, parameterNode) -> None:
        """Watches the lists of another parameter node; None watches nothing."""
        self._node = parameterNode
        self._remembered = None
        self._lists = ()
        if parameterNode is not None and parameterNode.resultTransform is not None:
            # A result from a file: its landmarks have not moved since.
            self._remembered = self._pointsOf(parameterNode)
        self.update()

    def update(self) -> None:
        """Watches the lists that the parameter node refers to now."""
        lists = () if self._node is None else (self._node.fixedPoints, self._node.movingPoints)
        if lists == self._lists and lists:
            return
        self.removeObservers()
        self._lists = lists
        events = (
            slicer.vtkMRMLMarkupsNode.PointModifiedEvent,
            slicer.vtkMRMLMarkupsNode.PointAddedEvent,
            slicer.vtkMRMLMarkupsNode.PointRemovedEvent,
        )
        for node in dict.fromkeys(n for n in lists if n is not None):
            for event in events:
                self.addObserver(node, event, self._onPoints)
        self._onPoints()

    def remember(self) -> None:
        """Takes the present points as those of the last run."""
        self._remembered = self._pointsOf(self._node)
        self._onMoved(False)

    @staticmethod
    def _pointsOf(parameterNode):
        """Returns both lists as arrays; None unless they are pairs."""
        lists = (parameterNode.fixedPoints, parameterNode.movingPoints)
        if None in lists:
            return None
        points = [mrml.markup_points(node)[0] for node in lists]
        return points if len(points[0]) == len(points[1]) > 0 else None

    def _onPoints(self, caller=None, event=None) -> None:
        if self._node is None:
            return
        points = self._pointsOf(self._node)
        hasResult = self._node.resultTransform is not None
        self._onMoved(hasResult and points is not None and self._differ(points))
        self._onChanged()

    def _differ(self, points) -> bool:
        if self._remembered is None:
            # The last run had no pairs: these are new to it.
            return True
        pairs = list(zip(points, self._remembered))
        if any(new.shape != old.shape for new, old in pairs):
            return True
        return any(abs(new - old).max() > _MOVED_MM for new, old in pairs)
