"""The autoencoder: shapes, sections, and images that are spoiled on purpose."""

import pytest
import torch

from DeepRegLib.networks.feature_autoencoder import FeatureAutoencoder, corrupted, filled_up


@pytest.mark.parametrize("shape", [(16, 24, 8), (13, 18, 11), (1, 20, 27), (9, 1, 16)])
def test_images_keep_their_shape_and_features_have_that_of_their_resolution(shape):
    torch.manual_seed(0)
    network, image = FeatureAutoencoder((3, 4, 5)), torch.rand(2, 1, *shape)
    with torch.no_grad():
        assert network(image).shape == image.shape
        found = network.features(image)
    whole = filled_up(image, 8).shape[2:]
    assert all(n % 8 == 0 or n == 1 for n in whole)
    for level, (features, channels) in enumerate(zip(found, (3, 4, 5))):
        sizes = [1 if n == 1 else n // 2**level for n in whole]
        assert features.shape == (2, channels, *sizes)


def test_it_learns_to_show_an_image_again():
    torch.manual_seed(0)
    network, image = FeatureAutoencoder((4, 6)), torch.zeros(1, 1, 16, 20, 12)
    image[..., 4:11, 6:15, 3:9] = 0.8
    adam = torch.optim.Adam(network.parameters(), lr=5e-3)
    first = last = 0.0
    for _ in range(40):
        loss = (network(image) - image).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        last = loss.item()
        first = first or last
    assert last < 0.2 * first


@pytest.mark.parametrize("shape", [(24, 30, 20), (1, 40, 50)])
def test_tiles_are_black_or_inverted(shape):
    torch.manual_seed(1)
    image = 0.1 + 0.3 * torch.rand(8, 1, *shape)
    spoiled = corrupted(image, 0.15)
    changed = ~torch.isclose(spoiled, image)  # inverted twice is as before
    shares = changed.float().flatten(1).mean(dim=1)
    assert bool((shares > 0.02).all()) and bool((shares < 0.5).all())
    assert 0.1 < float(shares.mean()) < 0.3
    # Where tiles overlap, black may become white.
    known = (spoiled == 0.0) | (spoiled == 1.0) | torch.isclose(spoiled, 1.0 - image)
    assert bool(known[changed].all())
    assert bool((spoiled == 0.0).any()) and bool((spoiled > 0.6).any())
    assert corrupted(image, 0.0) is image
