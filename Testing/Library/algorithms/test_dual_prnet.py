"""The dual-stream pyramid network: how its fields are put together, and that it learns."""

import pytest
import torch
from torch import nn

from DeepRegLib.algorithms.dual_prnet import SPEC, Algorithm, PyramidNetwork
from DeepRegLib.errors import ParameterError
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.networks.blocks import warped
from DeepRegLib.registration.trainable import Batch, total

SHAPE = (16, 32, 48)
SMALL = {"channels": (4, 4, 6, 6, 8)}


def images(seed=0, shift=3):
    """A pair of smooth random images that lie some voxels apart along the second axis."""
    generator = torch.Generator().manual_seed(seed)
    image = gaussian_smooth(torch.randn(1, 1, *SHAPE, generator=generator), 2.0)
    image = (image - image.min()) / (image.max() - image.min())
    return image, image.roll(shift, dims=3)


class Known(nn.Module):
    """Stands in for a module of a level."""

    def __init__(self, flow):
        super().__init__()
        self.flow, self.seen = flow, None

    def forward(self, fixed, moved):
        self.seen = moved
        return self.flow(fixed.shape[2:])


def constant(*vector):
    return lambda shape: torch.tensor(vector).view(1, 3, 1, 1, 1).expand(1, 3, *shape).clone()


def test_nothing_moves_before_training():
    torch.manual_seed(0)
    system = Algorithm(**SPEC.values(**SMALL))
    network = system.build()
    fixed, moving = images()
    prediction = system.predict(network, fixed, moving, 2.0)
    assert prediction.displacement.shape == (1, 3, *SHAPE)
    assert prediction.displacement.abs().max() < 0.05
    assert len(prediction.values["level_motion_mm"]) == 5


def test_vectors_grow_with_the_resolution():
    network = PyramidNetwork((4, 4, 4))
    network.steps = nn.ModuleList(
        [
            Known(constant(0.5, 0.0, 0.0)),
            Known(constant(0.0, 0.25, 0.0)),
            Known(constant(0, 0, 1.0)),
        ]
    )
    field, flows = network(*images())
    expected = torch.tensor([4 * 0.5, 2 * 0.25, 1.0]).view(1, 3, 1, 1, 1)
    assert torch.allclose(field, expected.expand_as(field), atol=1e-5)
    assert [tuple(f.shape[2:]) for f in flows] == [(4, 8, 12), (8, 16, 24), (16, 32, 48)]


def test_finer_flows_are_applied_before_coarser_ones():
    def stretch(shape):  # u = x / 4 along the first axis, about its first voxel
        along = torch.arange(float(shape[0])).view(1, 1, -1, 1, 1) / 4
        return torch.cat([along.expand(1, 1, *shape), torch.zeros(1, 2, *shape)], dim=1)

    network = PyramidNetwork((4, 4))
    network.steps = nn.ModuleList([Known(stretch), Known(constant(2.0, 0.0, 0.0))])
    field, _ = network(*images())
    x = torch.arange(4.0, 12.0)  # away from the edges, which repeat
    # The coarse stretch is (x - 1/2) / 4 on the fine grid; at x + 2 it adds half a voxel more.
    expected = 2.0 + (x + 2.0 - 0.5) / 4
    assert torch.allclose(field[0, 0, 4:12, 16, 24], expected, atol=1e-4)


def test_modules_see_features_warped_by_the_field_without_its_gradient():
    network = PyramidNetwork((4, 4))
    vector = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))
    coarse = Known(lambda shape: vector.view(1, 3, 1, 1, 1).expand(1, 3, *shape))
    fine = Known(constant(0.0, 0.0, 0.0))
    network.steps = nn.ModuleList([coarse, fine])
    fixed, moving = images()
    network(fixed, moving)
    features = network.stream(torch.cat([fixed, moving]))[-1][1:]
    field = torch.tensor([0.0, 2.0, 0.0]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    assert torch.allclose(fine.seen, warped(features, field), atol=1e-5)
    (gradient,) = torch.autograd.grad(fine.seen.sum(), vector, allow_unused=True)
    assert gradient is None


@pytest.mark.parametrize("correlation", [False, True])
def test_learns_a_pair(correlation):
    torch.manual_seed(0)
    system = Algorithm(**SPEC.values(**SMALL, correlation=correlation))
    network = system.build()
    fixed, moving = images()
    batch = Batch(fixed, moving, 3.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    values = []
    for _ in range(40):
        terms = system.training_loss(network, batch)
        assert set(terms) == {"similarity", "smoothness"}
        optimizer.zero_grad()
        total(terms).backward()
        optimizer.step()
        values.append(float(terms["similarity"].detach()))
    assert min(values) < 0.8 * values[0]
    with torch.no_grad():
        field = system.predict(network, fixed, moving, 3.0).displacement
    assert field[:, 1, 4:-4, 8:-8, 8:-8].mean() > 0.5, "towards the true 3 voxels, not away"
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_pairs_of_a_batch_do_not_touch_each_other():
    torch.manual_seed(0)
    network = PyramidNetwork((4, 4, 4))
    for step in network.steps:
        nn.init.normal_(step.flow.convolution.weight, 0.0, 0.05)
    fixed, moving = (torch.cat(pair) for pair in zip(images(0), images(1)))
    with torch.no_grad():
        both, _ = network(fixed, moving)
        alone, _ = network(fixed[1:], moving[1:])
    assert both[1:].abs().max() > 0.1
    assert torch.allclose(both[1:], alone, atol=1e-3)


def test_grids_can_be_halved_as_often_as_there_are_resolutions():
    assert Algorithm(**SPEC.values(channels=(4,) * 3)).multiple == 16
    assert Algorithm(**SPEC.values(channels=(4,) * 6)).multiple == 32
    with pytest.raises(ParameterError, match="two resolutions"):
        Algorithm(**SPEC.values(channels=(4,)))
