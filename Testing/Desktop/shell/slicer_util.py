"""Puts the parts of ``slicer.util`` that would show a window on the record of `dialogs`.

All other functions of ``slicer.util`` are those of the slicer-core package.
"""

from __future__ import annotations

import logging
import traceback
from contextlib import contextmanager

import slicer

from .dialogs import dialogs

_KINDS = {logging.ERROR: "error", logging.WARNING: "warning", logging.INFO: "info"}


def _message_display(
    logLevel,
    text,
    testingReturnValue,
    mainWindowNeeded=False,
    parent=None,
    windowTitle=None,
    **kwargs,
):
    logging.log(logLevel, text)
    kind = _KINDS[logLevel] if testingReturnValue is None else "confirm"
    details = {k: v for k, v in kwargs.items() if k in ("detailedText", "informativeText")}
    return dialogs.ask(kind, text, testingReturnValue, windowTitle, **details)


def _confirm(default: bool, level: int):
    def confirm(text, windowTitle=None, parent=None, **kwargs) -> bool:
        return bool(_message_display(level, text, default, windowTitle=windowTitle, **kwargs))

    return confirm


def _message_box(text, parent=None, **kwargs):
    import qt

    return dialogs.ask("message", text, qt.QMessageBox.Ok, kwargs.get("windowTitle", ""))


def _delay_display(message, autoCloseMsec=1000, parent=None, **kwargs) -> None:
    logging.info(message)
    dialogs.ask("delay", message)
    slicer.app.processEvents()


def _show_status_message(message, duration=0) -> bool:
    dialogs.ask("status", message)
    window = slicer.util.mainWindow()
    if not window:
        return False
    window.statusBar().showMessage(message, duration)
    return True


@contextmanager
def _try_with_error_display(message=None, show=True, waitCursor=False):
    """Records the error (Slicer shows nothing in testing mode) and raises it again."""
    try:
        yield
    except Exception as error:
        if show:
            text = str(error) if message is None else f"{message}\n\n{error}"
            slicer.util.errorDisplay(text, detailedText=traceback.format_exc())
        raise


def install() -> None:
    util = slicer.util
    util._messageDisplay = _message_display
    util.messageBox = _message_box
    util.delayDisplay = _delay_display
    util.showStatusMessage = _show_status_message
    util.confirmOkCancelDisplay = _confirm(True, logging.INFO)
    util.confirmYesNoDisplay = _confirm(True, logging.INFO)
    util.confirmRetryCloseDisplay = _confirm(False, logging.ERROR)
    util.tryWithErrorDisplay = _try_with_error_display
