"""The main window: the module panel at the left, the views at the right."""

from __future__ import annotations

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from .widgets_collapsible import ctkCollapsibleButton

PANEL_WIDTH = 480


class ModuleSelector(QtWidgets.QWidget):
    """The list of modules in the tool bar."""

    moduleSelected = QtCore.Signal(str)
    _signatures = {"moduleSelected": {"QString": ""}}

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._selected = ""
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(6, 2, 6, 2)
        row.addWidget(QtWidgets.QLabel("Modules:", self))
        self._combo = QtWidgets.QComboBox(self)
        self._combo.setMinimumWidth(220)
        row.addWidget(self._combo)
        self._combo.textActivated.connect(self._on_text)

    def _on_text(self, text: str) -> None:
        self.selectModule(self._combo.itemData(self._combo.findText(text)))

    def selectModule(self, name: str) -> None:
        self.refresh()
        if name in slicer.app.moduleManager().modulesNames() and name != self._selected:
            self._selected = name
            self._combo.setCurrentIndex(self._combo.findData(name))
            self.moduleSelected.emit(name)

    def refresh(self) -> None:
        """Lists the modules that are loaded now."""
        self._combo.blockSignals(True)
        self._combo.clear()
        manager = slicer.app.moduleManager()
        for name in manager.modulesNames():
            module = manager.module(name)
            self._combo.addItem(module.icon, module.title or name, name)
        self._combo.setCurrentIndex(self._combo.findData(self._selected))
        self._combo.blockSignals(False)

    selectedModule = property(lambda self: self._selected)


class MainWindow(QtWidgets.QMainWindow):
    """Stands for qSlicerMainWindow."""

    def __init__(self, layout_manager) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.setWindowTitle("3D Slicer 5.13.0")
        self._selector = ModuleSelector()
        self._selector.moduleSelected.connect(self._show_module)
        bar = self.addToolBar("Modules")
        bar.setMovable(False)
        bar.addWidget(self._selector)
        self._help = ctkCollapsibleButton("Help && Acknowledgement")
        self._help_text = QtWidgets.QLabel()
        self._help_text.setWordWrap(True)
        QtWidgets.QVBoxLayout(self._help).addWidget(self._help_text)
        self._help.collapsed = True
        self._scroll = QtWidgets.QScrollArea()
        self._scroll.setObjectName("ScrollArea")
        self._scroll.setFrameShape(QtWidgets.QFrame.NoFrame)
        self._scroll.setWidgetResizable(True)
        self._scroll.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarAlwaysOff)
        self._inside = QtWidgets.QWidget()
        self._box = QtWidgets.QVBoxLayout(self._inside)
        self._box.setContentsMargins(4, 4, 4, 4)
        self._box.addWidget(self._help)
        self._scroll.setWidget(self._inside)
        panel = QtWidgets.QWidget()
        panel.setObjectName("ModulePanel")
        column = QtWidgets.QVBoxLayout(panel)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._scroll)
        dock = QtWidgets.QDockWidget()
        dock.setObjectName("PanelDockWidget")
        dock.setTitleBarWidget(QtWidgets.QWidget())
        dock.setFeatures(QtWidgets.QDockWidget.NoDockWidgetFeatures)
        dock.setWidget(panel)
        panel.setMinimumWidth(PANEL_WIDTH)
        self.addDockWidget(QtCore.Qt.LeftDockWidgetArea, dock)
        self.setCentralWidget(layout_manager.viewport())
        self.resizeDocks([dock], [PANEL_WIDTH], QtCore.Qt.Horizontal)
        self.statusBar().setSizeGripEnabled(False)
        self._current = None
        self.resize(1500, 950)

    def moduleSelector(self) -> ModuleSelector:
        return self._selector

    def pythonConsole(self):
        return None

    def errorLogDockWidget(self):
        return None

    def _show_module(self, name: str) -> None:
        module = slicer.app.moduleManager().module(name)
        if self._current is not None:
            self._leave(self._current)
        widget = module.widgetRepresentation()
        self._help_text.setText(f"{module.helpText}\n{module.acknowledgementText}".strip())
        self._box.addWidget(widget)
        self._box.setStretchFactor(widget, 1)
        widget.layout().setContentsMargins(0, 0, 0, 0)
        widget.show()
        self._current = widget
        if hasattr(widget, "enter"):
            widget.enter()

    def _leave(self, widget) -> None:
        if hasattr(widget, "exit"):
            widget.exit()
        self._box.removeWidget(widget)
        widget.setParent(None)

    def closeEvent(self, event) -> None:
        if self._current is not None:
            self._leave(self._current)
            self._current = None
        super().closeEvent(event)


def dress(application: QtWidgets.QApplication) -> None:
    """A light look with the proportions of Slicer's default style."""
    application.setStyle("Fusion")
    font = QtGui.QFont("DejaVu Sans")
    font.setPointSizeF(9)
    application.setFont(font)
    roles = QtGui.QPalette
    palette = roles()
    for role, color in (
        (roles.Window, "#efefef"),
        (roles.Base, "#ffffff"),
        (roles.AlternateBase, "#f5f5f5"),
        (roles.Button, "#ededed"),
        (roles.Text, "#1e1e1e"),
        (roles.WindowText, "#1e1e1e"),
        (roles.ButtonText, "#1e1e1e"),
        (roles.ToolTipBase, "#ffffdc"),
        (roles.ToolTipText, "#1e1e1e"),
        (roles.Highlight, "#308cc6"),
        (roles.HighlightedText, "#ffffff"),
        (roles.Link, "#0057ae"),
        (roles.PlaceholderText, "#7f7f7f"),
    ):
        palette.setColor(role, QtGui.QColor(color))
    for role in (roles.Text, roles.WindowText, roles.ButtonText):
        palette.setColor(roles.Disabled, role, QtGui.QColor("#9a9a9a"))
    application.setPalette(palette)
