"""The section Results of the panel: card, views, overlay, curve, Python, report, landmarks."""

import numpy as np
import panel_support as desk
import pytest

VIEWS = ("before", "after", "flicker", "checkerboard", "difference", "redCyan")


@pytest.fixture
def panel(scene):
    yield from desk.opened(scene)


@pytest.fixture
def result(panel):
    """The panel after a rigid run."""
    desk.prepare(panel)
    desk.run(panel)
    return panel


@pytest.fixture
def bent(panel):
    """The panel after a deformable run with a Jacobian map."""
    desk.prepare(panel, algorithm="greedy")
    panel.ui.jacobianCheckBox.click()
    desk.settle()
    desk.run(panel)
    return panel


def _composites():
    import slicer

    return slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")


def _layers():
    import slicer

    node = _composites()[0]
    ids = (node.GetBackgroundVolumeID(), node.GetForegroundVolumeID())
    return [i and slicer.mrmlScene.GetNodeByID(i) for i in ids]


def _comparison_volumes():
    import slicer

    nodes = slicer.util.getNodesByClass("vtkMRMLVectorVolumeNode")
    return [n for n in nodes if n.GetAttribute("DeepReg.Comparison")]


def _click(panel, view):
    getattr(panel.ui, f"{view}Button").click()
    desk.settle(0.05)


def test_card_shows_the_rows(result):
    from DeepRegLib.bridge import mrml
    from DeepRegLib.card import card_rows

    transform, table = result.ui.transformSelector.currentNode(), result.ui.cardTable
    rows = card_rows(mrml.card_of(transform)[0])
    shown = [tuple(table.item(r, c).text() for c in range(3)) for r in range(table.rowCount)]
    assert shown == [tuple(row) for row in rows] and len(rows) > 5
    titles = [table.horizontalHeaderItem(c).text() for c in range(3)]
    assert titles == ["Measure", "Before", "After"]
    assert any(sign in result.ui.verdictLabel.text for sign in "✔⚠✖")
    assert mrml.card_of(transform)[0]["sentence"] in desk.plain(result.ui.verdictLabel.text)


def test_view_buttons(result):
    fixed, moving = (getattr(result.ui, f"{s}Selector").currentNode() for s in ("fixed", "moving"))
    moved = result.ui.movedSelector.currentNode()
    assert result.ui.afterButton.checked and _layers() == [fixed, moved]
    for view in VIEWS:
        _click(result, view)
        checked = [v for v in VIEWS if getattr(result.ui, f"{v}Button").checked]
        assert checked == [view]
        assert result.ui.blendSlider.enabled == (view in ("before", "after"))
        if view == "before":
            assert _layers() == [fixed, moving]
        elif view in ("after", "flicker"):
            assert _layers() == [fixed, moved]
        else:
            (node,) = _comparison_volumes()
            assert _layers() == [node, None]
            assert node.GetHideFromEditors()
    pictures = []
    for view in VIEWS[3:]:
        _click(result, view)
        import slicer

        pictures.append(slicer.util.arrayFromVolume(_comparison_volumes()[0]).astype(float).copy())
    assert min(np.abs(a - b).mean() for a in pictures for b in pictures if a is not b) > 0.5


def test_blend_slider(result):
    for view in ("after", "before"):
        _click(result, view)
        for value in (0.0, 0.3, 1.0):
            result.ui.blendSlider.value = value
            opacities = [node.GetForegroundOpacity() for node in _composites()]
            assert opacities == pytest.approx([value] * len(opacities)) and opacities
    result.ui.blendSlider.value = 0.5


def test_blend_of_the_next_result(result):
    result.ui.blendSlider.value = 0.9
    desk.run(result)
    opacity = _composites()[0].GetForegroundOpacity()
    result.ui.blendSlider.value = 0.5
    assert opacity == pytest.approx(0.9)


def test_flicker_stops_when_the_panel_is_left(result):
    import slicer

    _click(result, "flicker")
    seen = set()

    def both():
        seen.add(_composites()[0].GetForegroundOpacity())
        return {0.0, 1.0} <= seen

    desk.until(both, 3, "a change of the picture")
    slicer.util.selectModule("Data")
    opacity = _composites()[0].GetForegroundOpacity()
    assert 0.0 < opacity < 1.0, "both volumes are to be seen"
    desk.settle(0.7)
    assert _composites()[0].GetForegroundOpacity() == opacity


def test_comparison_volume_goes_with_its_result(result):
    import slicer

    _click(result, "checkerboard")
    assert len(_comparison_volumes()) == 1
    moving = result.ui.movingSelector.currentNode()
    other = slicer.modules.volumes.logic().CloneVolume(slicer.mrmlScene, moving, "Other")
    slicer.util.arrayFromVolume(other)[:3] = 0
    result.ui.movingSelector.setCurrentNode(other)
    desk.settle()
    assert _comparison_volumes() == [] and result.ui.verdictLabel.text == "No result yet."


def test_comparison_volume_is_saved_once(result, tmp_path):
    """A scene shows what it showed, also where DeepReg is not installed."""
    import slicer

    for view in ("checkerboard", "redCyan"):
        _click(result, view)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrml"))
    assert (tmp_path / "scene.mrml").read_text().count('name="DeepReg comparison"') == 1
    desk.settle()
    assert result.ui.redCyanButton.checked and len(_comparison_volumes()) == 1


def test_closed_scene(result):
    import slicer

    for view in ("checkerboard", "flicker"):
        _click(result, view)
    slicer.mrmlScene.Clear(0)
    desk.settle()
    assert _comparison_volumes() == []
    assert result.ui.verdictLabel.text == "No result yet."
    assert not result.ui.cardTable.visible and not result.ui.viewsWidget.visible
    assert not result.ui.saveReportButton.enabled and not result.ui.copyPythonButton.enabled
    assert result.ui.applyButton.text == "Select a fixed and a moving volume"


def test_before_view_when_applied_to_moving(panel):
    import slicer

    fixed, _moving = desk.prepare(panel)
    panel.ui.applyToMovingCheckBox.click()
    desk.settle()
    desk.run(panel)
    _click(panel, "before")
    (node,) = _comparison_volumes()
    assert _layers()[0] is node
    panel.ui.blendSlider.value = 0.0
    was = slicer.util.arrayFromVolume(node).astype(float).copy()
    panel.ui.blendSlider.value = 1.0
    assert np.abs(slicer.util.arrayFromVolume(node).astype(float) - was).mean() > 1
    panel.ui.blendSlider.value = 0.5
    _click(panel, "after")
    assert _layers() == [fixed, panel.ui.movedSelector.currentNode()]


def test_jacobian_overlay(bent):
    from DeepRegLib.bridge.outcome import MAP_ROLE

    combo = bent.ui.mapCombo
    assert [combo.itemData(n) for n in range(combo.count)] == ["", "jacobian"]
    desk.choose(combo, "jacobian")
    transform = bent.ui.transformSelector.currentNode()
    overlay = transform.GetNodeReference(MAP_ROLE + "jacobian")
    assert _layers() == [bent.ui.fixedSelector.currentNode(), overlay] and overlay is not None
    bent.ui.checkerboardButton.click()
    assert combo.currentIndex == 0 and len(_comparison_volumes()) == 1


def _legends():
    """Titles of the color legends that the red view shows."""
    import slicer

    name = "vtkMRMLColorLegendDisplayableManager"
    view = slicer.app.layoutManager().sliceWidget("Red").sliceView()
    manager = view.displayableManagerByClassName(name)
    nodes = slicer.util.getNodesByClass("vtkMRMLColorLegendDisplayNode")
    shown = [node for node in nodes if manager.GetColorLegendActor(node).GetVisibility()]
    return [node.GetTitleText() for node in shown]


def test_a_color_legend_comes_and_goes_with_the_overlay(bent):
    assert _legends() == []
    desk.choose(bent.ui.mapCombo, "jacobian")
    desk.settle(0.05)
    assert _legends() == ["Jacobian determinant"]
    bent.ui.beforeButton.click()
    desk.settle(0.05)
    assert _legends() == []


def test_overlay_can_be_taken_away(bent):
    desk.choose(bent.ui.mapCombo, "jacobian")
    bent.ui.mapCombo.setCurrentIndex(0)
    desk.settle(0.05)
    assert _layers()[1] is bent.ui.movedSelector.currentNode()
    assert bent.ui.afterButton.checked


def test_deleted_moved_volume_does_no_harm(result):
    import slicer

    _click(result, "checkerboard")
    slicer.mrmlScene.RemoveNode(result.ui.movedSelector.currentNode())
    desk.settle()
    for view in VIEWS:
        _click(result, view)
    assert "✖" not in desk.message(result)


def test_copied_python_repeats_the_run(result):
    import slicer

    result.ui.copyPythonButton.click()
    text = slicer.app.clipboard().text()
    text = text() if callable(text) else text
    assert "DeepReg.DeepRegLogic().register(" in text and "'Fixed'" in text
    first = result.ui.transformSelector.currentNode()
    before = slicer.util.arrayFromTransformMatrix(first).copy()
    names = {"slicer": slicer, "getNode": slicer.util.getNode}
    exec(text, names)
    again = names["result"].transform
    assert again is not first
    assert np.abs(slicer.util.arrayFromTransformMatrix(again) - before).max() < 1e-3


def test_report_is_saved(result, tmp_path):
    import shell

    path = tmp_path / "a report.html"
    shell.dialogs.answer_next(str(path), kind="file")
    result.ui.saveReportButton.click()
    page = path.read_text(encoding="utf-8")
    for part in ("Fixed", "Moving", "Rigid", "<img", "data:image/"):
        assert part in page, part
    assert page.count("data:image/") >= 2
    assert any(str(path) in text for text in shell.dialogs.texts("status"))


def test_report_needs_an_answer_and_a_place(result, tmp_path):
    import shell

    result.ui.saveReportButton.click()  # cancelled
    assert shell.dialogs.of_kind("error") == []
    path = tmp_path / "no such folder" / "report.html"
    shell.dialogs.answer_next(str(path), kind="file")
    result.ui.saveReportButton.click()
    (error,) = shell.dialogs.of_kind("error")
    assert "The report was not saved" in error.text
    assert not path.exists() and list(tmp_path.iterdir()) == []


def test_curve_draws(bent):
    box = bent.ui.curveBox
    box.collapsed = True
    box.collapsed = False
    desk.settle(0.1)
    view = bent.parts.results._curve._view
    chart = view.chart()
    assert chart.GetNumberOfPlots() == 3
    labels = [chart.GetPlot(n).GetLabel() for n in range(3)]
    assert labels == ["Rigid", "Affine", "Greedy diffeomorphic"]
    table = chart.GetPlot(2).GetInput()
    values = [table.GetValue(r, 1).ToDouble() for r in range(table.GetNumberOfRows())]
    assert len(values) > 3 and 100.0 in values and min(values) == 0.0
    box.collapsed = True


# Landmarks ---------------------------------------------------------------------------------------


def _landmarks(panel):
    places = desk.body_points(6)
    lists = (
        desk.add_points("Fixed points", places),
        desk.add_points("Moving points", desk.true_map(places)),
    )
    panel.ui.fixedPointsSelector.setCurrentNode(lists[0])
    panel.ui.movingPointsSelector.setCurrentNode(lists[1])
    desk.settle()
    return lists


def _drag(node, index, shift):
    place = [0.0] * 3
    node.GetNthControlPointPosition(index, place)
    node.SetNthControlPointPosition(index, *(p + shift for p in place))
    desk.settle(0.1)


def test_rerun_is_offered_after_landmarks_moved(panel):
    import slicer

    desk.prepare(panel)
    fixed_points, _moving_points = _landmarks(panel)
    assert not panel.ui.rerunButton.visible
    _drag(fixed_points, 0, 1.0)
    assert not panel.ui.rerunButton.visible, "there is no result to improve yet"
    _drag(fixed_points, 0, -1.0)
    desk.run(panel)
    assert not panel.ui.rerunButton.visible
    _drag(fixed_points, 0, 2.0)
    assert panel.ui.rerunButton.visible
    _drag(fixed_points, 0, -2.0)
    assert not panel.ui.rerunButton.visible, "back where it was"
    _drag(fixed_points, 1, 2.0)
    transform = panel.ui.transformSelector.currentNode()
    count = slicer.mrmlScene.GetNumberOfNodes()
    panel.ui.rerunButton.click()
    assert panel.parts.run.running and not panel.ui.rerunButton.visible
    assert "✖" not in desk.finish(panel)
    assert panel.ui.transformSelector.currentNode() is transform
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    assert not panel.ui.rerunButton.visible


def test_rerun_is_offered_for_new_landmarks(result):
    lists = _landmarks(result)
    assert result.ui.rerunButton.visible
    lists[0].RemoveNthControlPoint(5)
    desk.settle(0.1)
    assert not result.ui.rerunButton.visible, "unlike lists are no pairs"
    lists[1].RemoveNthControlPoint(5)
    desk.settle(0.1)
    assert result.ui.rerunButton.visible
