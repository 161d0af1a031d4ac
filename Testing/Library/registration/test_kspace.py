"""K-space: transforms, masks, low resolution, phase, and files of raw data."""

import numpy as np
import pytest
import torch
from pairs import voxel_points
from support import make_grid

from DeepRegLib.errors import FileFormatError, InputError, ParameterError
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.registration.base import Image
from DeepRegLib.registration.kspace import (
    cartesian_mask,
    cropped,
    frequencies,
    fused,
    low_resolution_grid,
    low_resolution_shape,
    middle,
    smooth_phase,
    to_image,
    to_kspace,
    whole_center,
)
from DeepRegLib.registration.raw_data import RawData, read_raw, write_raw

SHAPE = (12, 15, 10)


def random_image(shape=SHAPE, seed=0):
    return torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed))


def test_transforms_undo_each_other_and_keep_the_energy():
    image = random_image()
    kspace = to_kspace(image)
    assert torch.allclose(to_image(kspace).real, image, atol=1e-5)
    assert kspace.abs().square().sum().item() == pytest.approx(image.square().sum().item(), 1e-4)
    zero = tuple(n // 2 for n in SHAPE)
    expected = image.sum() / np.prod(SHAPE) ** 0.5
    assert kspace[0, 0][zero].real.item() == pytest.approx(expected.item(), 1e-4)


def test_phases_count_from_the_middle_voxel():
    image = torch.zeros(1, 1, *SHAPE)
    image[0, 0, 6, 7, 5] = 1.0
    kspace = to_kspace(image)
    assert torch.allclose(kspace, torch.full_like(kspace, float(np.prod(SHAPE)) ** -0.5), atol=1e-6)


@pytest.mark.parametrize("pattern", ["points", "lines"])
@pytest.mark.parametrize("shape", [(20, 33, 26), (40, 24, 31), (1, 30, 24)])
def test_masks_have_the_acceleration_and_a_whole_center(pattern, shape):
    mask = cartesian_mask(shape, 4.0, 0.1, pattern)
    assert mask.shape == (1, 1, *shape) and mask.dtype == torch.bool
    assert mask.numel() / int(mask.sum()) == pytest.approx(4.0, rel=0.1)
    readout = int(np.argmax(shape))
    first = mask[0, 0].narrow(readout, 0, 1)
    assert (mask[0, 0] == first).all()  # every sample of a readout, or none
    sizes = [n if axis == readout else max(1, round(0.1 * n)) for axis, n in enumerate(shape)]
    assert middle(mask, sizes).all()
    if pattern == "lines":
        varying = [a for a in range(3) if not (mask[0, 0] == mask[0, 0].narrow(a, 0, 1)).all()]
        assert len(varying) == 1


def test_masks_sample_low_frequencies_more_and_differ_by_their_seed():
    mask = cartesian_mask((64, 48, 48), 8.0, 0.06)[0, 0, 0].float()
    inner = mask[12:36, 12:36].mean()
    assert inner > 2.0 * mask.mean()
    again, other = (cartesian_mask((64, 48, 48), 8.0, 0.06, seed=s)[0, 0, 0] for s in (0, 1))
    assert torch.equal(again.float(), mask) and not torch.equal(again, other)
    along = cartesian_mask((20, 30, 40), 3.0, readout=1)[0, 0]
    assert (along == along[:, :1]).all() and not (along == along[..., :1]).all()
    assert cartesian_mask(SHAPE, 1.0).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((SHAPE, 0.5), "accelerated 1 time"),
        ((SHAPE, 4.0, 0.9), "smaller center"),
        ((SHAPE, 4.0, 0.1, "spiral"), "points or lines"),
        (((1, 1, 9), 4.0), "one line"),
    ],
)
def test_impossible_masks_are_refused(arguments, words):
    with pytest.raises(ParameterError, match=words):
        cartesian_mask(*arguments)


@pytest.mark.parametrize("orientation", ["RAS", "oblique"])
@pytest.mark.parametrize("small", [(9, 11, 13), (10, 12, 9)])
def test_the_middle_of_kspace_is_the_image_at_a_lower_resolution(orientation, small):
    """An object stays where it is in RAS, and as bright as it is."""
    grid = make_grid(orientation, (24, 29, 26), (1.5, 1.2, 2.0))
    points = voxel_points(grid)
    # Off the middle, and so wide that the coarse grid holds it.
    center = grid.to_ras([13.3, 12.1, 14.6])
    values = np.exp(-((points - center) ** 2).sum(-1) / (2 * 5.0**2))
    image = torch.from_numpy(values).float()[None, None]
    low = to_image(cropped(to_kspace(image), small)).real
    coarse = low_resolution_grid(grid, small)
    there = voxel_points(coarse)
    expected = np.exp(-((there - center) ** 2).sum(-1) / (2 * 5.0**2))
    assert np.abs(low[0, 0].numpy() - expected).max() < 0.08
    weight = low[0, 0].numpy() ** 2
    found = (there * weight[..., None]).sum((0, 1, 2)) / weight.sum()
    assert np.linalg.norm(found - center) < 0.4
    # A grid over the same extent, as for averaged voxels, would be off by far more.
    resized = voxel_points(grid.resized(small))
    wrong = (resized * weight[..., None]).sum((0, 1, 2)) / weight.sum()
    assert np.linalg.norm(wrong - center) > 2.5 * np.linalg.norm(found - center)


def test_shapes_of_levels():
    grid = make_grid("RAS", (48, 40, 12), (1.0, 1.0, 4.0))
    assert low_resolution_shape(grid, 1.0) == (48, 40, 12)
    assert low_resolution_shape(grid, 2.0) == (25, 21, 12)  # odd, and the thick axis as it is
    assert low_resolution_shape(grid, 64.0) == (9, 9, 9)
    assert low_resolution_shape(make_grid("RAS", (1, 40, 40), (5.0, 1.0, 1.0)), 2.0)[0] == 1


def test_frequencies_are_in_cycles_per_mm():
    found = frequencies(Grid((8, 10, 1), np.diag([2.0, 1.0, 3.0, 1.0])))[0, 0, :, :, 0]
    assert found[4, 5] == 0.0
    assert found[0, 5].item() == pytest.approx(0.25) and found[4, 0].item() == pytest.approx(0.5)
    assert found[5, 5].item() == pytest.approx(1 / 16)


@pytest.mark.parametrize("acceleration", [1.0, 3.0])
def test_a_smooth_phase_is_found_in_the_center(acceleration):
    shape = (24, 30, 20)
    grid = Grid(shape, np.eye(4))
    magnitude = gaussian_smooth(random_image(shape), 1.0)
    ramp = torch.from_numpy(voxel_points(grid) @ [0.03, -0.05, 0.02]).float()[None, None]
    mask = cartesian_mask(shape, acceleration, 0.2)
    samples = to_kspace(magnitude * torch.exp(1j * (ramp + 0.7))) * mask
    found = smooth_phase(samples, whole_center(mask))
    assert torch.allclose(found.abs(), torch.ones_like(magnitude), atol=1e-4)
    off = torch.angle(found * torch.exp(-1j * (ramp + 0.7)))
    assert off[:, :, 4:-4, 4:-4, 4:-4].abs().max() < 0.25


def test_fusion_keeps_the_samples_and_fills_the_rest():
    samples, guess = (to_kspace(random_image(seed=s)) for s in (0, 1))
    mask = cartesian_mask(SHAPE, 2.0)
    found = fused(samples * mask, mask, guess)
    assert torch.equal(found[mask], samples[mask]) and torch.equal(found[~mask], guess[~mask])
    # Its normal equation: S (k - y) + trust (k - guess) = 0 where there are samples.
    half = fused(samples * mask, mask, guess, trust=0.5)
    rest = (half - samples)[mask] + 0.5 * (half - guess)[mask]
    assert rest.abs().max() < 1e-5


def test_raw_data_of_an_image():
    grid = make_grid("LPS", SHAPE)
    image = Image(random_image(), grid)
    whole = RawData.simulated(image, cartesian_mask(SHAPE, 1.0))
    assert torch.allclose(whole.zero_filled().data, image.data, atol=1e-5)
    part = RawData.simulated(image, cartesian_mask(SHAPE, 3.0))
    assert part.acceleration == pytest.approx(3.0, rel=0.1)
    assert (part.samples[~part.mask] == 0).all()
    with pytest.raises(InputError, match="as many samples"):
        RawData(whole.samples, whole.mask, make_grid("LPS", (12, 15, 11)))
    with pytest.raises(InputError, match="no sample"):
        RawData(whole.samples * 0, whole.mask & False, grid)
    with pytest.raises(InputError, match="no numbers"):
        RawData(whole.samples * float("nan"), whole.mask, grid)


def test_files_bring_everything_back(tmp_path):
    grid = make_grid("oblique", SHAPE)
    raw = RawData.simulated(Image(random_image(), grid), cartesian_mask(SHAPE, 2.5))
    write_raw(raw, tmp_path / "scan.npz")
    found = read_raw(tmp_path / "scan.npz")
    assert torch.equal(found.samples, raw.samples) and torch.equal(found.mask, raw.mask)
    assert found.grid.matches(grid)
    np.save(tmp_path / "scan.npy", raw.samples[0, 0].numpy())
    plain = read_raw(tmp_path / "scan.npy", grid)
    assert torch.equal(plain.samples, raw.samples) and torch.equal(plain.mask, raw.mask)


def test_arrays_with_frequency_zero_first():
    grid = Grid(SHAPE, np.eye(4))
    image = random_image()
    kspace = np.fft.fftn(np.fft.ifftshift(image[0, 0].numpy()), norm="ortho")
    raw = RawData.of_arrays(kspace, grid, centered=False)
    assert torch.allclose(raw.zero_filled().data, image, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (None, "none.npz", "cannot be read"),
        (b"no numbers", "text.npz", "damaged"),
        (b"x", "scan.h5", "file of numpy"),
        ({"image": np.zeros(3)}, "other.npz", "no array 'kspace'"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, content, name, words):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(FileFormatError, match=words):
        read_raw(path)


@pytest.mark.parametrize("array", [np.zeros((2, *SHAPE), complex), np.zeros(SHAPE)])
def test_coils_and_real_numbers_are_refused(array):
    with pytest.raises(InputError, match="complex array of three axes"):
        RawData.of_arrays(array, Grid(SHAPE, np.eye(4)))


def test_files_never_run_code(tmp_path):
    np.save(tmp_path / "bad.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(FileFormatError, match="damaged"):
        read_raw(tmp_path / "bad.npy")
