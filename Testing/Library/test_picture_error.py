"""The picture of a checked registration: bars, threshold, scale and text are where they should be."""

import numpy as np
import pytest
from support import make_grid

from DeepRegLib.errors import GeometryError
from DeepRegLib.pictures.color_maps import color_map

pytest.importorskip("vtk")

from DeepRegLib.pictures.error import error_picture
from DeepRegLib.pictures.histogram import color_scale, histogram, round_ticks
from DeepRegLib.pictures.text import text_mask, write_text

COLORS = color_map("error_mm", np.array([0.0, 4.0]))  # to 5 mm
SHARES, EDGES = [0.1, 0.4, 0.2, 0.3], [0.0, 1.0, 2.0, 3.0, 4.0]


def of_color(picture, value):
    """Where a picture has the color of an error."""
    color = np.maximum(COLORS.colors(np.array([value]))[0, :3], 60)
    found = (picture == color).all(-1)
    # Letters have gray rims.
    found[:40], found[-50:], found[:, :38] = False, False, False
    return found


@pytest.mark.parametrize(
    ("top", "expected"),
    [(6.0, [0, 1, 2, 3, 4, 5, 6]), (16.2, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
     (0.5, [0, 0.1, 0.2, 0.3, 0.4, 0.5]), (100.0, [0, 20, 40, 60, 80, 100])],
)  # fmt: skip
def test_axes_have_round_numbers_that_reach_the_top(top, expected):
    assert round_ticks(top) == pytest.approx(expected)


def test_bars_are_as_high_as_their_shares_and_stand_side_by_side():
    picture = histogram(SHARES, EDGES, 2.5, 40.0, COLORS, (300, 320))
    assert picture.shape == (300, 320, 3)
    heights, places = [], []
    for n in range(4):
        rows, columns = np.nonzero(of_color(picture, n + 0.5))
        heights.append(np.ptp(rows) + 1)
        places.append((columns.min(), columns.max()))
    np.testing.assert_allclose(np.array(heights) / sum(heights), SHARES, atol=0.02)
    assert [b[0] > a[1] for a, b in zip(places, places[1:])] == [True] * 3
    widths = [last - first for first, last in places]
    assert max(widths) - min(widths) <= 2


def test_the_line_stands_at_the_threshold():
    for threshold in (0.5, 2.0, 3.5):
        picture = histogram(SHARES, EDGES, threshold, 40.0, COLORS, (300, 320))
        bright = (picture[80:250] == 255).all(-1).all(0)
        line = np.nonzero(bright)[0].mean()
        # Bars span the axis from 0 to 4 mm.
        columns = [np.nonzero(of_color(picture, n + 0.5))[1] for n in range(4)]
        first, last = columns[0].min(), columns[3].max()
        assert (line - first) / (last - first) == pytest.approx(threshold / 4.0, abs=0.03)
    beyond = histogram(SHARES, EDGES, 9.0, 0.0, COLORS, (300, 320))
    assert not (beyond[80:250] == 255).all(-1).all(0).any()


def test_the_scale_runs_from_low_to_high_and_marks_the_threshold():
    picture = color_scale(COLORS, 2.0, (260, 200))
    column = picture[30:250, 15].astype(int).sum(-1)
    rows = np.nonzero((picture[:, 15] == 255).all(-1))[0]
    box = 25 + np.nonzero((picture[25:, 5] == 225).all(-1))[0]
    share = (box.max() - rows.mean()) / (box.max() - box.min())
    assert share == pytest.approx(2.0 / 5.0, abs=0.02)
    assert column[:40].mean() > 2 * column[-60:].mean()


def test_text_is_written_where_it_is_seen_whole():
    wide, narrow = text_mask("mmm", 14), text_mask("iii", 14)
    assert wide.shape[1] > narrow.shape[1] and wide.max() > 0.9
    assert text_mask("x", 28).shape[0] > text_mask("x", 14).shape[0]
    inked = []
    for row, column, across in ((0, 0, "start"), (100, 200, "end"), (500, -50, "middle")):
        picture = np.zeros((60, 120, 3), np.uint8)
        write_text(picture, "2 mm", row, column, across=across)
        inked.append(int(picture.astype(int).sum()))
    assert len(set(inked)) == 1 and inked[0] > 0


def test_the_whole_picture(tmp_path):
    """Larger than its slices, and colored where there are errors only."""
    grid = make_grid("oblique", (24, 30, 26), (2.0, 1.5, 2.5))
    rng = np.random.default_rng(0)
    fixed = np.zeros(grid.shape, np.float32)
    fixed[4:-4, 5:-5, 4:-4] = rng.uniform(50, 100, (16, 20, 18))
    error = np.where(fixed > 0, 3.0, 0.0).astype(np.float32)
    data = error_picture(fixed, fixed, grid, error, SHARES, EDGES, 2.0)
    assert data.startswith(b"\x89PNG")
    other = error_picture(fixed, fixed, grid, 0 * error, SHARES, EDGES, 2.0)
    assert data != other
    with pytest.raises(GeometryError):
        error_picture(fixed, fixed[:-1], grid, error, SHARES, EDGES, 2.0)


def test_thin_and_small_volumes_have_a_picture():
    for shape in ((3, 40, 50), (6, 5, 7)):
        grid = make_grid("oblique", shape, (4.0, 1.0, 1.0))
        image = np.random.default_rng(1).uniform(0, 100, shape).astype(np.float32)
        error = np.full(shape, 1.0, np.float32)
        assert error_picture(image, image, grid, error, SHARES, EDGES, 2.0).startswith(b"\x89PNG")
