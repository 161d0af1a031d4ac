"""The tool "Check a registration": how far any transform of the scene is off, in mm."""

from __future__ import annotations

import html

import slicer
from slicer.i18n import tr as _

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.check import (
    FIXED_ROLE,
    MASK_ROLE,
    MOVING_ROLE,
    TRANSFORM_ROLE,
    CheckRequest,
    check_findings,
    report_of,
)
from DeepRegLib.pictures.error import worst_place

from .Histogram import Histogram
from .Layers import showLayers
from .MaskChoice import SegmentChoice
from .Texts import message, verdict
from .ToolChoices import Follower, ToolModel
from .ToolPart import ToolPart

#: Key of the system that estimates errors.
ALGORITHM = "error_map"
_ROLES = (FIXED_ROLE, MOVING_ROLE, TRANSFORM_ROLE, MASK_ROLE)
_FOLLOWED = {"checkFixed": "fixedVolume", "checkMoving": "movingVolume",
             "checkTransform": "resultTransform"}  # fmt: skip
_OPACITY = 0.6


class CheckTool(ToolPart):
    """Checks a transform, and shows where and how far it is off.

    Args:
        ui: The panel's widgets.
        logic: `DeepRegLogic`, which starts the runs.
        occupied: Function that returns why the worker is not free, or an empty text.
        onBusy: Called when a run begins and when it ends.
        onTrain: Called with the key of the system when a model is to be trained.
        onShow: Called before the error volume is shown in the views.
    """

    FORM, NAME = "CheckTool", "check"

    def __init__(self, ui, logic, occupied, onBusy, onTrain, onShow):
        ToolPart.__init__(self, ui, logic, occupied, onBusy)
        self._onShow = onShow
        self._follower = Follower(_FOLLOWED)
        self._asked = None
        #: What was checked, as it was then, by the ID of the error volume.
        self._stamps = {}
        self._histogram = Histogram(ui.checkHistogramBox)
        for selector in (ui.checkFixedSelector, ui.checkMovingSelector, ui.checkTransformSelector,
                         ui.checkMaskSelector):  # fmt: skip
            selector.setMRMLScene(slicer.mrmlScene)
        self._segment = SegmentChoice(ui.checkSegmentCombo, self._onSegment)
        self._model = ToolModel(
            ALGORITHM, ui.checkModelCombo, ui.checkModelBrowseButton, ui.checkTrainButton,
            ui.checkModelLabel,
            _("There is no model that estimates errors yet. Train one on images like yours, "
              "once: choose the algorithm Error map in the section Training. Or choose a file."),
            onTrain, self._onModel,
        )  # fmt: skip
        ui.checkPrefillButton.connect("clicked(bool)", self._onPrefill)
        ui.checkShowButton.connect("clicked(bool)", self._onShowClicked)
        ui.checkWorstButton.connect("clicked(bool)", self._onWorst)

    def invitation(self) -> str:
        """Returns what stands on the button when nothing is missing."""
        return _("Check")

    def explanation(self) -> str:
        """Returns what the button does, for its tool tip."""
        return _("Estimate how far the transform is off, in mm at every place.")

    def activity(self) -> str:
        """Returns what goes on while the tool runs."""
        return _("Estimating the error")

    def missing(self) -> str:
        """Returns what has to be chosen before a check; an empty text if nothing."""
        if self._node.checkFixed is None or self._node.checkMoving is None:
            return _("Select a fixed and a moving volume")
        isThere = self._model.isThere(self._node.checkModel)
        return "" if isThere else _("There is no model yet")

    def findings(self) -> list:
        """Returns (level, sentence) of what speaks against a check."""
        found = check_findings(*self._chosen(), **self._region(), translate=_)
        wrong = self._model.problems(self._node.checkModel)
        return [*wrong, *((f.level, f.text) for f in found)]

    def begin(self, **callbacks):
        """Starts a check with the choices of the tool and returns it."""
        node, nodes = self._node, self._chosen()
        request = CheckRequest(
            *nodes, **self._region(), model=node.checkModel, threshold_mm=node.checkThreshold,
            device=node.device.value,
        )  # fmt: skip
        self._asked = (node, _stamp((*nodes, node.checkMask)))
        return self._logic.startCheck(request, **callbacks)

    def take(self, outcome):
        """Shows the error volume over the fixed one, with its figures."""
        volume, (node, stamp) = outcome.volume, self._asked
        self._stamps[volume.GetID()] = stamp
        self._log(outcome.sentence)
        node.checkResult = volume
        self._bringIntoView(volume)

    def chooseModel(self, name: str) -> None:
        """Chooses a model, such as one that was just trained."""
        if self._node is not None:
            self._node.checkModel = name
            self.update()

    def _show(self) -> None:
        self._follower.follow(self._node)
        self._model.show(self._node.checkModel)
        if not self._segment.show(self._node.checkMask, self._node.checkSegment):
            self._node.checkSegment = ""
        self._showReport()

    def _chosen(self) -> tuple:
        return self._node.checkFixed, self._node.checkMoving, self._node.checkTransform

    def _region(self) -> dict:
        """Returns where errors count, as arguments of a check."""
        node = self._node
        return {"fixed_mask": node.checkMask, "fixed_segment": node.checkSegment}

    # What to check --------------------------------------------------------------------------------

    def setParameterNode(self, parameterNode) -> None:
        """Shows the choices of a parameter node."""
        self._follower.forget()
        if parameterNode is None:
            # The next scene has other volumes of the same IDs.
            self._stamps = {}
        ToolPart.setParameterNode(self, parameterNode)

    def _onPrefill(self, checked=False) -> None:
        if self._node is not None:
            self._follower.giveUp(self._node)
            self.update()

    def _onSegment(self, identifier) -> None:
        if self._listens:
            self._node.checkSegment = identifier

    def _onModel(self, name) -> None:
        if self._listens:
            self.chooseModel(name)

    # What came out --------------------------------------------------------------------------------

    def _showReport(self) -> None:
        ui, volume = self._ui, self._node.checkResult
        report = report_of(volume)
        ui.checkResultWidget.visible = report is not None
        if report is None:
            return
        ui.checkTitleLabel.text = _title(report["names"])
        lines = [verdict(report["verdict"], report["sentence"])]
        before = self._stamps.get(volume.GetID())
        nodes = [volume.GetNodeReference(role) for role in _ROLES]
        if before is not None and before != _stamp(nodes):
            lines.insert(0, message("warning", _("What was checked has changed; check it again.")))
        ui.checkVerdictLabel.text = "<br>".join(lines)
        ui.checkFiguresLabel.text = _figures(report)
        display = volume.GetDisplayNode()
        highest = display.GetLevel() + display.GetWindow() / 2
        text = _("Colors as in the histogram: 0 to {highest} mm or more; clear next to 0.")
        ui.checkScaleLabel.text = text.format(highest=f"{highest:g}")
        self._histogram.show(report["histogram"], report["threshold_mm"], highest)

    def _onShowClicked(self, checked=False) -> None:
        self._bringIntoView(self._node.checkResult)

    def _bringIntoView(self, volume) -> None:
        """Lays the error volume over the fixed one in all views."""
        self._onShow()
        fixed = volume.GetNodeReference(FIXED_ROLE)
        composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
        isShown = fixed is None or any(
            node.GetBackgroundVolumeID() == fixed.GetID() for node in composites
        )
        hasViews = slicer.app.layoutManager() is not None
        showLayers(
            background=fixed, foreground=volume, foregroundOpacity=_OPACITY, fit=not isShown,
            rotateToVolumePlane=not isShown and hasViews,
        )  # fmt: skip

    def _onWorst(self, checked=False) -> None:
        """Takes all views to the place with the largest error in the mean around."""
        volume = self._node.checkResult
        place = worst_place(mrml.volume_array(volume), mrml.grid_of(volume))
        world = mrml.points_between([place], volume, None)[0]
        self._bringIntoView(volume)
        for view in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            view.JumpSliceByCentering(*world)


def _stamp(nodes) -> tuple:
    """Returns what changes with the voxels and the places of what a check is about."""
    fixed, moving, transform, mask = nodes
    volumes = [node for node in (fixed, moving) if node is not None]
    images = [node.GetImageData() for node in volumes]
    places = [node.GetParentTransformNode() for node in volumes]
    if transform is not None:
        # It takes the place of what is above the moving volume.
        places = [*places[:1], transform]
    if mask is not None and mask.IsA("vtkMRMLVolumeNode"):
        images.append(mask.GetImageData())
    changes = [None if image is None else image.GetMTime() for image in images]
    changes += [None if place is None else place.GetTransformToWorldMTime() for place in places]
    return (*(node is not None for node in nodes), *changes)


def _title(names) -> str:
    """Returns in a line what was checked, as rich text."""
    shown = {role: f"<b>{html.escape(name)}</b>" for role, name in names.items()}
    text = _("{moving} on {fixed} as they lay on screen")
    if "transform" in shown:
        text = _("{moving} on {fixed} by {transform}")
    text = text.format(**shown)
    return _("{what}, inside {mask}").format(what=text, **shown) if "mask" in shown else text


def _figures(report) -> str:
    """Returns the figures of a check as rich text."""
    isInside = "mask" in report["names"]
    share = _("{number} % of the mask") if isInside else _("{number} % of the object")
    rows = [
        (_("Mean"), _("{number} mm").format(number=f"{report['mean_mm']:.1f}")),
        (_("Median"), _("{number} mm").format(number=f"{report['median_mm']:.1f}")),
        (_("95 % are below"), _("{number} mm").format(number=f"{report['p95_mm']:.1f}")),
        (_("Above {number} mm").format(number=f"{report['threshold_mm']:g}"),
         share.format(number=f"{report['share_above_percent']:.0f}")),
        (_("Judged"), share.format(number=f"{report['inside_percent']:.0f}")),
    ]  # fmt: skip
    cells = "".join(
        f"<tr><td>{html.escape(name)}&nbsp;&nbsp;</td><td><b>{html.escape(value)}</b></td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"
