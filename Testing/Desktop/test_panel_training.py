"""The section Training of the panel, up to the button: data, form, what is missing, the request."""

import json

import model_support
import panel_support as desk
import pytest

from DeepRegLib import registry
from DeepRegLib.bridge.training import collect_training
from DeepRegLib.errors import InputError

LEARNED = [key for key, spec in registry.specs().items() if spec.needs.training] + ["error_map"]


@pytest.fixture
def panel(scene, no_models):
    for panel in desk.opened(scene):
        panel.ui.trainingButton.collapsed = False
        yield panel
        panel.ui.trainingButton.collapsed = True


@pytest.fixture
def pair(panel):
    """Two volumes, listed."""
    volumes = desk.make_pair()
    desk.until(lambda: panel.ui.trainingTable.rowCount == 2, 5, "two rows")
    return volumes


def _rows(panel):
    """What stands in the table: name, check mark, structures."""
    return [(b.text, b.checked, c.currentText) for _, b, c in panel.parts.training.data._rows]


def _row(panel, name):
    return next(row for row in panel.parts.training.data._rows if row[1].text == name)


def _request(panel):
    from DeepRegWidgets.TrainingChoices import trainingRequestOf

    return trainingRequestOf(panel._parameterNode)


def _button(panel):
    desk.settle(0.02)
    button = panel.ui.trainButton
    assert button.enabled == (button.text == "Train")
    return button.text


def test_only_algorithms_that_learn_are_listed(panel):
    combo = panel.ui.trainingAlgorithmCombo
    assert [combo.itemData(n) for n in range(combo.count)] == LEARNED
    for key in LEARNED:
        desk.choose(combo, key)
        assert panel._parameterNode.trainingAlgorithm == key
        assert desk.plain(panel.ui.trainingSummaryLabel.text) == registry.spec(key).summary
        shown = set(panel.parts.training.form._rows)
        own = {f"{key}.{p.name}" for p in registry.spec(key).parameters if p.training}
        assert own and own <= shown
        assert {"training.steps", "training.learning_rate", "images.alignment"} <= shown
        assert "training.device" not in shown, "that of the registration holds"


def test_volumes_of_the_scene_are_listed(panel, pair):
    import slicer

    assert _rows(panel) == [("Fixed", False, "None"), ("Moving", False, "None")]
    mask = desk.mask_of(pair[0], "Mask")
    brain = desk.mask_of(pair[1], "Brain", segments=("body", "core"))
    third = desk.make_moving("Third")
    desk.until(lambda: len(_rows(panel)) == 3, 3, "another row")
    combo = _row(panel, "Fixed")[2]
    texts = [combo.itemText(n) for n in range(combo.count)]
    assert texts == ["None", "Brain", "Mask"], "label maps are no images, but structures"
    assert not combo.enabled, "not before the volume is checked"
    _row(panel, "Fixed")[1].click()
    _row(panel, "Third")[1].click()
    desk.choose(_row(panel, "Fixed")[2], "Mask")
    assert [row[1:] for row in _rows(panel)] == [(True, "Mask"), (False, "None"), (True, "None")]
    assert _request(panel).volumes == [(pair[0], mask), (third, None)]
    slicer.mrmlScene.RemoveNode(pair[1])
    desk.until(lambda: len(_rows(panel)) == 2, 3, "a row less")
    assert _request(panel).volumes == [(pair[0], mask), (third, None)]
    slicer.mrmlScene.RemoveNode(pair[0])
    desk.until(lambda: len(_rows(panel)) == 1, 3, "a row less")
    assert _request(panel).volumes == [(third, None)]
    assert brain.GetScene() is slicer.mrmlScene


def test_what_judges_registrations_is_trained_here_too(panel, pair):
    """It has a form of its own, and the model is not chosen for registrations."""
    ui = panel.ui
    desk.choose(ui.trainingAlgorithmCombo, "error_map")
    for volume in pair:
        panel.parts.training.data.check(volume)
    model_support.type_setting(panel, "error_map.largest_mm", 4.0)
    assert _button(panel) == "Train" and ui.trainingNameEdit.placeholderText == "error_map"
    request = _request(panel)
    assert request.algorithm == "error_map" and request.options["parameters"]["largest_mm"] == 4.0
    assert ui.algorithmCombo.findData("error_map") < 0
    before = panel._parameterNode.algorithm
    panel.parts.training._onModel("error_map", "mine")
    assert panel._parameterNode.algorithm == before and panel._parameterNode.checkModel == "mine"


def test_the_button_says_what_is_missing(panel, pair, models_folder, tmp_path):
    ui = panel.ui
    assert _button(panel) == "Check two volumes at least"
    for volume in pair:
        panel.parts.training.data.check(volume)
    assert _button(panel) == "Train"
    ui.trainingNameEdit.text = "Not good!"
    assert _button(panel).startswith("Name: small letters")
    model_support.write_card(models_folder, "taken")
    ui.trainingNameEdit.text = "taken"
    assert _button(panel).startswith("There is a model of this name")
    ui.trainingNameEdit.text = ""
    assert _button(panel) == "Train"
    model_support.type_setting(panel, "vxm.encoder", "many")
    assert _button(panel) == "Correct the parameters"
    assert (
        "'encoder'" in desk.plain(ui.trainingMessageLabel.text)
        and "'encoder'" in ui.trainButton.toolTip
    )
    panel.parts.training.form.resetAll()
    assert _button(panel) == "Train" and ui.trainingMessageLabel.isHidden()
    desk.choose(ui.trainingSourceCombo, "A folder, a table or a BIDS data set")
    assert _button(panel) == "Choose a folder or a table"
    ui.trainingPathEdit.text = str(tmp_path / "nowhere")
    assert _button(panel) == "The folder or table is not there"
    ui.trainingPathEdit.text = str(tmp_path)
    assert _button(panel) == "Train"


def test_names_that_are_free(panel, models_folder):
    """The name that is taken without one being entered stands in the field, in gray."""
    edit = panel.ui.trainingNameEdit
    assert edit.placeholderText == "vxm" and _request(panel).options["name"] == "vxm"
    model_support.write_card(models_folder, "vxm")
    panel.enter()
    assert edit.placeholderText == "vxm-2" and _request(panel).options["name"] == "vxm-2"
    edit.text = "mine"
    assert _request(panel).options["name"] == "mine"


def test_folders_and_tables(panel, tmp_path):
    import shell

    ui = panel.ui
    assert ui.trainingPathWidget.isHidden() and not ui.trainingTable.isHidden()
    desk.choose(ui.trainingSourceCombo, "A folder, a table or a BIDS data set")
    assert not ui.trainingPathWidget.isHidden() and ui.trainingTable.isHidden()
    shell.dialogs.answer_next(str(tmp_path), kind="file")
    ui.trainingFolderButton.click()
    assert ui.trainingPathEdit.text == str(tmp_path)
    shell.dialogs.answer_next(str(tmp_path / "a.csv"), kind="file")
    ui.trainingTableButton.click()
    assert ui.trainingPathEdit.text == str(tmp_path / "a.csv")
    model_support.type_setting(panel, "images.images", "*_t1.nii.gz")
    request = _request(panel)
    assert request.data == str(tmp_path / "a.csv") and not request.volumes
    assert request.options["images"] == "*_t1.nii.gz"
    collected = collect_training(request)
    assert collected.arrays == {} and collected.parameters["data"] == request.data


def test_label_maps_to_generate_images_from(panel, tmp_path):
    desk.choose(panel.ui.trainingSourceCombo, "Label maps, for images of any contrast")
    assert not panel.ui.trainingPathWidget.isHidden() and panel.ui.trainingTable.isHidden()
    assert _button(panel) == "Choose a folder or a table"
    panel.ui.trainingPathEdit.text = str(tmp_path)
    assert _button(panel) == "Train"
    parameters = collect_training(_request(panel)).parameters
    assert parameters["generated"] == str(tmp_path) and not parameters["data"]


def test_length_and_parameters(panel):
    ui = panel.ui
    steps = []
    for number in range(3):
        ui.trainingLengthCombo.setCurrentIndex(number)
        steps.append(_request(panel).options["settings"]["steps"])
        assert str(steps[-1]) in ui.trainingLengthCombo.currentText
    assert steps == sorted(set(steps)) and len(steps) == 3
    ui.trainingSpacingSpinBox.value = 2.5
    model_support.type_setting(panel, "training.steps", 77)
    model_support.type_setting(panel, "vxm.similarity", "mse")
    model_support.type_setting(panel, "card.terms", "CC0")
    options = _request(panel).options
    assert options["spacing"] == 2.5 and options["settings"]["steps"] == 77
    assert options["parameters"]["similarity"] == "mse" and options["terms"] == "CC0"
    assert options["settings"]["device"] == "auto"
    assert set(options["parameters"]) == {
        p.name for p in registry.spec("vxm").parameters if p.training
    }
    # Another algorithm has its own, and those of the first are kept.
    desk.choose(ui.trainingAlgorithmCombo, "vxm_prob")
    assert _request(panel).options["settings"]["steps"] == 77
    desk.choose(ui.trainingAlgorithmCombo, "vxm")
    assert _request(panel).options["parameters"]["similarity"] == "mse"
    # Nothing of it goes to a registration.
    from DeepRegWidgets.Requests import requestOf

    assert requestOf(panel._parameterNode).settings == {}


def test_an_unfinished_training_can_go_on(panel, models_folder):
    box = panel.ui.trainingResumeCheckBox
    assert box.isHidden() and _request(panel).options["resume"] is False
    folder = models_folder / "training" / "vxm"
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(b"")
    panel.enter()
    assert not box.isHidden() and box.checked
    options = _request(panel).options
    assert options["resume"] is True and options["overwrite"] is False
    box.click()
    options = _request(panel).options
    assert options["resume"] is False and options["overwrite"] is True


def test_structures_of_the_same_name_get_the_same_number(panel, pair):
    import numpy as np

    first = desk.mask_of(pair[0], "A", segments=("body", "core"))
    second = desk.mask_of(pair[1], "B", segments=("core", "body"))
    desk.until(lambda: _row(panel, "Fixed")[2].count == 3, 3, "the structures")
    for volume, labels in zip(pair, (first, second)):
        panel.parts.training.data.check(volume, labels)
    collected = collect_training(_request(panel))
    assert sorted(collected.arrays) == ["image_1", "image_2", "labels_1", "labels_2"]
    assert collected.parameters["names"]["image_2"] == "Moving"
    assert collected.parameters["structure_names"] == {"1": "body", "2": "core"}
    image, grid = collected.arrays["image_1"]
    labels, own = collected.arrays["labels_1"]
    assert labels.shape == image.shape and np.array_equal(own.voxel_to_ras, grid.voxel_to_ras)
    # The body is large and darker, whatever the order of the segments.
    sizes = [
        [(collected.arrays[f"labels_{n}"][0] == value).sum() for value in (1, 2)] for n in (1, 2)
    ]
    bright = [
        [collected.arrays[f"image_{n}"][0][collected.arrays[f"labels_{n}"][0] == v].mean()
         for v in (1, 2)]
        for n in (1, 2)
    ]  # fmt: skip
    assert min(map(min, sizes)) > 0
    assert bright[0][0] < bright[0][1] and bright[1][0] > bright[1][1]
    mask = desk.mask_of(pair[1], "Mask")
    desk.until(lambda: _row(panel, "Moving")[2].count == 4, 3, "the label map")
    panel.parts.training.data.check(pair[1], mask)
    with pytest.raises(InputError, match="label maps for all"):
        collect_training(_request(panel))


def test_an_algorithm_that_learns_from_structures_asks_for_them(panel, pair):
    for volume in pair:
        panel.parts.training.data.check(volume)
    assert _button(panel) == "Train"
    desk.choose(panel.ui.trainingAlgorithmCombo, "deepatlas")
    assert _button(panel) == "This algorithm learns from structures; choose some in the table"
    mask = desk.mask_of(pair[0], "A", segments=("body", "core"))
    desk.until(lambda: _row(panel, "Fixed")[2].count == 2, 3, "the structures")
    panel.parts.training.data.check(pair[0], mask)
    assert _button(panel) == "Train", "one labeled volume is enough to begin with"


def test_parent_transforms_count(panel, pair):
    import numpy as np

    above = desk.add_linear("Above", turn=(0.1, 0.2, 0.3), shift=(5, 6, 7))
    pair[0].SetAndObserveTransformNodeID(above.GetID())
    for volume in pair:
        panel.parts.training.data.check(volume)
    grids = [grid for _, grid in collect_training(_request(panel)).arrays.values()]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = desk.rotation((0.1, 0.2, 0.3)), (5, 6, 7)
    from DeepRegLib.bridge import mrml

    expected = matrix @ mrml.grid_of(pair[0]).voxel_to_ras
    np.testing.assert_allclose(grids[0].voxel_to_ras, expected, atol=1e-9)
    np.testing.assert_allclose(grids[1].voxel_to_ras, mrml.grid_of(pair[1]).voxel_to_ras)


def test_the_choices_are_saved_with_the_scene(panel, pair, tmp_path):
    import slicer

    mask = desk.mask_of(pair[0], "Mask")
    desk.until(lambda: _row(panel, "Fixed")[2].count == 2, 3, "the label map")
    panel.parts.training.data.check(pair[0], mask)
    panel.parts.training.data.check(pair[1])
    desk.choose(panel.ui.trainingAlgorithmCombo, "vxm_prob")
    panel.ui.trainingSpacingSpinBox.value = 2.0
    panel.ui.trainingLengthCombo.setCurrentIndex(2)
    panel.ui.trainingNameEdit.text = "mine"
    model_support.type_setting(panel, "training.batch", 2)
    before = _request(panel)
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    desk.settle()
    assert _rows(panel) == []
    slicer.util.loadScene(path)
    desk.until(lambda: len(_rows(panel)) == 2, 3, "two rows")
    assert _rows(panel) == [("Fixed", True, "Mask"), ("Moving", True, "None")]
    after = _request(panel)
    assert after.options == before.options and after.algorithm == "vxm_prob"
    assert [v.GetName() for v, _ in after.volumes] == ["Fixed", "Moving"]
    assert json.loads(panel._parameterNode.trainingSettings) == {"training.batch": 2}
    assert panel.ui.trainButton.text == "Train"


# The package of model files ----------------------------------------------------------------------


@pytest.fixture
def no_safetensors(monkeypatch):
    """safetensors counts as missing until `installed` holds what pip was asked for."""
    import slicer
    from DeepRegWidgets import Installer

    installed = []
    known = Installer._version
    monkeypatch.setattr(
        Installer, "_version", lambda name: "" if name == "safetensors" and not installed else
        known(name),
    )  # fmt: skip
    monkeypatch.setattr(slicer.util, "pip_install", installed.append, raising=False)
    return installed


def test_safetensors_is_asked_for_once(panel, pair, no_safetensors):
    import shell
    from DeepRegWidgets.Installer import ensureSafetensors

    for volume in pair:
        panel.parts.training.data.check(volume)
    shell.dialogs.answer_next(False, kind="confirm")
    panel.ui.trainButton.click()
    assert not panel.parts.training.running and no_safetensors == []
    assert "safetensors are needed" in panel.ui.trainingMessageLabel.text
    assert panel.ui.trainButton.enabled
    shell.dialogs.answer_next(True, kind="confirm")
    assert ensureSafetensors(lambda text: None) and no_safetensors == ["safetensors>=0.4"]
    asked = len(shell.dialogs.of_kind("confirm"))
    assert ensureSafetensors(lambda text: None) and len(shell.dialogs.of_kind("confirm")) == asked


def test_safetensors_that_cannot_be_installed(panel, pair, no_safetensors, monkeypatch):
    import shell
    import slicer

    def fail(_what):
        raise RuntimeError("no network")

    monkeypatch.setattr(slicer.util, "pip_install", fail, raising=False)
    for volume in pair:
        panel.parts.training.data.check(volume)
    shell.dialogs.answer_next(True, kind="confirm")
    panel.ui.trainButton.click()
    said = desk.plain(panel.ui.trainingMessageLabel.text)
    assert "✖" in said and "no network" in said and not panel.parts.training.running
