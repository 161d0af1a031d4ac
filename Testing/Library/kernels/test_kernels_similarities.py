"""LNCC and mutual information by kernels against the library's own values and gradients."""

import pytest
import torch

from DeepRegLib import kernels
from DeepRegLib.errors import GeometryError
from DeepRegLib.losses.lncc import LNCC
from DeepRegLib.losses.mutual_information import MutualInformation


def plain(function):
    """The library's function with the kernels switched off: torch is the reference."""

    def call(*args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DEEPREG_TRITON", "0")
            return function(*args)

    return call


SHAPE = (7, 10, 13)


@pytest.fixture(autouse=True)
def _fresh(no_switched_off_kernels):
    pass


def masks(draw, kind, batch):
    if kind == "none":
        return None
    mask = draw(1 if kind == "shared" else batch, 1, *SHAPE)
    return (mask > 0.6).float() if kind == "holes" else mask * (mask > 0.3)


def same_gradient(got, expected):
    assert got.shape == expected.shape
    largest = float(expected.abs().max())
    assert largest > 0
    assert float((got - expected).abs().max()) <= 2e-4 * largest


@pytest.mark.parametrize("kind", ["none", "holes", "weights", "shared"])
@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("signed", [False, True])
def test_lncc(draw, kind, radius, signed):
    fixed = draw(2, 1, *SHAPE)
    moved = 0.6 * fixed + 0.4 * draw(2, 1, *SHAPE) + 3.0
    mask = masks(draw, kind, 2)
    value, gradient = kernels.lncc(fixed, moved, mask, radius, signed)
    expected = plain(LNCC(radius, signed).value_and_gradient)(fixed, moved, mask)
    assert float(value) == pytest.approx(float(expected[0]), abs=2e-5)
    assert 0.05 < float(value) < 0.95
    same_gradient(gradient, expected[1])


@pytest.mark.parametrize("slab", [1, 2, 3, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_lncc_in_slabs(draw, monkeypatch, slab, masked):
    from DeepRegLib.kernels import dispatch

    monkeypatch.setattr(dispatch.module("triton_boxes"), "SLAB", slab)
    fixed, moved = draw(1, 2, *SHAPE), draw(1, 2, *SHAPE)
    mask = masks(draw, "weights", 1) if masked else None
    value, gradient = kernels.lncc(fixed, moved, mask, 2)
    expected = plain(LNCC(2).value_and_gradient)(fixed, moved, mask)
    assert float(value) == pytest.approx(float(expected[0]), abs=2e-5)
    same_gradient(gradient, expected[1])


def test_lncc_stores_no_more_than_a_slab(draw):
    from DeepRegLib.kernels import dispatch

    boxes = dispatch.module("triton_boxes")
    tall = torch.empty(1, 1, 5 * boxes.SLAB, 2, 3)
    assert boxes._buffers(tall, 2, masked=False).shape == (2, 5, boxes.SLAB + 8, 2, 3)
    assert boxes._buffers(tall[:, :, :9], 2, masked=True).shape == (2, 6, 9, 2, 3)


def test_lncc_of_constant_and_half_precision_images(draw):
    fixed, moved = draw(1, 1, *SHAPE), draw(1, 1, *SHAPE)
    value, gradient = kernels.lncc(fixed, torch.full_like(moved, 0.5))
    assert float(value) == pytest.approx(1.0, abs=1e-4)
    assert bool(torch.isfinite(gradient).all())
    half = fixed.half(), moved.half()
    value, gradient = kernels.lncc(*half)
    expected = plain(LNCC().value_and_gradient)(*half)
    assert float(value) == pytest.approx(float(expected[0]), abs=2e-5)
    same_gradient(gradient, expected[1])


@pytest.mark.parametrize("bins", [8, 16, 20, 32])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_mutual_information(draw, bins, weighted, normalized):
    # Some samples lie beyond 0 ... 1; their number fills neither blocks nor programs.
    fixed = draw(1, 1, 3, *SHAPE[1:], low=-0.2, high=1.2).reshape(-1)
    moved = (0.8 * (1.0 - fixed) ** 2 + 0.3 * draw(fixed.numel())).clamp(-0.1, 1.1)
    weight = draw(fixed.numel()) if weighted else None
    measure = MutualInformation(bins, normalized)
    value, slope = plain(measure._channel)(fixed, moved, weight)
    total = float(moved.numel()) if weight is None else weight.sum() + 1e-12
    joint = kernels.joint_histogram(fixed, moved, bins, weight)
    assert joint.dtype == torch.float64
    assert joint.shape == (bins, bins)
    assert float(joint.sum()) == pytest.approx(float(total), rel=1e-5)
    got, table = measure._derivative(joint / total)
    assert float(got) == pytest.approx(float(value), abs=1e-5)
    same_gradient(
        kernels.histogram_slope(fixed, moved, table * ((bins - 5) / total), weight), slope
    )


def test_joint_histogram_over_many_programs(draw, monkeypatch):
    from DeepRegLib.kernels import dispatch

    monkeypatch.setattr(dispatch.module("triton_histogram"), "PROGRAMS", 3)
    fixed, moved = draw(1000), draw(1000)
    joint = kernels.joint_histogram(fixed, moved, 16)
    expected = torch.zeros(16, 16, dtype=torch.float64)
    rows = (fixed.cpu().double() * 15 + 0.5).long()
    place = moved.cpu().double() * 11 + 2
    for column in range(16):
        distance = (place - column).abs()
        near = 2 / 3 - distance**2 + distance**3 / 2
        far = (2 - distance).clamp(min=0) ** 3 / 6
        weight = torch.where(distance < 1, near, far)
        expected[:, column] = torch.bincount(rows, weight, minlength=16)
    assert torch.allclose(joint.cpu(), expected, atol=1e-4)


def test_one_place_for_everything_is_counted_too(device):
    dark = torch.zeros(500, device=device)
    joint = kernels.joint_histogram(dark, dark, 32)
    assert float(joint[0].sum()) == pytest.approx(500.0)
    assert joint[0, 1:4].tolist() == pytest.approx([500 / 6, 500 * 2 / 3, 500 / 6], rel=1e-5)


def test_wrong_shapes_are_refused_in_a_sentence(draw):
    image = draw(1, 1, *SHAPE)
    with pytest.raises(GeometryError, match="same shape"):
        kernels.lncc(image, image[:, :, 1:])
    with pytest.raises(GeometryError, match="mask"):
        kernels.lncc(image, image, image[:, :, 1:])
    with pytest.raises(GeometryError, match="samples of one shape"):
        kernels.joint_histogram(image, image[:, :, 1:], 16)
    with pytest.raises(GeometryError, match="table"):
        kernels.histogram_slope(image, image, draw(16, 17))
