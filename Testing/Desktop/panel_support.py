"""Opens the panel of DeepReg in the test application, and small pairs of volumes for it."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
#: Longest time for a small registration, with the start of the worker.
RUN_SECONDS = 90.0
#: The true motion: a turn about x, y, z in radians, a shift in mm, a bend in mm.
TURN, SHIFT, BEND = (0.10, -0.06, 0.12), (4.0, -3.0, 2.5), 1.2


def opened(scene):
    """The panel in an empty scene; for a fixture: ``yield from opened(scene)``."""
    import shell
    import slicer

    if "DeepReg" not in slicer.util.moduleNames():
        shell.load_module(ROOT / "DeepReg" / "DeepReg.py")
    slicer.util.selectModule("DeepReg")
    panel = slicer.util.getModuleWidget("DeepReg")
    yield panel
    current = slicer.util.getModuleWidget("DeepReg")
    if current.parts.training.running:
        current.ui.trainButton.click()
    if current.parts.run.running:
        current.ui.applyButton.click()
        shell.wait(lambda: not current.parts.run.running, 10)
    slicer.mrmlScene.Clear(0)
    slicer.util.selectModule("Data")


def settle(seconds=0.2):
    """Lets the application run for a while; longer than the delay of the checks."""
    import shell

    shell.wait(lambda: False, seconds)


def until(condition, seconds=10.0, what="it"):
    """Lets the application run until something holds; fails if it never does."""
    import shell

    assert shell.wait(condition, seconds), f"{what} did not happen within {seconds:g} s"


def plain(text):
    """Rich text without its tags."""
    return html.unescape(re.sub(r"<[^>]*>", " ", text))


def message(panel):
    """What the panel says above the button."""
    return plain(panel.ui.messageLabel.text) if panel.ui.messageLabel.visible else ""


# Volumes -----------------------------------------------------------------------------------------


def rotation(turn):
    """Rotation matrix of a rotation vector (Rodrigues)."""
    angle = float(np.linalg.norm(turn))
    if angle == 0:
        return np.eye(3)
    x, y, z = np.asarray(turn) / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def phantom(points):
    """A body with blobs, about 50 mm large, values 0 to 100."""
    rng = np.random.default_rng(5)
    radii = np.array([22.0, 26.0, 24.0])
    body = 1.0 / (1.0 + np.exp((np.linalg.norm(points / radii, axis=-1) - 1.0) * 14.0))
    value = 40.0 * body
    for _ in range(14):
        center, width = rng.uniform(-0.7, 0.7, 3) * radii, rng.uniform(3.5, 6.0)
        square = ((points - center) ** 2).sum(-1) / (2 * width**2)
        value = value + rng.uniform(-30, 55) * np.exp(-square) * body
    return value


def bent(points):
    return points + BEND * np.sin(points[..., [1, 2, 0]] / 14.0)


def true_map(points):
    """Where points of the fixed image are in the moving one."""
    return bent(np.asarray(points)) @ rotation(TURN).T + SHIFT


def grid(shape, spacing, turn, center):
    """IJK to RAS of an oblique grid of `shape` (k, j, i) with its middle at `center`."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(turn) @ np.diag(spacing)
    matrix[:3, 3] = center - matrix[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    return matrix


def points_of(shape, matrix):
    index = np.moveaxis(np.indices(shape), 0, -1)[..., ::-1]
    return index @ matrix[:3, :3].T + matrix[:3, 3]


def vtk_matrix(matrix):
    import vtk

    made = vtk.vtkMatrix4x4()
    made.DeepCopy(np.asarray(matrix, float).ravel())
    return made


def add_volume(array, name, matrix=None, **more):
    import slicer

    matrix = np.eye(4) if matrix is None else matrix
    array = np.ascontiguousarray(array)
    return slicer.util.addVolumeFromArray(array, ijkToRAS=vtk_matrix(matrix), name=name, **more)


def make_fixed(name="Fixed", shape=(36, 48, 40)):
    matrix = grid(shape, (1.5, 1.3, 1.9), (0.2, -0.1, 0.3), (0, 0, 0))
    noise = np.random.default_rng(1).normal(0, 0.5, shape)
    return add_volume((phantom(bent(points_of(shape, matrix))) + noise).astype("f4"), name, matrix)


def make_moving(name="Moving", shape=(34, 44, 38)):
    matrix = grid(shape, (-1.6, 1.5, 2.0), (-0.1, 0.15, 0.05), SHIFT)
    points = (points_of(shape, matrix) - SHIFT) @ rotation(TURN)
    noise = np.random.default_rng(2).normal(0, 0.5, shape)
    return add_volume((phantom(points) + noise).astype("f4"), name, matrix)


def make_pair():
    """Volumes whose true transform is `true_map`."""
    return make_fixed(), make_moving()


def mask_of(volume, name, segments=(), threshold=20.0):
    """A label map of the bright voxels, or a segmentation with segments of these names."""
    import slicer
    from vtk.util.numpy_support import numpy_to_vtk

    array = slicer.util.arrayFromVolume(volume)
    matrix = np.array(slicer.util.arrayFromVTKMatrix(_ijk_to_ras(volume)))
    labels = np.zeros(array.shape, np.uint8)
    labels[array > threshold] = 1
    for number in range(1, len(segments)):
        labels[(labels > 0) & (array > np.percentile(array, 80 + 6 * number))] = number + 1
    made = add_volume(labels, name, matrix, nodeClassName="vtkMRMLLabelMapVolumeNode")
    if not segments:
        return made
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    for number, segment in enumerate(segments, 1):
        image = slicer.vtkOrientedImageData()
        image.DeepCopy(made.GetImageData())
        image.SetGeometryFromImageToWorldMatrix(_ijk_to_ras(volume))
        scalars = numpy_to_vtk((labels == number).astype(np.uint8).ravel(), deep=True)
        image.GetPointData().SetScalars(scalars)
        node.AddSegmentFromBinaryLabelmapRepresentation(image, segment, [1.0, 0.5, 0.1])
    slicer.mrmlScene.RemoveNode(made)
    return node


def _ijk_to_ras(volume):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return matrix


def add_points(name, places):
    import slicer
    import vtk

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    for place in places:
        node.AddControlPoint(vtk.vtkVector3d(*(float(p) for p in place)))
    return node


def add_linear(name, turn=(0, 0, 0), shift=(0, 0, 0)):
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(turn), shift
    node.SetMatrixTransformToParent(vtk_matrix(matrix))
    return node


def body_points(count=40):
    return np.random.default_rng(3).uniform(-0.5, 0.5, (count, 3)) * [22.0, 26.0, 24.0]


def to_moving(transform, points, fixed=None):
    """Maps points of the fixed volume's own RAS to the moving volume's own RAS."""
    import slicer
    import vtk

    general = vtk.vtkGeneralTransform()
    above = None if fixed is None else fixed.GetParentTransformNode()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(above, transform, general)
    return np.array([general.TransformPoint(p) for p in points])


def error_mm(transform, fixed=None):
    """Mean distance of a result from the true motion."""
    points = body_points()
    gaps = to_moving(transform, points, fixed) - true_map(points)
    return float(np.linalg.norm(gaps, axis=1).mean())


# Runs --------------------------------------------------------------------------------------------


def choose(combo, data):
    """Chooses the entry of a combo box with that data, or that text."""
    index = combo.findData(data)
    index = combo.findText(data) if index < 0 else index
    assert index >= 0, f"there is no {data!r}"
    combo.setCurrentIndex(index)


def prepare(panel, fixed=None, moving=None, algorithm="rigid"):
    """Chooses a pair, the algorithm and the fast preset; returns the pair.

    The search of the start is left out, as it takes most of the time.
    """
    if fixed is None:
        fixed, moving = make_pair()
    panel.ui.fixedSelector.setCurrentNode(fixed)
    panel.ui.movingSelector.setCurrentNode(moving)
    choose(panel.ui.algorithmCombo, algorithm)
    panel.ui.presetCombo.setCurrentIndex(0)
    if algorithm in ("rigid", "greedy"):
        choose(panel.parts.algorithm.form.editor("rigid.initialization"), "geometry")
    settle(0.15)  # until the inputs have been checked
    until(lambda: panel.ui.applyButton.enabled, 5, "an enabled button")
    # Afterwards nothing checks the inputs any more but the panel's own attention to changes.
    until(lambda: not panel.parts.run._unscanned, 5, "a look at all voxels")
    return fixed, moving


def finish(panel, seconds=RUN_SECONDS):
    """Waits for the end of the run; returns what the panel says."""
    until(lambda: not panel.parts.run.running, seconds, "the end of the run")
    settle()
    return message(panel)


def run(panel, seconds=RUN_SECONDS):
    """Clicks Register and waits for the end; returns what the panel says."""
    assert panel.ui.applyButton.enabled and panel.ui.applyButton.text == "Register"
    panel.ui.applyButton.click()
    assert panel.parts.run.running, message(panel)
    return finish(panel, seconds)


def form_parameters(spec):
    """The parameters that the form of a registration shows.

    What only training decides belongs to the form of the training; the model has its own list.
    """
    return [p for p in spec.parameters if not p.training and p.name != "model"]


def tool_tip_role():
    import qt

    return qt.Qt.ToolTipRole


def census():
    """Identity and modification time of every node that holds data."""
    import slicer

    kinds = ("vtkMRMLVolumeNode", "vtkMRMLTransformNode", "vtkMRMLSegmentationNode",
             "vtkMRMLMarkupsNode", "vtkMRMLTableNode", "vtkMRMLModelNode")  # fmt: skip
    scene = slicer.mrmlScene
    nodes = [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
    times = {n.GetID(): n.GetMTime() for n in nodes if any(n.IsA(kind) for kind in kinds)}
    return sorted(n.GetID() for n in nodes), times


def in_application(code, seconds=120, window=False):
    """Runs Python in an application of its own; returns what it printed."""
    path = [sys.executable, str(HERE / "run.py"), "--testing"]
    path += [] if window else ["--no-main-window"]
    text = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n{code}\nimport slicer\nslicer.util.exit(0)"
    )
    done = subprocess.run(
        [*path, "--python-code", text], capture_output=True, text=True, timeout=seconds, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
