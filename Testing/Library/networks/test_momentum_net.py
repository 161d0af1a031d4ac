"""Patches of a momentum: every voxel is seen, none is lost, and each component has its decoder."""

import itertools

import pytest
import torch
from torch import nn

from DeepRegLib.networks import momentum_net
from DeepRegLib.networks.momentum_net import (
    STRIDE,
    WIDTH,
    Dropout,
    MomentumNetwork,
    at_least,
    cut,
    folded,
    joined,
    patch_starts,
    predicted,
    random_starts,
    showing,
)

SHAPE = (15, 31, 20)


def small(inputs=2, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return MomentumNetwork(inputs, (4, 6), dropout)


@pytest.mark.parametrize("shape", [(15, 15, 15), SHAPE, (29, 43, 16)])
def test_patches_cover_everything_from_the_first_voxel_to_the_last(shape):
    starts = patch_starts(shape)
    assert starts[0] == (0, 0, 0) and len(set(starts)) == len(starts)
    seen = torch.zeros(shape, dtype=torch.int64)
    for a, b, c in starts:
        assert all(s + WIDTH <= n for s, n in zip((a, b, c), shape))
        seen[a : a + WIDTH, b : b + WIDTH, c : c + WIDTH] += 1
    assert seen.min() == 1
    steps = sorted({s[1] for s in starts})
    assert all(b - a <= STRIDE for a, b in itertools.pairwise(steps))


def test_patches_that_are_cut_and_joined_are_what_they_were():
    values = torch.randn(1, 3, *SHAPE)
    starts = patch_starts(SHAPE)
    assert torch.allclose(joined(cut(values, starts), starts, SHAPE), values, atol=1e-6)


def test_overlaps_are_averaged():
    starts = [(0, 0, 0), (0, 5, 0)]
    patches = torch.stack([torch.full((1, 15, 15, 15), v) for v in (1.0, 3.0)])
    found = joined(patches, starts, SHAPE)[0, 0]
    assert (found[:, :5, :15] == 1).all() and (found[:, 5:15, :15] == 2).all()
    assert (found[:, 15:20, :15] == 3).all() and (found[:, 20:] == 0).all()


def test_the_first_patch_counts():
    """An image with something in the corner of the first patch alone."""

    class Copy(nn.Module):
        def forward(self, fixed, moving):
            return torch.cat([fixed[:, :1]] * 3, dim=1)

    fixed = torch.zeros(1, 1, *SHAPE)
    fixed[0, 0, 0, 0, 0] = 0.7
    found = predicted(Copy(), fixed, torch.zeros_like(fixed))
    assert found[0, :, 0, 0, 0].tolist() == pytest.approx([0.7] * 3)
    assert float(found.sum()) == pytest.approx(2.1)


def test_background_is_not_looked_at():
    class Counter(nn.Module):
        patches = 0

        def forward(self, fixed, moving):
            Counter.patches += len(fixed)
            return torch.ones(len(fixed), 3, WIDTH, WIDTH, WIDTH)

    fixed, moving = torch.zeros(2, 1, 1, 15, 43, 15)
    assert (predicted(Counter(), fixed, moving) == 0).all() and Counter.patches == 0
    moving[0, 0, 3, 40, 3] = 1.0
    found = predicted(Counter(), fixed, moving)
    assert Counter.patches == 1
    assert (found[..., 28:, :] == 1).all() and (found[..., :28, :] == 0).all()
    assert showing(fixed, moving, [(0, 0, 0), (0, 28, 0)]) == [(0, 28, 0)]


def test_a_lattice_smaller_than_a_patch_is_padded():
    fixed, moving = torch.rand(2, 1, 2, 9, 20, 15)
    assert at_least(fixed).shape == (1, 2, 15, 20, 15)
    assert predicted(small(), fixed, moving).shape == (1, 3, 9, 20, 15)


def test_random_patches_show_something():
    fixed, moving = torch.zeros(2, 1, 2, *SHAPE)
    fixed[..., 0:2, 0:2, 0:2] = 1.0
    torch.manual_seed(0)
    starts = random_starts(fixed, moving, 10)
    assert len(starts) == 10
    assert all(s[1] < 2 and s[2] < 2 for s in starts) or len(set(starts)) > 1
    assert showing(fixed, moving, starts) == starts
    empty = torch.zeros(1, 2, *SHAPE)
    assert len(random_starts(empty, empty, 10)) == 10


def test_folding_loses_nothing():
    image = torch.arange(2 * 4 * 6 * 10.0).reshape(2, 1, 4, 6, 10)
    found = folded(image, (2, 3, 1))
    assert found.shape == (2, 6, 2, 2, 10)
    for i, j in itertools.product(range(2), range(3)):
        assert torch.equal(found[:, 3 * i + j], image[:, 0, i::2, j::3])


def test_starts_with_hardly_any_momentum_and_every_weight_learns():
    network = small()
    fixed, moving = torch.rand(2, 2, 2, WIDTH, WIDTH, WIDTH)
    found = network(fixed, moving)
    assert found.shape == (2, 3, WIDTH, WIDTH, WIDTH) and found.abs().max() < 1e-2
    for decoder in network.components:
        nn.init.normal_(decoder.head.convolution.weight, 0.0, 0.1)
    network(fixed, moving).square().sum().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_images_and_components_have_parts_of_their_own():
    network = small()
    for decoder in network.components:
        nn.init.normal_(decoder.head.convolution.weight, 0.0, 0.1)
    fixed, moving = torch.rand(2, 1, 2, WIDTH, WIDTH, WIDTH)
    there = network(fixed, moving)
    assert (there - network(moving, fixed)).abs().max() > 1e-4
    nn.init.zeros_(network.components[1].head.convolution.weight)
    found = network(fixed, moving)
    assert torch.equal(found[:, [0, 2]], there[:, [0, 2]]) and (found[:, 1] == 0).all()


def test_dropout_is_kept_on_in_use():
    torch.manual_seed(0)
    layer = Dropout(0.3).eval()
    found = layer(torch.ones(20000))
    assert float((found == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(found.mean()) == pytest.approx(1.0, abs=0.03)
    sure, unsure = small(), small(dropout=0.3)
    for network in (sure, unsure):
        network.eval()
        for decoder in network.components:
            nn.init.normal_(decoder.head.convolution.weight, 0.0, 0.1)
    pair = torch.rand(2, 1, 2, WIDTH, WIDTH, WIDTH)
    assert torch.equal(sure(*pair), sure(*pair))
    assert (unsure(*pair) - unsure(*pair)).abs().max() > 1e-4


def test_gradients_are_the_same_with_less_memory(monkeypatch):
    network = small()
    for decoder in network.components:
        nn.init.normal_(decoder.head.convolution.weight, 0.0, 0.1)
    fixed, moving = torch.rand(2, 1, 2, *SHAPE)
    found = []
    for at_once in (1, 100):
        monkeypatch.setattr(momentum_net, "_AT_ONCE", at_once)
        network.zero_grad()
        predicted(network, fixed, moving).square().sum().backward()
        found.append([p.grad.clone() for p in network.parameters()])
    for one, other in zip(*found):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def smooth(seed, count=2):
    """Images (count, 1, *patch) of blurred noise, 0 to 1."""
    noise = torch.randn(count, 1, 15, 15, 15, generator=torch.Generator().manual_seed(seed))
    return torch.sigmoid(4.0 * nn.functional.avg_pool3d(noise, 3, stride=1, padding=1))


def test_a_product_of_differences_and_gradients_is_learned_in_few_steps():
    """What momenta are made of; at a quarter of the resolution alone it took thousands of steps."""
    network = small(inputs=1)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    shares = []
    for step in range(150):
        fixed, moving = smooth(2 * step), smooth(2 * step + 1)
        slopes = torch.cat([torch.gradient(moving, dim=axis)[0] for axis in (2, 3, 4)], dim=1)
        target = 10.0 * (fixed - moving) * slopes
        loss = (network(fixed, moving) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append(float(loss.detach() / target.abs().mean()))
    assert sum(shares[:10]) / 10 > 0.95
    assert sum(shares[-10:]) / 10 < 0.9
