"""The tool "Check a registration" inside a mask: a label map, a segmentation, one segment of it."""

import model_support
import panel_support as desk
import pytest

from DeepRegLib import models
from DeepRegLib.bridge.check import MASK_ROLE, report_of


@pytest.fixture
def ready(scene, models_folder, monkeypatch):
    """The panel with a pair, a model and the tool open."""
    monkeypatch.setattr(models, "SHIPPED", ())
    model_support.emptied(models_folder)
    model_support.write_judge(models_folder)
    for panel in desk.opened(scene):
        panel.ui.toolsButton.collapsed = False
        for selector, node in zip((panel.ui.fixedSelector, panel.ui.movingSelector),
                                  desk.make_pair()):  # fmt: skip
            selector.setCurrentNode(node)
        desk.settle(0.1)
        yield panel
        panel.ui.toolsButton.collapsed = True


def said(panel):
    label = panel.ui.checkMessageLabel
    return "" if label.isHidden() else desk.plain(label.text)


def check(panel):
    assert panel.ui.checkButton.enabled and panel.ui.checkButton.text == "Check", said(panel)
    panel.ui.checkButton.click()
    desk.until(lambda: not panel.parts.check.running, 90, "the end of the check")
    desk.settle()
    assert said(panel) == ""
    return report_of(panel._parameterNode.checkResult)


def test_only_what_is_inside_counts(ready):
    import numpy as np
    import slicer

    ui, node = ready.ui, ready._parameterNode
    fixed = node.checkFixed
    whole = check(ready)
    volume = node.checkResult
    assert ui.checkSegmentCombo.isHidden() and "mask" not in whole["names"]
    assert "of the object" in whole["sentence"] and "inside" not in ui.checkTitleLabel.text

    labels = desk.mask_of(fixed, "Bright", threshold=60.0)
    ui.checkMaskSelector.setCurrentNode(labels)
    assert node.checkMask is labels and ui.checkSegmentCombo.isHidden()
    inside = check(ready)
    mask = slicer.util.arrayFromVolume(labels) > 0
    assert inside["judged_voxels"] == mask.sum() < whole["judged_voxels"]
    assert "of the mask" in inside["sentence"]
    assert node.checkResult is volume, "the same volume takes the new errors"
    errors = slicer.util.arrayFromVolume(volume)
    assert errors[mask].min() > 0 and not errors[~mask].any()
    assert volume.GetNodeReference(MASK_ROLE) is labels
    assert desk.plain(ui.checkTitleLabel.text).endswith(", inside  Bright ")
    assert "% of the mask" in desk.plain(ui.checkFiguresLabel.text)
    assert "has changed" not in desk.plain(ui.checkVerdictLabel.text)
    # A mask that was drawn on makes the figures old.
    slicer.util.arrayFromVolume(labels)[:, :, :20] = 0
    slicer.util.arrayFromVolumeModified(labels)
    ready.parts.check.update()
    assert "has changed" in desk.plain(ui.checkVerdictLabel.text)
    assert check(ready)["judged_voxels"] == (mask[:, :, 20:] > 0).sum()
    assert np.array_equal(slicer.util.arrayFromVolume(volume) > 0,
                          slicer.util.arrayFromVolume(labels) > 0)  # fmt: skip


def test_one_segment_or_all_of_them(ready):
    ui, node = ready.ui, ready._parameterNode
    mask = desk.mask_of(node.checkFixed, "Parts", segments=("Body", "Core"))
    ui.checkMaskSelector.setCurrentNode(mask)
    combo = ui.checkSegmentCombo
    assert not combo.isHidden()
    assert [combo.itemText(n) for n in range(combo.count)] == ["All segments", "Body", "Core"]
    every = check(ready)
    assert desk.plain(ui.checkTitleLabel.text).endswith(", inside  Parts ")
    assert "has changed" not in desk.plain(ui.checkVerdictLabel.text)
    desk.choose(combo, "Core")
    core = check(ready)
    assert 0 < core["judged_voxels"] < every["judged_voxels"]
    assert desk.plain(ui.checkTitleLabel.text).endswith(", inside  Parts: Core ")
    # The mask is renamed, drawn further, and another one is chosen: the list goes along.
    mask.GetSegmentation().GetSegment(node.checkSegment).SetName("Kernel")
    desk.until(lambda: combo.currentText == "Kernel", 3, "the new name")
    ui.checkMaskSelector.setCurrentNode(desk.mask_of(node.checkFixed, "Other"))
    assert combo.isHidden() and node.checkSegment == ""


def test_a_mask_that_does_not_fit_is_said_before(ready):
    ui, node = ready.ui, ready._parameterNode
    empty = desk.mask_of(node.checkFixed, "Nothing", threshold=1e6)
    ui.checkMaskSelector.setCurrentNode(empty)
    assert "is empty" in said(ready) and not ui.checkButton.enabled
    ui.checkMaskSelector.setCurrentNode(None)
    assert said(ready) == "" and ui.checkButton.enabled
