"""A scene that is saved and opened again shows the same, and tells the same of itself."""

from __future__ import annotations

import math

import h5py
import numpy as np
import pytest

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.resample import resampled_array
from DeepRegLib.errors import FileFormatError


def named(scene, name):
    """The node of a name."""
    node = scene.GetFirstNodeByName(name)
    assert node is not None, name
    return node


@pytest.mark.parametrize("layout", ["grid", "chain"])
def test_saved_and_opened_again_is_the_same_picture(scene, tools, tmp_path, layout):
    fixed_grid = tools.make_grid("oblique_left")
    moving_grid = tools.make_grid("lps", (24, 28, 30), (2.0, 2.0, 1.6))
    fixed = mrml.add_volume(scene, "fixed image", tools.smooth_array(fixed_grid), fixed_grid)
    moving = mrml.add_volume(
        scene, "moving", tools.smooth_array(moving_grid, 40).astype(np.int16), moving_grid
    )
    moving.GetDisplayNode().SetAutoWindowLevel(False)
    moving.GetDisplayNode().SetWindowLevel(77, 33)
    labels = (tools.smooth_array(fixed_grid) > 100).astype(np.uint8)
    mrml.add_volume(scene, "labels", labels, fixed_grid, label=True)
    node = mrml.add_warp(
        scene, "result", tools.example_matrix(), tools.smooth_deformation_mm(fixed_grid),
        fixed_grid, layout, fixed, moving,
    )  # fmt: skip
    mrml.apply_transform(node, moving)
    mrml.add_points(scene, "landmarks", [[1.0, 2, 3], [-4, 5, 6]], ["tip", "base"])
    before = resampled_array(moving, fixed_grid, fill=-5)

    path = mrml.save_scene(scene, tmp_path / "saved scene")
    again = mrml.open_scene(path)

    moving, fixed = named(again, "moving"), named(again, "fixed image")
    np.testing.assert_allclose(resampled_array(moving, fixed_grid, fill=-5), before, atol=1)
    changed = resampled_array(moving, fixed_grid, fill=-5) != before
    assert changed.mean() < 0.01  # rounding of int16 where a value is half way
    assert moving.GetDisplayNode().GetWindow() == 77
    back = named(again, "labels")
    assert mrml.is_label_map(back)
    # Slicer may turn axes of a left-handed volume around when it reads it; the place stays.
    np.testing.assert_array_equal(resampled_array(back, fixed_grid), labels)
    assert mrml.volume_array(back).dtype == np.uint8
    points, names = mrml.markup_points(named(again, "landmarks"))
    np.testing.assert_allclose(points, [[1, 2, 3], [-4, 5, 6]], atol=1e-3)
    assert names == ["tip", "base"]
    node = named(again, "result")
    assert node.GetNodeReference(node.GetMovingNodeReferenceRole()) is moving
    assert node.GetNodeReference(node.GetFixedNodeReferenceRole()) is fixed


def test_scene_file_names_no_machine_paths(scene, tools, tmp_path):
    grid = tools.make_grid("ras")
    mrml.add_volume(scene, "a/b: c?", tools.smooth_array(grid), grid)
    mrml.add_volume(scene, "a_b_c", tools.smooth_array(grid), grid)
    path = mrml.save_scene(scene, tmp_path / "out")
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert len(list((path.parent / "data").iterdir())) == 2
    assert (path.parent / "data").is_dir()


def test_slicer_writes_a_displacement_as_float64(scene, tools, tmp_path):
    """Known of Slicer: plan twice the size for the file."""
    grid = tools.make_grid("ras")
    mrml.add_grid_transform(scene, "warp", tools.smooth_deformation_mm(grid), grid)
    path = mrml.save_scene(scene, tmp_path)
    with h5py.File(path.parent / "data" / "warp.h5") as file:
        assert file["TransformGroup/0/TransformParameters"].dtype == np.float64


def test_card_survives_saving(scene, tmp_path):
    node = mrml.add_linear_transform(scene, "result", np.eye(4))
    quality = {
        "verdict": "green", "sentence": 'Looks "right"; 100 % <ok> & fine: é', "folds": np.int64(0),
        "dice": math.nan, "tre": {"mean_mm": np.float32(1.5), "each": np.array([1.0, 2.0])},
    }  # fmt: skip
    provenance = {"algorithm": "rigid+affine+greedy", "python": "a = 'b'\nrun(a)"}
    mrml.attach_card(node, quality, provenance)
    table = mrml.add_quality_table(scene, "quality", quality)
    rows = {
        table.GetCellText(row, 0): table.GetCellText(row, 1)
        for row in range(table.GetNumberOfRows())
    }
    assert rows["tre.mean_mm"] == "1.5"
    assert rows["dice"] == ""
    assert rows["verdict"] == "green"

    again = mrml.open_scene(mrml.save_scene(scene, tmp_path))
    stored, made = mrml.card_of(named(again, "result"))
    assert stored["sentence"] == quality["sentence"]
    assert stored["dice"] is None
    assert stored["tre"] == {"mean_mm": 1.5, "each": [1.0, 2.0]}
    assert made == provenance
    assert named(again, "quality").GetNumberOfRows() == table.GetNumberOfRows()
    assert mrml.card_of(named(again, "quality")) is None


def test_a_damaged_card_and_a_missing_scene_are_explained(scene, tmp_path):
    node = mrml.add_linear_transform(scene, "result", np.eye(4))
    node.SetAttribute("DeepReg.Quality", "{oops")
    with pytest.raises(FileFormatError, match="quality card of 'result' is damaged"):
        mrml.card_of(node)
    with pytest.raises(FileFormatError, match="no scene file"):
        mrml.open_scene(tmp_path / "nothing.mrml")
    (tmp_path / "broken.mrml").write_text("<MRML><Volu")
    with pytest.raises(FileFormatError, match="cannot be read"):
        mrml.open_scene(tmp_path / "broken.mrml")
