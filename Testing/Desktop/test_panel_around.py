"""Around the panel: sample data, context menu, doctor, module texts, translations, self test."""

import ast
import json
import re
import textwrap
from pathlib import Path

import panel_support as desk
import pytest

DEEPREG = desk.ROOT / "DeepReg"


@pytest.fixture
def panel(scene):
    yield from desk.opened(scene)


@pytest.fixture
def started(panel):
    """The panel in an application whose modules have been told that the start is over."""
    import slicer

    if not slicer.modules.sampleDataSources.get("DeepReg"):
        slicer.app.startupCompleted.emit()
    return panel


# Sample data -------------------------------------------------------------------------------------


def test_sample_data_are_listed_once_with_pictures(started):
    import qt
    import SampleData

    logic = SampleData.SampleDataLogic
    sources = logic.sampleDataSourcesByCategory("DeepReg")
    names = [s.sampleName for s in sources]
    assert names == ["BrainPair", "MNI152", "Colin27"]
    assert "DeepReg" in logic.categoryTitle("DeepReg")
    for source in sources:
        picture = qt.QPixmap(source.thumbnailFileName)
        assert 240 <= picture.width() <= 300 and 240 <= picture.height() <= 300, source.sampleName
        for uri in source.uris:
            assert uri.startswith("file:")


def test_sample_pair_loads_and_is_chosen(started):
    import SampleData
    import slicer

    nodes = SampleData.SampleDataLogic().downloadSamples("BrainPair")
    assert [node.GetName() for node in nodes] == ["MNI152", "Colin27"]
    assert len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == 2
    slicer.util.selectModule("Data")
    slicer.util.selectModule("DeepReg")
    chosen = [getattr(started.ui, f"{s}Selector").currentNode() for s in ("fixed", "moving")]
    assert chosen == nodes
    desk.until(lambda: started.ui.applyButton.enabled, 3, "an enabled button")
    assert "⚠" not in desk.message(started)


def test_one_sample_loads_alone(started):
    import SampleData

    (node,) = SampleData.SampleDataLogic().downloadSamples("Colin27")
    assert node.GetName() == "Colin27" and node.GetImageData() is not None


# Context menu ------------------------------------------------------------------------------------


def _plugin():
    import slicer

    handler = slicer.qSlicerSubjectHierarchyPluginHandler.instance()
    plugin = handler.pluginByName("DeepReg")
    assert plugin is not None
    return handler, plugin


def _item(node):
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    return hierarchy.GetItemByDataNode(node)


def _actions(plugin, node):
    plugin.showContextMenuActionsForItem(_item(node))
    return {action.text: action for action in plugin.itemContextMenuActions() if action.visible}


def test_context_menu_is_for_scalar_volumes_only(started):
    import slicer

    _handler, plugin = _plugin()
    fixed = desk.make_fixed()
    texts = {"Register this with DeepReg...", "Register to this with DeepReg..."}
    assert set(_actions(plugin, fixed)) == texts
    labels = desk.mask_of(fixed, "Labels")
    points = desk.add_points("Points", desk.body_points(2))
    segments = desk.mask_of(fixed, "Segments", ("body",))
    vector = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Vectors")
    for node in (labels, points, segments, vector):
        assert _actions(plugin, node) == {}, node.GetName()
    assert plugin.canOwnSubjectHierarchyItem(_item(fixed)) == 0.0


@pytest.mark.parametrize("side", ["moving", "fixed"])
def test_context_menu_opens_the_panel(started, side):
    import slicer

    handler, plugin = _plugin()
    fixed, moving = desk.make_pair()
    slicer.util.selectModule("Data")
    volume = {"moving": moving, "fixed": fixed}[side]
    text = {"moving": "Register this with DeepReg...", "fixed": "Register to this with DeepReg..."}
    handler.setCurrentItem(_item(volume))
    _actions(plugin, volume)[text[side]].trigger()
    desk.settle()
    assert slicer.util.selectedModule() == "DeepReg"
    assert getattr(started.ui, f"{side}Selector").currentNode() is volume


def test_menu_is_registered_once(started):
    import slicer

    handler = _plugin()[0]
    slicer.app.startupCompleted.emit()
    names = [plugin.name for plugin in handler.allPlugins()]
    assert names.count("DeepReg") == 1


# Doctor, texts -----------------------------------------------------------------------------------


def test_doctor(panel):
    ui = panel.ui
    ui.diagnosisButton.collapsed = False
    ui.doctorButton.click()
    assert not ui.doctorButton.enabled and "Checking" in ui.doctorLabel.text
    ui.doctorButton.click()
    # The panel is alive meanwhile.
    fixed, moving = desk.make_pair()
    ui.fixedSelector.setCurrentNode(fixed)
    ui.movingSelector.setCurrentNode(moving)
    desk.until(lambda: ui.applyButton.enabled, 5, "an enabled button")
    alive = panel.parts.diagnosis.running
    desk.until(lambda: not panel.parts.diagnosis.running, 90, "an end of the examination")
    assert alive, "the panel had to wait for the doctor"
    lines = [desk.plain(line).strip() for line in ui.doctorLabel.text.split("<br>")]
    assert len(lines) >= 4 and all(line[0] in "✔⚠✖ℹ" for line in lines)
    assert any("torch" in line.lower() for line in lines)
    assert ui.doctorButton.enabled


def test_doctor_without_an_interpreter(panel, monkeypatch):
    from DeepRegWidgets import DiagnosisPart

    monkeypatch.setattr(DiagnosisPart, "findPython", lambda: "/no/such/PythonSlicer")
    panel.ui.doctorButton.click()
    desk.until(lambda: not panel.parts.diagnosis.running, 10, "an end of the examination")
    assert "✖" in panel.ui.doctorLabel.text and panel.ui.doctorButton.enabled


def test_module_introduces_itself(panel):
    import slicer

    module = slicer.modules.deepreg
    assert module.title == "DeepReg" and module.categories == ["Registration"]
    assert len(module.contributors) == 1 and module.dependencies == []
    assert "Register" in module.helpText and "href=" in module.helpText
    assert "Not a medical device" in module.acknowledgementText
    assert not module.icon.isNull()


def test_every_input_has_a_tool_tip(panel):
    missing = [
        name
        for name in vars(panel.ui)
        if name.endswith(("Selector", "Combo", "CheckBox", "SpinBox", "Slider"))
        or (name.endswith("Button") and not name.endswith(("sButton", "algorithmButton")))
        if not getattr(panel.ui, name).toolTip
    ]
    # Sections open by themselves and the mask's segment stands beside the mask.
    assert set(missing) <= {"diagnosisButton"}, missing


# Translations ------------------------------------------------------------------------------------

_CALLS = {
    "addItem": 1, "QLabel": 1, "QPushButton": 1, "QCheckBox": 1, "QGroupBox": 1, "QAction": 1,
    "setText": 1, "setToolTip": 1, "setWindowTitle": 1, "setHorizontalHeaderLabels": 1,
    "errorDisplay": 1, "warningDisplay": 1, "infoDisplay": 1, "showStatusMessage": 1,
    "getSaveFileName": 4, "getOpenFileName": 4, "SetTitle": 1, "setNodeTypeLabel": 1,
}  # fmt: skip
_ATTRIBUTES = ("text", "toolTip", "title", "windowTitle", "placeholderText", "helpText")
#: Names that are the same in all languages.
_NAMES = ("DeepReg", "vtkMRMLScriptedModuleNode")


def _has_words(text):
    return sum(letter.isalpha() for letter in re.sub(r"<[^>]*>|{[^}]*}|https?://\S+", "", text)) > 1


def _bare(node):
    """Literals with words in an expression that a person sees, outside of ``_()``."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in ("_", "translate"):
            return
        if name in ("format", "join") and isinstance(node.func, ast.Attribute):
            yield from _bare(node.func.value)
            for argument in [*node.args, *(k.value for k in node.keywords)]:
                yield from _bare(argument)
        return
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str) and _has_words(node.value) and node.value not in _NAMES:
            yield node.value
    elif isinstance(node, (ast.BinOp, ast.IfExp, ast.BoolOp, ast.List, ast.Tuple)):
        for child in ast.iter_child_nodes(node):
            yield from _bare(child)
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from _bare(part)


def untranslated(source):
    """(line, text) of what a person would see in English in any language."""
    found = []
    for node in ast.walk(ast.parse(source)):
        shown = []
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Attribute) and t.attr in _ATTRIBUTES for t in targets):
                shown = [node.value]
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            shown = node.args[: _CALLS.get(name, 0)]
        found += [(node.lineno, text) for part in shown for text in _bare(part)]
    return found


def test_bad_example_is_found():
    source = """
        label.text = "Shown to a person"
        label.toolTip = _("fine") + " but not this"
        label.title = f"Result {number}"
        combo.addItem("An entry", key)
        button = qt.QPushButton("Press me")
        table.setHorizontalHeaderLabels([_("fine"), "Before"])
        slicer.util.errorDisplay("Wrong {x}".format(x=1))
        label.text = _("fine {n}").format(n=1)
        label.text = "↺"
        label.setObjectName("applyButton")
    """
    lines = [line for line, _text in untranslated(textwrap.dedent(source))]
    assert lines == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "file", sorted(DEEPREG.rglob("*.py")), ids=lambda f: str(Path(f).relative_to(DEEPREG))
)
def test_texts_can_be_translated(file):
    assert untranslated(file.read_text(encoding="utf-8")) == []


# The module without its panel --------------------------------------------------------------------


def test_nothing_imports_torch():
    code = (
        "import shell, slicer, sys\n"
        f"sys.path.insert(0, {str(desk.HERE)!r})\n"
        "panel = slicer.util.getModuleWidget('DeepReg')\n"
        "import panel_support as desk\n"
        "combo = panel.ui.algorithmCombo\n"
        "for index in range(combo.count):\n"
        "    if combo.itemData(index): combo.setCurrentIndex(index)\n"
        "desk.make_pair(); panel.enter(); desk.settle(0.5)\n"
        "assert panel.ui.applyButton.enabled\n"
        "print('torch' in sys.modules, 'SimpleITK' in sys.modules)\n"
    )
    assert "False False" in desk.in_application(code)


def test_self_test_passes():
    code = "import slicer\nslicer.selfTests['DeepReg']()\nprint('PASSED')\n"
    assert "PASSED" in desk.in_application(code)


_CONSOLE = """
import json, sys
import DeepReg, DeepRegLib.errors, panel_support as desk, shell, slicer
out = {}
fixed, moving = desk.make_pair()
count = slicer.mrmlScene.GetNumberOfNodes()
logic = DeepReg.DeepRegLogic()
usual = dict(algorithm="rigid", preset="fast", settings={"initialization": "geometry"})
for name, call in {
    "none": lambda: logic.register(None, moving),
    "wrong": lambda: logic.register(fixed, desk.add_points("P", [(0, 0, 0)]), **usual),
    "text": lambda: logic.register("Fixed", moving, **usual),
    "algorithm": lambda: logic.register(fixed, moving, algorithm="magic"),
    "setting": lambda: logic.register(fixed, moving, algorithm="rigid", settings={"magic": 1}),
    "value": lambda: logic.register(fixed, moving, algorithm="rigid", settings={"samples": "x"}),
    "preset": lambda: logic.register(fixed, moving, algorithm="rigid", preset="magic"),
    "same": lambda: logic.register(fixed, fixed, **usual),
}.items():
    try:
        call()
        out[name] = ("nothing", "")
    except BaseException as error:
        out[name] = ("ValueError" if isinstance(error, ValueError) else repr(error), str(error))
points = slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode")
for node in points:
    for display in [node.GetDisplayNode(), node]:
        if display is not None: slicer.mrmlScene.RemoveNode(display)
out["added"] = slicer.mrmlScene.GetNumberOfNodes() - count
events, done = [], []
result = logic.register(fixed, moving, onEvent=lambda e: events.append(e.kind),
                        onDone=done.append, wantInverse=True, **usual)
out["blocking"] = [desk.error_mm(result.transform), result.moved is not None,
                   result.inverse is not None, done == [result], sorted(set(events))]
run = logic.register(fixed, moving, wait=False, onDone=done.append, **usual)
out["returned"] = run.finished
shell.wait(lambda: run.finished, 60)
out["later"] = [run.finished, desk.error_mm(run.outcome.transform), done[-1] is run.outcome]
failed = []
run = logic.register(fixed, moving, wait=False, onError=failed.append, **usual)
run.cancel()
out["cancelled"] = [run.finished, type(failed[0]).__name__]
out["panel"] = hasattr(slicer.modules, "DeepRegWidget")
out["errors"] = shell.errors
logic.close()
print("OUT" + json.dumps(out))
"""


@pytest.fixture(scope="module")
def console():
    """What the calls of `_CONSOLE` gave in an application without a panel."""
    printed = desk.in_application(_CONSOLE)
    return json.loads(printed.split("OUT", 1)[1].splitlines()[0])


def test_console_registers_without_a_panel(console):
    error, moved, inverse, told, kinds = console["blocking"]
    assert error < 1.5 and moved and inverse and told
    assert {"stage", "progress", "done"} <= set(kinds)
    assert console["errors"] == [] and not console["panel"]


def test_console_need_not_wait(console):
    assert console["returned"] is False
    finished, error, told = console["later"]
    assert finished and told and error < 1.5
    assert console["cancelled"] == [True, "Cancelled"]


@pytest.mark.parametrize(
    "name",
    [
        "wrong",
        "text",
        "none",
        "algorithm",
        "setting",
        "value",
        "preset",
        "same",
    ],
)
def test_console_refuses_with_a_sentence(console, name):
    kind, text = console[name]
    assert kind == "ValueError", kind
    assert len(text.split()) >= 5 and text[0] in "'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert text.endswith((".", "?", ")"))
    assert console["added"] == 0
