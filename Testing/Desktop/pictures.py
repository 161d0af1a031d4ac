"""What the scripts that take pictures of the panel share."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import panel_support as desk
import qt
import slicer

SAMPLES = desk.ROOT / "Resources" / "SampleData"
PICTURES = Path(os.environ.get("DEEPREG_SCREENSHOTS", "build/pictures"))


def picture(name):
    """Takes a picture of the window, when all has been drawn."""
    desk.settle(1.0)
    slicer.util.forceRenderAllViews()
    desk.settle(0.3)
    PICTURES.mkdir(parents=True, exist_ok=True)
    slicer.util.mainWindow().grab().save(str(PICTURES / f"{name}.png"))
    print(name, flush=True)


def bring(panel, widget):
    """Scrolls to a widget, when the panel has found its size."""
    desk.settle(0.5)
    area = widget.parentWidget()
    while not area.inherits("QScrollArea"):
        area = area.parentWidget()
    area.ensureWidgetVisible(widget)
    desk.settle(0.2)


def run(take):
    """Calls a function when the application is ready, then ends that with 0, or 1 if it failed."""

    def main():
        code = 0
        try:
            take()
        except BaseException:
            traceback.print_exc()
            picture("failure")
            code = 1
        slicer.util.exit(code)

    # With --testing the application would end as soon as the script has been read.
    slicer.app.commandOptions().runPythonAndExit = False
    qt.QTimer.singleShot(500, main)
