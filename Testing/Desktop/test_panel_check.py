"""The tool "Check a registration": clicked from the choices to the error volume in the views."""

from functools import partial

import model_support
import numpy as np
import panel_support as desk
import pytest
import tool_support

from DeepRegLib.bridge.check import FIXED_ROLE, report_of

_said = partial(tool_support.said, "check")
_check = partial(tool_support.run, "check", "Check")


@pytest.fixture
def panel(scene, no_models):
    yield from tool_support.opened("check", scene)


@pytest.fixture
def judge(models_folder, panel):
    return model_support.write_judge(models_folder)


@pytest.fixture
def pair(panel):
    fixed, moving = desk.make_pair()
    panel.ui.fixedSelector.setCurrentNode(fixed)
    panel.ui.movingSelector.setCurrentNode(moving)
    return fixed, moving


def _chosen(panel):
    ui = panel.ui
    selectors = (ui.checkFixedSelector, ui.checkMovingSelector, ui.checkTransformSelector)
    return [selector.currentNode() for selector in selectors]


def _layers():
    import slicer

    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    return [slicer.mrmlScene.GetNodeByID(i) for i in
            (node.GetBackgroundVolumeID(), node.GetForegroundVolumeID()) if i]  # fmt: skip


def foreign(kind="general"):
    """A transform as another program leaves it: a B-spline field after a turn, in one node."""
    import slicer
    import vtk

    turn = desk.add_linear("part", turn=(0.1, -0.05, 0.12), shift=(3.0, -2.0, 1.0))
    lattice = vtk.vtkImageData()
    lattice.SetDimensions(7, 7, 7)
    lattice.SetSpacing(25, 25, 25)
    lattice.SetOrigin(-75, -75, -75)
    lattice.AllocateScalars(vtk.VTK_DOUBLE, 3)
    values = np.random.default_rng(0).normal(0, 2.0, lattice.GetNumberOfPoints() * 3)
    for n, value in enumerate(values):
        lattice.GetPointData().GetScalars().SetComponent(n // 3, n % 3, value)
    spline = slicer.vtkOrientedBSplineTransform()
    spline.SetCoefficientData(lattice)
    whole = vtk.vtkGeneralTransform()
    whole.Concatenate(turn.GetTransformFromParent())
    whole.Concatenate(spline)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "from elsewhere")
    node.SetAndObserveTransformFromParent(whole)
    slicer.mrmlScene.RemoveNode(turn)
    return node


def test_without_a_model_it_says_what_to_do(panel, pair, models_folder):
    ui = panel.ui
    assert ui.checkButton.isVisibleTo(ui.toolsButton)
    assert ui.checkButton.text == "There is no model yet" and not ui.checkButton.enabled
    assert "Train one" in desk.plain(ui.checkModelLabel.text)
    assert not ui.checkTrainButton.isHidden() and ui.checkResultWidget.isHidden()
    ui.checkTrainButton.click()
    assert not ui.trainingButton.collapsed
    assert ui.trainingAlgorithmCombo.currentText == "Error map"
    ui.trainingButton.collapsed = True
    model_support.write_judge(models_folder)
    panel.parts.check.update()
    assert ui.checkButton.text == "Check" and ui.checkButton.enabled
    assert ui.checkTrainButton.isHidden() and ui.checkModelCombo.currentText == "Newest: judge"
    assert "off by 0.8 mm" in desk.plain(ui.checkModelLabel.text)


def test_it_goes_along_with_the_inputs_until_something_else_is_chosen(panel, judge, pair):
    import slicer

    ui, node = panel.ui, panel._parameterNode
    assert _chosen(panel) == [*pair, None]
    result = desk.add_linear("Result")
    node.resultTransform = result
    desk.settle(0.05)
    # The transform belongs to no pair that would contradict.
    assert _chosen(panel) == [*pair, result]
    other = desk.make_moving("Other")
    ui.movingSelector.setCurrentNode(other)
    assert _chosen(panel)[1] is other
    # Now the user chooses something of his own.
    foreign_node = desk.add_linear("Foreign")
    ui.checkTransformSelector.setCurrentNode(foreign_node)
    ui.movingSelector.setCurrentNode(pair[1])
    assert _chosen(panel)[1:] == [other, foreign_node]
    ui.checkPrefillButton.click()
    assert _chosen(panel) == [*pair, result]
    slicer.mrmlScene.RemoveNode(result)
    assert _chosen(panel) == [*pair, None]


def test_check_a_foreign_transform_with_everything_under_transforms(panel, judge, pair):
    """From the choices to the error volume, in the place and the views where it belongs."""
    import slicer

    ui, (fixed, _moving) = panel.ui, pair
    above = desk.add_linear("Above", turn=(0.2, 0.3, -0.1), shift=(10, -20, 5))
    fixed.SetAndObserveTransformNodeID(above.GetID())
    transform = foreign()
    transform.SetAndObserveTransformNodeID(above.GetID())
    ui.checkTransformSelector.setCurrentNode(transform)
    ui.checkThresholdSpinBox.value = 1.0
    before = desk.census()
    seen = set()
    ui.checkButton.click()
    assert panel.parts.check.running, _said(panel)
    assert ui.checkButton.text == "Cancel" and not ui.checkForm.enabled
    desk.until(lambda: ui.applyButton.text == "A check is running", 3, "the button's text")
    panel.parts.run.start()
    assert not panel.parts.run.running, "a check is not ended by a registration"
    desk.until(
        lambda: seen.add(ui.checkProgressBar.value) or not panel.parts.check.running, 90, "the end"
    )
    desk.settle()
    assert len(seen) > 2 and _said(panel) == ""
    assert ui.checkProgressBar.isHidden() and ui.checkForm.enabled
    desk.until(lambda: ui.applyButton.text == "Register", 3, "a free worker")
    # The error volume: new, alone, where the fixed volume lies.
    volume = ui.checkResultWidget.isHidden() or panel._parameterNode.checkResult
    assert volume.GetName() == "from elsewhere error"
    ids, times = desk.census()
    new = set(ids) - set(before[0])
    assert [i for i in new if "Volume" in i and "Display" not in i] == [volume.GetID()]
    assert {i: t for i, t in times.items() if i != volume.GetID()} == before[1]
    assert volume.GetParentTransformNode() is above
    array = slicer.util.arrayFromVolume(volume)
    assert array.shape == slicer.util.arrayFromVolume(fixed).shape
    assert 0.5 < array[array > 0].mean() < 6.0
    assert _layers() == [fixed, volume]
    # What is told of it.
    report = report_of(volume)
    assert report["sentence"] in desk.plain(ui.checkVerdictLabel.text).replace("\n", " ")
    assert "Moving on Fixed by from elsewhere" in _words(ui.checkTitleLabel.text)
    figures = _words(ui.checkFiguresLabel.text)
    assert f"Mean {report['mean_mm']:.1f} mm" in figures and "Above 1 mm" in figures
    assert f"{report['share_above_percent']:.0f} % of the object" in figures
    assert "mm or more" in ui.checkScaleLabel.text
    _look_at_the_histogram(panel, report)


def _words(text):
    return " ".join(desk.plain(text).split())


def _look_at_the_histogram(panel, report):
    chart = panel.parts.check._histogram._view.chart()
    bars, line = (chart.GetPlot(n) for n in range(chart.GetNumberOfPlots()))
    table = bars.GetInput()
    heights = [table.GetValue(row, 1).ToDouble() for row in range(table.GetNumberOfRows())]
    assert heights == pytest.approx([100 * share for share in report["histogram"]["shares"]])
    middles = [table.GetValue(row, 0).ToDouble() for row in range(table.GetNumberOfRows())]
    edges = report["histogram"]["edges_mm"]
    assert middles == pytest.approx((np.array(edges[1:]) + edges[:-1]) / 2)
    places = [line.GetInput().GetValue(row, 0).ToDouble() for row in range(2)]
    assert places == [1.0, 1.0] and "Threshold 1 mm" in line.GetLabel()


def test_views_go_to_the_largest_error(panel, judge, pair):
    import slicer

    ui, (fixed, _moving) = panel.ui, pair
    above = desk.add_linear("Above", turn=(0.2, 0.3, -0.1), shift=(10, -20, 5))
    fixed.SetAndObserveTransformNodeID(above.GetID())
    assert _check(panel) == ""
    volume = panel._parameterNode.checkResult
    assert volume.GetName() == "Moving to Fixed error"
    array = slicer.util.arrayFromVolume(volume)
    array[:] = 0.1
    array[20:26, 30:38, 8:12] = 5.0
    slicer.util.arrayFromVolumeModified(volume)
    slicer.util.setSliceViewerLayers(background=pair[1], foreground=None)
    ui.checkShowButton.click()
    assert _layers() == [fixed, volume] and volume.GetNodeReference(FIXED_ROLE) is fixed
    ui.checkWorstButton.click()
    middle = np.array([9.5, 33.5, 22.5, 1.0])
    place = desk._ijk_to_ras(volume).MultiplyPoint(middle)
    world = np.array(above.GetTransformToParent().TransformPoint(place[:3]))
    for view in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        matrix = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())
        assert abs((world - matrix[:3, 3]) @ matrix[:3, 2]) < 8.0, view.GetName()


def test_cancel_leaves_the_scene_as_it_was(panel, judge, pair):
    before = desk.census()
    panel.ui.checkButton.click()
    assert panel.parts.check.running
    desk.settle(0.1)
    panel.ui.checkButton.click()
    desk.until(lambda: not panel.parts.check.running, 5, "the end")
    assert "Cancelled; nothing was changed" in _said(panel)
    assert desk.census() == before and panel.ui.checkResultWidget.isHidden()
    assert panel.ui.checkButton.text == "Check" and panel.ui.checkForm.enabled
    assert _check(panel) == "", "the worker is there again"


def test_a_check_that_is_out_of_date_says_so_and_is_done_again(panel, judge, pair):
    ui = panel.ui
    transform = desk.add_linear("Mine")
    ui.checkTransformSelector.setCurrentNode(transform)
    assert "is empty" in _said(panel)
    _check(panel)
    volume = panel._parameterNode.checkResult
    pair[1].SetAndObserveTransformNodeID(transform.GetID())  # to look at the result
    panel.parts.check.update()
    assert "has changed" not in desk.plain(ui.checkVerdictLabel.text)
    transform.SetMatrixTransformToParent(desk.vtk_matrix(np.diag([1.0, 1.0, 1.0, 1.0])))
    moved = np.eye(4)
    moved[:3, 3] = (2.0, 1.0, 0.0)
    transform.SetMatrixTransformToParent(desk.vtk_matrix(moved))
    panel.parts.run._onBusy()  # as at the end of a registration into the same transform
    assert "What was checked has changed" in desk.plain(ui.checkVerdictLabel.text)
    _check(panel)
    assert panel._parameterNode.checkResult is volume, "the same volume takes the new errors"
    assert "has changed" not in desk.plain(ui.checkVerdictLabel.text)


def test_what_does_not_fit_is_said_before(panel, judge, pair, models_folder):
    ui = panel.ui
    ui.checkMovingSelector.setCurrentNode(None)
    assert ui.checkButton.text == "Select a fixed and a moving volume"
    ui.checkMovingSelector.setCurrentNode(pair[0])
    assert not ui.checkButton.enabled and "choose two different" in _said(panel)
    ui.checkMovingSelector.setCurrentNode(pair[1])
    ui.checkTransformSelector.setCurrentNode(desk.add_linear("Far", shift=(900, 0, 0)))
    assert "do not overlap" in _said(panel) and ui.checkButton.enabled
    assert "nothing to judge" in _check(panel)
    assert panel._parameterNode.checkResult is None
    model_support.write_card(models_folder, "wrong", "vxm")
    panel.parts.check.chooseModel("wrong")
    assert "belongs to 'vxm'" in _said(panel) and not ui.checkButton.enabled


def test_the_result_is_there_again_with_the_scene(panel, judge, pair, tmp_path):
    import slicer

    ui = panel.ui
    ui.checkThresholdSpinBox.value = 3.0
    _check(panel)
    before = (ui.checkVerdictLabel.text, ui.checkFiguresLabel.text, ui.checkTitleLabel.text)
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    desk.settle()
    assert ui.checkResultWidget.isHidden()
    slicer.util.loadScene(path)
    desk.settle()
    assert (ui.checkVerdictLabel.text, ui.checkFiguresLabel.text, ui.checkTitleLabel.text) == before
    assert ui.checkThresholdSpinBox.value == 3.0
    slicer.mrmlScene.RemoveNode(panel._parameterNode.checkResult)
    assert ui.checkResultWidget.isHidden()


def test_from_the_console(panel, judge, pair):
    import DeepReg
    from DeepRegLib.errors import DeepRegError

    logic = DeepReg.DeepRegLogic()
    found = logic.check(*pair, threshold=4.0)
    assert found.volume.GetName() == "Moving to Fixed error"
    assert found.report["threshold_mm"] == 4.0 and found.verdict in ("green", "amber", "red")
    with pytest.raises(ValueError, match="moving volume is missing"):
        logic.check(pair[0], None)
    with pytest.raises(DeepRegError, match="choose two different"):
        logic.check(pair[0], pair[0])


def test_train_a_model_and_check_with_it(panel, pair, models_folder):
    """From the section Training to the tool, which takes the model by itself."""
    ui = panel.ui
    small = {"channels": "3, 4", "hidden": "4, 3", "window": 1, "patch": 16, "mixed": 1,
             "registered_pairs": 0, "registered": 0.0}  # fmt: skip
    ui.checkTrainButton.click()
    for volume in pair:
        panel.parts.training.data.check(volume)
    ui.trainingSpacingSpinBox.value = 4.0
    for name, value in small.items():
        model_support.type_setting(panel, f"error_map.{name}", value)
    model_support.type_setting(panel, "images.alignment", "none")
    model_support.type_setting(panel, "training.steps", 3)
    model_support.type_setting(panel, "training.validate_every", 1000)
    desk.settle(0.1)
    assert ui.trainButton.text == "Train" and ui.trainButton.enabled
    ui.trainButton.click()
    assert panel.parts.training.running
    desk.until(lambda: ui.checkButton.text == "A training is running", 3, "the button's text")
    desk.until(lambda: not panel.parts.training.running, 120, "the end of the training")
    desk.settle()
    said = desk.plain(ui.trainingMessageLabel.text)
    assert "chosen in the section Tools" in said, said
    ui.trainingButton.collapsed = True
    assert ui.checkModelCombo.currentText == "error_map"
    assert _check(panel) == ""
    report = report_of(panel._parameterNode.checkResult)
    assert report["provenance"]["model"]["name"] == "error_map"
