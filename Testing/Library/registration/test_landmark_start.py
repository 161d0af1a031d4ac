"""A start bent to landmarks: meets them, does not fold, and keeps far regions as they were."""

from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch
from support import make_grid

from DeepRegLib import pipeline
from DeepRegLib.errors import InputError
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import transform_points
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.registration.landmark_start import LandmarkPull, bent_to_landmarks


@pytest.fixture
def grid():
    return make_grid("oblique", (44, 52, 60), (4.0, 3.0, 2.5))


@pytest.fixture
def points(grid):
    inner = np.array(grid.shape) - 1
    shares = [[0.3, 0.4, 0.5], [0.6, 0.5, 0.4], [0.5, 0.7, 0.6], [0.4, 0.3, 0.7]]
    return grid.to_ras(np.array(shares) * inner)


def linear():
    matrix = np.eye(4)
    matrix[:3, :3] = [[0.99, -0.1, 0.02], [0.1, 0.99, -0.03], [-0.02, 0.03, 1.0]]
    matrix[:3, 3] = (5.0, -3.0, 2.0)
    return matrix


def test_landmarks_are_met_from_a_linear_start(grid, points):
    moving = transform_points(linear(), points)
    moving[0] += (3.0, -2.0, 1.0)
    bent = bent_to_landmarks(Transform(linear()), points, moving, grid)
    assert np.linalg.norm(bent.map_points_ras(points) - moving, axis=1).max() < 0.2
    assert np.allclose(bent.linear, linear())


def test_landmarks_are_met_from_a_deformation(grid, points):
    vectors = torch.zeros(1, 3, *grid.shape)
    vectors[:, 1] = 2.0
    field = Field.from_ras_mm(vectors, grid).faded(8)
    start = Transform(linear(), field)
    moving = start.map_points_ras(points) + (1.5, 2.0, -1.0)
    bent = bent_to_landmarks(start, points, moving, grid)
    assert np.linalg.norm(bent.map_points_ras(points) - moving, axis=1).max() < 0.2


def test_a_landmark_acts_on_its_surroundings_only(grid, points):
    moving = points.copy()
    moving[0] += (4.0, 0.0, 0.0)
    bent = bent_to_landmarks(Transform(np.eye(4)), points[:1], moving[:1], grid)
    corner = grid.corners_ras()[-1:]
    assert np.linalg.norm(bent.map_points_ras(corner) - corner) < 0.05


def test_contradicting_landmarks_do_not_fold(grid, points):
    fixed = np.stack([points[0], points[0] + (4.0, 0.0, 0.0)])
    moving = fixed[::-1].copy()  # two neighbors change places: impossible without a fold
    bent = bent_to_landmarks(Transform(np.eye(4)), fixed, moving, grid)
    assert jacobian_determinant(bent.field.displacement).min() > 0.0


def test_without_a_start_the_rigid_fit_comes_first(grid, points):
    moving = transform_points(linear(), points)
    bent = bent_to_landmarks(None, points, moving, grid)
    assert np.linalg.norm(bent.map_points_ras(points) - moving, axis=1).max() < 0.2
    assert abs(np.linalg.det(bent.linear[:3, :3]) - 1) < 1e-6


def test_unequal_lists_are_refused(grid, points):
    with pytest.raises(InputError, match="same number"):
        bent_to_landmarks(None, points, points[:2], grid)


def test_the_pull_holds_landmarks_while_the_field_changes(grid, points):
    moving = transform_points(linear(), points) + (1.0, -2.0, 1.5)
    pull = LandmarkPull(points, moving, linear(), grid, torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    displacement = torch.zeros(1, 3, *grid.shape)
    for _ in range(8):
        noise = torch.randn(1, 3, 6, 7, 8, generator=generator)
        noise = torch.nn.functional.interpolate(noise, grid.shape, mode="trilinear")
        displacement = pull.held(displacement + 0.1 * noise)
    reached = Transform(linear(), Field(displacement, grid)).map_points_ras(points)
    assert np.linalg.norm(reached - moving, axis=1).max() < 0.3
    assert jacobian_determinant(displacement).min() > 0.2


def test_a_led_registration_meets_a_landmark_that_the_images_contradict():
    """The images agree already; the user says that one place belongs elsewhere."""
    pair = pairs.make_pair(matrix=np.eye(4))
    place = np.array([[8.0, 10.0, -4.0], [-20.0, 0.0, 0.0], [0.0, -22.0, 5.0], [0.0, 0.0, 20.0]])
    wanted = place.copy()
    wanted[0] += (0.0, 3.0, 0.0)
    pair = replace(pair, fixed_landmarks_ras=place, moving_landmarks_ras=wanted,
                   initial=Transform(np.eye(4)), initial_is_given=True)  # fmt: skip
    settings = {"factors": "2,1", "iterations": "15,10"}
    errors = {}
    for led in (False, True):
        result = pipeline.run(pair, "+greedy", "fast", settings, "cpu", follow_landmarks=led)
        errors[led] = np.linalg.norm(result.transform.map_points_ras(place) - wanted, axis=1).max()
    assert errors[True] < 0.5 < 2.0 < errors[False]
    assert any("landmarks led" in remark for remark in result.provenance["remarks"])
    assert result.quality["folds_percent"] == 0.0
