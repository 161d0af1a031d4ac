"""Nothing here waits for a person: what would be shown is recorded and answered at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

_MISSING = object()


@dataclass
class Shown:
    """One thing that was shown. Kinds: error, warning, info, confirm, message, delay, status,
    file, dialog, menu, url, rename."""

    kind: str
    text: str
    title: str = ""
    answer: Any = None
    details: dict = field(default_factory=dict)


class Dialogs:
    """Record of what was shown, and the answers to give.

    Example:
        ``dialogs.answer_next("/tmp/model.safetensors", kind="file")`` before the button is clicked.
    """

    def __init__(self) -> None:
        self.shown: list[Shown] = []
        self.interactive = False
        self._next: list[tuple[str | None, str | None, Any]] = []
        self._always: dict[str, Any] = {}

    def clear(self) -> None:
        """Forgets what was shown and all answers."""
        self.shown.clear()
        self._next.clear()
        self._always.clear()

    def answer_next(self, value: Any, kind: str | None = None, text: str | None = None) -> None:
        """The answer to the next thing of that kind whose text contains ``text``.

        A callable is called with what is shown (the dialog itself where there is one).
        """
        self._next.append((kind, text, value))

    def answer_always(self, kind: str, value: Any) -> None:
        """The answer to everything of a kind, unless `answer_next` has one."""
        self._always[kind] = value

    def of_kind(self, *kinds: str) -> list[Shown]:
        return [shown for shown in self.shown if shown.kind in kinds]

    def texts(self, *kinds: str) -> list[str]:
        return [shown.text for shown in self.shown if not kinds or shown.kind in kinds]

    @property
    def last(self) -> Shown | None:
        return self.shown[-1] if self.shown else None

    def ask(self, kind: str, text: str, default: Any = None, title: str = "", subject=None, **more):
        """Records, and returns the answer."""
        shown = Shown(kind, str(text), str(title or ""), default, more)
        self.shown.append(shown)
        value = self._find(kind, shown.text)
        if value is not _MISSING:
            shown.answer = (
                value(subject if subject is not None else shown) if callable(value) else value
            )
        return shown.answer

    def _find(self, kind: str, text: str):
        for index, (wanted, part, value) in enumerate(self._next):
            if wanted in (None, kind) and (part is None or part in text):
                del self._next[index]
                return value
        return self._always.get(kind, _MISSING)


dialogs = Dialogs()


def _buttons_default(buttons) -> int:
    boxes = QtWidgets.QMessageBox
    for button in (boxes.Ok, boxes.Yes, boxes.Save, boxes.Close, boxes.Cancel, boxes.No):
        if int(buttons) & int(button):
            return button
    return boxes.Ok


def _static_box(kind: str):
    def show(parent, title, text, buttons=None, default=None, *_) -> int:
        boxes = QtWidgets.QMessageBox
        if buttons is None:
            buttons = boxes.Yes | boxes.No if kind == "confirm" else boxes.Ok
        answer = default if default not in (None, boxes.NoButton) else _buttons_default(buttons)
        return dialogs.ask(kind, text, answer, title, buttons=int(buttons))

    return staticmethod(show)


def _dialog_text(dialog) -> str:
    if isinstance(dialog, QtWidgets.QMessageBox):
        return dialog.text
    labels = dialog.findChildren(QtWidgets.QLabel)
    return "\n".join([dialog.windowTitle] + [label.text for label in labels])


def _execute(plain: Callable):
    def execute(self) -> int:
        if dialogs.interactive:
            return plain(self)
        is_box = isinstance(self, QtWidgets.QMessageBox)
        QtWidgets.QWidget.show(self)
        QtCore.QCoreApplication.processEvents()
        default = _buttons_default(self.standardButtons) if is_box else QtWidgets.QDialog.Accepted
        kind = "message" if is_box else "dialog"
        answer = dialogs.ask(kind, _dialog_text(self), default, self.windowTitle, subject=self)
        if answer is None:
            answer = default
        if is_box and isinstance(answer, str):
            button = next(b for b in self.buttons() if b.text.replace("&", "") == answer)
            button.click()
            return int(self.standardButton(button))
        if is_box:
            button = self.button(QtWidgets.QMessageBox.StandardButton(int(answer)))
            if button is not None:
                button.click()
        elif self.isVisible():
            self.done(int(answer))
        self.hide()
        return answer

    return execute


def _menu_execute(self, *_):
    texts = [action.text for action in self.actions() if not action.isSeparator()]
    answer = dialogs.ask("menu", "\n".join(texts), None, subject=self)
    chosen = next((a for a in self.actions() if a.text.replace("&", "") == answer), None)
    if chosen is not None:
        chosen.trigger()
    return chosen


def _file_dialog(name: str):
    many = name == "getOpenFileNames"

    def ask(parent=None, caption="", directory="", filter="", *_, **__):
        answer = dialogs.ask(
            "file",
            caption,
            [] if many else "",
            details_of=name,
            directory=str(directory),
            filter=str(filter),
        )
        return [str(path) for path in answer] if many else str(answer or "")

    return staticmethod(ask)


def _input(name: str, default):
    def ask(parent, title, label, value=None, *_, **__):
        return dialogs.ask("input", label, value if value is not None else default, title)

    return staticmethod(ask)


def install() -> None:
    """Puts the record in place of Qt's own ways to show things and wait."""
    boxes = QtWidgets.QMessageBox
    for name, kind in (
        ("information", "info"),
        ("warning", "warning"),
        ("critical", "error"),
        ("question", "confirm"),
        ("about", "info"),
    ):
        setattr(boxes, name, _static_box(kind))
    for cls in (QtWidgets.QDialog, boxes, QtWidgets.QProgressDialog):
        execute = _execute(cls.exec)
        cls.exec = cls.exec_ = execute
    QtWidgets.QMenu.exec = QtWidgets.QMenu.exec_ = _menu_execute
    QtWidgets.QMenu.popup = _menu_execute
    for name in (
        "getOpenFileName",
        "getOpenFileNames",
        "getSaveFileName",
        "getExistingDirectory",
    ):
        setattr(QtWidgets.QFileDialog, name, _file_dialog(name))
    for name, default in (("getText", ""), ("getInt", 0), ("getDouble", 0.0), ("getItem", "")):
        setattr(QtWidgets.QInputDialog, name, _input(name, default))
    QtGui.QDesktopServices.openUrl = staticmethod(
        lambda url: bool(dialogs.ask("url", QtCore.QUrl(url).toString(), True))
    )
