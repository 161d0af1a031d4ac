"""The tool "Population": who is unlike the others, and what the subjects differ in."""

from __future__ import annotations

import html

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegLib.bridge.modes import kept_modes, mode_nodes
from DeepRegLib.bridge.population import (
    FIXED_ROLE,
    SHOWN_ROLE,
    PopulationRequest,
    population_findings,
    population_report,
)

from .Layers import showLayers
from .ModelList import knownModels, outline
from .ModeSliders import ModeSliders
from .Parameters import PopulationSource, membersOf
from .PopulationData import PopulationData
from .Texts import message
from .ToolChoices import Follower
from .ToolPart import ToolPart

#: Key of the system that judges deformations.
JUDGE = "coop_ae"
_ROW_HEIGHT = 22
_MOST_ROWS = 8


class PopulationTool(ToolPart):
    """Ranks the subjects of a population, and moves a transform along its modes.

    Args:
        ui: The panel's widgets.
        logic: `DeepRegLogic`, which starts the runs.
        occupied: Function that returns why the worker is not free, or an empty text.
        onBusy: Called when a run begins and when it ends.
        onShow: Called before a volume is shown in the views.
    """

    FORM, NAME = "PopulationTool", "population"

    def __init__(self, ui, logic, occupied, onBusy, onShow):
        ToolPart.__init__(self, ui, logic, occupied, onBusy)
        self._onShow = onShow
        self._asked = None
        self._follower = Follower({"populationFixed": "fixedVolume"})
        self.data = PopulationData(ui, self.update)
        self.sliders = ModeSliders(
            ui.populationModesBox, self._onMove, ui.populationSubjectsTable.clearSelection
        )
        #: What moves a transform along its modes (see `_identity`).
        self._modes = {}
        self._rows, self._shown = [], None
        ui.populationFixedSelector.setMRMLScene(slicer.mrmlScene)
        ui.populationFolderButton.connect("clicked(bool)", self._onFolder)
        ui.populationModelCombo.connect("currentIndexChanged(int)", self._onModel)
        ui.populationSubjectsTable.connect("cellClicked(int,int)", self._onSubject)
        ui.populationResetButton.connect("clicked(bool)", self._onReset)
        ui.populationShowButton.connect("clicked(bool)", self._onShowClicked)

    def invitation(self) -> str:
        """Returns what stands on the button when nothing is missing."""
        return _("Examine the population")

    def explanation(self) -> str:
        """Returns what the button does, for its tool tip."""
        return _("Find what the subjects differ in, and who is unlike the others.")

    def activity(self) -> str:
        """Returns what goes on while the tool runs."""
        return _("Examining the population")

    def missing(self) -> str:
        """Returns what has to be chosen before; an empty text if nothing."""
        node = self._node
        if node.populationFixed is None:
            return _("Select the common fixed volume")
        if node.populationSource is PopulationSource.FOLDER:
            return "" if node.populationFolder.strip() else _("Choose a folder")
        return "" if len(membersOf(node)) > 2 else _("Check three transforms or more")

    def findings(self) -> list:
        """Returns (level, sentence) of what speaks against it."""
        found = population_findings(*self._chosen(), translate=_)
        return [(f.level, f.text) for f in found]

    def begin(self, **callbacks):
        """Starts a run with the choices of the tool and returns it."""
        node = self._node
        request = PopulationRequest(
            *self._chosen(), modes=node.populationModes, linear=node.populationLinear,
            model=node.populationModel or None, device=node.device.value,
        )  # fmt: skip
        self._asked = node
        return self._logic.startPopulation(request, **callbacks)

    def take(self, outcome):
        """Shows the ranking, and the mean of the subjects in the views."""
        self._modes = {_identity(outcome.transform): outcome.modes}
        self._shown = None
        self._asked.populationResult = outcome.transform
        self._log(_("Added {name}").format(name=outcome.transform.GetName()))
        self._bringIntoView(outcome.transform)

    def setParameterNode(self, parameterNode) -> None:
        """Shows the choices of a parameter node."""
        self._follower.forget()
        if parameterNode is None:
            # The next scene has other transforms of the same IDs.
            self._modes = {}
        self._shown = None
        self.data.setParameterNode(parameterNode)
        ToolPart.setParameterNode(self, parameterNode)

    def close(self) -> None:
        """Ends what goes on by itself."""
        self.data.close()
        self.sliders.close()
        ToolPart.close(self)

    def _show(self) -> None:
        ui, node = self._ui, self._node
        self._follower.follow(node)
        self.data.update()
        isFolder = node.populationSource is PopulationSource.FOLDER
        ui.populationFolderLabel.visible = ui.populationFolderWidget.visible = isFolder
        ui.populationTable.visible = ui.populationAllButton.visible = not isFolder
        self._showModels()
        self._showReport()

    def _chosen(self) -> tuple:
        """Returns fixed volume, transforms and folder."""
        node = self._node
        if node.populationSource is PopulationSource.FOLDER:
            return node.populationFixed, (), node.populationFolder.strip()
        return node.populationFixed, membersOf(node), ""

    # What to examine ------------------------------------------------------------------------------

    def _showModels(self) -> None:
        """Lists the models that judge deformations; without any there is nothing to choose."""
        ui, chosen = self._ui, self._node.populationModel
        rows = [("", _("The other subjects alone"))]
        rows += [(f.name, f"{f.name} ({outline(f.card)})") for f in knownModels(JUDGE)]
        if chosen not in [name for name, _text in rows]:
            rows.append((chosen, chosen))
        combo = ui.populationModelCombo
        if [(combo.itemData(n), combo.itemText(n)) for n in range(combo.count)] != rows:
            combo.clear()
            for name, text in rows:
                combo.addItem(text, name)
        combo.currentIndex = [name for name, _text in rows].index(chosen)
        combo.visible = ui.populationModelTitleLabel.visible = len(rows) > 1

    def _onModel(self, index) -> None:
        if self._listens:
            self._node.populationModel = self._ui.populationModelCombo.itemData(index) or ""

    def _onFolder(self, checked=False) -> None:
        path = qt.QFileDialog.getExistingDirectory(
            slicer.util.mainWindow(), _("Choose a folder of transforms"),
            self._node.populationFolder,
        )  # fmt: skip
        if path:
            self._node.populationFolder = path
            self.update()

    # What came out --------------------------------------------------------------------------------

    def _showReport(self) -> None:
        ui, transform = self._ui, self._node.populationResult
        report = population_report(transform)
        ui.populationResultWidget.visible = report is not None
        if report is None:
            self._shown = None
            return
        modes = self._modesOf(transform)
        ui.populationModesBox.visible = ui.populationResetButton.visible = modes is not None
        ui.populationShowButton.enabled = transform.GetNodeReference(SHOWN_ROLE) is not None
        key = (_identity(transform), modes is not None)
        if key == self._shown:
            return
        self._shown = key
        lines = [_summary(report)]
        if modes is None:
            text = _("Examine the population again to move along its modes.")
            lines.append(message("note", text))
        ui.populationSummaryLabel.text = "<br>".join(lines)
        self._showSubjects(report)
        if modes is not None:
            self.sliders.build(report["variance_explained"][: modes.count], modes.place(transform))

    def _showSubjects(self, report) -> None:
        table, self._rows = self._ui.populationSubjectsTable, report["subjects"]
        columns = _columns(self._rows)
        table.clearContents()
        table.setColumnCount(len(columns))
        table.setHorizontalHeaderLabels([title for title, _key, _text in columns])
        table.setRowCount(len(self._rows))
        table.verticalHeader().setVisible(False)
        table.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
        for number, row in enumerate(self._rows):
            for column, (_title, key, text) in enumerate(columns):
                table.setItem(number, column, qt.QTableWidgetItem(text.format(row[key])))
        table.resizeColumnsToContents()
        table.horizontalHeader().setStretchLastSection(True)
        height = _ROW_HEIGHT * min(max(len(self._rows), 2), _MOST_ROWS) + 34
        table.setMinimumHeight(height)
        table.setMaximumHeight(height)

    def _onSubject(self, row, column) -> None:
        """Goes to where a subject lies along the modes."""
        transform = self._node.populationResult
        if transform is not None and self._modesOf(transform) is not None:
            self.sliders.show(self._rows[row]["coefficients"])

    def _modesOf(self, transform):
        """Returns what moves a transform; after a scene was opened, made of what it has kept."""
        key = _identity(transform)
        if key not in self._modes:
            kept = kept_modes(transform)
            if kept is not None:
                self._modes[key] = kept
        return self._modes.get(key)

    def _onReset(self, checked=False) -> None:
        self._ui.populationSubjectsTable.clearSelection()
        self.sliders.reset()

    def _onMove(self, values) -> None:
        transform = None if self._node is None else self._node.populationResult
        modes = None if transform is None else self._modesOf(transform)
        if modes is not None:
            modes.move(transform, values)

    def _onShowClicked(self, checked=False) -> None:
        self._bringIntoView(self._node.populationResult)

    def _bringIntoView(self, transform) -> None:
        """Shows the deformed copy of the fixed volume in all views."""
        self._onShow()
        fixed, volume = (transform.GetNodeReference(role) for role in (FIXED_ROLE, SHOWN_ROLE))
        if volume is None:
            return  # It was deleted, and the button is not yet disabled.
        known = [node.GetID() for node in (fixed, volume) if node is not None]
        composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
        isShown = any(node.GetBackgroundVolumeID() in known for node in composites)
        if not isShown and fixed is not None:
            # Turned and fitted by the volume that no deformation moves.
            hasViews = slicer.app.layoutManager() is not None
            showLayers(background=fixed, foreground=None, fit=True, rotateToVolumePlane=hasViews)
        showLayers(background=volume, foreground=None)


def _identity(transform) -> tuple:
    """Returns the IDs of a transform and of its modes, which an examination makes anew."""
    return (transform.GetID(), *(node.GetID() for node in mode_nodes(transform)))


def _summary(report) -> str:
    """Returns in two sentences how the subjects differ, as rich text."""
    text = _("{count} subjects on <b>{fixed}</b> deviate by {size} mm from their mean; {modes} of "
             "{all} modes hold 95 % of the variance.")  # fmt: skip
    return text.format(
        count=report["fields"], fixed=html.escape(report["fixed"]),
        size=f"{report['size_mm']:.1f}", modes=report["modes_for_95_percent"],
        all=len(report["variance_explained"]),
    )  # fmt: skip


def _columns(rows) -> list:
    """Returns title, key and format of the columns that there are figures for."""
    columns = [
        (_("Subject"), "name", "{}"),
        (_("Atypical by the model (mm)"), "atypicality_mm", "{:.2f}"),
        (_("Unlike the others (mm)"), "residual_mm", "{:.2f}"),
        (_("Far out (deviations)"), "deviation", "{:.1f}"),
    ]
    return [column for column in columns if column[1] in rows[0]]
