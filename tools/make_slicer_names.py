"""Lists where in Slicer's source each name that the panel uses is defined.

    python tools/make_slicer_names.py PATH_OF_SLICER [PATH_OF_CTK]

The paths are git checkouts or bare mirrors. Writes ``Testing/Desktop/slicer_names.json``: for each
name its kind and its source. Names of CTK are looked up in CTK's own repository, those of Qt and
VTK are named by their documentation.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "Testing" / "Desktop"), str(ROOT)]

from name_faults import used  # noqa: E402
from names import Corpus, panel  # noqa: E402

TARGET = ROOT / "Testing" / "Desktop" / "slicer_names.json"
_PACKAGE = "Base/Python/slicer/"
_MODULES = {
    "SampleData": "Modules/Scripted/SampleData/SampleData.py",
    "SubjectHierarchyPlugins": (
        "Modules/Loadable/SubjectHierarchy/Widgets/Python/SubjectHierarchyPlugins/"
        "AbstractScriptedSubjectHierarchyPlugin.py"
    ),
}
#: What Slicer sets at its start, and how the line begins that does.
_PLACED = {
    "slicer.app": ("Base/Python/slicerqt.py", 'setattr(slicer, "app"'),
    "slicer.mrmlScene": ("Base/Python/slicerqt.py", 'setattr(slicer, "mrmlScene"'),
    "qt.QTimer.singleShot": ("Base/Python/slicerqt.py", "qt.QTimer.singleShot ="),
}


def main() -> None:
    """Writes the list."""
    slicer = _Repository(sys.argv[1], "")
    ctk = _Repository(sys.argv[2], "CTK/") if len(sys.argv) > 2 else None
    finder = _Finder(slicer, ctk)
    kinds = used(Corpus(panel()).uses())
    table = {
        "slicer": slicer.revision(),
        "ctk": "" if ctk is None else ctk.revision(),
        "uses": {n: {"kind": k, "source": finder.source_of(n)} for n, k in sorted(kinds.items())},
    }
    missing = [name for name, entry in table["uses"].items() if not entry["source"]]
    TARGET.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"{len(kinds)} names, {len(missing)} without a source: {', '.join(missing)}")


class _Repository:
    """A git repository; its files are read at its newest commit."""

    def __init__(self, path: str, prefix: str) -> None:
        self._path, self._prefix = path, prefix
        self.files = self._git("ls-tree", "-r", "--name-only", "HEAD").splitlines()
        self._by_name = {Path(file).name: file for file in reversed(self.files)}

    def revision(self) -> str:
        return self._git("log", "-1", "--format=%H %as").strip()

    @cache  # noqa: B019
    def text(self, file: str) -> str:
        return self._git("show", f"HEAD:{file}")

    def header(self, name: str) -> str:
        """Path of the header of a class; empty if there is none."""
        return self._by_name.get(f"{name}.h", "")

    def cite(self, file: str, line: int) -> str:
        return f"{self._prefix}{file}:{line}"

    def _git(self, *arguments: str) -> str:
        command = ["git", "-C", self._path, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            raise SystemExit(f"git says: {done.stderr.strip()}")
        return done.stdout


class _Finder:
    def __init__(self, slicer: _Repository, ctk: _Repository | None) -> None:
        self._slicer, self._ctk = slicer, ctk

    def source_of(self, name: str) -> str:
        """Where a name is defined; empty if it is not found."""
        parts = name.split(".", 2)
        if name in _PLACED:
            return self._line(self._slicer, *_PLACED[name])
        if parts[0] == "qt":
            return self._in_qt(parts[1])
        if parts[0] in _MODULES:
            return self._python([_MODULES[parts[0]]], parts[1:])
        if parts[1] in ("mrmlScene", "modules"):
            return self._member("vtkMRMLScene", parts[2] if len(parts) > 2 else "")
        if parts[0] == "slicer" and not re.match("app|q|vtk", parts[1]):
            return self._python(
                self._files_of(parts[1]), [p for q in parts[2:] for p in q.split(".")]
            )
        owner = "qSlicerApplication" if parts[1] == "app" else parts[1]
        return self._member(owner, parts[2] if len(parts) > 2 else "")

    def _files_of(self, module: str) -> list[str]:
        files = [f for f in self._slicer.files if f.startswith(f"{_PACKAGE}{module}/")]
        return [f for f in files if f.endswith(".py")] or [f"{_PACKAGE}{module}.py"]

    def _python(self, files: list[str], names: list[str]) -> str:
        """A class, function or attribute in Python source."""
        if not names:
            return files[0] if len(files) == 1 else str(Path(files[0]).parent)
        for file in files:
            tree = ast.parse(self._slicer.text(file))
            line = _line_of(tree, names)
            if line:
                return self._slicer.cite(file, line)
        isTest = names[0] == "ScriptedLoadableModuleTest"
        return f"Python: unittest.TestCase.{names[1]}" if isTest and len(names) > 1 else ""

    def _member(self, owner: str, member: str) -> str:
        """A class of C++, or its member: in its header, or in that of a base."""
        for repository in (self._slicer, self._ctk):
            file = repository.header(owner) if repository is not None else ""
            if not file:
                continue
            text = repository.text(file)
            declared = re.search(rf"^class\b[^;{{]*\b{owner}\b[^;]*?$", text, re.MULTILINE)
            if not member:
                line = text[: declared.start()].count("\n") + 1 if declared else 1
                return repository.cite(file, line)
            line = _declaration(text, member)
            if line:
                return repository.cite(file, line)
            bases = re.search(rf"^class\b[^;{{]*\b{owner}\b[^;{{]*:([^;{{]*)", text, re.MULTILINE)
            named = re.findall(r"public\s+(\w+)", bases.group(1)) if bases else []
            return next((s for base in named if (s := self._member(base, member))), "")
        if re.match("Q[A-Z]", owner):
            return self._in_qt(owner)
        return f"VTK: class documentation of {owner}" if owner.startswith("vtk") else ""

    @staticmethod
    def _in_qt(owner: str) -> str:
        return f"Qt 5.15: class documentation of {owner}"

    @staticmethod
    def _line(repository: _Repository, file: str, word: str) -> str:
        for number, line in enumerate(repository.text(file).splitlines(), 1):
            if line.strip().startswith(word):
                return repository.cite(file, number)
        return ""


def _line_of(tree: ast.AST, names: list[str]) -> int:
    """Line of a definition by its qualified name; of ``self.name = …`` for an attribute."""
    for node in ast.iter_child_nodes(tree):
        isNamed = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == names[0]
        if not isNamed:
            continue
        if len(names) == 1:
            return node.lineno
        found = _line_of(node, names[1:])
        stored = (
            part.lineno
            for part in ast.walk(node)
            if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)
            if ast.unparse(part) == f"self.{names[1]}"
        )
        inherited = (_line_of_base(tree, base, names[1:]) for base in getattr(node, "bases", ()))
        return found or next(stored, 0) or next((line for line in inherited if line), 0)
    return 0


def _line_of_base(tree: ast.AST, base: ast.AST, names: list[str]) -> int:
    return _line_of(tree, [base.id, *names]) if isinstance(base, ast.Name) else 0


def _declaration(text: str, member: str) -> int:
    """Line of a member in a header: a property, a function, a signal or a value of an enum."""
    name, _parenthesis, types = member.partition("(")
    forms = [rf"Q_PROPERTY\([\w:<>]+ {name}\b", rf"\b{name}\s*[=,]", rf"^\s*{name}$"]
    if _parenthesis:
        # Of a signal all types must be there, in this order.
        between = r"[^,)]*,\s*".join(
            rf"(const )?{re.escape(t.strip())}" for t in types[:-1].split(",")
        )
        forms = [rf"void {name}\(\s*{between}" if types[:-1] else rf"void {name}\(\)"]
    else:
        forms.insert(1, rf"\b{name}\s*\(")
        macro = re.fullmatch("(Get|Set)(.+)", name)
        if macro:
            forms.append(rf"vtk\w*{macro.group(1)}\w*Macro\({macro.group(2)}\b")
    lines = [re.sub(r"//.*|^\s*\*.*", "", line) for line in text.splitlines()]
    for form in forms:
        for number, line in enumerate(lines, 1):
            if re.search(form, line):
                return number
    return 0


if __name__ == "__main__":
    main()
