"""The pictures of a report: before and after, in three planes, at one scale."""

import numpy as np
import pytest
from support import make_grid

from DeepRegLib.errors import GeometryError, InputError
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.pictures import slices
from DeepRegLib.pictures.panels import comparison_pictures, window_of

vtk = pytest.importorskip("vtk")


def decoded(data, tmp_path):
    """Pixels of PNG bytes, the top row first."""
    file = tmp_path / "x.png"
    file.write_bytes(data)
    reader = vtk.vtkPNGReader()
    reader.SetFileName(str(file))
    reader.Update()
    image = reader.GetOutput()
    from vtk.util.numpy_support import vtk_to_numpy

    width, height, _ = image.GetDimensions()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[::-1]


def ball(grid, center_ras, radius_mm=6.0):
    """A bright ball in a volume."""
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    return (np.linalg.norm(points - center_ras, axis=-1) < radius_mm).astype(np.float32) * 100


@pytest.mark.parametrize("orientation", ["LPS", "oblique"])
def test_pictures_before_and_after(orientation, tmp_path):
    grid = make_grid(orientation, (40, 60, 24), (1.5, 0.9, 3.0))
    moving_grid = make_grid("SAR", (36, 30, 50), (1.0, 2.0, 1.2), grid.center_ras - (18, 30, 25))
    center = grid.center_ras
    fixed, moving = ball(grid, center, 12), ball(moving_grid, center + (6, 0, 0), 12)
    pictures = comparison_pictures(
        fixed, grid, moving, moving_grid, fixed, kinds=("red_cyan", "difference"), pixels=80
    )
    assert [(p.kind, p.when, p.plane) for p in pictures[:6]] == [
        ("red_cyan", when, plane) for when in ("before", "after") for plane in slices.PLANES
    ]
    before, after = (decoded(p.png, tmp_path).astype(int) for p in (pictures[0], pictures[3]))
    assert before.shape == (pictures[0].height, pictures[0].width, 3)
    assert max(before.shape) <= 81
    # The moving ball is to the patient's right: cyan at the left of the picture.
    cyan = (before[..., 1] > 150) & (before[..., 0] < 60)
    red = (before[..., 0] > 150) & (before[..., 1] < 60)
    assert np.nonzero(cyan)[1].mean() < before.shape[1] / 2 < np.nonzero(red)[1].mean()
    assert np.abs(after[..., 0] - after[..., 1])[10:-10, 10:-10].max() < 10
    shift = np.eye(4)
    shift[:3, 3] = (6, 0, 0)
    started = comparison_pictures(
        fixed, grid, moving, moving_grid, fixed, start=shift, kinds=("red_cyan",), pixels=80
    )
    close = decoded(started[0].png, tmp_path).astype(int)
    assert (
        np.abs(close[..., 0] - close[..., 1]).mean()
        < np.abs(before[..., 0] - before[..., 1]).mean() / 3
    )


def test_panels_refuse_what_does_not_fit():
    grid = make_grid("RAS")
    volume = np.zeros(grid.shape)
    with pytest.raises(InputError, match="flicker"):
        comparison_pictures(volume, grid, volume, grid, volume, kinds=("flicker",))
    with pytest.raises(GeometryError, match="moved"):
        comparison_pictures(volume, grid, volume, grid, volume[1:])
    assert len(comparison_pictures(volume, grid, volume, grid, volume, pixels=20)) == 24


def test_window_of():
    rng = np.random.default_rng(0)
    brain = np.zeros(5000)
    brain[:3000] = rng.uniform(50, 150, 3000)
    window, level = window_of(brain)
    assert level - window / 2 < 20 and 145 < level + window / 2 < 152
    window, level = window_of(rng.uniform(-1000, 1000, 5000))
    assert level == pytest.approx(0, abs=30) and 1900 < window < 2000
    assert window_of(np.zeros(5))[0] > 0
    assert window_of(np.full(5, np.nan))[0] > 0


def test_one_slice_is_shown_in_its_plane_only():
    matrix = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    grid = Grid((1, 90, 70), matrix)
    image = np.random.default_rng(0).normal(100, 20, grid.shape)
    found = comparison_pictures(image, grid, image, grid, image, kinds=("blend",), pixels=90)
    assert [p.plane for p in found] == ["axial", "axial"]
    assert (found[0].height, found[0].width) == (90, 70)
