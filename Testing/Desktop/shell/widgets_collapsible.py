"""Stand-ins for the ctk widgets whose contents fold away."""

from __future__ import annotations

from PySide6 import QtCore, QtGui, QtWidgets

from . import pythonqt
from .plain import attribute


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A bar with an arrow; its contents fold away."""

    _cplusplus = True
    contentsCollapsed = QtCore.Signal(bool)
    _signatures = {
        "contentsCollapsed": {"bool": ""},
        "clicked": {"": "", "bool": ""},
        "toggled": {"bool": ""},
        "pressed": {"": ""},
        "released": {"": ""},
    }
    buttonTextAlignment = attribute("buttonTextAlignment", 129, int)
    collapsedHeight = attribute("collapsedHeight", 10, int)
    contentsFrameShape = attribute("contentsFrameShape", 0, int)
    contentsFrameShadow = attribute("contentsFrameShadow", 16, int)
    contentsLineWidth = attribute("contentsLineWidth", 1, int)
    contentsMidLineWidth = attribute("contentsMidLineWidth", 0, int)
    indicatorAlignment = attribute("indicatorAlignment", 129, int)
    flat = attribute("flat", False, bool)
    _folded = False
    _forcing = False
    _bar = 24

    def __init__(self, text="", parent=None) -> None:
        if isinstance(text, QtWidgets.QWidget):
            text, parent = "", text
        super().__init__(parent)
        self.setText(text)
        self.setCheckable(True)
        self.setChecked(True)
        self.setContentsMargins(0, self._bar + 2, 0, 0)
        self.setSizePolicy(QtWidgets.QSizePolicy.Preferred, QtWidgets.QSizePolicy.Preferred)
        self._were_hidden: set[int] = set()
        self.toggled.connect(self._on_toggled)

    def _read_collapsed(self) -> bool:
        return self._folded

    def _write_collapsed(self, folded: bool) -> None:
        self.setChecked(not folded)

    collapsed = property(_read_collapsed, _write_collapsed)

    def _on_toggled(self, opened: bool) -> None:
        if self._folded == (not opened):
            return
        self._folded = not opened
        children = [c for c in self.children() if isinstance(c, QtWidgets.QWidget)]
        if self._folded:
            self._were_hidden = {id(c) for c in children if c.isHidden()}
        for child in children:
            if not child.isWindow():
                self._force(child, opened and id(child) not in self._were_hidden)
        self.updateGeometry()
        self.contentsCollapsed.emit(self._folded)

    def _force(self, child, visible: bool) -> None:
        """Shows or hides a child without its counting as a wish of the program."""
        self._forcing = True
        child.setVisible(visible)
        if not visible and id(child) not in self._were_hidden:
            # A later setVisible(False) is then heard of, although it is hidden already.
            child.setAttribute(QtCore.Qt.WA_WState_ExplicitShowHide, False)
        self._forcing = False

    def childEvent(self, event) -> None:
        child = event.child()
        if event.added() and isinstance(child, QtWidgets.QWidget):
            hidden = QtCore.Qt.WA_WState_ExplicitShowHide, QtCore.Qt.WA_WState_Hidden
            if all(child.testAttribute(attribute) for attribute in hidden):
                self._were_hidden.add(id(child))
            child.installEventFilter(self)
            if self._folded:
                self._force(child, False)
        super().childEvent(event)

    def eventFilter(self, child, event) -> bool:
        """What is shown or hidden while the contents are folded appears so when they unfold."""
        if self._folded and not self._forcing and isinstance(child, QtWidgets.QWidget):
            if event.type() == QtCore.QEvent.ShowToParent:
                self._were_hidden.discard(id(child))
                self._force(child, False)
            elif event.type() == QtCore.QEvent.HideToParent:
                self._were_hidden.add(id(child))
        return False

    def sizeHint(self):
        return self._hint("totalSizeHint")

    def minimumSizeHint(self):
        return self._hint("totalMinimumSize")

    def _hint(self, kind: str):
        layout = self.layout()
        hint = QtCore.QSize(120, self._bar)
        if layout is not None and not self._folded:
            inner = pythonqt.call(layout, kind)
            hint = QtCore.QSize(max(inner.width(), 120), max(inner.height(), self._bar))
        return hint

    def paintEvent(self, event) -> None:
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width, self._bar)
        option.state |= QtWidgets.QStyle.State_Raised
        painter = QtWidgets.QStylePainter(self)
        painter.drawControl(QtWidgets.QStyle.CE_PushButtonBevel, option)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(6, 6, 12, 12)
        kinds = QtWidgets.QStyle
        painter.drawPrimitive(
            kinds.PE_IndicatorArrowRight if self._folded else kinds.PE_IndicatorArrowDown, arrow
        )
        painter.setPen(self.palette.color(QtGui.QPalette.ButtonText))
        place = QtCore.QRect(24, 0, self.width - 28, self._bar)
        flags = QtCore.Qt.AlignVCenter | QtCore.Qt.AlignLeft | QtCore.Qt.TextShowMnemonic
        painter.drawText(place, int(flags), self.text)

    def hitButton(self, position) -> bool:
        return QtCore.QRect(0, 0, self.width, self._bar).contains(position)

    def nextCheckState(self) -> None:
        self.setChecked(not self.checked)


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    """A group box that folds when it is unchecked."""

    _cplusplus = True
    collapsedHeight = attribute("collapsedHeight", 14, int)

    def __init__(self, title="", parent=None) -> None:
        if isinstance(title, QtWidgets.QWidget):
            title, parent = "", title
        super().__init__(title, parent)
        self.setCheckable(True)
        self.setChecked(True)
        self._were_hidden: set[int] = set()
        self.toggled.connect(self._on_toggled)

    def _read_collapsed(self) -> bool:
        return not self.checked

    def _write_collapsed(self, folded: bool) -> None:
        self.setChecked(not folded)

    collapsed = property(_read_collapsed, _write_collapsed)

    def _on_toggled(self, opened: bool) -> None:
        children = [c for c in self.children() if isinstance(c, QtWidgets.QWidget)]
        if not opened:
            self._were_hidden = {id(c) for c in children if c.isHidden()}
        for child in children:
            child.setVisible(opened and id(child) not in self._were_hidden)
        # 16777215 is the largest height of Qt.
        self.setMaximumHeight(16777215 if opened else 22)
        self.updateGeometry()

    def paintEvent(self, event) -> None:
        option = QtWidgets.QStyleOptionGroupBox()
        self.initStyleOption(option)
        styles = QtWidgets.QStyle
        place = self.style().subControlRect(
            styles.CC_GroupBox, option, styles.SC_GroupBoxCheckBox, self
        )
        option.subControls &= ~styles.SC_GroupBoxCheckBox
        if not self.checked:
            option.subControls &= ~styles.SC_GroupBoxFrame
        option.text = ""
        painter = QtWidgets.QStylePainter(self)
        painter.drawComplexControl(styles.CC_GroupBox, option)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = place.adjusted(1, 1, -1, -1)
        opened = styles.PE_IndicatorArrowDown if self.checked else styles.PE_IndicatorArrowRight
        painter.drawPrimitive(opened, arrow)
        flags = QtCore.Qt.AlignVCenter | QtCore.Qt.AlignLeft | QtCore.Qt.TextShowMnemonic
        area = QtCore.QRect(place.right() + 5, place.top() - 3, self.width, place.height() + 6)
        painter.drawText(area, int(flags), self.title)
        painter.end()
