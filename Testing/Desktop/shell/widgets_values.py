"""Stand-ins for the ctk widgets of numbers and paths."""

from __future__ import annotations

from pathlib import Path

from PySide6 import QtCore, QtWidgets

from .plain import attribute
from .widgets_ctk import ctkDoubleSpinBox


class ctkSliderWidget(QtWidgets.QWidget):
    """A slider with a spin box."""

    _cplusplus = True
    valueChanged = QtCore.Signal(float)
    valueIsChanging = QtCore.Signal(float)
    decimalsChanged = QtCore.Signal(int)
    _signatures = {
        "valueChanged": {"double": ""},
        "valueIsChanging": {"double": ""},
        "decimalsChanged": {"int": ""},
    }
    popupSlider = attribute("popupSlider", False, bool)
    tracking = attribute("tracking", True, bool)
    tickInterval = attribute("tickInterval", 0.0, float)
    tickPosition = attribute("tickPosition", 0, int)
    invertedAppearance = attribute("invertedAppearance", False, bool)
    invertedControls = attribute("invertedControls", False, bool)
    synchronizeSiblings = attribute("synchronizeSiblings", 1)
    spinBoxAlignment = attribute("spinBoxAlignment", 129, int)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Horizontal, self)
        self._slider.setRange(0, 1000)
        self._spin = ctkDoubleSpinBox(self)
        self._page_step = 10.0
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._spin)
        self._spin.setRange(0.0, 99.0)
        self._spin.valueChanged.connect(self._on_spin)
        self._slider.sliderMoved.connect(self._on_slider)

    def _span(self) -> float:
        return max(self._spin.maximum - self._spin.minimum, 1e-12)

    def _on_spin(self, value: float) -> None:
        self._place()
        self.valueChanged.emit(value)

    def _place(self) -> None:
        self._slider.blockSignals(True)
        share = (self._spin.value - self._spin.minimum) / self._span()
        if share == share and abs(share) != float("inf"):
            self._slider.setValue(round(share * 1000))
        self._slider.blockSignals(False)

    def _on_slider(self, position: int) -> None:
        self._spin.setValue(self._spin.minimum + position / 1000 * self._span())
        self.valueIsChanging.emit(self._spin.value)

    def setValue(self, value: float) -> None:
        self._spin.setValue(value)

    def setDecimals(self, decimals: int) -> None:
        self._spin.setDecimals(decimals)
        self.decimalsChanged.emit(decimals)

    def setSpinBoxVisible(self, visible: bool) -> None:
        self._spin.setVisible(visible)

    def reset(self) -> None:
        self.setValue(min(max(0.0, self._spin.minimum), self._spin.maximum))

    def _through(name):
        def write(self, value) -> None:
            setattr(self._spin, name, value)
            self._place()

        return property(lambda self: getattr(self._spin, name), write)

    value = property(lambda self: self._spin.value, setValue)
    decimals = property(lambda self: self._spin.decimals, setDecimals)
    minimum = _through("minimum")
    maximum = _through("maximum")
    singleStep = _through("singleStep")
    prefix = _through("prefix")
    suffix = _through("suffix")
    del _through
    spinBoxVisible = property(lambda self: not self._spin.isHidden(), setSpinBoxVisible)
    pageStep = attribute("pageStep", 10.0, float)


class ctkDoubleSlider(QtWidgets.QWidget):
    """A slider of real numbers."""

    _cplusplus = True
    valueChanged = QtCore.Signal(float)
    rangeChanged = QtCore.Signal(float, float)
    sliderMoved = QtCore.Signal(float)
    sliderPressed = QtCore.Signal()
    sliderReleased = QtCore.Signal()
    _signatures = {
        "valueChanged": {"double": ""},
        "rangeChanged": {"double,double": ""},
        "sliderMoved": {"double": ""},
        "sliderPressed": {"": ""},
        "sliderReleased": {"": ""},
    }
    minimum = attribute("minimum", 0.0, float, "_on_range")
    maximum = attribute("maximum", 99.0, float, "_on_range")
    singleStep = attribute("singleStep", 1.0, float)
    pageStep = attribute("pageStep", 10.0, float)
    tracking = attribute("tracking", True, bool)

    def __init__(self, orientation=QtCore.Qt.Horizontal, parent=None) -> None:
        if isinstance(orientation, QtWidgets.QWidget):
            orientation, parent = QtCore.Qt.Horizontal, orientation
        super().__init__(parent)
        self._current = 0.0
        self._slider = QtWidgets.QSlider(orientation, self)
        self._slider.setRange(0, 1000)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)
        self._slider.sliderMoved.connect(self._on_moved)
        self._slider.sliderPressed.connect(self.sliderPressed.emit)
        self._slider.sliderReleased.connect(self.sliderReleased.emit)

    def _on_range(self) -> None:
        self.rangeChanged.emit(self.minimum, self.maximum)
        self.setValue(self._current)

    def _on_moved(self, position: int) -> None:
        self.setValue(self.minimum + position / 1000 * (self.maximum - self.minimum))
        self.sliderMoved.emit(self._current)

    def setValue(self, value: float) -> None:
        value = min(max(float(value), self.minimum), self.maximum)
        span = self.maximum - self.minimum
        if span > 0:
            self._slider.setValue(round((value - self.minimum) / span * 1000))
        if value != self._current:
            self._current = value
            self.valueChanged.emit(value)

    value = sliderPosition = property(lambda self: self._current, setValue)

    def setOrientation(self, orientation) -> None:
        self._slider.setOrientation(orientation)

    orientation = property(lambda self: self._slider.orientation, setOrientation)


class ctkPathLineEdit(QtWidgets.QWidget):
    """An editable path with a button that browses."""

    _cplusplus = True
    currentPathChanged = QtCore.Signal(str)
    validInputChanged = QtCore.Signal(bool)
    _signatures = {"currentPathChanged": {"QString": ""}, "validInputChanged": {"bool": ""}}
    # QDir's filters, as in the C++ class.
    Dirs, Files, Drives, Readable, Writable, Executable = 0x1, 0x2, 0x4, 0x10, 0x20, 0x40
    Hidden, NoDotAndDotDot = 0x100, 0x6000
    filters = attribute("filters", 0x1 | 0x2, int)
    label = attribute("label", "", str)
    nameFilters = attribute("nameFilters", (), tuple)
    options = attribute("options", 0, int)
    settingKey = attribute("settingKey", "", str)
    showHistoryButton = attribute("showHistoryButton", True, bool)
    sizeAdjustPolicy = attribute("sizeAdjustPolicy", 2, int)
    minimumContentsLength = attribute("minimumContentsLength", 0, int)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._combo = QtWidgets.QComboBox(self)
        self._combo.setEditable(True)
        self._combo.setSizePolicy(QtWidgets.QSizePolicy.Expanding, QtWidgets.QSizePolicy.Fixed)
        self._button = QtWidgets.QToolButton(self)
        self._button.setText("...")
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        layout.addWidget(self._button)
        self._combo.editTextChanged.connect(self.currentPathChanged.emit)
        self._button.clicked.connect(self.browse)

    def comboBox(self):
        return self._combo

    def setCurrentPath(self, path: str) -> None:
        if path != self._combo.currentText:
            self._combo.setEditText(path)

    currentPath = property(lambda self: self._combo.currentText, setCurrentPath)

    def _show_button(self, visible: bool) -> None:
        self._button.setVisible(visible)

    showBrowseButton = property(lambda self: not self._button.isHidden(), _show_button)

    def browse(self, *_) -> None:
        from .dialogs import dialogs

        chosen = dialogs.ask("file", self.label or "Select a path", default="")
        if chosen:
            self.setCurrentPath(str(chosen))

    def addCurrentPathToHistory(self) -> None:
        if self._combo.findText(self.currentPath) < 0:
            self._combo.insertItem(0, self.currentPath)

    def retrieveHistory(self) -> None:
        """There is no history here."""


class ctkDirectoryButton(QtWidgets.QWidget):
    """A button that shows and changes a folder."""

    _cplusplus = True
    directoryChanged = QtCore.Signal(str)
    directorySelected = QtCore.Signal(str)
    _signatures = {"directoryChanged": {"QString": ""}, "directorySelected": {"QString": ""}}
    _folder = ""

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._button = QtWidgets.QPushButton(self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._button)
        self._button.clicked.connect(self.browse)

    def _write(self, folder: str) -> None:
        if folder != self._folder:
            self._folder = folder
            self._button.setText(Path(folder).name or folder)
            self.directoryChanged.emit(folder)

    directory = property(lambda self: self._folder, _write)

    def browse(self, *_) -> None:
        from .dialogs import dialogs

        chosen = dialogs.ask("file", "Select a folder", default="")
        if chosen:
            self.directory = str(chosen)
            self.directorySelected.emit(self._folder)
