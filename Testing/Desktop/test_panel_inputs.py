"""The section Inputs of the panel: volumes, masks, segments, swapping, checks, parameter sets."""

import numpy as np
import panel_support as desk
import pytest


@pytest.fixture
def panel(scene):
    yield from desk.opened(scene)


def test_button_says_what_is_missing(panel):
    ui = panel.ui
    desk.settle()
    assert not ui.applyButton.enabled
    assert ui.applyButton.text == "Select a fixed and a moving volume"
    fixed, moving = desk.make_pair()
    ui.fixedSelector.setCurrentNode(fixed)
    desk.settle()
    assert ui.applyButton.text == "Select a moving volume" and not ui.applyButton.enabled
    ui.fixedSelector.setCurrentNode(None)
    ui.movingSelector.setCurrentNode(moving)
    desk.settle()
    assert ui.applyButton.text == "Select a fixed volume" and not ui.applyButton.enabled
    ui.fixedSelector.setCurrentNode(fixed)
    desk.until(lambda: ui.applyButton.enabled, what="an enabled button")
    assert ui.applyButton.text == "Register"
    assert ui.applyButton.toolTip == "Start the registration."


def test_same_volume_is_refused(panel):
    fixed, moving = desk.prepare(panel)
    panel.ui.movingSelector.setCurrentNode(fixed)
    desk.settle()
    assert not panel.ui.applyButton.enabled
    assert "both 'Fixed'" in panel.ui.applyButton.toolTip
    assert "✖" in desk.message(panel) and "both 'Fixed'" in desk.message(panel)
    panel.ui.movingSelector.setCurrentNode(moving)
    desk.settle()
    assert panel.ui.applyButton.enabled and "✖" not in desk.message(panel)


def test_same_voxels_are_refused(panel):
    import slicer

    fixed, _moving = desk.prepare(panel)
    copy = slicer.modules.volumes.logic().CloneVolume(slicer.mrmlScene, fixed, "Copy")
    panel.ui.movingSelector.setCurrentNode(copy)
    desk.until(lambda: "hold the same image" in desk.message(panel), what="a refusal")
    assert not panel.ui.applyButton.enabled


def test_label_map_as_mask_needs_no_segment(panel):
    fixed, _moving = desk.prepare(panel)
    mask = desk.mask_of(fixed, "Body")
    panel.ui.fixedMaskSelector.setCurrentNode(mask)
    desk.settle()
    assert not panel.ui.fixedSegmentCombo.isVisibleTo(panel.ui.moreInputsBox)
    assert panel.ui.applyButton.enabled
    from DeepRegWidgets.Requests import requestOf

    assert requestOf(panel._parameterNode).fixed_mask is mask


def test_segments_of_a_mask_are_offered(panel):
    _fixed, moving = desk.prepare(panel)
    node = desk.mask_of(moving, "Parts", ("body", "blobs"))
    combo = panel.ui.movingSegmentCombo
    panel.ui.movingMaskSelector.setCurrentNode(node)
    desk.settle()
    assert combo.isVisibleTo(panel.ui.moreInputsBox)
    assert [combo.itemText(n) for n in range(combo.count)] == ["All segments", "body", "blobs"]
    desk.choose(combo, "blobs")
    from DeepRegWidgets.Requests import requestOf

    identifier = node.GetSegmentation().GetSegmentIdBySegmentName("blobs")
    assert requestOf(panel._parameterNode).moving_segment == identifier
    panel.ui.movingMaskSelector.setCurrentNode(None)
    assert not combo.isVisibleTo(panel.ui.moreInputsBox)


def test_renamed_segment_is_shown(panel):
    _fixed, moving = desk.prepare(panel)
    node = desk.mask_of(moving, "Parts", ("body", "blobs"))
    panel.ui.movingMaskSelector.setCurrentNode(node)
    combo = panel.ui.movingSegmentCombo
    desk.choose(combo, "blobs")
    desk.settle()
    node.GetSegmentation().GetNthSegment(1).SetName("vessels")
    desk.settle()
    assert combo.currentText == "vessels"


def test_removed_segment_is_gone(panel):
    _fixed, moving = desk.prepare(panel)
    node = desk.mask_of(moving, "Parts", ("body", "blobs"))
    panel.ui.movingMaskSelector.setCurrentNode(node)
    combo = panel.ui.movingSegmentCombo
    desk.choose(combo, "blobs")
    desk.settle()
    node.GetSegmentation().RemoveSegment(node.GetSegmentation().GetNthSegmentID(1))
    desk.settle()
    texts = [combo.itemText(n) for n in range(combo.count)]
    assert "blobs" not in texts
    # What is shown is what is used, and nothing else is used silently.
    assert (combo.currentData or "") == panel._parameterNode.movingSegment


def test_other_mask_does_not_keep_the_segment(panel):
    _fixed, moving = desk.prepare(panel)
    first = desk.mask_of(moving, "Parts", ("body", "blobs"))
    second = desk.mask_of(moving, "Others", ("skin", "bone"))
    panel.ui.movingMaskSelector.setCurrentNode(first)
    desk.choose(panel.ui.movingSegmentCombo, "blobs")
    panel.ui.movingMaskSelector.setCurrentNode(second)
    desk.settle()
    assert panel.ui.movingSegmentCombo.currentText == "All segments"
    assert panel.ui.applyButton.enabled, desk.message(panel)


def test_segment_is_restored_from_the_parameter_node(panel):
    import slicer

    _fixed, moving = desk.prepare(panel)
    node = desk.mask_of(moving, "Parts", ("body", "blobs"))
    panel.ui.movingMaskSelector.setCurrentNode(node)
    desk.choose(panel.ui.movingSegmentCombo, "blobs")
    slicer.util.selectModule("Data")
    slicer.util.selectModule("DeepReg")
    assert panel.ui.movingSegmentCombo.currentText == "blobs"
    shown = panel._parameterNode
    panel.setParameterNode(None)
    panel.ui.movingSegmentCombo.clear()
    panel.setParameterNode(shown)
    assert panel.ui.movingSegmentCombo.currentText == "blobs"
    assert shown.movingSegment == node.GetSegmentation().GetNthSegmentID(1)


def test_swap_swaps_everything(panel):
    ui = panel.ui
    fixed, moving = desk.prepare(panel)
    nodes = {
        "fixedMaskSelector": desk.mask_of(fixed, "Fixed parts", ("body", "blobs")),
        "movingMaskSelector": desk.mask_of(moving, "Moving parts", ("skin", "dots")),
        "fixedPointsSelector": desk.add_points("Fixed points", desk.body_points(4)),
        "movingPointsSelector": desk.add_points("Moving points", desk.body_points(4)),
        "fixedLabelsSelector": desk.mask_of(fixed, "Fixed labels"),
        "movingLabelsSelector": desk.mask_of(moving, "Moving labels"),
        "fixedSelector": fixed,
        "movingSelector": moving,
    }
    for name, node in nodes.items():
        getattr(ui, name).setCurrentNode(node)
    desk.choose(ui.fixedSegmentCombo, "blobs")
    desk.choose(ui.movingSegmentCombo, "skin")
    ui.swapButton.click()
    desk.settle()
    for name, node in nodes.items():
        other = name.replace("fixed", "?").replace("moving", "fixed").replace("?", "moving")
        assert getattr(ui, other).currentNode() is node, other
    assert ui.fixedSegmentCombo.currentText == "skin"
    assert ui.movingSegmentCombo.currentText == "blobs"


def test_entering_preselects_two_volumes(panel):
    import slicer

    assert panel.ui.fixedSelector.currentNode() is None
    fixed, moving = desk.make_pair()
    desk.mask_of(fixed, "Labels")
    slicer.util.selectModule("Data")
    slicer.util.selectModule("DeepReg")
    chosen = (panel.ui.fixedSelector.currentNode(), panel.ui.movingSelector.currentNode())
    assert chosen == (fixed, moving)


def test_entering_prefers_the_shown_volumes_and_keeps_choices(panel):
    import slicer

    third = desk.make_fixed("Third")
    fixed, moving = desk.make_pair()
    slicer.util.setSliceViewerLayers(background=moving, foreground=fixed)
    slicer.util.selectModule("Data")
    slicer.util.selectModule("DeepReg")
    chosen = (panel.ui.fixedSelector.currentNode(), panel.ui.movingSelector.currentNode())
    assert chosen == (moving, fixed)
    panel.ui.fixedSelector.setCurrentNode(third)
    slicer.util.selectModule("Data")
    slicer.util.selectModule("DeepReg")
    assert panel.ui.fixedSelector.currentNode() is third


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda a: a.__setitem__((5, 6, 7), np.nan), "not a number"),
        (lambda a: a.__setitem__(slice(None), 3.0), "the value 3 everywhere"),
    ],
    ids=["nan", "constant"],
)
def test_bad_voxels_are_named_until_they_are_mended(panel, spoil, sentence):
    import slicer

    fixed, _moving = desk.prepare(panel)
    good = slicer.util.arrayFromVolume(fixed).copy()
    spoil(slicer.util.arrayFromVolume(fixed))
    slicer.util.arrayFromVolumeModified(fixed)
    desk.until(lambda: sentence in desk.message(panel), 1.5, "an error about the voxels")
    assert "✖" in desk.message(panel) and not panel.ui.applyButton.enabled
    slicer.util.updateVolumeFromArray(fixed, good)
    desk.until(lambda: panel.ui.applyButton.enabled, 1.5, "an enabled button")
    assert sentence not in desk.message(panel)


def test_voxels_mended_in_another_module_are_seen_on_entering(panel):
    import slicer

    fixed, moving = desk.make_pair()
    good = slicer.util.arrayFromVolume(fixed).copy()
    slicer.util.arrayFromVolume(fixed)[:] = 3.0
    panel.ui.fixedSelector.setCurrentNode(fixed)
    panel.ui.movingSelector.setCurrentNode(moving)
    desk.until(lambda: "the value 3 everywhere" in desk.message(panel), 1.5, "an error")
    desk.until(lambda: not panel.parts.run._unscanned, 5, "a look at all voxels")
    desk.settle()
    slicer.util.selectModule("Data")
    slicer.util.updateVolumeFromArray(fixed, good)
    slicer.util.selectModule("DeepReg")
    desk.settle(0.5)
    assert panel.ui.applyButton.enabled and "✖" not in desk.message(panel)


def test_remarks_follow_the_parent_transform(panel):
    fixed, moving = desk.prepare(panel)
    parent = desk.add_linear("Above", shift=(500, 0, 0))
    moving.SetAndObserveTransformNodeID(parent.GetID())
    desk.until(lambda: "do not overlap" in desk.message(panel), 1, "a warning")
    desk.settle(0.5)
    parent.SetMatrixTransformToParent(desk.vtk_matrix(np.eye(4)))
    desk.until(lambda: "do not overlap" not in desk.message(panel), 2, "no warning")
    assert fixed.GetParentTransformNode() is None


def test_voxels_are_checked_when_chosen(panel):
    import slicer

    fixed, moving = desk.make_pair()
    slicer.util.arrayFromVolume(fixed)[3, 4, 5] = np.inf
    panel.ui.fixedSelector.setCurrentNode(fixed)
    panel.ui.movingSelector.setCurrentNode(moving)
    desk.until(lambda: "not a number or infinite" in desk.message(panel), 1.5, "an error")
    assert not panel.ui.applyButton.enabled
    panel.ui.fixedSelector.setCurrentNode(desk.make_fixed("Good"))
    desk.until(lambda: panel.ui.applyButton.enabled, 1.5, "an enabled button")
    assert "✖" not in desk.message(panel)


def test_single_slice_is_a_warning(panel):
    fixed, moving = desk.make_fixed("Slice", (1, 48, 40)), desk.make_moving()
    panel.ui.fixedSelector.setCurrentNode(fixed)
    panel.ui.movingSelector.setCurrentNode(moving)
    desk.until(lambda: "single slice" in desk.message(panel), 1.5, "a warning")
    assert "⚠" in desk.message(panel) and panel.ui.applyButton.enabled
    panel.ui.fixedSelector.setCurrentNode(desk.make_fixed())
    desk.settle()
    assert "single slice" not in desk.message(panel) and "⚠" not in desk.message(panel)


def test_landmark_lists_of_unlike_length_block_until_mended(panel):
    import vtk

    desk.prepare(panel)
    lists = [desk.add_points(name, desk.body_points(4)) for name in ("A", "B")]
    panel.ui.fixedPointsSelector.setCurrentNode(lists[0])
    desk.until(lambda: "Only one landmark list" in desk.message(panel), 1.5, "a warning")
    panel.ui.movingPointsSelector.setCurrentNode(lists[1])
    desk.settle()
    assert panel.ui.applyButton.enabled
    lists[0].RemoveNthControlPoint(3)
    desk.until(lambda: "'A' has 3 points, but 'B' has 4" in desk.message(panel), 1.5, "an error")
    assert not panel.ui.applyButton.enabled
    lists[0].AddControlPoint(vtk.vtkVector3d(1, 2, 3))
    desk.until(lambda: panel.ui.applyButton.enabled, 1.5, "an enabled button")


def test_empty_mask_blocks(panel):
    fixed, _moving = desk.prepare(panel)
    mask = desk.mask_of(fixed, "Nothing", threshold=1e6)
    panel.ui.fixedMaskSelector.setCurrentNode(mask)
    desk.until(lambda: "'Nothing' is empty" in desk.message(panel), 1.5, "an error")
    assert not panel.ui.applyButton.enabled
    panel.ui.fixedMaskSelector.setCurrentNode(None)
    desk.until(lambda: panel.ui.applyButton.enabled, 1.5, "an enabled button")


def test_deleted_volume_is_asked_for_again(panel):
    import slicer

    fixed, _moving = desk.prepare(panel)
    slicer.mrmlScene.RemoveNode(fixed)
    desk.settle()
    assert panel.ui.fixedSelector.currentNode() is None
    assert panel.ui.applyButton.text == "Select a fixed volume"
    assert not panel.ui.applyButton.enabled


def test_choose_never_chooses_a_volume_twice(panel):
    fixed, moving = desk.prepare(panel)
    panel.choose("movingVolume", fixed)
    desk.settle()
    assert panel.ui.movingSelector.currentNode() is fixed
    assert panel.ui.fixedSelector.currentNode() is None
    panel.choose("fixedVolume", moving)
    desk.settle()
    assert panel.ui.fixedSelector.currentNode() is moving and panel.ui.applyButton.enabled


def _create_set(panel):
    """Chooses "Create new ..." in the selector of parameter sets."""
    combo = panel.ui.parameterSetSelector._combo
    row = next(n for n in range(combo.count) if combo.itemText(n).startswith("Create new"))
    combo.activated.emit(row)
    desk.settle()
    return panel.ui.parameterSetSelector.currentNode()


def _shown(panel):
    ui = panel.ui
    return (
        ui.fixedSelector.currentNode(), ui.movingSelector.currentNode(),
        ui.algorithmCombo.currentData, ui.presetCombo.currentIndex, ui.spacingSpinBox.value,
        ui.inverseCheckBox.checked, panel.parts.algorithm.form.settings(),
    )  # fmt: skip


def test_parameter_sets_keep_apart(panel):
    import slicer

    ui = panel.ui
    fixed, moving = desk.prepare(panel)
    first = ui.parameterSetSelector.currentNode()
    before = _shown(panel)
    second = _create_set(panel)
    assert second is not first and second.GetAttribute("ModuleName") == "DeepReg"
    assert panel._parameterNode.parameterNode is second
    ui.fixedSelector.setCurrentNode(moving)
    ui.movingSelector.setCurrentNode(fixed)
    desk.choose(ui.algorithmCombo, "greedy")
    panel.parts.algorithm.form.editor("greedy.radius").value = 4
    ui.presetCombo.setCurrentIndex(2)
    ui.spacingSpinBox.value = 3.5
    ui.inverseCheckBox.click()
    desk.settle()
    after = _shown(panel)
    assert after[-1] == {"greedy.radius": 4}
    for node, expected in ((first, before), (second, after), (first, before), (second, after)):
        ui.parameterSetSelector.setCurrentNode(node)
        desk.settle(0.05)
        assert _shown(panel) == expected
    slicer.mrmlScene.RemoveNode(second)
    desk.settle()
    assert ui.parameterSetSelector.currentNode() is first
    assert panel._parameterNode.parameterNode is first and _shown(panel) == before
    assert ui.applyButton.enabled


def test_deleting_the_only_set_makes_a_new_one(panel):
    import slicer

    desk.prepare(panel)
    node = panel.ui.parameterSetSelector.currentNode()
    slicer.mrmlScene.RemoveNode(node)
    desk.settle()
    assert panel._parameterNode is not None
    assert panel.ui.parameterSetSelector.currentNode() is panel._parameterNode.parameterNode
    assert panel._parameterNode.parameterNode.GetScene() is slicer.mrmlScene
    assert panel.ui.algorithmCombo.currentData == "greedy"
