"""Ways to look at a result in the slice views: before, after, flicker, checkerboard and others.

Before, after and flicker only arrange the volumes in the views. The composed pictures go into one
hidden color volume that is made anew each time and leaves the user's volumes and their display
untouched. It is saved with the scene, so that the scene shows the same again, also without DeepReg.
"""

from __future__ import annotations

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.frames import transform_between
from DeepRegLib.bridge.resample import array_through
from DeepRegLib.bridge.volumes import is_label_map
from DeepRegLib.bridge.vtk_arrays import ijk_to_ras_of, to_vtk_image
from DeepRegLib.pictures import compose

from .Layers import showLayers

VIEWS = ("before", "after", "flicker", "checkerboard", "difference", "redCyan")
_FLICKER_MS = 500
#: Composed volumes with more voxels are thinned out: they are for the eye.
_MAX_VOXELS = 16_000_000
_NODE_ATTRIBUTE = "DeepReg.Comparison"


class Comparison:
    """Shows one result in one of `VIEWS`.

    Args:
        fixed: Fixed volume.
        moving: Moving volume.
        transform: Result transform.
        moved: Moved volume on the fixed grid; resampled when needed if None.
        start: VTK transform, fixed to moving, that was there before the run.
    """

    def __init__(self, fixed, moving, transform, moved=None, start=None):
        self._fixed, self._moving, self._transform = fixed, moving, transform
        self._moved, self._start = moved, start
        self._blend = 0.5
        self._grays = {}
        self._timer = qt.QTimer()
        self._timer.setInterval(_FLICKER_MS)
        self._timer.connect("timeout()", self._flick)
        self._lit = False
        self.view = ""

    @property
    def complete(self) -> bool:
        """Whether all its nodes are still in the scene."""
        nodes = [self._fixed, self._moving, self._transform]
        nodes += [] if self._moved is None else [self._moved]
        return all(node.GetScene() is slicer.mrmlScene for node in nodes)

    @property
    def fixed(self):
        """The fixed volume."""
        return self._fixed

    def show(self, view: str) -> None:
        """Shows one of `VIEWS` in all slice views.

        Raises:
            ValueError: If there is no such view.
        """
        if view not in VIEWS:
            raise ValueError(_("There is no view '{view}'.").format(view=view))
        self._timer.stop()
        self.view = view
        if view in ("before", "after", "flicker"):
            self._arrange("before" if view == "before" else "after")
            if view == "flicker":
                self._timer.start()
        else:
            self._compose(view)

    def setBlend(self, weight: float) -> None:
        """Sets how much of the moving volume shows, from 0 to 1."""
        self._blend = float(weight)
        if self.view in ("before", "after"):
            self._arrange(self.view)

    def forgetPictures(self) -> None:
        """Takes changed voxels, window or level into account at the next `show`."""
        self._grays = {}

    def close(self) -> None:
        """Stops flickering and removes what it added; the views keep fixed and moved volume."""
        if self._timer is not None:
            self._timer.stop()
        node = _comparisonNode()
        if node is not None:
            if self.complete:
                self._arrange("after")
            _remove(node)
        self.view = ""

    def dispose(self) -> None:
        """Closes it for good; PythonQt would keep it alive by its timer's connection."""
        self.close()
        if self._timer is not None:
            self._timer.disconnect("timeout()", self._flick)
        self._timer, self._grays = None, {}

    def _arrange(self, when: str) -> None:
        foreground = self._moving if when == "before" else self._moved
        isComposed = foreground is None or (when == "before" and self._hasLeftItsPlace())
        if isComposed:
            self._put(compose.blend(self._gray("fixed"), self._gray(when), self._blend))
            return
        showLayers(background=self._fixed, foreground=foreground, foregroundOpacity=self._blend)

    def _hasLeftItsPlace(self) -> bool:
        """Whether the moving volume itself has been put under the result."""
        node = self._moving.GetParentTransformNode()
        while node is not None:
            if node is self._transform:
                return True
            node = node.GetParentTransformNode()
        return False

    def _flick(self) -> None:
        self._lit = not self._lit
        if self._moved is None:
            self._put(self._rgb(self._gray("after" if self._lit else "fixed")))
            return
        showLayers(foregroundOpacity=1.0 if self._lit else 0.0)

    def _compose(self, view: str) -> None:
        fixed, moved = self._gray("fixed"), self._gray("after")
        if view == "checkerboard":
            picture = compose.checkerboard(fixed, moved, self._grid().spacing_mm, tinted=True)
        elif view == "difference":
            picture = compose.difference(fixed, moved)
        else:
            picture = compose.red_cyan(fixed, moved)
        self._put(picture)

    def _put(self, picture) -> None:
        node = _comparisonNode() or _addComparisonNode()
        parent = self._fixed.GetParentTransformNode()
        with slicer.util.NodeModify(node):
            node.SetAndObserveImageData(to_vtk_image(picture))
            node.SetIJKToRASMatrix(ijk_to_ras_of(self._grid()))
            node.SetAndObserveTransformNodeID(None if parent is None else parent.GetID())
        showLayers(background=node, foreground=None)

    def _rgb(self, gray):
        return compose.blend(gray, gray, 0.5)

    def _gray(self, which: str):
        """Returns the gray values of ``fixed``, ``before`` or ``after`` on the fixed grid."""
        if which not in self._grays:
            self._grays[which] = self._resampled(which)
        return self._grays[which]

    def _resampled(self, which: str):
        grid = self._grid()
        if which == "fixed":
            volume, path = self._fixed, vtk.vtkTransform()
        elif which == "after" and self._moved is not None:
            volume, path = self._moved, transform_between(self._fixed, self._moved)
        elif which == "after":
            volume, path = self._moving, self._result()
        else:
            volume, path = self._moving, self._start or vtk.vtkTransform()
        low, high = volume.GetImageData().GetScalarRange()
        array = array_through(volume, path, grid, low)
        display = volume.GetDisplayNode()
        if display is None or is_label_map(volume):
            return compose.to_gray(array, max(high - low, 1e-6), (high + low) / 2)
        return compose.to_gray(array, display.GetWindow(), display.GetLevel())

    def _result(self):
        """Returns the result from the fixed to the moving volume's own coordinates."""
        general = vtk.vtkGeneralTransform()
        slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
            self._fixed.GetParentTransformNode(), self._transform, general
        )
        return general

    def _grid(self):
        grid = mrml.grid_of(self._fixed)
        if grid.size <= _MAX_VOXELS:
            return grid
        factor = (_MAX_VOXELS / grid.size) ** (1 / 3)
        return grid.resized([max(1, int(n * factor)) for n in grid.shape])


def isComparisonShown() -> bool:
    """Tells whether a slice view shows a composed picture."""
    node = _comparisonNode()
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return node is not None and any(
        composite.GetBackgroundVolumeID() == node.GetID() for composite in composites
    )


def _comparisonNode():
    for node in slicer.util.getNodesByClass("vtkMRMLVectorVolumeNode"):
        if node.GetAttribute(_NODE_ATTRIBUTE):
            return node
    return None


def _addComparisonNode():
    node = slicer.vtkMRMLVectorVolumeNode()
    node.SetName("DeepReg comparison")
    node.SetAttribute(_NODE_ATTRIBUTE, "1")
    node.SetHideFromEditors(True)
    slicer.mrmlScene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(255, 127.5)
    return node


def _remove(node) -> None:
    display, storage = node.GetDisplayNode(), node.GetStorageNode()
    slicer.mrmlScene.RemoveNode(node)
    for other in (display, storage):
        if other is not None:
            slicer.mrmlScene.RemoveNode(other)
