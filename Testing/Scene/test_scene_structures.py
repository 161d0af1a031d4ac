"""Label maps of a result as segmentations: where they lie, names, colors, replacing and undoing."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs the package slicer-core (the MRML library)")

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.extras import MAP_ROLE
from DeepRegLib.bridge.outcome import Loaded, Wanted, load, place, placing
from DeepRegLib.bridge.request import RegistrationRequest, collect
from DeepRegLib.bridge.structures import (
    add_segmentation,
    is_label_array,
    replace_segmentation,
    structure_names,
)
from DeepRegLib.bridge.transforms import warp_content
from DeepRegLib.errors import GeometryError, InputError
from DeepRegLib.job import ArrayFile, JobEvent, TransformFile

ANATOMY = "FileGenericAnatomyColors.txt"


def boxes(grid, first=17, second=53):
    """Two structures in a corner of a grid, away from its middle."""
    labels = np.zeros(grid.shape, np.int16)
    labels[2:6, 3:9, 4:12] = first
    labels[3:5, 4:7, 6:9] = second
    return labels


def read_back(node, grid):
    """Label map of the numbers of the segments on a grid in the node's own coordinates."""
    found = np.zeros(grid.shape, int)
    for id_ in mrml.segment_names(node):
        mask = mrml.segmentation_mask(node, grid, node, id_)
        found[mask > 0] = node.GetSegmentation().GetSegment(id_).GetLabelValue()
    return found


def color_table(scene, names, tag=None):
    """Adds a table of colors; with a tag it is one of Slicer's own."""
    table = slicer.vtkMRMLColorTableNode()
    table.SetTypeToUser()
    table.SetNumberOfColors(len(names))
    for index, name in enumerate(names):
        table.SetColor(index, name, index / 100, 0.25, 0.75, 1.0)
    if tag:
        table.SetSingletonTag(tag)
    return scene.AddNode(table)


@pytest.fixture
def anatomy(scene):
    """Slicer's table of anatomical colors, made anew where the scene has none."""
    for node in list(slicer.util.getNodesByClass("vtkMRMLColorTableNode", scene)):
        if node.GetSingletonTag() == ANATOMY:
            scene.RemoveNode(node)
    return color_table(scene, ["background", "tissue", "bone", "liver", "spleen"], ANATOMY)


@pytest.fixture
def pair(scene, tools, linear_parent):
    """Two unlike oblique volumes under unlike parents."""
    grids = tools.make_grid("oblique"), tools.make_grid("left", (20, 22, 25), (2.0, 1.7, 1.2))
    nodes = []
    for name, grid in zip(("Fixed", "Moving"), grids):
        node = mrml.add_volume(scene, name, tools.smooth_array(grid), grid)
        turn = tools.rotation(5, 0, 10 if name == "Fixed" else -20)
        node.SetAndObserveTransformNodeID(linear_parent(turn).GetID())
        nodes.append(node)
    return tuple(nodes)


def result(pair, first=17, second=53, **more):
    """A finished job with a segmentation of each image."""
    fixed, moving = (mrml.grid_of(node) for node in pair)
    arrays = {
        "moved": (np.zeros(fixed.shape, np.float32), fixed),
        "extra_segmentation": (boxes(fixed, first, second), fixed),
        "extra_moving_segmentation": (boxes(moving, first, second), moving),
        **more,
    }
    warps = {name: warp_content(np.eye(4), None, None) for name in ("transform", "inverse")}
    data = {"quality": {"verdict": "green", "sentence": "", "reasons": []}, "provenance": {}}
    return Loaded(JobEvent("done", "job", data=data), arrays, warps)


def ids(scene):
    return [scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())]


@pytest.mark.parametrize("kind", ["ras", "lps", "oblique_left"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_a_segment_for_each_label(scene, tools, kind, dtype):
    grid = tools.make_grid(kind)
    labels = boxes(grid).astype(dtype)
    node = add_segmentation(scene, "Structures", labels, grid)
    assert mrml.segment_names(node) == {"Label_17": "Label 17", "Label_53": "Label 53"}
    np.testing.assert_array_equal(read_back(node, grid), labels)
    segments = [node.GetSegmentation().GetNthSegment(n) for n in range(2)]
    images = [segment.GetRepresentation("Binary labelmap") for segment in segments]
    # One image for all of them, no larger than what they fill.
    assert images[0] is images[1] and images[0].GetDimensions() == (8, 6, 4)
    assert node.GetDisplayNode() is not None


def test_large_numbers_are_kept(scene, tools):
    grid = tools.make_grid("ras")
    labels = boxes(grid).astype(np.int32)
    labels[labels == 53] = 100_000
    labels[labels == 17] = 2035
    node = add_segmentation(scene, "S", labels, grid)
    np.testing.assert_array_equal(read_back(node, grid), labels)


def test_colors_are_those_of_the_name_or_of_the_number(scene, tools, anatomy):
    grid = tools.make_grid("ras")
    named = add_segmentation(scene, "A", boxes(grid), grid, names={17: "Liver"})
    other = add_segmentation(scene, "B", boxes(grid, 53, 6), grid)
    colors = {
        (node.GetName(), segment.GetLabelValue()): segment.GetColor()
        for node in (named, other)
        for segment in map(node.GetSegmentation().GetNthSegment, range(2))
    }
    table = {n: (n / 100, 0.25, 0.75) for n in range(5)}
    assert colors["A", 17] == pytest.approx(table[3], abs=0.01)
    # Four colors beside the background: 53 is the first again, 6 the second.
    assert colors["A", 53] == colors["B", 53] == pytest.approx(table[1], abs=0.01)
    assert colors["B", 6] == pytest.approx(table[2], abs=0.01)
    assert mrml.segment_names(named)["Label_17"] == "Liver"


def test_colors_without_a_table_differ_and_repeat(scene, tools):
    for node in list(slicer.util.getNodesByClass("vtkMRMLColorTableNode", scene)):
        if node.GetSingletonTag() == ANATOMY:
            scene.RemoveNode(node)
    grid = tools.make_grid("ras")
    colors = []
    for name in ("A", "B"):
        content = add_segmentation(scene, name, boxes(grid), grid).GetSegmentation()
        colors.append([content.GetNthSegment(n).GetColor() for n in range(2)])
    assert colors[0] == colors[1]
    assert np.abs(np.subtract(*colors[0])).max() > 0.1


def test_segmentations_lie_beside_their_volumes(scene, pair, anatomy):
    fixed, moving = pair
    outcome = place(scene, RegistrationRequest(fixed, moving), result(pair), Wanted())
    assert set(outcome.segmentations) == {"segmentation", "moving_segmentation"}
    assert outcome.maps == {}
    for kind, volume in (("segmentation", fixed), ("moving_segmentation", moving)):
        node = outcome.segmentations[kind]
        assert node.GetName() == f"{volume.GetName()} segmentation"
        assert node.GetParentTransformNode() is volume.GetParentTransformNode()
        role = node.GetReferenceImageGeometryReferenceRole()
        assert node.GetNodeReference(role) is volume
        np.testing.assert_array_equal(
            read_back(node, mrml.grid_of(volume)), boxes(mrml.grid_of(volume))
        )
        assert outcome.transform.GetNodeReference(MAP_ROLE + kind) is node
    shown = {k: n.GetDisplayNode().GetVisibility() for k, n in outcome.segmentations.items()}
    assert shown == {"segmentation": 1, "moving_segmentation": 0}
    assert outcome.with_moving == [outcome.segmentations["moving_segmentation"]]
    # The two show a label in the same color.
    colors = [n.GetSegmentation().GetSegment("Label_17").GetColor()
              for n in outcome.segmentations.values()]  # fmt: skip
    assert colors[0] == colors[1]


def test_in_the_folder_of_the_volume(scene, pair):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Study")
    hierarchy.CreateItem(folder, pair[1])
    outcome = place(scene, RegistrationRequest(*pair), result(pair), Wanted())
    item = hierarchy.GetItemByDataNode(outcome.segmentations["moving_segmentation"])
    assert hierarchy.GetItemParent(item) == folder


def test_the_next_result_takes_the_same_nodes(scene, pair):
    request = RegistrationRequest(*pair)
    first = place(scene, request, result(pair), Wanted())
    nodes = dict(first.segmentations)
    nodes["segmentation"].SetName("Mine")
    nodes["segmentation"].GetDisplayNode().SetOpacity(0.3)
    nodes["moving_segmentation"].GetDisplayNode().SetVisibility(True)
    before = ids(scene)
    wanted = Wanted(moved_node=first.moved, transform_node=first.transform)
    second = place(scene, request, result(pair, 5, 53), wanted)
    assert second.segmentations == nodes and ids(scene) == before
    node = nodes["segmentation"]
    assert node.GetName() == "Mine" and node.GetDisplayNode().GetOpacity() == 0.3
    assert nodes["moving_segmentation"].GetDisplayNode().GetVisibility() == 1
    assert list(mrml.segment_names(node)) == ["Label_5", "Label_53"]
    grid = mrml.grid_of(pair[0])
    np.testing.assert_array_equal(read_back(node, grid), boxes(grid, 5, 53))
    assert node.GetModifiedSinceRead()
    # A result without segmentations lets go of them, as of other maps.
    third = result(pair)
    for name in ("segmentation", "moving_segmentation"):
        del third.arrays[f"extra_{name}"]
    outcome = place(scene, request, third, wanted)
    assert outcome.segmentations == {}
    assert outcome.transform.GetNodeReference(MAP_ROLE + "segmentation") is None
    assert node.GetScene() is scene


def test_a_volume_of_that_name_does_not_become_a_segmentation(scene, pair):
    grid = mrml.grid_of(pair[0])
    request = RegistrationRequest(*pair)
    soft = result(pair, extra_segmentation=(boxes(grid).astype(np.float32), grid))
    first = place(scene, request, soft, Wanted())
    volume = first.maps["segmentation"]
    assert volume.IsA("vtkMRMLScalarVolumeNode")
    assert volume.GetParentTransformNode() is pair[0].GetParentTransformNode()
    second = place(scene, request, result(pair), Wanted(transform_node=first.transform))
    assert second.segmentations["segmentation"] is not volume and volume.GetScene() is scene
    role = MAP_ROLE + "segmentation"
    assert second.transform.GetNodeReference(role) is second.segmentations["segmentation"]


@pytest.mark.parametrize("how", ["fails", "is closed"])
def test_a_failed_run_gives_the_old_segments_back(scene, pair, how):
    request = RegistrationRequest(*pair)
    grid = mrml.grid_of(pair[0])
    ones = np.ones(grid.shape, np.float32)
    first = place(scene, request, result(pair, extra_heat=(ones, grid)), Wanted())
    nodes, before = dict(first.segmentations), ids(scene)
    moving = nodes["moving_segmentation"]
    above, heat = moving.GetTransformNodeID(), first.maps["heat"].GetImageData()
    pair[1].SetAndObserveTransformNodeID(first.transform.GetID())

    def refuse(*_):
        raise RuntimeError("no map today")

    more = {"extra_heat": (2 * ones, grid), "extra_new": (boxes(grid), grid)}
    if how == "fails":
        more["extra_error_mm"] = (ones, grid)
    steps = placing(
        scene, request, result(pair, 5, 6, **more), Wanted(transform_node=first.transform), refuse
    )
    if how == "fails":
        with pytest.raises(RuntimeError, match="no map today"):
            list(steps)
    else:
        for _ in range(6):
            next(steps)
        assert list(mrml.segment_names(nodes["segmentation"])) == ["Label_5", "Label_6"]
        steps.close()
    assert ids(scene) == before
    for kind, volume in zip(("segmentation", "moving_segmentation"), pair):
        own = mrml.grid_of(volume)
        np.testing.assert_array_equal(read_back(nodes[kind], own), boxes(own))
        assert first.transform.GetNodeReference(MAP_ROLE + kind) is nodes[kind]
    assert moving.GetTransformNodeID() == above
    assert first.maps["heat"].GetImageData() is heat
    assert first.transform.GetNodeReference(MAP_ROLE + "new") is None


def test_an_empty_label_map_is_an_empty_segmentation(scene, tools):
    grid = tools.make_grid("ras")
    full = add_segmentation(scene, "S", boxes(grid), grid)
    empty = add_segmentation(scene, "E", np.zeros(grid.shape, np.uint8), grid)
    assert mrml.segment_names(empty) == {}
    kept = replace_segmentation(scene, empty, full)
    assert kept is full and mrml.segment_names(full) == {}


def test_what_is_no_label_map_is_refused(scene, tools):
    grid = tools.make_grid("ras")
    before = ids(scene)
    with pytest.raises(GeometryError, match="shape"):
        add_segmentation(scene, "S", boxes(grid)[1:], grid)
    for wrong in (boxes(grid).astype(np.float32), -boxes(grid)):
        with pytest.raises(InputError, match="whole numbers from 0 on"):
            add_segmentation(scene, "S", wrong, grid)
    assert ids(scene) == before
    assert is_label_array(boxes(grid)) and not is_label_array(np.zeros((3, 4, 5)))
    assert not is_label_array(np.zeros((2, 3, 4, 5), int))


def test_a_label_map_of_the_scene_names_its_numbers(scene, pair, anatomy):
    grid = mrml.grid_of(pair[0])
    node = mrml.add_volume(scene, "Labels", boxes(grid), grid, label=True)
    node.GetDisplayNode().SetAndObserveColorNodeID(anatomy.GetID())
    assert structure_names(node, [1, 17]) == {}, "a table of Slicer's says nothing of it"
    table = color_table(scene, ["", *(f"structure {n}" for n in range(1, 40))])
    node.GetDisplayNode().SetAndObserveColorNodeID(table.GetID())
    assert structure_names(node, [0, 17, 53]) == {17: "structure 17"}
    assert structure_names(None, [17]) == {}
    request = RegistrationRequest(*pair, moving_labels=node)
    outcome = place(scene, request, result(pair), Wanted())
    for segmentation in outcome.segmentations.values():
        assert list(mrml.segment_names(segmentation).values()) == ["structure 17", "Label 53"]


def test_a_segmentation_of_the_scene_names_numbers_that_mean_something(scene, pair):
    grid = mrml.grid_of(pair[0])
    imported = add_segmentation(scene, "I", boxes(grid), grid, names={17: "hippocampus"})
    assert structure_names(imported, [17, 53, 4]) == {17: "hippocampus", 53: "Label 53"}
    drawn = add_segmentation(scene, "D", boxes(grid, 1, 2), grid, names={1: "tumor", 2: "edema"})
    assert structure_names(drawn, [1, 2]) == {}, "drawn segments are numbered in their order"


def test_names_of_the_model_come_first(scene, pair):
    grid = mrml.grid_of(pair[0])
    imported = add_segmentation(scene, "I", boxes(grid), grid, names={17: "old", 53: "other"})
    loaded = result(pair)
    loaded.event.data["provenance"]["learned"] = {
        "affine": None,
        "deepatlas": {"model": {"structure_names": {"17": "left hippocampus"}}},
    }
    request = RegistrationRequest(*pair, fixed_labels=imported)
    outcome = place(scene, request, loaded, Wanted())
    names = mrml.segment_names(outcome.segmentations["segmentation"])
    assert names == {"Label_17": "left hippocampus", "Label_53": "other"}


def test_files_of_the_worker_keep_labels_apart_from_maps(scene, pair, tmp_path):
    grid = mrml.grid_of(pair[0])
    rows = tuple(tuple(row) for row in grid.voxel_to_ras.tolist())
    arrays = {"moved": np.zeros(grid.shape, np.float32), "extra_segmentation": boxes(grid),
              "extra_probability": np.ones(grid.shape, np.float32)}  # fmt: skip
    files = {}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        files[name] = ArrayFile(f"{name}.npy", rows, str(array.dtype))
    event = JobEvent("done", "job", arrays=files,
                     transforms={"transform": TransformFile(), "inverse": TransformFile()})  # fmt: skip
    request = RegistrationRequest(*pair)
    outcome = place(scene, request, load(event, tmp_path), Wanted(table=False))
    assert set(outcome.segmentations) == {"segmentation"}
    assert set(outcome.maps) == {"probability"}


def test_a_saved_scene_keeps_segments_and_references(scene, pair, tmp_path):
    outcome = place(scene, RegistrationRequest(*pair), result(pair), Wanted())
    name, transform = outcome.segmentations["segmentation"].GetName(), outcome.transform.GetName()
    opened = mrml.open_scene(mrml.save_scene(scene, tmp_path))
    node = opened.GetFirstNodeByName(name)
    assert mrml.segment_names(node) == {"Label_17": "Label 17", "Label_53": "Label 53"}
    grid = mrml.grid_of(pair[0])
    np.testing.assert_array_equal(read_back(node, grid), boxes(grid))
    held = opened.GetFirstNodeByName(transform)
    assert held.GetNodeReference(MAP_ROLE + "segmentation") is node
    opened.Clear(True)


def test_from_a_model_by_the_worker_to_segmentations(scene, pair, tmp_path):
    """A network of random weights names voxels at random, but by the labels of its training."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    from DeepRegLib import registry
    from DeepRegLib.client import WorkerProcess
    from DeepRegLib.job import private_folder
    from DeepRegLib.models import ModelCard
    from DeepRegLib.networks.model_file import save_model

    tiny = {
        "structures": (4, 17), "encoder": (4, 4), "decoder": (4,),
        "segmentation_encoder": (4, 4, 4, 4), "segmentation_decoder": (4, 4),
    }  # fmt: skip
    system = registry.create("deepatlas", **tiny)
    parameters = registry.spec("deepatlas").parameters
    values = {p.name: system.values[p.name] for p in parameters if p.training}
    torch.manual_seed(0)
    card = ModelCard("tiny", "deepatlas", values, 3.0, (16, 16, 16))
    save_model(tmp_path / "tiny.safetensors", system.build(), card)
    request = RegistrationRequest(*pair, "deepatlas", device="cpu", settings={"model": "tiny"})
    environment = {"OMP_NUM_THREADS": "1", "DEEPREG_MODELS": str(tmp_path)}
    with private_folder() as folder, WorkerProcess(environment=environment) as worker:
        worker.submit(collect(request).save(folder))
        outcome = place(scene, request, load(worker.wait(120), folder), Wanted())
    assert set(outcome.segmentations) == {"segmentation", "moving_segmentation"}
    found = set()
    for kind, volume in (("segmentation", pair[0]), ("moving_segmentation", pair[1])):
        node = outcome.segmentations[kind]
        assert node.GetParentTransformNode() is volume.GetParentTransformNode()
        found |= set(np.unique(read_back(node, mrml.grid_of(volume))))
    assert found <= {0, 4, 17} and found - {0}
