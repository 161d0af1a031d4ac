"""PythonQt's ways: attributes, connections by strings, and refusals."""

import pytest


def test_properties_are_attributes_and_methods_stay_methods(application):
    import qt

    button = qt.QPushButton("Apply")
    button.enabled = False
    button.text = "Register"
    assert (button.text, button.enabled, button.checkable) == ("Register", False, False)
    assert button.isEnabled() is False
    combo = qt.QComboBox()
    combo.addItem("a", "data")
    assert (combo.currentText, combo.count, combo.itemData(0), combo.currentIndex) == (
        "a",
        1,
        "data",
        0,
    )
    timer = qt.QTimer()
    timer.setInterval(5)
    assert (timer.interval, timer.active) == (5, False)
    form = qt.QFormLayout()
    form.spacing = 7
    assert form.spacing == 7 and form.rowCount() == 0


@pytest.mark.parametrize("name", ["sizehint", "labelDrawingMode", "madeUp"])
def test_members_that_slicer_lacks_are_refused(application, name):
    import qt

    combo = qt.QComboBox()
    with pytest.raises(AttributeError):
        getattr(combo, name)
    with pytest.raises(AttributeError):
        setattr(combo, name, 1)


def test_subclasses_may_have_attributes(application):
    import qt

    class Panel(qt.QWidget):
        def __init__(self):
            super().__init__()
            self.state = 3

        def sizeHint(self):
            return qt.QSize(123, 45)

    panel = Panel()
    assert panel.state == 3
    panel.adjustSize()
    assert panel.width == 123


def test_string_connections_give_the_arguments_that_they_name(application):
    import qt

    button, got = qt.QPushButton(), []
    button.checkable = True

    def with_one(checked):
        got.append(("one", checked))

    button.connect("clicked(bool)", with_one)
    button.connect("clicked()", lambda *arguments: got.append(("none", arguments)))
    button.click()
    assert got == [("one", True), ("none", ())]
    assert button.disconnect("clicked(bool)", with_one)
    button.click()
    assert got[2:] == [("none", ())]


def test_a_signal_that_does_not_exist_is_refused(application):
    import ctk
    import qt
    import slicer

    for widget, signature in (
        (qt.QPushButton(), "pushed()"),
        (qt.QComboBox(), "currentIndexChanged(QString)"),
        (ctk.ctkSliderWidget(), "valueChanged(int)"),
        (slicer.qMRMLNodeComboBox(), "currentNodeChanged(vtkMRMLScene*)"),
    ):
        with pytest.raises(ValueError, match="has no signal"):
            widget.connect(signature, print)


def test_what_qt_hands_back_behaves_alike(application):
    import qt

    parent = qt.QWidget()
    layout = qt.QVBoxLayout(parent)
    box = qt.QDialogButtonBox(qt.QDialogButtonBox.Ok)
    layout.addWidget(box)
    ok = box.button(qt.QDialogButtonBox.Ok)
    ok.text = "Fine"
    assert parent.layout().itemAt(0).widget() is box
    assert [b.text for b in parent.findChildren("QPushButton")] == ["Fine"]
    assert parent.findChild(qt.QDialogButtonBox) is box
    clicked = []
    ok.connect("clicked()", lambda: clicked.append(1))
    ok.click()
    assert clicked == [1]


def test_enumerators_are_numbers(application):
    import qt

    box = qt.QCheckBox()
    box.checked = True
    assert box.checkState() == 2 and qt.Qt.Checked == 2
    assert int(qt.Qt.AlignLeft | qt.Qt.AlignTop) == 33


def test_connections_of_deleted_objects_are_forgotten(application):
    import qt
    from shell import pythonqt

    before = len(pythonqt._connections)
    button = qt.QPushButton()
    button.connect("clicked()", lambda: None)
    assert len(pythonqt._connections) == before + 1
    button.delete()
    assert len(pythonqt._connections) == before


def test_collapsible_button_folds_its_contents(application):
    import ctk
    import qt

    button = ctk.ctkCollapsibleButton()
    button.text = "Inputs"
    form = qt.QFormLayout(button)
    shown, hidden = qt.QLabel("shown"), qt.QLabel("hidden")
    form.addRow(shown)
    form.addRow(hidden)
    hidden.hide()
    folded = []
    button.connect("contentsCollapsed(bool)", folded.append)
    height = button.sizeHint().height()
    button.collapsed = True
    assert shown.isHidden() and button.sizeHint().height() < height
    button.collapsed = False
    assert not shown.isHidden() and hidden.isHidden()
    assert folded == [True, False]


def test_what_is_shown_while_folded_appears_when_unfolded(application):
    """As ctkCollapsibleButton::eventFilter has it."""
    import ctk
    import qt

    button = ctk.ctkCollapsibleButton()
    form = qt.QFormLayout(button)
    first, second, third = qt.QLabel("first"), qt.QLabel("second"), qt.QLabel("third")
    for label in (first, second, third):
        form.addRow(label)
    first.hide()
    button.show()
    button.collapsed = True
    first.visible, second.visible = True, False
    assert first.isHidden() and second.isHidden() and third.isHidden()
    button.collapsed = False
    assert not first.isHidden() and second.isHidden() and not third.isHidden()
    button.hide()


def test_chart_draws_its_plots(application):
    import ctk
    import vtk

    chart = ctk.ctkVTKChartView()
    chart.resize(300, 200)
    empty = chart.grab().toImage()
    table = vtk.vtkTable()
    for name, values in (("x", range(5)), ("y", (0, 3, 1, 4, 2))):
        column = vtk.vtkFloatArray()
        column.SetName(name)
        for value in values:
            column.InsertNextValue(value)
        table.AddColumn(column)
    plot = vtk.vtkPlotLine()
    plot.SetInputData(table, 0, 1)
    plot.SetColor(255, 0, 0, 255)
    chart.addPlot(plot)
    chart.title = "Loss"
    drawn = chart.grab().toImage()
    assert chart.plotIndex(plot) == 0 and chart.title == "Loss"
    red = [
        (x, y)
        for x in range(300)
        for y in range(200)
        if drawn.pixelColor(x, y).red() > 200 and drawn.pixelColor(x, y).green() < 100
    ]
    assert len(red) > 100 and drawn != empty
