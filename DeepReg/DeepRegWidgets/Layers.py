"""What the slice views show."""

from __future__ import annotations

import slicer

from DeepRegLib.bridge.overlays import refresh_legends


def showLayers(**layers) -> None:
    """Sets layers of all slice views, with the color legends that belong to them.

    Args:
        layers: Arguments of `slicer.util.setSliceViewerLayers`.
    """
    slicer.util.setSliceViewerLayers(**layers)
    refresh_legends(slicer.mrmlScene)
