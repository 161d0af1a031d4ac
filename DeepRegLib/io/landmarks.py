"""Landmark lists: Slicer's markups (.mrk.json), its older .fcsv, and tables (.csv)."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError, InputError
from .files import PathLike, check_suffix, require_file, suffix_of, write_whole
from .itk_transform import flip_points

_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/"
    "Schema/markups-schema-v1.0.3.json#"
)
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
#: Column names of tables and the coordinates that they mean. Plain x, y, z is LPS, as ANTs, ITK
#: and nearly everything else that writes such tables has it.
_TABLE_AXES = {("r", "a", "s"): "RAS", ("l", "p", "s"): "LPS", ("x", "y", "z"): "LPS"}


@dataclass(frozen=True, eq=False)
class Landmarks:
    """A list of points with labels.

    Args:
        points_ras: (N, 3), RAS mm, float64; NaN where a point of the list is not placed, so that
            the points of two lists stay in step.
        labels: One text for each point.
        source: Content of the .mrk.json file that the list came from, for writing it back.
    """

    points_ras: NDArray[np.float64]
    labels: list[str]
    source: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        points = np.array(self.points_ras, np.float64).reshape(-1, 3)
        if len(points) != len(self.labels):
            raise InputError(
                f"A landmark list needs one label for each point, but has {len(points)} points and "
                f"{len(self.labels)} labels."
            )
        object.__setattr__(self, "points_ras", points)

    @property
    def defined(self) -> NDArray[np.bool_]:
        """Which points are placed."""
        return np.asarray(np.isfinite(self.points_ras).all(axis=1))


def read_landmarks(path: PathLike) -> Landmarks:
    """Reads a landmark list.

    Convention:
        Files say RAS or LPS themselves. In a ``.csv`` the header does: columns r, a, s are RAS;
        l, p, s and x, y, z are LPS, as in ANTs and ITK.

    Args:
        path: ``.mrk.json`` (or ``.json``), ``.fcsv`` or ``.csv``.

    Raises:
        FileFormatError: If the file is missing, damaged, of another kind, or does not say which
            coordinates it holds.
    """
    path = require_file(path)
    readers = {".mrk.json": _read_markups, ".json": _read_markups, ".fcsv": _read_fcsv,
               ".csv": _read_table}  # fmt: skip
    reader = readers.get(suffix_of(path))
    if reader is None:
        raise FileFormatError(
            f"'{path.name}' is not a landmark file; .mrk.json, .fcsv or .csv is expected."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        return reader(text, path.name)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise FileFormatError(
            f"'{path.name}' is damaged or not a landmark file ({error}); export it again."
        ) from error


def write_landmarks(landmarks: Landmarks, path: PathLike) -> None:
    """Writes a landmark list, whole or not at all.

    A list that was read from .mrk.json and has as many points keeps everything else of that file
    (colors, descriptions, locks) and its coordinate system.

    Raises:
        FileFormatError: If the suffix is unknown or writing fails.
    """
    suffix = check_suffix(path, ("landmarks",))
    if suffix == ".mrk.json":
        text = json.dumps(_markups(landmarks), indent=4, allow_nan=False) + "\n"
    elif suffix == ".fcsv":
        text = _fcsv(landmarks)
    else:
        text = _table(landmarks)
    write_whole(path, lambda temporary: _write_text(temporary, text))


def match_landmarks(
    fixed: Landmarks, moving: Landmarks
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Brings two lists into correspondence and leaves out points that one of them lacks.

    Lists with the same, unique labels are matched by label, others by their order.

    Returns:
        Fixed points (N, 3), moving points (N, 3), both RAS mm, and the labels of the fixed list.

    Raises:
        InputError: If the lists differ in length, or no point is placed in both.
    """
    if len(fixed.labels) != len(moving.labels):
        raise InputError(
            f"The fixed list has {len(fixed.labels)} landmarks and the moving list "
            f"{len(moving.labels)}; they must correspond one to one, in the same order."
        )
    order = list(range(len(moving.labels)))
    if sorted(fixed.labels) == sorted(moving.labels) and len(set(fixed.labels)) == len(order):
        where = {label: i for i, label in enumerate(moving.labels)}
        order = [where[label] for label in fixed.labels]
    moving_points = moving.points_ras[order]
    both = fixed.defined & np.isfinite(moving_points).all(axis=1)
    if not both.any():
        raise InputError("The two lists have no landmark that is placed in both; place some.")
    labels = [label for label, keep in zip(fixed.labels, both) if keep]
    return fixed.points_ras[both], moving_points[both], labels


def _read_markups(text: str, name: str) -> Landmarks:
    content = json.loads(text)
    try:
        markup = content["markups"][0]
        controls = markup.get("controlPoints", [])
        system = str(markup.get("coordinateSystem", "LPS")).upper()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"'{name}' holds no Slicer markups (no list 'markups'); save a point list in Slicer."
        ) from error
    if not all(isinstance(control, dict) for control in controls):
        raise FileFormatError(f"'{name}' has control points of an unknown form; export it again.")
    if markup.get("type") in ("ROI", "Plane"):
        raise FileFormatError(f"'{name}' holds a {markup['type']}, but a point list is needed.")
    units = markup.get("coordinateUnits", "mm")
    if (units[0] if isinstance(units, list) else units) != "mm":
        raise FileFormatError(f"'{name}' is in '{units}', but millimeters are needed; convert it.")
    points = np.array([_position(control, name) for control in controls]).reshape(-1, 3)
    labels = [str(control.get("label", "")) for control in controls]
    return Landmarks(_to_ras(points, system, name), labels, content)


def _position(control: dict[str, Any], name: str) -> list[float]:
    position = control.get("position")
    if control.get("positionStatus", "defined") != "defined" or position is None:
        return [np.nan] * 3
    if not isinstance(position, list) or len(position) != 3:
        raise FileFormatError(
            f"'{name}' has a control point '{control.get('label', '')}' whose position is not "
            "three numbers; export it again."
        )
    return _numbers(position, name)


def _read_fcsv(text: str, name: str) -> Landmarks:
    system, columns = "", _FCSV_COLUMNS.split(",")
    rows = []
    for line in text.splitlines():
        key, _, value = line.lstrip("# ").partition("=")
        if line.startswith("#") and key.strip() == "CoordinateSystem":
            system = {"0": "RAS", "1": "LPS"}.get(value.strip(), value.strip().upper())
        elif line.startswith("#") and key.strip() == "columns":
            columns = [column.strip() for column in value.split(",")]
        elif line.strip() and not line.startswith("#"):
            rows.append(line)
    if not system:
        raise FileFormatError(
            f"'{name}' does not say which coordinates it holds; add the line "
            "'# CoordinateSystem = RAS' or '# CoordinateSystem = LPS' at its top."
        )
    table = [dict(zip(columns, row)) for row in csv.reader(rows)]
    points = [_numbers([row.get(axis, "") for axis in "xyz"], name) for row in table]
    labels = [row.get("label", "") for row in table]
    return Landmarks(_to_ras(np.array(points).reshape(-1, 3), system, name), labels)


def _read_table(text: str, name: str) -> Landmarks:
    lines = [line for line in text.splitlines() if line.strip()]
    head = lines[0] if lines else ""
    delimiter = max(",;\t", key=head.count)
    columns = [column.strip().strip('"').lower() for column in head.split(delimiter)]
    found = [axes for axes in _TABLE_AXES if set(axes) <= set(columns)]
    if len(found) != 1:
        raise FileFormatError(
            f"'{name}' needs a first line that names its columns: r,a,s for RAS, or l,p,s (or "
            f"x,y,z) for LPS coordinates in mm; it begins with '{head[:60]}'."
        )
    rows = csv.DictReader(lines[1:], fieldnames=columns, delimiter=delimiter)
    label = next((c for c in ("label", "name", "id") if c in columns), None)
    points, labels = [], []
    for position, row in enumerate(rows):
        placed = (row.get("defined") or "1").strip() not in ("0", "false", "False")
        values = [(row[axis] or "").strip() for axis in found[0]]
        points.append(_numbers(values, name) if placed and any(values) else [np.nan] * 3)
        labels.append((row[label] or "").strip() if label else str(position + 1))
    ras = _to_ras(np.array(points).reshape(-1, 3), _TABLE_AXES[found[0]], name)
    return Landmarks(ras, labels)


def _numbers(values: Sequence[Any], name: str) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise FileFormatError(
            f"'{name}' has the point {list(values)!r}, but three numbers are expected."
        ) from error


def _to_ras(points: NDArray[np.float64], system: str, name: str) -> NDArray[np.float64]:
    if system not in ("RAS", "LPS"):
        raise FileFormatError(
            f"'{name}' has the coordinate system '{system}', but RAS or LPS is needed; export it "
            "again."
        )
    return flip_points(points) if system == "LPS" else points


def _markups(landmarks: Landmarks) -> dict[str, Any]:
    content = copy.deepcopy(landmarks.source)
    count = len(landmarks.labels)
    if content is None or len(content["markups"][0].get("controlPoints", [])) != count:
        markup: dict[str, Any] = {"type": "Fiducial", "coordinateSystem": "LPS",
                                  "coordinateUnits": "mm", "controlPoints": []}  # fmt: skip
        content = {"@schema": _SCHEMA, "markups": [markup]}
        markup["controlPoints"] = [{"id": str(i + 1)} for i in range(count)]
    markup = content["markups"][0]
    in_ras = str(markup.get("coordinateSystem", "LPS")).upper() == "RAS"
    points = landmarks.points_ras if in_ras else flip_points(landmarks.points_ras)
    for control, point, label in zip(markup["controlPoints"], points, landmarks.labels):
        control["label"] = label
        placed = bool(np.isfinite(point).all())
        # Slicer wants a position also of a point that is not placed.
        control["position"] = [float(x) + 0.0 for x in point] if placed else [0.0, 0.0, 0.0]
        if control.get("positionStatus", "defined") in ("defined", "undefined") or placed:
            control["positionStatus"] = "defined" if placed else "undefined"
    return content


def _fcsv(landmarks: Landmarks) -> str:
    if not landmarks.defined.all():
        raise FileFormatError(".fcsv cannot hold points that are not placed; write .mrk.json.")
    header = (
        "# Markups fiducial file version = 5.0\n# CoordinateSystem = LPS\n"
        f"# columns = {_FCSV_COLUMNS}\n"
    )
    points = (flip_points(landmarks.points_ras) + 0.0).tolist()
    rows = [
        [number + 1, *point, 0, 0, 0, 1, 1, 1, 0, label, "", ""]
        for number, (point, label) in enumerate(zip(points, landmarks.labels))
    ]
    return header + _csv(rows)


def _table(landmarks: Landmarks) -> str:
    rows: list[list[Any]] = [["label", "r", "a", "s", "defined"]]
    points = landmarks.points_ras.tolist()
    for point, label, placed in zip(points, landmarks.labels, landmarks.defined):
        rows.append([label, *(point if placed else ("", "", "")), int(placed)])
    return _csv(rows)


def _csv(rows: list[list[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
