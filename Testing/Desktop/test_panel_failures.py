"""What goes wrong around a run: the panel says a sentence, and the scene stays as it was."""

import os
import signal
import sys
import types

import panel_support as desk
import pytest


@pytest.fixture
def panel(scene):
    for panel in desk.opened(scene):
        yield panel
        if _replaced:
            _replace_worker()
            _replaced.clear()


_replaced = []


def _replace_worker(**arguments):
    """Ends the worker; the next run starts one with these arguments."""
    from DeepRegWidgets import Worker

    from DeepRegLib.client import WorkerProcess

    Worker.closeWorker()
    if arguments:
        _replaced.append(True)
        Worker._worker = WorkerProcess(**{"python": sys.executable, **arguments})


@pytest.fixture
def failing(panel):
    """Function that runs, expects a sentence and an untouched scene, and returns the sentence."""
    import shell

    desk.prepare(panel)

    def fail(sign="✖", during=None):
        before = desk.census()
        panel.ui.applyButton.click()
        if during is not None:
            during()
        said = desk.finish(panel, 60)
        raised = shell.errors.copy()
        shell.errors.clear()
        assert raised == [], raised[0]
        assert sign in said, said
        assert said.count(sign) == 1 and "Traceback" not in said
        assert desk.census() == before
        assert panel.ui.transformSelector.currentNode() is None
        assert panel.ui.applyButton.text == "Register" and panel.ui.applyButton.enabled
        assert panel.ui.inputsButton.enabled and not panel.ui.progressBar.visible
        return said

    return fail


def _works_again(panel):
    said = desk.run(panel)
    assert "✖" not in said and "⚠" not in said, said
    assert desk.error_mm(panel.ui.transformSelector.currentNode()) < 1.5


def test_killed_worker(panel, failing, tmp_path, monkeypatch):
    import tempfile

    from DeepRegWidgets.Worker import sharedWorker

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def kill():
        desk.until(lambda: sharedWorker().busy and sharedWorker().pid, 10, "a busy worker")
        os.kill(sharedWorker().pid, signal.SIGKILL)

    said = failing(during=kill)
    assert "ended the worker process" in said and "memory" in said
    _works_again(panel)
    assert list(tmp_path.glob("deepreg-*")) == []


def test_killed_worker_while_computing(panel, failing):
    from DeepRegWidgets.Worker import sharedWorker

    def kill():
        desk.until(lambda: "Rigid" in panel.ui.logText.plainText, 60, "computing")
        os.kill(sharedWorker().pid, signal.SIGKILL)

    assert "ended the worker process" in failing(during=kill)
    _works_again(panel)


def test_worker_crashes(panel, failing):
    from DeepRegWidgets.Worker import sharedWorker

    def crash():
        desk.until(lambda: "Rigid" in panel.ui.logText.plainText, 60, "computing")
        os.kill(sharedWorker().pid, signal.SIGSEGV)

    said = failing(during=crash)
    assert "SIGSEGV" in said and "the scene is unharmed" in said
    _works_again(panel)


_LIMITED = (
    "import resource, runpy, sys, torch\n"
    "pages = int(open('/proc/self/statm').read().split()[0])\n"
    "limit = pages * resource.getpagesize() + {room} * 2**20\n"
    "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
    "sys.argv = ['DeepRegLib', 'worker']\n"
    "runpy.run_module('DeepRegLib', run_name='__main__')\n"
)


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of the address space")
def test_out_of_memory(panel, failing):
    import slicer

    # Large enough not to fit into the limit, small enough to be quick.
    big = desk.make_fixed("Big", (120, 140, 130))
    panel.ui.fixedSelector.setCurrentNode(big)
    desk.settle(0.6)
    _replace_worker(arguments=("-c", _LIMITED.format(room=24)))
    said = failing()
    assert "memory" in said.lower() or "allocate" in said.lower(), said
    assert "std::bad_alloc" not in said
    _replace_worker()
    panel.ui.fixedSelector.setCurrentNode(slicer.util.getNode("Fixed"))
    desk.settle(0.4)
    _works_again(panel)


def test_broken_torch_on_the_path(panel, failing, tmp_path, monkeypatch):
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('built for another CUDA')\n")
    _replace_worker()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = failing()
    assert "another CUDA" in said or "PyTorch" in said
    monkeypatch.undo()
    _replace_worker()
    _works_again(panel)


def test_missing_interpreter(panel, failing, monkeypatch):
    from DeepRegWidgets import Worker

    _replace_worker()
    monkeypatch.setattr(Worker, "_candidates", lambda: iter(("/no/such/PythonSlicer", "", None)))
    assert "PythonSlicer" in failing()
    monkeypatch.undo()
    _works_again(panel)


def test_interpreter_that_vanished(panel, failing, tmp_path):
    _replace_worker(python=str(tmp_path / "PythonSlicer"))
    said = failing()
    assert "could not be started" in said and "PythonSlicer" in said
    _replace_worker()
    _works_again(panel)


def test_interpreter_that_is_none(panel, failing, tmp_path):
    """Something that starts, but says what no worker says."""
    _replace_worker(arguments=("-c", "print('hello')"))
    assert "✖" in failing()
    _replace_worker()
    _works_again(panel)


# PyTorch is missing ------------------------------------------------------------------------------


@pytest.fixture
def no_torch(monkeypatch):
    """PyTorch counts as missing until `installed` holds a version."""
    from DeepRegWidgets import Installer

    installed = []
    monkeypatch.setattr(Installer, "torchVersion", lambda: installed[-1] if installed else "")
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    return installed


def _extension(monkeypatch, install):
    module = types.ModuleType("PyTorchUtils")
    module.PyTorchUtilsLogic = type("PyTorchUtilsLogic", (), {"installTorch": install})
    monkeypatch.setitem(sys.modules, "PyTorchUtils", module)


def test_torch_and_its_extension_missing(panel, failing, no_torch, monkeypatch):
    said = failing()
    assert "PyTorch is missing" in said and "Extensions Manager" in said
    monkeypatch.undo()
    _works_again(panel)


def test_extension_installs_torch(panel, no_torch, monkeypatch):
    desk.prepare(panel)
    asked = {}

    def install(self, askConfirmation=False, forceComputationBackend=None,
                torchVersionRequirement=None, torchvisionVersionRequirement=None):  # fmt: skip
        asked.update(ask=askConfirmation, torch=torchVersionRequirement)
        no_torch.append("2.6.0")
        return object()

    _extension(monkeypatch, install)
    _works_again(panel)
    assert asked == {"ask": True, "torch": ">=2.4"}
    assert "Installing PyTorch" in panel.ui.logText.plainText or asked
    asked.clear()
    _works_again(panel)
    assert asked == {}, "asked once only"


def test_older_extension_installs_torch(panel, no_torch, monkeypatch):
    desk.prepare(panel)
    asked = []

    def install(self, askConfirmation=False):
        asked.append(askConfirmation)
        no_torch.append("2.4.1")
        return object()

    _extension(monkeypatch, install)
    _works_again(panel)
    assert asked == [True]


def test_user_refuses_torch(panel, failing, no_torch, monkeypatch):
    _extension(monkeypatch, lambda self, askConfirmation=False: None)
    said = failing(sign="⚠")
    assert "PyTorch is needed" in said and "nothing was changed" in said
    monkeypatch.undo()
    _works_again(panel)


def test_installation_of_torch_fails(panel, failing, no_torch, monkeypatch):
    def install(self, askConfirmation=False):
        raise RuntimeError("no space left on device")

    _extension(monkeypatch, install)
    assert "no space left on device" in failing()
    monkeypatch.undo()
    _works_again(panel)


# The scene refuses -------------------------------------------------------------------------------


def test_result_that_cannot_be_placed(panel, monkeypatch):
    """An error in the very last step takes everything back."""
    from DeepRegLib.bridge import outcome

    desk.prepare(panel)
    panel.ui.inverseCheckBox.click()
    desk.settle()
    desk.run(panel)
    before = desk.census()[0]

    def fail(*_arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(outcome, "attach_card", fail)
    panel.ui.applyButton.click()
    said = desk.finish(panel)
    assert "✖" in said and "the disk is full" in said
    assert desk.census()[0] == before
    assert desk.error_mm(panel.ui.transformSelector.currentNode()) < 1.5
    monkeypatch.undo()
    _works_again(panel)
