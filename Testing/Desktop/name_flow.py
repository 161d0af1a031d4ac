"""Follows values through source files, as far as a simple look can; see `names`.

Values are texts: ``=qt.QTimer`` is the name itself (module, class or function), ``qt.QTimer`` an
object of the class, ``[qt.QTimer`` a container of such, ``own:Curve`` an object of a class of the
source files themselves, and ``ui`` the panel's widgets.
"""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UI = ROOT / "DeepReg" / "Resources" / "UI" / "DeepReg.ui"
#: The panel's form, and those of its tools, which become a part of it.
FORMS = sorted(UI.parent.glob("*.ui"))
MODULES = ("qt", "ctk", "slicer", "SampleData", "SubjectHierarchyPlugins")

#: What calls return, by name; what the module's classes find in ``self.parent``, too.
RETURNS = {
    "slicer.app.commandOptions": "slicer.qSlicerCommandOptions",
    "slicer.app.layoutManager": "slicer.qSlicerLayoutManager",
    "slicer.qSlicerLayoutManager.sliceWidget": "slicer.qMRMLSliceWidget",
    "slicer.qMRMLSliceWidget.sliceView": "slicer.qMRMLSliceView",
    "slicer.qMRMLSliceWidget.mrmlSliceNode": "slicer.vtkMRMLSliceNode",
    "slicer.qMRMLSequenceBrowserSeekWidget.slider": "qt.QSlider",
    "slicer.qSlicerSubjectHierarchyPluginHandler.instance": (
        "slicer.qSlicerSubjectHierarchyPluginHandler"
    ),
    "slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode": (
        "slicer.vtkMRMLSubjectHierarchyNode"
    ),
    "slicer.util.mainWindow": "slicer.qSlicerMainWindow",
    "slicer.util.loadVolume": "slicer.vtkMRMLVolumeNode",
    "slicer.util.loadUI": "slicer.qMRMLWidget",
    "slicer.util.childWidgetVariables": "ui",
    "ctk.ctkCollapsibleGroupBox.layout": "qt.QVBoxLayout",
    "qt.QComboBox.model": "qt.QStandardItemModel",
    "qt.QStandardItemModel.item": "qt.QStandardItem",
    "qt.QStandardItem.font": "qt.QFont",
    "qt.QTableWidget.item": "qt.QTableWidgetItem",
    "qt.QTableWidget.horizontalHeader": "qt.QHeaderView",
    "qt.QTableWidget.verticalHeader": "qt.QHeaderView",
    "slicer.app.clipboard": "qt.QClipboard",
    "slicer.qSlicerMainWindow.grab": "qt.QPixmap",
    "ScriptedLoadableModule.parent": "slicer.qSlicerScriptedLoadableModule",
    "ScriptedLoadableModuleWidget.parent": "slicer.qSlicerScriptedLoadableModuleWidget",
    "ScriptedLoadableModuleWidget.layout": "qt.QVBoxLayout",
}
_OBJECTS = {"slicer.app": "slicer.app", "slicer.mrmlScene": "slicer.vtkMRMLScene"}
_MADE = re.compile(r"(qt\.Q\w+|ctk\.ctk\w+|slicer\.(q|vtk)\w+)")
#: Parameters that are called so everywhere; the scripted plugin is made in C++.
_NAMED = {"ui": "ui", "scriptedPlugin": "slicer.qSlicerSubjectHierarchyScriptedPlugin"}


def widgets() -> dict[str, str]:
    """Class of each widget of the ``.ui`` files by name, as ``qt.QLabel``."""
    elements = [element for form in FORMS for element in ElementTree.parse(form).iter("widget")]
    found = {element.get("name"): full_class(element.get("class")) for element in elements}
    assert len(found) == len(elements), "two widgets have the same name"
    return found


def full_class(name: str) -> str:
    """``QLabel`` as ``qt.QLabel``, ``ctkX`` as ``ctk.ctkX``, others as of ``slicer``."""
    module = "ctk" if name.startswith("ctk") else "qt" if name.startswith("Q") else "slicer"
    return f"{module}.{name}"


@dataclass
class Known:
    """What several source files share."""

    widgets: dict[str, str] = field(default_factory=widgets)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    functions: dict[str, list[Scope]] = field(default_factory=dict)
    bound: dict[tuple[int, str], set[str]] = field(default_factory=dict)
    files: list[Flow] = field(default_factory=list)


@dataclass(eq=False)
class Scope:
    """A function, the class that it belongs to, and the file."""

    file: Flow
    node: ast.AST
    owner: ast.ClassDef | None


class Flow:
    """Values in one source file.

    Args:
        known: What the files share.
        path: Name of the file.
        text: Its source.
    """

    def __init__(self, known: Known, path: str, text: str) -> None:
        self.known, self.path, self.tree = known, path, ast.parse(text)
        self.parents = {c: p for p in ast.walk(self.tree) for c in ast.iter_child_nodes(p)}
        self.imported: dict[str, str] = {}
        self.targets: dict[tuple[ast.AST | None, str], list[tuple[ast.AST, ast.AST, str]]] = {}
        self.busy: set[ast.AST] = set()
        for node in ast.walk(self.tree):
            self._note(node)

    def _note(self, node: ast.AST) -> None:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            for alias in node.names:
                self.imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.ClassDef):
            self.known.classes[node.name] = node
            self.known.functions.setdefault(node.name, [])
        elif isinstance(node, (ast.FunctionDef, ast.Lambda)):
            owner = self.parents.get(node)
            owner = owner if isinstance(owner, ast.ClassDef) else None
            name = getattr(node, "name", "<lambda>")
            known = self.known.functions
            known.setdefault(name, []).append(Scope(self, node, owner))
            if owner is not None and name == "__init__":
                known.setdefault(owner.name, []).append(Scope(self, node, owner))
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._target(target, node.value, "whole", node)
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            self._target(node.target, node.value, "whole", node)
        elif isinstance(node, (ast.For, ast.comprehension)):
            self._target(node.target, node.iter, "element", node)
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            self._target(node.optional_vars, node.context_expr, "whole", node)

    def _target(self, target: ast.AST, value: ast.AST, how: str, at: ast.AST) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            for n, part in enumerate(target.elts):
                if how == "whole" and isinstance(value, ast.Tuple):
                    if len(value.elts) == len(target.elts):
                        self._target(part, value.elts[n], "whole", at)
                else:
                    self._target(part, value, f"{how}.{n}", at)
        elif isinstance(target, ast.Name):
            self.targets.setdefault((self.scope_of(at), target.id), []).append((at, value, how))
        elif isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
            key = (self.class_of(at), f"self.{target.attr}")
            self.targets.setdefault(key, []).append((at, value, how))

    def _up(self, node: ast.AST) -> Iterator[ast.AST]:
        while node in self.parents:
            node = self.parents[node]
            yield node

    def scope_of(self, node: ast.AST) -> ast.AST | None:
        kinds = (ast.FunctionDef, ast.Lambda)
        return next((up for up in self._up(node) if isinstance(up, kinds)), None)

    def class_of(self, node: ast.AST) -> ast.ClassDef | None:
        return next((up for up in self._up(node) if isinstance(up, ast.ClassDef)), None)

    # What an expression can be.

    def infer(self, node: ast.AST) -> frozenset[str]:
        """All that the expression is known to be able to be; empty if nothing is known."""
        if node in self.busy:
            return frozenset()
        self.busy.add(node)
        try:
            return frozenset(self._infer(node))
        finally:
            self.busy.discard(node)

    def _infer(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Name):
            yield from self._variable(node)
        elif isinstance(node, ast.Attribute):
            for owner in self.infer(node.value):
                yield from self._attribute(owner, node)
            if ast.unparse(node.value) == "self":
                yield from self._own(self.class_of(node), node.attr)
        elif isinstance(node, ast.Call):
            yield from self._called(node)
        elif isinstance(node, (ast.IfExp, ast.BoolOp)):
            for part in node.values if isinstance(node, ast.BoolOp) else (node.body, node.orelse):
                yield from self.infer(part)
        elif isinstance(node, ast.Subscript):
            yield from (v[1:] for v in self.infer(node.value) if v.startswith("["))
        elif isinstance(node, (ast.Tuple, ast.List, ast.Set, ast.Dict)):
            for part in node.values if isinstance(node, ast.Dict) else node.elts:
                yield from (f"[{v}" for v in self.infer(part))
        elif isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
            part = node.value if isinstance(node, ast.DictComp) else node.elt
            yield from (f"[{v}" for v in self.infer(part))

    def _variable(self, node: ast.Name) -> Iterator[str]:
        if node.id in MODULES:
            yield f"={node.id}"
        elif node.id in self.imported:
            yield f"={self.imported[node.id]}"
        else:
            scope = self.scope_of(node)
            while scope is not None and not self._knows(scope, node.id):
                scope = self.scope_of(scope)
            found = self._reaching(self.targets.get((scope, node.id), []), node)
            for _at, value, how in found:
                yield from self._taken(value, how)
            if not found and scope is not None:
                yield from self.known.bound.get((id(scope), node.id), ())
                if node.id in _NAMED:
                    yield _NAMED[node.id]

    def _knows(self, scope: ast.AST, name: str) -> bool:
        arguments = scope.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        return (scope, name) in self.targets or any(a.arg == name for a in every)

    def _reaching(self, assigned: list, use: ast.AST) -> list:
        """The assignments that a use can see: the last that surely ran, and what may have since."""
        above, seen = {use, *self._up(use)}, []
        for at, value, how in sorted(assigned, key=lambda a: getattr(a[0], "lineno", 0)):
            if isinstance(at, ast.comprehension):
                if self.parents[at] in above:
                    return [(at, value, how)]
                continue
            if at.lineno > use.lineno:
                continue
            block, top = self.parents[at], isinstance(at, ast.For) and at in above
            surely = top or (block in above and _same_branch(block, at, above))
            seen = [(at, value, how)] if surely else [*seen, (at, value, how)]
        return seen

    def _taken(self, value: ast.AST, how: str) -> Iterator[str]:
        """What an assignment takes of a value: the whole, an element, a part of an element."""
        way = how.split(".")
        if way[0] == "whole":
            yield from self.infer(value) if len(way) == 1 else ()
            return
        if len(way) > 1 and isinstance(value, (ast.Tuple, ast.List)):
            for row in value.elts:
                if isinstance(row, ast.Tuple) and int(way[1]) < len(row.elts):
                    yield from self.infer(row.elts[int(way[1])])
            return
        yield from (v[1:].lstrip("[") for v in self.infer(value) if v.startswith("["))

    def _own(self, owner: ast.ClassDef | None, name: str) -> Iterator[str]:
        """An attribute of ``self``."""
        if owner is None:
            return
        if name in ("ui", "_ui"):
            yield "ui"
        for _at, value, how in self.targets.get((owner, f"self.{name}"), ()):
            yield from self._taken(value, how)
        for base in owner.bases:
            if isinstance(base, ast.Name) and f"{base.id}.{name}" in RETURNS:
                yield RETURNS[f"{base.id}.{name}"]
        for scope in self.known.functions.get(name, ()):
            isProperty = any(
                ast.unparse(d) == "property" for d in getattr(scope.node, "decorator_list", [])
            )
            if scope.owner is owner and isProperty:
                yield from scope.file.returned(scope.node)

    def _attribute(self, owner: str, node: ast.Attribute) -> Iterator[str]:
        if owner.startswith("="):
            name = f"{owner[1:]}.{node.attr}"
            yield _OBJECTS.get(name, f"={name}")
        elif owner == "ui":
            yield self.known.widgets.get(node.attr, f"unknown widget.{node.attr}")
        elif owner.startswith("own:"):
            for file in self.known.files:
                if self.known.classes.get(owner[4:]) in file.parents:
                    yield from file._own(self.known.classes[owner[4:]], node.attr)

    def _called(self, node: ast.Call) -> Iterator[str]:
        function = node.func
        if isinstance(function, ast.Name) and function.id == "getattr" and len(node.args) > 1:
            yield from self._by_name(node.args[0], node.args[1])
        for name in self.full_names(function):
            if name in RETURNS:
                yield RETURNS[name]
            elif _MADE.fullmatch(name):
                yield name
            elif name.endswith(".AddNewNodeByClass") and isinstance(node.args[0], ast.Constant):
                yield f"slicer.{node.args[0].value}"
        if isinstance(function, ast.Attribute) and function.attr in ("items", "values"):
            yield from (f"[{v}" for v in self._elements(function))
        for scope in self.targets_of(function):
            if isinstance(function, ast.Name) and function.id in self.known.classes:
                yield f"own:{function.id}"
            else:
                yield from scope.file.returned(scope.node)

    def _elements(self, function: ast.Attribute) -> Iterator[str]:
        yield from (v[1:] for v in self.infer(function.value) if v.startswith("["))

    def _by_name(self, owner: ast.AST, name: ast.AST) -> Iterator[str]:
        """``getattr(ui, f"{view}Button")``: all widgets that are called so."""
        if "ui" not in self.infer(owner):
            return
        if isinstance(name, ast.Name):
            pattern = "|".join(self._texts(name))
        elif isinstance(name, ast.JoinedStr):
            parts = [
                re.escape(p.value) if isinstance(p, ast.Constant) else r"\w+" for p in name.values
            ]
            pattern = "".join(parts)
        else:
            pattern = re.escape(name.value) if isinstance(name, ast.Constant) else ""
        yield from (c for n, c in self.known.widgets.items() if re.fullmatch(pattern, n))

    def _texts(self, name: ast.Name) -> list[str]:
        """The texts that a loop's variable runs through."""
        reached = self._reaching(self.targets.get((self.scope_of(name), name.id), []), name)
        rows = [v.elts for _at, v, _how in reached if isinstance(v, (ast.Tuple, ast.List))]
        return [e.value for row in rows for e in row if isinstance(e, ast.Constant)]

    def targets_of(self, function: ast.AST) -> list[Scope]:
        """The functions of the corpus that a call can mean."""
        if isinstance(function, ast.Name):
            known = self.known.functions.get(function.id, [])
            here = [s for s in known if s.file is self]
            return here or known
        if isinstance(function, ast.Attribute):
            owners = {v[4:] for v in self.infer(function.value) if v.startswith("own:")}
            if ast.unparse(function.value) == "self" and self.class_of(function) is not None:
                owners.add(self.class_of(function).name)
            known = self.known.functions.get(function.attr, [])
            return [s for s in known if s.owner is not None and s.owner.name in owners]
        return []

    def full_names(self, node: ast.AST) -> set[str]:
        """Full names of a member or a name: ``slicer.util.getNode``, ``qt.QLabel.text``."""
        if not isinstance(node, ast.Attribute):
            return {v[1:] for v in self.infer(node) if v.startswith("=")}
        owners = {v for v in self.infer(node.value) if v != "ui" and v[0] != "["}
        found = {f"{v.removeprefix('=')}.{node.attr}" for v in owners if not v.startswith("own:")}
        if ast.unparse(node.value) == "self":
            found |= self._inherited(node)
        return found

    def _inherited(self, node: ast.Attribute) -> set[str]:
        """What ``self`` has from a class of Slicer."""
        owner = self.class_of(node)
        if owner is None or self._defines(owner, node.attr) or hasattr(object, node.attr):
            return set()
        bases = [self.imported.get(b.id) for b in owner.bases if isinstance(b, ast.Name)]
        known = [base for base in bases if base]
        return {f"{'|'.join(known)}.{node.attr}"} if known and len(known) == len(bases) else set()

    def _defines(self, owner: ast.ClassDef, name: str) -> bool:
        """Whether a class of the corpus has an attribute by itself."""
        if any(f"{ast.unparse(base)}.{name}" in RETURNS for base in owner.bases):
            return False
        written = (owner, f"self.{name}") in self.targets
        return written or any(getattr(part, "name", "") == name for part in owner.body)

    def returned(self, function: ast.AST) -> Iterator[str]:
        """What a function of this file can return."""
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value is not None:
                if self.scope_of(node) is function:
                    yield from self.infer(node.value)

    def bind_arguments(self) -> None:
        """Notes of which type the arguments of the corpus's own functions are."""
        for node in ast.walk(self.tree):
            for scope in self.targets_of(node.func) if isinstance(node, ast.Call) else ():
                names = [a.arg for a in scope.node.args.args]
                names = names[1:] if scope.owner is not None and names[:1] == ["self"] else names
                pairs = [*zip(names, node.args), *((k.arg, k.value) for k in node.keywords)]
                for name, value in pairs:
                    found = self.infer(value)
                    self.known.bound.setdefault((id(scope.node), name), set()).update(found)


def _same_branch(block: ast.AST, at: ast.AST, above: set) -> bool:
    """Whether a use lies in the same branch of an ``if`` as an assignment."""
    lists = [getattr(block, n, None) for n in ("body", "orelse", "finalbody", "handlers")]
    branch = next((part for part in lists if isinstance(part, list) and at in part), [])
    return not isinstance(block, (ast.If, ast.Try)) or any(part in above for part in branch)
