"""Renders views one after the other, so that the event loop is never held for more than one."""

from __future__ import annotations

from PySide6 import QtCore
from shiboken6 import Shiboken

#: Milliseconds from a change to the picture, and between two pictures.
DELAY, PAUSE = 15, 3


class RenderQueue(QtCore.QObject):
    """Views that wait for their turn; a view waits at most once."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list = []
        self._timer = QtCore.QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._next)

    def add(self, view) -> None:
        if view not in self._waiting:
            self._waiting.append(view)
            if not self._timer.isActive():
                self._timer.start(DELAY)

    def remove(self, view) -> None:
        if view in self._waiting:
            self._waiting.remove(view)

    def _next(self) -> None:
        if self._waiting:
            view = self._waiting.pop(0)
            if Shiboken.isValid(view):
                view._render_when_shown()
        if self._waiting and not self._timer.isActive():
            self._timer.start(PAUSE)


queue = RenderQueue()
