"""The choice of one segment of a mask, or of all of them."""

from __future__ import annotations

from slicer.i18n import tr as _

from DeepRegLib.bridge import mrml


class SegmentChoice:
    """A list of the segments of a mask; hidden for label maps, which have none.

    Args:
        combo: Lists the segments.
        onChosen: Called with the ID when the user chooses one; empty for all.
    """

    def __init__(self, combo, onChosen):
        self._combo, self._onChosen = combo, onChosen
        self._showing = False
        combo.connect("currentIndexChanged(int)", self._onIndex)

    def show(self, mask, chosen: str) -> bool:
        """Lists the segments of a mask; tells whether the chosen one is among them.

        Args:
            mask: Label map, segmentation or None.
            chosen: ID of a segment; empty for all.
        """
        self._showing = True
        try:
            return fillSegments(self._combo, mask, chosen)
        finally:
            self._showing = False

    def _onIndex(self, index) -> None:
        if not self._showing:
            self._onChosen(self._combo.itemData(index) or "")


def fillSegments(combo, mask, chosen: str) -> bool:
    """Lists the segments of a mask; tells whether the chosen one is among them."""
    hasSegments = mask is not None and mask.IsA("vtkMRMLSegmentationNode")
    combo.visible = hasSegments
    segments = mrml.segment_names(mask) if hasSegments else {}
    wanted = [("", _("All segments")), *segments.items()]
    shown = [(combo.itemData(n), combo.itemText(n)) for n in range(combo.count)]
    if shown != wanted:
        combo.clear()
        for identifier, name in wanted:
            combo.addItem(name, identifier)
    known = [identifier for identifier, _name in wanted]
    combo.currentIndex = known.index(chosen) if chosen in known else 0
    return mask is None or chosen in known
