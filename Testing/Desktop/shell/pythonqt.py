"""Gives the classes of PySide6 the ways of PythonQt, in place.

Qt properties become attributes, objects gain ``connect("clicked(bool)", f)``, and members that
Slicer does not have raise AttributeError. The classes themselves are changed, so that whatever Qt
hands back (children, layout items, senders, arguments of signals) behaves alike.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import contextmanager
from enum import Enum

from PySide6 import QtCore, QtGui, QtWidgets
from shiboken6 import Shiboken

from . import api

MODULES = (QtCore, QtGui, QtWidgets)

#: What the classes had before: (class, name) -> member.
_originals: dict[tuple[type, str], object] = {}
#: Connections made by strings: (object address, signature) -> list of (receiver, slot).
_connections: dict[tuple[int, str], list[tuple[object, Callable]]] = {}


class Absent:
    """Stands for a member that Slicer's class lacks."""

    def __init__(self, name: str, original: object) -> None:
        self._name, self._original = name, original

    def __get__(self, instance, owner=None):
        raise AttributeError(f"'{owner.__name__}' has no member '{self._name}' in Slicer")

    def __set__(self, instance, value) -> None:
        raise AttributeError(f"'{type(instance).__name__}' has no '{self._name}' in Slicer")


class Property(property):
    """A Qt property as an attribute."""


def original(cls: type, name: str):
    """A member as PySide6 has it."""
    for base in cls.__mro__:
        if (base, name) in _originals:
            return _originals[base, name]
        if name in base.__dict__:
            return base.__dict__[name]
    raise AttributeError(name)


def call(instance: object, name: str, *arguments):
    """Calls a method of PySide6 that is hidden, or is an attribute, in Slicer."""
    return original(type(instance), name).__get__(instance)(*arguments)


def _replace(cls: type, name: str, member: object) -> None:
    if name in cls.__dict__:
        _originals.setdefault((cls, name), cls.__dict__[name])
    setattr(cls, name, member)


def _capitalized(name: str) -> str:
    return name[:1].upper() + name[1:]


def _method(cls: type, name: str):
    try:
        found = original(cls, name)
    except AttributeError:
        return None
    if isinstance(found, staticmethod):
        function = found.__func__
        return lambda self, *arguments: function(*arguments)
    return found if callable(found) and not isinstance(found, (type, Property)) else None


def _make_property(cls: type, name: str) -> Property:
    """An attribute that calls PySide6's getter and setter."""
    getter = next(filter(None, (_method(cls, n) for n in (name, f"is{_capitalized(name)}"))), None)
    setter = _method(cls, f"set{_capitalized(name)}")
    by_name = getter is None

    def read(self):
        return call_property(self, name) if by_name else getter(self)

    def write(self, value):
        if isinstance(value, int) and not isinstance(value, (bool, Enum)):
            current = read(self)
            if isinstance(current, Enum):
                value = type(current)(value)
        if setter is not None:
            setter(self, value)
        elif not _set_property(self, name, value):
            raise AttributeError(f"'{type(self).__name__}.{name}' cannot be assigned")

    return Property(read, write)


def call_property(instance: QtCore.QObject, name: str):
    """Value of a Qt property by its name."""
    return _PROPERTY(instance, name)


_PROPERTY = QtCore.QObject.property
_SET_PROPERTY = QtCore.QObject.setProperty
_FIND_CHILDREN = QtCore.QObject.findChildren


def _set_property(instance, name: str, value) -> bool:
    meta = instance.metaObject()
    index = meta.indexOfProperty(name)
    return (
        index >= 0
        and meta.property(index).isWritable()
        and bool(_SET_PROPERTY(instance, name, value))
    )


def _classes() -> list[type]:
    found = []
    for module in MODULES:
        for name in dir(module):
            cls = getattr(module, name, None)
            if isinstance(cls, type) and cls.__module__.startswith("PySide6") and cls not in found:
                found.append(cls)
    return sorted(found, key=lambda cls: len(cls.__mro__))


def _attributes_from_meta_object(cls: type) -> None:
    meta = cls.staticMetaObject
    own = range(meta.propertyOffset(), meta.propertyCount())
    for index in range(meta.propertyCount()):
        name = meta.property(index).name()
        if index in own or name in cls.__dict__:
            _replace(cls, name, _make_property(cls, name))


def base_kind(cls: type) -> str:
    """Which common members a class has; see `api.members`."""
    if issubclass(cls, QtWidgets.QWidget):
        return "widget"
    return "object" if issubclass(cls, QtCore.QObject) else ""


#: Members that Qt asks Python for, to see whether they are overridden: never hidden.
_VIRTUAL = frozenset(
    [
        "staticMetaObject",
        "metric",
        "initPainter",
        "sharedPainter",
        "redirected",
        "connectNotify",
        "disconnectNotify",
        "closeEditor",
        "commitData",
        "currentChanged",
        "dataChanged",
        "editorDestroyed",
        "rowsInserted",
        "rowsRemoved",
        "rowsAboutToBeRemoved",
        "selectionChanged",
        "supportedDragActions",
        "horizontalScrollbarAction",
        "horizontalScrollbarValueChanged",
        "verticalScrollbarAction",
        "verticalScrollbarValueChanged",
        "initViewItemOption",
        "itemDelegateForIndex",
        "updateEditorData",
        "updateEditorGeometries",
        "updateGeometries",
        "skipData",
        "readLineInto",
        "keyboardSearchFlags",
        "itemDecorationRect",
    ]
)


def _follow_list(cls: type) -> None:
    """Brings a class in line with what Slicer lists for it."""
    listed = api.members(f"qt.{cls.__name__}", base_kind(cls))
    if listed is None or cls.__name__ in ("QObject", "QWidget"):
        listed = listed if cls.__name__ == "QWidget" else None
    if listed is None:
        return
    for name, kind in listed.items():
        present = inspect.getattr_static(cls, name, None)
        if api.is_attribute(name, kind) and not isinstance(present, Property):
            known = issubclass(cls, QtCore.QObject) and (
                cls.staticMetaObject.indexOfProperty(name) >= 0
            )
            if known or present is not None:
                _replace(cls, name, _make_property(cls, name))
        elif kind == "method" and isinstance(present, Property):
            _replace(cls, name, original(cls, name))
    common = api.own_members("qt.QWidget").keys() | api.own_members("qt.QObject").keys()
    for name in dir(cls):
        if name.startswith("_") or name in listed or name in api.UNLISTED:
            continue
        if name in common or name in _VIRTUAL:
            continue
        member = inspect.getattr_static(cls, name)
        if isinstance(member, (type, Enum)) or name[:1].isupper():
            continue
        _replace(cls, name, Absent(name, member))


# Objects -----------------------------------------------------------------------------------------


def _accepted(receiver: Callable, count: int) -> int:
    """How many of the arguments of a signal a Python callable takes."""
    try:
        parameters = inspect.signature(receiver).parameters.values()
    except (TypeError, ValueError):
        return count
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return count
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return min(count, len(places))


def _make_slot(receiver: Callable, count: int) -> Callable:
    if inspect.isbuiltin(receiver) or type(receiver).__name__ == "method_descriptor":

        def slot(*arguments):
            try:
                return receiver(*arguments[:count])
            except TypeError:
                return receiver()

        return slot
    count = _accepted(receiver, count)
    return lambda *arguments: receiver(*arguments[:count])


def _signal(instance: QtCore.QObject, signature: str):
    """The bound signal of a signature like "clicked(bool)", and its number of arguments."""
    match = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", signature)
    if match is None:
        raise ValueError(f"'{signature}' is not a signal; write it like 'clicked(bool)'")
    name = match.group(1)
    types = [part.strip() for part in match.group(2).split(",") if part.strip()]
    declared = getattr(type(instance), "_signatures", {}).get(name)
    if declared is not None:
        wanted = ",".join(t.replace(" ", "") for t in types)
        if wanted not in declared:
            raise ValueError(f"'{type(instance).__name__}' has no signal '{signature}'")
        overload = declared[wanted]
        return getattr(instance, overload or name), len(types)
    normalized = QtCore.QMetaObject.normalizedSignature(signature).data().decode()
    index = instance.metaObject().indexOfSignal(normalized)
    if index < 0:
        raise ValueError(f"'{type(instance).__name__}' has no signal '{signature}'")
    bound = getattr(instance, name)
    arguments = normalized[normalized.index("(") + 1 : -1]
    try:
        return bound[arguments] if arguments else bound, len(types)
    except (IndexError, KeyError, TypeError):
        return bound, len(types)


_plain_get = QtCore.QObject.__getattribute__


def connect(self, signature: str, receiver, slot: str | None = None) -> bool:
    """Connects a signal given as a string with a callable (or with a slot of an object)."""
    if isinstance(signature, QtCore.QObject):  # as PySide6 itself calls it
        return _plain_get(self, "connect")(signature, receiver, slot)
    if slot is not None:
        receiver = getattr(receiver, slot.split("(")[0])
    if not callable(receiver):
        raise ValueError(f"'{receiver!r}' cannot be called")
    bound, count = _signal(self, signature)
    wrapped = _make_slot(receiver, count)
    bound.connect(wrapped)
    key = (Shiboken.getCppPointer(self)[0], signature.replace(" ", ""))
    if key not in _connections:
        _connections[key] = []
        self.destroyed.connect(lambda *_: _connections.pop(key, None))
    _connections[key].append((receiver, wrapped))
    return True


def disconnect(self, signature: str, receiver=None, slot: str | None = None) -> bool:
    """Ends a connection made with `connect`; without a receiver, all of that signal."""
    if isinstance(signature, QtCore.QObject):
        return _plain_get(self, "disconnect")(signature, receiver, slot)
    if slot is not None:
        receiver = getattr(receiver, slot.split("(")[0])
    key = (Shiboken.getCppPointer(self)[0], signature.replace(" ", ""))
    known = _connections.get(key, [])
    ended = [pair for pair in known if receiver is None or pair[0] == receiver]
    bound, _ = _signal(self, signature)
    for pair in ended:
        known.remove(pair)
        bound.disconnect(pair[1])
    return bool(ended)


def _matches(child: QtCore.QObject, wanted) -> bool:
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return child.inherits(wanted) or any(c.__name__ == wanted for c in type(child).__mro__)
    return isinstance(child, wanted)


def _find_children(self, wanted=None, name=None) -> list:
    everything = _FIND_CHILDREN(self, QtCore.QObject)
    return [c for c in everything if _matches(c, wanted) and name in (None, "", c.objectName)]


def _find_child(self, wanted=None, name=None):
    return next(iter(_find_children(self, wanted, name)), None)


def _object_name(self) -> str:
    return _PROPERTY(self, "objectName")


def _set_object_name(self, name: str) -> None:
    self.setObjectName(name)


def _assign(self, name: str, value) -> None:
    """Assignment that refuses new attributes on objects of C++ classes, as PythonQt does."""
    cls = type(self)
    static = inspect.getattr_static(cls, name, None)
    if hasattr(static, "__set__"):
        static.__set__(self, value)
        return
    is_plain = cls.__module__.startswith("PySide6") or "_cplusplus" in cls.__dict__
    if is_plain and static is None and not name.startswith("_"):
        if _loading:  # PySide's own loader names the children there; PythonQt's does not
            return
        raise AttributeError(
            f"Attribute '{name}' does not exist and creating new attributes on objects of "
            f"'{cls.__name__}' is not allowed"
        )
    self.__dict__[name] = value


def _install_on_objects() -> None:
    hooks = {"connect": connect, "disconnect": disconnect}

    def get(self, name):
        if name in hooks:
            return hooks[name].__get__(self)
        if name in _hidden_names:
            static = inspect.getattr_static(type(self), name, None)
            if isinstance(static, Absent):
                return static.__get__(self, type(self))
        return _plain_get(self, name)

    QtCore.QObject.__getattribute__ = get
    QtCore.QObject.findChildren = _find_children
    QtCore.QObject.findChild = _find_child
    QtCore.QObject.className = lambda self: self.metaObject().className()
    QtCore.QObject.delete = lambda self: Shiboken.delete(self)
    QtCore.QObject.name = Property(_object_name, _set_object_name)


_hidden_names: set[str] = set()
_loading: list[bool] = []


@contextmanager
def loading():
    """While a .ui file is loaded."""
    _loading.append(True)
    try:
        yield
    finally:
        _loading.pop()


def install() -> None:
    """Changes the classes; does nothing the second time."""
    if _originals:
        return
    classes = _classes()
    for cls in classes:
        if issubclass(cls, QtCore.QObject) and hasattr(cls, "staticMetaObject"):
            _attributes_from_meta_object(cls)
    _install_on_objects()
    for cls in classes:
        _follow_list(cls)
        _hidden_names.update(n for n, m in cls.__dict__.items() if isinstance(m, Absent))
    for cls in classes:
        if issubclass(cls, QtCore.QObject):
            cls.__setattr__ = _assign
