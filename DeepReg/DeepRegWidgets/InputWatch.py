"""Notices that an input has changed: voxels, parent transforms, segments."""

from __future__ import annotations

import qt
import slicer
import vtk
from slicer.util import VTKObservationMixin

_NODES = ("fixedVolume", "movingVolume", "fixedMask", "movingMask", "initialTransform")
_TOOL_NODES = (
    "checkFixed", "checkMoving", "checkTransform", "checkMask", "transportFixed",
    "transportMoving", "transportSubject", "populationFixed",
)  # fmt: skip
_SOON_MS = 150


class InputWatch(VTKObservationMixin):
    """Observes the input nodes of the parameter node.

    Args:
        onSegments: Called when segments were added, removed or renamed.
        onChanged: Called at each change, so that the inputs are checked again.
        names: Parameters that are watched.
    """

    def __init__(self, onSegments, onChanged, names=_NODES):
        VTKObservationMixin.__init__(self)
        self._onSegments, self._onChanged = onSegments, onChanged
        self._names = names
        self._node = None
        self._watched = ()

    def setParameterNode(self, parameterNode) -> None:
        """Watches the inputs of another parameter node; None watches nothing."""
        self._node = parameterNode
        self.update()

    def update(self) -> None:
        """Watches the nodes that the parameter node refers to now."""
        found = () if self._node is None else tuple(getattr(self._node, n) for n in self._names)
        if found == self._watched:
            return
        self.removeObservers()
        self._watched = found
        for node in {n.GetID(): n for n in found if n is not None}.values():
            self._watch(node)

    def _watch(self, node) -> None:
        self.addObserver(node, slicer.vtkMRMLTransformableNode.TransformModifiedEvent, self._tell)
        if node.IsA("vtkMRMLVolumeNode"):
            # slicer.util.arrayFromVolumeModified says that the node was modified, not its image.
            self.addObserver(node, slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent, self._tell)
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._tell)
        if node.IsA("vtkMRMLSegmentationNode"):
            segmentation = node.GetSegmentation()
            for event in (
                slicer.vtkSegmentation.SegmentAdded,
                slicer.vtkSegmentation.SegmentRemoved,
                slicer.vtkSegmentation.SegmentModified,
            ):
                self.addObserver(segmentation, event, self._tellSegments)

    def _tell(self, caller=None, event=None) -> None:
        self._onChanged()

    def _tellSegments(self, caller=None, event=None) -> None:
        self._onSegments()
        self._onChanged()


class ToolWatch(InputWatch):
    """Observes the nodes that the tools are given, and tells of many changes once, a little later.

    Args:
        onChanged: Called when some have changed.
    """

    def __init__(self, onChanged):
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(_SOON_MS)
        self._timer.connect("timeout()", self._tellNow)
        self._onSettled = onChanged
        InputWatch.__init__(self, self._timer.start, self._timer.start, _TOOL_NODES)

    def close(self) -> None:
        """Watches nothing any more."""
        self.setParameterNode(None)
        self._timer.stop()
        # PythonQt would keep this object alive by the connection.
        self._timer.disconnect("timeout()", self._tellNow)

    def _tellNow(self) -> None:
        if self._node is not None and not slicer.mrmlScene.IsClosing():
            self._onSettled()
