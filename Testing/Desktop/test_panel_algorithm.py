"""The section Algorithm of the panel: the list, the stages, and the form of every parameter."""

import html
import json

import panel_support as desk
import pytest

from DeepRegLib import registry
from DeepRegLib.spec import PRESETS, AlgorithmSpec, Parameter

SPECS = registry.specs()
PARAMETERS = [(key, p) for key, spec in SPECS.items() for p in desk.form_parameters(spec)]


@pytest.fixture
def panel(scene):
    for panel in desk.opened(scene):
        panel.ui.parametersBox.collapsed = False
        yield panel
        panel.ui.parametersBox.collapsed = True


@pytest.fixture
def chosen(panel):
    """Function that chooses an algorithm and returns the form."""

    def choose(key):
        desk.choose(panel.ui.algorithmCombo, key)
        return panel.parts.algorithm.form

    return choose


def _request(panel):
    from DeepRegWidgets.Requests import requestOf

    return requestOf(panel._parameterNode)


def _row(form, name):
    return form._rows[name]


def _value(editor, parameter):
    """The value that a person sees in an editor."""
    if isinstance(parameter.default, bool):
        return editor.checked
    if parameter.choices:
        return editor.currentText
    if isinstance(parameter.default, (int, float)):
        return editor.value
    if isinstance(parameter.default, tuple):
        return tuple(type(parameter.default[0])(float(t)) for t in editor.text.split(","))
    return editor.text


def _other(parameter, but):
    """A value that is allowed and differs."""
    if isinstance(parameter.default, bool):
        return not but
    if parameter.choices:
        return next(c for c in parameter.choices if c != but)
    if isinstance(parameter.default, tuple):
        return (*but, but[-1])
    if isinstance(parameter.default, str):
        return but + "x"
    step = 1 if isinstance(parameter.default, int) else 0.01
    return but + step if parameter.maximum is None or but < parameter.maximum else but - step


def _same(one, other):
    """Equal, but for the last bits of numbers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other or (isinstance(one, float) and abs(one - other) <= 1e-9 * abs(other))


def _type(editor, parameter, value):
    """Enters a value as a person does."""
    if isinstance(parameter.default, bool):
        editor.click()
    elif parameter.choices:
        editor.setCurrentIndex(editor.findText(value))
    elif isinstance(parameter.default, tuple):
        _type_text(editor, ", ".join(f"{v:g}" for v in value))
    elif isinstance(parameter.default, str):
        _type_text(editor, value)
    else:
        editor.value = value


def _type_text(editor, text):
    editor.selectAll()
    editor.insert(text)
    editor.textEdited.emit(text)


def test_every_algorithm_is_listed_under_its_family(panel):
    from DeepRegWidgets.AlgorithmPart import _familyTitle

    combo = panel.ui.algorithmCombo
    heading, found = None, {}
    for index in range(combo.count):
        if not combo.itemData(index):
            heading = combo.itemText(index)
        else:
            found[combo.itemData(index)] = (heading, combo.itemText(index))
    assert found == {k: (_familyTitle(s.family), s.title) for k, s in SPECS.items()}
    assert len(SPECS) >= 4


def test_headings_cannot_be_chosen(panel):
    from PySide6 import QtCore

    combo = panel.ui.algorithmCombo
    for index in range(combo.count):
        flags = combo.model().item(index).flags()
        assert bool(flags & QtCore.Qt.ItemIsEnabled) == bool(combo.itemData(index))


def test_a_heading_reached_by_accident_changes_nothing(panel):
    desk.choose(panel.ui.algorithmCombo, "rigid")
    panel.ui.algorithmCombo.setCurrentIndex(0)
    assert panel._parameterNode.algorithm == "rigid"
    assert _request(panel).algorithm.strip("+") == "rigid"


@pytest.mark.parametrize("key", SPECS)
def test_choosing_describes_the_algorithm(panel, chosen, key):
    chosen("greedy" if key != "greedy" else "rigid")
    chosen(key)
    spec, shown = SPECS[key], panel.ui.summaryLabel.text
    assert html.escape(spec.summary) in shown
    assert panel.ui.summaryLabel.openExternalLinks
    for reference in spec.references:
        assert f'href="{html.escape(reference.link)}"' in shown and str(reference.year) in shown
    wanted = "a linear transform" if spec.transform == "linear" else "a deformation"
    assert wanted in shown
    combo = panel.ui.algorithmCombo
    assert combo.itemData(combo.currentIndex, desk.tool_tip_role()) == spec.summary


@pytest.mark.parametrize("key", SPECS)
def test_stages_can_be_left_out_from_the_front_and_a_refinement_added(panel, chosen, key):
    chosen(key)
    spec, combo = SPECS[key], panel.ui.stagesCombo
    chains = [[*spec.stages[n:], key] for n in range(len(spec.stages) + 1)]
    if spec.needs.training and spec.transform in ("dense", "bspline"):
        chains += [[*chain, "greedy"] for chain in chains]
    assert combo.count == len(chains)
    for index, chain in enumerate(chains):
        combo.setCurrentIndex(index)
        assert combo.currentText == " → ".join(SPECS[k].title for k in chain)
        # One stage alone is asked for as such, or its usual ones would run first.
        asked = "+".join(chain) if len(chain) > 1 else f"+{key}"
        assert _request(panel).algorithm == asked
        expected = {f"{k}.{p.name}" for k in chain for p in desk.form_parameters(SPECS[k])}
        assert set(panel.parts.algorithm.form._rows) == expected


@pytest.mark.parametrize("key", SPECS)
def test_editors_suit_the_parameters(chosen, key):
    form = chosen(key)
    for parameter in desk.form_parameters(SPECS[key]):
        _check_editor(form, key, parameter)


def _check_editor(form, key, parameter):
    editor = form.editor(f"{key}.{parameter.name}")
    default = parameter.default
    if isinstance(default, bool):
        kind = "QCheckBox"
    elif parameter.choices:
        kind = "QComboBox"
        assert [editor.itemText(n) for n in range(editor.count)] == list(parameter.choices)
    elif isinstance(default, (int, float)):
        kind = "QSpinBox" if isinstance(default, int) else "QDoubleSpinBox"
        assert editor.minimum == parameter.minimum and editor.maximum == parameter.maximum
        assert editor.suffix == (f" {parameter.unit}" if parameter.unit else "")
    else:
        kind = "QLineEdit"
    assert editor.metaObject().className() == kind
    row = _row(form, f"{key}.{parameter.name}")
    assert editor.toolTip == row.label.toolTip == parameter.help and parameter.help
    if form._advancedBox.checked:
        form._advancedBox.click()
    # An advanced parameter is folded away until it is asked for.
    assert row.label.isHidden() == row.widget.isHidden() == parameter.advanced
    form._advancedBox.click()
    assert not row.label.isHidden() and not row.widget.isHidden()
    form._advancedBox.click()


@pytest.mark.parametrize("key", SPECS)
def test_preset_gives_the_values(panel, chosen, key):
    form = chosen(key)
    for number in (0, 2, 1):
        panel.ui.presetCombo.setCurrentIndex(number)
        for parameter in desk.form_parameters(SPECS[key]):
            shown = _value(form.editor(f"{key}.{parameter.name}"), parameter)
            expected = parameter.for_preset(PRESETS[number])
            assert _same(shown, expected), (parameter.name, PRESETS[number])
        assert _request(panel).preset == PRESETS[number]
    assert _request(panel).settings == {}


@pytest.mark.parametrize("key", SPECS)
def test_edited_values_are_used_and_can_be_reset(panel, chosen, key):
    form = chosen(key)
    for parameter in desk.form_parameters(SPECS[key]):
        _check_edit(panel, form, key, parameter)


def _check_edit(panel, form, key, parameter):
    name = f"{key}.{parameter.name}"
    editor, row = form.editor(name), _row(form, name)
    assert not row._reset.enabled and not form._resetButton.enabled
    value = _other(parameter, parameter.default)
    _type(editor, parameter, value)
    assert _same(_request(panel).settings, {name: value})
    # The library takes it as it is.
    used = SPECS[key].values("balanced", **{parameter.name: _request(panel).settings[name]})
    assert _same(used[parameter.name], value)
    # A value of one's own outlives a change of the preset.
    panel.ui.presetCombo.setCurrentIndex(0)
    if value != parameter.for_preset("fast"):
        assert _same(_value(editor, parameter), value)
    panel.ui.presetCombo.setCurrentIndex(1)
    assert row._reset.enabled and form._resetButton.enabled
    row._reset.click()
    assert _value(editor, parameter) == parameter.default
    assert _request(panel).settings == {} and not row._reset.enabled
    assert not form._resetButton.enabled


def test_reset_all(panel, chosen):
    form = chosen("greedy")
    for key in ("rigid", "affine", "greedy"):
        for parameter in desk.form_parameters(SPECS[key]):
            name = f"{key}.{parameter.name}"
            _type(form.editor(name), parameter, _other(parameter, parameter.default))
    assert len(_request(panel).settings) == len(form._rows)
    form._resetButton.click()
    assert _request(panel).settings == {} and form.settings() == {}
    for key in ("rigid", "affine", "greedy"):
        for parameter in desk.form_parameters(SPECS[key]):
            shown = _value(form.editor(f"{key}.{parameter.name}"), parameter)
            assert shown == parameter.default


def test_settings_go_only_to_stages_that_run(panel, chosen):
    form = chosen("greedy")
    form.editor("rigid.iterations").value = 7
    form.editor("greedy.radius").value = 3
    assert _request(panel).settings == {"rigid.iterations": 7, "greedy.radius": 3}
    panel.ui.stagesCombo.setCurrentIndex(2)
    assert _request(panel).settings == {"greedy.radius": 3}
    panel.ui.stagesCombo.setCurrentIndex(0)
    assert _request(panel).settings == {"rigid.iterations": 7, "greedy.radius": 3}
    assert panel.parts.algorithm.form.editor("rigid.iterations").value == 7


def test_settings_of_another_algorithm_are_kept(panel, chosen):
    chosen("greedy").editor("greedy.radius").value = 3
    form = chosen("similarity")
    form.editor("similarity.iterations").value = 9
    assert _request(panel).settings == {"similarity.iterations": 9}
    form = chosen("greedy")
    assert form.editor("greedy.radius").value == 3
    assert _request(panel).settings == {"greedy.radius": 3}
    form._resetButton.click()
    assert chosen("similarity").editor("similarity.iterations").value == 9
    kept = json.loads(panel._parameterNode.settings)
    assert kept == {"similarity.iterations": 9}


LISTS = [(k, p) for k, p in PARAMETERS if isinstance(p.default, tuple)]


@pytest.mark.parametrize("key, parameter", LISTS, ids=[f"{k}.{p.name}" for k, p in LISTS])
def test_wrong_list_is_marked(panel, chosen, key, parameter):
    form, name = chosen(key), f"{key}.{parameter.name}"
    editor, row = form.editor(name), _row(form, name)
    for wrong in ("", "four", "4,,2", "4;2", "-1", "1e9", "nan"):
        _type_text(editor, wrong)
        assert editor.styleSheet and f"'{parameter.name}'" in editor.toolTip, wrong
        assert len(form.problems()) == 1 and f"'{parameter.name}'" in form.problems()[0]
        assert _request(panel).settings == {} and row._reset.enabled
        row._reset.click()
        assert form.problems() == [] and editor.styleSheet == ""
        assert editor.toolTip == parameter.help
        assert _value(editor, parameter) == parameter.default


def test_wrong_list_blocks_with_a_sentence(panel):
    desk.prepare(panel, algorithm="greedy")
    _type_text(panel.parts.algorithm.form.editor("greedy.factors"), "four")
    desk.until(lambda: not panel.ui.applyButton.enabled, 1, "a disabled button")
    assert "✖" in desk.message(panel) and "'factors'" in desk.message(panel)
    assert "'factors'" in panel.ui.applyButton.toolTip
    panel.parts.run.start()
    assert not panel.parts.run.running and not panel.ui.applyButton.enabled


@pytest.mark.parametrize("how", ["row", "typed"])
def test_mended_list_allows_to_register(panel, how):
    desk.prepare(panel, algorithm="greedy")
    form = panel.parts.algorithm.form
    _type_text(form.editor("greedy.factors"), "four")
    panel.ui.applyButton.click()
    assert not panel.ui.applyButton.enabled
    if how == "typed":
        _type_text(form.editor("greedy.factors"), "4, 2")
    else:
        _row(form, "greedy.factors")._reset.click()
    desk.until(lambda: panel.ui.applyButton.enabled, 1, "an enabled button")
    assert "✖" not in desk.message(panel)


def test_reset_all_is_offered_for_a_wrong_entry(panel, chosen):
    form = chosen("greedy")
    _type_text(form.editor("greedy.factors"), "four")
    assert form._resetButton.enabled


def test_a_change_elsewhere_does_not_hide_a_wrong_list(panel):
    desk.prepare(panel, algorithm="greedy")
    editor = panel.parts.algorithm.form.editor("greedy.factors")
    _type_text(editor, "four")
    desk.settle()
    panel.ui.inverseCheckBox.click()
    desk.settle()
    # Either it is still marked, or it shows what will be used.
    marked = editor.styleSheet != "" and not panel.ui.applyButton.enabled
    assert marked or editor.text != "four"


def test_typing_goes_on_while_the_list_is_not_finished(panel):
    """What a person types key by key is not rewritten in between."""
    desk.prepare(panel, algorithm="greedy")
    editor = panel.parts.algorithm.form.editor("greedy.factors")
    editor.selectAll()
    for key in "8,4":
        editor.insert(key)
        editor.textEdited.emit(editor.text)
        desk.settle(0.02)
    assert editor.text == "8,4"
    assert _request(panel).settings["greedy.factors"] in ((8, 4), [8, 4])


def test_every_kind_of_parameter_has_an_editor(panel):
    """Kinds that no algorithm has today, too."""
    import qt
    from DeepRegWidgets.ParameterForm import ParameterForm

    kinds = (
        Parameter("flag", True, "A flag.", presets={"fast": False}),
        Parameter("count", 3, "A number.", unit="voxel"),
        Parameter("seed", 5, "Unlimited above.", minimum=0),
        Parameter("weight", 0.25, "A weight.", presets={"accurate": 0.00125}),
        Parameter("file", "a.bin", "A text."),
        Parameter("mode", "b", "A choice.", choices=("a", "b")),
        Parameter("sigmas", (1.5, 0.5), "Numbers.", minimum=0.0),
    )
    spec = AlgorithmSpec("demo", "Demo", "linear", "Demo.", "linear", kinds)
    parent, changes = qt.QWidget(), []
    qt.QVBoxLayout(parent)
    form = ParameterForm(parent, changes.append)
    form.setStages([spec], "balanced", {})
    for parameter in kinds:
        editor = form.editor(f"demo.{parameter.name}")
        assert _value(editor, parameter) == parameter.default
        value = _other(parameter, parameter.default)
        _type(editor, parameter, value)
        assert _same(changes[-1][f"demo.{parameter.name}"], value), parameter.name
    assert form.editor("demo.count").suffix == " voxel"
    form.setStages([spec], "accurate", {})
    assert form.editor("demo.weight").value == pytest.approx(0.00125)
    form.setStages([spec], "fast", {"demo.mode": "no such mode", "demo.sigmas": [3.0, 1.0]})
    assert form.editor("demo.flag").checked is False
    assert form.editor("demo.mode").currentText == "b"
    assert form.editor("demo.sigmas").text == "3, 1"
    assert form.settings() == {"demo.sigmas": (3.0, 1.0)}


def test_settings_that_the_form_drops_are_not_used(panel):
    panel._parameterNode.settings = '{"greedy.radius": 900, "greedy.unknown": 1}'
    assert panel.parts.algorithm.form.settings() == {}
    assert _request(panel).settings == {}


def test_unreadable_settings_of_a_scene_do_no_harm(panel):
    panel._parameterNode.settings = "{broken"
    assert panel.parts.algorithm.form.settings() == {} and _request(panel).settings == {}
    panel._parameterNode.settings = '{"greedy.radius": 900, "greedy.unknown": 1}'
    assert panel.parts.algorithm.form.editor("greedy.radius").value == 2
    assert panel.parts.algorithm.form.settings() == {}
