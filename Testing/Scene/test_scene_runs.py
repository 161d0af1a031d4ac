"""A registration from nodes to nodes: what is asked for, what comes back, and that nothing is lost."""

import numpy as np
import pytest
import slicer
import vtk

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.console import console_call
from DeepRegLib.bridge.outcome import TABLE_ROLE, Loaded, Wanted, load, place, placing
from DeepRegLib.bridge.request import RegistrationRequest, collect, start_of
from DeepRegLib.bridge.transforms import warp_content
from DeepRegLib.client import WorkerProcess
from DeepRegLib.errors import InputError
from DeepRegLib.job import JobEvent, private_folder

QUALITY = {"verdict": "green", "sentence": "Fine.", "reasons": [], "ncc_after": 0.9}


@pytest.fixture
def pair(scene, tools):
    """Two unlike oblique volumes of the same object, the moving one displaced by a known matrix."""
    fixed_grid = tools.make_grid("oblique")
    moving_grid = tools.make_grid("left", (20, 22, 25), (2.0, 1.7, 1.2))
    fixed = mrml.add_volume(scene, "Fixed", tools.smooth_array(fixed_grid), fixed_grid)
    moving = mrml.add_volume(scene, "Moving", tools.smooth_array(moving_grid), moving_grid)
    return fixed, moving


@pytest.fixture
def loaded(pair, tools):
    """A finished job, as the worker would have left it."""
    fixed, _moving = pair
    grid = mrml.grid_of(fixed)
    warp = tools.smooth_deformation_mm(grid, 1.0)
    array = np.zeros(grid.shape, np.float32)
    return Loaded(
        JobEvent("done", "job", data={"quality": QUALITY, "provenance": {"preset": "fast"}}),
        {"moved": (array + 7, grid), "extra_jacobian": (array + 1, grid)},
        {
            "transform": warp_content(tools.example_matrix(), warp, grid),
            "inverse": warp_content(np.linalg.inv(tools.example_matrix()), None, None),
        },
    )


def ids(scene):
    return [scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())]


def test_a_request_becomes_arrays(pair):
    fixed, moving = pair
    collected = collect(RegistrationRequest(fixed, moving, "rigid"))
    array, grid = collected.arrays["moving"]
    np.testing.assert_array_equal(array, mrml.volume_array(moving))
    assert grid.matches(mrml.grid_of(moving))
    assert collected.start is None
    assert collected.parameters["interpolation"] == "linear"


def test_parents_are_a_start_unless_it_is_switched_off(pair, linear_parent, tools):
    fixed, moving = pair
    moving.SetAndObserveTransformNodeID(linear_parent(tools.example_matrix()).GetID())
    start = start_of(RegistrationRequest(fixed, moving))
    np.testing.assert_allclose(start.linear, np.linalg.inv(tools.example_matrix()), atol=1e-9)
    assert start_of(RegistrationRequest(fixed, moving, start_from_scene=False)) is None


def test_masks_of_label_maps_are_sampled_on_the_image(pair, scene):
    fixed, moving = pair
    grid = mrml.grid_of(fixed)
    half = grid.with_spacing([2 * s for s in grid.spacing_mm])
    mask = np.zeros(half.shape, np.uint8)
    mask[: half.shape[0] // 2] = 3
    node = mrml.add_volume(scene, "Mask", mask, half, label=True)
    array, mask_grid = collect(RegistrationRequest(fixed, moving, fixed_mask=node)).arrays[
        "fixed_mask"
    ]
    assert mask_grid.matches(grid) and set(np.unique(array)) == {0, 1}
    np.testing.assert_allclose(array[:5].mean(), 1.0)
    np.testing.assert_allclose(array[-5:].mean(), 0.0)


def test_unequal_landmark_lists_are_refused(pair, scene):
    fixed, moving = pair
    one = mrml.add_points(scene, "A", [[0, 0, 0], [1, 1, 1]])
    two = mrml.add_points(scene, "B", [[0, 0, 0]])
    with pytest.raises(InputError, match="'A' has 2 points, but 'B' has 1"):
        collect(RegistrationRequest(fixed, moving, fixed_points=one, moving_points=two))


def test_a_result_is_added_with_all_its_parts(pair, loaded, scene):
    fixed, moving = pair
    request = RegistrationRequest(fixed, moving)
    outcome = place(scene, request, loaded, Wanted(inverse=True))
    assert outcome.moved.GetName() == "Moving registered to Fixed"
    assert outcome.transform.GetName() == "Moving to Fixed"
    assert outcome.inverse.GetName() == "Fixed to Moving"
    assert mrml.volume_array(outcome.maps["jacobian"]).max() == 1
    quality, provenance = mrml.card_of(outcome.transform)
    assert quality["ncc_after"] == 0.9
    assert "DeepRegLogic().register(" in provenance["console"]
    assert outcome.transform.GetNodeReference(TABLE_ROLE) is outcome.table


def test_a_second_result_takes_the_same_nodes(pair, loaded, scene):
    fixed, moving = pair
    request = RegistrationRequest(fixed, moving)
    first = place(scene, request, loaded, Wanted(inverse=True))
    before = ids(scene)
    mrml.volume_array(first.moved)
    wanted = Wanted(
        inverse=True, moved_node=first.moved, transform_node=first.transform,
        inverse_node=first.inverse,
    )  # fmt: skip
    second = place(scene, request, loaded, wanted)
    assert second.transform is first.transform and second.moved is first.moved
    assert ids(scene) == before


def test_a_transform_of_another_kind_is_left_alone(pair, loaded, scene, tools):
    fixed, moving = pair
    linear = mrml.add_linear_transform(scene, "Old", tools.example_matrix())
    outcome = place(
        scene, RegistrationRequest(fixed, moving), loaded, Wanted(transform_node=linear)
    )
    assert outcome.transform is not linear
    assert linear.IsLinear()


@pytest.mark.parametrize("how", ["fails", "is closed"])
def test_half_a_result_is_taken_back(pair, loaded, scene, how):
    fixed, moving = pair
    request = RegistrationRequest(fixed, moving)
    first = place(scene, request, loaded, Wanted())
    image, nodes = first.moved.GetImageData(), ids(scene)
    content = first.transform.GetTransformFromParent()
    wanted = Wanted(inverse=True, moved_node=first.moved, transform_node=first.transform)

    def refuse(*_):
        raise RuntimeError("no map today")

    steps = placing(scene, request, loaded, wanted, refuse if how == "fails" else None)
    if how == "fails":
        with pytest.raises(RuntimeError, match="no map today"):
            list(steps)
    else:
        next(steps)
        next(steps)
        steps.close()
    assert ids(scene) == nodes
    assert first.moved.GetImageData() is image
    assert first.transform.GetTransformFromParent() is content


def test_a_deleted_input_is_noticed(pair, loaded, scene):
    fixed, moving = pair
    request = RegistrationRequest(fixed, moving)
    scene.RemoveNode(moving)
    before = ids(scene)
    with pytest.raises(InputError, match="'Moving' was deleted"):
        place(scene, request, loaded, Wanted())
    assert ids(scene) == before


def test_the_transform_above_the_fixed_volume_is_not_overwritten(pair, loaded, scene, tools):
    fixed, moving = pair
    above = mrml.add_linear_transform(scene, "Above", tools.example_matrix())
    fixed.SetAndObserveTransformNodeID(above.GetID())
    with pytest.raises(InputError, match="above the fixed volume"):
        place(scene, RegistrationRequest(fixed, moving), loaded, Wanted(transform_node=above))


def test_an_input_volume_is_not_overwritten(pair, loaded, scene):
    fixed, moving = pair
    with pytest.raises(InputError, match="would overwrite the input volume 'Moving'"):
        place(scene, RegistrationRequest(fixed, moving), loaded, Wanted(moved_node=moving))


def test_the_console_call_says_what_differs(pair, scene):
    fixed, moving = pair
    mask = mrml.add_volume(scene, "It's a mask", np.ones(mrml.grid_of(fixed).shape, np.uint8),
                           mrml.grid_of(fixed), label=True)  # fmt: skip
    request = RegistrationRequest(
        fixed, moving, "rigid+affine", preset="fast", fixed_mask=mask, settings={"rigid.seed": 3}
    )
    text = console_call(request)
    compile(text, "console", "exec")
    assert "algorithm='rigid+affine'" in text and "preset='fast'" in text
    assert 'fixedMask=slicer.util.getNode("It\'s a mask")' in text
    assert "settings={'rigid.seed': 3}" in text and "device" not in text


def test_from_nodes_to_nodes_by_the_worker(scene, linear_parent, tools):
    """The object of one volume lies elsewhere; after the run it lies on the other in the world."""
    fixed_grid = tools.make_grid("oblique", (24, 28, 30), (2.5, 2.0, 2.0))
    moving_grid = tools.make_grid("lps", (26, 30, 28), (2.4, 2.2, 2.0))
    fixed = mrml.add_volume(scene, "F", _blobs(fixed_grid), fixed_grid)
    moving = mrml.add_volume(scene, "M", _blobs(moving_grid), moving_grid)
    shift = np.eye(4)
    shift[:3, 3] = (4.0, -3.0, 2.0)
    moving.SetAndObserveTransformNodeID(linear_parent(shift).GetID())
    fixed.SetAndObserveTransformNodeID(linear_parent(tools.rotation(0, 0, 5)).GetID())
    request = RegistrationRequest(fixed, moving, "rigid", preset="fast", device="cpu")
    with private_folder() as folder, WorkerProcess(environment={"OMP_NUM_THREADS": "1"}) as worker:
        worker.submit(collect(request).save(folder))
        outcome = place(scene, request, load(worker.wait(120), folder), Wanted())
    mrml.apply_transform(outcome.transform, moving)
    spots = _CENTERS
    apart = [mrml.points_between(spots, node, None) for node in (fixed, moving)]
    assert np.linalg.norm(apart[0] - apart[1], axis=1).max() < 0.4
    assert outcome.transform.GetParentTransformNode() is fixed.GetParentTransformNode()


_CENTERS = np.array([[4.0, -7.0, 11.0], [16.0, 2.0, 5.0], [-9.0, -12.0, 22.0], [8.0, -20.0, 0.0]])


def _blobs(grid):
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    value = np.zeros(grid.shape)
    for center, height, width in zip(_CENTERS, (90, 60, 120, 80), (7.0, 5.0, 6.0, 4.0)):
        value += height * np.exp(-((points - center) ** 2).sum(-1) / (2 * width**2))
    return value.astype(np.float32)


def test_linearity_is_asked_without_complaints(scene, tools, pair):
    """Whether transforms between nodes are linear is found without an error in Slicer's log."""
    fixed, moving = pair
    grid = mrml.grid_of(fixed)
    node = mrml.add_grid_transform(scene, "W", tools.smooth_deformation_mm(grid), grid)
    moving.SetAndObserveTransformNodeID(node.GetID())
    heard = []
    for cause in (vtk.vtkCommand.ErrorEvent, vtk.vtkCommand.WarningEvent):
        node.AddObserver(cause, lambda _caller, event: heard.append(event))
    assert mrml.matrix_between(moving, None) is None
    assert mrml.initial_transform(fixed, moving).displacement_ras_mm is not None
    assert heard == []
    assert slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(vtk.vtkGeneralTransform())
