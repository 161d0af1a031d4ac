"""Registers the entries of the Data module's context menu."""

from __future__ import annotations

from pathlib import Path

import slicer

_PLUGIN = Path(__file__).with_name("DeepRegSubjectHierarchyPlugin.py")


def registerContextMenu() -> None:
    """Adds "Register this with DeepReg…" to the context menu of volumes, once per application."""
    # Slicer notes a scripted plugin under the name of its class.
    if hasattr(slicer, _PLUGIN.stem):
        return
    plugin = slicer.qSlicerSubjectHierarchyScriptedPlugin(None)
    plugin.setPythonSource(str(_PLUGIN))
