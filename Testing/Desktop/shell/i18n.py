"""Stands for ``slicer.i18n``: messages stay as they are, placeholders are checked."""

from __future__ import annotations

import string


def translate(context: str, text: str) -> str:
    """The message in the language of the application, which is English here."""
    if not isinstance(text, str):
        raise TypeError(f"Only plain text can be translated, not {type(text)}")
    return text


def getContext(sourceFile: str) -> str:
    """Name of the file without folder and extension."""
    from pathlib import Path

    path = Path(sourceFile)
    package = (path.parent / "__init__.py").is_file()
    return f"{path.parent.name}.{path.stem}" if package else path.stem


def tr(text: str) -> str:
    """The message translated; ValueError if its placeholders cannot be filled later."""
    list(string.Formatter().parse(text))
    return translate("", text)
