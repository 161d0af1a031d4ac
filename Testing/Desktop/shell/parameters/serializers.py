"""How values of each type are written into, and read from, a vtkMRMLScriptedModuleNode."""

from __future__ import annotations

import enum
import pathlib
import types
import typing
from collections.abc import MutableMapping, MutableSequence
from contextlib import contextmanager

import slicer

from .annotations import IsInstance, IsNone, NotNone, Validator, splitAnnotations

_PATHS = (
    pathlib.Path,
    pathlib.PosixPath,
    pathlib.WindowsPath,
    pathlib.PurePath,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
)


@contextmanager
def modifying(node):
    """One Modified event for all changes inside."""
    was = node.StartModify()
    try:
        yield
    finally:
        node.EndModify(was)


class Serializer:
    """Base: one value as one string parameter."""

    def __init__(self, type_: type) -> None:
        self.type = type_

    def default(self):
        return self.type()

    def text(self, value) -> str:
        return str(value)

    def value(self, text: str):
        return self.type(text)

    def validate(self, value) -> None:
        """Raises ValueError when the value is not allowed."""

    def isIn(self, parameterNode, name: str) -> bool:
        return parameterNode.HasParameter(name)

    def write(self, parameterNode, name: str, value) -> None:
        parameterNode.SetParameter(name, self.text(value))

    def read(self, parameterNode, name: str):
        return self.value(parameterNode.GetParameter(name))

    def remove(self, parameterNode, name: str) -> None:
        parameterNode.UnsetParameter(name)

    def supportsCaching(self) -> bool:
        return True


class ValidatedSerializer(Serializer):
    """Another serializer with checks before each writing."""

    def __init__(self, serializer: Serializer, validators: list[Validator]) -> None:
        if isinstance(serializer, ValidatedSerializer):
            validators = [*serializer.validators, *validators]
            serializer = serializer.serializer
        self.serializer, self.validators = serializer, list(validators)
        for name in ("default", "isIn", "read", "remove", "supportsCaching"):
            setattr(self, name, getattr(serializer, name))

    def validate(self, value) -> None:
        for validator in self.validators:
            validator.validate(value)

    def write(self, parameterNode, name: str, value) -> None:
        self.validate(value)
        self.serializer.write(parameterNode, name, value)


class BoolSerializer(Serializer):
    def text(self, value) -> str:
        return "True" if value else "False"

    def value(self, text: str) -> bool:
        return text == "True"


class EnumSerializer(Serializer):
    """By name; the first member is the default."""

    def default(self):
        return next(iter(self.type))

    def text(self, value) -> str:
        return value.name

    def value(self, text: str):
        try:
            return self.type[text]
        except KeyError as error:
            raise ValueError(f"'{text}' is not a name of {self.type!r}") from error


class NodeSerializer(Serializer):
    """A node reference whose role is the name; an empty parameter tells that it was set."""

    def default(self):
        return None

    def write(self, parameterNode, name: str, value) -> None:
        parameterNode.SetParameter(name, "")
        parameterNode.SetNodeReferenceID(name, None if value is None else value.GetID())

    def read(self, parameterNode, name: str):
        return parameterNode.GetNodeReference(name)

    def remove(self, parameterNode, name: str) -> None:
        parameterNode.UnsetParameter(name)
        parameterNode.RemoveNodeReferenceIDs(name)


class NoneSerializer(Serializer):
    def default(self):
        return None

    def text(self, value) -> str:
        return "True"

    def value(self, text: str) -> None:
        return None


class UnionSerializer(Serializer):
    """Optional and other unions: the number of the alternative is part of the name."""

    def __init__(self, alternatives: list[tuple[type, ValidatedSerializer]]) -> None:
        self.alternatives = alternatives

    def default(self):
        if len(self.alternatives) == 2 and self.alternatives[1][0] is type(None):
            return None
        return self.alternatives[0][1].default()

    def _best(self, value):
        failure: Exception = TypeError(f"Unable to write '{value!r}' of type '{type(value)}'")
        for index, (type_, serializer) in enumerate(self.alternatives):
            if not _may_hold(type_, value):
                continue
            try:
                serializer.validate(value)
            except (TypeError, ValueError) as error:
                failure = error
            else:
                return index, serializer
        raise failure

    def isIn(self, parameterNode, name: str) -> bool:
        return any(
            s.isIn(parameterNode, f"{name}.{i}") for i, (_, s) in enumerate(self.alternatives)
        )

    def write(self, parameterNode, name: str, value) -> None:
        index, serializer = self._best(value)
        with modifying(parameterNode):
            self.remove(parameterNode, name)
            serializer.write(parameterNode, f"{name}.{index}", value)

    def read(self, parameterNode, name: str):
        for index, (_, serializer) in enumerate(self.alternatives):
            if serializer.isIn(parameterNode, f"{name}.{index}"):
                return serializer.read(parameterNode, f"{name}.{index}")
        raise KeyError(f"Unable to find value for name: {name}")

    def remove(self, parameterNode, name: str) -> None:
        with modifying(parameterNode):
            for index, (_, serializer) in enumerate(self.alternatives):
                serializer.remove(parameterNode, f"{name}.{index}")

    def supportsCaching(self) -> bool:
        return all(s.supportsCaching() for _, s in self.alternatives)


def _may_hold(type_, value) -> bool:
    if typing.get_origin(type_) is not None:
        return isinstance(value, typing.get_origin(type_))
    if issubclass(type_, slicer.vtkMRMLNode):
        return isinstance(value, slicer.vtkMRMLNode)
    return type(value) is type_ or (type_ not in (int, float, bool) and isinstance(value, type_))


class TupleSerializer(Serializer):
    def __init__(self, elements: list[Serializer]) -> None:
        self.elements = elements

    def default(self):
        return tuple(s.default() for s in self.elements)

    def isIn(self, parameterNode, name: str) -> bool:
        return self.elements[0].isIn(parameterNode, f"{name}.0")

    def write(self, parameterNode, name: str, value) -> None:
        with modifying(parameterNode):
            for index, (item, serializer) in enumerate(zip(value, self.elements, strict=True)):
                serializer.write(parameterNode, f"{name}.{index}", item)

    def read(self, parameterNode, name: str) -> tuple:
        return tuple(s.read(parameterNode, f"{name}.{i}") for i, s in enumerate(self.elements))

    def remove(self, parameterNode, name: str) -> None:
        for index, serializer in enumerate(self.elements):
            serializer.remove(parameterNode, f"{name}.{index}")

    def supportsCaching(self) -> bool:
        return all(s.supportsCaching() for s in self.elements)


class ListSerializer(Serializer):
    """Elements under ``name.0`` and so on, their number under ``name.len``."""

    def __init__(self, element: Serializer) -> None:
        self.element = element

    def default(self):
        return []

    def _length(self, parameterNode, name: str) -> int:
        return int(parameterNode.GetParameter(f"{name}.len") or 0)

    def isIn(self, parameterNode, name: str) -> bool:
        return parameterNode.HasParameter(f"{name}.len")

    def write(self, parameterNode, name: str, value) -> None:
        value = list(value)
        for item in value:
            self.element.validate(item)
        with modifying(parameterNode):
            old = self._length(parameterNode, name)
            for index, item in enumerate(value):
                self.element.write(parameterNode, f"{name}.{index}", item)
            parameterNode.SetParameter(f"{name}.len", str(len(value)))
            for index in range(len(value), old):
                self.element.remove(parameterNode, f"{name}.{index}")

    def items(self, parameterNode, name: str) -> list:
        count = self._length(parameterNode, name)
        return [self.element.read(parameterNode, f"{name}.{index}") for index in range(count)]

    def read(self, parameterNode, name: str):
        return ObservedList(self, parameterNode, name, self.items(parameterNode, name))

    def remove(self, parameterNode, name: str) -> None:
        with modifying(parameterNode):
            for index in range(self._length(parameterNode, name)):
                self.element.remove(parameterNode, f"{name}.{index}")
            parameterNode.UnsetParameter(f"{name}.len")

    def supportsCaching(self) -> bool:
        return self.element.supportsCaching()


class DictSerializer(ListSerializer):
    """A list of pairs, which keeps the order."""

    def default(self):
        return {}

    def write(self, parameterNode, name: str, value) -> None:
        super().write(parameterNode, name, value.items())

    def read(self, parameterNode, name: str):
        return ObservedDict(self, parameterNode, name, dict(self.items(parameterNode, name)))


class _Observed:
    """A container that writes itself into the node whenever it changes."""

    def __init__(self, serializer, parameterNode, name: str, content) -> None:
        self._serializer, self._parameterNode, self._name = serializer, parameterNode, name
        self._content = content

    def _change(self, change) -> None:
        changed = type(self._content)(self._content)
        change(changed)
        self._serializer.write(self._parameterNode, self._name, changed)
        self._content = self._serializer.read(self._parameterNode, self._name)._content

    def __len__(self) -> int:
        return len(self._content)

    def __getitem__(self, key):
        return self._content[key]

    def __setitem__(self, key, value) -> None:
        self._change(lambda content: content.__setitem__(key, value))

    def __delitem__(self, key) -> None:
        self._change(lambda content: content.__delitem__(key))

    def __eq__(self, other) -> bool:
        return self._content == (other._content if isinstance(other, _Observed) else other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._content})"


class ObservedList(_Observed, MutableSequence):
    def insert(self, index, value) -> None:
        self._change(lambda content: content.insert(index, value))


class ObservedDict(_Observed, MutableMapping):
    def __iter__(self):
        return iter(self._content)


registered: list[type] = []


def parameterNodeSerializer(classtype=None):
    """Registers a module's own serializer class (``canSerialize``, ``create``)."""
    if classtype is None:
        return parameterNodeSerializer
    registered.append(classtype)
    return classtype


def createSerializerFromAnnotatedType(annotatedType):
    """The serializer of a type such as ``list[Annotated[int, Minimum(0)]]``."""
    type_, annotations = splitAnnotations(annotatedType)
    validators = [a for a in annotations if isinstance(a, Validator)]
    return ValidatedSerializer(_create(type_), validators)


def _create(type_) -> Serializer:
    for factory in registered:
        if factory.canSerialize(type_):
            return factory.create(type_)
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    make = createSerializerFromAnnotatedType
    if origin is typing.Union or isinstance(type_, types.UnionType):
        return UnionSerializer([(splitAnnotations(a)[0], make(a)) for a in arguments])
    if origin is list:
        return ListSerializer(make(arguments[0]))
    if origin is tuple:
        return TupleSerializer([make(argument) for argument in arguments])
    if origin is dict:
        return DictSerializer(TupleSerializer([make(argument) for argument in arguments]))
    if not isinstance(type_, type):
        raise Exception(f"Unable to create serializer for type: {type_}")
    return _create_simple(type_)


def _create_simple(type_: type) -> Serializer:
    if type_ is type(None):
        return ValidatedSerializer(NoneSerializer(type_), [IsNone()])
    if type_ is bool:
        return ValidatedSerializer(BoolSerializer(bool), [NotNone(), IsInstance(bool)])
    if type_ in (int, float):
        numbers = (int, float) if type_ is float else int
        return ValidatedSerializer(Serializer(type_), [NotNone(), IsInstance(numbers)])
    if type_ is str or type_ in _PATHS:
        return ValidatedSerializer(Serializer(type_), [NotNone(), IsInstance(type_)])
    if issubclass(type_, enum.Enum):
        return ValidatedSerializer(EnumSerializer(type_), [IsInstance(type_)])
    if issubclass(type_, slicer.vtkMRMLNode):
        return ValidatedSerializer(NodeSerializer(type_), [IsInstance(type_)])
    raise Exception(f"Unable to create serializer for type: {type_}")
