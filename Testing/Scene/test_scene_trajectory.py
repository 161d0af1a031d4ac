"""The steps of a registration as a sequence: that it plays, stays with its nodes, and is saved."""

import numpy as np
import pytest
import slicer
import vtk

from DeepRegLib.bridge import mrml, trajectory
from DeepRegLib.bridge.outcome import Loaded, Wanted, place, placing
from DeepRegLib.bridge.request import RegistrationRequest
from DeepRegLib.bridge.scene import open_scene, save_scene
from DeepRegLib.bridge.trajectory import (
    STEPS_ROLE,
    add_walker,
    browser_of,
    proxy_of,
    step_name,
    steps_of,
)
from DeepRegLib.bridge.transforms import warp_content
from DeepRegLib.bridge.vtk_arrays import from_vtk_matrix
from DeepRegLib.job import JobEvent


def told(count=12, turn=0.02, key="rl_rigid"):
    """What a registration says of its steps: each turns and shifts a little more."""
    matrices = []
    for n in range(count):
        c, s = np.cos(turn * n), np.sin(turn * n)
        matrix = np.eye(4)
        matrix[:2, :2], matrix[:3, 3] = [[c, -s], [s, c]], (0.5 * n, -0.3 * n, 0.2 * n)
        matrices.append(matrix.tolist())
    names = ["start", *["R+"] * (count - 3), "turn S-", "fine: mean"]
    values = {"trajectory": {"frames": names, "transforms_ras": matrices}}
    return {"learned": {key: {"model": None, "values": values}}}


@pytest.fixture
def pair(scene, tools):
    fixed_grid = tools.make_grid("oblique")
    moving_grid = tools.make_grid("left", (20, 22, 25), (2.0, 1.7, 1.2))
    fixed = mrml.add_volume(scene, "Fixed", tools.smooth_array(fixed_grid), fixed_grid)
    moving = mrml.add_volume(scene, "Moving", tools.smooth_array(moving_grid), moving_grid)
    return fixed, moving


@pytest.fixture
def logic(scene):
    """What the module Sequences does in Slicer: proxies follow their browsers."""
    made = slicer.vtkSlicerSequencesLogic()
    made.SetMRMLScene(scene)
    yield made
    made.SetMRMLScene(None)


def loaded(pair, provenance, extra=()):
    grid = mrml.grid_of(pair[0])
    array = np.zeros(grid.shape, np.float32)
    steps = steps_of(provenance)
    matrix = steps[-1][1] if steps else np.eye(4)
    return Loaded(
        JobEvent("done", "job", data={"quality": {"verdict": "green"}, "provenance": provenance}),
        {"moved": (array + 7, grid), **dict(extra)},
        {"transform": warp_content(matrix, None, None),
         "inverse": warp_content(np.linalg.inv(matrix), None, None)},
    )  # fmt: skip


def matrix_of(node):
    matrix = vtk.vtkMatrix4x4()
    node.GetMatrixTransformFromParent(matrix)
    return from_vtk_matrix(matrix)


def steps_in(browser):
    sequence = browser.GetMasterSequenceNode()
    nodes = [sequence.GetNthDataNode(n) for n in range(sequence.GetNumberOfDataNodes())]
    return list(zip(trajectory._names(sequence), map(matrix_of, nodes)))


def same_steps(found, wanted):
    return len(found) == len(wanted) and all(
        n == m and np.allclose(a, b, atol=1e-12) for (n, a), (m, b) in zip(found, wanted)
    )


def ids(scene):
    return [scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())]


def test_steps_become_a_sequence_with_a_proxy(pair, scene, logic):
    outcome = place(scene, RegistrationRequest(*pair), loaded(pair, told()), Wanted())
    browser, wanted = outcome.steps, steps_of(told())
    assert browser_of(outcome.transform) is browser and outcome.remarks == []
    # Twelve steps: the tenth comes after the ninth, not after the first.
    assert same_steps(steps_in(browser), wanted) and len(wanted) == 12
    proxy = proxy_of(browser)
    assert proxy.GetName() == "Moving to Fixed step by step"
    assert browser.GetSelectedItemNumber() == 11 and step_name(browser) == "fine: mean"
    np.testing.assert_allclose(matrix_of(proxy), matrix_of(outcome.transform), atol=1e-12)
    assert not browser.GetPlaybackActive() and not browser.GetPlaybackLooped()
    assert [proxy.GetNodeReference(r) for r in trajectory._roles(proxy)] == list(pair)
    # Neither volume was put under it.
    assert all(volume.GetTransformNodeID() is None for volume in pair)


def test_the_proxy_follows_the_browser(pair, scene, logic):
    browser = place(scene, RegistrationRequest(*pair), loaded(pair, told()), Wanted()).steps
    proxy, name = proxy_of(browser), proxy_of(browser).GetName()
    walker = add_walker(scene, pair[1], proxy)
    for number in (0, 10, 3):
        browser.SetSelectedItemNumber(number)
        wanted = steps_of(told())[number][1]
        np.testing.assert_allclose(matrix_of(proxy), wanted, atol=1e-12)
        to_world = vtk.vtkMatrix4x4()
        walker.GetParentTransformNode().GetMatrixTransformToWorld(to_world)
        np.testing.assert_allclose(from_vtk_matrix(to_world), np.linalg.inv(wanted), atol=1e-9)
    assert proxy_of(browser) is proxy and proxy.GetName() == name
    # What hangs under the proxy plays; the steps themselves stay as they were.
    proxy.SetMatrixTransformFromParent(vtk.vtkMatrix4x4())
    assert same_steps(steps_in(browser), steps_of(told()))


def test_playing_ends(pair, scene, logic):
    browser = place(scene, RegistrationRequest(*pair), loaded(pair, told(5)), Wanted()).steps
    browser.SelectFirstItem()
    browser.SetPlaybackActive(True)
    seen = []
    for _ in range(5):
        seen.append(browser.GetSelectedItemNumber())
        browser.SelectNextItem(1)
    assert seen == [0, 1, 2, 3, 4] and not browser.GetPlaybackActive()


def test_a_walker_shares_the_voxels_and_is_not_saved(pair, scene, linear_parent, tools):
    pair[0].SetAndObserveTransformNodeID(linear_parent(tools.example_matrix()).GetID())
    browser = place(scene, RegistrationRequest(*pair), loaded(pair, told()), Wanted()).steps
    proxy = proxy_of(browser)
    assert proxy.GetParentTransformNode() is pair[0].GetParentTransformNode()
    pair[1].CreateDefaultDisplayNodes()
    pair[1].GetDisplayNode().SetAutoWindowLevel(False)
    pair[1].GetDisplayNode().SetWindowLevel(33.0, 44.0)
    walker = add_walker(scene, pair[1], proxy)
    assert walker.GetImageData() is pair[1].GetImageData()
    assert mrml.grid_of(walker).matches(mrml.grid_of(pair[1]))
    assert walker.GetParentTransformNode() is proxy and walker.GetHideFromEditors()
    assert not walker.GetSaveWithScene() and walker.GetDisplayNode().GetWindow() == 33.0


def test_a_second_run_takes_the_same_nodes(pair, scene, logic):
    first = place(scene, RegistrationRequest(*pair), loaded(pair, told()), Wanted())
    before, proxy = ids(scene), proxy_of(first.steps)
    wanted = Wanted(moved_node=first.moved, transform_node=first.transform)
    first.steps.SetPlaybackActive(True)
    new = told(7, 0.05)
    second = place(scene, RegistrationRequest(*pair), loaded(pair, new), wanted)
    assert second.steps is first.steps and ids(scene) == before
    assert proxy_of(second.steps) is proxy and not second.steps.GetPlaybackActive()
    assert same_steps(steps_in(second.steps), steps_of(new))
    np.testing.assert_allclose(matrix_of(proxy), steps_of(new)[-1][1], atol=1e-12)


def test_a_result_without_steps_lets_go_of_them(pair, scene):
    first = place(scene, RegistrationRequest(*pair), loaded(pair, told()), Wanted())
    wanted = Wanted(moved_node=first.moved, transform_node=first.transform)
    second = place(scene, RegistrationRequest(*pair), loaded(pair, {}), wanted)
    assert second.steps is None and browser_of(second.transform) is None
    assert first.steps.GetScene() is scene


@pytest.mark.parametrize("part", ["sequence", "proxy", "browser"])
def test_a_deleted_part_is_made_anew(pair, scene, logic, part):
    first = place(scene, RegistrationRequest(*pair), loaded(pair, told()), Wanted())
    parts = {"browser": first.steps, "proxy": proxy_of(first.steps),
             "sequence": first.steps.GetMasterSequenceNode()}  # fmt: skip
    scene.RemoveNode(parts[part])
    # Slicer itself replaces a proxy.
    assert part == "proxy" or browser_of(first.transform) is None
    wanted = Wanted(moved_node=first.moved, transform_node=first.transform)
    second = place(scene, RegistrationRequest(*pair), loaded(pair, told(4)), wanted)
    assert same_steps(steps_in(second.steps), steps_of(told(4)))


@pytest.mark.parametrize("had", ["steps", "none", "nothing at all"])
def test_half_a_result_leaves_the_steps_of_before(pair, scene, logic, had):
    request, wanted = RegistrationRequest(*pair), Wanted()
    if had != "nothing at all":
        before = told() if had == "steps" else {}
        first = place(scene, request, loaded(pair, before), Wanted())
        wanted = Wanted(moved_node=first.moved, transform_node=first.transform)
        if had == "steps":
            first.steps.SetSelectedItemNumber(4)
    nodes = ids(scene)
    steps = placing(scene, request, loaded(pair, told(6)), wanted)
    while not any(isBrowser(scene, id_) and id_ not in nodes for id_ in ids(scene)):
        next(steps)
        if had == "steps" and len(steps_in(first.steps)) == 6:
            break
    steps.close()
    assert ids(scene) == nodes
    if had == "steps":
        assert browser_of(first.transform) is first.steps
        assert same_steps(steps_in(first.steps), steps_of(told()))
        assert first.steps.GetSelectedItemNumber() == 4
        proxy = proxy_of(first.steps)
        np.testing.assert_allclose(matrix_of(proxy), steps_of(told())[4][1], atol=1e-12)
    elif had == "none":
        assert first.transform.GetNodeReferenceID(STEPS_ROLE) is None


def isBrowser(scene, id_):
    return scene.GetNodeByID(id_).IsA("vtkMRMLSequenceBrowserNode")


def test_without_the_module_sequences_the_result_comes_all_the_same(pair, scene, monkeypatch):
    monkeypatch.delattr(slicer, "vtkMRMLSequenceBrowserNode")
    outcome = place(scene, RegistrationRequest(*pair), loaded(pair, told()), Wanted())
    assert outcome.steps is None and outcome.moved is not None
    assert "no module Sequences" in outcome.remarks[0]
    assert browser_of(outcome.transform) is None


def test_steps_are_saved_with_the_scene(pair, scene, tmp_path):
    place(scene, RegistrationRequest(*pair), loaded(pair, told()), Wanted())
    again = open_scene(save_scene(scene, tmp_path))
    transform = next(
        node for node in again.GetNodesByClass("vtkMRMLTransformNode")
        if node.GetNodeReferenceID(STEPS_ROLE)
    )  # fmt: skip
    browser = browser_of(transform)
    found = steps_in(browser)
    assert len(found) == 12 and browser.GetSelectedItemNumber() == 11
    for (name, one), (wanted, other) in zip(found, steps_of(told())):
        assert name == wanted
        # The file has six digits.
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert step_name(browser) == "fine: mean"
    assert not browser.GetPlaybackLooped() and proxy_of(browser) is not None


@pytest.mark.parametrize(
    "wrong",
    [{}, {"learned": None}, {"learned": {"a": None}}, {"learned": {"a": {"values": {}}}},
     {"learned": {"a": {"values": {"trajectory": {"frames": ["start"]}}}}},
     {"learned": {"a": {"values": {"trajectory": [1.0, 2.0]}}}}],
)  # fmt: skip
def test_what_is_no_trajectory_gives_no_steps(wrong):
    assert steps_of(wrong) == []


def test_the_last_stage_with_steps_counts():
    both = {"learned": {**told(4)["learned"], **told(6, key="rl_rigid (2)")["learned"]}}
    assert len(steps_of(both)) == 6
