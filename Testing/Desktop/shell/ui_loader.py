"""Loads ``.ui`` files whose custom widgets are those of ctk and Slicer."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from PySide6 import QtCore, QtUiTools, QtWidgets

from . import api, pythonqt

#: Classes that .ui files may name; filled by the package.
custom_widgets: dict[str, type] = {}

_NUMBERS = {"number": int, "double": float, "float": float, "uint": int, "longlong": int}


class UiLoader(QtUiTools.QUiLoader):
    """QUiLoader as Slicer has it: with the custom widgets and connections of scenes."""

    def createWidget(self, className, parent=None, name=""):
        cls = custom_widgets.get(className)
        if cls is None:
            if className.startswith(("ctk", "qMRML", "qSlicer")):
                raise RuntimeError(f"The stand-in has no widget '{className}'")
            return super().createWidget(className, parent, name)
        widget = cls(parent) if parent is not None else cls()
        widget.setObjectName(name)
        self._made.append(widget)
        return widget

    def load(self, device, parent=None):
        """Loads from a QFile or a path."""
        if isinstance(device, QtCore.QIODevice):
            if not device.isOpen():
                device.open(QtCore.QIODevice.ReadOnly)
            content = bytes(device.readAll().data())
        else:
            content = Path(str(device)).read_bytes()
        self._made: list[QtWidgets.QWidget] = []
        tree = ElementTree.fromstring(content)
        scene_connections = _take_scene_connections(tree)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(tree))
        buffer.open(QtCore.QIODevice.ReadOnly)
        with pythonqt.loading():
            root = super().load(buffer, parent)
        if root is None:
            raise RuntimeError("The .ui file could not be read: " + self.errorString())
        _set_custom_properties(tree, root)
        _connect_scenes(scene_connections, root)
        return root


def _named(root: QtWidgets.QWidget, name: str):
    return root if root.objectName == name else root.findChild(QtCore.QObject, name)


def _value(element: ElementTree.Element):
    content = element[0]
    text = content.text or ""
    if content.tag == "bool":
        return text == "true"
    if content.tag in _NUMBERS:
        return _NUMBERS[content.tag](text)
    if content.tag == "stringlist":
        return [item.text or "" for item in content]
    if content.tag in ("string", "cstring"):
        return text
    return None


def _set_custom_properties(tree: ElementTree.Element, root: QtWidgets.QWidget) -> None:
    """Properties that QUiLoader cannot know: those of classes written in Python."""
    common = api.own_members("qt.QWidget").keys() | api.own_members("qt.QObject").keys()
    for element in tree.iter("widget"):
        if element.get("class") not in custom_widgets:
            continue
        widget = _named(root, element.get("name"))
        for property_ in element.findall("property"):
            name = property_.get("name")
            value = _value(property_) if len(property_) else None
            if value is None or name in common or property_.get("stdset") == "0":
                continue
            descriptor = getattr(type(widget), name, None)
            if not isinstance(descriptor, property):
                raise RuntimeError(f"'{element.get('class')}' has no property '{name}'")
            setattr(widget, name, value)


def _take_scene_connections(tree: ElementTree.Element) -> list[ElementTree.Element]:
    """Removes and returns the connections whose arguments Qt here does not know."""
    taken = []
    for group in tree.iter("connections"):
        for connection in list(group):
            if "vtkMRML" in connection.findtext("signal") + connection.findtext("slot"):
                group.remove(connection)
                taken.append(connection)
    return taken


def _connect_scenes(connections: list[ElementTree.Element], root: QtWidgets.QWidget) -> None:
    for connection in connections:
        sender = _named(root, connection.findtext("sender"))
        receiver = _named(root, connection.findtext("receiver"))
        sender.connect(connection.findtext("signal"), receiver, connection.findtext("slot"))
