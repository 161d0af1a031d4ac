"""Sliders along the modes of a population, which move a transform while they are moved."""

from __future__ import annotations

import ctk
import qt
from slicer.i18n import tr as _

#: Farthest place along a mode, in standard deviations.
_REACH = 3.0
#: Shortest time between two moves: the views have to be drawn in between.
_THROTTLE_MS = 40


class ModeSliders:
    """A slider for each mode, from −3 to +3 standard deviations.

    Args:
        box: Group box that gets the sliders.
        onMove: Called with the places along all modes.
        onTouched: Called when a slider was moved by hand.
    """

    def __init__(self, box, onMove, onTouched):
        self._layout, self._onMove, self._onTouched = box.layout(), onMove, onTouched
        self._content = None
        self._sliders = []
        self._setting = False
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(_THROTTLE_MS)
        self._timer.connect("timeout()", self._move)

    @property
    def values(self) -> list:
        """The places along all modes, in standard deviations."""
        return [slider.value for slider in self._sliders]

    def build(self, explained, values) -> None:
        """Makes a slider for each mode.

        Args:
            explained: Share of the variance that the first 1, 2, ... shown modes hold.
            values: Where the transform lies along them, in standard deviations.
        """
        if self._content is not None:
            self._content.hide()
            self._layout.removeWidget(self._content)
            self._content.deleteLater()
        self._timer.stop()
        self._content = qt.QWidget()
        form = qt.QFormLayout(self._content)
        form.setContentsMargins(0, 0, 0, 0)
        self._sliders = []
        for number, share in enumerate(explained):
            own = share - (explained[number - 1] if number else 0.0)
            text = _("Mode {number} ({percent} %):")
            slider = self._slider(values[number])
            form.addRow(text.format(number=number + 1, percent=f"{100 * own:.0f}"), slider)
            self._sliders.append(slider)
        self._layout.addWidget(self._content)

    def show(self, values) -> None:
        """Goes to a place along the modes at once; the reach of the sliders limits it."""
        self._setting = True
        for slider, value in zip(self._sliders, values):
            slider.value = min(max(value, -_REACH), _REACH)
        self._setting = False
        self._move()

    def reset(self) -> None:
        """Goes back to the mean."""
        self.show([0.0] * len(self._sliders))

    def close(self) -> None:
        """Ends the timer."""
        self._timer.stop()
        # PythonQt would keep this object alive by the connection.
        self._timer.disconnect("timeout()", self._move)

    def _slider(self, value):
        slider = ctk.ctkSliderWidget()
        slider.minimum = -_REACH
        slider.maximum = _REACH
        slider.singleStep = 0.1
        slider.decimals = 1
        slider.value = round(min(max(value, -_REACH), _REACH), 1)
        slider.toolTip = _("Standard deviations from the mean of the subjects.")
        slider.connect("valueChanged(double)", self._onSlider)
        return slider

    def _onSlider(self, value) -> None:
        if self._setting:
            return
        self._onTouched()
        # Not started anew by each change: the transform would stand still while a hand moves.
        if not self._timer.active:
            self._timer.start()

    def _move(self) -> None:
        self._onMove(self.values)
