"""What the sections of the panel share: they show a parameter node, and do not hear themselves."""

from __future__ import annotations

import time
from contextlib import contextmanager


class Section:
    """A section of the panel that `connectGui` cannot bind by itself.

    Args:
        ui: The panel's widgets.
    """

    def __init__(self, ui):
        self._ui = ui
        self._node = None
        self._updating = False

    def setParameterNode(self, parameterNode) -> None:
        """Shows the choices of a parameter node; None shows nothing."""
        self._node = parameterNode
        self.update()

    def update(self) -> None:
        """Shows what the parameter node holds now."""
        if self._listens:
            with self._deaf():
                self._show()

    @property
    def _listens(self) -> bool:
        """Whether a change comes from the user, not from this section itself."""
        return self._node is not None and not self._updating

    @contextmanager
    def _deaf(self):
        """Keeps the section from hearing its own changes."""
        was, self._updating = self._updating, True
        try:
            yield
        finally:
            self._updating = was

    def _show(self) -> None:
        """Brings the widgets in line with the parameter node."""
        raise NotImplementedError


class TellingSection(Section):
    """A section that does something, and says how it ended.

    Args:
        ui: The panel's widgets.
    """

    def __init__(self, ui):
        Section.__init__(self, ui)
        #: Level and text of what is said last; None if there is nothing to say.
        self._sentence = None

    def _say(self, level: str, sentence: str) -> None:
        self._sentence = (level, sentence)
        self._log(sentence)
        self.update()

    def _log(self, text: str) -> None:
        self._ui.logText.appendPlainText(f"{time.strftime('%H:%M:%S')}  {text}")
