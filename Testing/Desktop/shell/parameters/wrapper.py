"""``@parameterNodeWrapper``: attributes with types over a vtkMRMLScriptedModuleNode."""

from __future__ import annotations

import typing
import weakref

import qt
import vtk

from .annotations import Default, findFirstAnnotation, splitAnnotations, unannotatedType
from .connectors import GuiConnector, createGuiConnector
from .pack import isParameterPack
from .serializers import createSerializerFromAnnotatedType, modifying

SlicerParameterNamePropertyName = "SlicerParameterName"

_RESERVED = [
    "allParameters",
    "default",
    "isCached",
    "dataType",
    "getValue",
    "setValue",
    "connectGui",
    "connectParametersToGui",
    "disconnectGui",
    "StartModify",
    "EndModify",
    "AddObserver",
    "RemoveObserver",
    "Modified",
]


class ParameterInfo:
    """What is known of a parameter before there is a node."""

    def __init__(self, basename: str, serializer, default: Default, unalteredType) -> None:
        self.basename, self.serializer = basename, serializer
        self.default, self.unalteredType = default, unalteredType


class _Value:
    """One parameter of one node, kept until the node is modified where its type allows."""

    def __init__(self, info: ParameterInfo, name: str, parameterNode) -> None:
        self.info, self.name, self.node = info, name, parameterNode
        self.cached = info.serializer.supportsCaching()
        self._busy = False
        if not info.serializer.isIn(parameterNode, name):
            info.serializer.write(parameterNode, name, info.default.value)
        self._kept = self._fetch()
        if self.cached:
            this = weakref.ref(self)
            self._tag = parameterNode.AddObserver(
                vtk.vtkCommand.ModifiedEvent, lambda *_: this() and this()._on_modified()
            )

    def __del__(self) -> None:
        if getattr(self, "_tag", None) is not None:
            self.node.RemoveObserver(self._tag)

    def _on_modified(self) -> None:
        if not self._busy:
            self._kept = self._fetch()

    def _fetch(self):
        serializer = self.info.serializer
        if not serializer.isIn(self.node, self.name):
            serializer.write(self.node, self.name, self.info.default.value)
        return serializer.read(self.node, self.name)

    def read(self):
        return self._kept if self.cached else self._fetch()

    def write(self, value) -> None:
        self._busy = True
        try:
            with modifying(self.node):
                self.info.serializer.write(self.node, self.name, value)
                self._kept = self._fetch()
        finally:
            self._busy = False


class _Wrapper:
    """The methods that the decorator adds."""

    def __init__(self, parameterNode, prefix: str | None = None) -> None:
        self.parameterNode = parameterNode
        self._guis: dict[int, dict[str, GuiConnector]] = {}
        self._gui_observers: dict[int, int] = {}
        self._next_tag = 0
        self._updating_gui = False
        self._values = {
            name: _Value(info, f"{prefix or ''}{name}", parameterNode)
            for name, info in self.allParameters.items()
        }

    def _split(self, name: str) -> tuple[str, str]:
        return self._check(name)

    @classmethod
    def _check(cls, name: str) -> tuple[str, str]:
        top, _, rest = name.partition(".")
        if top not in cls.allParameters:
            raise ValueError(
                f"Cannot find a param with the given name: {top}; "
                f"there are: {', '.join(cls.allParameters)}"
            )
        if rest:
            inner = unannotatedType(cls.allParameters[top].unalteredType)
            if not isParameterPack(inner):
                raise ValueError(f"{inner} is not a parameter pack but expects to have '{rest}'")
            inner.dataType(rest)
        return top, rest

    def default(self, paramName: str) -> Default:
        return self.allParameters[self._split(paramName)[0]].default

    def isCached(self, paramName: str) -> bool:
        return self._values[self._split(paramName)[0]].cached

    @classmethod
    def dataType(cls, membername: str):
        top, rest = cls._check(membername)
        hint = cls.allParameters[top].unalteredType
        return unannotatedType(hint).dataType(rest) if rest else hint

    def getValue(self, name: str):
        top, rest = self._split(name)
        value = self._values[top].read()
        return value.getValue(rest) if rest else value

    def setValue(self, name: str, value) -> None:
        top, rest = self._split(name)
        if rest:
            self._values[top].read().setValue(rest, value)
        else:
            self._values[top].write(value)

    def connectGui(self, gui) -> int:
        """Binds the widgets that have the dynamic property SlicerParameterName."""
        if getattr(gui, "isWidgetType", lambda: False)():
            widgets = gui.findChildren(qt.QWidget)
        else:
            widgets = list(vars(gui).values())
        mapping = {}
        for widget in widgets:
            name = widget.property(SlicerParameterNamePropertyName)
            if name:
                mapping[name] = widget
        return self.connectParametersToGui(mapping)

    def connectParametersToGui(self, mapping: dict) -> int:
        for name in mapping:
            self._split(name)
        connectors = {
            name: item
            if isinstance(item, GuiConnector)
            else createGuiConnector(item, self.dataType(name))
            for name, item in mapping.items()
        }
        tag, self._next_tag = self._next_tag, self._next_tag + 1
        self._guis[tag] = connectors
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.onChanged(self._on_gui_changed(name, connector))
        self._gui_observers[tag] = self.AddObserver(
            vtk.vtkCommand.ModifiedEvent, lambda *_: self._update_gui()
        )
        return tag

    def disconnectGui(self, guiTag: int) -> None:
        for connector in self._guis.pop(guiTag, {}).values():
            connector.onChanged(None)
        if guiTag in self._gui_observers:
            self.RemoveObserver(self._gui_observers.pop(guiTag))

    def _on_gui_changed(self, name: str, connector: GuiConnector):
        def callback() -> None:
            if not self._updating_gui:
                with modifying(self):
                    self.setValue(name, connector.read())

        return callback

    def _update_gui(self) -> None:
        if self._updating_gui:
            return
        self._updating_gui = True
        try:
            with modifying(self):
                for connectors in self._guis.values():
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            self._updating_gui = False

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, wasModified):
        return self.parameterNode.EndModify(wasModified)

    def AddObserver(self, event, callback, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()


def _attribute(name: str) -> property:
    return property(
        lambda self: self._values[name].read(),
        lambda self, value: self._values[name].write(value),
    )


def parameterNodeWrapper(classtype=None):
    """Class decorator; the members of the class are declared as ``name: type``."""
    if classtype is None:
        return parameterNodeWrapper
    parameters: dict[str, ParameterInfo] = {}
    for name, hint in typing.get_type_hints(classtype, include_extras=True).items():
        serializer = createSerializerFromAnnotatedType(hint)
        default = findFirstAnnotation(splitAnnotations(hint)[1], Default)
        if hasattr(classtype, name):
            default = Default(getattr(classtype, name))
        default = default or Default(serializer.default())
        parameters[name] = ParameterInfo(name, serializer, default, hint)
        setattr(classtype, name, _attribute(name))
    for name in _RESERVED:
        if hasattr(classtype, name):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
    for name, member in vars(_Wrapper).items():
        if name not in ("__dict__", "__weakref__", "__module__", "__doc__", "__qualname__"):
            setattr(classtype, name, member)
    classtype.allParameters = parameters
    classtype._is_parameter_node_wrapper = True
    return classtype


def isParameterNodeWrapper(classOrObj) -> bool:
    return getattr(classOrObj, "_is_parameter_node_wrapper", False)


def findChildWidgetForParameter(widget, parameter: str):
    """The child widget bound to a parameter by its dynamic property, or None."""
    for child in widget.findChildren(qt.QWidget):
        if child.property(SlicerParameterNamePropertyName) == parameter:
            return child
    return None
