"""A small stand-in for the application shell of 3D Slicer, for tests of the real panel.

``install()`` makes ``import qt, ctk, slicer`` work as inside Slicer; ``start()`` creates the
application with its scene. What would be shown to a person is recorded in ``dialogs``, exceptions
that were raised inside the event loop in ``errors``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from . import environment, facade
from .dialogs import dialogs

__all__ = ["dialogs", "environment", "errors", "install", "load_module", "start", "stop", "wait"]

#: Tracebacks of exceptions that reached the event loop.
errors: list[str] = []

_state: dict = {}


def install() -> None:
    """Makes the modules importable; may be called more than once."""
    if _state.get("installed"):
        return
    _state["installed"] = True
    import slicer
    import slicer.util

    facade.install()
    from . import modules

    for name, cls in facade.slicer_classes().items():
        setattr(slicer, name, cls)
    slicer.qSlicerScriptedLoadableModule = modules.qSlicerScriptedLoadableModule
    slicer.modules = modules.make_namespace()
    slicer.modules.sampleDataSources = {}
    slicer.modules.sampleDataSourceCategories = {}
    from . import i18n, parameters, scripted, slicer_util
    from .parameters import annotations, connectors, pack, serializers, wrapper

    for name, module in {
        "ScriptedLoadableModule": scripted,
        "i18n": i18n,
        "parameterNodeWrapper": parameters,
    }.items():
        sys.modules[f"slicer.{name}"] = module
        setattr(slicer, name, module)
    for name, module in {
        "guiConnectors": connectors,
        "parameterPack": pack,
        "serializers": serializers,
        "validators": annotations,
        "default": annotations,
        "util": annotations,
        "wrapper": wrapper,
    }.items():
        sys.modules[f"slicer.parameterNodeWrapper.{name}"] = module
    _install_extras(slicer)
    slicer_util.install()


def _install_extras(slicer) -> None:
    """Sample data and subject-hierarchy plugins."""
    import types

    from . import hierarchy, sample_data

    for name in (
        "qSlicerSubjectHierarchyAbstractPlugin",
        "qSlicerSubjectHierarchyScriptedPlugin",
        "qSlicerSubjectHierarchyPluginHandler",
    ):
        setattr(slicer, name, getattr(hierarchy, name))
    sys.modules["SampleData"] = sample_data
    base = types.ModuleType("AbstractScriptedSubjectHierarchyPlugin")
    base.AbstractScriptedSubjectHierarchyPlugin = hierarchy.AbstractScriptedSubjectHierarchyPlugin
    package = types.ModuleType("SubjectHierarchyPlugins")
    package.AbstractScriptedSubjectHierarchyPlugin = (
        hierarchy.AbstractScriptedSubjectHierarchyPlugin
    )
    sys.modules[base.__name__], sys.modules[package.__name__] = base, package
    package.__path__ = []


def _on_exception(kind, value, trace) -> None:
    errors.append("".join(traceback.format_exception(kind, value, trace)))
    sys.__excepthook__(kind, value, trace)


def _on_qt_message(kind, context, message: str) -> None:
    # The platform without a screen says so for each window.
    if "propagateSizeHints" not in message:
        sys.stderr.write(message + "\n")


def start(testing: bool = True, main_window: bool = True):
    """Creates the application (once) and returns ``slicer.app``."""
    install()
    if "app" in _state:
        return _state["app"]
    import slicer
    from PySide6 import QtCore

    from . import hierarchy, modules, scene
    from .application import Application

    QtCore.qInstallMessageHandler(_on_qt_message)
    folder = _state["folder"] = Path(tempfile.mkdtemp(prefix="slicer-shell-"))
    mrml_scene, logic, colors = scene.make_scene(folder)
    slicer.mrmlScene = mrml_scene
    application = Application(testing, mrml_scene, logic, folder)
    _state["app"] = slicer.app = application
    sys.excepthook = _on_exception
    logics = modules.make_logics(mrml_scene, logic, colors)
    scene.add_application_nodes(mrml_scene)
    _state["items"] = hierarchy.SceneItems(mrml_scene)
    modules.add_core_modules(application.moduleManager(), logics)
    if main_window:
        _open_window(application, mrml_scene)
    return application


def _open_window(application, mrml_scene) -> None:
    from .layout_manager import LayoutManager
    from .main_window import MainWindow, dress

    dress(application)
    application.setLayoutManager(LayoutManager(mrml_scene))
    _state["window"] = MainWindow(application.layoutManager())
    application._window = _state["window"]
    _state["window"].show()
    application.processEvents()


def load_module(path: str | Path):
    """Loads a scripted module from its file and returns ``slicer.modules.<name>``."""
    import slicer

    return slicer.app.moduleManager().load(Path(path).resolve())


def wait(condition, seconds: float = 10.0) -> bool:
    """Runs the event loop until the condition holds; False when the time is over."""
    import time

    from PySide6 import QtCore

    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        QtCore.QCoreApplication.processEvents(QtCore.QEventLoop.AllEvents, 20)
        time.sleep(0.002)
    return True


def stop() -> None:
    """Cleans up the modules' panels and removes the application's files."""
    if "app" in _state:
        _state["app"].moduleManager().unload_all()
        shutil.rmtree(_state["folder"], ignore_errors=True)
