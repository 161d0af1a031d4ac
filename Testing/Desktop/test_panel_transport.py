"""The tool "Apply this deformation to another subject": from the choices to the deformed subject."""

from functools import partial

import model_support
import numpy as np
import panel_support as desk
import pytest
import tool_support

from DeepRegLib.bridge.transport import carried_report

BUTTON = "Apply to the other subject"
said = partial(tool_support.said, "transport")
apply = partial(tool_support.run, "transport", BUTTON)


@pytest.fixture
def panel(scene, no_models):
    yield from tool_support.opened("transport", scene)


@pytest.fixture
def model(models_folder, panel):
    return model_support.write_latent(models_folder)


@pytest.fixture
def three(panel):
    """Fixed, moving and the other subject; the first two are chosen as inputs."""
    fixed, moving = desk.make_pair()
    panel.ui.fixedSelector.setCurrentNode(fixed)
    panel.ui.movingSelector.setCurrentNode(moving)
    other = desk.make_moving("Other", (30, 40, 36))
    panel.ui.transportSubjectSelector.setCurrentNode(other)
    return fixed, moving, other


def on_screen(panel):
    combo = panel.ui.transportAlignmentCombo
    combo.setCurrentIndex(combo.findText("None: as they lie on screen"))


def background():
    import slicer

    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    return slicer.mrmlScene.GetNodeByID(node.GetBackgroundVolumeID() or "")


def test_without_a_model_it_says_what_to_do(panel, three, models_folder):
    ui = panel.ui
    assert ui.transportButton.text == "There is no model yet" and not ui.transportButton.enabled
    assert "Train one" in desk.plain(ui.transportModelLabel.text)
    ui.transportTrainButton.click()
    assert not ui.trainingButton.collapsed
    assert "CVAE" in ui.trainingAlgorithmCombo.currentText
    ui.trainingButton.collapsed = True
    model_support.write_latent(models_folder)
    panel.parts.transport.update()
    assert ui.transportButton.text == BUTTON and ui.transportButton.enabled
    assert ui.transportTrainButton.isHidden()
    assert ui.transportModelCombo.currentText == "Newest: latent"


def test_the_other_subject_is_deformed_where_it_lies(panel, model, three):
    """With all volumes under transforms; the subject under the new transform looks as the volume."""
    import slicer

    ui, (_fixed, _moving, other) = panel.ui, three
    above = desk.add_linear("Above", turn=(0.2, 0.3, -0.1), shift=(10, -20, 5))
    for volume in three:
        volume.SetAndObserveTransformNodeID(above.GetID())
    on_screen(panel)
    ui.transportStrengthSpinBox.value = 0.5
    before = desk.census()
    assert apply(panel) == ""
    transform = panel._parameterNode.transportResult
    assert transform.GetName() == "Moving to Fixed carried to Other"
    deformed = slicer.mrmlScene.GetFirstNodeByName("Other deformed as Fixed")
    ids, times = desk.census()
    new = {i for i in set(ids) - set(before[0]) if "Display" not in i and "Storage" not in i}
    assert new == {transform.GetID(), deformed.GetID()}
    assert {i: t for i, t in times.items() if i not in new} == before[1]
    assert transform.GetParentTransformNode() is above is deformed.GetParentTransformNode()
    assert background() is deformed and panel.ui.transportForm.enabled
    # What is told of it.
    report = carried_report(transform)
    assert report["strength"] == 0.5 and report["model"] == "latent" and report["mean_mm"] > 0.1
    assert f"{report['mean_mm']:.1f} mm in the mean" in desk.plain(ui.transportFiguresLabel.text)
    title = " ".join(desk.plain(ui.transportTitleLabel.text).split())
    assert title.startswith("Other") and "Moving" in title and "Fixed" in title
    ui.transportBeforeButton.click()
    assert background() is other
    ui.transportAfterButton.click()
    assert background() is deformed
    # Slicer's own view of the subject under the transform, voxel by voxel.
    from DeepRegLib.bridge import mrml

    plain = mrml.volume_array(other)
    other.SetAndObserveTransformNodeID(transform.GetID())
    shown = mrml.resampled_array(other, mrml.grid_of(deformed), deformed)
    inner = (slice(4, -4),) * 3
    wanted = mrml.volume_array(deformed)[inner]
    gap = np.abs(shown[inner] - wanted).mean()
    assert np.abs(plain[inner] - wanted).mean() > 10 * gap


def test_it_follows_the_inputs_until_others_are_chosen(panel, model, three):
    ui, (fixed, moving, other) = panel.ui, three
    selectors = (ui.transportFixedSelector, ui.transportMovingSelector)
    assert [s.currentNode() for s in selectors] == [fixed, moving]
    ui.transportMovingSelector.setCurrentNode(other)
    ui.movingSelector.setCurrentNode(desk.make_moving("Third"))
    assert ui.transportMovingSelector.currentNode() is other
    assert "a volume of another one" in said(panel) and not ui.transportButton.enabled
    ui.transportPrefillButton.click()
    assert ui.transportMovingSelector.currentNode().GetName() == "Third"
    ui.transportSubjectSelector.setCurrentNode(None)
    assert ui.transportButton.text == "Select the other subject"


def test_failures_and_cancel_leave_the_scene_as_it_was(panel, model, three, models_folder):
    import slicer

    ui = panel.ui
    away = desk.add_linear("Away", shift=(900, 0, 0))
    three[2].SetAndObserveTransformNodeID(away.GetID())
    on_screen(panel)
    desk.settle(0.1)
    assert "lies 0 %" in said(panel) and not ui.transportButton.enabled
    three[2].SetAndObserveTransformNodeID(None)
    desk.until(lambda: ui.transportButton.enabled, 3, "a look at the new place")
    three[2].SetAndObserveTransformNodeID(away.GetID())
    desk.until(lambda: not ui.transportButton.enabled, 3, "a look at the new place")
    ui.transportAlignmentCombo.setCurrentIndex(0)
    assert said(panel) == "" and ui.transportButton.enabled, "found now, it does not matter"
    before = desk.census()
    ui.transportButton.click()
    assert ui.transportButton.text == "Cancel" and not ui.transportForm.enabled
    desk.until(
        lambda: ui.applyButton.text == "A deformation is being carried over", 3, "the button's text"
    )
    desk.settle(0.3)
    ui.transportButton.click()
    desk.until(lambda: not panel.parts.transport.running, 5, "the end")
    assert "Cancelled; nothing was changed" in said(panel) and desk.census() == before
    # The volume vanishes while it runs.
    on_screen(panel)
    three[2].SetAndObserveTransformNodeID(None)
    desk.until(lambda: ui.transportButton.enabled, 3, "a look at the new place")
    ui.transportButton.click()
    slicer.mrmlScene.RemoveNode(three[2])
    desk.until(lambda: not panel.parts.transport.running, 60, "the end")
    assert "deleted in the meantime" in said(panel)
    assert panel._parameterNode.transportResult is None
    # A model without weights.
    other = desk.make_moving("Another", (30, 40, 36))
    ui.transportSubjectSelector.setCurrentNode(other)
    model_support.write_card(models_folder, "hollow", "cvae")
    before = desk.census()
    panel.parts.transport.update()
    assert "hollow" in apply(panel) and desk.census() == before
    assert ui.transportResultWidget.isHidden()


def test_from_the_console(panel, model, three):
    import DeepReg

    logic = DeepReg.DeepRegLogic()
    done = logic.transport(*three, alignment="screen", strength=0.3)
    assert done.volume.GetName() == "Other deformed as Fixed" and done.report["strength"] == 0.3
    with pytest.raises(ValueError, match="subject's volume is missing"):
        logic.transport(*three[:2], None)
