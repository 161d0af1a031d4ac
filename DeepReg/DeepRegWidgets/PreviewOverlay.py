"""The moving volume moving on screen while a registration runs, without touching the scene.

Each slice view gets a picture on top of what it shows: the fixed volume blended with the moving one
as the transform so far takes it. The pictures are actors of the views, not nodes, so that a
cancelled run leaves nothing behind and the scene is not even marked as modified.
"""

from __future__ import annotations

import math

import numpy as np
import qt
import slicer
import vtk

from DeepRegLib.bridge.frames import transform_between
from DeepRegLib.bridge.resample import array_through
from DeepRegLib.bridge.transforms import warp_as_vtk
from DeepRegLib.bridge.vtk_arrays import grid_from_ijk, to_vtk_image
from DeepRegLib.pictures.compose import blend, to_gray

#: Above other 2-D actors of a view.
_LAYER = 5
#: A picture of a view is computed with at most so many pixels, and enlarged.
_MOST_PIXELS = 60_000


class PreviewOverlay:
    """Shows transforms in the slice views until it is closed.

    Args:
        fixed: Fixed volume.
        moving: Moving volume.
    """

    def __init__(self, fixed, moving):
        self._fixed, self._moving = fixed, moving
        self._transform = None
        self._views = {}
        self._waiting = []
        self.shown = 0
        # One timer of its own: Slicer never deletes those of qt.QTimer.singleShot.
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(0)
        self._timer.connect("timeout()", self._drawNext)

    def show(self, linear, deformation=None, grid=None) -> None:
        """Shows p -> linear(p + deformation(p)), fixed to moving, RAS mm, in all slice views.

        Each view is drawn in a turn of the event loop of its own, so that none takes long.
        """
        self._transform = warp_as_vtk(linear, deformation, grid)
        manager = slicer.app.layoutManager()
        if manager is None:
            return
        for name in manager.sliceViewNames():
            if name not in self._views:
                self._views[name] = _View(manager.sliceWidget(name), self._pictureOf)
        self._waiting = list(self._views.values())
        self._timer.start()
        self.shown += 1

    def _drawNext(self) -> None:
        if self._waiting:
            self._waiting.pop(0).refresh()
        if self._waiting:
            self._timer.start()

    def close(self) -> None:
        """Takes the pictures away."""
        for view in self._views.values():
            view.close()
        self._timer.stop()
        self._views, self._waiting = {}, []
        self._transform = None

    def dispose(self) -> None:
        """Closes it for good; PythonQt would keep it and the volumes alive by the connection."""
        self.close()
        self._timer.disconnect("timeout()", self._drawNext)
        self._fixed = self._moving = None

    def _pictureOf(self, sliceNode):
        """Returns the picture (height, width, 3) of a slice view, its first row at the bottom."""
        width, height = sliceNode.GetDimensions()[:2]
        if width < 2 or height < 2 or self._transform is None:
            return None
        step = max(1, math.ceil(math.sqrt(width * height / _MOST_PIXELS)))
        full = grid_from_ijk((1, height, width), sliceNode.GetXYToRAS())
        grid = full.resized((1, math.ceil(height / step), math.ceil(width / step)))
        toFixed = transform_between(None, self._fixed)
        toMoving = vtk.vtkGeneralTransform()
        toMoving.PostMultiply()
        toMoving.Concatenate(toFixed)
        toMoving.Concatenate(self._transform)
        grays = [
            _gray(volume, array_through(volume, path, grid, _lowest(volume))[0])
            for volume, path in ((self._fixed, toFixed), (self._moving, toMoving))
        ]
        return _enlarged(blend(*grays), height, width)


class _View:
    """The picture on one slice view; follows pan, zoom and scrolling."""

    def __init__(self, sliceWidget, pictureOf):
        self._closed = False
        self._widget, self._pictureOf = sliceWidget, pictureOf
        self._node = sliceWidget.mrmlSliceNode()
        self._tag = self._node.AddObserver(vtk.vtkCommand.ModifiedEvent, self.refresh)
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(self._mapper)
        self._actor.SetLayerNumber(_LAYER)
        self._actor.SetVisibility(False)
        window = sliceWidget.sliceView().renderWindow()
        self._renderer = window.GetRenderers().GetItemAsObject(0)
        self._renderer.AddViewProp(self._actor)

    def refresh(self, caller=None, event=None) -> None:
        picture = None if self._closed else self._pictureOf(self._node)
        if picture is None:
            return
        self._mapper.SetInputData(to_vtk_image(np.ascontiguousarray(picture[None])))
        self._actor.SetVisibility(True)
        self._widget.sliceView().scheduleRender()

    def close(self) -> None:
        self._closed = True
        self._node.RemoveObserver(self._tag)
        self._renderer.RemoveViewProp(self._actor)
        self._widget.sliceView().scheduleRender()


def _enlarged(picture, height: int, width: int):
    """Returns a picture of exactly that size: neighbors among the pixels of a smaller one."""
    rows = np.minimum(np.arange(height) * picture.shape[0] // height, picture.shape[0] - 1)
    columns = np.minimum(np.arange(width) * picture.shape[1] // width, picture.shape[1] - 1)
    return picture[rows][:, columns]


def _gray(volume, array):
    """Shows values as the volume's display does."""
    display = volume.GetDisplayNode()
    if display is not None and display.IsA("vtkMRMLScalarVolumeDisplayNode"):
        return to_gray(array, display.GetWindow(), display.GetLevel())
    low, high = volume.GetImageData().GetScalarRange()
    return to_gray(array, max(high - low, 1e-6), (high + low) / 2)


def _lowest(volume) -> float:
    return float(volume.GetImageData().GetScalarRange()[0])
