"""The one worker process of the application, and where its interpreter is."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from DeepRegLib.client import WorkerProcess
from DeepRegLib.errors import WorkerError

_worker: WorkerProcess | None = None


def sharedWorker() -> WorkerProcess:
    """Returns the worker that the panel and the Python console share.

    Raises:
        WorkerError: If there is no Python to run it with.
    """
    global _worker
    if _worker is None:
        _worker = WorkerProcess(
            python=findPython(), environment={"OMP_WAIT_POLICY": "passive"}, background=True
        )
        slicer.app.connect("aboutToQuit()", closeWorker)
    return _worker


def workerLog() -> list:
    """Returns the last lines that the worker wrote; none if there is no worker."""
    return [] if _worker is None else _worker.log


def isWarm() -> bool:
    """Tells whether the worker process runs."""
    return _worker is not None and _worker.alive


def closeWorker() -> None:
    """Ends the worker and frees its memory; the next run starts a new one."""
    global _worker
    worker, _worker = _worker, None
    if worker is not None:
        worker.close(seconds=1.0)


def findPython() -> str:
    """Returns the interpreter with Slicer's packages.

    Inside Slicer ``sys.executable`` can be empty or the application itself, so the launcher
    PythonSlicer is looked for beside the application and on the PATH first.

    Raises:
        WorkerError: If there is none.
    """
    for candidate in _candidates():
        if candidate and os.access(candidate, os.X_OK) and Path(candidate).is_file():
            return str(candidate)
    raise WorkerError(
        _(
            "Slicer's Python (PythonSlicer) was not found beside the application or on the PATH; "
            "reinstall 3D Slicer, or put the folder of PythonSlicer on the PATH."
        )
    )


def _candidates():
    home = Path(slicer.app.slicerHome)
    for folder in (home / "bin", home, home.parent):
        for name in ("PythonSlicer", "PythonSlicer.exe"):
            yield folder / name
    yield shutil.which("PythonSlicer")
    if Path(sys.executable or "").name.lower().startswith("python"):
        yield sys.executable
    # A Slicer that was built on the system's Python.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for prefix in (sys.prefix, sys.base_prefix):
        for name in (version, "python3", "python.exe"):
            yield Path(prefix) / "bin" / name
            yield Path(prefix) / name
