"""The modules ``qt`` and ``ctk``, and Slicer's own widgets."""

from __future__ import annotations

import sys
import types

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

from . import (
    api,
    chart,
    checkable_combo,
    dialogs,
    mrml_widgets,
    node_combo,
    pythonqt,
    ui_loader,
    widgets_collapsible,
    widgets_ctk,
    widgets_values,
)

_SOURCES = (QtCore, QtGui, QtWidgets, QtUiTools)


class _Module(types.ModuleType):
    """A module whose names are those that Slicer lists."""

    def __init__(self, name: str, listed: frozenset[str], content: dict) -> None:
        super().__init__(name)
        self.__dict__["_listed"] = listed
        self.__dict__.update(content)

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._listed:
            raise AttributeError(f"Slicer's module '{self.__name__}' has no '{name}'")
        raise AttributeError(f"'{self.__name__}.{name}' is not part of the stand-in")

    def __dir__(self):
        return sorted(name for name in self.__dict__ if not name.startswith("_"))


def _qt_content(listed: frozenset[str]) -> dict:
    content = {}
    for name in listed | {"QAction", "QShortcut"}:
        for source in _SOURCES:
            if hasattr(source, name):
                content[name] = getattr(source, name)
                break
    content["QUiLoader"] = ui_loader.UiLoader
    return content


def _classes_of(module, prefix: str) -> dict[str, type]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and name.startswith(prefix)
    }


def ctk_classes() -> dict[str, type]:
    found = {}
    for module in (widgets_ctk, widgets_collapsible, widgets_values, chart):
        found |= _classes_of(module, "ctk")
    return found


def slicer_classes() -> dict[str, type]:
    from . import sequence_widgets, slice_view, slice_widget

    found = {}
    modules = (node_combo, checkable_combo, mrml_widgets, slice_view, slice_widget)
    for module in (*modules, sequence_widgets):
        found |= _classes_of(module, "qMRML") | _classes_of(module, "qSlicer")
    return found


def install() -> None:
    """Puts ``qt`` and ``ctk`` where ``import`` finds them."""
    pythonqt.install()
    if "qt" in sys.modules and isinstance(sys.modules["qt"], _Module):
        return
    dialogs.install()
    listed = api.names("qt")
    sys.modules["qt"] = _Module("qt", listed, _qt_content(listed))
    sys.modules["ctk"] = _Module("ctk", api.names("ctk"), ctk_classes())
    ui_loader.custom_widgets.update(ctk_classes() | slicer_classes())
