"""``slicer.app.layoutManager()``: the slice views and their arrangement."""

from __future__ import annotations

import slicer
from PySide6 import QtCore, QtWidgets
from shiboken6 import Shiboken

from .scene import SLICE_VIEWS
from .slice_widget import qMRMLSliceWidget


class LayoutManager(QtCore.QObject):
    """The part of qSlicerLayoutManager that concerns slices; there are no 3D views."""

    _signatures = {
        "layoutChanged": {"int": "", "": ""},
        "selectModule": {"QString": ""},
        "nodeAboutToBeEdited": {"vtkMRMLNode*": ""},
    }
    layoutChanged = QtCore.Signal(int)
    selectModule = QtCore.Signal(str)
    nodeAboutToBeEdited = QtCore.Signal(object)
    threeDViewCount = plotViewCount = tableViewCount = 0

    def __init__(self, scene) -> None:
        super().__init__()
        self._scene = scene
        self._viewport = QtWidgets.QWidget()
        self._grid = QtWidgets.QGridLayout(self._viewport)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(2)
        self._widgets: dict[str, qMRMLSliceWidget] = {}
        self._logics = slicer.app.applicationLogic().GetSliceLogics()
        if self._logics is None:
            import vtk

            self._logics = vtk.vtkCollection()
            slicer.app.applicationLogic().SetSliceLogics(self._logics)
        for view in SLICE_VIEWS:
            widget = qMRMLSliceWidget(self._viewport)
            widget._create(scene, *view)
            self._widgets[view[0]] = widget
        self._layout_logic = slicer.vtkMRMLLayoutLogic()
        self._layout_logic.SetMRMLScene(scene)
        self._node = self._layout_logic.GetLayoutNode()
        self._node.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        self._node.AddObserver("ModifiedEvent", self._on_layout_node)
        self._arranged = None
        self._on_layout_node()

    def mrmlScene(self):
        return self._scene

    def viewport(self, name: str = ""):
        return self._viewport

    def sliceViewNames(self) -> tuple[str, ...]:
        return tuple(self._widgets)

    def sliceWidget(self, name: str):
        return self._widgets.get(name)

    def viewWidget(self, node_or_name):
        name = node_or_name if isinstance(node_or_name, str) else node_or_name.GetLayoutName()
        return self._widgets.get(name)

    def mrmlSliceLogics(self):
        return self._logics

    def mrmlViewLogics(self):
        import vtk

        return vtk.vtkCollection()

    def threeDWidget(self, number):
        return None

    plotWidget = tableWidget = threeDWidget

    def activeMRMLThreeDViewNode(self):
        return None

    activeThreeDRenderer = activeMRMLPlotViewNode = activeMRMLThreeDViewNode

    def layoutLogic(self):
        return self._layout_logic

    def mrmlColorLogic(self):
        return slicer.app.applicationLogic().GetColorLogic()

    def resetSliceViews(self) -> None:
        for widget in self._widgets.values():
            widget.sliceLogic().FitSliceToBackground()

    def resetThreeDViews(self) -> None:
        """There are none."""

    def pauseRender(self) -> None:
        slicer.app.pauseRender()

    def resumeRender(self) -> None:
        slicer.app.resumeRender()

    def setRenderPaused(self, pause: bool) -> None:
        slicer.app.setRenderPaused(pause)

    def _schedule_all(self) -> None:
        for widget in self._widgets.values():
            widget.sliceView().scheduleRender()

    # Arrangement

    def setLayout(self, layout: int) -> None:
        self._node.SetViewArrangement(int(layout))

    layout = property(lambda self: self._node.GetViewArrangement(), setLayout)

    def _on_layout_node(self, *_) -> None:
        arrangement = self._node.GetViewArrangement()
        if not Shiboken.isValid(self._viewport) or arrangement == self._arranged:
            return
        self._arranged = arrangement
        nodes = slicer.vtkMRMLLayoutNode
        single = {
            nodes.SlicerLayoutOneUpRedSliceView: ["Red"],
            nodes.SlicerLayoutOneUpYellowSliceView: ["Yellow"],
            nodes.SlicerLayoutOneUpGreenSliceView: ["Green"],
            nodes.SlicerLayoutSideBySideView: ["Red", "Yellow"],
        }.get(arrangement)
        for widget in self._widgets.values():
            self._grid.removeWidget(widget)
            widget.setVisible(single is None)
        for column, name in enumerate(single or []):
            self._grid.addWidget(self._widgets[name], 0, column)
            self._widgets[name].show()
        if single is None:
            self._grid.addWidget(self._widgets["Red"], 0, 0, 2, 1)
            self._grid.addWidget(self._widgets["Green"], 0, 1)
            self._grid.addWidget(self._widgets["Yellow"], 1, 1)
        wide = 3 if single is None else 2
        for column, stretch in ((0, wide), (1, 0 if single and len(single) == 1 else 2)):
            self._grid.setColumnStretch(column, stretch)
        self.layoutChanged.emit(arrangement)
