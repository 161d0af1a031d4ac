import numpy as np
import pytest
import torch

from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry.affine import (
    PARAMETER_COUNT,
    about_point,
    fit_points,
    linear_matrix,
    rotation_angle_deg,
    rotation_from_vector,
    uniform_rotations,
)

CENTER = np.array([10.0, -20.0, 35.0])


@pytest.mark.parametrize("kind", sorted(PARAMETER_COUNT))
def test_zero_parameters_are_the_identity(kind):
    zero = torch.zeros(PARAMETER_COUNT[kind], dtype=torch.float64)
    torch.testing.assert_close(linear_matrix(zero, kind, CENTER, 50.0), torch.eye(4).double())


def test_rigid_keeps_lengths_and_handedness():
    p = torch.tensor([3.0, -2.0, 5.0, 20.0, -35.0, 50.0], dtype=torch.float64)
    m = linear_matrix(p, "rigid", CENTER, 60.0).numpy()
    np.testing.assert_allclose(m[:3, :3] @ m[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(m[:3, :3]) == pytest.approx(1.0)
    np.testing.assert_allclose(m[:3, :3] @ CENTER + m[:3, 3], CENTER + [3.0, -2.0, 5.0])


def test_similarity_scales_alike_and_affine_has_full_rank():
    p = torch.tensor([0, 0, 0, 5.0, 6.0, -4.0, 10.0], dtype=torch.float64)
    m = linear_matrix(p, "similarity", CENTER, 50.0).numpy()[:3, :3]
    np.testing.assert_allclose(m @ m.T, np.eye(3) * np.exp(0.4), atol=1e-10)
    zero = torch.zeros(12, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda q: linear_matrix(q, "affine", CENTER, 50.0)[:3].reshape(-1), zero
    )
    assert int(torch.linalg.matrix_rank(jacobian)) == 12


@pytest.mark.parametrize("index", range(3, 12))
def test_a_unit_parameter_moves_the_rim_by_about_a_millimetre(index):
    p = torch.zeros(12, dtype=torch.float64)
    p[index] = 1.0
    m = linear_matrix(p, "affine", CENTER, 50.0).numpy()
    rim = CENTER + 50.0 * np.concatenate([np.eye(3), -np.eye(3)])
    moved = rim @ m[:3, :3].T + m[:3, 3]
    assert np.linalg.norm(moved - rim, axis=1).max() == pytest.approx(1.0, rel=0.05)


def test_rotation_vector_is_right_handed():
    turn = rotation_from_vector(torch.tensor([0.0, 0.0, np.pi / 2], dtype=torch.float64)).numpy()
    np.testing.assert_allclose(turn @ [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], atol=1e-12)
    assert rotation_angle_deg(turn) == pytest.approx(90.0)


def test_uniform_rotations_cover_all_orientations():
    rotations = uniform_rotations(1200)
    np.testing.assert_allclose(rotations[0], np.eye(3))
    np.testing.assert_allclose(
        np.einsum("nij,nkj->nik", rotations, rotations), np.tile(np.eye(3), (1201, 1, 1)), atol=1e-9
    )
    assert (np.linalg.det(rotations) > 0).all()
    vectors = np.random.default_rng(0).normal(size=(300, 3))
    angles = np.random.default_rng(1).uniform(0, np.pi, 300)
    vectors *= (angles / np.linalg.norm(vectors, axis=1))[:, None]
    wanted = rotation_from_vector(torch.from_numpy(vectors)).numpy()
    cosines = (np.einsum("nij,mij->nm", wanted, rotations) - 1) / 2
    nearest = np.degrees(np.arccos(np.clip(cosines.max(1), -1, 1)))
    assert nearest.max() < 25.0


@pytest.mark.parametrize("kind", ["translation", "rigid", "similarity", "affine"])
def test_fit_recovers_an_exact_map(kind):
    count = PARAMETER_COUNT[kind]
    p = torch.from_numpy(np.random.default_rng(3).normal(size=count) * 8)
    wanted = linear_matrix(p, kind, CENTER, 50.0).numpy()
    fixed = np.random.default_rng(4).normal(size=(9, 3)) * 30
    moving = fixed @ wanted[:3, :3].T + wanted[:3, 3]
    np.testing.assert_allclose(fit_points(fixed, moving, kind), wanted, atol=1e-9)


def test_fit_never_mirrors():
    fixed = np.random.default_rng(0).normal(size=(6, 3))
    assert np.linalg.det(fit_points(fixed, fixed * [-1, 1, 1], "rigid")[:3, :3]) > 0


def test_too_few_landmarks_are_refused():
    with pytest.raises(GeometryError, match="at least 3 landmark pairs"):
        fit_points(np.zeros((2, 3)), np.zeros((2, 3)), "rigid")
    with pytest.raises(GeometryError, match="4 fixed and 3 moving"):
        fit_points(np.zeros((4, 3)), np.zeros((3, 3)), "rigid")


def test_about_point_takes_one_point_to_the_other():
    m = about_point(uniform_rotations(5)[3], CENTER, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(m[:3, :3] @ CENTER + m[:3, 3], [1.0, 2.0, 3.0])


def test_wrong_parameter_count_is_refused():
    with pytest.raises(GeometryError, match="takes 6 parameters"):
        linear_matrix(torch.zeros(7), "rigid", CENTER, 1.0)
