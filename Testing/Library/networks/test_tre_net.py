"""The network that estimates errors: its units, its skip, and what it says before it learned."""

import pytest
import torch

from DeepRegLib.networks.tre_net import TreNetwork


def images(count=3, shape=(12, 17, 9)):
    return torch.rand(2, count, 1, *shape)


@pytest.mark.parametrize("shape", [(16, 16, 16), (12, 17, 9), (33, 20, 48)])
def test_one_positive_number_for_any_shape(shape):
    torch.manual_seed(0)
    network = TreNetwork((4, 6, 8), 8).eval()
    torch.nn.init.normal_(network.last.weight, 0.0, 1.0)
    found = network(*images(3, shape))
    assert found.shape == (3,) and found.dtype == torch.float32 and (found > 0).all()


def test_before_it_learned_all_alignments_are_alike():
    network = TreNetwork((4, 6, 8), 8, start_mm=7.0).eval()
    assert network(*images()).tolist() == pytest.approx([7.0] * 3, rel=1e-5)


def test_an_estimate_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    network = TreNetwork((4, 6, 8), 8)
    torch.nn.init.normal_(network.last.weight, 0.0, 1.0)
    fixed, moved = images(6)
    network.train()(fixed, moved)  # running means that are not those of the beginning
    network.eval()
    together = network(fixed, moved)
    alone = torch.cat([network(f[None], m[None]) for f, m in zip(fixed, moved)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_details_reach_the_end_by_the_skip():
    torch.manual_seed(0)
    network = TreNetwork((4, 6, 8, 8, 8), 8).eval()
    torch.nn.init.normal_(network.last.weight, 0.0, 1.0)
    assert network.skipped == 2 and network.dense.in_features == 8 + 8
    fixed, moved = images(2, (32, 32, 32))
    with_skip = network(fixed, moved)
    with torch.no_grad():
        network.dense.weight[:, :8] = 0.0  # the averages of the middle layer
    assert not torch.allclose(with_skip, network(fixed, moved))


def test_the_smallest_images_can_be_trained_on():
    # One voxel is left at the end: normalization needs the others of the batch.
    network = TreNetwork((4, 4, 4, 4, 4), 8).train()
    network(*images(2, (16, 16, 16))).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_the_gradient_reaches_the_moved_image():
    torch.manual_seed(0)
    network = TreNetwork((4, 6, 8), 8).eval()
    torch.nn.init.normal_(network.last.weight, 0.0, 1.0)
    fixed, moved = images(1)
    moved.requires_grad_(True)
    network(fixed, moved).sum().backward()
    assert moved.grad.abs().max() > 0
