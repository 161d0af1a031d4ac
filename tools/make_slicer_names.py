"""Lists where in Slicer's source each name that the panel uses is defined.

    python tools/make_slicer_names.py PATH_OF_SLICER [PATH_OF_CTK]

The paths are git checkouts or bare mirrors. Writes ``Testing/Desktop/slicer_names.json``. Qt's own
classes are documented by Qt; CTK's are named by their header.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "Testing" / "Desktop"))
sys.path.insert(0, str(ROOT))

from used_names import in_source, sources  # noqa: E402

TARGET = ROOT / "Testing" / "Desktop" / "slicer_names.json"
_QT = "https://doc.qt.io/qt-5/{name}.html"


def main() -> None:
    """Writes the list."""
    slicer = sys.argv[1]
    ctk = sys.argv[2] if len(sys.argv) > 2 else None
    used = {use.name for file in sources() for use in in_source(file.read_text("utf-8"))}
    finder = _Finder(slicer, ctk)
    names = {name: finder.source_of(name) for name in sorted(used)}
    missing = [name for name, source in names.items() if not source]
    revision = _git(slicer, "log", "-1", "--format=%H %as").strip()
    TARGET.write_text(json.dumps({"slicer": revision, "names": names}, indent=1) + "\n", "utf-8")
    print(f"{len(names)} names, {len(missing)} without a source: {', '.join(missing)}")


class _Finder:
    def __init__(self, slicer: str, ctk: str | None) -> None:
        self._slicer, self._ctk = slicer, ctk

    def source_of(self, name: str) -> str:
        parts = name.split(".")
        if parts[0] == "qt":
            return _QT.format(name=parts[1].lower()) if parts[1] != "Qt" else _QT.format(name="qt")
        if parts[0] == "ctk":
            return self._header(self._ctk, parts[1], "CTK")
        if parts[1] == "app":
            member = parts[2] if len(parts) > 2 else "qSlicerApplication"
            return self._member(("qSlicerApplication", "qSlicerCoreApplication"), member)
        if f"slicer.{parts[1]}" in _PYTHON:
            return self._python(_PYTHON[f"slicer.{parts[1]}"], parts[2] if len(parts) > 2 else "")
        if parts[1] in ("mrmlScene", "modules"):
            return "Base/Python/slicer/__init__.py, set by Base/QTGUI/qSlicerApplication.cxx"
        return self._class(parts)

    def _class(self, parts: list[str]) -> str:
        if len(parts) > 2:
            found = self._member((parts[1],), parts[2])
            if found:
                return found
        return self._header(self._slicer, parts[1], "")

    def _python(self, file: str, name: str) -> str:
        if not name:
            return file
        defined = self._grep(self._slicer, rf"^\s*(def|class) {name}\b|^{name} =", file)
        return defined or self._grep(self._slicer, rf"\b{name}\b", file) or file

    def _member(self, classes: tuple[str, ...], member: str) -> str:
        for name in classes:
            found = self._grep(self._slicer, rf"\b{member}\b", f"*/{name}.h")
            if found:
                return found
        return f"Qt: QApplication::{member}" if "qSlicerApplication" in classes else ""

    def _header(self, where: str | None, name: str, prefix: str) -> str:
        if where is None:
            return f"{prefix}: {name}.h"
        found = self._grep(where, rf"class .*\b{name}\b", f"*/{name}.h")
        return f"{prefix}/{found}" if prefix and found else found

    @staticmethod
    def _grep(where: str, pattern: str, path: str) -> str:
        lines = _git(where, "grep", "-n", "-P", pattern, "HEAD", "--", path).splitlines()
        if not lines:
            return ""
        _head, file, line, _text = lines[0].split(":", 3)
        return f"{file}:{line}"


_PYTHON = {
    "slicer.util": "Base/Python/slicer/util.py",
    "slicer.i18n": "Base/Python/slicer/i18n.py",
    "slicer.ScriptedLoadableModule": "Base/Python/slicer/ScriptedLoadableModule.py",
    "slicer.parameterNodeWrapper": "Base/Python/slicer/parameterNodeWrapper/*.py",
}


def _git(where: str, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", where, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode > 1 or (done.returncode and re.search("fatal", done.stderr)):
        raise SystemExit(f"git says: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
