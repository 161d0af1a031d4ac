"""The panel while the scene changes under it: nodes deleted, scenes imported, saved, reloaded."""

import gc
import weakref

import panel_support as desk
import pytest


@pytest.fixture
def panel(application, scene):
    yield from desk.opened(scene)


def rigid(panel):
    """Small volumes and the quickest algorithm."""
    pair = desk.prepare(panel)
    desk.choose(panel.ui.algorithmCombo, "rigid")
    panel.ui.presetCombo.setCurrentIndex(0)
    desk.settle()
    return pair


def test_a_deleted_output_is_forgotten_not_replaced(panel):
    """Slicer's selectors jump to a neighbor when their node is deleted."""
    import slicer

    rigid(panel)
    desk.run(panel)
    moved, transform = panel._parameterNode.movedVolume, panel._parameterNode.resultTransform
    desk.make_fixed("Another")
    slicer.mrmlScene.RemoveNode(moved)
    slicer.mrmlScene.RemoveNode(transform)
    desk.settle()
    assert panel._parameterNode.movedVolume is None
    assert panel._parameterNode.resultTransform is None
    assert panel.ui.movedSelector.currentNode() is None


def test_a_deleted_input_is_missing_not_replaced(panel):
    import slicer

    fixed, _moving = rigid(panel)
    desk.make_fixed("Another")
    slicer.mrmlScene.RemoveNode(fixed)
    desk.settle()
    assert panel._parameterNode.fixedVolume is None
    assert panel.ui.applyButton.text == "Select a fixed volume"


def test_importing_another_scene_keeps_the_choices(panel, tmp_path):
    import slicer

    fixed, moving = rigid(panel)
    other = tmp_path / "other.mrb"
    assert slicer.util.saveScene(str(other))
    points = desk.add_points("Places", [[1.0, 2.0, 3.0]])
    panel.ui.companionsCombo.setCheckState(points, _checked())
    panel.ui.movingPointsSelector.setCurrentNode(points)
    desk.settle()
    shown = panel._parameterNode.parameterNode
    slicer.util.loadNodeFromFile(str(other), "SceneFile", {"clear": False})
    desk.settle()
    assert panel._parameterNode.parameterNode is shown and shown.GetScene() is slicer.mrmlScene
    assert panel.ui.fixedSelector.currentNode() is fixed
    assert panel.ui.movingSelector.currentNode() is moving
    assert panel.ui.movingPointsSelector.currentNode() is points
    assert panel.ui.companionsCombo.checkedNodes() == [points]
    assert panel.ui.parameterSetSelector.currentNode() is shown


def _checked():
    import qt

    return qt.Qt.Checked


def test_a_scene_saved_as_a_checkerboard_shows_it_without_the_panel(panel, tmp_path):
    import slicer

    rigid(panel)
    desk.run(panel)
    panel.ui.checkerboardButton.click()
    path = tmp_path / "scene.mrb"
    assert slicer.util.saveScene(str(path))
    slicer.util.selectModule("Data")
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(path))
    composite = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    shown = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID())
    assert shown.GetName() == "DeepReg comparison" and shown.GetHideFromEditors()
    slicer.util.selectModule("DeepReg")
    desk.settle()
    assert panel.ui.checkerboardButton.checked
    assert len(slicer.util.getNodesByClass("vtkMRMLVectorVolumeNode")) == 1
    panel.ui.afterButton.click()
    panel.parts.results.close()
    assert slicer.util.getNodesByClass("vtkMRMLVectorVolumeNode") == []


def test_a_shown_result_is_let_go_with_its_scene(panel):
    """Volumes and their gray values do not stay in memory after the scene was closed."""
    import slicer

    rigid(panel)
    desk.run(panel)
    panel.ui.differenceButton.click()
    comparison = weakref.ref(panel.parts.results.comparison)
    slicer.mrmlScene.Clear(0)
    desk.settle()
    gc.collect()
    assert comparison() is None
    assert panel.parts.run._request is None


def test_a_reload_ends_the_worker(panel):
    import slicer

    rigid(panel)
    desk.run(panel)
    from DeepRegWidgets.Worker import sharedWorker

    worker = sharedWorker()
    assert worker.alive
    panel.onReload()
    desk.settle()
    assert not worker.alive
    again = slicer.util.getModuleWidget("DeepReg")
    assert again is not panel and again.ui.applyButton.text
