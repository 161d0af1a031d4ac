"""The network of the error map: a volume judged at once gives what patches give one by one."""

import pytest
import torch

from DeepRegLib.errors import ParameterError
from DeepRegLib.networks import error_net
from DeepRegLib.networks.error_net import ErrorNetwork


def make(window=1, seed=0):
    """A network whose statistics are those of some batches, not the initial ones."""
    torch.manual_seed(seed)
    network = ErrorNetwork((4, 6), (8, 5), window, start=1.5)
    torch.nn.init.normal_(network.last.weight, 0.0, 0.5)
    network.train()
    for _ in range(20):
        network(torch.rand(3, 2, network.field + 4, network.field, network.field + 8))
    return network.eval()


@pytest.mark.parametrize(("window", "field"), [(1, 18), (2, 22), (5, 34)])
def test_the_field_is_what_one_answer_needs(window, field):
    network = ErrorNetwork((2, 3), (4, 3), window)
    assert network.field == field
    assert network(torch.rand(2, 2, field, field, field)).shape == (2, 1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        network(torch.rand(2, 2, field, field - 1, field))


def test_an_untrained_network_says_the_start():
    network = ErrorNetwork((2, 3), (4, 3), 1, start=2.5).eval()
    assert network(torch.zeros(1, 2, 18, 18, 18)).item() == pytest.approx(2.5, abs=0.2)


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("window", [1, 2])
def test_dense_answers_are_those_of_the_patches(window, step):
    network = make(window)
    field = network.field
    pair = torch.rand(1, 2, field + 8, field + 4, field + 13)
    with torch.no_grad():
        dense = network(pair, step)
        assert dense.shape[2:] == tuple((n - field) // step + 1 for n in pair.shape[2:])
        for a, b, c in [(0, 0, 0), (1, 0, 2), (8 // step, 4 // step, 12 // step)]:
            i, j, k = a * step, b * step, c * step
            patch = pair[:, :, i : i + field, j : j + field, k : k + field]
            assert dense[0, 0, a, b, c].item() == pytest.approx(network(patch).item(), abs=1e-5)


def test_the_answers_of_patches_do_not_depend_on_their_batch():
    """Batch normalization takes the statistics of the training, in a module that trains as well."""
    network = make()
    pair = torch.rand(1, 2, 20, 24, 28)
    expected = network.everywhere(pair, 2)
    network.train()
    assert torch.equal(network.everywhere(pair, 2), expected)
    assert not torch.equal(network(pair, 2), network(pair, 2, settled=True))


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("shape", [(13, 22, 17), (16, 9, 24)])
def test_everywhere_lies_at_the_voxels(step, shape):
    """Each answer stands at the middle of its patch: between them it is interpolated."""
    network = make()
    pair = torch.rand(1, 2, *shape)
    with torch.no_grad():
        found = network.everywhere(pair, step)
        assert found.shape == (1, 1, *shape)
        padded = torch.nn.functional.pad(pair, [network.field] * 6)
        where = (5, 4, 9)
        near = []
        # The eight answers around the voxel (step 1: they lie half a voxel off on either side).
        for corner in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
            low = [(int((w + 0.5) // step)) * step for w in where]
            start = [n + step * up - network.field // 2 + network.field
                     for n, up in zip(low, corner)]  # fmt: skip
            cut = tuple(slice(s, s + network.field) for s in start)
            patch = padded[(slice(None), slice(None), *cut)]
            weight = 1.0
            for w, n, up in zip(where, low, corner):
                share = (w + 0.5 - n) / step
                weight *= share if up else 1.0 - share
            near.append(weight * network(patch).item())
    assert found[0, 0][where].item() == pytest.approx(sum(near), abs=1e-4)


def test_slabs_make_no_difference(monkeypatch):
    network = make()
    pair = torch.rand(1, 2, 26, 12, 14)
    with torch.no_grad():
        whole = network.everywhere(pair, 2)
        monkeypatch.setattr(error_net, "_MOST", 0)
        assert torch.allclose(network.everywhere(pair, 2), whole, atol=1e-5)


def test_other_numbers_of_layers_are_refused():
    with pytest.raises(ParameterError, match="two groups"):
        ErrorNetwork((2, 3, 4), (4, 3))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_forces_point_along_the_axis_of_a_shift(axis):
    """Where a smooth image is shifted by a little, the forces tell the shift that is missing."""
    shape, shift = (22, 26, 24), 0.2
    where = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))
    waves = torch.tensor([0.5, 0.4, 0.6]).view(3, 1, 1, 1)

    def image(points):
        return (0.5 + 0.15 * torch.sin(points * waves).sum(dim=0))[None, None]

    moved = where.clone()
    moved[axis] -= shift  # the anatomy lies further along the axis by this
    shown = error_net._shown(torch.cat([image(moved), image(where)], dim=1))
    assert shown.shape == (1, 5, *(n - 2 for n in shape))
    assert torch.equal(shown[:, :1], image(moved)[..., 1:-1, 1:-1, 1:-1])
    forces = shown[0, 2:].mean(dim=(1, 2, 3))
    assert forces.abs().argmax() == axis and forces.abs()[axis] > 5 * forces.abs().sort()[0][1]
    assert forces[axis] < 0  # apart = moved - fixed falls where the image rises
    assert shown[0, 2:].norm(dim=0).max() <= 0.5
