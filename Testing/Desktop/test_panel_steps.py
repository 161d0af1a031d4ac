"""The steps of a registration in the section Results: played, walked through, and taken away."""

import model_support
import numpy as np
import panel_support as desk
import pytest

from DeepRegLib import models
from DeepRegLib.registration.agent import ACTIONS

COUNT = 8


@pytest.fixture
def panel(scene, models_folder, monkeypatch):
    monkeypatch.setattr(models, "SHIPPED", ())
    model_support.emptied(models_folder)
    yield from desk.opened(scene)


@pytest.fixture
def shown(panel):
    """The panel with a result that tells its steps, as a run would have left it."""
    show(panel)
    return panel


def matrices(count=COUNT):
    """From far away to the truth."""
    found = []
    for share in np.linspace(0.0, 1.0, count):
        matrix = np.eye(4)
        matrix[:3, :3] = desk.rotation(np.multiply(desk.TURN, share))
        matrix[:3, 3] = np.multiply(desk.SHIFT, share) + (0.0, 12.0 * (1.0 - share), 0.0)
        found.append(matrix)
    return found


def show(panel, count=COUNT):
    import slicer

    from DeepRegLib.bridge import mrml
    from DeepRegLib.bridge.outcome import Loaded, Wanted, place
    from DeepRegLib.bridge.request import RegistrationRequest
    from DeepRegLib.bridge.transforms import warp_content
    from DeepRegLib.job import JobEvent

    fixed, moving = desk.make_pair()
    steps = matrices(count)
    names = ["start", *["A-"] * (count - 4), "turn S+", "coarse: mean", "fine: mean"]
    values = {"trajectory": {"frames": names, "transforms_ras": [m.tolist() for m in steps]}}
    data = {
        "quality": {"verdict": "green", "sentence": "Good.", "reasons": [], "ncc_after": 0.9},
        "provenance": {"learned": {"rl_rigid": {"model": None, "values": values}}},
    }
    grid = mrml.grid_of(fixed)
    moved = np.asarray(slicer.util.arrayFromVolume(fixed))
    loaded = Loaded(JobEvent("done", "job", data=data), {"moved": (moved, grid)},
                    {"transform": warp_content(steps[-1], None, None)})  # fmt: skip
    request = RegistrationRequest(fixed, moving, "rl_rigid")
    outcome = place(slicer.mrmlScene, request, loaded, Wanted())
    panel._parameterNode.resultTransform = outcome.transform
    panel._parameterNode.movedVolume = outcome.moved
    panel.parts.results.takeOutcome(outcome, request, np.eye(4))
    desk.settle(0.05)
    return outcome


def player(panel):
    return panel.parts.results.player


def browser(panel):
    from DeepRegLib.bridge.trajectory import browser_of

    return browser_of(panel.ui.transformSelector.currentNode() or
                      panel._parameterNode.resultTransform)  # fmt: skip


def walkers():
    import slicer

    nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    return [n for n in nodes if n.GetHideFromEditors() and "step by step" in n.GetName()]


def layers():
    import slicer

    node = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
    ids = (node.GetBackgroundVolumeID(), node.GetForegroundVolumeID())
    return [i and slicer.mrmlScene.GetNodeByID(i) for i in ids]


def step_by_hand(panel, back=1):
    import qt

    slider = player(panel)._seek.slider()
    for _ in range(back):
        slider.triggerAction(qt.QAbstractSlider.SliderSingleStepSub)


def to_world(node):
    import slicer
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetParentTransformNode().GetMatrixTransformToWorld(matrix)
    return np.array(slicer.util.arrayFromVTKMatrix(matrix))


def test_a_result_with_steps_offers_them_and_touches_nothing(shown):
    part = player(shown)
    assert not part._box.isHidden() and part._button.text == "Play the steps"
    assert part._seek.slider().value == COUNT - 1 and part._seek.slider().maximum == COUNT - 1
    assert "fine agent" in part._label.text
    assert not part.looking and walkers() == []
    fixed, moving = (shown.parts.results.comparison.fixed, shown._parameterNode.movingVolume)
    assert layers() == [fixed, shown._parameterNode.movedVolume]
    assert moving is None or moving.GetParentTransformNode() is None


def test_the_slider_walks_through_the_steps(shown):
    import slicer

    part, node = player(shown), browser(shown)
    step_by_hand(shown)
    (walker,) = walkers()
    fixed = shown.parts.results.comparison.fixed
    assert layers() == [fixed, walker] and part.looking
    for number in (COUNT - 2, COUNT - 3, COUNT - 4):
        assert node.GetSelectedItemNumber() == number
        # What hangs under the proxy lies where the step had it.
        np.testing.assert_allclose(to_world(walker), np.linalg.inv(matrices()[number]), atol=1e-9)
        step_by_hand(shown)
    assert "Shift along A (back to front), −" in part._label.text
    # Not one node more, and the volumes are where they were.
    assert walkers() == [walker]
    assert slicer.util.getNode("Moving").GetParentTransformNode() is None
    shown.ui.blendSlider.value = 0.8
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    assert [c.GetForegroundOpacity() for c in composites] == [0.8] * len(composites)
    shown.ui.blendSlider.value = 0.5


def test_play_shows_all_steps_and_ends_with_the_result(shown):
    part, node = player(shown), browser(shown)
    node.SetPlaybackRateFps(50.0)
    seen = []
    node.AddObserver("ModifiedEvent", lambda *_: seen.append(node.GetSelectedItemNumber()))
    part._button.click()
    assert part._button.text == "Pause" and node.GetPlaybackActive() and part.looking
    desk.until(lambda: not node.GetPlaybackActive(), 10, "the end of the play")
    assert set(range(COUNT)) <= set(seen) and node.GetSelectedItemNumber() == COUNT - 1
    assert part._button.text == "Play the steps" and not part._button.checked
    assert part.looking, "the last step stays in the views"
    np.testing.assert_allclose(to_world(walkers()[0]), np.linalg.inv(matrices()[-1]), atol=1e-9)


def test_pause_stays_at_a_step_and_play_goes_on_from_it(shown):
    part, node = player(shown), browser(shown)
    node.SetPlaybackRateFps(20.0)
    part._button.click()
    desk.until(lambda: node.GetSelectedItemNumber() == 2, 10, "the third step")
    part._button.click()
    assert not node.GetPlaybackActive() and part._button.text == "Play the steps"
    desk.settle(0.2)
    assert node.GetSelectedItemNumber() == 2
    part._button.click()
    assert node.GetSelectedItemNumber() == 2 and node.GetPlaybackActive()
    # A hand on the slider stops the play, too.
    step_by_hand(shown)
    assert not node.GetPlaybackActive()


@pytest.mark.parametrize("how", ["view", "panel left", "tool", "scene closed"])
def test_what_was_shown_is_taken_away(shown, how):
    import slicer

    part, node = player(shown), browser(shown)
    before = desk.census()[0]
    part._button.click()
    assert len(walkers()) == 1
    moved = shown._parameterNode.movedVolume
    if how == "view":
        shown.ui.afterButton.click()
    elif how == "panel left":
        slicer.util.selectModule("Data")
    elif how == "tool":
        shown.parts.results.leaveViews()
    else:
        slicer.mrmlScene.Clear(0)
        desk.settle(0.1)
        assert part._box.isHidden() and not part.looking
        return
    assert walkers() == [] and not node.GetPlaybackActive() and not part.looking
    assert desk.census()[0] == before
    if how != "tool":
        assert layers()[1] is moved
    if how == "view":
        # And again: the steps can be looked at as often as one likes.
        part._button.click()
        assert len(walkers()) == 1 and layers()[1] is walkers()[0]


def test_steps_in_words(application):
    from DeepRegWidgets.StepsPlayer import stepText

    told = {name: stepText(name) for name in ACTIONS}
    assert len(set(told.values())) == 12 and all(name != text for name, text in told.items())
    assert told["turn S-"] == "Turn about S, −" and "start" in stepText("start")
    assert "coarse agent" in stepText("coarse: mean") and "fine agent" in stepText("fine: mean")
    # Names that are not known yet are shown as they are.
    assert [stepText(n) for n in ("", "X+", "turn", "R*", "new: mean")] == [
        "", "X+", "turn", "R*", "new: mean"]  # fmt: skip


def test_without_steps_there_is_no_row(shown):
    from DeepRegLib.bridge import trajectory

    step_by_hand(shown)
    trajectory.forget_steps(shown._parameterNode.resultTransform)
    shown.parts.results.update(force=True)
    assert player(shown)._box.isHidden() and walkers() == []


@pytest.mark.parametrize("part", ["browser", "sequence", "moving"])
def test_a_deleted_part_is_said(shown, part):
    import slicer

    node = browser(shown)
    doomed = {"browser": node, "sequence": node.GetMasterSequenceNode(),
              "moving": slicer.util.getNode("Moving")}[part]  # fmt: skip
    slicer.mrmlScene.RemoveNode(doomed)
    player(shown)._button.click()
    assert "was deleted" in desk.plain(player(shown)._label.text) and walkers() == []
    assert not player(shown)._button.checked
    step_by_hand(shown)
    assert walkers() == []


def test_steps_of_a_saved_view_are_not_in_the_way(shown):
    """The hidden volume is not saved; neither is its display."""
    step_by_hand(shown)
    (walker,) = walkers()
    assert not walker.GetSaveWithScene() and not walker.GetDisplayNode().GetSaveWithScene()


def test_a_run_of_an_agent_leaves_its_steps(panel, models_folder):
    import slicer

    model_support.write_agent(models_folder)
    desk.prepare(panel, algorithm="rl_rigid")
    panel.parts.algorithm.form.editor("rl_rigid.coarse_steps").value = 5
    desk.settle()
    assert "✖" not in desk.run(panel)
    transform = panel.ui.transformSelector.currentNode()
    node = browser(panel)
    assert node.GetNumberOfItems() == 8 and not player(panel)._box.isHidden()
    first = [n.GetID() for n in (node, node.GetMasterSequenceNode(), player(panel)._browser)]
    step_by_hand(panel, 4)
    assert len(walkers()) == 1 and "Shift along A (back to front), +" in player(panel)._label.text
    # The next run takes the same nodes, the views, and begins with its own last step.
    panel.parts.algorithm.form.editor("rl_rigid.coarse_steps").value = 2
    desk.settle()
    assert "✖" not in desk.run(panel)
    assert panel.ui.transformSelector.currentNode() is transform and walkers() == []
    node = browser(panel)
    assert [
        n.GetID() for n in (node, node.GetMasterSequenceNode(), player(panel)._browser)
    ] == first
    assert node.GetNumberOfItems() == 5 and node.GetSelectedItemNumber() == 4
    # What comes without steps lets go of them.
    desk.choose(panel.ui.algorithmCombo, "rigid")
    desk.choose(panel.parts.algorithm.form.editor("rigid.initialization"), "geometry")
    desk.until(lambda: panel.ui.applyButton.enabled, 5, "an enabled button")
    desk.run(panel)
    assert player(panel)._box.isHidden() and slicer.mrmlScene.GetNodeByID(first[0]) is not None


def test_a_slicer_without_sequences_says_so(panel, models_folder, monkeypatch):
    import slicer

    model_support.write_agent(models_folder)
    monkeypatch.delattr(slicer, "vtkMRMLSequenceBrowserNode")
    desk.prepare(panel, algorithm="rl_rigid")
    panel.parts.algorithm.form.editor("rl_rigid.coarse_steps").value = 2
    desk.settle()
    assert "✖" not in desk.run(panel)
    assert "no module Sequences" in panel.ui.logText.plainText
    assert panel.ui.transformSelector.currentNode() is not None
    assert player(panel)._box is None or player(panel)._box.isHidden()
