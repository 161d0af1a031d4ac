"""Settings that must be made before PySide6 and VTK are loaded; imported first."""

from __future__ import annotations

import ctypes
import os
import sys

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
# VTK picks the kind of its windows at the first one that is created.
if not os.environ.get("DISPLAY"):
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
# Enumerators are numbers, as in PythonQt.
sys.pyside6_option_python_enum = 3

if sys.version_info < (3, 12):
    # PySide6 takes a reference of None, True and False away at each call, as if they could not be
    # deleted; before Python 3.12 they can be, and then the process ends.
    for _constant in (None, True, False):
        ctypes.c_ssize_t.from_address(id(_constant)).value += 1 << 40
