"""Runs from the panel with the real worker: progress, results, stopping, transforms, companions."""

import numpy as np
import panel_support as desk
import pytest


@pytest.fixture
def panel(scene):
    yield from desk.opened(scene)


def _number_of_nodes():
    import slicer

    return slicer.mrmlScene.GetNumberOfNodes()


def _result(panel):
    return panel.ui.transformSelector.currentNode()


def _slow(panel):
    """Settings with which a run takes many seconds."""
    desk.choose(panel.ui.algorithmCombo, "greedy")
    panel.ui.stagesCombo.setCurrentIndex(panel.ui.stagesCombo.count - 1)
    editor = panel.parts.algorithm.form.editor("greedy.iterations")
    editor.selectAll()
    editor.insert("9000, 9000, 9000, 9000")
    editor.textEdited.emit(editor.text)
    desk.settle()


def test_full_run(panel):
    from DeepRegWidgets.Worker import closeWorker

    closeWorker()
    ui = panel.ui
    fixed, moving = desk.prepare(panel)
    before = desk.census()[1]
    ui.applyButton.click()
    assert ui.applyButton.text == "Cancel" and ui.applyButton.enabled
    parts = (ui.inputsButton, ui.algorithmButton, ui.outputsButton, ui.parameterSetSelector)
    assert not any(part.enabled for part in parts)
    assert ui.progressBar.visible and ui.statusLabel.visible and ui.stopButton.visible
    values, statuses = [], set()

    def done():
        values.append(ui.progressBar.value)
        statuses.add(ui.statusLabel.text)
        return not panel.parts.run.running

    desk.until(done, desk.RUN_SECONDS, "the end")
    desk.settle()
    assert values == sorted(values) and max(values) > 0
    assert any("elapsed" in text for text in statuses)
    assert all(part.enabled for part in parts)
    assert ui.applyButton.text == "Register" and ui.applyButton.enabled
    assert not ui.progressBar.visible and not ui.statusLabel.visible
    assert not ui.stopButton.visible and not ui.rerunButton.visible
    log = ui.logText.plainText
    for part in ("Starting", "Running on cpu, PyTorch", "Rigid", "Finished after"):
        assert part in log, log
    assert "✖" not in desk.message(panel) and "⚠" not in desk.message(panel)
    transform, moved = _result(panel), ui.movedSelector.currentNode()
    assert transform.GetName() == "Moving to Fixed"
    assert moved.GetName() == "Moving registered to Fixed"
    assert desk.error_mm(transform) < 1.5
    assert ui.inverseSelector.currentNode() is None
    assert moved.GetImageData().GetDimensions() == fixed.GetImageData().GetDimensions()
    after = desk.census()[1]
    assert {k: after[k] for k in (fixed.GetID(), moving.GetID())} == {
        k: before[k] for k in (fixed.GetID(), moving.GetID())
    }, "the inputs are untouched"
    assert ui.verdictLabel.text != "No result yet." and not ui.resultsButton.collapsed


def test_log_of_each_run_names_the_device(panel):
    desk.prepare(panel)
    for _number in range(2):
        desk.run(panel)
        assert "Running on cpu, PyTorch" in panel.ui.logText.plainText


def test_second_run_overwrites_and_another_pair_does_not(panel):
    import slicer

    desk.prepare(panel)
    panel.ui.inverseCheckBox.click()
    panel.ui.jacobianCheckBox.click()
    desk.settle()
    desk.run(panel)
    names = ("transformSelector", "movedSelector", "inverseSelector")
    first = [getattr(panel.ui, name).currentNode() for name in names]
    assert None not in first
    count = _number_of_nodes()
    desk.run(panel)
    assert [getattr(panel.ui, name).currentNode() for name in names] == first
    assert _number_of_nodes() == count
    other = slicer.modules.volumes.logic().CloneVolume(
        slicer.mrmlScene, panel.ui.fixedSelector.currentNode(), "Other"
    )
    slicer.util.arrayFromVolume(other)[:4] = 0
    times = [node.GetMTime() for node in first]
    panel.ui.fixedSelector.setCurrentNode(other)
    desk.settle(0.5)
    assert [getattr(panel.ui, name).currentNode() for name in names] == [None] * 3
    desk.run(panel)
    second = [getattr(panel.ui, name).currentNode() for name in names]
    assert None not in second and not set(second) & set(first)
    assert [node.GetMTime() for node in first] == times


def test_unwanted_outputs_are_not_made(panel):
    import slicer

    desk.prepare(panel)
    panel.ui.movedCheckBox.click()
    desk.settle()
    assert not panel.ui.movedSelector.enabled and not panel.ui.inverseSelector.enabled
    desk.run(panel)
    volumes = slicer.util.getNodesByClass("vtkMRMLVolumeNode")
    # One for the eye is not saved and not listed.
    names = {node.GetName() for node in volumes if not node.GetHideFromEditors()}
    assert names == {"Fixed", "Moving"} and _result(panel) is not None
    assert panel.ui.movedSelector.currentNode() is None
    assert "✖" not in desk.message(panel)


def test_stop_and_keep_gives_a_result(panel):
    desk.prepare(panel)
    _slow(panel)
    panel.ui.applyButton.click()
    desk.until(lambda: panel.ui.progressBar.value > 0, 60, "progress")
    panel.ui.stopButton.click()
    assert not panel.ui.stopButton.enabled
    said = desk.finish(panel, 30)
    assert "✖" not in said and _result(panel) is not None
    assert panel.ui.movedSelector.currentNode() is not None


def _check_cancelled(panel, before):
    said = desk.finish(panel, 10)
    assert "Cancelled; nothing was changed." in said and "✖" not in said
    assert desk.census() == before
    assert panel.ui.applyButton.text == "Register" and panel.ui.applyButton.enabled


def test_cancel_during_the_preparation(panel):
    desk.prepare(panel)
    before = desk.census()
    panel.ui.applyButton.click()
    assert panel.parts.run._run._step.__name__ == "_submitWhenSaved"
    panel.ui.applyButton.click()
    _check_cancelled(panel, before)
    assert "✖" not in desk.run(panel)


def test_cancel_during_computing(panel):
    desk.prepare(panel)
    _slow(panel)
    before = desk.census()
    panel.ui.applyButton.click()
    desk.until(lambda: panel.ui.progressBar.value > 0, 60, "progress")
    panel.ui.applyButton.click()
    _check_cancelled(panel, before)


def test_moving_deleted_while_running(panel):
    import slicer

    _fixed, moving = desk.prepare(panel)
    panel.ui.applyButton.click()
    desk.until(lambda: "Rigid" in panel.ui.logText.plainText, 60, "computing")
    slicer.mrmlScene.RemoveNode(moving)
    before = desk.census()
    said = desk.finish(panel)
    assert "✖" in said and "'Moving' was deleted while the registration ran" in said
    assert desk.census() == before
    assert panel.ui.applyButton.text == "Select a moving volume"
    desk.prepare(panel, panel.ui.fixedSelector.currentNode(), desk.make_moving("Again"))
    assert "✖" not in desk.run(panel)


def test_scene_closed_while_running(panel):
    import slicer

    desk.prepare(panel)
    panel.ui.applyButton.click()
    desk.until(lambda: "Rigid" in panel.ui.logText.plainText, 60, "computing")
    slicer.mrmlScene.Clear(0)
    desk.settle(0.5)
    assert not panel.parts.run.running
    volumes = slicer.util.getNodesByClass("vtkMRMLVolumeNode")
    assert volumes == [] and not panel.ui.statusLabel.visible
    assert panel.ui.inputsButton.enabled
    assert panel.ui.applyButton.text == "Select a fixed and a moving volume"


def test_result_deleted_between_runs(panel):
    import slicer

    desk.prepare(panel)
    desk.run(panel)
    slicer.mrmlScene.RemoveNode(panel.ui.movedSelector.currentNode())
    desk.settle()
    assert panel.ui.movedSelector.currentNode() is None
    assert "✖" not in desk.run(panel)
    assert panel.ui.movedSelector.currentNode() is not None
    slicer.mrmlScene.RemoveNode(_result(panel))
    desk.settle()
    assert panel.ui.verdictLabel.text == "No result yet."
    assert "✖" not in desk.run(panel) and _result(panel) is not None


def _world_error(transform, moving):
    """Mean distance on screen (world) of the moving image from the fixed one, both unmoved."""
    import vtk

    assert moving.GetParentTransformNode() is transform
    points, general = desk.body_points(), vtk.vtkGeneralTransform()
    transform.GetTransformToWorld(general)
    shown = np.array([general.TransformPoint(p) for p in desk.true_map(points)])
    return float(np.linalg.norm(shown - points, axis=1).mean())


def test_apply_to_moving(panel):
    _fixed, moving = desk.prepare(panel)
    panel.ui.applyToMovingCheckBox.click()
    desk.run(panel)
    assert _world_error(_result(panel), moving) < 1.5
    # Again: the volume now starts under the earlier result.
    desk.run(panel)
    assert _world_error(_result(panel), moving) < 1.5


def _check(panel, nodes):
    import qt

    for node in nodes:
        panel.ui.companionsCombo.setCheckState(node, qt.Qt.Checked)
    desk.settle()


def test_companions_go_under_the_transform(panel):
    _fixed, moving = desk.prepare(panel)
    points = desk.add_points("Places", desk.true_map(desk.body_points(5)))
    segments = desk.mask_of(moving, "Parts", ("body",))
    _check(panel, (points, segments))
    desk.run(panel)
    transform = _result(panel)
    assert points.GetParentTransformNode() is transform is segments.GetParentTransformNode()
    count = _number_of_nodes()
    said = desk.run(panel)
    assert "✖" not in said and _number_of_nodes() == count
    assert points.GetParentTransformNode() is _result(panel)
    place = [0.0] * 3
    points.GetNthControlPointPositionWorld(0, place)
    assert np.linalg.norm(place - desk.body_points(5)[0]) < 2.5


def test_companions_as_hardened_copies(panel):
    import slicer

    _fixed, moving = desk.prepare(panel)
    places = desk.true_map(desk.body_points(5))
    points = desk.add_points("Places", places)
    segments = desk.mask_of(moving, "Parts", ("body",))
    panel.ui.companionModeCombo.setCurrentIndex(1)
    _check(panel, (points, segments))
    assert "✖" not in desk.run(panel)
    assert points.GetParentTransformNode() is None
    assert np.allclose(slicer.util.arrayFromMarkupsControlPoints(points), places)
    copy = slicer.util.getNode("Places registered")
    assert copy.GetParentTransformNode() is None
    moved = slicer.util.arrayFromMarkupsControlPoints(copy)
    assert np.linalg.norm(moved - desk.body_points(5), axis=1).mean() < 1.5
    assert slicer.util.getNode("Parts registered").GetSegmentation().GetNumberOfSegments() == 1


def test_hardened_copies_are_replaced_by_the_next_run(panel):
    _fixed, _moving = desk.prepare(panel)
    points = desk.add_points("Places", desk.true_map(desk.body_points(5)))
    panel.ui.companionModeCombo.setCurrentIndex(1)
    _check(panel, (points,))
    desk.run(panel)
    count = _number_of_nodes()
    desk.run(panel)
    assert _number_of_nodes() == count


def test_initial_transform(panel):
    """A far start that only an initial transform bridges."""
    _fixed, moving = desk.prepare(panel)
    matrix = np.eye(4)
    matrix[:3, 3] = (400, -300, 200)
    moving.ApplyTransformMatrix(desk.vtk_matrix(matrix))
    start = desk.add_linear("Start", shift=(-400, 300, -200))
    panel.ui.initialSelector.setCurrentNode(start)
    desk.choose(panel.parts.algorithm.form.editor("rigid.initialization"), "stored")
    desk.settle()
    assert "✖" not in desk.run(panel)
    points = desk.body_points()
    gaps = desk.to_moving(_result(panel), points) - desk.true_map(points) - (400, -300, 200)
    assert np.linalg.norm(gaps, axis=1).mean() < 1.5
    assert start.GetMatrixTransformToParent().GetElement(0, 3) == -400


def test_moving_under_a_linear_transform(panel):
    """The place on screen is the start, and on screen the result is aligned."""
    _fixed, moving = desk.prepare(panel)
    parent = desk.add_linear("Table", (0.1, 0.05, -0.08), (3, 5, -4))
    moving.SetAndObserveTransformNodeID(parent.GetID())
    panel.ui.applyToMovingCheckBox.click()
    desk.settle()
    assert "✖" not in desk.run(panel)
    assert _world_error(_result(panel), moving) < 1.5
    assert panel.ui.movedSelector.currentNode().GetParentTransformNode() is None


def test_fixed_under_a_linear_transform(panel):
    import vtk

    fixed, moving = desk.prepare(panel)
    parent = desk.add_linear("Table", (0.3, -0.2, 0.4), (30, -20, 10))
    fixed.SetAndObserveTransformNodeID(parent.GetID())
    # On screen both lie near each other, by transforms of their own.
    other = desk.add_linear("Other table", (0.25, -0.2, 0.35), (28, -18, 12))
    moving.SetAndObserveTransformNodeID(other.GetID())
    panel.ui.applyToMovingCheckBox.click()
    desk.settle()
    assert "✖" not in desk.run(panel)
    general, above = vtk.vtkGeneralTransform(), vtk.vtkGeneralTransform()
    moving.GetParentTransformNode().GetTransformToWorld(general)
    parent.GetTransformToWorld(above)
    points = desk.body_points()
    shown = np.array([general.TransformPoint(p) for p in desk.true_map(points)])
    wanted = np.array([above.TransformPoint(p) for p in points])
    assert np.linalg.norm(shown - wanted, axis=1).mean() < 1.5
    moved = panel.ui.movedSelector.currentNode()
    assert moved.GetParentTransformNode() is parent


def _grid_size(transform):
    import vtk

    parts = transform.GetTransformFromParent(), transform.GetTransformToParent()
    for part in parts:
        for grid in _grids(part, vtk):
            return int(np.prod(grid.GetDisplacementGrid().GetDimensions()))
    return 0


def _grids(transform, vtk):
    if transform.IsA("vtkGridTransform"):
        yield transform
    if transform.IsA("vtkGeneralTransform"):
        for number in range(transform.GetNumberOfConcatenatedTransforms()):
            yield from _grids(transform.GetConcatenatedTransform(number), vtk)


def test_coarser_grid_is_smaller(panel):
    desk.prepare(panel, algorithm="greedy")
    fine = panel.ui.sizeLabel.text
    assert "✖" not in desk.run(panel)
    sizes = [_grid_size(_result(panel))]
    errors = [desk.error_mm(_result(panel))]
    panel.ui.spacingSpinBox.value = 5.0
    desk.settle()
    assert panel.ui.sizeLabel.text != fine
    assert "✖" not in desk.run(panel)
    sizes.append(_grid_size(_result(panel)))
    errors.append(desk.error_mm(_result(panel)))
    assert 0 < sizes[1] < sizes[0] / 5
    assert max(errors) < 1.5
