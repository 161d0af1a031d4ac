"""Ties a widget to a value of a parameter node, in both directions."""

from __future__ import annotations

import enum
import typing

import ctk
import qt
import slicer

from . import annotations as marks
from .annotations import findFirstAnnotation, splitAnnotations, unannotatedType
from .serializers import _PATHS


class GuiConnector:
    """Base: a widget with one attribute that holds the value and one signal that tells of it."""

    attribute = ""
    signal = ""

    @classmethod
    def canRepresent(cls, widget, datatype) -> bool:
        raise NotImplementedError

    @classmethod
    def create(cls, widget, datatype):
        return cls(widget, datatype) if cls.canRepresent(widget, datatype) else None

    def __init__(self, widget=None, datatype=None) -> None:
        self._callback = None
        self._widget, self._datatype = widget, datatype

    def onChanged(self, callback) -> None:
        self._callback = callback
        if callback is None:
            self._disconnect()
        else:
            self._connect()

    def changed(self, *_) -> None:
        if self._callback:
            self._callback()

    def _connect(self) -> None:
        getattr(self._widget, self.signal).connect(self.changed)

    def _disconnect(self) -> None:
        getattr(self._widget, self.signal).disconnect(self.changed)

    def widget(self):
        return self._widget

    def read(self):
        return getattr(self._widget, self.attribute)

    def write(self, value) -> None:
        setattr(self._widget, self.attribute, value)

    def _find(self, kind):
        return findFirstAnnotation(splitAnnotations(self._datatype)[1], kind)


_connectors: list[type] = []


def parameterNodeGuiConnector(classtype=None):
    """Class decorator that registers a connector."""
    if classtype is None:
        return parameterNodeGuiConnector
    _connectors.append(classtype)
    return classtype


def createGuiConnector(widget, datatype) -> GuiConnector:
    """The first registered connector that fits; RuntimeError if none does."""
    for connector in _connectors:
        if connector.canRepresent(widget, datatype):
            return connector.create(widget, datatype)
    raise RuntimeError(
        f"Unable to create GUI connector from datatype '{datatype}' to widget type '{type(widget)}'"
    )


@parameterNodeGuiConnector
class QCheckBoxToBoolConnector(GuiConnector):
    attribute, signal = "checked", "stateChanged"

    @classmethod
    def canRepresent(cls, widget, datatype) -> bool:
        return unannotatedType(datatype) is bool and type(widget) in (qt.QCheckBox, ctk.ctkCheckBox)


@parameterNodeGuiConnector
class QCheckablePushButtonToBoolConnector(GuiConnector):
    attribute, signal = "checked", "toggled"

    @classmethod
    def canRepresent(cls, widget, datatype) -> bool:
        kinds = (qt.QPushButton, ctk.ctkCheckablePushButton)
        return unannotatedType(datatype) is bool and type(widget) in kinds

    def __init__(self, widget, datatype) -> None:
        super().__init__(widget, datatype)
        widget.checkable = True


class _NumberConnector(GuiConnector):
    attribute, signal = "value", "valueChanged"
    unlimited: tuple = (0, 0)
    needs_range: tuple = ()

    def __init__(self, widget, datatype) -> None:
        super().__init__(widget, datatype)
        self._apply_step()
        within = self._find(marks.WithinRange)
        low, high = self._find(marks.Minimum), self._find(marks.Maximum)
        if within is None and type(widget) in self.needs_range and not (low and high):
            raise RuntimeError(f"{type(widget).__name__} needs a type with a range")
        bounds = (
            (within.minimum, within.maximum)
            if within
            else (
                low.minimum if low else self.unlimited[0],
                high.maximum if high else self.unlimited[1],
            )
        )
        widget.minimum, widget.maximum = bounds

    def _apply_step(self) -> None:
        step = self._find(marks.SingleStep)
        if step is not None:
            self._widget.singleStep = step.value


@parameterNodeGuiConnector
class QSliderOrSpinBoxToIntConnector(_NumberConnector):
    unlimited = (-(2**31), 2**31 - 1)
    needs_range = (qt.QSlider,)

    @classmethod
    def canRepresent(cls, widget, datatype) -> bool:
        return unannotatedType(datatype) is int and type(widget) in (qt.QSlider, qt.QSpinBox)


@parameterNodeGuiConnector
class QDoubleSpinBoxCtkSliderWidgetToFloatIntConnector(_NumberConnector):
    unlimited = (float("-inf"), float("inf"))
    needs_range = (ctk.ctkSliderWidget, slicer.qMRMLSliderWidget)

    @classmethod
    def canRepresent(cls, widget, datatype) -> bool:
        kinds = (
            qt.QDoubleSpinBox,
            ctk.ctkSliderWidget,
            ctk.ctkDoubleSlider,
            ctk.ctkDoubleSpinBox,
            slicer.qMRMLSliderWidget,
            slicer.qMRMLSpinBox,
        )
        return unannotatedType(datatype) in (float, int) and type(widget) in kinds

    def _apply_step(self) -> None:
        self._integer = unannotatedType(self._datatype) is int
        decimals = marks.Decimals(0) if self._integer else self._find(marks.Decimals)
        if decimals is not None and not isinstance(self._widget, ctk.ctkDoubleSlider):
            self._widget.decimals = decimals.value
        super()._apply_step()

    def read(self):
        return int(super().read()) if self._integer else super().read()


@parameterNodeGuiConnector
class QComboBoxToStringableConnector(GuiConnector):
    signal = "currentIndexChanged"

    @classmethod
    def canRepresent(cls, widget, datatype) -> bool:
        is_combo = type(widget) in (qt.QComboBox, ctk.ctkComboBox)
        return is_combo and unannotatedType(datatype) in (int, float, str, bool)

    def __init__(self, widget, datatype) -> None:
        super().__init__(widget, datatype)
        choice = self._find(marks.Choice)
        if choice is None:
            raise RuntimeError("A combo box needs a type with the Choice annotation")
        self._choices = list(choice.choices)
        widget.clear()
        for item in self._choices:
            widget.addItem(str(item))

    def read(self):
        return self._choices[self._widget.currentIndex]

    def write(self, value) -> None:
        if value not in self._choices:
            raise ValueError(f"Unable to find value {value} in choices {self._choices}")
        self._widget.currentIndex = self._choices.index(value)


@parameterNodeGuiConnector
class QComboBoxToEnumConnector(QComboBoxToStringableConnector):
    @classmethod
    def canRepresent(cls, widget, datatype) -> bool:
        type_ = unannotatedType(datatype)
        is_enum = isinstance(type_, type) and issubclass(type_, enum.Enum)
        return is_enum and type(widget) in (qt.QComboBox, ctk.ctkComboBox)

    def __init__(self, widget, datatype) -> None:
        GuiConnector.__init__(self, widget, datatype)
        type_ = unannotatedType(datatype)
        self._choices = list(type_)
        label = getattr(type_, "label", lambda item: item.name)
        # The selection of the widget is kept when it is filled.
        kept = self._choices[max(widget.currentIndex, 0)]
        widget.clear()
        for item in self._choices:
            widget.addItem(label(item))
        self.write(kept)


@parameterNodeGuiConnector
class QLineEditToStrConnector(GuiConnector):
    attribute, signal = "text", "textChanged"

    @classmethod
    def canRepresent(cls, widget, datatype) -> bool:
        return type(widget) is qt.QLineEdit and unannotatedType(datatype) is str

    def write(self, value: str) -> None:
        if value != self._widget.text:  # keeps the cursor where it is
            self._widget.text = value


@parameterNodeGuiConnector
class QLabelToStrConnector(GuiConnector):
    attribute = "text"

    @classmethod
    def canRepresent(cls, widget, datatype) -> bool:
        return type(widget) is qt.QLabel and unannotatedType(datatype) is str

    def _connect(self) -> None:
        """A label has no signal."""

    def _disconnect(self) -> None:
        """A label has no signal."""


@parameterNodeGuiConnector
class QTextEditPlainTextToStrConnector(GuiConnector):
    signal = "textChanged"

    @classmethod
    def canRepresent(cls, widget, datatype) -> bool:
        return type(widget) is qt.QTextEdit and unannotatedType(datatype) is str

    def read(self) -> str:
        return self._widget.toPlainText()

    def write(self, value: str) -> None:
        self._widget.setPlainText(value)


@parameterNodeGuiConnector
class ctkPathLineEditToPathConnector(GuiConnector):
    attribute, signal = "currentPath", "currentPathChanged"

    @classmethod
    def canRepresent(cls, widget, datatype) -> bool:
        return type(widget) is ctk.ctkPathLineEdit and unannotatedType(datatype) in _PATHS

    def read(self):
        return unannotatedType(self._datatype)(super().read())

    def write(self, value) -> None:
        super().write(str(value))


@parameterNodeGuiConnector
class ctkDirectoryButtonToPathConnector(ctkPathLineEditToPathConnector):
    attribute, signal = "directory", "directoryChanged"

    @classmethod
    def canRepresent(cls, widget, datatype) -> bool:
        return type(widget) is ctk.ctkDirectoryButton and unannotatedType(datatype) in _PATHS


@parameterNodeGuiConnector
class qMRMLNodeComboBoxToNodeConnector(GuiConnector):
    signal = "currentNodeChanged"

    @classmethod
    def canRepresent(cls, widget, datatype) -> bool:
        return type(widget) is slicer.qMRMLNodeComboBox and isNodeOrUnionOfNodes(datatype)

    def __init__(self, widget, datatype) -> None:
        super().__init__(widget, datatype)
        widget.nodeTypes = getNodeTypes(datatype)

    def read(self):
        return self._widget.currentNode()

    def write(self, value) -> None:
        self._widget.setCurrentNode(value)


def _node_classes(datatype) -> list[type]:
    bare = unannotatedType(datatype)
    union = typing.get_args(bare) or (bare,)
    return [unannotatedType(part) for part in union]


def isNodeOrUnionOfNodes(datatype) -> bool:
    return all(
        isinstance(part, type) and (part is type(None) or issubclass(part, slicer.vtkMRMLNode))
        for part in _node_classes(datatype)
    )


def getNodeTypes(datatype) -> tuple[str, ...]:
    """Names of the node classes of a type, for a node combo box."""
    parts = [part for part in _node_classes(datatype) if part is not type(None)]
    return tuple(part().GetClassName() for part in parts)
