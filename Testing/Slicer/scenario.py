"""What a person does at the DeepReg panel, from an empty scene to a saved and reopened result.

The very same file runs in 3D Slicer and in the test application:

    Slicer --testing --no-splash --additional-module-path DeepReg --python-script \
        Testing/Slicer/scenario.py
    python Testing/Desktop/run.py --testing --python-script Testing/Slicer/scenario.py

It prints what it checks, writes screenshots to the folder in DEEPREG_SCREENSHOTS (if set), and ends
the application with 0 (all well) or 1. DEEPREG_SCENARIO_RUNS is the number of runs in a row (20).
It touches only the panel and the scene.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import qt
import slicer
import vtk
import vtk.util.numpy_support

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "Resources" / "SampleData"
PICTURES = os.environ.get("DEEPREG_SCREENSHOTS", "")
RUNS = int(os.environ.get("DEEPREG_SCENARIO_RUNS", "20"))
#: Views and what belongs to them change with the window, not with the data.
VIEW_CLASSES = (
    "vtkMRMLSliceNode", "vtkMRMLSliceDisplayNode", "vtkMRMLCrosshairNode", "vtkMRMLViewNode",
    "vtkMRMLInteractionNode", "vtkMRMLCameraNode", "vtkMRMLLayoutNode",
)  # fmt: skip


# Other programs' temporary files are no concern of the count at the end.
tempfile.tempdir = tempfile.mkdtemp(prefix="scenario-")


class Failure(Exception):
    """A check that did not hold."""


class Stalls:
    """Measures the longest time in which the event loop did not come round."""

    def __init__(self):
        self.longest = 0.0
        self._last = time.monotonic()
        self._timer = qt.QTimer()
        self._timer.setInterval(2)
        self._timer.connect("timeout()", self._tick)

    def start(self):
        self.longest, self._last = 0.0, time.monotonic()
        self._timer.start()

    def report(self):
        """Prints the figure; only a frozen application fails, as a busy machine slows all."""
        verdict = "" if self.longest < 0.1 else " (above 100 ms: is the machine busy?)"
        print(f"      longest stall of the event loop: {1000 * self.longest:.0f} ms{verdict}")
        check(self.longest < 1.0, "the application did not freeze")

    def resume(self):
        self._last = time.monotonic()
        self._timer.start()

    def stop(self):
        self._tick()
        self._timer.stop()

    def _tick(self):
        now = time.monotonic()
        self.longest = max(self.longest, now - self._last)
        self._last = now


def check(condition, text):
    print(("ok    " if condition else "FAIL  ") + text, flush=True)
    if not condition:
        raise Failure(text)


def settle(seconds=0.4):
    wait(lambda: False, seconds)


def wait(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        slicer.app.processEvents()
        time.sleep(0.002)
    return True


def picture(name, widget=None):
    settle(0.6)
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        (widget or slicer.util.mainWindow()).grab().save(str(Path(PICTURES) / f"{name}.png"))


def pixels(view="Red"):
    """The picture in a slice view, as an array."""
    window = slicer.app.layoutManager().sliceWidget(view).sliceView().renderWindow()
    grabber = vtk.vtkWindowToImageFilter()
    grabber.SetInput(window)
    grabber.ReadFrontBufferOff()
    grabber.Update()
    image = grabber.GetOutput()
    width, height, _depth = image.GetDimensions()
    scalars = image.GetPointData().GetScalars()
    return np.array(vtk.util.numpy_support.vtk_to_numpy(scalars)).reshape(height, width, -1)


def nodes():
    """Modification time of every node that is not a mere view."""
    scene = slicer.mrmlScene
    found = (scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes()))
    return {n.GetID(): n.GetMTime() for n in found if isData(n)}


def isData(node):
    """Whether a node is more than a part of a view, which changes with the window."""
    return node.GetSaveWithScene() and node.GetClassName() not in VIEW_CLASSES


def storableStates():
    scene = slicer.mrmlScene
    found = (scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes()))
    storable = (n for n in found if n.IsA("vtkMRMLStorableNode") and isData(n))
    return {n.GetID(): n.GetModifiedSinceRead() for n in storable}


def temporaries():
    return sorted(p.name for p in Path(tempfile.gettempdir()).glob("deepreg-*"))


class Scenario:
    """The steps, in order; each leaves behind what the next one needs."""

    def __init__(self):
        self.stalls = Stalls()

    def run(self):
        for step in (
            self.openPanel, self.chooseVolumes, self.chooseAlgorithm, self.addCompanions,
            self.cancelARun, self.finishARun, self.readTheCard, self.compareViews,
            self.followCompanions, self.moveALandmark, self.surviveAKilledWorker, self.saveAndReopen,
            self.repeatManyTimes,
        ):  # fmt: skip
            print(f"--    {step.__name__}", flush=True)
            step()

    @property
    def ui(self):
        return self.panel.ui

    @property
    def running(self):
        return self.panel.parts.run.running

    def openPanel(self):
        slicer.mrmlScene.Clear(0)
        slicer.util.selectModule("DeepReg")
        settle()
        self.panel = slicer.util.getModuleWidget("DeepReg")
        check("torch" not in sys.modules, "the panel opens without torch")
        check(not self.ui.applyButton.enabled, "Register is disabled in an empty scene")
        check("Select" in self.ui.applyButton.text, f"the button says: {self.ui.applyButton.text}")
        picture("1-empty")

    def chooseVolumes(self):
        self.fixed = slicer.util.loadVolume(str(SAMPLES / "MNI152_T1_brain.nii.gz"))
        self.moving = slicer.util.loadVolume(str(SAMPLES / "Colin27_T1_brain.nii.gz"))
        self.fixed.SetName("MNI152")
        self.moving.SetName("Colin27")
        self.ui.fixedSelector.setCurrentNode(self.fixed)
        self.ui.movingSelector.setCurrentNode(self.fixed)
        settle()
        check(not self.ui.applyButton.enabled, "the same volume twice is refused")
        print("      " + self.ui.applyButton.toolTip)
        self.ui.movingSelector.setCurrentNode(self.moving)
        settle()
        check(self.ui.applyButton.enabled, "two volumes are accepted")
        check(self.ui.applyButton.text == "Register", "the button says Register")
        slicer.util.setSliceViewerLayers(
            background=self.fixed, foreground=self.moving, foregroundOpacity=0.5, fit=True,
            rotateToVolumePlane=True,
        )  # fmt: skip
        picture("2-chosen")

    def chooseAlgorithm(self):
        combo = self.ui.algorithmCombo
        combo.setCurrentIndex(combo.findData("rigid"))
        settle()
        check(self.ui.stagesCombo.count == 1, "a rigid registration has one stage")
        combo.setCurrentIndex(combo.findData("greedy"))
        settle()
        check("\u2192" in self.ui.stagesCombo.currentText, "a deformable one has several")
        self.ui.presetCombo.setCurrentIndex(0)
        self.ui.parametersBox.collapsed = False
        editor = self.panel.parts.algorithm.form.editor("greedy.regularity")
        editor.setCurrentIndex(editor.findText("smooth"))
        settle()
        picture("3-parameters")
        self.ui.parametersBox.collapsed = True
        self.ui.jacobianCheckBox.click()
        self.ui.inverseCheckBox.click()

    def addCompanions(self):
        self.segmentation = self.segmentBright(self.moving)
        self.points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Places")
        bounds = [0.0] * 6
        self.moving.GetRASBounds(bounds)
        self.middle = [(bounds[2 * n] + bounds[2 * n + 1]) / 2 for n in range(3)]
        for offset in (-25.0, 0.0, 25.0):
            self.points.AddControlPoint(vtk.vtkVector3d(*(m + offset for m in self.middle)))
        settle()
        for node in (self.segmentation, self.points):
            self.ui.companionsCombo.setCheckState(node, qt.Qt.Checked)
        settle()
        check(len(self.ui.companionsCombo.checkedNodes()) == 2, "two companions are checked")

    def segmentBright(self, volume):
        """A segmentation of the brightest tenth of a volume."""
        array = slicer.util.arrayFromVolume(volume)
        mask = (array > np.percentile(array[array > 0], 90)).astype(np.uint8)
        image = slicer.vtkOrientedImageData()
        image.SetDimensions(*volume.GetImageData().GetDimensions())
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        matrix = vtk.vtkMatrix4x4()
        volume.GetIJKToRASMatrix(matrix)
        image.SetGeometryFromImageToWorldMatrix(matrix)
        flat = vtk.util.numpy_support.numpy_to_vtk(mask.ravel(), deep=True)
        image.GetPointData().GetScalars().DeepCopy(flat)
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Bright")
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        node.AddSegmentFromBinaryLabelmapRepresentation(image, "bright", [0.9, 0.6, 0.1])
        return node

    def cancelARun(self):
        before, states = nodes(), storableStates()
        shown = pixels()
        self.ui.applyButton.click()
        check(self.ui.applyButton.text == "Cancel", "the button says Cancel while it runs")
        values, previews = set(), []
        self.stalls.start()

        def enough():
            values.add(self.ui.progressBar.value)
            count = self.panel.parts.run.previewsShown
            if count > len(previews):
                slicer.app.processEvents()
                self.stalls.stop()  # Reading the picture is no doing of the panel.
                previews.append(pixels())
                self.stalls.resume()
            return (len(values) > 4 and len(previews) >= 3) or not self.running

        done = wait(enough, 180)
        self.stalls.stop()
        check(done and self.running, "it runs and can be watched")
        picture("4-running")
        check(len(values) > 4, f"the progress bar moves ({len(values)} values)")
        moved = [np.abs(a.astype(float) - b).mean() for a, b in zip(previews[:-1], previews[1:])]
        check(max(moved) > 0.2, f"the preview changes (by {max(moved):.1f} gray values at most)")
        self.stalls.report()
        check("elapsed" in self.ui.statusLabel.text, f"status: {self.ui.statusLabel.text}")
        self.ui.applyButton.click()
        check(wait(lambda: not self.running, 5), "Cancel works at once")
        settle()
        check(nodes() == before, "the nodes are as they were, none modified")
        check(storableStates() == states, "nothing counts as modified that did not before")
        check("ancel" in self.ui.messageLabel.text, "a sentence says so")
        difference = np.abs(pixels().astype(float) - shown).mean()
        check(difference < 0.5, f"the views show what they showed (differ by {difference:.2f})")

    def finishARun(self):
        self.ui.applyButton.click()
        self.stalls.start()
        check(wait(lambda: not self.running, 600), "the run ends")
        self.stalls.stop()
        self.stalls.report()
        self.transform = self.ui.transformSelector.currentNode()
        self.moved = self.ui.movedSelector.currentNode()
        check(self.transform is not None and self.moved is not None, "transform and volume are there")
        check(self.ui.inverseSelector.currentNode() is not None, "the inverse is there")
        settle()
        picture("5-result")

    def readTheCard(self):
        rows = self.card()
        check(len(rows) > 8, f"the card has {len(rows)} rows")
        correlation = next(v for k, v in rows.items() if "NCC" in k)
        check(float(correlation) > 0.7, f"the brains match (NCC {correlation})")
        check("Good" in self.ui.verdictLabel.text, "the verdict is good")

    def card(self):
        """The card as shown: name and value after the run."""
        table = self.ui.cardTable
        return {table.item(r, 0).text(): table.item(r, 2).text() for r in range(table.rowCount)}

    def compareViews(self):
        seen = {}
        for name in ("before", "after", "checkerboard", "difference", "redCyan"):
            getattr(self.ui, f"{name}Button").click()
            picture(f"6-{name}")
            seen[name] = pixels().astype(float)
        names = list(seen)
        gaps = [
            np.abs(seen[a] - seen[b]).mean() for i, a in enumerate(names) for b in names[i + 1 :]
        ]
        check(min(gaps) > 0.5, f"each way of looking differs (by {min(gaps):.1f} at least)")
        self.ui.flickerButton.click()
        composite = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
        seenOpacities = set()

        def both():
            seenOpacities.add(composite.GetForegroundOpacity())
            return {0.0, 1.0} <= seenOpacities

        check(wait(both, 3), "flicker switches between both volumes")
        self.ui.mapCombo.setCurrentIndex(self.ui.mapCombo.findData("jacobian"))
        picture("7-jacobian")
        check(composite.GetForegroundVolumeID() not in (None, self.moved.GetID()),
              "the Jacobian lies over the fixed volume")  # fmt: skip
        self.ui.mapCombo.setCurrentIndex(0)
        self.ui.checkerboardButton.click()
        self.ui.curveBox.collapsed = False
        picture("8-curve", self.ui.resultsButton)
        self.ui.curveBox.collapsed = True

    def followCompanions(self):
        check(self.segmentation.GetParentTransformNode() is self.transform,
              "the segmentation went along")  # fmt: skip
        position, local = [0.0] * 3, [0.0] * 3
        self.points.GetNthControlPointPositionWorld(1, position)
        self.points.GetNthControlPointPosition(1, local)
        check(np.linalg.norm(np.subtract(position, local)) > 1.0, "the markups went along")
        back = [0.0] * 3
        general = vtk.vtkGeneralTransform()
        self.transform.GetTransformFromWorld(general)
        general.TransformPoint(position, back)
        error = np.linalg.norm(np.subtract(back, local))
        check(error < 0.05, f"to where the transform says (within {error:.3f} mm)")

    def moveALandmark(self):
        pairs = {}
        general = vtk.vtkGeneralTransform()
        self.transform.GetTransformToWorld(general)
        for side in ("moving", "fixed"):
            node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", f"{side} pts")
            for offset in (-30.0, -10.0, 10.0, 30.0):
                place = [m + offset * f for m, f in zip(self.middle, (1.0, 0.6, 0.3))]
                if side == "fixed":
                    place = list(general.TransformPoint(place))
                node.AddControlPoint(vtk.vtkVector3d(*place))
            pairs[side] = node
        self.ui.fixedPointsSelector.setCurrentNode(pairs["fixed"])
        self.ui.movingPointsSelector.setCurrentNode(pairs["moving"])
        settle()
        pairs["fixed"].SetNthControlPointPosition(0, *np.add(_position(pairs["fixed"], 0), 4.0))
        settle()
        check(self.ui.rerunButton.visible, "moved landmarks offer a quick run")
        transform = self.transform
        self.ui.rerunButton.click()
        check(wait(lambda: not self.running, 300), "the quick run ends")
        check(self.ui.transformSelector.currentNode() is transform, "it improves the same transform")
        check(not self.ui.rerunButton.visible, "and the offer goes away")
        rows = self.card()
        error = next(value for name, value in rows.items() if "Landmark error, max" in name)
        check(float(error.split()[0]) < 1.0, f"the landmarks are met (at most {error} apart)")

    def surviveAKilledWorker(self):
        before = sorted(nodes())
        worker = self.workerProcess()
        self.ui.applyButton.click()
        wait(lambda: self.ui.progressBar.value > 0, 60)
        # PythonSlicer is a launcher; its group holds the interpreter.
        os.killpg(worker.pid, signal.SIGKILL)
        check(wait(lambda: not self.running, 10), "a killed worker ends the run")
        settle()
        check("\u2716" in self.ui.messageLabel.text, f"with a sentence: {self.ui.messageLabel.text}")
        check(sorted(nodes()) == before, "and the scene is as it was")
        picture("9-failed")
        self.ui.algorithmCombo.setCurrentIndex(self.ui.algorithmCombo.findData("rigid"))
        settle()
        self.ui.applyButton.click()
        check(wait(lambda: not self.running, 120), "the next run works")
        settle()
        check("\u2716" not in self.ui.messageLabel.text, "without a complaint")

    def workerProcess(self):
        from DeepRegWidgets.Worker import sharedWorker

        return sharedWorker()

    def saveAndReopen(self):
        self.ui.checkerboardButton.click()
        settle()
        picture("10-saved")
        before, choices = pixels().astype(float), self.choices()
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "scene.mrb")
            check(slicer.util.saveScene(path), "the scene is saved")
            slicer.mrmlScene.Clear(0)
            settle()
            check(not self.ui.applyButton.enabled, "the closed scene leaves an empty panel")
            slicer.util.loadScene(path)
            settle(1.0)
        after = self.choices()
        check(after == choices, "the choices are the same" + _differences(choices, after))
        gap = np.abs(pixels().astype(float) - before).mean()
        picture("11-reopened")
        check(gap < 1.0, f"the picture is the same (differs by {gap:.2f} gray values)")

    def choices(self):
        ui = self.ui
        selectors = ("fixedSelector", "movingSelector", "fixedPointsSelector",
                     "movingPointsSelector", "transformSelector", "movedSelector")  # fmt: skip
        found = {n: getattr(ui, n).currentNode() for n in selectors}
        found = {n: None if node is None else node.GetName() for n, node in found.items()}
        for name in ("algorithmCombo", "stagesCombo", "presetCombo", "deviceCombo"):
            found[name] = getattr(ui, name).currentText
        found["settings"] = self.panel.parts.algorithm.form.settings()
        found["companions"] = sorted(n.GetName() for n in ui.companionsCombo.checkedNodes())
        found["view"] = [
            name
            for name in ("before", "after", "flicker", "checkerboard", "difference", "redCyan")
            if getattr(ui, f"{name}Button").checked
        ]
        found["verdict"] = ui.verdictLabel.text
        return found

    def repeatManyTimes(self):
        fixed, moving = (self.small(f"{side}Selector") for side in ("fixed", "moving"))
        logic = self.panel.logic
        known, files = None, None
        outputs = {}
        for number in range(RUNS):
            result = logic.register(
                fixed, moving, algorithm="rigid", preset="fast", maps=(), **outputs
            )
            outputs = {"outputVolume": result.moved, "outputTransform": result.transform}
            if number == 1:
                known, files = self.census(), temporaries()
        if RUNS > 2:
            check(self.census() == known, f"{RUNS} runs leak nothing: {known}")
            check(temporaries() == files, "and no temporary file")

    def small(self, selector):
        """A thinned-out copy of a chosen volume."""
        volume = getattr(self.ui, selector).currentNode()
        array = np.ascontiguousarray(slicer.util.arrayFromVolume(volume)[::3, ::3, ::3])
        matrix = vtk.vtkMatrix4x4()
        volume.GetIJKToRASMatrix(matrix)
        for row in range(3):
            for column in range(3):
                matrix.SetElement(row, column, 3 * matrix.GetElement(row, column))
        name = f"small {volume.GetName()}"
        return slicer.util.addVolumeFromArray(array, ijkToRAS=matrix, name=name)

    def census(self):
        """Nodes, observers of the scene, children of this process, threads."""
        import threading

        children = _children(os.getpid())
        return {
            "nodes": slicer.mrmlScene.GetNumberOfNodes(),
            "observations": len(self.panel.Observations),
            "processes": children,
            "threads": threading.active_count(),
        }


def _position(node, index):
    position = [0.0] * 3
    node.GetNthControlPointPosition(index, position)
    return position


def _children(pid):
    """Number of child processes that live (Linux; 0 elsewhere)."""
    count = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        count += fields[1] == str(pid) and fields[0] != "Z"
    return count


def _differences(before, after):
    odd = [f"{k}: {before[k]!r} became {after[k]!r}" for k in before if before[k] != after[k]]
    return "" if not odd else " - " + "; ".join(odd)


def main():
    code = 0
    try:
        Scenario().run()
        print("The scenario has passed.", flush=True)
    except BaseException:
        traceback.print_exc()
        picture("failure")
        print("The scenario has failed.", flush=True)
        code = 1
    shutil.rmtree(tempfile.tempdir, ignore_errors=True)
    slicer.util.exit(code)


# With --testing the application would end as soon as this file has been read.
slicer.app.commandOptions().runPythonAndExit = False
qt.QTimer.singleShot(500, main)
