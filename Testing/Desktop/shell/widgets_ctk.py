"""Stand-ins for the ctk widgets that a panel may use."""

from __future__ import annotations

from PySide6 import QtCore, QtWidgets

from .plain import attribute


class ctkCheckBox(QtWidgets.QCheckBox):
    _cplusplus = True


class ctkComboBox(QtWidgets.QComboBox):
    _cplusplus = True
    defaultText = attribute("defaultText", "", str)
    forceDefault = attribute("forceDefault", False, bool)
    elideMode = attribute("elideMode", 3, int)
    scrollWheelEffect = attribute("scrollWheelEffect", 0, int)


class ctkPushButton(QtWidgets.QPushButton):
    _cplusplus = True
    buttonTextAlignment = attribute("buttonTextAlignment", 132, int)
    iconAlignment = attribute("iconAlignment", 129, int)
    elideMode = attribute("elideMode", 3, int)


class ctkCheckablePushButton(ctkPushButton):
    """A push button with a check box in it."""

    _cplusplus = True
    checkBoxToggled = QtCore.Signal(bool)
    checkStateChanged = QtCore.Signal(int)
    _signatures = {
        "checkBoxToggled": {"bool": ""},
        "checkStateChanged": {"Qt::CheckState": ""},
        "clicked": {"": "", "bool": ""},
        "toggled": {"bool": ""},
        "pressed": {"": ""},
        "released": {"": ""},
    }
    checkBoxControlsButton = attribute("checkBoxControlsButton", True, bool)
    checkBoxControlsButtonToggleState = attribute("checkBoxControlsButtonToggleState", True, bool)
    checkBoxUserCheckable = attribute("checkBoxUserCheckable", True, bool)
    checkState = attribute("checkState", 0, int, "_on_check_state")
    indicatorAlignment = attribute("indicatorAlignment", 129, int)

    def _on_check_state(self) -> None:
        self.checkBoxToggled.emit(self.checkState == 2)
        self.checkStateChanged.emit(self.checkState)


class ctkMenuButton(QtWidgets.QPushButton):
    """A push button with an arrow that opens a menu."""

    _cplusplus = True


class ctkDoubleSpinBox(QtWidgets.QDoubleSpinBox):
    _cplusplus = True
    decimalsOption = attribute("decimalsOption", 0, int)
    invertedControls = attribute("invertedControls", False, bool)
    setMode = attribute("setMode", 1, int)
    sizeHintPolicy = attribute("sizeHintPolicy", 0, int)

    def setValueIfDifferent(self, value: float) -> None:
        if value != self.value:
            self.setValue(value)


class ctkFittedTextBrowser(QtWidgets.QTextBrowser):
    """A text browser as high as its text; longer texts may be folded."""

    _cplusplus = True
    collapsed = attribute("collapsed", True, bool)
    disableMouseScroll = attribute("disableMouseScroll", False, bool)
    showDetailsText = attribute("showDetailsText", "Show details...", str)
    hideDetailsText = attribute("hideDetailsText", "Hide details.", str)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self.setVerticalScrollBarPolicy(QtCore.Qt.ScrollBarAlwaysOff)
        self.textChanged.connect(self.updateGeometry)

    def setCollapsibleText(self, text: str) -> None:
        self.setHtml(text)

    def collapsibleText(self) -> str:
        return self.toHtml()

    def sizeHint(self):
        document = self.document.clone() if not callable(self.document) else self.document().clone()
        document.setTextWidth(max(self.viewport().width, 80))
        return QtCore.QSize(200, int(document.size.height() + 6))


class ctkMessageBox(QtWidgets.QMessageBox):
    """A message box with "do not show again"."""

    _cplusplus = True
    dontShowAgain = attribute("dontShowAgain", False, bool)
    dontShowAgainVisible = attribute("dontShowAgainVisible", False, bool)
    dontShowAgainSettingsKey = attribute("dontShowAgainSettingsKey", "", str)
    dontShowAgainButtonRoles = attribute("dontShowAgainButtonRoles", None)


class ctkRangeWidget(QtWidgets.QWidget):
    _cplusplus = True
