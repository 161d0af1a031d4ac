"""What a training tells while it runs: points of its curves, remaining time, and files of both."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..registration.base import Event
from ..registration.trainable import Stage

#: Points of the curve of the training loss, about.
_POINTS = 400
#: What is known before the figures in the rows of the files.
_FIRST = ("kind", "step", "stage")


@dataclass(frozen=True)
class TrainingEvent(Event):
    """A message with figures.

    Args:
        data: ``point``: the latest row of the history; ``step``, ``steps``, ``seconds_left``.
    """

    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class History:
    """Rows of the curves: means of the loss terms over a few steps, and validations.

    A row is a dictionary with ``kind`` (``training``, ``validation`` or ``baseline``), ``step``
    (steps done), ``stage``, and figures: the terms of the loss as ``loss_*`` and their sum as
    ``loss``, ``learning_rate`` and ``gradient_norm``; or those of `validation`.

    Args:
        rows: The rows so far.
        sums: Sums of the figures since the last row of kind ``training``.
        count: Steps in these sums.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def step(self, step: int, steps: int, stage: Stage, figures: Mapping[str, float]) -> bool:
        """Notes a step that was done; returns whether that made a row."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        if self.count < max(1, steps // _POINTS) and step < steps:
            return False
        means = {name: value / self.count for name, value in self.sums.items()}
        self.add("training", step, stage.name, means)
        self.sums, self.count = {}, 0
        return True

    def add(self, kind: str, step: int, stage: str, figures: Mapping[str, float]) -> None:
        """Adds a row."""
        self.rows.append({"kind": kind, "step": step, "stage": stage, **figures})

    def write(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Writes ``history.json`` and ``history.csv``.

        Raises:
            OSError: If they cannot be written.
        """
        clean = [{k: _plain(v) for k, v in row.items()} for row in self.rows]
        text = json.dumps({**(about or {}), "rows": clean}, indent=1, allow_nan=False) + "\n"
        _replace(folder / "history.json", text)
        names = list(dict.fromkeys([*_FIRST, *(name for row in clean for name in row)]))
        path = folder / "history.csv.part"
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, names, restval="")
            writer.writeheader()
            writer.writerows(clean)
        path.replace(folder / "history.csv")

    def draw(self, path: Path, title: str = "") -> bool:
        """Draws the curves as PNG; returns whether matplotlib is there to do it."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:  # a convenience that Slicer's Python lacks
            return False
        figure = Figure(figsize=(9, 4), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        training = [row for row in self.rows if row["kind"] == "training"]
        for name in _names(training, "loss"):
            _curve(left, training, name)
        validation = [row for row in self.rows if row["kind"] == "validation"]
        for name in ("dice", "ncc"):
            _curve(right, validation, name)
            for row in self.rows:
                if row["kind"] == "baseline" and f"{name}_before" in row:
                    right.axhline(row[f"{name}_before"], ls=":", c="gray", label=f"{name} before")
        for axes, what in ((left, "training loss"), (right, "validation")):
            axes.set(xlabel="step", title=what)
            if axes.has_data():
                axes.legend(frameon=False)
        figure.suptitle(title)
        figure.savefig(path, dpi=110)
        return True


class Clock:
    """Tells how long a training took in all its runs, and how long it will still take.

    Args:
        before: Seconds of earlier runs.
        done: Steps of earlier runs.
    """

    def __init__(self, before: float = 0.0, done: int = 0) -> None:
        self._before, self._done = before, done
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Returns the seconds of all runs."""
        return self._before + time.perf_counter() - self._start

    def left(self, step: int, steps: int) -> float | None:
        """Returns the seconds that are left, at the speed of this run; None at its beginning."""
        if step <= self._done:
            return None
        return (time.perf_counter() - self._start) / (step - self._done) * (steps - step)


def sentence(step: int, steps: int, figures: Mapping[str, float]) -> str:
    """Returns the figures of a validation for people."""
    parts = []
    for name, before, text, form, unit in (
        ("dice", "dice_before", "Dice", ".3f", ""),
        ("ncc", "ncc_before", "correlation", ".3f", ""),
        ("error_mm", "error_before_mm", "error", ".2f", " mm"),
        ("correlation", "", "agreement r", ".3f", ""),
        ("rmse_mm", "deviation_mm", "error of the estimate", ".2f", " mm"),
    ):
        if name in figures:
            was = f" ({figures[before]:{form}} before)" if before in figures else ""
            parts.append(f"{text} {figures[name]:{form}}{unit}{was}")
    if "folds_percent" in figures:
        parts.append(f"folds {figures['folds_percent']:.3g} %")
    return f"Step {step} of {steps}: {', '.join(parts)}."


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _names(rows: list[dict[str, Any]], start: str) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if name.startswith(start)))


def _curve(axes: Any, rows: list[dict[str, Any]], name: str) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points), label=name.removeprefix("loss_"))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)
