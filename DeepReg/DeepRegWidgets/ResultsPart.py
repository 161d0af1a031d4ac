"""The section Results: verdict, card, ways to look at the result, curve, Python and report."""

from __future__ import annotations

import json

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.outcome import MAP_ROLE
from DeepRegLib.bridge.overlays import colored_as
from DeepRegLib.bridge.transforms import warp_as_vtk
from DeepRegLib.card import card_rows
from DeepRegLib.errors import DeepRegError

from .Comparison import VIEWS, Comparison, isComparisonShown
from .Curve import Curve
from .Layers import showLayers
from .Report import HISTORY_ATTRIBUTE, START_ATTRIBUTE, saveReport
from .StepsPlayer import StepsPlayer
from .Texts import message, verdict

_ROW_HEIGHT = 22
_LEAST_WIDTH = 60


class ResultsPart:
    """Shows the result that the parameter node refers to.

    Args:
        ui: The panel's widgets.
    """

    def __init__(self, ui):
        self._ui = ui
        self._node = None
        self._comparison = None
        self._shownID = None
        self._updating = False
        self._curve = Curve(ui.curveBox)
        self._player = StepsPlayer(ui.viewsWidget.layout(), self._onSteps)
        self._buttons = {view: getattr(ui, f"{view}Button") for view in VIEWS}
        for view, button in self._buttons.items():
            button.connect("clicked(bool)", lambda checked=False, v=view: self.show(v))
        ui.blendSlider.connect("valueChanged(double)", self._onBlend)
        ui.mapCombo.connect("currentIndexChanged(int)", self._onMap)
        ui.copyPythonButton.connect("clicked(bool)", self._onCopyPython)
        ui.saveReportButton.connect("clicked(bool)", self._onSaveReport)

    @property
    def player(self):
        """The `StepsPlayer` of the section."""
        return self._player

    @property
    def comparison(self):
        """The `Comparison` of the shown result; None without one."""
        return self._comparison

    def setParameterNode(self, parameterNode) -> None:
        """Shows the result of a parameter node; None shows nothing."""
        if parameterNode is None:
            self._forget()
        self._node = parameterNode
        self.update(force=True)

    def takeOutcome(self, outcome, request, startLinear) -> None:
        """Keeps with the transform what the section needs later, and shows the result."""
        transform = outcome.transform
        transform.SetAttribute(HISTORY_ATTRIBUTE, json.dumps(_thinned(outcome.history)))
        transform.SetAttribute(START_ATTRIBUTE, json.dumps(startLinear.tolist()))
        self._ui.resultsButton.collapsed = False
        self.update(force=True)
        self._bringIntoView(request.fixed)
        self.show("after")

    def update(self, force: bool = False) -> None:
        """Shows the result that the parameter node refers to now."""
        if self._node is None or self._updating:
            return
        transform = self._node.resultTransform
        shown = None if transform is None else transform.GetID()
        if shown == self._shownID and not force:
            return
        self._updating = True
        try:
            self._forget()
            self._shownID = shown
            card = None if transform is None else _cardOf(transform)
            self._showCard(card)
            if card is not None:
                self._prepareComparison(transform)
                self._curve.show(_loads(transform.GetAttribute(HISTORY_ATTRIBUTE)) or [])
        finally:
            self._updating = False

    def restoreView(self) -> None:
        """Shows the result again as it was looked at when the scene was saved."""
        if self._node is None or self._comparison is None:
            return
        overlay = self._node.overlay
        if self._node.view in VIEWS:
            self.show(self._node.view)
        index = self._ui.mapCombo.findData(overlay)
        if overlay and index > 0:
            self._ui.mapCombo.currentIndex = index

    def restoreComparison(self) -> None:
        """Takes charge of a composed picture that a loaded scene shows already."""
        if self._comparison is not None and not self._comparison.view and isComparisonShown():
            self.restoreView()

    def show(self, view: str) -> None:
        """Shows the result in one of `Comparison.VIEWS`."""
        if self._comparison is None:
            return
        if not self._comparison.complete:
            self._ui.verdictLabel.text = message(
                "warning", _("A volume of this result was deleted; run the registration again.")
            )
            return
        self._player.leave()
        self._comparison.forgetPictures()
        self._comparison.show(view)
        for name, button in self._buttons.items():
            button.checked = name == view
        self._ui.blendSlider.enabled = view in ("before", "after")
        self._node.view = view
        if self._ui.mapCombo.currentIndex > 0:
            self._ui.mapCombo.currentIndex = 0

    def close(self) -> None:
        """Stops flickering and takes composed pictures away."""
        self._forget()

    def stopFlicker(self) -> None:
        """Stops flickering, and the play of the steps, when the panel is left."""
        isPlayed = self._player.looking
        if self._comparison is not None and (isPlayed or self._comparison.view == "flicker"):
            self.show("after")

    def leaveViews(self) -> None:
        """Leaves the views to something else that is to be looked at."""
        self._player.leave()
        self._quitViews()

    def _onSteps(self) -> None:
        self._quitViews()
        self._ui.blendSlider.enabled = True

    def _quitViews(self) -> None:
        if self._comparison is None:
            return
        self._comparison.close()
        for button in self._buttons.values():
            button.checked = False
        if self._ui.mapCombo.currentIndex > 0:
            self._updating = True
            self._ui.mapCombo.currentIndex = 0
            self._updating = False
            self._node.overlay = ""
            self._showScale("")

    def _forget(self) -> None:
        self._player.hide()
        if self._comparison is not None:
            self._comparison.dispose()
        self._comparison = None
        self._shownID = None
        for button in self._buttons.values():
            button.checked = False

    def _showCard(self, card) -> None:
        ui = self._ui
        known = card is not None
        ui.cardTable.visible = ui.viewsWidget.visible = ui.curveBox.visible = known
        ui.copyPythonButton.enabled = ui.saveReportButton.enabled = known
        if not known:
            ui.verdictLabel.text = _("No result yet.")
            return
        quality, _provenance = card
        ui.verdictLabel.text = _verdictText(quality)
        rows = card_rows(quality)
        table = ui.cardTable
        table.setColumnCount(3)
        table.setRowCount(len(rows))
        table.setHorizontalHeaderLabels([_("Measure"), _("Before"), _("After")])
        table.verticalHeader().setVisible(False)
        table.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
        for row, texts in enumerate(rows):
            for column, text in enumerate(texts):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(text)
                table.setItem(row, column, item)
        table.resizeColumnsToContents()
        # The last column takes what is left; a long name of a model is cut off there.
        table.setColumnWidth(2, _LEAST_WIDTH)
        table.horizontalHeader().setStretchLastSection(True)

    def _prepareComparison(self, transform) -> None:
        moving = transform.GetNodeReference(transform.GetMovingNodeReferenceRole())
        fixed = transform.GetNodeReference(transform.GetFixedNodeReferenceRole())
        if moving is None or fixed is None:
            self._ui.viewsWidget.visible = False
            return
        start = _loads(transform.GetAttribute(START_ATTRIBUTE))
        moved = self._node.movedVolume if self._node.wantMoved else None
        self._comparison = Comparison(
            fixed, moving, transform, moved, None if start is None else warp_as_vtk(start)
        )
        self._comparison.setBlend(self._ui.blendSlider.value)
        self._player.setBlend(self._ui.blendSlider.value)
        self._player.show(transform, fixed, moving)
        combo = self._ui.mapCombo
        combo.clear()
        combo.addItem(_("None"), "")
        for kind in _mapKinds(transform):
            combo.addItem(_mapTitle(kind), kind)
        combo.currentIndex = 0
        self._showScale("")

    def _onBlend(self, value) -> None:
        self._player.setBlend(value)
        if self._comparison is not None:
            self._comparison.setBlend(value)

    def _onMap(self, index) -> None:
        if self._updating or self._comparison is None or self._node is None:
            return
        kind = self._ui.mapCombo.itemData(index)
        self._node.overlay = kind or ""
        self._showScale(kind)
        if not kind:
            if not self._comparison.view:
                self.show(self._node.view if self._node.view in VIEWS else "after")
            return
        transform = self._node.resultTransform
        self._player.leave()
        self._comparison.close()
        for button in self._buttons.values():
            button.checked = False
        showLayers(
            background=transform.GetNodeReference(transform.GetFixedNodeReferenceRole()),
            foreground=transform.GetNodeReference(MAP_ROLE + kind),
            foregroundOpacity=0.6,
        )

    def _showScale(self, kind) -> None:
        """Says what the colors of a map mean."""
        label = self._ui.mapScaleLabel
        label.visible = bool(kind)
        if kind:
            node = self._node.resultTransform.GetNodeReference(MAP_ROLE + kind)
            display = node.GetDisplayNode()
            label.text = _scale(kind, display.GetLevel() + display.GetWindow() / 2)

    def _onCopyPython(self, checked=False) -> None:
        card = _cardOf(self._node.resultTransform)
        slicer.app.clipboard().setText(card[1].get("console", card[1].get("python", "")))
        slicer.util.showStatusMessage(_("Copied; paste it into the Python console."), 4000)

    def _onSaveReport(self, checked=False) -> None:
        name = f"{self._node.resultTransform.GetName()}.html"
        path = qt.QFileDialog.getSaveFileName(
            slicer.util.mainWindow(), _("Save report"), name, _("Web page (*.html)")
        )
        if not path:
            return
        try:
            saveReport(path, self._node.resultTransform, self._node.movedVolume)
        except (DeepRegError, OSError) as error:
            slicer.util.errorDisplay(_("The report was not saved: {error}").format(error=error))
            return
        slicer.util.showStatusMessage(_("Saved {path}").format(path=path), 4000)

    def _bringIntoView(self, fixed) -> None:
        """Turns and fits the views to the fixed volume, unless they show it already."""
        composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
        if all(node.GetBackgroundVolumeID() != fixed.GetID() for node in composites):
            hasViews = slicer.app.layoutManager() is not None
            showLayers(background=fixed, fit=True, rotateToVolumePlane=hasViews)


def _mapKinds(transform) -> list:
    """Returns the kinds of maps that a result has colors for."""
    count = transform.GetNumberOfNodeReferenceRoles()
    roles = [transform.GetNthNodeReferenceRole(number) or "" for number in range(count)]
    kinds = [
        role.removeprefix(MAP_ROLE)
        for role in roles
        if role.startswith(MAP_ROLE) and transform.GetNodeReference(role) is not None
    ]
    return [kind for kind in kinds if colored_as(kind)]


def _mapTitle(kind: str) -> str:
    titles = {
        "jacobian": _("Local volume change (Jacobian)"),
        "uncertainty_mm": _("Uncertainty in mm"),
        "error_mm": _("Predicted error in mm"),
        "inconsistency_mm": _("Inverse inconsistency in mm"),
        "velocity_deviation_mm": _("Spread of the velocity in mm"),
    }
    name = kind.removesuffix("_mm").replace("_", " ").capitalize()
    return titles.get(kind, _("{name} in mm").format(name=name))


def _scale(kind: str, highest: float) -> str:
    if kind == "jacobian":
        return _("Blue shrinks, red grows, magenta folds; nothing where the volume is kept.")
    colors = {"uncertainty_mm": _("violet to yellow")}
    return _("{colors}: 0 to {highest} mm or more; nothing next to 0.").format(
        colors=colors.get(kind, _("black to yellow")).capitalize(), highest=f"{highest:g}"
    )


def _verdictText(quality) -> str:
    lines = [verdict(quality.get("verdict", ""), quality.get("sentence", ""))]
    lines += [
        message("note", reason)
        for reason in quality.get("reasons", [])
        if reason != quality.get("sentence")
    ]
    return "<br>".join(lines)


def _cardOf(transform):
    try:
        return mrml.card_of(transform)
    except DeepRegError:
        return None


def _loads(text):
    try:
        return json.loads(text) if text else None
    except json.JSONDecodeError:
        return None


def _thinned(history, most: int = 400) -> list:
    """Returns at most so many entries, evenly picked, the last one included."""
    if len(history) <= most:
        return list(history)
    step = (len(history) - 1) / (most - 1)
    return [history[round(n * step)] for n in range(most)]
