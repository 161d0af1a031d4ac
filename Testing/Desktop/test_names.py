"""What the panel uses of qt, ctk and slicer exists in Slicer, of the same kind, and where."""

import ast
import json
import re
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec

import pytest
from name_faults import canonical, fault, kind, members, used
from name_flow import FORMS, ROOT, UI, full_class
from names import Corpus, panel

LIST = json.loads((ROOT / "Testing" / "Desktop" / "slicer_names.json").read_text(encoding="utf-8"))
USES = Corpus(panel()).uses()

needs_slicer = pytest.mark.skipif(find_spec("slicer") is None, reason="needs slicer-core")


@pytest.mark.parametrize("file", panel())
def test_names_exist_and_are_of_the_right_kind(file):
    faults = [fault(use) for use in USES if use.place.rpartition(":")[0] == file]
    assert [text for text in faults if text] == []


@needs_slicer
def test_each_name_is_listed_with_its_source():
    """`tools/make_slicer_names.py` writes the list from Slicer's repository; -s prints it."""
    names, listed = used(USES), LIST["uses"]
    print(f"Slicer {LIST['slicer']}, CTK {LIST['ctk']}")
    for name, found in sorted(names.items()):
        print(f"{name:70} {found:20} {listed.get(name, {}).get('source', '?')}")
    assert sorted(set(names) - set(listed)) == [], "run tools/make_slicer_names.py"
    assert sorted(set(listed) - set(names)) == [], "no longer used"
    assert {n: e["kind"] for n, e in listed.items()} == names
    assert [name for name, entry in listed.items() if not entry["source"]] == []
    assert re.match(r"[0-9a-f]{40} \d{4}-", LIST["slicer"])


def test_what_nobody_recorded_has_a_line_in_the_source():
    for name, entry in LIST["uses"].items():
        if entry["kind"] in ("unrecorded", "member") and not name.startswith("qt."):
            assert re.search(r"\.(h|py):\d+$", entry["source"]), name


def test_most_of_the_panel_is_followed():
    """Guards against a walk that finds nothing."""
    names = used(USES)
    for name in (
        "qt.QPushButton.clicked(bool)", "slicer.qMRMLNodeComboBox.setCurrentNode",
        "ctk.ctkSliderWidget.valueChanged(double)", "slicer.util.setSliceViewerLayers",
        "slicer.ScriptedLoadableModule.ScriptedLoadableModuleWidget.resourcePath",
        "qt.QDoubleSpinBox.decimals", "slicer.qMRMLSliceView.scheduleRender",
        "slicer.qMRMLCheckableNodeComboBox.checkedNodes", "qt.QStandardItem.setEnabled",
        "slicer.vtkMRMLScene.StartCloseEvent", "slicer.i18n.tr",
    ):  # fmt: skip
        assert name in names, name
    assert len(names) > 250


@pytest.mark.parametrize(
    ("snippet", "complaint"),
    [
        ("import qt\nqt.QLabel().text()", "not to be called"),
        ("def f(ui):\n    ui.applyButton.setTextt('x')", "does not exist"),
        ("def f(ui):\n    ui.noSuchButton.text = 'x'", "no such widget"),
        ("def f(ui):\n    ui.applyButton.clicked(True)", "not to be called"),
        ("def f(ui):\n    ui.applyButton.text('x')", "not to be called"),
        ("def f(ui):\n    ui.applyButton.setText = 'x'", "not to be assigned"),
        ("def f(ui):\n    ui.applyButton.setText()", "wants a value"),
        ("def f(ui):\n    if ui.fixedSelector.currentNode is None: pass", "has to be called"),
        ("def f(ui):\n    return g(ui.fixedSelector.currentNode.GetID())", "has to be called"),
        ("def f(ui):\n    combo = ui.presetCombo\n    combo.addItemm('x')", "does not exist"),
        ("def f(ui):\n    for b in (ui.stopButton, ui.rerunButton): b.shown = 1", "does not exist"),
        ("def f(ui):\n    getattr(ui, 'stopButton').shown = True", "does not exist"),
        ("def f(ui):\n    for n in ('inputsButton',): getattr(ui, n).colapsed = 1", "not exist"),
        ("def g(box): box.colapsed = True\ndef f(ui): g(ui.logBox)", "does not exist"),
        ("def f(ui):\n    ui.applyButton.connect('text()', g)", "is no signal"),
        ("def f(ui):\n    ui.applyButton.connect('clicked', g)", "no signature"),
        ("def f(ui):\n    ui.swapButton.connect('clicked()', lambda on: 0)", "its slot wants 1"),
        ("class A:\n  def m(self, a, b): pass\n  def f(self):\n"
         "    self.ui.swapButton.connect('clicked(bool)', self.m)", "its slot wants 2"),
        ("slicer.util.noSuch()", "does not exist"),
        ("slicer.util.setSliceViewerLayers(backgrund=1)", "takes no argument 'backgrund'"),
        ("slicer.util.loadVolume()", "1 arguments at least"),
        ("slicer.util.selectModule('a', 'b')", "1 arguments at most"),
        ("slicer.util.selectModule", "has to be called"),
        ("from slicer.util import noSuchMixin", "does not exist"),
        ("from slicer.i18n import tr as _\n_('a', 'b')", "1 arguments at most"),
        ("from slicer.parameterNodeWrapper import WithinRange\nWithinRange(0)", "2 arguments at"),
        ("import SampleData\nlogic = SampleData.SampleDataLogic\n"
         "logic.registerCustomSampleDataSource(name='x')", "takes no argument 'name'"),
        ("from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget\n"
         "class W(ScriptedLoadableModuleWidget):\n  def f(self): self.noSuch()", "does not exist"),
        ("timer = qt.QTimer()\ntimer.connect('timeot()', f)", "does not exist"),
        ("def f():\n    timer = qt.QTimer()\n    timer.connect('timeot()', f)", "does not exist"),
        ("class A:\n  def __init__(self): self._t = qt.QTimer()\n  def f(self): self._t.strt()",
         "does not exist"),
        ("qt.QNoSuchWidget()", "does not exist"),
        ("qt.QTimer.singleShoot(0, f)", "does not exist"),
        ("ctk.ctkNoSuchWidget()", "does not exist"),
        ("slicer.vtkMRMLNoSuchNode()", "does not exist"),
        ("slicer.app.noSuch()", "does not exist"),
        ("slicer.app.slicerHome()", "not to be called"),
        ("slicer.app.layoutManager().sliceWidgett('Red')", "does not exist"),
        pytest.param("slicer.mrmlScene.RemoveNod(1)", "does not exist", marks=needs_slicer),
        pytest.param("slicer.vtkMRMLTransformNode.NoSuch(1)", "not exist", marks=needs_slicer),
        pytest.param("def f():\n    n = slicer.mrmlScene.AddNewNodeByClass('vtkMRMLTextNode')\n"
                     "    n.SetTxt('x')", "does not exist", marks=needs_slicer),
    ],
)  # fmt: skip
def test_bad_names_are_caught(snippet, complaint):
    faults = [text for text in map(fault, Corpus({"example.py": snippet}).uses()) if text]
    assert faults and complaint in faults[0]


@pytest.mark.parametrize(
    "snippet",
    [
        "def f(ui):\n    ui.applyButton.text = ui.presetCombo.currentText",
        "def f(ui):\n    ui.swapButton.connect('clicked(bool)', lambda checked=False, v=1: v)",
        "def f(ui):\n    other.connect('clicked(bool)', ui.applyButton.click)",
        "def f(ui):\n    ui.applyButton.clicked.connect(g)",
        "slicer.util.setSliceViewerLayers(background=None, fit=True)",
        "def f(n):\n    e = qt.QLabel() if n else qt.QSpinBox()\n    e.value = 1",
        "def f(n):\n    if n:\n        e = qt.QLabel()\n    else:\n        e = qt.QSpinBox()\n"
        "        e.value = 1",
    ],
)
def test_good_names_pass(snippet):
    assert [t for t in map(fault, Corpus({"example.py": snippet}).uses()) if t] == []


def qt_class(name):
    """A class of PySide6, which has the same documentation as the one in Slicer."""
    pytest.importorskip("PySide6", reason="needs PySide6")
    from PySide6 import QtCore, QtGui, QtWidgets

    return next(getattr(m, name) for m in (QtCore, QtGui, QtWidgets) if hasattr(m, name))


def test_members_of_qt_that_nobody_recorded_exist():
    for name in (n for n, k in used(USES).items() if n.startswith("qt.") and k == "unrecorded"):
        _module, owner, member = name.split(".")
        assert hasattr(qt_class(owner), member), name


def test_signatures_of_signals_exist_in_qt():
    """The list knows names of signals only; `slicer_names.json` those of CTK and Slicer."""
    checked = 0
    for name in (n for n, k in used(USES).items() if n.startswith("qt.") and k == "signal"):
        _module, owner, signature = name.split(".", 2)
        assert qt_class(owner).staticMetaObject.indexOfSignal(signature) >= 0, name
        checked += 1
    assert checked > 5


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_the_form_sets_properties_that_exist(form):
    assert form_faults(form.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('name="wordWrap"', 'name="wordWrapp"', "QLabel has no property wordWrapp"),
        ('name="wordWrap"', 'name="setText"', "QLabel has no property setText"),
        ('name="noneEnabled"', 'name="noneEnable"', "qMRMLNodeComboBox has no property"),
        ('class="QProgressBar"', 'class="QProgresBar"', "no class qt.QProgresBar"),
        ("mrmlSceneChanged(", "mrmlSceneChange(", "no signal mrmlSceneChange"),
        ("<slot>setMRMLScene(", "<slot>setScene(", "no slot setScene"),
    ],
)
def test_a_bad_form_is_caught(old, new, complaint):
    text = UI.read_text(encoding="utf-8")
    assert old in text
    assert complaint in form_faults(text.replace(old, new, 1))[0]


def form_faults(text):
    """What a form asks of Slicer's widgets that they do not have."""
    root, faults, classes = ElementTree.fromstring(text), [], {}
    for widget in root.iter("widget"):
        name = classes[widget.get("name")] = full_class(widget.get("class"))
        if kind(name) is None:
            faults.append(f"there is no class {name}")
            continue
        for item in widget.findall("property"):
            isDynamic = item.get("stdset") == "0" or item.get("name").startswith("SlicerParameter")
            listed = members(name).get(item.get("name"), "missing")
            if not isDynamic and listed in ("missing", "method", "signal", "type"):
                faults.append(f"{name} has no property {item.get('name')}")
    for connection in root.iter("connection"):
        for end, what, wanted in (("sender", "signal", "signal"), ("receiver", "slot", "method")):
            owner, member = classes[connection.find(end).text], connection.find(what).text
            if kind(f"{owner}.{member}") != wanted:
                faults.append(f"{owner} has no {what} {member}")
    return faults


#: Widget and type of the parameter, as the `canRepresent` methods have it in Slicer's
#: Base/Python/slicer/parameterNodeWrapper/guiConnectors.py. A slider needs a range, and a combo
#: box of texts or numbers a `Choice`.
CONNECTORS = {
    ("QCheckBox", "bool"), ("ctkCheckBox", "bool"), ("QPushButton", "bool"),
    ("ctkCheckablePushButton", "bool"), ("QSlider", "int"), ("QSpinBox", "int"),
    *((widget, number) for number in ("int", "float") for widget in (
        "QDoubleSpinBox", "ctkSliderWidget", "qMRMLSliderWidget", "ctkDoubleSlider",
        "ctkDoubleSpinBox", "qMRMLSpinBox")),
    *((widget, value) for value in ("Choice", "Enum") for widget in ("QComboBox", "ctkComboBox")),
    ("QLineEdit", "str"), ("QLabel", "str"), ("QTextEdit", "str"),
    ("ctkRangeWidget", "FloatRange"), ("ctkDoubleRangeSlider", "FloatRange"),
    ("qMRMLRangeWidget", "FloatRange"), ("ctkPathLineEdit", "Path"), ("ctkDirectoryButton", "Path"),
    ("qMRMLNodeComboBox", "node"), ("ctkColorPickerButton", "QColor"),
}  # fmt: skip


def test_every_parameter_is_bound_to_a_widget_that_can_show_it():
    fields, bound = parameters(), []
    every = [w for form in FORMS for w in ElementTree.parse(form).getroot().iter("widget")]
    for widget in every:
        for item in widget.findall("property[@name='SlicerParameterName']"):
            name = item.find("string").text
            bound.append(name)
            assert name in fields, f"there is no parameter {name}"
            pair = (widget.get("class"), fields[name])
            assert pair in CONNECTORS, f"{name}: Slicer has no connector for {pair}"
    assert len(bound) == len(set(bound)) > 15


def parameters():
    """Type of each parameter in the words of `CONNECTORS`, read from the source."""
    tree = ast.parse((ROOT / "DeepReg" / "DeepRegWidgets" / "Parameters.py").read_text("utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    enums = {n for n, c in classes.items() if any(ast.unparse(b) == "Enum" for b in c.bases)}
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    aliases = {node.targets[0].id: ast.unparse(node.value) for node in assigned}

    def words(text):
        text = aliases.get(text, text)
        if "Choice(" in text:
            return "Choice"
        parts = re.sub(r"^Annotated\[(\w+),.*\]$|^Union\[(.*)\]$", r"\1\2", text).split(", ")
        if all(part == "None" or part.startswith("vtkMRML") for part in parts):
            return "node"
        return "Enum" if text in enums else parts[0]

    fields = (n for n in classes["DeepRegParameterNode"].body if isinstance(n, ast.AnnAssign))
    return {field.target.id: words(ast.unparse(field.annotation)) for field in fields}


def test_names_of_several_bases_become_one():
    name = (
        "slicer.ScriptedLoadableModule.ScriptedLoadableModuleWidget|slicer.util.VTKObservationMixin"
    )
    assert canonical(f"{name}.addObserver") == "slicer.util.VTKObservationMixin.addObserver"
