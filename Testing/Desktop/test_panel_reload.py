"""Reloading the module, as its developers do: one panel stays, and the old one is silent."""

import json

import panel_support as desk
import pytest

_RELOAD = """
import json, os, panel_support as desk, qt, shell, slicer
from DeepRegWidgets.Worker import sharedWorker
old, out = slicer.util.getModuleWidget("DeepReg"), {}
desk.prepare(old)
desk.run(old)
worker = sharedWorker()
pid, observations = worker.pid, len(old.Observations)
old.onReload()
desk.settle(0.3)
panel = slicer.util.getModuleWidget("DeepReg")
buttons = slicer.modules.deepreg.widgetRepresentation().findChildren(qt.QPushButton)
shown = [b for b in buttons if b.objectName == "applyButton" and b.visible]
out["new"] = panel is not old and len(shown)
out["observations"] = [len(panel.Observations) == observations, len(old.Observations)]
try:
    os.kill(pid, 0)
    out["worker"] = "lives"
except ProcessLookupError:
    out["worker"] = "ended"
worker.close(1.0)
panel.ui.resultsButton.collapsed = False
out["kept"] = [panel.ui.fixedSelector.currentNode().GetName(), panel.ui.cardTable.visible]
count = slicer.mrmlScene.GetNumberOfNodes()
out["again"] = desk.run(panel)
out["more"] = slicer.mrmlScene.GetNumberOfNodes() - count
slicer.mrmlScene.Clear(0)
desk.make_pair()
desk.settle(0.3)
out["ghost"] = [old._parameterNode is not None, len(old.Observations)]
out["sets"] = len(panel.logic.getAllParameterNodes())
out["errors"] = shell.errors
print("OUT" + json.dumps(out))
"""


@pytest.fixture(scope="module")
def reloaded(application):
    """What a reload did, in an application of its own."""
    printed = desk.in_application(_RELOAD, window=True)
    return json.loads(printed.split("OUT", 1)[1].splitlines()[0])


def test_reload_leaves_one_panel(reloaded):
    assert reloaded["new"] == 1 and reloaded["observations"] == [True, 0]
    assert reloaded["kept"] == ["Fixed", True]
    assert "✖" not in reloaded["again"] and reloaded["more"] == 0
    assert reloaded["sets"] == 1 and reloaded["errors"] == []


def test_reload_silences_the_old_panel(reloaded):
    assert reloaded["ghost"] == [False, 0]


def test_reload_ends_the_old_worker(reloaded):
    assert reloaded["worker"] == "ended"
