"""Plays how a registration came to its result: a button, a slider, and the step in words.

The steps are a sequence in the scene (`DeepRegLib.bridge.trajectory`), which Slicer's module
Sequences plays: it changes a transform, the proxy. While somebody looks, a hidden second view of
the moving volume hangs under that, over the fixed volume; the volumes themselves stay where they
are.
"""

from __future__ import annotations

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from DeepRegLib.bridge.trajectory import add_walker, browser_of, proxy_of, step_name

from .Layers import showLayers
from .Texts import message


class StepsPlayer:
    """The row that plays the steps of the shown result; hidden if it has none.

    Args:
        layout: Box layout that gets the row.
        onLook: Called before the views begin to show the steps.
    """

    def __init__(self, layout, onLook):
        self._layout, self._onLook = layout, onLook
        self._box = self._button = self._seek = self._label = None
        self._browser = self._fixed = self._moving = self._walker = None
        self._tag = None
        self._blend = 0.5
        #: Whether the button started what is playing.
        self._playing = False

    @property
    def looking(self) -> bool:
        """Whether the views show the steps."""
        return self._walker is not None and self._walker.GetScene() is not None

    @property
    def _isWhole(self) -> bool:
        nodes = [self._browser, self._fixed, self._moving]
        if any(node.GetScene() is not slicer.mrmlScene for node in nodes):
            return False
        sequence = self._browser.GetMasterSequenceNode()
        return sequence is not None and self._browser.GetProxyNode(sequence) is not None

    def show(self, transform, fixed, moving) -> None:
        """Offers the steps of a result; nothing if it has none, or nothing to play them with.

        Args:
            transform: Transform of the result.
            fixed: Fixed volume.
            moving: Moving volume.
        """
        self.hide()
        browser = browser_of(transform)
        if browser is None or not hasattr(slicer, "qMRMLSequenceBrowserSeekWidget"):
            return
        if self._box is None:
            self._build()
        self._browser, self._fixed, self._moving = browser, fixed, moving
        self._tag = browser.AddObserver(vtk.vtkCommand.ModifiedEvent, self._onBrowser)
        self._seek.setMRMLSequenceBrowserNode(browser)
        self._box.visible = True
        self._update()

    def hide(self) -> None:
        """Ends the play and lets go of all nodes."""
        self.leave()
        if self._browser is None:
            return
        self._browser.RemoveObserver(self._tag)
        self._seek.setMRMLSequenceBrowserNode(None)
        self._box.visible = False
        self._browser = self._fixed = self._moving = self._tag = None

    def pause(self) -> None:
        """Stops at the present step."""
        self._playing = False
        if self._browser is not None:
            self._browser.SetPlaybackActive(False)

    def leave(self) -> None:
        """Stops and takes what was shown away; the views are for others then."""
        self.pause()
        if self._walker is None:
            return
        walker, self._walker = self._walker, None
        if walker.GetScene() is not None:
            display = walker.GetDisplayNode()
            walker.GetScene().RemoveNode(walker)
            if display is not None and display.GetScene() is not None:
                display.GetScene().RemoveNode(display)

    def setBlend(self, weight: float) -> None:
        """Sets how much of the moving volume shows, from 0 to 1."""
        self._blend = float(weight)
        if self.looking:
            showLayers(foregroundOpacity=self._blend)

    def _build(self) -> None:
        self._box = qt.QWidget()
        self._box.objectName = "stepsBox"
        form = qt.QVBoxLayout(self._box)
        form.setContentsMargins(0, 0, 0, 0)
        row = qt.QHBoxLayout()
        self._button = qt.QPushButton()
        self._button.checkable = True
        self._button.toolTip = _(
            "Show how the registration found its way, from its start to the result. The sequence "
            "is in the scene: its transform '... step by step' moves whatever is put under it."
        )
        self._button.connect("clicked(bool)", self._onPlay)
        self._seek = slicer.qMRMLSequenceBrowserSeekWidget()
        slider = self._seek.slider()
        slider.toolTip = _("Step of the registration; the last one is the result.")
        # What the play itself moves is no action of a person.
        slider.connect("actionTriggered(int)", self._onSlider)
        row.addWidget(self._button)
        row.addWidget(self._seek, 1)
        form.addLayout(row)
        self._label = qt.QLabel()
        self._label.wordWrap = True
        form.addWidget(self._label)
        self._layout.addWidget(self._box)

    def _onPlay(self, on) -> None:
        if not on:
            self.pause()
            return
        if not self._look():
            return
        if self._browser.GetSelectedItemNumber() >= self._browser.GetNumberOfItems() - 1:
            self._browser.SelectFirstItem()
        self._playing = True
        self._browser.SetPlaybackActive(True)

    def _onSlider(self, action) -> None:
        self.pause()
        self._look()

    def _look(self) -> bool:
        """Shows the moving volume at the present step, over the fixed one, if all is there."""
        if not self._isWhole:
            self._button.checked = False
            self._label.text = message(
                "warning", _("A part of these steps was deleted; run the registration again.")
            )
            return False
        if not self.looking:
            self._onLook()
            self._walker = add_walker(slicer.mrmlScene, self._moving, proxy_of(self._browser))
            showLayers(
                background=self._fixed, foreground=self._walker, foregroundOpacity=self._blend
            )
        return True

    def _onBrowser(self, caller, event) -> None:
        if self._playing and not self._browser.GetPlaybackActive():
            # Slicer goes back to the first step at the end; the result is what remains here.
            self._playing = False
            self._browser.SelectLastItem()
        self._update()

    def _update(self) -> None:
        playing = bool(self._browser.GetPlaybackActive())
        self._button.checked = playing
        self._button.text = _("Pause") if playing else _("Play the steps")
        self._label.text = stepText(step_name(self._browser))


def stepText(name: str) -> str:
    """Returns what led to a step, in words; the name itself if it is not known."""
    ways = {"R": _("left to right"), "A": _("back to front"), "S": _("down to up")}
    agents = {"coarse": _("coarse agent"), "fine": _("fine agent")}
    if name == "start":
        return _("The start of the registration")
    agent, colon, _rest = name.partition(": ")
    if colon and agent in agents:
        return _("What the {agent} found").format(agent=agents[agent])
    action = name.removeprefix("turn ")
    if len(action) != 2 or action[0] not in ways or action[1] not in "+-":
        return name
    sign = "+" if action[1] == "+" else "−"
    if action != name:
        return _("Turn about {axis}, {sign}").format(axis=action[0], sign=sign)
    text = _("Shift along {axis} ({way}), {sign}")
    return text.format(axis=action[0], way=ways[action[0]], sign=sign)
