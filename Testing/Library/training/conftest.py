"""Three people (one of them scanned twice) as files: oblique, anisotropic grids in unlike poses."""

from types import SimpleNamespace

import numpy as np
import pytest
from pairs import known_matrix, label_phantom, make_image, make_labels, phantom, voxel_points
from support import make_grid

from DeepRegLib.geometry.grid import Grid
from DeepRegLib.io.images import write_image

#: Name -> orientation, shape and spacing of the grid; turn and shift of the head in it, its size.
PEOPLE = {
    "ann_1": ("oblique", (62, 50, 39), (1.3, 1.6, 2.1), (0.0, 0.0, 0.0), (0, 0, 0), 1.0),
    "ann_2": ("LPS", (43, 58, 52), (1.9, 1.4, 1.6), (0.1, -0.1, 0.05), (3, -2, 4), 1.0),
    "bob_1": ("SAR", (54, 60, 35), (1.5, 1.4, 2.3), (-0.08, 0.1, 0.12), (-4, 3, 2), 1.05),
    "cyd_1": ("RAS", (50, 44, 60), (1.6, 1.8, 1.3), (0.05, 0.1, -0.1), (2, 5, -3), 0.95),
}


def head_grid(name):
    orientation, shape, spacing, _, shift, _ = PEOPLE[name]
    grid = make_grid(orientation, shape, spacing)
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, 3] += np.array(shift) + (1.0, -0.7, 0.4) - grid.center_ras
    return Grid(shape, matrix)


def to_head(name):
    """From RAS of the phantom to RAS of a person's scan, 4 x 4."""
    return known_matrix(PEOPLE[name][3], PEOPLE[name][4], PEOPLE[name][5])


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """A folder with an image and a label map of each scan, and what is true of them."""
    folder = tmp_path_factory.mktemp("people")
    for name in PEOPLE:
        grid, back = head_grid(name), np.linalg.inv(to_head(name))
        write_image(make_image(grid, back), folder / f"{name}_t1.nii.gz")
        write_image(make_labels(grid, back), folder / f"{name}_seg.nii.gz")
    return SimpleNamespace(
        folder=folder,
        names=tuple(PEOPLE),
        grid=head_grid,
        to_head=to_head,
        phantom=phantom,
        label_phantom=label_phantom,
        voxel_points=voxel_points,
    )
