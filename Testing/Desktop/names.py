"""Finds in the panel's source which names of `qt`, `ctk` and `slicer` it uses, and how.

`Corpus` reads several source files at once and follows values through assignments, loops, calls and
attributes, as far as a simple look can: modules and what is imported of them, the widgets of the
``.ui`` file, what was made of a class of Qt, and nodes. What it cannot follow it leaves out; the
tests that run the panel see those.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from name_flow import MODULES, ROOT, Flow, Known

_CONNECTING = ("connect", "disconnect")


@dataclass(frozen=True, order=True)
class Use:
    """A name in use.

    Args:
        name: Such as ``qt.QTimer``, ``slicer.util.getNode``, ``qt.QLabel.text``, and for signals
            ``qt.QTimer.timeout()``.
        how: ``called``, ``read``, ``assigned``, ``passed`` (as an argument, not called) or
            ``signal``.
        place: File and line.
        positional: Number of arguments by position; -1 if some are starred.
        keywords: Names of keyword arguments.
        among: Other classes that the object may be of.
    """

    name: str
    how: str
    place: str
    positional: int = 0
    keywords: tuple[str, ...] = ()
    among: tuple[str, ...] = ()


def panel() -> dict[str, str]:
    """The panel's source and the scenario's, by path in the repository."""
    folder = ROOT / "DeepReg"
    files = [folder / "DeepReg.py", *sorted((folder / "DeepRegWidgets").glob("*.py"))]
    files += sorted((ROOT / "Testing" / "Slicer").glob("*.py"))
    return {f.relative_to(ROOT).as_posix(): f.read_text(encoding="utf-8") for f in files}


class Corpus:
    """Several source files that know of each other.

    Args:
        sources: Text by name of the file.
    """

    def __init__(self, sources: dict[str, str]) -> None:
        known = Known()
        self._files = [_File(known, path, text) for path, text in sources.items()]
        known.files = self._files
        for _ in range(4):  # Each round takes types through one more call.
            for file in self._files:
                file.bind_arguments()

    def uses(self) -> list[Use]:
        """All uses, in order."""
        return sorted({use for file in self._files for use in file.uses()})


class _File(Flow):
    def uses(self) -> Iterator[Use]:
        """All uses of the file."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names if (node.module or "").split(".")[0] in MODULES else ():
                    yield Use(f"{node.module}.{alias.name}", "passed", self._place(node))
            elif isinstance(node, ast.Attribute):
                yield from self._use(node, self.full_names(node))
            elif isinstance(node, ast.Name) and node.id in self.imported:
                yield from self._use(node, {self.imported[node.id]})
            if isinstance(node, ast.Call):
                yield from self._signal(node)

    def _use(self, node: ast.AST, names: set[str]) -> Iterator[Use]:
        parent = self.parents.get(node)
        how, positional, keywords = "read", 0, ()
        if isinstance(parent, ast.Call) and parent.func is node:
            starred = any(isinstance(a, ast.Starred) for a in parent.args)
            how, positional = "called", -1 if starred else len(parent.args)
            keywords = tuple(k.arg or "**" for k in parent.keywords)
        elif isinstance(node.ctx, ast.Store):
            how = "assigned"
        elif isinstance(parent, ast.Attribute):
            how = "passed" if parent.attr in (*_CONNECTING, "emit") else "read"
        elif isinstance(parent, (ast.Call, ast.keyword, ast.Tuple, ast.ClassDef)):
            how = "passed"
        for name in names:
            among = tuple(sorted(other for other in names if other != name))
            yield Use(name, how, self._place(node), positional, keywords, among)

    def _signal(self, node: ast.Call) -> Iterator[Use]:
        """``button.connect("clicked(bool)", f)``."""
        function = node.func
        isConnect = isinstance(function, ast.Attribute) and function.attr in _CONNECTING
        if not isConnect or not node.args or not isinstance(node.args[0], ast.Constant):
            return
        names = {n.rpartition(".")[0] for n in self.full_names(function)}
        for owner in names:
            among = tuple(sorted(f"{o}.{node.args[0].value}" for o in names - {owner}))
            slot = self._parameters(node.args[1]) if len(node.args) > 1 else 0
            place = self._place(node)
            yield Use(f"{owner}.{node.args[0].value}", "signal", place, slot, (), among)

    def _parameters(self, slot: ast.AST) -> int:
        """How many arguments a slot cannot do without."""
        scopes = self.targets_of(slot)
        nodes = [s.node for s in scopes] or ([slot] if isinstance(slot, ast.Lambda) else [])
        needed = (n.args.args[: len(n.args.args) - len(n.args.defaults)] for n in nodes)
        return max((sum(a.arg != "self" for a in arguments) for arguments in needed), default=0)

    def _place(self, node: ast.AST) -> str:
        return f"{self.path}:{node.lineno}"
