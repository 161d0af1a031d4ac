"""Slice views show what is in the scene, and the main window can be photographed."""

import time

import numpy as np
import pytest


def _oblique_volume():
    """An anisotropic volume with turned axes; its values tell the voxels apart."""
    import slicer

    rng = np.random.default_rng(3)
    coarse = rng.uniform(0, 200, (4, 5, 6))
    array = np.kron(coarse, np.ones((4, 5, 6))).astype(np.float32)
    angle = np.deg2rad(20)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag([1.5, 1.0, 3.0])
    matrix[:3, 3] = [-20, -15, -10]
    node = slicer.util.addVolumeFromArray(array, ijkToRAS=matrix, name="oblique")
    node.CreateDefaultDisplayNodes()
    display = node.GetScalarVolumeDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0, 200)
    display.InterpolateOff()
    return node, array, matrix


def _picture(view):
    from PySide6 import QtGui

    view.forceRender()
    image = view._image.convertToFormat(QtGui.QImage.Format_RGB888)
    data = np.frombuffer(image.constBits(), np.uint8)
    rows = data.reshape(image.height(), image.bytesPerLine())[:, : image.width() * 3]
    return rows.reshape(image.height(), image.width(), 3)


def _expected(array, matrix, ras):
    index = np.rint((np.linalg.inv(matrix) @ [*ras, 1.0])[:3]).astype(int)
    if (index < 0).any() or (index >= array.shape[::-1]).any():
        return None
    return array[index[2], index[1], index[0]]


@pytest.mark.parametrize("name", ["Red", "Green", "Yellow"])
def test_slice_shows_the_voxels_of_an_oblique_volume(scene, application, name):
    import slicer

    node, array, matrix = _oblique_volume()
    slicer.util.setSliceViewerLayers(background=node, foreground=None, label=None, fit=True)
    view = application.layoutManager().sliceWidget(name).sliceView()
    picture = _picture(view)
    height, width = picture.shape[:2]
    differences, outside = [], []
    for x in range(5, width - 5, 11):
        for row in range(5, height - 40, 11):
            ras = view.convertXYZToRAS([x, height - 1 - row, 0])
            value = _expected(array, matrix, ras)
            if value is None:
                outside.append(int(picture[row, x].max()))
            else:
                differences.append(abs(float(picture[row, x, 0]) - value / 200 * 255))
    assert len(differences) > 100
    assert np.median(differences) < 2 and np.mean(np.array(differences) < 3) > 0.9
    assert np.mean(np.array(outside) == 0) > 0.9


def test_foreground_is_blended(scene, application):
    import slicer

    shape = (8, 40, 40)
    dark = slicer.util.addVolumeFromArray(np.zeros(shape, np.float32), name="dark")
    bright = slicer.util.addVolumeFromArray(np.full(shape, 100, np.float32), name="bright")
    for node in (dark, bright):
        node.CreateDefaultDisplayNodes()
        node.GetScalarVolumeDisplayNode().AutoWindowLevelOff()
        node.GetScalarVolumeDisplayNode().SetWindowLevelMinMax(0, 100)
    view = application.layoutManager().sliceWidget("Red").sliceView()
    values = []
    for opacity in (0.0, 0.5, 1.0):
        slicer.util.setSliceViewerLayers(dark, bright, foregroundOpacity=opacity, fit=True)
        picture = _picture(view)
        values.append(int(picture[picture.shape[0] // 2, picture.shape[1] // 2, 0]))
    assert values[0] < 3 and abs(values[1] - 127) < 4 and values[2] > 252


def test_a_parent_transform_moves_the_picture(scene, application):
    import slicer

    node, _, _ = _oblique_volume()
    slicer.util.setSliceViewerLayers(background=node, foreground=None, label=None, fit=True)
    view = application.layoutManager().sliceWidget("Red").sliceView()
    before = _picture(view).copy()
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shift")
    matrix = np.eye(4)
    matrix[0, 3] = 8
    slicer.util.updateTransformMatrixFromArray(transform, matrix)
    node.SetAndObserveTransformNodeID(transform.GetID())
    after = _picture(view)
    xyz = view.convertRASToXYZ([8, 0, 0])
    pixels = round(view.convertRASToXYZ([0, 0, 0])[0] - xyz[0])
    middle = slice(before.shape[0] // 4, before.shape[0] // 2)
    assert abs(pixels) > 5
    rolled = np.roll(before, -pixels, axis=1)
    assert np.mean(np.abs(rolled[middle].astype(int) - after[middle]) < 8) > 0.9
    assert np.mean(np.abs(before[middle].astype(int) - after[middle]) < 8) < 0.8


def test_segments_and_points_are_drawn(scene, application):
    import slicer

    node, array, _ = _oblique_volume()
    slicer.util.setSliceViewerLayers(background=node, foreground=None, label=None, fit=True)
    view = application.layoutManager().sliceWidget("Red").sliceView()
    grey = _picture(view)
    assert np.ptp(grey[:-40].astype(int), axis=2).max() < 3
    labels = slicer.util.addVolumeFromArray(
        (array > 100).astype(np.uint8), nodeClassName="vtkMRMLLabelMapVolumeNode"
    )
    labels.CopyOrientation(node)
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "parts")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(node)
    logic = slicer.modules.segmentations.logic()
    assert logic.ImportLabelmapToSegmentationNode(labels, segmentation)
    scene.RemoveNode(labels)
    colored = _picture(view)
    assert np.mean(np.ptp(colored.astype(int), axis=2) > 20) > 0.05
    segmentation.GetDisplayNode().SetVisibility(False)
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points")
    points.CreateDefaultDisplayNodes()
    center = view.convertXYZToRAS([view.width / 2, view.height / 2, 0])
    points.AddControlPoint(*center)
    with_point = _picture(view)
    assert np.ptp(with_point.astype(int), axis=2).max() > 60


def test_two_dimensional_actors_lie_on_top(scene, application):
    import slicer
    import vtk

    node, _, _ = _oblique_volume()
    slicer.util.setSliceViewerLayers(background=node, foreground=None, label=None, fit=True)
    view = application.layoutManager().sliceWidget("Red").sliceView()
    text = vtk.vtkTextActor()
    text.SetInput("MOVED")
    text.GetTextProperty().SetColor(1, 0, 0)
    text.GetTextProperty().SetFontSize(40)
    text.SetPosition(view.width // 2 - 60, view.height // 2)
    renderer = view.renderWindow().GetRenderers().GetFirstRenderer()
    renderer.AddViewProp(text)
    picture = _picture(view).astype(int)
    renderer.RemoveViewProp(text)
    assert np.sum((picture[..., 0] > 200) & (picture[..., 1] < 60)) > 300


def test_rendering_waits_for_a_change_and_is_quick(scene, application):
    import shell
    import slicer

    node, _, _ = _oblique_volume()
    slicer.util.setSliceViewerLayers(background=node, foreground=None, label=None, fit=True)
    view = application.layoutManager().sliceWidget("Red").sliceView()
    shell.wait(lambda: False, 0.2)
    count = view._renders
    shell.wait(lambda: False, 0.2)
    assert view._renders == count
    logic = application.layoutManager().sliceWidget("Red").sliceLogic()
    for offset in range(5):
        logic.SetSliceOffset(offset)
    assert view._renders == count
    assert shell.wait(lambda: view._renders > count, 2.0)
    assert view._renders <= count + 2
    times = []
    for offset in range(6):
        logic.SetSliceOffset(offset)
        start = time.perf_counter()
        view.forceRender()
        times.append(time.perf_counter() - start)
    assert np.median(times) < 0.25


def test_paused_rendering_resumes(scene, application):
    import shell
    import slicer

    node, _, _ = _oblique_volume()
    slicer.util.setSliceViewerLayers(background=node, foreground=None, label=None, fit=True)
    view = application.layoutManager().sliceWidget("Red").sliceView()
    shell.wait(lambda: False, 0.2)
    with slicer.util.RenderBlocker():
        application.layoutManager().sliceWidget("Red").sliceLogic().SetSliceOffset(3)
        count = view._renders
        shell.wait(lambda: False, 0.2)
        assert view._renders == count
    assert shell.wait(lambda: view._renders > count, 2.0)


def test_layouts_show_the_views_they_name(scene, application):
    import slicer

    manager = application.layoutManager()
    assert manager.sliceViewNames() == ("Red", "Green", "Yellow")
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    assert not manager.sliceWidget("Red").isHidden()
    assert manager.sliceWidget("Green").isHidden()
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    assert not manager.sliceWidget("Yellow").isHidden()


def test_main_window_shows_the_selected_module(tiny, application, tmp_path):
    import slicer

    slicer.util.selectModule("TinyModule")
    window = slicer.util.mainWindow()
    assert slicer.util.selectedModule() == "TinyModule"
    assert tiny.parent.isVisible() or slicer.modules.TinyModuleWidget.parent.isVisible()
    picture = window.grab()
    assert (picture.width(), picture.height()) == (1500, 950)
    assert picture.save(str(tmp_path / "window.png"))
    assert slicer.modules.TinyModuleWidget.parent.isEntered is True
    slicer.util.selectModule("Data")
    assert slicer.util.selectedModule() == "Data"
    assert slicer.modules.TinyModuleWidget.parent.isEntered is False


def test_run_script_exits_with_the_code_of_the_script(application, tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    script = tmp_path / "script.py"
    script.write_text(
        "import qt, slicer\n"
        "def work():\n"
        "    assert slicer.app.testingEnabled()\n"
        "    assert 'TinyModule' in slicer.util.moduleNames()\n"
        "    assert slicer.modules.TinyModuleInstance.started == 1\n"
        "    slicer.util.exit(7)\n"
        "slicer.app.commandOptions().runPythonAndExit = False\n"
        "qt.QTimer.singleShot(50, work)\n"
    )
    here = Path(__file__).resolve().parent
    command = [sys.executable, str(here / "run.py"), "--testing", "--module", "TinyModule"]
    command += ["--additional-module-path", str(here / "tiny" / "TinyModule")]
    command += ["--python-script", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr
