"""Attributes of classes written here that stand for Qt properties of C++ classes."""

from __future__ import annotations

from collections.abc import Callable


class Attribute(property):
    """A property with a plain stored value."""


def attribute(name: str, default, convert: Callable = lambda v: v, changed: str = "") -> Attribute:
    """A property that stores a value and calls the method ``changed`` when it is assigned."""
    store = f"_{name}_value"

    def read(self):
        return self.__dict__.get(store, default)

    def write(self, value) -> None:
        self.__dict__[store] = convert(value)
        if changed:
            getattr(self, changed)()

    return Attribute(read, write)
