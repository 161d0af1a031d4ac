"""Pictures: what they show, on volumes and slices, and which side of the patient is where."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import ORIENTATIONS, make_grid

from DeepRegLib.errors import GeometryError, InputError
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.pictures import compose, slices
from DeepRegLib.pictures.png import png_bytes

vtk = pytest.importorskip("vtk")
ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(9, 14, 11), (12, 17)]


@pytest.fixture(params=SHAPES, ids=["volume", "slice"])
def pair(request):
    rng = np.random.default_rng(1)
    return tuple(rng.integers(0, 256, request.param, dtype=np.uint8) for _ in range(2))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks also in small arrays."""
    monkeypatch.setattr(compose, "_BLOCK", 400)


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


# Gray values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", ">i2", "float16",
                                  "float32", "float64"])  # fmt: skip
def test_window_and_level(kind):
    low = 0 if np.dtype(kind).kind == "u" else -100
    values = np.linspace(low, 120, 60).astype(kind).reshape(3, 4, 5)
    gray = compose.to_gray(values, 80, 20)
    expected = np.clip((values.astype(float) + 20) / 80 * 255, 0, 255)
    assert gray.dtype == np.uint8
    np.testing.assert_allclose(gray, expected, atol=0.51)


def test_inverted_window_not_a_number_and_strided_input():
    assert compose.to_gray(np.array([0.0, 10.0]), -10, 5).tolist() == [255, 0]
    assert compose.to_gray(np.array([np.nan, np.inf, -np.inf]), 10, 5).tolist() == [0, 255, 0]
    assert compose.to_gray(np.array([True, False]), 1, 0.5).tolist() == [255, 0]
    array = np.arange(240, dtype=np.int16).reshape(4, 5, 12)
    strided = compose.to_gray(array[:, ::2, ::-3], 100, 100)
    assert (strided == compose.to_gray(array, 100, 100)[:, ::2, ::-3]).all()
    assert set(compose.to_gray(np.arange(5), 0, 2).tolist()) <= {0, 255, 128}


# Compositions ------------------------------------------------------------------------------------


def test_blend(pair):
    fixed, moved = pair
    half = compose.blend(fixed, moved)
    assert half.shape == (*fixed.shape, 3) and half.dtype == np.uint8
    np.testing.assert_allclose(half[..., 1], (fixed.astype(int) + moved) / 2, atol=1)
    assert (compose.blend(fixed, moved, 0)[..., 0] == fixed).all()
    assert (compose.blend(fixed, moved, 1)[..., 2] == moved).all()


def test_red_cyan(pair):
    fixed, moved = pair
    rgb = compose.red_cyan(fixed, moved)
    assert (rgb[..., 0] == fixed).all() and (rgb[..., 1] == moved).all()
    assert (rgb[..., 2] == moved).all()


def test_checkerboard_tiles_are_square_in_mm():
    fixed, moved = np.zeros((40, 20), np.uint8), np.full((40, 20), 255, np.uint8)
    shown = compose.checkerboard(fixed, moved, (1.0, 4.0), 16.0)[..., 0] > 0
    rows, columns = (np.flatnonzero(np.diff(line)) for line in (shown[:, 10], shown[20]))
    assert set(np.diff(rows)) == {16}
    assert set(np.diff(columns)) == {4}
    # A corner in the middle.
    assert shown[19, 9] == shown[20, 10] != shown[19, 10] == shown[20, 9]
    assert not shown[19, 9]


def test_checkerboard_in_three_axes(pair):
    fixed, moved = pair
    spacing = (3.0, 1.5, 0.7)[: fixed.ndim]
    rgb = compose.checkerboard(fixed, moved, spacing, 6.0)
    where = np.indices(fixed.shape).astype(float)
    parity = np.full(fixed.shape, fixed.ndim % 2)
    for axis, (n, step) in enumerate(zip(fixed.shape, spacing)):
        parity += np.floor((where[axis] - (n - 1) / 2) * step / 6.0).astype(int)
    expected = np.where(parity % 2, moved, fixed)
    assert (rgb == expected[..., None]).all()
    tinted = compose.checkerboard(fixed, moved, spacing, 6.0, tinted=True)
    assert tinted.shape == rgb.shape
    # Fixed tiles are bluer, moved ones redder.
    excess = tinted[..., 2].astype(int) - tinted[..., 0]
    bright = expected > 60
    assert (excess[bright & (parity % 2 == 0)] > 0).all()
    assert (excess[bright & (parity % 2 == 1)] < 0).all()


def test_difference(pair):
    fixed, moved = pair
    same = compose.difference(fixed, fixed)
    assert (same == same.reshape(-1, 3)[0]).all() and same.min() > 230
    rgb = compose.difference(fixed, moved, limit=100).astype(int)
    signed = moved.astype(int) - fixed
    assert (rgb[..., 0] >= rgb[..., 2])[signed > 0].all()
    assert (rgb[..., 2] >= rgb[..., 0])[signed < 0].all()
    strong = signed >= 100
    assert len(np.unique(rgb[strong], axis=0)) == 1
    ordered = rgb.reshape(-1, 3)[np.argsort(signed.reshape(-1), kind="stable")][:, 1]
    middle = np.count_nonzero(signed < 0)
    assert (np.diff(ordered[:middle]) >= 0).all() and (np.diff(ordered[middle:]) <= 0).all()


def test_scale_of_a_difference_is_robust():
    rng = np.random.default_rng(0)
    fixed = rng.integers(60, 200, (30, 40), dtype=np.uint8)
    moved = (fixed.astype(int) + rng.integers(-40, 41, fixed.shape)).astype(np.uint8)
    limit = compose.difference_limit(fixed, moved)
    assert 35 <= limit <= 41
    moved[0, 0], fixed[0, 0] = 255, 0
    assert compose.difference_limit(fixed, moved) == pytest.approx(limit, abs=1)
    # An empty background does not count.
    padded = [np.pad(a, 200) for a in (fixed, moved)]
    assert compose.difference_limit(*padded) == pytest.approx(limit, abs=6)
    assert compose.difference_limit(fixed, fixed) >= 20


@pytest.mark.parametrize("shape", [(40, 44), (30, 34, 38)])
def test_edges_follow_the_rim_of_the_moved_object(shape):
    where = np.indices(shape).reshape(len(shape), -1).T - np.array(shape) / 2
    radius = np.linalg.norm(where, axis=1).reshape(shape)
    moved = np.where(radius < 10, 200, 20).astype(np.uint8)
    fixed = np.full(shape, 77, np.uint8)
    rgb = compose.edges(fixed, moved, levels=(110,), color=(1, 2, 3))
    lines = (rgb == (1, 2, 3)).all(-1)
    assert lines.any() and (rgb[~lines] == 77).all()
    assert np.abs(radius[lines] - 9.5).max() < 1.6
    assert lines[(slice(None),) * (len(shape) - 1)].sum() < lines.size / 8


def test_edges_do_not_depend_on_the_blocks(monkeypatch):
    rng = np.random.default_rng(5)
    moved = rng.integers(0, 256, (20, 9, 8), dtype=np.uint8)
    small = compose.edges(moved, moved)
    monkeypatch.setattr(compose, "_BLOCK", 1 << 20)
    assert (small == compose.edges(moved, moved)).all()


def test_contour_levels_part_three_classes():
    gray = np.repeat(np.array([10, 12, 100, 110, 220, 230], np.uint8), 50)
    low, high = compose.contour_levels(gray)
    assert 12 < low <= 100 and 110 < high <= 220


def test_compositions_refuse_what_does_not_fit():
    gray = np.zeros((4, 5), np.uint8)
    for kind in (compose.blend, compose.red_cyan, compose.difference, compose.edges):
        with pytest.raises(GeometryError, match="uint8"):
            kind(gray, gray.astype(float))
        with pytest.raises(GeometryError, match="one shape"):
            kind(gray, gray.T)
    for spacing, tile in (((1, 1, 1), 5), ((1, 0), 5), ((1, 1), 0)):
        with pytest.raises(InputError, match="spacings"):
            compose.checkerboard(gray, gray, spacing, tile)


def test_a_volume_takes_a_moment(monkeypatch):
    monkeypatch.undo()
    size = 160
    x = np.linspace(-1, 1, size, dtype=np.float32)
    volume = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)
    start = time.process_time()
    fixed = compose.to_gray(volume, 1.5, 0.75)
    moved = compose.to_gray((volume * 900).astype(np.int16), 1300, 600)
    pictures = [
        compose.blend(fixed, moved), compose.red_cyan(fixed, moved), compose.edges(fixed, moved),
        compose.difference(fixed, moved), compose.checkerboard(fixed, moved, (1, 1, 1), 20, True),
    ]  # fmt: skip
    assert all(p.shape == (size, size, size, 3) for p in pictures)
    # A fifth of this on one core; the rest is for busy machines.
    assert time.process_time() - start < 2.0


# Slices ------------------------------------------------------------------------------------------


def ball(grid, center_ras, radius_mm=6.0):
    """A bright ball in a volume."""
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    return (np.linalg.norm(points - center_ras, axis=-1) < radius_mm).astype(np.float32) * 100


def middle_of(picture):
    """Center of what is bright, as shares of height and width."""
    rows, columns = np.nonzero(picture > 40)
    return rows.mean() / picture.shape[0], columns.mean() / picture.shape[1]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    ("offset", "plane", "place"),
    [
        ((18, 0, 0), "axial", "left"),  # the patient's right
        ((-18, 0, 0), "axial", "right"),
        ((0, 18, 0), "axial", "top"),
        ((0, -18, 0), "axial", "bottom"),
        ((18, 0, 0), "coronal", "left"),
        ((0, 0, 18), "coronal", "top"),
        ((0, 0, -18), "sagittal", "bottom"),
        ((0, 18, 0), "sagittal", "left"),
        ((0, -18, 0), "sagittal", "right"),
    ],
)
def test_sides_of_the_patient(orientation, offset, plane, place):
    grid = make_grid(orientation, (40, 70, 22), (1.5, 0.9, 3.0))
    center = grid.center_ras + offset
    chosen = slices.planes_through(grid, grid.center_ras)[plane]
    row, column = middle_of(slices.cut(ball(grid, center), grid, chosen))
    found = {"left": column < 0.4, "right": column > 0.6, "top": row < 0.4, "bottom": row > 0.6}
    assert [name for name, true in found.items() if true] == [place]
    letter = {"left": 0, "right": 1, "top": 2, "bottom": 3}[place]
    axis = int(np.argmax(np.abs(offset)))
    assert chosen.letters[letter] == ("RAS" if offset[axis] > 0 else "LPI")[axis]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("plane", slices.PLANES)
def test_slices_are_true_to_scale(orientation, plane):
    grid = make_grid(orientation, (40, 70, 22), (1.5, 0.9, 3.0))
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    chosen = slices.planes_through(grid, grid.center_ras + (2, -3, 4), 0.8)[plane]
    assert chosen.grid.spacing_mm[1:] == pytest.approx((0.8, 0.8))
    assert chosen.pixel_mm == pytest.approx(0.8)
    # A volume that holds its own R, A, S: the slice has those of its pixels.
    pixels = chosen.grid.to_ras(np.moveaxis(np.indices(chosen.grid.shape), 0, -1))[0]
    shown = slices.cut(points.astype(np.float32), grid, chosen, fill=np.nan)
    inside = np.isfinite(shown).all(-1)
    where = grid.to_voxel(pixels)
    deep = ((where >= 0) & (where <= np.array(grid.shape) - 1)).all(-1)
    assert inside.sum() > 200 and (inside | ~deep).all()
    np.testing.assert_allclose(shown[deep], pixels[deep], atol=1e-3)
    through = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
    assert np.ptp(pixels[..., through]) < 1e-9
    assert pixels[0, 0, through] == pytest.approx((grid.center_ras + (2, -3, 4))[through])


def test_slices_cover_the_grid_and_keep_large_volumes_small():
    grid = make_grid("oblique")
    chosen = slices.planes_through(grid)
    corners = grid.corners_ras()
    for plane in chosen.values():
        seen = plane.grid.corners_ras()
        axes = [a for a in range(3) if np.ptp(seen[:, a]) > 2]
        assert (seen.min(0)[axes] <= corners.min(0)[axes] + 1e-6).all()
        assert (seen.max(0)[axes] >= corners.max(0)[axes] - 1e-6).all()
    large = Grid((500, 900, 3000), np.diag([1.0, 1.0, 1.0, 1.0]))
    assert max(max(p.size) for p in slices.planes_through(large).values()) <= 512
    tiny = slices.planes_through(Grid((1, 1, 1), np.eye(4)))["axial"]
    assert slices.cut(np.full((1, 1, 1), 5.0), Grid((1, 1, 1), np.eye(4)), tiny).tolist() == [[5.0]]


def test_slices_through_a_linear_map_and_nearest_labels():
    grid = make_grid("oblique", (30, 40, 20), (1.5, 0.9, 3.0))
    volume = ball(grid, grid.center_ras + (12, 0, 0))
    shift = np.eye(4)
    shift[:3, 3] = (12, 0, 0)
    axial = slices.planes_through(grid)["axial"]
    row, column = middle_of(slices.cut(volume, grid, axial, shift))
    assert (row, column) == (pytest.approx(0.5, abs=0.05), pytest.approx(0.5, abs=0.05))
    labels = (volume > 50).astype(np.int16) * 7
    shown = slices.cut(labels, grid, axial, nearest=True)
    assert shown.dtype == np.int16 and set(np.unique(shown)) == {0, 7}
    with pytest.raises(GeometryError, match="shape"):
        slices.cut(volume[1:], grid, axial)
    with pytest.raises(InputError, match="axial"):
        slices.plane_of("oblique", (0, 0, 0), (0, 0, 0), (1, 1, 1), 1)
    with pytest.raises(InputError, match="box"):
        slices.plane_of("axial", (0, 0, 0), (0, 0, 0), (1, 0, 1), 1)


def test_content_box():
    grid = make_grid("oblique", (50, 60, 40), (1.5, 0.9, 3.0))
    center = grid.center_ras + (5, -4, 3)
    low, high = slices.content_box(ball(grid, center), grid, 50, margin_mm=4)
    np.testing.assert_allclose((low + high) / 2, center, atol=2.5)
    np.testing.assert_allclose(high - low, 20, atol=5)
    corners = grid.corners_ras()
    empty = slices.content_box(np.zeros(grid.shape), grid, 50)
    np.testing.assert_allclose(empty, (corners.min(0), corners.max(0)))


def test_letters_stand_at_the_edges():
    picture = np.full((150, 200, 3), 90, np.uint8)
    result = slices.with_letters(picture, "R  S")
    assert (picture == 90).all()
    changed = (result != 90).any(-1)
    assert changed[60:90, :20].any() and changed[-20:, 90:110].any()
    assert not changed[60:90, -20:].any() and not changed[:20].any()
    # The R: a full stroke at its left, a gap at the lower right of it.
    yellow = (result == (255, 214, 90)).all(-1)
    columns = np.flatnonzero(yellow[:, :20].any(0))
    assert yellow[:, columns[0]].sum() == 7
    assert (slices.with_letters(np.zeros((3, 3, 3), np.uint8), "RLAP") == 0).all()
    with pytest.raises(InputError, match="R L A P S I"):
        slices.with_letters(picture, "X")


# PNG ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_decodes_to_the_same_pixels(channels, tmp_path):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (13, 29, channels), dtype=np.uint8)
    data = png_bytes(picture)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert (decoded(data, tmp_path) == picture).all()
    assert (decoded(png_bytes(picture[::2, ::-3]), tmp_path) == picture[::2, ::-3]).all()


def test_png_refuses_what_is_no_picture():
    for wrong in (np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4)), np.zeros((0, 4), np.uint8)):
        with pytest.raises(InputError):
            png_bytes(wrong)


# In Slicer ---------------------------------------------------------------------------------------


def test_nothing_heavy_is_imported():
    code = (
        "import sys\n"
        "import DeepRegLib.pictures.panels, DeepRegLib.pictures.color_maps\n"
        "import DeepRegLib.pictures.jacobian, DeepRegLib.report_page\n"
        "print(sorted(set(sys.modules) & {'torch', 'scipy', 'matplotlib', 'PIL', 'SimpleITK'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
