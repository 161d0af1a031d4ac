"""Every similarity against a slow, readable version, its gradient, and what masks mean."""

import itertools
import math

import numpy as np
import pytest
import torch

from DeepRegLib.errors import GeometryError, ParameterError
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.losses import SIMILARITIES, similarity
from DeepRegLib.losses.box import box_sum
from DeepRegLib.losses.dice import one_hot
from DeepRegLib.losses.mind import MIND

SHAPE = (7, 9, 11)
CASES = [
    ("mse", {}),
    ("ncc", {}),
    ("lncc", {"radius": 2}),
    ("lncc", {"radius": 1, "signed": True}),
    ("mi", {"bins": 16}),
    ("mi", {"bins": 16, "normalized": True}),
    ("ngf", {"spacing_mm": (1.0, 2.0, 0.5), "eta": 0.1}),
    ("dice", {}),
]
ids = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in CASES]


def images(seed=0, channels=1):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, channels, *SHAPE, generator=generator, dtype=torch.float64)
    return noise[:1], noise[1:]


def some_mask(seed=5):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(1, 1, *SHAPE, generator=generator) > 0.4).double()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("name", "options"), CASES, ids=ids)
def test_gradient_against_finite_differences(name, options, masked):
    fixed, moved = images()
    mask = some_mask() if masked else None
    measure = similarity(name, **options)
    value, gradient = measure.value_and_gradient(fixed, moved, mask)
    assert float(value) == pytest.approx(float(measure(fixed, moved, mask)), abs=1e-9)
    for place in [(0, 0, 3, 4, 5), (0, 0, 0, 0, 0), (0, 0, 6, 8, 10), (0, 0, 2, 1, 7)]:
        change = torch.zeros_like(moved)
        change[place] = 1e-6
        up, down = (measure(fixed, moved + s * change, mask) for s in (1, -1))
        expected = float(up - down) / 2e-6
        assert float(gradient[place]) == pytest.approx(
            expected, abs=2e-4 * float(gradient.abs().max())
        )


@pytest.mark.parametrize(("name", "options"), CASES, ids=ids)
def test_tape_gives_the_same_gradient(name, options):
    fixed, moved = images(1)
    measure = similarity(name, **options)
    variable = moved.clone().requires_grad_(True)
    (3.0 * measure(fixed, variable, some_mask())).backward()
    _, gradient = measure.value_and_gradient(fixed, moved, some_mask())
    torch.testing.assert_close(variable.grad, 3.0 * gradient, atol=1e-10, rtol=1e-6)


@pytest.mark.parametrize("name", ["mse", "ncc", "lncc", "mi", "dice"])
def test_what_lies_outside_the_mask_does_not_count(name):
    fixed, moved = images()
    mask = some_mask()
    measure = similarity(name)
    value, gradient = measure.value_and_gradient(fixed, moved, mask)
    other = torch.where(mask > 0, moved, torch.rand_like(moved))
    ground = torch.where(mask > 0, fixed, torch.rand_like(fixed))
    # LNCC subtracts the mean of the whole image, which changes nothing but rounding.
    assert float(measure(ground, other, mask)) == pytest.approx(float(value), abs=1e-9)
    assert float(gradient[mask == 0].abs().max()) == 0.0
    assert float(measure(fixed, moved)) != pytest.approx(float(value), abs=1e-6)


@pytest.mark.parametrize("name", sorted(SIMILARITIES))
def test_constant_images_and_empty_masks_stay_finite(name):
    constant = torch.full((1, 1, *SHAPE), 0.5)
    fixed = images()[0].float()
    for one, other in [(constant, constant), (fixed, constant), (constant, fixed)]:
        for mask in (None, torch.zeros(1, 1, *SHAPE)):
            value, gradient = similarity(name).value_and_gradient(one, other, mask)
            assert bool(torch.isfinite(value))
            assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("name", sorted(SIMILARITIES))
@pytest.mark.parametrize("shape", [(1, 9, 11), (1, 1, 8), (2, 3, 2)])
def test_thin_images_work(name, shape):
    generator = torch.Generator().manual_seed(0)
    fixed, moved = torch.rand(2, 1, *shape, generator=generator).split(1)
    value, gradient = similarity(name).value_and_gradient(fixed, moved)
    assert bool(torch.isfinite(value)) and gradient.shape == moved.shape


@pytest.mark.parametrize("name", ["mse", "ncc", "lncc", "mi", "mind", "ngf"])
def test_true_alignment_is_the_best_of_all_shifts(name):
    noise = torch.rand(1, 1, 20, 24, 22, generator=torch.Generator().manual_seed(2))
    image = gaussian_smooth(noise, 1.5)
    image = (image - image.min()) / (image.max() - image.min())
    measure = similarity(name)
    values = {}
    for shift in itertools.product((-2, 0, 2), repeat=3):
        moved = torch.roll(image, shift, (2, 3, 4))
        values[shift] = float(measure(image[..., 3:-3, 3:-3, 3:-3], moved[..., 3:-3, 3:-3, 3:-3]))
    assert min(values, key=values.get) == (0, 0, 0)


@pytest.mark.parametrize("name", ["mi", "mind", "lncc", "ngf"])
def test_inverted_contrast_still_aligns(name):
    noise = torch.rand(1, 1, 20, 24, 22, generator=torch.Generator().manual_seed(2))
    image = gaussian_smooth(noise, 1.5)
    image = (image - image.min()) / (image.max() - image.min())
    other = (1.0 - image) ** 1.5
    measure = similarity(name)
    aligned = float(measure(image, other))
    for axis in (2, 3, 4):
        assert aligned < float(measure(image, torch.roll(other, 2, axis)))


def test_box_sum_against_loops():
    x = images()[0]
    for radius in (1, 2, 5):
        got = box_sum(x, radius)[0, 0]
        for i, j, k in [(0, 0, 0), (3, 4, 5), (6, 8, 10), (1, 7, 2)]:
            block = x[0, 0, max(0, i - radius) : i + radius + 1,
                      max(0, j - radius) : j + radius + 1, max(0, k - radius) : k + radius + 1]  # fmt: skip
            assert float(got[i, j, k]) == pytest.approx(float(block.sum()))


def test_box_sum_leaves_its_input_alone():
    x = images()[0]
    before = x.clone()
    box_sum(x, 2)
    torch.testing.assert_close(x, before)


@pytest.mark.parametrize("masked", [False, True])
def test_lncc_against_loops(masked):
    fixed, moved = images()
    mask = some_mask() if masked else torch.ones(1, 1, *SHAPE, dtype=torch.float64)
    f, m, w = (x[0, 0].numpy() for x in (fixed, moved, mask))
    total = 0.0
    for place in np.ndindex(*SHAPE):
        window = tuple(slice(max(0, p - 2), p + 3) for p in place)
        inside = w[window] > 0
        if not w[place]:
            continue
        a, b = f[window][inside], m[window][inside]
        covariance = ((a - a.mean()) * (b - b.mean())).mean()
        total += covariance**2 / ((a.var() + 1e-4) * (b.var() + 1e-4))
    got = similarity("lncc", radius=2)(fixed, moved, mask if masked else None)
    assert float(got) == pytest.approx(1 - total / w.sum(), abs=1e-9)


def test_lncc_survives_single_precision_on_a_large_offset():
    fixed, moved = images()
    exact = float(similarity("lncc")(fixed, moved))
    shifted = similarity("lncc")((fixed + 100.0).float(), (moved + 50.0).float())
    assert float(shifted) == pytest.approx(exact, abs=2e-3)


def test_correlations_ignore_linear_rescaling():
    fixed, moved = images()
    for name in ("ncc",):
        one, other = (float(similarity(name)(fixed, m)) for m in (moved, 3.0 * moved + 7.0))
        assert one == pytest.approx(other, abs=1e-6)
    assert float(similarity("ncc")(fixed, fixed)) == pytest.approx(0.0, abs=1e-6)
    assert float(similarity("ncc")(fixed, -fixed)) == pytest.approx(2.0, abs=1e-6)


def test_mutual_information_against_loops():
    fixed, moved = images()
    bins = 8
    joint = np.zeros((bins, bins))
    for a, b in zip(fixed.flatten().tolist(), moved.flatten().tolist()):
        position = b * (bins - 5) + 2
        for j in range(bins):
            t = abs(position - j)
            weight = (4 - 6 * t**2 + 3 * t**3) / 6 if t < 1 else max(0.0, 2 - t) ** 3 / 6
            joint[math.floor(a * (bins - 1) + 0.5), j] += weight
    p = joint / joint.sum()
    independent = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    expected = -(p[p > 0] * np.log(p[p > 0] / independent[p > 0])).sum()
    assert float(similarity("mi", bins=bins)(fixed, moved)) == pytest.approx(expected, abs=1e-9)


def test_mutual_information_of_points_equals_that_of_the_image():
    fixed, moved = images()
    measure = similarity("mi")
    whole = measure(fixed, moved)
    points = measure(fixed.reshape(1, 1, -1, 1, 1), moved.reshape(1, 1, -1, 1, 1))
    assert float(whole) == pytest.approx(float(points))


def test_mind_has_twelve_channels_and_ignores_contrast():
    fixed, _ = images()
    features = MIND().prepare(fixed)
    assert features.shape == (1, 12, *SHAPE)
    assert float(features.amax(1).min()) == pytest.approx(1.0)
    torch.testing.assert_close(MIND().prepare(5.0 * fixed + 3.0), features, atol=1e-9, rtol=0)
    torch.testing.assert_close(MIND().prepare(-fixed), features, atol=1e-9, rtol=0)


def test_mind_against_loops():
    fixed, _ = images()
    d, x = 2, np.pad(fixed[0, 0].numpy(), 2, mode="edge")
    six = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]) * d
    pairs = [(a, b) for a, b in itertools.combinations(six, 2) if a @ b == 0]
    assert len(pairs) == 12

    def at(place, offset):
        return x[tuple(np.array(place) + offset + 2)]

    distance = np.zeros((12, *SHAPE))
    for place in np.ndindex(*SHAPE):
        for c, (a, b) in enumerate(pairs):
            for near in itertools.product((-1, 0, 1), repeat=3):
                other = np.array(place) + near
                if (other >= 0).all() and (other < SHAPE).all():
                    distance[c][place] += (at(other, a) - at(other, b)) ** 2
    distance -= distance.min(0)
    spread = distance.mean(0)
    spread = spread.clip(spread.mean() * 1e-3, spread.mean() * 1e3)
    got = MIND().prepare(fixed)[0].numpy()
    np.testing.assert_allclose(got, np.exp(-distance / spread), atol=1e-9)


def test_mind_gradient_through_the_image():
    fixed, moved = images()
    variable = moved[..., :5, :5, :5].clone().requires_grad_(True)
    MIND()(fixed[..., :5, :5, :5], variable).backward()
    assert float(variable.grad.abs().max()) > 0


def test_ngf_of_parallel_and_crossed_edges():
    ramp = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(1, 1, 8, 8, 8)
    crossed = ramp.transpose(2, 3)
    measure = similarity("ngf", eta=1e-3)
    assert float(measure(ramp, -2.0 * ramp)) == pytest.approx(0.0, abs=1e-4)
    assert float(measure(ramp, crossed)) == pytest.approx(1.0, abs=1e-4)


def test_dice_of_label_maps():
    one = torch.zeros(1, 1, 4, 4, 4, dtype=torch.int16)
    other = one.clone()
    one[0, 0, :2] = 3
    other[0, 0, 1:3] = 3
    dice = 1 - similarity("dice")(one_hot(one, [3]), one_hot(other, [3]))
    assert float(dice) == pytest.approx(0.5)


def test_bound_similarity_takes_another_mask():
    fixed, moved = images()
    for name in ("lncc", "mi", "mse"):
        measure = similarity(name)
        bound = measure.bind(fixed, some_mask(1))
        first, _ = bound.value_and_gradient(moved)
        second, _ = bound.value_and_gradient(moved, some_mask(2))
        assert float(first) == pytest.approx(float(measure(fixed, moved, some_mask(1))))
        assert float(second) == pytest.approx(float(measure(fixed, moved, some_mask(2))))


def test_half_precision_is_compared_in_single():
    fixed, moved = images()
    for name in ("mse", "ncc", "lncc", "mi"):
        value, gradient = similarity(name).value_and_gradient(fixed.half(), moved.half())
        assert value.dtype == gradient.dtype == torch.float32
        assert float(value) == pytest.approx(float(similarity(name)(fixed, moved)), abs=5e-3)


def test_bad_shapes_and_names_are_refused():
    fixed, moved = images()
    with pytest.raises(GeometryError, match="same shape"):
        similarity("mse")(fixed, moved[..., 1:])
    with pytest.raises(GeometryError, match="mask"):
        similarity("lncc").value_and_gradient(fixed, moved, torch.ones(1, 1, 2, 2, 2))
    with pytest.raises(ParameterError, match="choose from: mse"):
        similarity("ssim")
