"""The lattice of a geodesic over the grid of a model: places, sizes, and the way back."""

import pytest
import torch
from support import smooth_displacement

from DeepRegLib.algorithms.quicksilver import SPEC, Algorithm
from DeepRegLib.geometry.field import compose_displacements
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import voxel_coordinates

SHAPE = (16, 20, 25)


def frame(shape=SHAPE, spacing=2.5, **values):
    system = Algorithm(**SPEC.values(**{"widths": (3.0, 2.0), "weights": (1.0, 1.0), **values}))
    return system._frame(torch.zeros(1, 1, *shape), spacing)


@pytest.mark.parametrize("lattice", [1, 2, 3])
def test_a_map_of_the_lattice_lies_where_the_images_do(lattice):
    there = frame(lattice=lattice)
    margin = 2 * lattice
    where = voxel_coordinates(SHAPE) + margin
    # Position in voxels of the images with their margin, told by the lattice.
    ramp = voxel_coordinates(there.lattice.shape) * lattice + (lattice - 1) / 2
    assert torch.allclose(there.on_images(ramp), where, atol=1e-3)


@pytest.mark.parametrize("lattice", [1, 2])
def test_features_are_the_voxels_of_each_lattice_voxel(lattice):
    there = frame(lattice=lattice)
    image = torch.rand(1, 1, *SHAPE)
    found = there.features(image)
    assert found.shape == (1, lattice**3, *there.lattice.shape)
    assert torch.allclose(found.sum(), image.sum())
    # The first voxel of the images is the first voxel of the third lattice voxel.
    assert torch.equal(
        found[0, :, 2, 2, 2].reshape([lattice] * 3), image[0, 0, :lattice, :lattice, :lattice]
    )


def test_displacements_count_voxels_of_the_model():
    there = frame()
    u = there.displacement(torch.full((1, 3, *there.lattice.shape), 0.5))
    assert u.shape == (1, 3, *SHAPE) and torch.allclose(u, torch.ones_like(u))


def test_the_end_of_a_geodesic_has_its_inverse_and_no_folds():
    there = frame((24, 28, 20))
    momentum = smooth_displacement(there.lattice.shape, 1.0, seed=3, sigma=1.5)
    speed = (there.geodesic(momentum * 1e-3).inverse * 1e3).norm(dim=1).max()
    momentum *= 1.2 / speed
    end = there.geodesic(momentum)
    forward, back = there.displacement(end.inverse), there.displacement(end.forward)
    assert forward.norm(dim=1).max() > 1.5
    miss = compose_displacements(back, forward).norm(dim=1)
    inner = (..., *(slice(3, -3),) * 3)
    assert miss[inner].mean() < 0.05 and (jacobian_determinant(forward) > 0).all()
    assert torch.allclose(there.shoot(momentum), end.inverse, atol=1e-4)
    assert float(there.energy(momentum)) > 0.0


def test_gradients_pass_from_the_images_to_the_momentum():
    there = frame()
    momentum = smooth_displacement(there.lattice.shape, 1e-3, seed=3).requires_grad_(True)
    there.displacement(there.shoot(momentum)).square().sum().backward()
    assert momentum.grad.abs().max() > 0
