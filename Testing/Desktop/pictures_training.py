"""Pictures of a training and of a registration by what it made, for the README.

    DEEPREG_SCREENSHOTS=Resources/Screenshots/panel \
        python Testing/Desktop/run.py --testing --python-script Testing/Desktop/pictures_training.py

Six "people" are made of the sample pair by smooth random warps: enough to show the panel, not for
a model to keep. Nothing stays but the pictures.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import qt
import SimpleITK as sitk
import slicer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import panel_support as desk
from pictures import SAMPLES, bring, picture

STEPS = int(os.environ.get("DEEPREG_PICTURE_STEPS", "150"))
PEOPLE, SPACING_MM = 6, 2.0


def person(number):
    """A warped brain and its tissues, as arrays with their matrix."""
    name = ("MNI152_T1_brain", "Colin27_T1_brain")[number % 2]
    brain = sitk.ReadImage(str(SAMPLES / f"{name}.nii.gz"), sitk.sitkFloat32)
    array = sitk.GetArrayViewFromImage(brain)
    limits = np.percentile(array[array > 0], (2, 25, 65))
    tissues = sum((brain > float(limit)) for limit in limits)
    size = [round(n * s / SPACING_MM) for n, s in zip(brain.GetSize(), brain.GetSpacing())]
    reference = sitk.Image(size, sitk.sitkFloat32)
    reference.SetSpacing([SPACING_MM] * 3)
    reference.SetOrigin(brain.GetOrigin())
    reference.SetDirection(brain.GetDirection())
    warp = sitk.BSplineTransformInitializer(reference, [5, 5, 5])
    draw = np.random.default_rng(number).normal(0.0, 5.0, len(warp.GetParameters()))
    warp.SetParameters(draw.tolist())
    moved = (
        sitk.GetArrayFromImage(sitk.Resample(brain, reference, warp, sitk.sitkLinear)),
        sitk.GetArrayFromImage(sitk.Resample(tissues, reference, warp, sitk.sitkNearestNeighbor)),
    )
    direction = np.array(reference.GetDirection()).reshape(3, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = direction * SPACING_MM
    matrix[:3, 3] = reference.GetOrigin()
    return (*moved, np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix)


def load():
    """The sample pair, and the people to learn from."""
    pair = []
    for name in ("MNI152", "Colin27"):
        volume = slicer.util.loadVolume(str(SAMPLES / f"{name}_T1_brain.nii.gz"))
        volume.SetName(name)
        pair.append(volume)
    people = []
    for number in range(PEOPLE):
        image, tissues, matrix = person(number)
        kind = "vtkMRMLLabelMapVolumeNode"
        people.append((
            desk.add_volume(image, f"Brain {number + 1}", matrix),
            desk.add_volume(tissues.astype(np.uint8), f"Tissues {number + 1}", matrix,
                            nodeClassName=kind),
        ))  # fmt: skip
    slicer.util.setSliceViewerLayers(
        background=pair[0], foreground=pair[1], foregroundOpacity=0.5, fit=True,
        rotateToVolumePlane=True,
    )  # fmt: skip
    return pair, people


def fill(panel, people):
    """Checks the people and enters a short training."""
    desk.until(lambda: panel.ui.trainingTable.rowCount == PEOPLE + 2, 10, "the volumes")
    for volume, tissues in people:
        panel.parts.training.data.check(volume, tissues)
    panel.ui.trainingSpacingSpinBox.value = 4.0
    panel.ui.trainingLengthCombo.setCurrentIndex(0)
    panel.ui.trainingNameEdit.text = "my_brains"
    form = panel.parts.training.form
    form.editor("training.steps").value = STEPS
    form.editor("training.validate_every").value = max(1, STEPS // 10)
    form.editor("training.learning_rate").value = 1e-3
    for name, text in (("anatomy", "brain"), ("contrast", "T1 MRI"), ("terms", "CC0")):
        editor = form.editor(f"card.{name}")
        editor.insert(text)
        editor.textEdited.emit(text)
    desk.settle()


def train(panel):
    """From the state without a model to the model, with pictures."""
    ui = panel.ui
    desk.choose(ui.algorithmCombo, "vxm_prob")
    desk.settle()
    picture("12-needs-a-model")
    ui.inputsButton.collapsed = ui.algorithmButton.collapsed = True
    _, people = load.found
    fill(panel, people)
    ui.trainModelButton.click()
    picture("13-training-chosen")
    ui.trainButton.click()
    points = panel.parts.training._progress.points
    desk.until(lambda: len(points) > 0.6 * STEPS or not panel.parts.training.running, 1500, "steps")
    assert panel.parts.training.running, desk.plain(ui.trainingMessageLabel.text)
    bring(panel, ui.trainingCurveBox)
    picture("14-training")
    desk.until(lambda: not panel.parts.training.running, 1500, "the end of the training")
    desk.settle()
    assert "\u2714" in ui.trainingMessageLabel.text, desk.plain(ui.trainingMessageLabel.text)
    print(desk.plain(ui.trainingMessageLabel.text), flush=True)
    bring(panel, ui.trainingCurveBox)
    picture("15-trained")


def register(panel):
    """The sample pair with the new model, and its uncertainty."""
    ui = panel.ui
    ui.trainingButton.collapsed = True
    ui.algorithmButton.collapsed = False
    desk.choose(ui.presetCombo, "Fast")
    desk.until(lambda: ui.applyButton.enabled, 10, "an enabled button")
    said = desk.run(panel, 600)
    print(said, desk.plain(ui.verdictLabel.text), flush=True)
    slicer.util.setSliceViewerLayers(background=load.found[0][0], fit=True)
    desk.choose(ui.mapCombo, "uncertainty_mm")
    picture("16-learned")


def main():
    """All pictures; ends the application with 0 or 1."""
    code, folder = 0, tempfile.mkdtemp(prefix="pictures-")
    os.environ["DEEPREG_MODELS"] = folder
    try:
        from DeepRegLib import models

        models.SHIPPED = ()  # the first picture is that of a panel without models
        slicer.util.selectModule("DeepReg")
        panel = slicer.util.getModuleWidget("DeepReg")
        load.found = load()
        ui = panel.ui
        ui.fixedSelector.setCurrentNode(load.found[0][0])
        ui.movingSelector.setCurrentNode(load.found[0][1])
        train(panel)
        register(panel)
    except BaseException:
        traceback.print_exc()
        picture("failure")
        code = 1
    shutil.rmtree(folder, ignore_errors=True)
    slicer.util.exit(code)


# With --testing the application would end as soon as this file has been read.
slicer.app.commandOptions().runPythonAndExit = False
qt.QTimer.singleShot(500, main)
