"""``@parameterPack``: a group of parameters as one value."""

from __future__ import annotations

import typing

from .annotations import Default, findFirstAnnotation, splitAnnotations, unannotatedType
from .serializers import Serializer, createSerializerFromAnnotatedType, modifying, registered


def parameterPack(classtype=None):
    """Class decorator: annotated members become checked attributes with defaults."""
    if classtype is None:
        return parameterPack
    members = typing.get_type_hints(classtype, include_extras=True)
    if not members:
        raise ValueError("Unable to find any members in parameterPack")
    parameters = {}
    for name, hint in members.items():
        serializer = createSerializerFromAnnotatedType(hint)
        default = findFirstAnnotation(splitAnnotations(hint)[1], Default)
        if hasattr(classtype, name):
            default = Default(getattr(classtype, name))
        parameters[name] = (hint, serializer, default or Default(serializer.default()))
        setattr(classtype, name, _member(name, serializer))
    classtype.allParameters = parameters
    classtype._is_parameterPack = True
    for name, function in (
        ("__init__", _initialize),
        ("__eq__", _equal),
        ("__repr__", _text),
        ("getValue", _get_value),
        ("setValue", _set_value),
    ):
        if name not in classtype.__dict__:
            setattr(classtype, name, function)
    classtype.__hash__ = None
    classtype.dataType = classmethod(_data_type)
    return classtype


def isParameterPack(obj) -> bool:
    return getattr(obj, "_is_parameterPack", False)


def nestedParameterNames(parameterPackClassOrInstance) -> list[str]:
    """The dotted names of all values inside."""
    names = []
    for name, (hint, _, _) in parameterPackClassOrInstance.allParameters.items():
        inner = unannotatedType(hint)
        if isParameterPack(inner):
            names += [f"{name}.{deeper}" for deeper in nestedParameterNames(inner)]
        else:
            names.append(name)
    return names


def _member(name: str, serializer: Serializer) -> property:
    def write(self, value):
        serializer.validate(value)
        object.__setattr__(self, f"_{name}", value)
        if getattr(self, "_save", None):
            self._save()

    return property(lambda self: getattr(self, f"_{name}"), write)


def _initialize(self, *arguments, **named) -> None:
    names = list(self.allParameters)
    if len(arguments) > len(names) or set(named) - set(names):
        raise TypeError(f"Unexpected arguments of {type(self).__name__}: {arguments} {named}")
    given = dict(zip(names, arguments)) | named
    for name, (_, _, default) in self.allParameters.items():
        setattr(self, name, given.get(name, default.value))


def _equal(self, other) -> bool:
    return type(self) is type(other) and all(
        getattr(self, name) == getattr(other, name) for name in self.allParameters
    )


def _text(self) -> str:
    values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.allParameters)
    return f"{type(self).__name__}({values})"


def _get_value(self, membername: str):
    top, _, rest = membername.partition(".")
    if top not in self.allParameters:
        raise ValueError(f"{self} has no member '{top}'")
    value = getattr(self, top)
    return value.getValue(rest) if rest else value


def _set_value(self, membername: str, value) -> None:
    top, _, rest = membername.partition(".")
    if rest:
        _get_value(self, top).setValue(rest, value)
    else:
        _get_value(self, top)
        setattr(self, top, value)


def _data_type(cls, membername: str):
    top, _, rest = membername.partition(".")
    if top not in cls.allParameters:
        raise ValueError(f"{cls} has no member '{top}'")
    hint = cls.allParameters[top][0]
    return unannotatedType(hint).dataType(rest) if rest else hint


class ParameterPackSerializer(Serializer):
    """Each member under ``name.member``."""

    @staticmethod
    def canSerialize(type_) -> bool:
        return isParameterPack(type_)

    @staticmethod
    def create(type_):
        return ParameterPackSerializer(type_)

    def isIn(self, parameterNode, name: str) -> bool:
        return all(
            serializer.isIn(parameterNode, f"{name}.{member}")
            for member, (_, serializer, _) in self.type.allParameters.items()
        )

    def write(self, parameterNode, name: str, value) -> None:
        with modifying(parameterNode):
            for member, (_, serializer, _) in self.type.allParameters.items():
                serializer.write(parameterNode, f"{name}.{member}", getattr(value, member))

    def read(self, parameterNode, name: str):
        pack = self.type()
        for member, (_, serializer, _) in self.type.allParameters.items():
            inner = serializer.read(parameterNode, f"{name}.{member}")
            object.__setattr__(pack, f"_{member}", inner)
        object.__setattr__(pack, "_save", lambda: self.write(parameterNode, name, pack))
        return pack

    def remove(self, parameterNode, name: str) -> None:
        for member, (_, serializer, _) in self.type.allParameters.items():
            serializer.remove(parameterNode, f"{name}.{member}")

    def supportsCaching(self) -> bool:
        return False


registered.append(ParameterPackSerializer)
