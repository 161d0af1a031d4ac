"""The model of a learned algorithm in the panel: the list, its sentences, other folders, none."""

import model_support
import numpy as np
import panel_support as desk
import pytest

from DeepRegLib import registry
from DeepRegLib.bridge import overlays

LEARNED = [key for key, spec in registry.specs().items() if spec.needs.training]


@pytest.fixture
def folder(no_models):
    return no_models


@pytest.fixture
def panel(scene, folder):
    for panel in desk.opened(scene):
        desk.choose(panel.ui.algorithmCombo, "vxm")
        yield panel


def _request(panel):
    from DeepRegWidgets.Requests import requestOf

    return requestOf(panel._parameterNode)


def _look(panel):
    """What the timer does every two seconds."""
    panel.parts.model.look()


def test_what_training_decides_is_not_in_the_form(panel):
    assert len(LEARNED) >= 2
    for key in LEARNED:
        desk.choose(panel.ui.algorithmCombo, key)
        spec, shown = registry.spec(key), set(panel.parts.algorithm.form._rows)
        for parameter in spec.parameters:
            hidden = parameter.training or parameter.name == "model"
            assert (f"{key}.{parameter.name}" in shown) is not hidden, parameter.name
        assert f"{key}.pair_steps" in shown


def test_a_second_run_to_the_landmarks_repeats_the_last_stage(panel):
    """Of a refined result that is the refinement, not the network."""
    import slicer
    from DeepRegWidgets.Requests import TO_LANDMARKS, requestOf

    node, stages = panel._parameterNode, panel.ui.stagesCombo
    node.resultTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    for chain in ("rigid+affine+vxm+greedy", "+vxm", "rigid+affine+vxm", "vxm+greedy"):
        stages.setCurrentIndex(stages.findData(chain))
        assert requestOf(node).algorithm == chain
        assert requestOf(node, TO_LANDMARKS).algorithm == f"+{chain.rpartition('+')[2]}"


def _volumes(node):
    """Chooses two volumes."""
    array = np.zeros((4, 5, 6), np.float32)
    node.fixedVolume, node.movingVolume = (desk.add_volume(array, name) for name in "ab")


def _last(panel, stages):
    """Chooses stages, and returns what the panel asks for and the transform that it gets."""
    import slicer

    node, combo = panel._parameterNode, panel.ui.stagesCombo
    combo.setCurrentIndex(combo.findData(stages))
    node.resultTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    return _request(panel), node.resultTransform


def test_what_a_model_found_is_refined_by_optimization(panel):
    from DeepRegWidgets.Requests import BY_ENGINE, refinementOf, requestOf

    node, nothing, offer = panel._parameterNode, ("", ""), (BY_ENGINE, "Refine by optimization")
    desk.choose(panel.ui.algorithmCombo, "vxm")
    _volumes(node)
    assert refinementOf(node, None, None) == nothing
    last = _last(panel, "rigid+affine+vxm")
    assert refinementOf(node, *last) == offer
    asked = requestOf(node, BY_ENGINE)
    assert (asked.algorithm, asked.initial) == ("+greedy", node.resultTransform)
    assert not asked.follow_landmarks and asked.preset == node.preset.value
    # Also when another algorithm is chosen by now; but not after a refinement.
    desk.choose(panel.ui.algorithmCombo, "istn")
    assert refinementOf(node, *last) == offer
    assert requestOf(node, BY_ENGINE).algorithm == "+greedy"
    desk.choose(panel.ui.algorithmCombo, "vxm")
    assert refinementOf(node, asked, last[1]) == nothing
    assert refinementOf(node, *_last(panel, "rigid+affine+vxm+greedy")) == nothing
    # Nor when the result or its volumes are not those that are chosen.
    last = _last(panel, "+vxm")
    assert refinementOf(node, *last) == offer
    node.movingVolume = node.fixedVolume
    assert refinementOf(node, *last) == nothing
    node.movingVolume, node.resultTransform = last[0].moving, None
    assert refinementOf(node, *last) == nothing
    assert requestOf(node, BY_ENGINE).algorithm == "+vxm", "there is nothing to go on from"
    for other in ("rl_rigid", "affine", "syn"):
        desk.choose(panel.ui.algorithmCombo, other)
        assert refinementOf(node, *_last(panel, f"+{other}")) == nothing, other


@pytest.mark.parametrize("key", ["deep_metric", "label_reg"])
def test_a_model_for_two_contrasts_is_refined_across_contrasts(panel, key):
    """Local correlation alone would spoil what it found."""
    from DeepRegWidgets.Requests import ACROSS_CONTRASTS, BY_ENGINE, refinementOf, requestOf

    node = panel._parameterNode
    _volumes(node)
    desk.choose(panel.ui.algorithmCombo, key)
    last = _last(panel, f"rigid+affine+{key}")
    assert refinementOf(node, *last) == (ACROSS_CONTRASTS, "Refine by optimization")
    asked = requestOf(node, ACROSS_CONTRASTS)
    assert (asked.algorithm, asked.initial) == ("+greedy", last[1])
    assert asked.settings == {"greedy.modality": "different"}
    assert requestOf(node, BY_ENGINE).settings == {}
    node.settings = '{"greedy.modality": "same"}'
    assert requestOf(node, ACROSS_CONTRASTS).settings == {"greedy.modality": "same"}


def test_transformers_are_refined_on_the_structures_that_they_learned(panel):
    from DeepRegWidgets.Requests import BY_STRUCTURES, refinementOf, requestOf

    node, nothing = panel._parameterNode, ("", "")
    _volumes(node)
    desk.choose(panel.ui.algorithmCombo, "istn")
    last = _last(panel, "rigid+affine+istn")
    assert refinementOf(node, *last) == (BY_STRUCTURES, "Refine on these structures")
    asked = requestOf(node, BY_STRUCTURES)
    assert (asked.algorithm, asked.initial) == ("rigid+affine+istn", None)
    assert asked.settings["istn.pair_steps"] == 50
    assert refinementOf(node, asked, last[1]) == nothing, "it is refined already"
    node.settings = '{"istn.pair_steps": 5}'
    assert refinementOf(node, *_last(panel, "+istn")) == nothing


def test_other_algorithms_have_no_model(panel):
    for widget in ("modelLabel", "modelWidget", "modelInfoLabel", "trainModelButton"):
        assert not getattr(panel.ui, widget).isHidden()
    desk.choose(panel.ui.algorithmCombo, "greedy")
    for widget in ("modelLabel", "modelWidget", "modelInfoLabel", "trainModelButton"):
        assert getattr(panel.ui, widget).isHidden()
    assert panel.parts.model.problems() == []


def test_without_a_model_the_panel_says_so_and_leads_to_the_training(panel):
    ui = panel.ui
    said = desk.plain(ui.modelInfoLabel.text)
    assert "⚠" in said and "no trained model" in said and "this pair alone" in said
    assert model_support.entries(panel) == [("", "None")] and not ui.modelCombo.enabled
    # It can be registered nevertheless.
    desk.make_pair()
    panel.enter()
    desk.until(lambda: ui.applyButton.enabled, 5, "an enabled button")
    desk.choose(ui.algorithmCombo, "vxm_prob")
    assert ui.trainingButton.collapsed
    ui.trainModelButton.click()
    desk.settle(0.05)
    assert not ui.trainingButton.collapsed
    combo = ui.trainingAlgorithmCombo
    assert combo.itemData(combo.currentIndex) == "vxm_prob"
    assert not ui.trainButton.visibleRegion().isEmpty(), "scrolled to"
    ui.trainingButton.collapsed = True


def test_models_are_listed_the_newest_first(panel, folder):
    about = {"anatomy": "brain", "contrast": "T1", "data": "12 people <b>.", "terms": "CC BY 4.0",
             "figures": {"dice": 0.71, "dice_before": 0.554}}  # fmt: skip
    model_support.write_card(folder, "old", age=100, **about)
    model_support.write_card(folder, "new")
    model_support.write_card(folder, "other", algorithm="vxm_prob")
    (folder / "damaged.safetensors").write_bytes(b"nothing")
    _look(panel)
    assert model_support.entries(panel) == [("", "Newest: new"), ("new", "new"), ("old", "old")]
    combo = panel.ui.modelCombo
    assert combo.enabled and combo.currentIndex == 0
    assert combo.itemData(2, desk.tool_tip_role()) == "brain, T1, 2 mm voxels"
    assert desk.plain(panel.ui.modelInfoLabel.text).strip().startswith("new : 2 mm voxels.")
    assert _request(panel).settings == {}
    desk.choose(combo, "old")
    said = desk.plain(panel.ui.modelInfoLabel.text)
    assert "Trained on 12 people <b>." in said and "Terms: CC BY 4.0." in said
    assert "Dice 0.71, before 0.55" in said
    assert _request(panel).settings == {"vxm.model": "old"}
    # Another algorithm has models of its own, and the choice is kept meanwhile.
    desk.choose(panel.ui.algorithmCombo, "vxm_prob")
    assert model_support.entries(panel) == [("", "Newest: other"), ("other", "other")]
    assert _request(panel).settings == {}
    desk.choose(panel.ui.algorithmCombo, "vxm")
    assert _request(panel).settings == {"vxm.model": "old"}
    desk.choose(combo, "")
    assert _request(panel).settings == {}


def test_changes_of_the_folder_are_seen(panel, folder):
    assert model_support.entries(panel) == [("", "None")]
    panel.parts.model._timer.setInterval(30)
    model_support.write_card(folder, "mine")
    desk.until(lambda: len(model_support.entries(panel)) == 2, 3, "another entry")
    desk.choose(panel.ui.modelCombo, "mine")
    (folder / "mine.safetensors").unlink()
    desk.until(lambda: panel.parts.model.problems(), 3, "a problem")
    assert "'mine'" in desk.plain(panel.ui.modelInfoLabel.text)
    desk.choose(panel.ui.modelCombo, "")
    assert panel.parts.model.problems() == []


def test_the_form_does_not_forget_the_model(panel, folder):
    model_support.write_card(folder, "mine")
    _look(panel)
    desk.choose(panel.ui.modelCombo, "mine")
    panel.ui.parametersBox.collapsed = False
    form = panel.parts.algorithm.form
    form.editor("vxm.pair_steps").value = 7
    assert _request(panel).settings == {"vxm.model": "mine", "vxm.pair_steps": 7}
    form._resetButton.click()
    assert _request(panel).settings == {"vxm.model": "mine"}
    panel.ui.parametersBox.collapsed = True


def test_a_file_of_another_folder(panel, tmp_path):
    import shell

    path = model_support.write_card(tmp_path, "far")
    shell.dialogs.answer_next(str(path), kind="file")
    panel.ui.modelBrowseButton.click()
    assert panel.ui.modelCombo.currentText == "far"
    assert _request(panel).settings == {"vxm.model": str(path)}
    assert "far" in desk.plain(panel.ui.modelInfoLabel.text) and not panel.parts.model.problems()
    shell.dialogs.answer_next("", kind="file")
    panel.ui.modelBrowseButton.click()
    assert _request(panel).settings == {"vxm.model": str(path)}, "cancelled"


@pytest.mark.parametrize("what", ["other", "damaged"])
def test_a_file_that_does_not_fit_keeps_the_pair_from_being_registered(panel, tmp_path, what):
    import shell

    path = model_support.write_card(tmp_path, "wrong", algorithm="vxm_prob")
    if what == "damaged":
        path.write_bytes(b"nothing at all")
    desk.make_pair()
    panel.enter()
    desk.until(lambda: panel.ui.applyButton.enabled, 5, "an enabled button")
    shell.dialogs.answer_next(str(path), kind="file")
    panel.ui.modelBrowseButton.click()
    desk.until(lambda: not panel.ui.applyButton.enabled, 3, "a disabled button")
    words = "belongs to 'vxm_prob'" if what == "other" else "no safetensors file"
    assert words in desk.plain(panel.ui.modelInfoLabel.text) and words in desk.message(panel)
    assert words in panel.ui.applyButton.toolTip
    desk.choose(panel.ui.modelCombo, "")
    desk.until(lambda: panel.ui.applyButton.enabled, 3, "an enabled button")


def test_the_choice_is_saved_with_the_scene(panel, folder, tmp_path):
    import slicer

    model_support.write_card(folder, "mine")
    _look(panel)
    desk.choose(panel.ui.modelCombo, "mine")
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    desk.settle()
    slicer.util.loadScene(path)
    desk.settle()
    assert panel.ui.modelCombo.currentText == "mine"
    assert _request(panel).settings == {"vxm.model": "mine"}


def test_maps_in_mm_have_colors_and_a_unit(panel):
    """Maps that only one system is known for take those of errors."""
    import numpy as np
    import slicer

    from DeepRegLib.geometry.grid import Grid

    grid = Grid((4, 5, 6), np.eye(4))
    values = np.linspace(0, 2, grid.size, dtype=np.float32).reshape(grid.shape)
    assert overlays.colored_as("uncertainty_mm") == "uncertainty_mm"
    assert overlays.colored_as("latent") is None
    node = overlays.add_map_volume(slicer.mrmlScene, "x", values, grid, "inconsistency_mm")
    assert node.GetVoxelValueUnits().GetCodeValue() == "mm"
    assert node.GetAttribute(overlays.KIND_ATTRIBUTE) == "inconsistency_mm"
    colors = node.GetDisplayNode().GetColorNode()
    assert colors.GetAttribute(overlays.COLOR_ATTRIBUTE) == "error_mm"
