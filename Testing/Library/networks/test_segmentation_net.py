"""The segmentation network: shapes, channels, normalization, and that it learns."""

import pytest
import torch

from DeepRegLib.errors import GeometryError, ParameterError
from DeepRegLib.losses.anatomy import segmentation_loss
from DeepRegLib.networks.atlas_net import AtlasNetwork, RegistrationNet
from DeepRegLib.networks.blocks import channels_last
from DeepRegLib.networks.optimizer import network_optimizer
from DeepRegLib.networks.segmentation_net import SegmentationNet

ENCODER, DECODER = (4, 6, 6, 8, 8, 10), (8, 8, 6, 6)


@pytest.mark.parametrize("shape", [(8, 16, 12), (9, 13, 18)])
@pytest.mark.parametrize("classes", [1, 5])
def test_a_logit_for_each_class_and_voxel(shape, classes):
    network = channels_last(SegmentationNet(classes, ENCODER, DECODER))
    logits = network(torch.rand(2, 1, *shape))
    assert logits.shape == (2, classes, *shape)
    # Rows of classes are then a view, which the losses count on.
    assert logits.movedim(1, -1).is_contiguous()


def test_channels_are_those_of_the_publication():
    network = SegmentationNet(3, (8, 16, 16, 32, 32, 64, 64, 64), (64, 64, 32, 32, 16, 16))
    shapes = {
        name: tuple(p.shape[:2])
        for name, p in network.named_parameters()
        if "convolution.weight" in name
    }
    assert list(shapes.values()) == [
        (8, 1), (16, 8), (16, 16), (32, 16), (32, 32), (64, 32), (64, 64), (64, 64),
        (64, 64), (64, 64), (32, 32), (64, 128), (64, 64), (32, 96), (32, 32), (16, 48), (16, 16),
    ]  # fmt: skip


def test_brightness_and_contrast_make_no_difference():
    # A batch of one is normalized by itself, in training as in use.
    torch.manual_seed(0)
    network = SegmentationNet(4, ENCODER, DECODER)
    image = torch.rand(1, 1, 8, 16, 12)
    expected = network(image)
    assert torch.allclose(network.eval()(image), expected, atol=1e-6)
    both = network(torch.cat([image, 0.2 * image]))
    assert torch.allclose(both[:1], expected, atol=1e-4)


def test_it_learns_places_and_brightness():
    torch.manual_seed(0)
    network = SegmentationNet(3, ENCODER, DECODER)
    image = torch.rand(1, 1, 8, 16, 12)
    truth = (image > 0.6).long()
    truth[..., 6:] *= 2
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(40):
        loss = segmentation_loss(network(image), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network(image).argmax(1, keepdim=True) == truth).float().mean() > 0.9


def test_every_weight_learns():
    torch.manual_seed(0)
    network = SegmentationNet(3, ENCODER, DECODER)
    network(torch.rand(1, 1, 8, 16, 12)).square().sum().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize(
    ("encoder", "decoder"), [((4, 4), ()), ((4, 4, 4), (4,)), ((4, 4, 4, 4), (4, 4, 4, 4))]
)
def test_channels_that_do_not_fit_are_refused(encoder, decoder):
    with pytest.raises(ParameterError, match="two convolutions at each"):
        SegmentationNet(3, encoder, decoder)


def test_images_of_other_shapes_and_no_classes_are_refused():
    with pytest.raises(GeometryError, match=r"\(B, 1, D, H, W\)"):
        SegmentationNet(3, ENCODER, DECODER)(torch.rand(1, 2, 8, 8, 8))
    with pytest.raises(ParameterError, match="at least one class"):
        SegmentationNet(0, ENCODER, DECODER)


def test_registration_begins_at_the_full_resolution():
    network = RegistrationNet((16, 32, 32, 32, 32), (32, 32, 32, 8, 8))
    shapes = {n: tuple(p.shape[:2]) for n, p in network.named_parameters() if "weight" in n}
    assert list(shapes.values()) == [
        (16, 2), (32, 16), (32, 32), (32, 32), (32, 32),
        (32, 32), (32, 64), (32, 64), (32, 64), (8, 48), (8, 8), (3, 8),
    ]  # fmt: skip
    pair = torch.rand(2, 1, 1, 9, 20, 16)
    vectors = network(*pair)
    assert vectors.shape == (1, 3, 9, 20, 16) and vectors.abs().max() < 0.01
    for encoder, decoder in (((4,), (4,)), ((4, 4, 4), (4,))):
        with pytest.raises(ParameterError, match="decoder of at least"):
            RegistrationNet(encoder, decoder)


def test_one_call_runs_one_of_the_networks():
    network = AtlasNetwork(5, (4, 4, 4), (4, 4), ENCODER, DECODER)
    image = torch.rand(2, 1, 8, 16, 12)
    assert network(image, image).shape == (2, 3, 8, 16, 12)
    assert network(image).shape == (2, 5, 8, 16, 12)


def test_few_features_soon_tell_many_classes_apart():
    torch.manual_seed(0)
    classes = torch.randperm(64).reshape(1, 1, 4, 4, 4)
    for axis, size in enumerate((4, 4, 3), 2):
        classes = classes.repeat_interleave(size, axis)
    image = classes / 63.0
    network = channels_last(SegmentationNet(64, (8, 16, 16, 32), (16, 16)))
    optimizer = network_optimizer("muon", network, list(network.parameters()), 1e-3)
    for _ in range(40):
        loss = segmentation_loss(network(image), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # It begins at 5.3; with a plain last layer it is still 3.9 here.
    assert float(loss.detach()) < 1.5
