"""What the tests of the tools share: the panel with one of them open, its run, and what it says.

A tool is named as its widgets begin: ``check``, ``transport``, ``population``.
"""

from __future__ import annotations

import panel_support as desk


def opened(name, scene):
    """The panel with a tool open; for a fixture: ``yield from opened(name, scene)``."""
    for panel in desk.opened(scene):
        box = getattr(panel.ui, f"{name}Box")
        panel.ui.toolsButton.collapsed = box.collapsed = False
        yield panel
        if getattr(panel.parts, name).running:
            getattr(panel.ui, f"{name}Button").click()
        panel.ui.toolsButton.collapsed = box.collapsed = True


def said(name, panel):
    """What the tool says above its button."""
    label = getattr(panel.ui, f"{name}MessageLabel")
    return "" if label.isHidden() else desk.plain(label.text)


def run(name, text, panel, seconds=90):
    """Clicks the button with that text and waits for the end; returns what the tool says."""
    button, part = getattr(panel.ui, f"{name}Button"), getattr(panel.parts, name)
    assert button.enabled and button.text == text, (button.text, said(name, panel))
    button.click()
    assert part.running, said(name, panel)
    desk.until(lambda: not part.running, seconds, "the end")
    desk.settle()
    return said(name, panel)
