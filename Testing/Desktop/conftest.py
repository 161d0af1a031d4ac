"""The application of the desktop tests: one for the whole run."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

# Two parts of VTK: the whole takes twice as long to load.
_RENDER = (
    "import vtkmodules.vtkRenderingOpenGL2, vtkmodules.vtkRenderingCore as vtk;"
    "w = vtk.vtkRenderWindow(); w.SetOffScreenRendering(1); w.SetSize(32, 32);"
    "w.AddRenderer(vtk.vtkRenderer()); w.Render(); raise SystemExit(not w.SupportsOpenGL())"
)


def _window_kind():
    """The first kind of window that draws without a screen; None if none does."""
    wanted = os.environ.get("VTK_DEFAULT_OPENGL_WINDOW")
    for kind in (wanted,) if wanted else ("vtkEGLRenderWindow", "vtkOSOpenGLRenderWindow"):
        environment = {**os.environ, "VTK_DEFAULT_OPENGL_WINDOW": kind}
        run = [sys.executable, "-c", _RENDER]
        try:
            done = subprocess.run(run, env=environment, capture_output=True, timeout=60)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            return kind
    return None


@pytest.fixture(scope="session", autouse=True)
def models_folder(tmp_path_factory):
    """Folder of the models of all tests, which know none of the user's own.

    One for the whole run, as the worker is started once and keeps its environment.
    """
    folder = tmp_path_factory.mktemp("models")
    os.environ["DEEPREG_MODELS"] = str(folder)
    return folder


@pytest.fixture
def no_models(models_folder, monkeypatch):
    """Folder of the models without any, and none that are shipped."""
    import model_support

    from DeepRegLib import models

    monkeypatch.setattr(models, "SHIPPED", ())
    return model_support.emptied(models_folder)


@pytest.fixture(scope="session")
def application():
    """The application with its main window; skips where nothing can be drawn."""
    for package in ("PySide6", "slicer"):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install PySide6-Essentials slicer-core")
    kind = _window_kind()
    if kind is None:
        pytest.skip("needs an OpenGL window without a screen (EGL or OSMesa)")
    os.environ["VTK_DEFAULT_OPENGL_WINDOW"] = kind
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    import shell

    yield shell.start()
    shell.stop()


@pytest.fixture
def scene(application):
    """The empty scene; fails if an exception reached the event loop during the test."""
    import shell
    import slicer

    slicer.mrmlScene.Clear(0)
    shell.dialogs.clear()
    shell.errors.clear()
    yield slicer.mrmlScene
    application.processEvents()
    assert not shell.errors, shell.errors[0]
    slicer.mrmlScene.Clear(0)


@pytest.fixture
def tiny(scene):
    """The panel of the small module that the tests of the stand-in use."""
    import shell
    import slicer

    if "TinyModule" not in slicer.util.moduleNames():
        shell.load_module(HERE / "tiny" / "TinyModule" / "TinyModule.py")
    panel = slicer.util.getModuleWidget("TinyModule")
    panel.enter()
    yield panel
    panel.exit()
