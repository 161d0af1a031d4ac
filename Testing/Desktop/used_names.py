"""Which names of `qt`, `ctk` and `slicer` the panel uses, found in its source.

`in_source` walks the syntax tree of a file. It follows the modules themselves, widgets of the
``.ui`` file (``ui.applyButton.text``), and what was made of a class (``timer = qt.QTimer()``, also
``self._timer``). Each use says how: called, read, assigned, or connected as a signal.
"""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shell import api

ROOT = Path(__file__).resolve().parents[2]
UI = ROOT / "DeepReg" / "Resources" / "UI" / "DeepReg.ui"
MODULES = ("qt", "ctk", "slicer")


@dataclass(frozen=True)
class Use:
    """A name in use.

    Args:
        name: Such as ``qt.QTimer``, ``slicer.util.getNode`` or ``qt.QLabel.text``.
        how: ``called``, ``read``, ``assigned`` or ``signal``.
        place: File and line.
        keywords: Names of keyword arguments, if called.
    """

    name: str
    how: str
    place: str
    keywords: tuple[str, ...] = ()


def sources() -> list[Path]:
    """The files of the panel, and the scenario."""
    folder = ROOT / "DeepReg"
    files = [folder / "DeepReg.py", *sorted((folder / "DeepRegWidgets").glob("*.py"))]
    return [*files, *sorted((ROOT / "Testing" / "Slicer").glob("*.py"))]


def widgets(ui: Path = UI) -> dict[str, str]:
    """Class of each widget of a ``.ui`` file by name, as ``qt.QLabel``."""
    found = {}
    for element in ElementTree.parse(ui).iter("widget"):
        found[element.get("name")] = full_class(element.get("class"))
    return found


def full_class(name: str) -> str:
    """``QLabel`` as ``qt.QLabel``, ``ctkX`` as ``ctk.ctkX``, others as of ``slicer``."""
    module = "ctk" if name.startswith("ctk") else "qt" if name.startswith("Q") else "slicer"
    return f"{module}.{name}"


def in_source(text: str, file: str = "example.py") -> list[Use]:
    """All uses in a source text."""
    tree = ast.parse(text)
    walker = _Walker(tree, file)
    return sorted(set(walker.uses()), key=lambda use: (use.place, use.name))


class _Walker:
    def __init__(self, tree: ast.AST, file: str) -> None:
        self._tree, self._file = tree, file
        self._widgets = widgets()
        self._parents = {c: p for p in ast.walk(tree) for c in ast.iter_child_nodes(p)}
        made: dict[str, set[str]] = {}
        for target, owner in self._assignments():
            made.setdefault(target, set()).add(owner)
        # A name that holds now this, now that is left to the tests that run the panel.
        self._made = {target: owners.pop() for target, owners in made.items() if len(owners) == 1}

    def uses(self) -> Iterator[Use]:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Attribute):
                yield from self._attribute(node)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
                for alias in node.names:
                    yield Use(f"{node.module}.{alias.name}", "read", self._place(node))
            elif isinstance(node, ast.Call):
                yield from self._signal(node)

    def _attribute(self, node: ast.Attribute) -> Iterator[Use]:
        name = self._name(node)
        if name is None:
            return
        parent = self._parents.get(node)
        how, keywords = "read", ()
        if isinstance(parent, ast.Call) and parent.func is node:
            how = "called"
            keywords = tuple(k.arg for k in parent.keywords if k.arg)
        elif isinstance(node.ctx, ast.Store):
            how = "assigned"
        yield Use(name, how, self._place(node), keywords)

    def _signal(self, node: ast.Call) -> Iterator[Use]:
        """``button.connect("clicked(bool)", f)``."""
        function = node.func
        isConnect = isinstance(function, ast.Attribute) and function.attr == "connect"
        if not isConnect or not node.args or not isinstance(node.args[0], ast.Constant):
            return
        owner = self._class(function.value)
        if owner is not None and isinstance(node.args[0].value, str):
            signal = node.args[0].value.split("(")[0]
            yield Use(f"{owner}.{signal}", "signal", self._place(node))

    def _assignments(self) -> Iterator[tuple[str, str]]:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                made = self._dotted(node.value.func)
                if made and re.fullmatch(r"(qt\.Q|ctk\.ctk|slicer\.q)\w+", made):
                    for target in node.targets:
                        yield ast.unparse(target), made

    def _name(self, node: ast.Attribute) -> str | None:
        dotted = self._dotted(node)
        if dotted is not None:
            return dotted
        owner = self._class(node.value)
        return None if owner is None else f"{owner}.{node.attr}"

    def _dotted(self, node: ast.AST) -> str | None:
        """``qt.QTimer.singleShot``, if the chain begins with one of the modules."""
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in MODULES and parts:
            return ".".join([node.id, *reversed(parts)])
        return None

    def _class(self, node: ast.AST) -> str | None:
        """Class of a widget of the panel, or of something made here."""
        text = ast.unparse(node)
        match = re.fullmatch(r"(?:self\.)?(?:panel\.)?_?ui\.(\w+)", text)
        if match:
            return self._widgets.get(match.group(1), "unknown widget")
        if text == "slicer.app":
            return text
        return self._made.get(text)

    def _place(self, node: ast.AST) -> str:
        return f"{self._file}:{node.lineno}"


def fault(use: Use) -> str:
    """What is wrong with a use according to the running Slicer's own list; empty if nothing."""
    table = api.load()
    parts = use.name.split(".")
    if parts[0] == "unknown widget":
        return f"{use.place}: there is no such widget in the .ui file ({use.name})"
    if use.name.startswith(("slicer.app.", "slicer.mrmlScene")):
        isApp = parts[1] == "app"
        return _member_fault(use, table["objects"]["slicer.app"], parts[2:3]) if isApp else ""
    if parts[0] == "slicer" and ".".join(parts[:2]) in table["python"]:
        return _python_fault(use, table["python"][".".join(parts[:2])], parts[2:])
    owner = ".".join(parts[:2])
    if parts[0] in ("qt", "ctk"):
        if parts[1] not in table[parts[0]]:
            return f"{use.place}: {owner} does not exist in Slicer"
    elif not _in_slicer(parts[1], table):
        return f"{use.place}: {owner} does not exist in Slicer"
    isWidget = parts[0] in ("qt", "ctk") or parts[1].startswith("qMRML")
    members = api.members(owner, "widget" if isWidget else "object")
    return _member_fault(use, members, parts[2:3]) if members else ""


def _in_slicer(name: str, table: dict) -> bool:
    import slicer

    known = {*table["slicer"], *table["slicer_qt_classes"], "modules", "util", "app", "mrmlScene"}
    return name in known or f"slicer.{name}" in table["python"] or hasattr(slicer, name)


def _python_fault(use: Use, members: dict, rest: list[str]) -> str:
    if not rest:
        return ""
    if rest[0] not in members:
        return f"{use.place}: {use.name} does not exist in Slicer"
    signature = members[rest[0]]
    if isinstance(signature, str) and "**" not in signature:
        for keyword in use.keywords:
            if not re.search(rf"\b{keyword}\b", signature):
                return f"{use.place}: {use.name} takes no argument '{keyword}': {signature}"
    return ""


def _member_fault(use: Use, members: dict[str, str], rest: list[str]) -> str:
    if not rest:
        return ""
    kind = members.get(rest[0])
    if kind is None:
        return f"{use.place}: {use.name} does not exist in Slicer"
    attribute = api.is_attribute(rest[0], kind)
    if use.how == "signal" and kind not in ("signal", ""):
        return f"{use.place}: {use.name} is no signal in Slicer, but {kind}"
    if use.how == "called" and attribute:
        return f"{use.place}: {use.name} is an attribute in Slicer ({kind}), not to be called"
    if use.how == "assigned" and not attribute:
        return f"{use.place}: {use.name} is a {kind} in Slicer, not to be assigned"
    return ""
