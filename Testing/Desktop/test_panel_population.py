"""The tool "Population": from check marks to the ranking and the sliders along the modes."""

from functools import partial

import model_support
import numpy as np
import panel_support as desk
import pytest
import tool_support

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.modes import MODES_ROLE
from DeepRegLib.bridge.population import population_report

BUTTON = "Examine the population"
said = partial(tool_support.said, "population")
examine = partial(tool_support.run, "population", BUTTON)
WEIGHTS = (-1.0, 0.2, 0.7, -0.3, 0.5)
#: The middle of the bump, in the fixed volume's own RAS.
PLACE = (3.0, -2.0, 4.0)


@pytest.fixture
def panel(scene, no_models):
    yield from tool_support.opened("population", scene)


def bump(points, size):
    near = np.exp(-((points - np.array(PLACE)) ** 2).sum(-1, keepdims=True) / 120.0)
    return size * near * np.array([1.0, -0.6, 0.8])


def odd(points):
    """What only one subject has."""
    near = np.exp(-((points - [-6.0, 6.0, -5.0]) ** 2).sum(-1, keepdims=True) / 90.0)
    return near * np.array([0.0, 5.0, 2.0])


@pytest.fixture
def people(panel):
    """An atlas, and transforms of five people with it; the last has something of its own."""
    import slicer

    fixed = desk.make_fixed("Atlas")
    grid = mrml.grid_of(fixed)
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    nodes = []
    for number, weight in enumerate(WEIGHTS, start=1):
        u = bump(points, 1.0 + 3.0 * weight) + (odd(points) if number == 5 else 0.0)
        matrix = np.eye(4)
        matrix[:3, 3] = (number, 2, -3)
        moving = desk.add_volume(np.zeros((2, 2, 2), "f4"), f"Person {number}")
        nodes.append(mrml.add_warp(slicer.mrmlScene, f"T{number}", matrix, np.moveaxis(u, -1, 0),
                                   grid, fixed=fixed, moving=moving))  # fmt: skip
    panel.ui.populationFixedSelector.setCurrentNode(fixed)
    desk.until(lambda: panel.ui.populationTable.rowCount == 5, 5, "the transforms")
    return fixed, nodes


def there(transform, place=PLACE):
    """Where a point of the fixed volume goes, in the world."""
    import vtk

    general = vtk.vtkGeneralTransform()
    transform.GetTransformToWorld(general)
    return np.array(general.TransformPoint(place))


def texts(table):
    rows, columns = range(table.rowCount), range(table.columnCount)
    return [[table.item(row, column).text() for column in columns] for row in rows]


def sliders(panel):
    return panel.parts.population.sliders._sliders


def test_the_population_on_screen(panel, people):
    """From check marks to the ranking; the sliders move the copy of the fixed volume live."""
    import slicer

    ui, (fixed, nodes) = panel.ui, people
    above = desk.add_linear("Above", turn=(0.2, 0.3, -0.1), shift=(10, -20, 5))
    for node in (fixed, *nodes):
        node.SetAndObserveTransformNodeID(above.GetID())
    desk.until(lambda: ui.populationTable.rowCount == 6, 3, "the new transform")
    assert ui.populationButton.text == "Check three transforms or more"
    ui.populationAllButton.click()
    assert ui.populationTable.cellWidget(0, 1).text == "Person 1 with Atlas"
    assert examine(panel) == ""
    transform = panel._parameterNode.populationResult
    shown = slicer.mrmlScene.GetFirstNodeByName("Atlas along modes")
    assert transform.GetName() == "Atlas mode" and transform.GetParentTransformNode() is above
    assert shown.GetParentTransformNode() is transform
    assert fixed.GetParentTransformNode() is above
    composite = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    assert composite.GetBackgroundVolumeID() == shown.GetID()
    # The ranking: who has something of his own comes first.
    rows = texts(ui.populationSubjectsTable)
    assert rows[0][0] == "Person 5" and len(rows) == 5
    assert float(rows[0][1]) > 3 * float(rows[1][1])
    report = population_report(transform)
    assert f"{report['size_mm']:.1f} mm" in desk.plain(ui.populationSummaryLabel.text)
    # A subject of the table is a place along the modes.
    number = [row[0] for row in rows].index("Person 1")
    wanted = fixed_point(above, np.array(PLACE) + bump(np.array(PLACE), 1.0 + 3.0 * WEIGHTS[0]))
    ui.populationSubjectsTable.selectRow(number)
    ui.populationSubjectsTable.cellClicked.emit(number, 0)
    assert np.linalg.norm(there(transform) - wanted) < 0.5
    assert any(abs(slider.value) > 0.1 for slider in sliders(panel))
    sliders(panel)[0].value = 0.4
    assert not ui.populationSubjectsTable.selectedItems(), "no subject any more"
    ui.populationResetButton.click()
    assert [slider.value for slider in sliders(panel)] == [0.0] * len(sliders(panel))
    mean = fixed_point(above, np.array(PLACE) + bump(np.array(PLACE), 1.0 + 3.0 * 0.02))
    assert np.linalg.norm(there(transform) - mean) < 0.5
    # Sliders move it: a little later, and once for many changes.
    times = []
    transform.AddObserver(slicer.vtkMRMLTransformableNode.TransformModifiedEvent,
                          lambda *_: times.append(1))  # fmt: skip
    at_mean = there(transform)
    for value in np.linspace(0.1, 2.0, 20):
        sliders(panel)[0].value = value
    assert not times and np.allclose(there(transform), at_mean)
    desk.until(lambda: len(times) > 0, 3, "a move")
    desk.settle(0.15)
    at_two = there(transform)
    assert np.linalg.norm(at_two - at_mean) > 3.0 and len(times) < 8
    sliders(panel)[0].value = -2.0
    desk.settle(0.15)
    np.testing.assert_allclose(there(transform) - at_mean, at_mean - at_two, atol=1e-3)


def fixed_point(above, point):
    import vtk

    general = vtk.vtkGeneralTransform()
    above.GetTransformToWorld(general)
    return np.array(general.TransformPoint(point))


def test_again_with_other_choices(panel, people):
    """The same nodes take the new population; few subjects have modes but no ranking."""
    ui, (_fixed, nodes) = panel.ui, people
    ui.populationAllButton.click()
    ui.populationModesSpinBox.value = 1
    examine(panel)
    transform = panel._parameterNode.populationResult
    assert len(sliders(panel)) == 1 and ui.populationTable.rowCount == 5
    panel.parts.population.data.check(nodes[4], False)
    panel.parts.population.data.check(nodes[3], False)
    ui.populationModesSpinBox.value = 3
    assert "at least four" in said(panel)
    assert "at least four" in examine(panel)
    assert panel._parameterNode.populationResult is transform
    rows = texts(ui.populationSubjectsTable)
    assert rows == [["Person 1"], ["Person 2"], ["Person 3"]] and len(sliders(panel)) < 3
    panel.parts.population.data.check(nodes[2], False)
    assert ui.populationButton.text == "Check three transforms or more"


def test_a_folder_and_a_model_that_judges(panel, people, models_folder, tmp_path):
    import slicer

    ui, (_fixed, nodes) = panel.ui, people
    assert ui.populationModelCombo.isHidden()
    model_support.write_latent(models_folder, "coop_ae", "judge")
    for node in nodes:
        assert slicer.util.saveNode(node, str(tmp_path / f"{node.GetName()}.h5"))
    ui.populationSourceCombo.setCurrentIndex(1)
    assert ui.populationButton.text == "Choose a folder" and ui.populationTable.isHidden()
    ui.populationFolderEdit.text = str(tmp_path)
    assert not ui.populationModelCombo.isHidden()
    ui.populationModelCombo.setCurrentIndex(1)
    assert examine(panel) == ""
    report = population_report(panel._parameterNode.populationResult)
    assert sorted(report["names"]) == ["T1", "T2", "T3", "T4", "T5"]
    rows = texts(ui.populationSubjectsTable)
    judged = [float(row[1]) for row in rows]
    assert len(rows[0]) == 4 and judged == sorted(judged, reverse=True)
    before = desk.census()
    ui.populationFolderEdit.text = str(tmp_path / "nothing")
    assert "nothing" in examine(panel) and desk.census() == before


def test_failures_and_cancel_leave_the_scene_as_it_was(panel, people):
    import slicer

    ui, (fixed, nodes) = panel.ui, people
    other = desk.make_moving("Other")
    ui.populationAllButton.click()
    ui.populationFixedSelector.setCurrentNode(other)
    assert "belongs to the fixed volume 'Atlas', not to 'Other'" in said(panel)
    ui.populationFixedSelector.setCurrentNode(fixed)
    assert said(panel) == ""
    before = desk.census()
    ui.populationButton.click()
    assert ui.populationButton.text == "Cancel" and not ui.populationForm.enabled
    desk.until(
        lambda: ui.applyButton.text == "A population is being examined", 3, "the button's text"
    )
    ui.populationButton.click()
    desk.until(lambda: not panel.parts.population.running, 5, "the end")
    assert "Cancelled; nothing was changed" in said(panel) and desk.census() == before
    linear = [desk.add_linear(f"L{n}", shift=(n, 0, 0)) for n in range(3)]
    desk.until(lambda: ui.populationTable.rowCount == 8, 3, "the linear transforms")
    for node in nodes:
        panel.parts.population.data.check(node, False)
    for node in linear:
        panel.parts.population.data.check(node)
    assert "None of the transforms deforms" in examine(panel)
    ui.populationLinearCheckBox.checked = True
    assert "at least four" in examine(panel)
    assert panel._parameterNode.populationResult is not None
    slicer.mrmlScene.RemoveNode(panel._parameterNode.populationResult)
    desk.settle(0.2)
    assert ui.populationResultWidget.isHidden()
    ui.populationResetButton.click()


def test_ranking_and_modes_are_there_again_with_the_scene(panel, people, tmp_path):
    import slicer

    ui = panel.ui
    ui.populationAllButton.click()
    examine(panel)
    before = texts(ui.populationSubjectsTable)
    ui.populationSubjectsTable.cellClicked.emit(0, 0)
    place = panel.parts.population.sliders.values
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    desk.settle()
    assert ui.populationResultWidget.isHidden() and ui.populationTable.rowCount == 0
    slicer.util.loadScene(path)
    desk.settle()
    assert texts(ui.populationSubjectsTable) == before
    assert not ui.populationModesBox.isHidden() and not ui.populationResetButton.isHidden()
    node = panel._parameterNode.populationResult
    sliders = panel.parts.population.sliders
    np.testing.assert_allclose(sliders.values, place, atol=0.051)
    at_place = there(node)
    ui.populationResetButton.click()
    desk.settle(0.2)
    assert np.linalg.norm(there(node) - at_place) > 1.0
    for _ in range(node.GetNumberOfNodeReferences(MODES_ROLE)):
        slicer.mrmlScene.RemoveNode(node.GetNthNodeReference(MODES_ROLE, 0))
    panel.parts.population.setParameterNode(None)
    panel.parts.population.setParameterNode(panel._parameterNode)
    assert "again to move along" in desk.plain(ui.populationSummaryLabel.text)
    assert ui.populationModesBox.isHidden() and ui.populationResetButton.isHidden()
    ui.populationSubjectsTable.cellClicked.emit(0, 0)
    examine(panel)
    assert not ui.populationModesBox.isHidden() and texts(ui.populationSubjectsTable) == before


def test_from_the_console(panel, people):
    import DeepReg

    fixed, nodes = people
    found = DeepReg.DeepRegLogic().population(fixed, nodes, modes=2)
    assert found.report["subjects"][0]["name"] == "Person 5"
    at_mean = there(found.transform)
    found.move(2.0)
    assert np.linalg.norm(there(found.transform) - at_mean) > 3.0


def test_the_sliders_follow_an_examination_from_the_console(panel, people):
    """The same transform has other modes then, and perhaps another number of them."""
    import DeepReg

    ui, (fixed, nodes) = panel.ui, people
    ui.populationAllButton.click()
    examine(panel)
    transform, before = panel._parameterNode.populationResult, len(sliders(panel))
    found = DeepReg.DeepRegLogic().population(fixed, nodes[:4], modes=1)
    assert found.transform is transform and before > 1
    desk.until(lambda: len(sliders(panel)) == 1, 3, "the sliders of the new modes")
    at_mean = there(transform)
    sliders(panel)[0].value = 1.5
    desk.until(lambda: np.abs(there(transform) - at_mean).max() > 0.5, 3, "a move")
    at_place = there(transform)
    found.move(1.5)
    np.testing.assert_allclose(there(transform), at_place, atol=0.1)
    assert len(texts(ui.populationSubjectsTable)) == 4
