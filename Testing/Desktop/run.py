"""Starts the stand-in for 3D Slicer: ``python Testing/Desktop/run.py --sample-pair``.

The options are those of Slicer itself as far as they are there: ``--testing``,
``--additional-module-path``, ``--python-script``, ``--python-code``, ``--no-main-window``.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
import traceback
from ctypes.util import find_library
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A small stand-in for 3D Slicer.")
    parser.add_argument("--testing", action="store_true", help="record messages; show none")
    parser.add_argument("--additional-module-path", action="append", default=[])
    parser.add_argument("--python-script", type=Path)
    parser.add_argument("--python-code", default="")
    parser.add_argument("--module", default="DeepReg", help="module to open first")
    parser.add_argument("--sample-pair", action="store_true", help="load the sample volumes")
    parser.add_argument("--no-main-window", action="store_true")
    parser.add_argument("--screenshot", type=Path, help="save the main window here and exit")
    return parser.parse_args(arguments)


def module_files(folders: list[str]) -> list[Path]:
    """Scripted modules: files with a class of the same name, in the folders."""
    files = []
    for folder in folders or [str(ROOT / "DeepReg")]:
        for path in sorted(Path(folder).glob("*.py")):
            if f"class {path.stem}(" in path.read_text(encoding="utf-8"):
                files.append(path)
    return files


def load_sample_pair() -> None:
    import slicer

    volumes = [
        slicer.util.loadVolume(str(path))
        for path in sorted((ROOT / "Resources" / "SampleData").glob("*.nii.gz"), reverse=True)
    ]
    slicer.util.setSliceViewerLayers(
        background=volumes[0], foreground=volumes[-1], foregroundOpacity=0.5, fit=True
    )


def run_script(options: argparse.Namespace) -> None:
    """What was asked for on the command line; an exception ends the application."""
    import slicer

    try:
        if options.python_script:
            runpy.run_path(str(options.python_script), run_name="__main__")
        if options.python_code:
            exec(options.python_code, {"__name__": "__main__"})
        given = options.python_script or options.python_code
        if given and slicer.app.commandOptions().runPythonAndExit:
            slicer.util.exit(0)
    except Exception:
        traceback.print_exc()
        if options.testing or options.no_main_window:
            slicer.util.exit(1)


def save_screenshot(path: Path) -> None:
    import slicer

    slicer.util.forceRenderAllViews()
    slicer.util.mainWindow().grab().save(str(path))
    slicer.util.exit(0)


def platform(testing: bool) -> str:
    """Qt's platform: a window where there is a screen, else a picture only."""
    if not testing and "WAYLAND_DISPLAY" in os.environ:
        return "wayland"
    if not testing and "DISPLAY" in os.environ:
        if find_library("xcb-cursor"):
            return "xcb"
        print("No window can be opened: install libxcb-cursor0. The run goes on without one.")
    return "offscreen"


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    os.environ.setdefault("QT_QPA_PLATFORM", platform(options.testing))
    import shell

    application = shell.start(testing=options.testing, main_window=not options.no_main_window)
    import qt
    import slicer

    visible = os.environ["QT_QPA_PLATFORM"] != "offscreen"
    shell.dialogs.interactive = visible and not options.testing
    for path in module_files(options.additional_module_path):
        shell.load_module(path)
    application.startupCompleted.emit()
    if options.sample_pair:
        load_sample_pair()
    if slicer.util.mainWindow() and options.module in slicer.util.moduleNames():
        slicer.util.selectModule(options.module)
    qt.QTimer.singleShot(0, lambda: run_script(options))
    if options.screenshot:
        qt.QTimer.singleShot(1500, lambda: save_screenshot(options.screenshot))
    application.exec()
    shell.stop()
    return application.exit_code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # VTK's windows and Qt's are put away in no defined order at the end of the interpreter.
    os._exit(code)
