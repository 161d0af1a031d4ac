"""How far a training is, from the worker's events: step, remaining time, points of the curve."""

from __future__ import annotations

import time

from slicer.i18n import tr as _

from .Texts import clock

_PREPARE = "prepare"


class TrainingProgress:
    """Collects what the events of one training say.

    Args:
        steps: Steps that were asked for.
    """

    def __init__(self, steps: int):
        self._steps = steps
        self._started = time.monotonic()
        self._base = self._begun = None
        self._step, self._left, self._told = 0, None, False
        self._stage = self._note = ""
        self.fraction = 0.0
        #: Rows as in a training's history: ``kind``, ``step``, ``loss`` …
        self.points = []

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started

    def take(self, event) -> bool:
        """Takes an event; tells whether the curve has a new point."""
        if event.kind not in ("stage", "progress", "message"):
            return False
        self._stage = event.stage or self._stage
        self.fraction = max(self.fraction, event.fraction)
        if event.kind == "message":
            self._note = event.text
        if self._stage == _PREPARE or not self._stage:
            return False
        if self._base is None:
            self._base, self._begun = event.fraction, time.monotonic()
        if "point" in event.data:
            self._step = event.data.get("step", self._step)
            self._steps = event.data.get("steps", self._steps)
            self._left = event.data.get("seconds_left")
            self.points.append(event.data["point"])
            self._told = True
            return True
        return False if self._told else self._count(event)

    def _count(self, event) -> bool:
        """Finds the step by the share of the whole, for events that do not tell it."""
        share = (self.fraction - self._base) / max(1e-6, 1.0 - self._base)
        step = round(share * self._steps)
        if event.kind != "progress" or step <= self._step:
            return False
        self._step = step
        if 0.02 < share < 1.0:
            self._left = (time.monotonic() - self._begun) * (1.0 - share) / share
        if event.value is not None:
            self.points.append({"kind": "training", "step": step, "loss": event.value})
        return event.value is not None

    def text(self) -> str:
        """Returns what stands below the progress bar."""
        parts = [_("Preparing the images")]
        if self._base is not None:
            text = _("Step {step} of {steps}")
            parts = [text.format(step=self._step, steps=self._steps)]
        parts.append(_("{time} elapsed").format(time=clock(self.seconds)))
        if self._left is not None and self._left >= 1:
            parts.append(_("about {time} left").format(time=clock(self._left)))
        line = " · ".join(parts)
        return f"{line}\n{self._note}" if self._note else line
