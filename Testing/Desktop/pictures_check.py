"""Pictures of the refinement of a model's result and of the tool "Check a registration".

    DEEPREG_SCREENSHOTS=Resources/Screenshots/panel \
        python Testing/Desktop/run.py --testing --python-script Testing/Desktop/pictures_check.py

The sample brains are registered by a model that comes along; its result is checked, refined by the
button, and checked again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import slicer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import panel_support as desk
from pictures import SAMPLES, bring, picture, run

MODEL = "vxm_brain_t1"


def check(panel):
    """Has the last result checked, and shows what is found."""
    ui = panel.ui
    desk.until(lambda: ui.checkButton.enabled, 10, "an enabled button")
    ui.checkButton.click()
    desk.until(lambda: not panel.parts.check.running, 120, "the end")
    bring(panel, ui.checkButton)


def take():
    """Takes the pictures."""
    slicer.util.selectModule("DeepReg")
    panel = slicer.util.getModuleWidget("DeepReg")
    ui = panel.ui
    for name, selector in (("MNI152", ui.fixedSelector), ("Colin27", ui.movingSelector)):
        volume = slicer.util.loadVolume(str(SAMPLES / f"{name}_T1_brain.nii.gz"))
        volume.SetName(name)
        selector.setCurrentNode(volume)
    desk.choose(ui.algorithmCombo, "vxm")
    desk.choose(ui.modelCombo, MODEL)
    desk.choose(ui.presetCombo, "Fast")
    desk.until(lambda: ui.applyButton.enabled, 5, "an enabled button")
    desk.run(panel)
    ui.inputsButton.collapsed = ui.outputsButton.collapsed = True
    bring(panel, ui.refineButton)
    picture("18-refine")
    ui.toolsButton.collapsed = ui.checkBox.collapsed = False
    check(panel)
    picture("19-check-before")
    ui.refineButton.click()
    desk.finish(panel)
    check(panel)
    picture("20-check-after")


run(take)
