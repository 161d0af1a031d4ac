"""Images that the tests of losses share: anisotropic, non-cubic, two samples, two channels."""

from types import SimpleNamespace

import pytest
import torch

from DeepRegLib.geometry.sampling import gaussian_smooth

SHAPE = (9, 7, 11)


def smooth_noise(*shape, seed=0, sigma=1.0, dtype=torch.float64):
    """Smooth random images with intensities within 0.05 ... 0.95."""
    noise = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    image = gaussian_smooth(noise, sigma)
    low, high = image.amin(), image.amax()
    return (0.05 + 0.9 * (image - low) / (high - low)).to(dtype)


@pytest.fixture
def noise():
    return smooth_noise


@pytest.fixture(autouse=True)
def _one_thread():
    # The images are tiny: threads would only wait for each other.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def case():
    """Two different images in double precision, and a mask with soft weights and zeros."""
    fixed = smooth_noise(2, 2, *SHAPE, seed=1, sigma=0.7)
    moved = 0.6 * fixed + 0.4 * smooth_noise(2, 2, *SHAPE, seed=2, sigma=0.7)
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(2, 1, *SHAPE, generator=generator, dtype=torch.float64)
    mask[..., :4] = 0.0
    mask[:, :, 5:, :, 5:] = 1.0
    mask[mask < 0.2] = 0.0
    return SimpleNamespace(fixed=fixed, moved=moved, mask=mask)
