"""Half precision: gradients that agree with those of float32, and a network that is left as it was."""

import pytest
import torch
from torch import nn

from DeepRegLib.networks.half import half_inside, half_type

CPU = torch.device("cpu")


class Net(nn.Module):
    """One convolution."""

    def __init__(self, width, stride):
        super().__init__()
        self.layer = nn.Conv3d(16, 32, width, stride, width // 2)

    def forward(self, features):
        return {"features": self.layer(features)}


def _gradients(network, features, weights):
    network.zero_grad()
    features = features.clone().requires_grad_()
    out = network(features)["features"]
    assert out.dtype == torch.float32
    (out * weights).sum().backward()
    return [features.grad, *(p.grad.clone() for p in network.parameters())]


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 4, 4), (4, 2, 4), (4, 4, 2), (3, 4, 4), (5, 6, 7)],
)
def test_gradients_are_those_of_float32(shape, width, stride):
    """Also where images are smaller than the kernel, of which oneDNN makes something else."""
    torch.manual_seed(0)
    network, features = Net(width, stride), torch.randn(1, 16, *shape)
    weights = torch.randn_like(network(features)["features"])
    exact = _gradients(network, features, weights)
    # What the memory held before must not matter.
    for _ in range(3):
        torch.full((2_000_000,), float("nan"))
        with half_inside(network, "cpu", torch.bfloat16):
            found = _gradients(network, features, weights)
        for a, b in zip(found, exact):
            assert float((a - b).abs().max()) < 0.02 * float(b.abs().max())


def test_the_network_is_left_as_it_was():
    network = Net(3, 1)
    before = network.forward, network.layer.forward
    with pytest.raises(RuntimeError, match="expected"), half_inside(network, "cpu", torch.bfloat16):
        assert network.forward != before[0] and network.layer.forward != before[1]
        network(torch.zeros(1, 2, 4, 4, 4))
    assert (network.forward, network.layer.forward) == before
    with half_inside(network, "cpu", None):
        assert network.forward == before[0]
    with half_inside(network.layer, "cpu", torch.bfloat16):
        assert network.layer(torch.zeros(1, 16, 4, 4, 4)).dtype == torch.float32
    assert network.layer.forward == before[1]


def test_types_that_a_device_cannot_use_are_replaced():
    assert half_type("float32", CPU) == (None, "")
    assert half_type("bfloat16", CPU) == (torch.bfloat16, "")
    kind, remark = half_type("float16", CPU)
    assert kind is None and "GPU" in remark
