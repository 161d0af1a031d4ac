"""Node selectors, parameter nodes, files, and the record of messages."""

import numpy as np
import pytest


def _volume(name, value=0.0):
    import slicer

    return slicer.util.addVolumeFromArray(np.full((4, 5, 6), value, np.float32), name=name)


def _items(selector):
    return [selector._combo.itemText(i) for i in range(selector._combo.count)]


def test_combo_box_follows_the_scene(scene):
    import slicer

    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    combo.noneEnabled = True
    combo.addEnabled = combo.removeEnabled = False
    combo.setMRMLScene(scene)
    changes = []
    combo.connect("currentNodeChanged(vtkMRMLNode*)", changes.append)
    assert _items(combo) == ["None"] and combo.currentNode() is None and combo.currentNodeID == ""
    first, second = _volume("first"), _volume("second")
    assert _items(combo) == ["None", "first", "second"]
    combo.setCurrentNode(second)
    first.SetName("renamed")
    assert _items(combo) == ["None", "renamed", "second"]
    assert combo.currentNodeID == second.GetID()
    first.SetHideFromEditors(True)
    assert _items(combo) == ["None", "second"]
    combo.showHidden = True
    assert combo.nodeCount() == 2
    scene.RemoveNode(second)
    # As in Slicer, a neighbor takes the place of a removed node.
    assert combo.currentNode() is first
    assert changes == [second, first]


def test_combo_box_without_none_takes_the_first_node(scene):
    import slicer

    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    combo.setMRMLScene(scene)
    assert combo.currentNode() is None
    volume = _volume("only")
    assert combo.currentNode() is volume
    scene.RemoveNode(volume)
    assert combo.currentNode() is None


def test_combo_box_filters_by_attribute_and_class(scene):
    import slicer

    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    combo.noneEnabled = True
    combo.addAttribute("vtkMRMLScalarVolumeNode", "Role", "fixed")
    combo.setMRMLScene(scene)
    volume = _volume("volume")
    assert combo.nodeCount() == 0
    volume.SetAttribute("Role", "fixed")
    assert combo.nodeCount() == 1
    combo.removeAttribute("vtkMRMLScalarVolumeNode", "Role")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    assert combo.nodeCount() == 2
    combo.showChildNodeTypes = False
    assert combo.nodeCount() == 1


def test_combo_box_creates_nodes_through_its_menu(scene):
    import slicer

    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLLinearTransformNode"]
    combo.baseName = "Result"
    combo.noneEnabled = True
    combo.setMRMLScene(scene)
    added = []
    combo.connect("nodeAddedByUser(vtkMRMLNode*)", added.append)
    row = next(i for i, text in enumerate(_items(combo)) if text.startswith("Create new"))
    combo._combo.activated.emit(row)
    assert combo.currentNode() is added[0] and added[0].GetName().startswith("Result")


def test_checkable_combo_box_reports_checked_nodes(scene):
    import slicer

    combo = slicer.qMRMLCheckableNodeComboBox()
    combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    combo.setMRMLScene(scene)
    first, second = _volume("first"), _volume("second")
    changes = []
    combo.connect("checkedNodesChanged()", lambda: changes.append(len(combo.checkedNodes())))
    combo.setCheckState(second, 2)
    combo.check(first)
    assert combo.checkedNodes() == [first, second] and combo.allChecked()
    scene.RemoveNode(first)
    assert combo.checkedNodes() == [second]
    assert changes == [1, 2, 1]


def test_segment_selector_follows_the_segments(scene):
    import slicer

    selector = slicer.qMRMLSegmentSelectorWidget()
    selector.noneEnabled = True
    selector.setMRMLScene(scene)
    got = []
    selector.connect("currentSegmentChanged(QString)", got.append)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
    liver = node.GetSegmentation().AddEmptySegment("", "liver")
    selector.setCurrentNode(node)
    spleen = node.GetSegmentation().AddEmptySegment("", "spleen")
    assert selector.segmentIDs() == [liver, spleen]
    assert selector.currentSegmentID() == ""
    selector.setCurrentSegmentID(spleen)
    node.GetSegmentation().RemoveSegment(spleen)
    assert selector.currentSegmentID() == "" and got == [spleen, ""]
    scene.RemoveNode(node)
    assert selector.currentNode() is None and selector.currentNodeID() == ""


def test_ui_file_gives_widgets_with_scene_and_properties(tiny):
    import ctk
    import qt
    import slicer

    ui = tiny.ui
    assert type(ui.fixedSelector) is slicer.qMRMLNodeComboBox
    assert type(ui.opacitySlider) is ctk.ctkSliderWidget
    assert type(ui.previewBox) is qt.QCheckBox
    assert ui.fixedSelector.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    assert ui.fixedSelector.noneEnabled is True and ui.fixedSelector.addEnabled is False
    assert ui.fixedSelector.mrmlScene() is slicer.mrmlScene
    assert ui.segmentSelector.mrmlScene() is slicer.mrmlScene
    assert ui.fixedSelector.property("SlicerParameterName") == "fixedVolume"
    assert ui.modeBox.currentText == "Thorough" and ui.modeBox.count == 2


def test_panel_and_parameter_node_follow_each_other(tiny):
    parameters, ui = tiny._parameterNode, tiny.ui
    volume = _volume("fixed")
    ui.fixedSelector.setCurrentNode(volume)
    assert parameters.fixedVolume is volume and ui.applyButton.enabled
    ui.applyButton.click()
    assert tiny.applied[-1] == "fixed"
    ui.opacitySlider.value = 0.25
    ui.modeBox.currentIndex = 0
    ui.previewBox.click()
    ui.stepsBox.value = 9
    ui.nameEdit.text = "result"
    node = parameters.parameterNode
    assert [
        node.GetParameter(n) for n in ("opacity", "mode", "preview", "steps", "outputName")
    ] == [
        "0.25",
        "FAST",
        "False",
        "9",
        "result",
    ]
    parameters.opacity = 0.75
    parameters.mode = type(parameters.mode).GOOD
    assert ui.opacitySlider.value == 0.75 and ui.modeBox.currentText == "Thorough"
    parameters.fixedVolume = None
    assert ui.fixedSelector.currentNode() is None and not ui.applyButton.enabled


def test_parameter_node_refuses_bad_values(tiny):
    parameters = tiny._parameterNode
    for name, value, error in (
        ("opacity", 1.5, ValueError),
        ("steps", 0, ValueError),
        ("steps", 1.5, TypeError),
        ("outputName", None, ValueError),
        ("mode", "FAST", TypeError),
        ("weights", ["a"], TypeError),
    ):
        before = getattr(parameters, name)
        with pytest.raises(error):
            setattr(parameters, name, value)
        assert getattr(parameters, name) == before
    with pytest.raises(ValueError, match="Cannot find a param"):
        parameters.setValue("madeUp", 1)
    assert parameters.isCached("steps") and parameters.default("steps").value == 50


def test_one_modified_event_per_change(tiny):
    import vtk

    parameters, events = tiny._parameterNode, []
    tag = parameters.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: events.append(1))
    parameters.weights = [1.0, 2.0, 3.0]
    assert len(events) == 1
    parameters.weights.append(4.0)
    assert len(events) == 2 and parameters.weights == [1.0, 2.0, 3.0, 4.0]
    parameters.RemoveObserver(tag)


@pytest.mark.parametrize("ending", ["case.mrb", "folder"])
def test_parameter_node_survives_a_saved_scene(tiny, tmp_path, ending):
    import slicer

    parameters = tiny._parameterNode
    parameters.fixedVolume = _volume("fixed", 3.0)
    parameters.movingVolume = _volume("moving", 4.0)
    parameters.steps = 12
    parameters.mode = type(parameters.mode).FAST
    parameters.weights = [0.5, 2.0]
    parameters.options["metric"] = "lncc"
    assert slicer.util.saveScene(str(tmp_path / ending))
    tiny.exit()
    slicer.mrmlScene.Clear(0)
    saved = tmp_path / ending
    slicer.util.loadScene(str(saved if saved.is_file() else saved / "folder.mrml"))
    again = tiny.logic.getParameterNode()
    assert again.fixedVolume.GetName() == "fixed" and again.movingVolume.GetName() == "moving"
    assert slicer.util.arrayFromVolume(again.movingVolume).max() == 4.0
    assert (again.steps, again.mode.name, again.weights, again.options) == (
        12,
        "FAST",
        [0.5, 2.0],
        {"metric": "lncc"},
    )


def test_reload_makes_a_new_panel(tiny):
    import slicer

    slicer.util.reloadScriptedModule("TinyModule")
    panel = slicer.modules.TinyModuleWidget
    assert panel is not tiny
    assert panel.parent.self() is panel and panel.ui.applyButton.enabled is False
    panel.exit()


def test_messages_are_recorded_and_answered(scene):
    import qt
    import shell
    import slicer

    slicer.util.errorDisplay("no overlap")
    assert slicer.util.confirmOkCancelDisplay("Overwrite?") is True
    shell.dialogs.answer_next(False, kind="confirm")
    assert slicer.util.confirmYesNoDisplay("Install?") is False
    assert qt.QMessageBox.question(None, "Title", "Stop?") == qt.QMessageBox.Yes
    shell.dialogs.answer_next("/data/a.nii.gz", kind="file")
    assert qt.QFileDialog.getOpenFileName(None, "Open") == "/data/a.nii.gz"
    assert qt.QFileDialog.getSaveFileName(None, "Save") == ""
    with pytest.raises(RuntimeError), slicer.util.tryWithErrorDisplay("It failed"):
        raise RuntimeError("reason")
    kinds = [shown.kind for shown in shell.dialogs.shown]
    assert kinds == ["error", "confirm", "confirm", "confirm", "file", "file", "error"]
    assert "no overlap" in shell.dialogs.texts("error")[0]
    assert "reason" in shell.dialogs.last.text


def test_dialogs_do_not_wait_and_can_be_clicked(scene):
    import qt
    import shell

    box = qt.QMessageBox()
    box.text = "Restart?"
    box.standardButtons = qt.QMessageBox.Ok | qt.QMessageBox.Cancel
    shell.dialogs.answer_next(qt.QMessageBox.Cancel, kind="message")
    assert box.exec_() == qt.QMessageBox.Cancel
    dialog = qt.QDialog()
    layout = qt.QVBoxLayout(dialog)
    edit = qt.QLineEdit()
    layout.addWidget(edit)

    def fill(shown):
        edit.text = "typed"
        return 1

    shell.dialogs.answer_next(fill, kind="dialog")
    assert dialog.exec_() == 1 and edit.text == "typed" and not dialog.isVisible()


def test_nodes_are_read_and_written(scene, tmp_path):
    import slicer

    volume = _volume("image", 7.0)
    assert slicer.util.saveNode(volume, str(tmp_path / "image.nrrd"))
    loaded = slicer.util.loadVolume(str(tmp_path / "image.nrrd"))
    assert slicer.util.arrayFromVolume(loaded).max() == 7.0 and loaded is not volume
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points")
    points.AddControlPoint(1.0, 2.0, 3.0)
    assert slicer.util.saveNode(points, str(tmp_path / "points.mrk.json"))
    again = slicer.util.loadMarkups(str(tmp_path / "points.mrk.json"))
    assert np.allclose(slicer.util.arrayFromMarkupsControlPoints(again), [[1, 2, 3]])
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shift")
    matrix = np.eye(4)
    matrix[0, 3] = 5
    slicer.util.updateTransformMatrixFromArray(transform, matrix)
    assert slicer.util.saveNode(transform, str(tmp_path / "shift.h5"))
    back = slicer.util.loadTransform(str(tmp_path / "shift.h5"))
    assert np.allclose(slicer.util.arrayFromTransformMatrix(back), matrix)
    with pytest.raises(RuntimeError, match="Failed to load"):
        slicer.util.loadVolume(str(tmp_path / "missing.nrrd"))


def test_sample_data_is_registered_once_and_loaded(scene, tmp_path):
    import SampleData
    import slicer

    slicer.util.saveNode(_volume("image", 2.0), str(tmp_path / "image.nrrd"))
    logic = SampleData.SampleDataLogic
    logic.registerCustomSampleDataCategory("Tests", "Tests of the stand-in")
    for _ in range(2):
        logic.registerCustomSampleDataSource(
            category="Tests",
            sampleName="One",
            uris=(tmp_path / "image.nrrd").as_uri(),
            fileNames="image.nrrd",
            nodeNames="One",
        )
    assert len(slicer.modules.sampleDataSources["Tests"]) == 1
    assert logic.categoryTitle("Tests") == "Tests of the stand-in"
    node = logic().downloadSample("One")
    assert node.GetName() == "One" and slicer.util.arrayFromVolume(node).max() == 2.0


def test_subject_hierarchy_plugin_offers_its_action(scene, tmp_path):
    import slicer

    path = tmp_path / "TinySubjectHierarchyPlugin.py"
    path.write_text(
        "import qt, slicer\n"
        "from AbstractScriptedSubjectHierarchyPlugin import *\n"
        "class TinySubjectHierarchyPlugin(AbstractScriptedSubjectHierarchyPlugin):\n"
        "    filePath = __file__\n"
        "    def __init__(self, scriptedPlugin):\n"
        "        scriptedPlugin.name = 'Tiny'\n"
        "        super().__init__(scriptedPlugin)\n"
        "        self.action = qt.QAction('Register this...', scriptedPlugin)\n"
        "        self.action.connect('triggered()', self.onAction)\n"
        "        self.items = []\n"
        "    def itemContextMenuActions(self):\n"
        "        return [self.action]\n"
        "    def showContextMenuActionsForItem(self, itemID):\n"
        "        handler = slicer.qSlicerSubjectHierarchyPluginHandler.instance()\n"
        "        volumes = handler.pluginByName('Volumes')\n"
        "        self.action.visible = volumes.canOwnSubjectHierarchyItem(itemID) > 0\n"
        "    def onAction(self):\n"
        "        handler = slicer.qSlicerSubjectHierarchyPluginHandler.instance()\n"
        "        self.items.append(handler.currentItem())\n"
    )
    plugin = slicer.qSlicerSubjectHierarchyScriptedPlugin(None)
    assert plugin.setPythonSource(str(path))
    handler = slicer.qSlicerSubjectHierarchyPluginHandler.instance()
    node = handler.subjectHierarchyNode()
    item = node.GetItemByDataNode(_volume("volume"))
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "transform")
    assert node.GetItemByDataNode(transform) not in (0, item)
    assert handler._actions_of(node.GetItemByDataNode(transform)) == []
    # Other modules may have added entries of their own.
    (action,) = [a for a in handler._actions_of(item) if a.text == "Register this..."]
    action.trigger()
    assert slicer.TinySubjectHierarchyPlugin.items == [item]
