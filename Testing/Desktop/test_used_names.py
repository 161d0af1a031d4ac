"""What the panel uses of qt, ctk and slicer exists in Slicer, of the same kind, and where."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

shell = pytest.importorskip("shell", reason="needs PySide6")

from shell import api
from used_names import ROOT, UI, fault, full_class, in_source, sources

LIST = json.loads((ROOT / "Testing" / "Desktop" / "slicer_names.json").read_text(encoding="utf-8"))


def uses_of(file):
    return in_source(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT)))


@pytest.mark.parametrize("file", sources(), ids=lambda f: f.name)
def test_names_exist_and_are_of_the_right_kind(file):
    faults = [fault(use) for use in uses_of(file)]
    assert [text for text in faults if text] == []


def test_each_name_is_listed_with_its_source():
    """`tools/make_slicer_names.py` writes the list from a checkout of Slicer."""
    used = {use.name for file in sources() for use in uses_of(file)}
    for name in sorted(used):
        print(f"{name:60} {LIST['names'].get(name, '?')}")
    assert sorted(used - set(LIST["names"])) == []
    assert sorted(set(LIST["names"]) - used) == []
    assert [name for name, source in LIST["names"].items() if not source] == []


@pytest.mark.parametrize(
    ("snippet", "complaint"),
    [
        ("self._ui.applyButton.text()", "is an attribute"),
        ("self._ui.applyButton.setTextt('x')", "does not exist"),
        ("self._ui.noSuchButton.text = 'x'", "no such widget"),
        ("ui.cardTable.setRowCount = 3", "not to be assigned"),
        ("slicer.util.noSuchThing()", "does not exist"),
        ("slicer.util.setSliceViewerLayers(backgrund=1)", "takes no argument 'backgrund'"),
        ("timer = qt.QTimer()\ntimer.connect('timeot()', f)", "does not exist"),
        ("ui.applyButton.connect('text()', f)", "is no signal"),
        ("qt.QNoSuchWidget()", "does not exist"),
        ("ctk.ctkNoSuchWidget()", "does not exist"),
        ("slicer.vtkMRMLNoSuchNode()", "does not exist"),
        ("slicer.app.noSuch()", "does not exist"),
        ("from slicer.util import noSuchMixin", "does not exist"),
    ],
)
def test_bad_names_are_caught(snippet, complaint):
    faults = [text for text in map(fault, in_source(snippet)) if text]
    assert faults and complaint in faults[0]


def test_properties_of_the_form_exist():
    faults = form_faults(ElementTree.parse(UI).getroot())
    assert faults == []


def test_a_bad_property_is_caught():
    text = UI.read_text(encoding="utf-8").replace('name="wordWrap"', 'name="wordWrapp"', 1)
    assert "wordWrapp" in form_faults(ElementTree.fromstring(text))[0]


def form_faults(root):
    """Properties of a form that Slicer's widgets do not have."""
    faults = []
    for widget in root.iter("widget"):
        name = full_class(widget.get("class"))
        members = api.members(name, "widget")
        for item in widget.findall("property"):
            known = members is None or item.get("name") in members or item.get("stdset") == "0"
            if not known:
                faults.append(f"{name} has no property {item.get('name')}")
    return faults


def test_every_parameter_is_bound_to_a_widget_that_can_show_it():
    """The pairs of `slicer.parameterNodeWrapper.guiConnectors`."""
    from DeepRegWidgets.Parameters import DeepRegParameterNode

    connectors = {
        "QCheckBox": {"bool"}, "QComboBox": {"Enum"}, "QDoubleSpinBox": {"float"},
        "qMRMLNodeComboBox": {"node"},
    }  # fmt: skip
    bound = []
    for widget in ElementTree.parse(UI).getroot().iter("widget"):
        for item in widget.findall("property"):
            if item.get("name") == "SlicerParameterName":
                parameter = item.find("string").text
                assert kind_of(DeepRegParameterNode, parameter) in connectors[widget.get("class")]
                bound.append(parameter)
    assert len(bound) == len(set(bound)) > 15


def kind_of(node_class, parameter):
    import enum
    import typing

    kind = node_class.dataType(parameter)
    kind = typing.get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "Enum"
    return kind.__name__ if kind in (bool, float, int, str) else "node"


@pytest.fixture(autouse=True, scope="module")
def _panel_importable(application):
    import sys

    sys.path.insert(0, str(ROOT / "DeepReg"))
    yield
    sys.path.remove(str(ROOT / "DeepReg"))
