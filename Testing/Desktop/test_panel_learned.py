"""Real trainings from the panel through the worker, and registrations with what they made."""

import model_support
import numpy as np
import panel_support as desk
import pytest

from DeepRegLib import models, registry


@pytest.fixture
def panel(scene, no_models):
    for panel in desk.opened(scene):
        panel.ui.trainingButton.collapsed = False
        yield panel
        panel.ui.trainingButton.collapsed = True


@pytest.fixture
def ready(panel):
    """Function that fills the section in for a tiny training on three volumes."""

    def fill(algorithm="vxm", steps=6):
        volumes = [desk.make_fixed(), desk.make_moving(), desk.make_moving("Third")]
        structures = [desk.mask_of(v, f"{v.GetName()} mask") for v in volumes]
        desk.until(lambda: panel.ui.trainingTable.rowCount == 3, 5, "three rows")
        desk.choose(panel.ui.trainingAlgorithmCombo, algorithm)
        for volume, labels in zip(volumes, structures):
            panel.parts.training.data.check(volume, labels)
        panel.ui.trainingSpacingSpinBox.value = 4.0
        known = [parameter.name for parameter in registry.spec(algorithm).parameters]
        for name, value in model_support.TINY.items():
            if name in known:
                model_support.type_setting(panel, f"{algorithm}.{name}", value)
        model_support.type_setting(panel, "images.alignment", "none")
        model_support.type_setting(panel, "training.steps", steps)
        model_support.type_setting(panel, "training.validate_every", 1000)
        desk.settle(0.1)
        assert panel.ui.trainButton.text == "Train" and panel.ui.trainButton.enabled
        return volumes

    return fill


def _train(panel, during=None, seconds=120):
    """Clicks Train and waits for the end; returns what the section says."""
    ui = panel.ui
    ui.trainButton.click()
    assert panel.parts.training.running, desk.plain(ui.trainingMessageLabel.text)
    if during is not None:
        during()
    desk.until(lambda: not panel.parts.training.running, seconds, "the end of the training")
    desk.settle()
    assert not ui.trainingForm.isHidden() and ui.trainingProgressBar.isHidden()
    assert ui.trainStopButton.isHidden() and ui.trainButton.text != "Cancel"
    return desk.plain(ui.trainingMessageLabel.text)


def _until_it_learns(panel):
    desk.until(lambda: "Step" in panel.ui.trainingStatusLabel.text, 90, "steps")


def test_train_and_register_with_an_uncertainty_map(panel, ready, models_folder):
    """From volumes to a model, to a registration of other grids, to its map in mm."""
    ui, volumes = panel.ui, ready("vxm_prob", steps=8)
    before, seen = desk.census(), set()

    def watch():
        assert ui.trainButton.text == "Cancel" and ui.trainingForm.isHidden()
        assert "learns from 3 volumes: vxm_prob" in desk.plain(ui.trainingMessageLabel.text)
        panel.ui.fixedSelector.setCurrentNode(volumes[0])
        panel.ui.movingSelector.setCurrentNode(volumes[1])
        desk.until(lambda: ui.applyButton.text == "A training is running", 3, "the button's text")
        assert not ui.applyButton.enabled
        panel.parts.run.start()
        assert not panel.parts.run.running, "a training is not ended by a registration"
        desk.until(lambda: seen.add(ui.trainingProgressBar.value) or len(seen) > 3, 90, "progress")
        assert "elapsed" in ui.trainingStatusLabel.text

    said = _train(panel, watch)
    assert "✔" in said and "vxm_prob" in said and "Dice" not in said
    assert desk.census() == before, "the scene is as it was"
    assert (models_folder / "vxm_prob.safetensors").exists()
    assert not ui.trainingCurveBox.isHidden()
    assert [r for r in panel.parts.training._progress.points if r["kind"] == "training"]
    # It is in the list, and chosen.
    assert panel._parameterNode.algorithm == "vxm_prob" and ui.modelCombo.currentText == "vxm_prob"
    assert "4 mm voxels" in desk.plain(ui.modelInfoLabel.text)
    assert ui.trainingNameEdit.placeholderText == "vxm_prob-2"
    _register(panel)
    transform = ui.transformSelector.currentNode()
    assert "The model is 'vxm_prob'" in ui.logText.plainText
    # Eight steps teach next to nothing: it is about what the affine stage gives.
    assert desk.error_mm(transform) < 2.5 < _start_mm()
    _check_map(panel, volumes[0])
    # The next result in the same transform has no such map.
    desk.choose(ui.algorithmCombo, "greedy")
    desk.until(lambda: ui.applyButton.enabled, 5, "an enabled button")
    desk.run(panel)
    assert ui.transformSelector.currentNode() is transform
    assert ui.mapCombo.findData("uncertainty_mm") < 0


def _start_mm():
    points = desk.body_points()
    return float(np.linalg.norm(points - desk.true_map(points), axis=1).mean())


def _register(panel):
    desk.choose(panel.ui.presetCombo, "Fast")
    desk.choose(panel.parts.algorithm.form.editor("rigid.initialization"), "geometry")
    desk.until(lambda: panel.ui.applyButton.enabled, 5, "an enabled button")
    said = desk.run(panel)
    assert "✖" not in said, said


def _check_map(panel, fixed):
    """The uncertainty lies over the fixed volume in color, and says its unit."""
    import slicer

    combo = panel.ui.mapCombo
    assert combo.findData("uncertainty_mm") > 0
    desk.choose(combo, "uncertainty_mm")
    assert "Uncertainty in mm" in combo.currentText
    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    overlay = slicer.mrmlScene.GetNodeByID(node.GetForegroundVolumeID())
    assert overlay.GetAttribute("DeepReg.Map") == "uncertainty_mm"
    assert node.GetBackgroundVolumeID() == fixed.GetID()
    assert overlay.GetVoxelValueUnits().GetCodeValue() == "mm"
    values = slicer.util.arrayFromVolume(overlay)
    assert values.shape == slicer.util.arrayFromVolume(fixed).shape
    assert values.max() > 0 and np.isfinite(values).all() and values.min() >= 0
    assert not panel.ui.mapScaleLabel.isHidden() and " mm" in panel.ui.mapScaleLabel.text
    desk.choose(combo, "")
    assert panel.ui.mapScaleLabel.isHidden()


def test_cancel_leaves_nothing(panel, ready, models_folder, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ready(steps=100000)
    before = desk.census()

    def cancel():
        _until_it_learns(panel)
        panel.ui.trainButton.click()
        assert not panel.parts.training.running, "at once"

    said = _train(panel, cancel)
    assert "Cancelled" in said and "no model" in said
    assert desk.census() == before
    assert list(models_folder.glob("*.safetensors")) == []
    assert list(tmp_path.glob("deepreg-*")) == []
    desk.until(lambda: panel.ui.applyButton.text != "A training is running", 3, "a free worker")


def test_stop_keeps_the_model(panel, ready, models_folder):
    ready(steps=100000)

    def stop():
        _until_it_learns(panel)
        panel.ui.trainStopButton.click()
        assert not panel.ui.trainStopButton.enabled and panel.parts.training.running

    assert "✔" in _train(panel, stop)
    card = models.read_card(models_folder / "vxm.safetensors")
    assert 0 < card.training["steps_done"] < 100000
    assert panel.ui.modelCombo.currentText == "vxm"


def test_closing_the_scene_does_not_end_the_training(panel, ready, models_folder):
    import slicer

    ready(steps=6)
    panel.ui.trainButton.click()
    slicer.mrmlScene.Clear(0)
    assert panel.parts.training.running
    desk.until(lambda: not panel.parts.training.running, 120, "the end of the training")
    desk.settle()
    assert "✔" in panel.ui.trainingMessageLabel.text
    assert panel.ui.modelCombo.currentText == "vxm"
    assert (models_folder / "vxm.safetensors").exists()


@pytest.mark.parametrize("what", ["folder", "worker"])
def test_failures_give_a_sentence(panel, ready, tmp_path, what):
    import os
    import signal

    from DeepRegWidgets.Worker import sharedWorker

    ready(steps=100000)
    before = desk.census()
    if what == "folder":
        desk.choose(panel.ui.trainingSourceCombo, "A folder, a table or a BIDS data set")
        panel.ui.trainingPathEdit.text = str(tmp_path)
        said = _train(panel)
        assert "there are no images" in said
    else:

        def kill():
            _until_it_learns(panel)
            os.kill(sharedWorker().pid, signal.SIGKILL)

        said = _train(panel, kill)
        assert "ended the worker process" in said
    assert said.count("✖") == 1 and "Traceback" not in said
    assert desk.census() == before
    assert panel.ui.trainButton.text == "Train" and panel.ui.trainButton.enabled


def test_a_registration_keeps_the_training_from_starting(panel, ready):
    volumes = ready()
    desk.prepare(panel, volumes[0], volumes[1])
    panel.ui.applyButton.click()
    assert panel.ui.trainButton.text == "A registration is running"
    assert not panel.ui.trainButton.enabled
    panel.ui.applyButton.click()
    desk.until(lambda: panel.ui.trainButton.enabled, 10, "a free worker")
    assert panel.ui.trainButton.text == "Train"


def test_console(panel, ready, models_folder):
    """Without the panel; what does not fit is told as an exception."""
    volumes = ready()
    done = panel.logic.train(
        volumes, "vxm", name="mine", spacing=4.0, alignment="none", settings={"steps": 2},
        parameters={name: text for name, text in model_support.TINY.items()},
    )  # fmt: skip
    assert done["model"] == "mine" and (models_folder / "mine.safetensors").exists()
    with pytest.raises(ValueError, match="scalar volume"):
        panel.logic.train(["x", "y"])


def test_an_unfinished_training_goes_on(panel, ready, models_folder, monkeypatch):
    """Begun in the panel, ended from outside, gone on with where its checkpoint is."""
    from DeepRegWidgets import TrainingPart

    make = TrainingPart.trainingRequestOf

    def often(node):
        request = make(node)
        request.options["settings"]["checkpoint_every_s"] = 0.0
        return request

    monkeypatch.setattr(TrainingPart, "trainingRequestOf", often)
    ready(steps=100000)
    file = models_folder / "training" / "vxm" / "checkpoint.safetensors"

    def cancel():
        desk.until(file.exists, 90, "a checkpoint")
        panel.ui.trainButton.click()

    said = _train(panel, cancel)
    assert "Cancelled" in said and "can go on" in said
    assert (
        not panel.ui.trainingResumeCheckBox.isHidden() and panel.ui.trainingResumeCheckBox.checked
    )

    def stop():
        desk.until(lambda: "Going on after step" in panel.ui.logText.plainText, 90, "going on")
        _until_it_learns(panel)
        panel.ui.trainStopButton.click()

    assert "✔" in _train(panel, stop)
    assert (models_folder / "vxm.safetensors").exists() and not file.exists()
    assert panel.ui.trainingResumeCheckBox.isHidden()
