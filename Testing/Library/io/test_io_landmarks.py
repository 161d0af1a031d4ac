"""Landmark lists: coordinates, labels, unplaced points, and what else a file holds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from DeepRegLib.errors import FileFormatError, InputError
from DeepRegLib.io.landmarks import Landmarks, match_landmarks, read_landmarks, write_landmarks

POINTS = np.array([[1.0, 2.0, 3.0], [-4.5, 5.25, -6.125], [0.1 + 0.2, 1e-7, 123456.789]])
LABELS = ["nasion", "left, orbit", 'tip "a"']


def markups(system="LPS", **changes):
    """A file as Slicer writes it, with one point that is not placed."""
    controls = [
        {"id": "1", "label": "nasion", "description": "root of the nose", "position": [-1, -2, 3],
         "orientation": [-1, 0, 0, 0, -1, 0, 0, 0, 1], "locked": True, "positionStatus": "defined"},
        {"id": "2", "label": "lost", "position": [0, 0, 0], "positionStatus": "undefined"},
        {"id": "7", "label": "chin", "position": [4.5, -5.25, -6.125]},
    ]  # fmt: skip
    markup = {"type": "Fiducial", "coordinateSystem": system, "coordinateUnits": "mm",
              "labelFormat": "%N-%d", "controlPoints": controls,
              "display": {"color": [0.4, 1.0, 0.1], "glyphScale": 3.0}, **changes}  # fmt: skip
    return {"@schema": "https://x/markups-schema-v1.0.3.json#", "markups": [markup]}


def save(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("suffix", [".mrk.json", ".fcsv", ".csv"])
def test_round_trip_is_exact(tmp_path, suffix):
    write_landmarks(Landmarks(POINTS, LABELS), tmp_path / f"points{suffix}")
    again = read_landmarks(tmp_path / f"points{suffix}")
    np.testing.assert_array_equal(again.points_ras, POINTS)
    assert again.labels == LABELS


@pytest.mark.parametrize(("system", "signs"), [("LPS", (-1, -1, 1)), ("RAS", (1, 1, 1))])
def test_markups_coordinates_and_unplaced_points(tmp_path, system, signs):
    found = read_landmarks(save(tmp_path / "points.mrk.json", markups(system)))
    assert found.labels == ["nasion", "lost", "chin"]
    assert found.defined.tolist() == [True, False, True]
    np.testing.assert_allclose(found.points_ras[0], np.array([-1, -2, 3]) * signs)
    np.testing.assert_allclose(found.points_ras[2], np.array([4.5, -5.25, -6.125]) * signs)


@pytest.mark.parametrize("system", ["LPS", "RAS"])
def test_all_but_positions_of_a_markups_file_is_kept(tmp_path, system):
    source = markups(system)
    found = read_landmarks(save(tmp_path / "points.mrk.json", source))
    moved = replace(found, points_ras=found.points_ras + [1.0, 0.0, 0.0])
    write_landmarks(moved, tmp_path / "moved.mrk.json")
    content = json.loads((tmp_path / "moved.mrk.json").read_text())
    sign = 1 if system == "RAS" else -1
    assert content["markups"][0]["controlPoints"][0]["position"] == [-1 + sign, -2, 3]
    for control, old in zip(content["markups"][0]["controlPoints"],
                            source["markups"][0]["controlPoints"]):  # fmt: skip
        assert {**control, "position": 0, "positionStatus": 0} == {
            **old, "position": 0, "positionStatus": 0}  # fmt: skip
    for part in (content, source):
        del part["markups"][0]["controlPoints"]
    assert content == source
    assert found.source["markups"][0]["controlPoints"][0]["position"] == [-1, -2, 3]


def test_new_markups_file_has_what_the_schema_asks(tmp_path):
    points = np.vstack([POINTS, [np.nan] * 3])
    write_landmarks(Landmarks(points, [*LABELS, "lost"]), tmp_path / "points.mrk.json")
    content = json.loads((tmp_path / "points.mrk.json").read_text())
    assert "markups-schema-v1.0.3.json#" in content["@schema"]
    (markup,) = content["markups"]
    assert (markup["type"], markup["coordinateSystem"]) == ("Fiducial", "LPS")
    for control in markup["controlPoints"]:
        assert isinstance(control["id"], str) and isinstance(control["label"], str)
        assert len(control["position"]) == 3
    status = [control["positionStatus"] for control in markup["controlPoints"]]
    assert status == ["defined", "defined", "defined", "undefined"]
    again = read_landmarks(tmp_path / "points.mrk.json")
    np.testing.assert_array_equal(again.points_ras, points)


def test_slicer_reads_what_is_written(tmp_path):
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    scene = slicer.vtkMRMLScene()
    for suffix, kind in ((".mrk.json", "Json"), (".fcsv", "Fiducial")):
        write_landmarks(Landmarks(POINTS, LABELS), tmp_path / f"points{suffix}")
        storage = getattr(slicer, f"vtkMRMLMarkups{kind}StorageNode")()
        node = slicer.vtkMRMLMarkupsFiducialNode()
        scene.AddNode(storage)
        scene.AddNode(node)
        storage.SetFileName(str(tmp_path / f"points{suffix}"))
        assert storage.ReadData(node) == 1
        found = [node.GetNthControlPointPosition(i) for i in range(3)]
        np.testing.assert_allclose(found, POINTS)
        assert [node.GetNthControlPointLabel(i) for i in range(3)] == LABELS


@pytest.mark.parametrize("flag, sign", [("0", 1), ("RAS", 1), ("1", -1), ("LPS", -1)])
def test_fcsv_header_decides(tmp_path, flag, sign):
    path = tmp_path / "points.fcsv"
    path.write_text(
        f"# Markups fiducial file version = 4.10\n# CoordinateSystem = {flag}\n"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        "vtkMRMLMarkupsFiducialNode_0,1.5,2.5,3.5,0,0,0,1,1,1,0,F-1,,vtkMRMLScalarVolumeNode1\n"
    )
    found = read_landmarks(path)
    np.testing.assert_allclose(found.points_ras, [[1.5 * sign, 2.5 * sign, 3.5]])
    assert found.labels == ["F-1"]


@pytest.mark.parametrize(
    ("text", "expected", "labels"),
    [
        ("r,a,s\n1,2,3\n", [1, 2, 3], ["1"]),
        ("label,l,p,s,defined\nF-1,1,2,3,1\nF-2,0,0,0,0\n", [-1, -2, 3], ["F-1", "F-2"]),
        ("x,y,z,t,label\n1,2,3,0,a\n", [-1, -2, 3], ["a"]),
        ("Name;R;A;S\nb;1;2;3\n", [1, 2, 3], ["b"]),
        ("\ufeffr\ta\ts\n1\t2\t3\n", [1, 2, 3], ["1"]),
    ],
)
def test_table_header_decides(tmp_path, text, expected, labels):
    path = tmp_path / "points.csv"
    path.write_text(text, encoding="utf-8")
    found = read_landmarks(path)
    np.testing.assert_allclose(found.points_ras[0], expected)
    assert found.labels == labels
    assert found.defined.tolist() == [True] + [False] * (len(labels) - 1)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "1,2,3\n4,5,6\n", r"first line that names its columns.*begins with '1,2,3'"),
        ("a.csv", "", "empty file"),
        ("a.csv", "r,a,s,x,y,z\n1,2,3,4,5,6\n", "names its columns"),
        ("a.csv", "r,a,s\n1,two,3\n", "three numbers are expected"),
        ("a.csv", "r,a,s\n1,2\n", "three numbers are expected"),
        ("a.fcsv", "F-1,1,2,3\n", "does not say which coordinates"),
        ("a.fcsv", "# CoordinateSystem = IJK\n1,1,2,3\n", "RAS or LPS is needed"),
        ("a.mrk.json", '{"markups": [{"type": "Fidu', "damaged"),
        ("a.mrk.json", "[1, 2]", "holds no Slicer markups"),
        ("a.mrk.json", json.dumps(markups(type="ROI")), "holds a ROI"),
        ("a.mrk.json", json.dumps(markups(coordinateUnits="um")), "millimeters are needed"),
        ("a.mrk.json", json.dumps(markups(coordinateSystem="IJK")), "RAS or LPS is needed"),
        ("a.mrk.json", json.dumps(markups(controlPoints=[{"position": [1, 2]}])), "three numbers"),
        ("a.mrk.json", json.dumps(markups(controlPoints=[1])), "unknown form"),
        ("a.vtk", "hello", "not a landmark file"),
    ],
)
def test_unfit_files_are_refused(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(FileFormatError, match=sentence):
        read_landmarks(tmp_path / name)


def test_missing_file_and_unplaced_point_in_fcsv(tmp_path):
    with pytest.raises(FileFormatError, match="There is no file"):
        read_landmarks(tmp_path / "a.csv")
    with pytest.raises(FileFormatError, match="not placed"):
        write_landmarks(Landmarks([[np.nan] * 3], ["a"]), tmp_path / "a.fcsv")
    assert not list(tmp_path.iterdir())


def test_lists_are_matched_by_label_or_by_order():
    moving = Landmarks(POINTS[::-1] + 10.0, LABELS[::-1])
    fixed, found, labels = match_landmarks(Landmarks(POINTS, LABELS), moving)
    np.testing.assert_allclose(found, fixed + 10.0)
    assert labels == LABELS
    other = Landmarks(POINTS + 10.0, ["a", "a", "b"])
    np.testing.assert_allclose(match_landmarks(Landmarks(POINTS, LABELS), other)[1], POINTS + 10.0)


def test_points_that_one_list_lacks_are_left_out_in_step():
    holes = POINTS.copy()
    holes[1] = np.nan
    _, moving, labels = match_landmarks(Landmarks(holes, LABELS), Landmarks(POINTS, LABELS))
    np.testing.assert_array_equal(moving, POINTS[[0, 2]])
    assert labels == [LABELS[0], LABELS[2]]
    with pytest.raises(InputError, match="3 landmarks and the moving list 2"):
        match_landmarks(Landmarks(POINTS, LABELS), Landmarks(POINTS[:2], LABELS[:2]))
    with pytest.raises(InputError, match="placed in both"):
        match_landmarks(Landmarks(POINTS * np.nan, LABELS), Landmarks(POINTS, LABELS))
