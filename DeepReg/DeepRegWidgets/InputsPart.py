"""The section Inputs: segments of masks, swapping, and the checks before a run."""

from __future__ import annotations

import slicer

from .MaskChoice import fillSegments
from .Section import Section

_ROLES = ("Mask", "Points", "Labels")


class InputsPart(Section):
    """Segments of masks, and swapping.

    Args:
        ui: The panel's widgets.
    """

    def __init__(self, ui):
        Section.__init__(self, ui)
        ui.swapButton.connect("clicked(bool)", self._onSwap)
        ui.fixedSegmentCombo.connect("currentIndexChanged(int)", self._onFixedSegment)
        ui.movingSegmentCombo.connect("currentIndexChanged(int)", self._onMovingSegment)

    def _show(self) -> None:
        for side, combo in self._combos():
            mask = getattr(self._node, f"{side}Mask")
            chosen = getattr(self._node, f"{side}Segment")
            if not fillSegments(combo, mask, chosen):
                setattr(self._node, f"{side}Segment", "")

    def _combos(self):
        return (
            ("fixed", self._ui.fixedSegmentCombo),
            ("moving", self._ui.movingSegmentCombo),
        )

    def _onFixedSegment(self, index) -> None:
        self._onSegment("fixed", index)

    def _onMovingSegment(self, index) -> None:
        self._onSegment("moving", index)

    def _onSegment(self, side: str, index) -> None:
        if self._listens:
            combo = dict(self._combos())[side]
            setattr(self._node, f"{side}Segment", combo.itemData(index) or "")

    def _onSwap(self, checked=False) -> None:
        if self._node is None:
            return
        node = self._node
        with slicer.util.NodeModify(node.parameterNode):
            names = [("fixedVolume", "movingVolume"), ("fixedSegment", "movingSegment")]
            names += [(f"fixed{role}", f"moving{role}") for role in _ROLES]
            for first, second in names:
                a, b = getattr(node, first), getattr(node, second)
                setattr(node, first, b)
                setattr(node, second, a)


def preselect(parameterNode) -> None:
    """Chooses the first two volumes of the scene where none is chosen yet."""
    if parameterNode.fixedVolume is not None or parameterNode.movingVolume is not None:
        return
    volumes = [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        if node.GetClassName() == "vtkMRMLScalarVolumeNode" and not node.GetHideFromEditors()
    ]
    shown = _shown()
    volumes.sort(key=lambda node: shown.index(node.GetID()) if node.GetID() in shown else 9)
    for name, node in zip(("fixedVolume", "movingVolume"), volumes[:2]):
        setattr(parameterNode, name, node)


def _shown() -> list:
    """Returns the IDs of the volumes in the first slice view: background, then foreground."""
    for node in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        return [node.GetBackgroundVolumeID(), node.GetForegroundVolumeID()]
    return []
