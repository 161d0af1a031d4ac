"""Populations and carried deformations from nodes: where transforms and volumes lie."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs the package slicer-core (the MRML library)")

import torch
import vtk
from bridge_support import exhausted, worked

from DeepRegLib import models
from DeepRegLib.algorithms import cvae
from DeepRegLib.bridge import modes as kept
from DeepRegLib.bridge import mrml
from DeepRegLib.bridge import population as crowd
from DeepRegLib.bridge import transport as carry
from DeepRegLib.bridge.frames import matrix_between
from DeepRegLib.bridge.vtk_arrays import map_points
from DeepRegLib.errors import InputError
from DeepRegLib.geometry.grid import transform_points
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.models import ModelCard
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.population_latent import LatentModel
from DeepRegLib.registration.base import Image, ImagePair

WEIGHTS = (-1.2, 0.3, 1.5, -0.4, 0.9)


def voxels(grid):
    return grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))


def bump(points, size):
    """A motion that is at rest at the rim of the fixed volume."""
    near = np.exp(-((points - [4.0, -7.0, 11.0]) ** 2).sum(-1, keepdims=True) / 60.0)
    return size * near * np.array([1.0, -0.6, 0.8])


@pytest.fixture
def grid(tools):
    return tools.make_grid("oblique", (22, 24, 28), (2.5, 1.9, 1.6))


@pytest.fixture
def fixed(scene, grid, tools):
    return mrml.add_volume(scene, "Atlas", tools.smooth_array(grid), grid)


@pytest.fixture
def people(scene, fixed, grid, tools):
    """Transforms of a mean and one direction, each with a linear part of its own."""
    nodes = []
    for number, weight in enumerate(WEIGHTS):
        matrix = tools.rotation(3 * number, -4, 5)
        matrix[:3, 3] = (number, 2.0, -3.0)
        u = np.moveaxis(bump(voxels(grid), 1.0 + 1.5 * weight), -1, 0)
        moving = mrml.add_volume(scene, f"Person {number}", tools.smooth_array(grid), grid)
        nodes.append(mrml.add_warp(scene, f"T{number}", matrix, u, grid, fixed=fixed, moving=moving,
                                   fade_voxel=0))  # fmt: skip
    return nodes


def examined(scene, fixed, transforms, **more):
    """Takes a population all the way: nodes, files, the worker's job, files, nodes."""
    request = crowd.PopulationRequest(fixed, transforms, device="cpu", **more)
    loaded = worked(crowd.collecting_population(request), crowd.load_population)
    return crowd.place_population(scene, request, *loaded)


def to_world(node):
    general = vtk.vtkGeneralTransform()
    node.GetTransformToWorld(general)
    return general


def ids(scene):
    return [scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())]


def test_the_transform_makes_the_subjects_of_the_fixed_volume(scene, fixed, people, linear_parent,
                                                              tools):  # fmt: skip
    """At the coefficients of a subject it moves points as that subject's deformation does."""
    above = linear_parent(tools.example_matrix())
    fixed.SetAndObserveTransformNodeID(above.GetID())
    for node in people:
        node.SetAndObserveTransformNodeID(above.GetID())
    found = examined(scene, fixed, people)
    assert found.transform.GetName() == "Atlas mode"
    assert found.transform.GetParentTransformNode() is above
    assert found.shown.GetName() == "Atlas along modes"
    assert found.shown.GetParentTransformNode() is found.transform
    assert fixed.GetParentTransformNode() is above, "the fixed volume itself stays"
    np.testing.assert_array_equal(mrml.volume_array(found.shown), mrml.volume_array(fixed))
    assert found.report["modes"] == 1 and found.report["variance_explained"][0] > 0.999
    rows = {row["name"]: row for row in found.report["subjects"]}
    assert sorted(rows) == [f"Person {n}" for n in range(5)]
    local = np.random.default_rng(1).uniform(-9, 9, (60, 3)) + [4.0, -7.0, 11.0]
    for number, weight in enumerate(WEIGHTS):
        found.move(*rows[f"Person {number}"]["coefficients"])
        general = to_world(found.transform)
        moved = map_points(general, local)
        wanted = transform_points(tools.example_matrix(), local + bump(local, 1.0 + 1.5 * weight))
        assert np.linalg.norm(moved - wanted, axis=1).max() < 0.25
        back = map_points(general.GetInverse(), moved)
        np.testing.assert_allclose(back, local, atol=0.02)
    found.move()
    mean = map_points(to_world(found.transform), local)
    wanted = transform_points(tools.example_matrix(), local + bump(local, 1.0 + 1.5 * 0.22))
    assert np.linalg.norm(mean - wanted, axis=1).max() < 0.25


def test_moving_tells_those_who_look(scene, fixed, people):
    found = examined(scene, fixed, people)
    heard = []
    found.transform.AddObserver(
        slicer.vtkMRMLTransformableNode.TransformModifiedEvent, lambda *_: heard.append(1)
    )
    content = found.transform.GetTransformToParent()
    place = (4.0, -7.0, 11.0)
    found.move(2.0)
    assert heard and found.transform.GetTransformToParent() is content
    there = to_world(found.transform).TransformPoint(place)
    found.move(-2.0)
    here = to_world(found.transform).TransformPoint(place)
    assert np.linalg.norm(np.subtract(there, here)) > 3.0
    # Somebody put something else into the node: the next move takes it back.
    found.transform.SetAndObserveTransformToParent(vtk.vtkTransform())
    found.move(2.0)
    np.testing.assert_allclose(to_world(found.transform).TransformPoint(place), there, atol=1e-6)


def test_transforms_of_any_kind_and_their_linear_parts(scene, fixed, people, tools):
    """A chain counts as the grid that says the same, and linear parts only if they are to."""
    plain = examined(scene, fixed, people)
    u, grid = mrml.displacement_of(people[0])
    matrix = tools.rotation(0, -4, 5)
    matrix[:3, 3] = (0.0, 2.0, -3.0)
    rest = transform_points(np.linalg.inv(matrix), voxels(grid) + np.moveaxis(u, 0, -1))
    deformation = np.moveaxis(rest - voxels(grid), -1, 0)
    chain = mrml.add_warp(scene, "Chain", matrix, deformation, grid, "chain", fade_voxel=0)
    chained = examined(scene, fixed, [chain, *people[1:]])
    assert chained.report["size_mm"] == pytest.approx(plain.report["size_mm"], rel=1e-2)
    assert chained.transform is plain.transform and chained.shown is plain.shown, "used again"
    whole = examined(scene, fixed, people, linear=True)
    assert whole.report["size_mm"] > 2 * plain.report["size_mm"]


def test_the_population_is_told_of_and_saved(scene, fixed, people, tmp_path):
    count = len(ids(scene))
    found = examined(scene, fixed, people)
    assert crowd.population_report(found.transform) == {**found.report}
    assert crowd.population_report(people[0]) is None and crowd.population_report(None) is None
    new = [i for i in ids(scene)[count:] if "Display" not in i and "Hierarchy" not in i]
    hidden = [node.GetID() for node in kept.mode_nodes(found.transform)]
    assert new == [found.transform.GetID(), found.shown.GetID(), *hidden] and len(hidden) == 2
    found.move(1.0)
    # A voxel of the fields: Slicer interpolates what it loads by another rule between them.
    place = mrml.grid_of(fixed).to_ras((11, 12, 14))
    there = to_world(found.transform).TransformPoint(place)
    again = mrml.open_scene(mrml.save_scene(scene, tmp_path / "saved"))
    node = again.GetFirstNodeByName("Atlas mode")
    assert crowd.population_report(node)["subjects"] == found.report["subjects"]
    assert node.GetNodeReference(crowd.SHOWN_ROLE).GetName() == "Atlas along modes"
    np.testing.assert_allclose(to_world(node).TransformPoint(place), there, atol=1e-2)


def test_the_modes_are_kept_in_the_scene(scene, fixed, people, tmp_path):
    """A scene that is opened again moves along the modes as before, from where it was left."""
    earlier = examined(scene, fixed, people, linear=True, modes=3)
    replaced = kept.mode_nodes(earlier.transform)
    found = examined(scene, fixed, people, linear=True, modes=2)
    assert found.modes.count == 2 and len(replaced) == 4
    assert all(node.GetScene() is None for node in replaced), "those of before are gone"
    nodes = kept.mode_nodes(found.transform)
    assert len(nodes) == 3 and all(node.GetHideFromEditors() for node in nodes)
    local = mrml.grid_of(fixed).to_ras([[11, 12, 14], [9, 13, 12], [13, 10, 15]])
    places = (0.7, -1.4), (-2.0, 0.3)
    there = []
    for place in reversed(places):
        found.move(*place)
        there.insert(0, map_points(to_world(found.transform), local))
    again = mrml.open_scene(mrml.save_scene(scene, tmp_path / "saved"))
    node = again.GetFirstNodeByName(found.transform.GetName())
    modes = kept.kept_modes(node)
    np.testing.assert_allclose(modes.place(node), places[0], atol=1e-3)
    for place, points in zip(places, there):
        modes.move(node, place)
        np.testing.assert_allclose(map_points(to_world(node), local), points, atol=1e-3)
        np.testing.assert_allclose(modes.place(node), place, atol=1e-4)
    node.SetAndObserveTransformToParent(vtk.vtkTransform())
    assert modes.place(node) == [0.0, 0.0], "somebody put something else into the node"


def test_modes_of_which_one_is_gone_are_not_there(scene, fixed, people):
    found = examined(scene, fixed, people)
    mean, mode = kept.mode_nodes(found.transform)
    assert kept.kept_modes(found.transform).count == 1
    assert kept.kept_modes(None) is None and kept.kept_modes(people[0]) is None
    mode.SetAndObserveTransformFromParent(vtk.vtkTransform())
    assert kept.kept_modes(found.transform) is None, "it holds no field"
    scene.RemoveNode(mode)
    assert kept.kept_modes(found.transform) is None and kept.mode_nodes(found.transform) == [mean]
    assert examined(scene, fixed, people).transform is found.transform
    assert kept.kept_modes(found.transform).count == 1 and mean.GetScene() is None


def test_modes_go_when_their_transform_is_gone(scene, fixed, people, tmp_path):
    found = examined(scene, fixed, people)
    old, count = kept.mode_nodes(found.transform), len(ids(scene))
    other = mrml.add_volume(scene, "Other", mrml.volume_array(fixed), mrml.grid_of(fixed))
    again = examined(scene, other, people)
    assert len(ids(scene)) > count + 4
    assert all(node.GetScene() is scene for node in old), "each population has its own"
    scene.RemoveNode(found.transform)
    assert examined(scene, other, people).transform is again.transform
    assert all(node.GetScene() is None for node in old)
    opened = mrml.open_scene(mrml.save_scene(scene, tmp_path / "saved"))
    kept.remove_orphans(opened)
    node = opened.GetFirstNodeByName(again.transform.GetName())
    assert kept.kept_modes(node).count == 1


def test_what_does_not_fit_is_said_and_changes_nothing(scene, fixed, people, monkeypatch):
    before = ids(scene)
    with pytest.raises(InputError, match="at least three"):
        examined(scene, fixed, people[:2])
    with pytest.raises(InputError, match="common fixed volume"):
        exhausted(crowd.collecting_population(crowd.PopulationRequest(None, people)))
    other = mrml.add_volume(scene, "Other", mrml.volume_array(fixed), mrml.grid_of(fixed))
    said = [f.text for f in crowd.population_findings(other, people[:3])]
    assert "at least four" in said[0] and "'Atlas', not to 'Other'" in said[1] and len(said) == 4
    scene.RemoveNode(other)
    first = examined(scene, fixed, people)
    first.move(1.0)
    modes = kept.mode_nodes(first.transform)
    held = ids(scene), first.transform.GetTransformToParent()

    def fail(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr(crowd.Modes, "move", fail)
    with pytest.raises(RuntimeError, match="no room"):
        examined(scene, fixed, people[1:])
    assert (ids(scene), first.transform.GetTransformToParent()) == held
    assert crowd.population_report(first.transform)["fields"] == 5
    assert kept.mode_nodes(first.transform) == modes
    assert set(before) <= set(held[0])


# A deformation that is carried to another subject -------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of models with one that moves voxels and was never trained."""
    where = tmp_path / "models"
    where.mkdir()
    monkeypatch.setenv("DEEPREG_MODELS", str(where))
    monkeypatch.setattr(models, "SHIPPED", ())
    small = {"encoder": (4, 8, 4), "decoder": (8, 8), "final": 8, "cells": (3, 3, 3), "latent": 5}
    system = cvae.Algorithm(**cvae.SPEC.values(**small))
    torch.manual_seed(0)
    network = system.build()
    for head in network.decoder.heads:
        torch.nn.init.normal_(head.convolution.weight, 0.0, 0.1)
    values = {p.name: system.values[p.name] for p in cvae.SPEC.parameters if p.training}
    card = ModelCard("small", "cvae", values, 3.0, (16, 16, 16))
    save_model(where / "small.safetensors", network, card)
    return where


@pytest.fixture
def three(scene, fixed, tools, linear_parent):
    """Fixed, moving and subject on unlike grids, aligned on screen by their parents."""
    volumes = [fixed]
    grids = (tools.make_grid("left", (20, 26, 24), (2.4, 1.7, 1.8)),
             tools.make_grid("oblique_left", (26, 20, 22), (1.9, 2.3, 2.0)))  # fmt: skip
    for name, grid, turn in zip(("Earlier", "Other"), grids, ((4, 5, -6), (-5, 8, 10))):
        matrix = tools.rotation(*turn)
        shown = transform_points(matrix, voxels(grid).reshape(-1, 3)).reshape(*grid.shape, 3)
        values = 100 + 50 * np.sin(shown[..., 0] / 3 + 0.5) * np.cos(shown[..., 1] / 3)
        volumes.append(mrml.add_volume(scene, name, values.astype(np.float32), grid))
        volumes[-1].SetAndObserveTransformNodeID(linear_parent(matrix).GetID())
    return volumes


def carried(scene, volumes, **more):
    request = carry.TransportRequest(*volumes, device="cpu", **more)
    return carry.place_transport(scene, request, worked(carry.collecting_transport(request)))


def image_of(node):
    return Image.from_array(mrml.volume_array(node), mrml.grid_of(node))


def test_the_subject_under_the_transform_is_the_deformed_volume(scene, three, folder):
    """Slicer's own resampling of the subject gives the volume that the library made."""
    subject = three[2]
    above = subject.GetParentTransformNode()
    count = len(ids(scene))
    found = carried(scene, three, alignment=carry.ON_SCREEN)
    assert found.transform.GetName() == "Earlier to Atlas carried to Other"
    assert found.volume.GetName() == "Other deformed as Atlas"
    assert found.transform.GetParentTransformNode() is above
    assert found.volume.GetParentTransformNode() is above
    assert mrml.grid_of(found.volume).matches(mrml.grid_of(subject))
    assert subject.GetParentTransformNode() is above
    new = [i for i in ids(scene)[count:] if "Display" not in i and "Hierarchy" not in i]
    assert new == [found.transform.GetID(), found.volume.GetID()]
    deformed, plain = mrml.volume_array(found.volume), mrml.volume_array(subject)
    subject.SetAndObserveTransformNodeID(found.transform.GetID())
    shown = mrml.resampled_array(subject, mrml.grid_of(found.volume), found.volume)
    inner = (slice(3, -3),) * 3
    assert np.abs(plain - deformed)[inner].mean() > 20 * np.abs(shown - deformed)[inner].mean()
    assert found.report["mean_mm"] > 0.3
    # The alignment is that on screen.
    fixed, moving = three[:2]
    latent = LatentModel("small", "cpu")
    start = Transform(matrix_between(fixed, moving))
    code = latent.encode(ImagePair(image_of(fixed), image_of(moving), initial=start))
    assert found.report["code"] == pytest.approx(code, abs=1e-4)


def test_only_the_linear_part_of_a_result_aligns(scene, three, folder, grid):
    """With the moving volume under a deformable result the code is as with its linear part."""
    fixed, moving, _ = three
    plain = carried(scene, three, alignment=carry.ON_SCREEN)
    matrix = matrix_between(fixed, moving)
    u = np.moveaxis(bump(voxels(grid), 3.0), -1, 0)
    result = mrml.add_warp(scene, "Result", matrix, u, grid, fixed=fixed, moving=moving)
    moving.SetAndObserveTransformNodeID(result.GetID())
    bent = carried(scene, three, alignment=carry.ON_SCREEN)
    assert bent.report["code"] == pytest.approx(plain.report["code"], abs=2e-3)


def test_what_cannot_be_carried_changes_nothing(scene, three, folder, grid, monkeypatch):
    fixed, moving, subject = three

    def said(*volumes, alignment="affine"):
        return [f.text for f in carry.transport_findings(*volumes, alignment=alignment)]

    assert said(fixed, moving, subject) == []
    assert said(fixed, moving, subject, alignment=carry.ON_SCREEN) == []
    assert "other subject" in said(fixed, moving, None)[0]
    assert "a volume of another one" in said(fixed, moving, moving)[0]
    assert "choose two different" in said(fixed, fixed, subject)[0]
    empty = slicer.vtkMRMLScalarVolumeNode()
    empty.SetName("Empty")
    assert "is empty" in said(fixed, moving, empty)[0]
    u = np.moveaxis(bump(voxels(grid), 3.0), -1, 0)
    bent = mrml.add_warp(scene, "Bent", np.eye(4), u, grid)
    away = mrml.add_linear_transform(scene, "Away", np.array([[1, 0, 0, 900.0], [0, 1, 0, 0],
                                                             [0, 0, 1, 0], [0, 0, 0, 1]]))  # fmt: skip
    before = ids(scene)
    own = subject.GetTransformNodeID()
    for node, words in ((bent, "non-linear"), (away, "lies 0 %")):
        subject.SetAndObserveTransformNodeID(node.GetID())
        assert any(words in text for text in said(*three, alignment=carry.ON_SCREEN))
        with pytest.raises(InputError, match=words):
            carried(scene, three, alignment=carry.ON_SCREEN)
        assert said(*three) == [], "found now, it does not matter"
    subject.SetAndObserveTransformNodeID(own)

    def fail(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr(carry, "add_moved_volume", fail)
    with pytest.raises(RuntimeError, match="no room"):
        carried(scene, three, alignment=carry.ON_SCREEN)
    assert ids(scene) == before
    assert carry.carried_report(bent) is None and carry.carried_report(None) is None
