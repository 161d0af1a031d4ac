"""The names of Slicer's Python interface, as the running application lists them.

The file ``slicer_api.json`` beside this package says for each class every member and its kind:
"method", "signal", "type", or the type of an attribute. What is common to all widgets stands
only under ``qt.QWidget``, and what is common to all objects only under ``qt.QObject``.
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "slicer_api.json"

#: Attributes that PythonQt answers although it does not list them.
UNLISTED = {"name": "str", "exec_": "method", "raise_": "method"}


@lru_cache(maxsize=1)
def load() -> dict:
    """The whole table."""
    return json.loads(FILE.read_text(encoding="utf-8"))


@cache
def own_members(full_name: str) -> dict[str, str] | None:
    """Members of ``qt.QLabel`` or the like without the common ones; None if it is not listed.

    A class that could not be created has its names only; their kind is then "".
    """
    entry = load()["classes"].get(full_name)
    if entry is None:
        return None
    if isinstance(entry.get("static"), list):
        return dict.fromkeys(entry["static"], "")
    return entry


@cache
def members(full_name: str, base: str = "") -> dict[str, str] | None:
    """All members of a class; ``base`` is "widget", "object" or "" for plain values."""
    own = own_members(full_name)
    if own is None:
        return None
    common: dict[str, str] = {}
    if base:
        common |= own_members("qt.QObject")
    if base == "widget":
        common |= own_members("qt.QWidget")
    return common | own


def is_attribute(name: str, kind: str) -> bool:
    """Whether a member is a Qt property: read and assigned without parentheses."""
    return kind not in ("method", "signal", "type", "") and not name[:1].isupper()


def names(list_name: str) -> frozenset[str]:
    """The names in one of the lists: "qt", "ctk", "slicer", "slicer_qt_classes"."""
    return frozenset(load()[list_name])
