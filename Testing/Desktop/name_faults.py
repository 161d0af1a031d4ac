"""Holds the uses that `names` finds against what the running Slicer lists in ``slicer_api.json``.

Members of VTK's and MRML's classes are looked up in slicer-core, where it is installed. Members of
classes that the list does not describe are "unrecorded": their source has to be known.
"""

from __future__ import annotations

import ast
import json
import re
import unittest
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from name_flow import RETURNS
from names import Use

API = json.loads(Path(__file__).with_name("slicer_api.json").read_text(encoding="utf-8"))
_CLASSES = API["classes"]

#: Objects of the running application that the list describes, by their class.
_OBJECTS = {
    "slicer.app": "slicer.app",
    "slicer.qSlicerMainWindow": "mainWindow",
    "slicer.qSlicerLayoutManager": "layoutManager",
    "slicer.qMRMLSliceWidget": "sliceWidget",
    "slicer.qMRMLSliceView": "sliceView",
}
#: What Slicer's scripted classes set on ``self``; the list has their functions only.
_INSTANCE = {
    "ScriptedLoadableModule": {"parent"},
    "ScriptedLoadableModuleWidget": {"parent", "layout"},
}
#: Classes of Qt that are no widgets: objects, and values without anything in common.
_QT_OBJECTS = {
    "QEventLoop", "QFile", "QFormLayout", "QGridLayout", "QHBoxLayout",
    "QObject", "QProcess", "QSettings", "QTimer", "QVBoxLayout",
}  # fmt: skip
_QT_VALUES = {
    "QByteArray", "QColor", "QDateTime", "QDesktopServices", "QDir", "QElapsedTimer", "QFileInfo",
    "QFont", "QIcon", "QKeySequence", "QListWidgetItem", "QPainter", "QPixmap", "QPoint",
    "QProcessEnvironment", "QRect", "QSize", "QSizePolicy", "QTableWidgetItem", "QTemporaryDir",
    "QTreeWidgetItem", "QUrl",
}  # fmt: skip
_UNRECORDED = "unrecorded"


@cache
def members(name: str) -> dict | None:
    """Kinds of all members of a class of `qt`, `ctk` or `slicer`, or None if it is not listed."""
    own = API["objects"].get(_OBJECTS.get(name, "")) or _CLASSES.get(name)
    if own is None:
        return None
    if isinstance(own.get("static"), list):
        own = dict.fromkeys(own["static"], "")
    short = name.partition(".")[2]
    if short in _QT_VALUES:
        return own
    common = _CLASSES["qt.QObject"]
    return own | common if short in _QT_OBJECTS else common | _CLASSES["qt.QWidget"] | own


def canonical(name: str) -> str:
    """The name with the base that has the member, of ``A|B.member``."""
    if "|" not in name:
        return name
    owners, _dot, member = name.rpartition(".")
    every = [f"{owner}.{member}" for owner in owners.split("|")]
    return next((n for n in every if kind(n)), every[0])


@cache
def kind(name: str) -> str | None:
    """What a name is in Slicer: ``class``, ``method``, ``signal``, ``attribute (bool)`` …

    Returns:
        None if there is no such name, ``unrecorded`` if nobody has listed the class's members.
    """
    name = canonical(name).partition("(")[0]
    module = next(
        (m for m in sorted(API["python"], key=len)[::-1] if f"{name}.".startswith(f"{m}.")), None
    )
    if module is not None and module not in _OBJECTS:
        return _python_kind(module, [p for p in name[len(module) :].split(".") if p])
    root, *rest = name.split(".")
    if rest and root not in (*API, "SubjectHierarchyPlugins"):
        return None
    if not rest or root == "SubjectHierarchyPlugins":
        return "module" if not rest else _UNRECORDED
    owner, member = f"{root}.{rest[0]}", rest[1] if len(rest) > 1 else None
    if root == "slicer" and rest[0].startswith("vtk"):
        return _vtk_kind(rest[0], member)
    known = {*API[root], *(API["slicer_qt_classes"] if root == "slicer" else ())}
    if rest[0] not in known:
        # Objects that Slicer hands out can be of a class that has no name in Python.
        return _UNRECORDED if member and owner in RETURNS.values() else None
    if member is None:
        return "object" if owner in ("slicer.app", "slicer.mrmlScene") else "class"
    listed = members(owner)
    return _UNRECORDED if listed is None else _words(member, listed.get(member))


def _words(member: str, found: str | None) -> str | None:
    if found in ("method", "signal", "type", None):
        return found
    if found == "":
        return "member"
    return f"{'value' if member[:1].isupper() else 'attribute'} ({found})"


def _python_kind(module: str, rest: list[str]) -> str | None:
    listed = API["python"][module]
    if not rest:
        return "module"
    if rest[0] not in listed:
        return None
    entry = listed[rest[0]]
    if len(rest) == 1 or isinstance(entry, str):
        return "function" if isinstance(entry, str) else "class"
    if rest[1] in entry["members"] or rest[1] == "__init__":
        return "method"
    if rest[1] in _INSTANCE.get(rest[0], ()):
        return "attribute"
    isTest = rest[0] == "ScriptedLoadableModuleTest" and hasattr(unittest.TestCase, rest[1])
    return "method" if isTest else None


def _vtk_kind(name: str, member: str | None) -> str | None:
    if find_spec("slicer") is None:
        return _UNRECORDED if name in API["slicer"] else None
    import slicer

    found = getattr(slicer, name, None)
    if found is None or member is None:
        return None if found is None else "class"
    if not hasattr(found, member):
        return None
    return "method" if callable(getattr(found, member)) else "value"


def used(uses: list[Use]) -> dict[str, str]:
    """Kinds of the names in use; of an object of several classes, what those have that have it."""
    return {canonical(use.name): kind(use.name) for use in uses if not _fault(use)}


def fault(use: Use) -> str:
    """What is wrong with a use; empty if nothing is."""
    own = _fault(use)
    if own and any(not _fault(Use(n, use.how, use.place)) for n in use.among):
        return ""
    return own


def _fault(use: Use) -> str:
    where, found = f"{use.place}: {canonical(use.name)}", kind(use.name)
    if use.name.startswith("unknown widget."):
        return f"{where}: there is no such widget in the .ui file"
    if found is None:
        return f"{where} does not exist in Slicer"
    text = _wrong_kind(use, found) or _wrong_slot(use) or _wrong_arguments(use, found)
    return f"{where} {text}" if text else ""


def _wrong_kind(use: Use, found: str) -> str:
    if found in ("member", _UNRECORDED):
        return ""
    if use.how == "signal":
        return "" if found == "signal" else f"is no signal in Slicer, but {found}"
    if use.how == "called" and found.startswith(
        ("attribute", "value", "signal", "module", "object")
    ):
        return f"is {found} in Slicer, not to be called"
    if use.how == "assigned" and not found.startswith("attribute"):
        return f"is {found} in Slicer, not to be assigned"
    if use.how == "read" and found in ("method", "function"):
        return f"is a {found} in Slicer and has to be called"
    return ""


def _wrong_slot(use: Use) -> str:
    if use.how != "signal":
        return ""
    types = re.fullmatch(r"\w+\((.*)\)", use.name.rpartition(".")[2])
    if types is None:
        return "is no signature of a signal"
    given = len([t for t in types.group(1).split(",") if t])
    return (
        f"gives {given} arguments, its slot wants {use.positional}"
        if given < use.positional
        else ""
    )


def _wrong_arguments(use: Use, found: str) -> str:
    """Arguments of Slicer's own Python functions; setters of Qt want one at least."""
    if use.how != "called":
        return ""
    member = use.name.rpartition(".")[2]
    if found == "method" and re.match(r"set[A-Z]", member) and not use.name.startswith("slicer."):
        none = use.positional == 0 and not use.keywords
        return "wants a value" if none else ""
    if member == "connect" and found == "method" and use.positional not in (-1, 2, 3):
        return "wants a signal and a slot"
    signature = _signature(canonical(use.name))
    return "" if signature is None else _unfit(use, signature)


def _signature(name: str) -> str | None:
    for module, listed in API["python"].items():
        parts = name[len(module) + 1 :].split(".")
        if name.startswith(f"{module}.") and parts[0] in listed:
            entry = listed[parts[0]]
            if isinstance(entry, str):
                return entry
            return entry["init"] if len(parts) == 1 else entry["members"].get(parts[1])
    return None


def _unfit(use: Use, signature: str) -> str:
    try:
        arguments = ast.parse(f"def f{signature.split(' -> ')[0]}: pass").body[0].args
    except SyntaxError:
        return ""
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    isMethod = names[:1] == ["self"]
    bare = names[1:] if isMethod else names
    known = {*bare, *(a.arg for a in arguments.kwonlyargs)}
    if arguments.kwarg is None:
        for keyword in use.keywords:
            if keyword not in known and keyword != "**":
                return f"takes no argument '{keyword}': {signature}"
    # `Base.method(self, …)` gives the object itself, too.
    most = len(bare) + isMethod
    if arguments.vararg is None and use.positional > most:
        return f"takes {len(bare)} arguments at most: {signature}"
    least = len(bare) - len(arguments.defaults)
    given = use.positional + len(use.keywords)
    if use.positional >= 0 and "**" not in use.keywords and given < least:
        return f"takes {least} arguments at least: {signature}"
    return ""
