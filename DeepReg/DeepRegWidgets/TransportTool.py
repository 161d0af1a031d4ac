"""The tool "Apply a deformation to another subject"."""

from __future__ import annotations

import html

import slicer
from slicer.i18n import tr as _

from DeepRegLib.bridge.transport import (
    DEFORMED_ROLE,
    SUBJECT_ROLE,
    TransportRequest,
    carried_report,
    transport_findings,
)

from .Layers import showLayers
from .Texts import message
from .ToolChoices import Follower, ToolModel
from .ToolPart import ToolPart

#: Key of the system whose codes can be decoded for other subjects.
ALGORITHM = "cvae"
_FOLLOWED = {"transportFixed": "fixedVolume", "transportMoving": "movingVolume"}
#: Share of the subject, in percent, from which on folds are worth a warning.
_MANY_FOLDS = 0.5


class TransportTool(ToolPart):
    """Shows on another subject what a deformation of a first one would be there.

    Args:
        ui: The panel's widgets.
        logic: `DeepRegLogic`, which starts the runs.
        occupied: Function that returns why the worker is not free, or an empty text.
        onBusy: Called when a run begins and when it ends.
        onTrain: Called with the key of the system when a model is to be trained.
        onShow: Called before volumes are shown in the views.
    """

    FORM, NAME = "TransportTool", "transport"

    def __init__(self, ui, logic, occupied, onBusy, onTrain, onShow):
        ToolPart.__init__(self, ui, logic, occupied, onBusy)
        self._onShow = onShow
        self._asked = None
        self._follower = Follower(_FOLLOWED)
        for selector in (
            ui.transportFixedSelector, ui.transportMovingSelector, ui.transportSubjectSelector,
        ):  # fmt: skip
            selector.setMRMLScene(slicer.mrmlScene)
        self._model = ToolModel(
            ALGORITHM, ui.transportModelCombo, ui.transportModelBrowseButton,
            ui.transportTrainButton, ui.transportModelLabel,
            _("There is no model of such deformations yet. Train one on pairs like yours: choose "
              "the algorithm Latent diffeomorphic registration in the section Training. Or choose "
              "a file."),
            onTrain, self._onModel,
        )  # fmt: skip
        ui.transportPrefillButton.connect("clicked(bool)", self._onPrefill)
        ui.transportBeforeButton.connect("clicked(bool)", self._onBefore)
        ui.transportAfterButton.connect("clicked(bool)", self._onAfter)

    def invitation(self) -> str:
        """Returns what stands on the button when nothing is missing."""
        return _("Apply to the other subject")

    def explanation(self) -> str:
        """Returns what the button does, for its tool tip."""
        return _("Add the deformed volume of the other subject, and its transform.")

    def activity(self) -> str:
        """Returns what goes on while the tool runs."""
        return _("Carrying the deformation over")

    def missing(self) -> str:
        """Returns what has to be chosen before; an empty text if nothing."""
        node = self._node
        if node.transportFixed is None or node.transportMoving is None:
            return _("Select a fixed and a moving volume")
        if node.transportSubject is None:
            return _("Select the other subject")
        return "" if self._model.isThere(node.transportModel) else _("There is no model yet")

    def findings(self) -> list:
        """Returns (level, sentence) of what speaks against it."""
        node = self._node
        found = transport_findings(
            *self._volumes(), alignment=node.transportAlignment.value, translate=_
        )
        wrong = self._model.problems(node.transportModel)
        return [*wrong, *((f.level, f.text) for f in found)]

    def begin(self, **callbacks):
        """Starts a run with the choices of the tool and returns it."""
        node = self._node
        request = TransportRequest(
            *self._volumes(), model=node.transportModel, strength=node.transportStrength,
            alignment=node.transportAlignment.value, device=node.device.value,
        )  # fmt: skip
        self._asked = node
        return self._logic.startTransport(request, **callbacks)

    def take(self, outcome):
        """Shows the deformed subject."""
        self._asked.transportResult = outcome.transform
        self._log(_("Added {name}").format(name=outcome.volume.GetName()))
        self._look(outcome.transform, DEFORMED_ROLE)

    def setParameterNode(self, parameterNode) -> None:
        """Shows the choices of a parameter node."""
        self._follower.forget()
        ToolPart.setParameterNode(self, parameterNode)

    def _show(self) -> None:
        self._follower.follow(self._node)
        self._model.show(self._node.transportModel)
        self._showReport()

    def _volumes(self) -> tuple:
        node = self._node
        return node.transportFixed, node.transportMoving, node.transportSubject

    def _onPrefill(self, checked=False) -> None:
        if self._node is not None:
            self._follower.giveUp(self._node)
            self.update()

    def _onModel(self, name) -> None:
        if self._listens:
            self._node.transportModel = name
            self.update()

    def _showReport(self) -> None:
        ui, transform = self._ui, self._node.transportResult
        report = carried_report(transform)
        ui.transportResultWidget.visible = report is not None
        if report is None:
            return
        names = {role: f"<b>{html.escape(name)}</b>" for role, name in report["names"].items()}
        title = _("{subject} with the change from {moving} to {fixed}").format(**names)
        ui.transportTitleLabel.text = title
        ui.transportFiguresLabel.text = _figures(report)
        ui.transportBeforeButton.enabled = transform.GetNodeReference(SUBJECT_ROLE) is not None
        ui.transportAfterButton.enabled = transform.GetNodeReference(DEFORMED_ROLE) is not None

    def _onBefore(self, checked=False) -> None:
        self._look(self._node.transportResult, SUBJECT_ROLE)

    def _onAfter(self, checked=False) -> None:
        self._look(self._node.transportResult, DEFORMED_ROLE)

    def _look(self, transform, shown) -> None:
        """Shows a volume alone in all views, which stay where they are if they show its twin."""
        if transform.GetNodeReference(shown) is None:
            return  # It was deleted, and the button is not yet disabled.
        self._onShow()
        twins = [transform.GetNodeReference(role) for role in (SUBJECT_ROLE, DEFORMED_ROLE)]
        known = [twin.GetID() for twin in twins if twin is not None]
        composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
        isShown = any(node.GetBackgroundVolumeID() in known for node in composites)
        hasViews = slicer.app.layoutManager() is not None
        showLayers(
            background=transform.GetNodeReference(shown), foreground=None, fit=not isShown,
            rotateToVolumePlane=not isShown and hasViews,
        )  # fmt: skip


def _figures(report) -> str:
    """Returns what is known of a deformation that was carried over, as rich text."""
    text = _("Its tissue moves by {mean} mm in the mean, {largest} mm at most. Model {model}, "
             "strength {strength}.")  # fmt: skip
    told = text.format(
        mean=f"{report['mean_mm']:.1f}", largest=f"{report['largest_mm']:.1f}",
        model=html.escape(report["model"]), strength=f"{report['strength']:g}",
    )  # fmt: skip
    lines = [told]
    if report["folds_percent"] > _MANY_FOLDS:
        text = _("{number} % of the subject folds; take a smaller strength, or another model.")
        lines.append(message("warning", text.format(number=f"{report['folds_percent']:.1f}")))
    note = _("It shows what the model has learned of such changes, not what will happen.")
    return "<br>".join([*lines, message("note", note)])
