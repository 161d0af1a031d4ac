"""A pair with a known shift, and a few steps of learning."""

import pytest
import torch

from DeepRegLib.geometry.sampling import voxel_coordinates
from DeepRegLib.registration.trainable import Batch, total


def blob(shape, center):
    """A soft ellipsoid with a bright core."""
    x = voxel_coordinates(shape)
    c = torch.tensor(center).view(1, 3, 1, 1, 1)
    radii = torch.tensor([3.5, 4.0, 4.5]).view(1, 3, 1, 1, 1)
    distance = ((x - c) / radii).norm(dim=1, keepdim=True)
    return torch.sigmoid(4.0 * (1.0 - distance)) * (1.0 - 0.4 * (distance < 0.5).float())


@pytest.fixture
def shifted():
    """The moving object lies 2 voxels further along the second axis: u is +2 there."""
    shape = (12, 20, 16)
    return Batch(blob(shape, (5.5, 8.0, 7.5)), blob(shape, (5.5, 10.0, 7.5)), 3.0)


@pytest.fixture
def learn():
    """Trains a new network on one batch; gives the network, the first and the last terms."""

    def run(algorithm, batch, steps=40, rate=5e-3, seed=0):
        torch.manual_seed(seed)
        network = algorithm.build()
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        first = last = {}
        for _ in range(steps):
            terms = algorithm.training_loss(network, batch)
            optimizer.zero_grad()
            total(terms).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            last = {name: term.item() for name, term in terms.items()}
            first = first or last
        return network, first, last

    return run


@pytest.fixture
def shift_at_object():
    """Mean displacement over the fixed object, for each axis."""

    def measure(displacement, batch):
        weight = batch.fixed / batch.fixed.sum()
        return (displacement * weight).sum((0, 2, 3, 4))

    return measure
