"""Small texts of the panel: durations and messages with a sign of their weight."""

from __future__ import annotations

import html

from slicer.i18n import tr as _

#: Signs and colors that can be told apart without seeing colors, on light and dark backgrounds.
_SIGNS = {"error": ("✖", "#d63031"), "warning": ("⚠", "#c87f0a"), "note": ("ℹ", "#2b7bb9"),
          "ok": ("✔", "#2e9d4d")}  # fmt: skip


def message(level: str, text: str) -> str:
    """Returns a sentence as rich text, with the sign of its level (a key of `_SIGNS`)."""
    sign, color = _SIGNS[level]
    return f'<span style="color:{color};"><b>{sign}</b></span> {html.escape(text)}'


def verdict(color: str, sentence: str) -> str:
    """Returns the verdict of the quality card as rich text."""
    names = {
        "green": ("ok", _("Good")),
        "amber": ("warning", _("Check")),
        "red": ("error", _("Do not use")),
    }
    level, name = names.get(color, ("note", _("Unknown")))
    sign, hue = _SIGNS[level]
    return (
        f'<span style="color:{hue}; font-size:large;"><b>{sign} {html.escape(name)}</b></span>'
        f"<br>{html.escape(sentence)}"
    )


def clock(seconds: float) -> str:
    """Returns seconds as 0:07 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def duration(seconds: float) -> str:
    """Returns a rough duration in words."""
    if seconds < 90:
        return _("{number} s").format(number=max(1, round(seconds)))
    if seconds < 5400:
        return _("{number} min").format(number=round(seconds / 60))
    return _("{number} h").format(number=f"{seconds / 3600:.1f}")
