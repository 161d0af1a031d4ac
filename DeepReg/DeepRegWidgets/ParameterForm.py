"""A form for the settings of some algorithms, made from what they say of themselves (`SPEC`)."""

from __future__ import annotations

import qt
from slicer.i18n import tr as _

from DeepRegLib.errors import ParameterError


class ParameterForm:
    """One group of rows for each stage: name, editor with unit and range, reset button.

    Args:
        parent: Widget that the form is laid into.
        onChanged: Called with the settings that differ from the preset, by ``algorithm.parameter``.
    """

    def __init__(self, parent, onChanged):
        self._layout = parent.layout()
        self._onChanged = onChanged
        self._rows = {}
        self._content = None
        self._shape = None
        self._filling = False

    def setStages(self, specs, preset: str, settings) -> None:
        """Shows the parameters of some algorithms.

        Args:
            specs: Their `AlgorithmSpec`, in the order in which they run.
            preset: Preset that gives the values.
            settings: Values that differ from it, by ``algorithm.parameter``.
        """
        shape = tuple(spec.key for spec in specs)
        if shape != self._shape:
            self._build(specs)
            self._shape = shape
        self._filling = True
        try:
            for name, row in self._rows.items():
                row.show(row.parameter.for_preset(preset), settings.get(name))
        finally:
            self._filling = False
        self._resetButton.enabled = any(row.canReset for row in self._rows.values())

    def settings(self) -> dict:
        """Returns the values that differ from the preset, by ``algorithm.parameter``."""
        return {name: row.value for name, row in self._rows.items() if row.differs}

    def problems(self) -> list:
        """Returns a sentence for each entry that cannot be used."""
        return [row.problem for row in self._rows.values() if row.problem]

    def groups(self) -> tuple:
        """Returns the keys of the algorithms that are shown."""
        return self._shape or ()

    def editor(self, name: str):
        """Returns the widget that edits ``algorithm.parameter``."""
        return self._rows[name].editor

    def resetAll(self) -> None:
        """Goes back to the preset's values."""
        for row in self._rows.values():
            row.reset()
        self._changed()

    def _build(self, specs) -> None:
        if self._content is not None:
            self._content.hide()
            self._layout.removeWidget(self._content)
            self._content.deleteLater()
        self._rows = {}
        self._content = qt.QWidget()
        column = qt.QVBoxLayout(self._content)
        column.setContentsMargins(0, 0, 0, 0)
        advanced = [p.advanced for spec in specs for p in spec.parameters]
        self._advancedBox = qt.QCheckBox(_("Show advanced parameters"))
        self._advancedBox.connect("toggled(bool)", self._showAdvanced)
        for spec in specs:
            column.addWidget(self._group(spec))
        foot = qt.QHBoxLayout()
        foot.addWidget(self._advancedBox)
        foot.addStretch(1)
        self._resetButton = qt.QPushButton(_("Reset all"))
        self._resetButton.toolTip = _("Go back to the values of the preset.")
        self._resetButton.connect("clicked(bool)", lambda checked=False: self.resetAll())
        foot.addWidget(self._resetButton)
        column.addLayout(foot)
        self._advancedBox.visible = any(advanced)
        self._layout.addWidget(self._content)
        self._showAdvanced(False)

    def _group(self, spec):
        group = qt.QGroupBox(spec.title)
        form = qt.QFormLayout(group)
        for parameter in spec.parameters:
            row = _Row(parameter, self._changed)
            self._rows[f"{spec.key}.{parameter.name}"] = row
            form.addRow(row.label, row.widget)
        return group

    def _showAdvanced(self, shown) -> None:
        for row in self._rows.values():
            row.setVisible(bool(shown) or not row.parameter.advanced)

    def _changed(self) -> None:
        if self._filling:
            return
        self._resetButton.enabled = any(row.canReset for row in self._rows.values())
        self._onChanged(self.settings())


class _Row:
    """One parameter: label, editor, reset button."""

    def __init__(self, parameter, onChanged):
        self.parameter = parameter
        self._onChanged = onChanged
        self._preset = parameter.default
        self.value = parameter.default
        self.problem = ""
        text = parameter.name.replace("_", " ").capitalize()
        self.label = qt.QLabel(text + ":")
        self.editor = _editor(parameter, self._edited)
        self._reset = qt.QToolButton()
        self._reset.text = "↺"
        self._reset.autoRaise = True
        self._reset.connect("clicked(bool)", self._resetClicked)
        self.widget = qt.QWidget()
        line = qt.QHBoxLayout(self.widget)
        line.setContentsMargins(0, 0, 0, 0)
        line.addWidget(self.editor, 1)
        line.addWidget(self._reset)
        for widget in (self.label, self.editor):
            widget.toolTip = parameter.help

    @property
    def differs(self) -> bool:
        return not self.problem and self.value != self._preset

    @property
    def canReset(self) -> bool:
        return bool(self.problem) or self.differs

    def show(self, preset, value=None) -> None:
        """Shows the preset's value, or another one."""
        self._preset = preset
        try:
            self.value = preset if value is None else self.parameter.parse(value)
        except ParameterError:
            # A scene of another version may hold a value that is out of range today.
            self.value = preset
        self.problem = ""
        if _read(self.editor, self.parameter) != self.value:
            _write(self.editor, self.parameter, self.value)
        self._mark()

    def reset(self) -> None:
        self.show(self._preset)

    def setVisible(self, visible: bool) -> None:
        self.label.visible = visible
        self.widget.visible = visible

    def _resetClicked(self, checked=False) -> None:
        self.reset()
        self._onChanged()

    def _edited(self, *_value) -> None:
        try:
            self.value = self.parameter.parse(_read(self.editor, self.parameter))
            self.problem = ""
        except ParameterError as error:
            self.problem = str(error)
        self._mark()
        self._onChanged()

    def _mark(self) -> None:
        shown = f"{_text(self._preset)} {self.parameter.unit}".rstrip()
        self._reset.toolTip = _("Reset to {value}").format(value=shown)
        self._reset.enabled = self.canReset
        self.editor.styleSheet = "color: #c0392b;" if self.problem else ""
        self.editor.toolTip = self.problem or self.parameter.help


def _editor(parameter, onEdited):
    """Makes the widget that suits the type of a parameter."""
    default = parameter.default
    if isinstance(default, bool):
        editor = qt.QCheckBox()
        editor.connect("toggled(bool)", onEdited)
    elif parameter.choices:
        editor = qt.QComboBox()
        for choice in parameter.choices:
            editor.addItem(choice)
        editor.connect("currentIndexChanged(int)", onEdited)
    elif isinstance(default, int):
        editor = qt.QSpinBox()
        _setRange(editor, parameter, 10**6)
        editor.connect("valueChanged(int)", onEdited)
    elif isinstance(default, float):
        editor = qt.QDoubleSpinBox()
        editor.decimals = _decimals(parameter)
        editor.singleStep = 10.0 ** -min(2, editor.decimals)
        _setRange(editor, parameter, 1e9)
        editor.connect("valueChanged(double)", onEdited)
    else:
        editor = qt.QLineEdit()
        editor.connect("textEdited(QString)", onEdited)
    return editor


def _setRange(editor, parameter, limit) -> None:
    editor.minimum = -limit if parameter.minimum is None else type(limit)(parameter.minimum)
    editor.maximum = limit if parameter.maximum is None else type(limit)(parameter.maximum)
    if parameter.unit:
        editor.suffix = f" {parameter.unit}"


def _decimals(parameter) -> int:
    """Returns as many decimals as the values of all presets need, two at least."""
    values = [parameter.default, *parameter.presets.values(), parameter.minimum or 0.0]
    return max(2, *(len(f"{v:.8f}".rstrip("0").partition(".")[2]) for v in values))


def _read(editor, parameter):
    if isinstance(parameter.default, bool):
        return editor.checked
    if parameter.choices:
        return editor.currentText
    if isinstance(parameter.default, (int, float)):
        return editor.value
    return editor.text


def _write(editor, parameter, value) -> None:
    if isinstance(parameter.default, bool):
        editor.checked = value
    elif parameter.choices:
        editor.currentIndex = parameter.choices.index(value)
    elif isinstance(parameter.default, (int, float)):
        editor.value = value
    else:
        editor.text = _text(value)


def _text(value) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{item:g}" for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
