"""How often errors of a size occur, as a bar chart in the colors of the error volume."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from slicer.i18n import tr as _

from DeepRegLib.pictures.color_maps import color_map

from .Curve import Bars, Chart, Line


class Histogram(Chart):
    """Bars with the colors of their errors, and a line at the threshold.

    Args:
        box: Collapsible group box with a layout.
    """

    def __init__(self, box):
        Chart.__init__(self, box, _("Estimated error (mm)"))

    def show(self, histogram, threshold: float, highest: float) -> None:
        """Shows a histogram.

        Args:
            histogram: ``shares`` of the object, and ``edges_mm`` of the bins, one more.
            threshold: Where the line stands, mm.
            highest: The error with the brightest color, mm.
        """
        edges, heights = histogram["edges_mm"], [100.0 * s for s in histogram["shares"]]
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        colors = replace(color_map("error_mm"), high=highest).colors(middles)[:, :3].tolist()
        title = _("Threshold {number} mm").format(number=f"{threshold:g}")
        line = Line(title, [(threshold, 0.0), (threshold, max(heights))])
        share = _("Share of the voxels (%)")
        self.draw([line], share, bars=Bars(share, list(zip(middles, heights)), colors))
