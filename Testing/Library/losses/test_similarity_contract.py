"""What every similarity has to do, whatever it compares."""

import pytest
import torch

from DeepRegLib.errors import GeometryError, ParameterError
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.losses import SIMILARITIES, Similarity, similarity
from DeepRegLib.losses.base import weights

OPTIONS = [
    ("mse", {}),
    ("ncc", {}),
    ("lncc", {}),
    ("lncc", {"signed": True, "radius": 1}),
    ("lncc", {"floor": 2e-3, "relative": True}),
    ("mi", {"bins": 16}),
    ("mi", {"bins": 16, "normalized": True}),
    ("mind", {}),
    ("ngf", {"spacing_mm": (1.5, 0.8, 3.0)}),
    ("ngf", {"eta": 0.1}),
    ("dice", {}),
]
NAMES = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in OPTIONS]
every = pytest.mark.parametrize("made", OPTIONS, ids=NAMES)
masked = pytest.mark.parametrize("use_mask", [False, True], ids=["everywhere", "masked"])


def make(made):
    name, options = made
    return similarity(name, **options)


def prepared(s, image):
    """Descriptors of one channel are enough; the other similarities take both."""
    return s.prepare(image[:, :1]) if s.prepare(image).shape != image.shape else image


@every
@masked
def test_gradient_is_the_slope_of_the_value(made, use_mask, case):
    s = make(made)
    fixed, moved = prepared(s, case.fixed), prepared(s, case.moved)
    mask = case.mask if use_mask else None
    value, gradient = s.value_and_gradient(fixed, moved, mask)
    assert gradient.shape == moved.shape and value.shape == ()
    assert value.item() == pytest.approx(s(fixed, moved, mask).item(), abs=1e-12)
    if made[0] == "ngf" and "eta" not in made[1]:
        return  # The automatic eta is a constant in the gradient; see test_ngf.py.
    for seed in range(3):
        direction = torch.randn(
            moved.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        step = 1e-6
        slope = s(fixed, moved + step * direction, mask) - s(fixed, moved - step * direction, mask)
        assert (gradient * direction).sum().item() == pytest.approx(
            slope.item() / (2 * step), rel=1e-6, abs=1e-6 * gradient.norm().item()
        )


@every
@masked
def test_autograd_gives_the_analytic_gradient(made, use_mask, case):
    s = make(made)
    fixed, moved = prepared(s, case.fixed), prepared(s, case.moved)
    mask = case.mask if use_mask else None
    variable = moved.clone().requires_grad_(True)
    (3.0 * s(fixed, variable, mask)).backward()
    _, gradient = s.value_and_gradient(fixed, moved, mask)
    assert torch.allclose(variable.grad, 3.0 * gradient, atol=1e-12)


@every
def test_symmetric_similarities_give_the_fixed_image_a_gradient(made, case):
    s = make(made)
    if not s.symmetric:
        pytest.skip("not symmetric")
    fixed, moved = prepared(s, case.fixed), prepared(s, case.moved)
    variable = fixed.clone().requires_grad_(True)
    s(variable, moved, case.mask).backward()
    _, expected = s.value_and_gradient(moved, fixed, case.mask)
    assert torch.allclose(variable.grad, expected, atol=1e-12)


@every
def test_what_lies_outside_the_mask_has_no_influence(made, case):
    s = make(made)
    fixed, moved = prepared(s, case.fixed), prepared(s, case.moved)
    outside = (case.mask <= 0).expand(moved.shape)
    value, gradient = s.value_and_gradient(fixed, moved, case.mask)
    other_fixed, other_moved = fixed.clone(), moved.clone()
    other_fixed[outside], other_moved[outside] = 1e4, -3e4
    other_value, other_gradient = s.value_and_gradient(other_fixed, other_moved, case.mask)
    assert other_value.item() == pytest.approx(value.item(), rel=1e-9)
    assert torch.allclose(gradient, other_gradient, rtol=1e-7, atol=1e-12)
    assert (gradient[outside] == 0).all()


@every
def test_ones_as_a_mask_are_no_mask(made, case):
    s = make(made)
    fixed, moved = prepared(s, case.fixed), prepared(s, case.moved)
    value, gradient = s.value_and_gradient(fixed, moved)
    for ones in (torch.ones_like(case.mask), torch.ones_like(case.mask[:1], dtype=torch.bool)):
        other_value, other_gradient = s.value_and_gradient(fixed, moved, ones)
        assert other_value.item() == pytest.approx(value.item(), rel=1e-9)
        assert torch.allclose(gradient, other_gradient, rtol=1e-7, atol=1e-12)


@every
def test_an_empty_mask_moves_nothing(made, case):
    s = make(made)
    fixed, moved = prepared(s, case.fixed), prepared(s, case.moved)
    value, gradient = s.value_and_gradient(fixed, moved, torch.zeros_like(case.mask))
    assert torch.isfinite(value) and (gradient == 0).all()


@every
def test_a_bound_similarity_is_the_same_and_takes_another_mask(made, case):
    s = make(made)
    fixed, moved = prepared(s, case.fixed), prepared(s, case.moved)
    bound = s.bind(fixed, case.mask)
    other = torch.ones_like(case.mask[:1])
    other[:, :, :, :3] = 0.0
    # The bound mask must come back after a call with another one.
    for mask in (None, other, None):
        value, gradient = bound.value_and_gradient(moved, mask)
        expected = s.value_and_gradient(fixed, moved, case.mask if mask is None else mask)
        assert torch.equal(value, expected[0]) and torch.equal(gradient, expected[1])
    with pytest.raises(GeometryError):
        bound.value_and_gradient(moved[..., 1:])


@every
def test_arguments_stay_as_they_are(made, case):
    s = make(made)
    fixed, moved = prepared(s, case.fixed), prepared(s, case.moved)
    before = fixed.clone(), moved.clone(), case.mask.clone()
    s.value_and_gradient(fixed, moved, case.mask)
    s.bind(fixed, case.mask).value_and_gradient(moved, case.mask)
    assert all(torch.equal(a, b) for a, b in zip(before, (fixed, moved, case.mask)))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(made, dtype, case):
    s = make(made)
    fixed, moved = prepared(s, case.fixed).to(dtype), prepared(s, case.moved).to(dtype)
    value, gradient = s.value_and_gradient(fixed, moved, case.mask.to(dtype))
    expected = s.value_and_gradient(fixed.float(), moved.float(), case.mask.to(dtype).float())
    assert value.dtype == gradient.dtype == torch.float32
    assert torch.equal(value, expected[0]) and torch.equal(gradient, expected[1])
    variable = moved.clone().requires_grad_(True)
    s(fixed, variable).backward()
    assert variable.grad.dtype == dtype


@every
def test_single_precision_is_enough(made, noise):
    s = make(made)
    shape = (1, 1, 12, 34, 21)
    fixed, moved = prepared(s, noise(*shape, seed=4)), prepared(s, noise(*shape, seed=5))
    value, gradient = s.value_and_gradient(fixed, moved)
    single, single_gradient = s.value_and_gradient(fixed.float(), moved.float())
    assert single.item() == pytest.approx(value.item(), abs=2e-5)
    assert (single_gradient - gradient).norm() < 2e-4 * gradient.norm()


@every
@pytest.mark.parametrize("shape", [(1, 9, 13), (9, 1, 13), (9, 13, 1), (1, 1, 20), (2, 3, 4)])
def test_flat_images(made, shape, noise):
    s = make(made)
    fixed = prepared(s, noise(1, 1, *shape, seed=6))
    moved = prepared(s, noise(1, 1, *shape, seed=7))
    value, gradient = s.value_and_gradient(fixed, moved)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()
    assert value > s(fixed, fixed) - 1e-12


@every
@pytest.mark.parametrize("constant", [0.0, 0.3, 1000.0])
def test_constant_images_are_finite(made, constant, case):
    s = make(made)
    fixed, moved = prepared(s, case.fixed.float()), prepared(s, case.moved.float())
    flat = prepared(s, torch.full_like(case.fixed.float(), constant))
    typical = s.value_and_gradient(fixed, moved)[1].norm()
    for one, other in ((flat, moved), (fixed, flat), (flat, flat)):
        value, gradient = s.value_and_gradient(one, other)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()
        if made[0] in ("ncc", "lncc"):
            assert value.item() == pytest.approx(1.0, abs=1e-3)
    # A constant moved image must not be torn apart by rounding.
    if made[0] == "lncc":
        assert s.value_and_gradient(flat, flat)[1].norm() < typical


@every
def test_true_alignment_is_the_minimum(made, noise):
    s = make(made)
    image = noise(1, 1, 18, 20, 16, seed=8, sigma=1.5)
    where = voxel_coordinates(image.shape[2:], image.device).double()
    inside = torch.zeros_like(image)
    inside[..., 5:-5, 5:-5, 5:-5] = 1.0
    offset = torch.tensor([1.3, -0.6, 0.8], dtype=torch.float64).view(1, 3, 1, 1, 1)
    moving = sample(image, where - offset)
    fixed = s.prepare(image)

    def value(shift):
        moved = s.prepare(sample(moving, where + shift.view(1, 3, 1, 1, 1)))
        return s(fixed, moved, inside).item()

    best = value(offset)
    for axis in range(3):
        for side in (-1.0, 1.0):
            near, far = offset.flatten().clone(), offset.flatten().clone()
            near[axis] += side
            far[axis] += 2 * side
            assert best < value(near) < value(far)


@every
def test_shapes_that_do_not_fit(made, case):
    s = make(made)
    fixed, moved = prepared(s, case.fixed), prepared(s, case.moved)
    bad = [
        (fixed[..., 1:], moved, None),
        (fixed[0], moved[0], None),
        (fixed[..., :0], moved[..., :0], None),
        (fixed, moved, case.mask[..., 1:]),
        (fixed, moved, case.mask[0]),
        (fixed, moved, case.mask.flatten()),
        (fixed, moved, case.mask.expand(-1, 2, -1, -1, -1)),
        (fixed, moved, torch.cat([case.mask, case.mask])),
    ]
    for arguments in bad:
        with pytest.raises(GeometryError, match="shape|but got"):
            s.value_and_gradient(*arguments)
        with pytest.raises(GeometryError):
            s(*arguments)


@pytest.mark.parametrize("name", ["mse", "ncc", "mi"])
def test_sampled_points_are_like_voxels(name, case):
    s = similarity(name)
    fixed, moved = case.fixed[:1], case.moved[:1]
    value, gradient = s.value_and_gradient(fixed, moved, case.mask[:1])
    order = torch.randperm(fixed[0, 0].numel(), generator=torch.Generator().manual_seed(0))
    points = [x.flatten(2)[..., order][..., None, None] for x in (fixed, moved, case.mask[:1])]
    point_value, point_gradient = s.value_and_gradient(*points)
    assert point_value.item() == pytest.approx(value.item(), rel=1e-12)
    assert torch.allclose(point_gradient.flatten(2), gradient.flatten(2)[..., order], atol=1e-15)


def test_names():
    assert {"mse", "ncc", "lncc", "mi", "mind", "ngf"} <= set(SIMILARITIES)
    with pytest.raises(ParameterError, match="lncc"):
        similarity("cross")
    with pytest.raises(ParameterError, match="radius"):
        similarity("lncc", radios=3)
    with pytest.raises(ParameterError, match="none"):
        similarity("mse", radius=3)


@pytest.mark.parametrize(
    "name, options",
    [
        ("lncc", {"radius": 0}),
        ("lncc", {"floor": 0.0}),
        ("mi", {"bins": 4}),
        ("mi", {"fixed_range": (1.0, 1.0)}),
        ("mind", {"radius": -1}),
        ("mind", {"dilation": 0}),
        ("ngf", {"spacing_mm": (1.0, 1.0)}),
        ("ngf", {"spacing_mm": (1.0, 0.0, 1.0)}),
        ("ngf", {"eta": -1.0}),
    ],
)
def test_options_out_of_range(name, options):
    with pytest.raises(ParameterError):
        similarity(name, **options)


def test_the_base_records_a_tape(case):
    class Cubes(Similarity):
        def __call__(self, fixed, moved, mask=None):
            return (weights(moved, mask) * (moved - fixed).abs() ** 3).sum()

    value, gradient = Cubes().value_and_gradient(case.fixed, case.moved, case.mask)
    w = (case.mask / (2.0 * case.mask.sum())).expand(case.fixed.shape)
    difference = case.moved - case.fixed
    assert value.item() == pytest.approx((w * difference.abs() ** 3).sum().item())
    assert torch.allclose(gradient, 3 * w * difference * difference.abs())
    assert not value.requires_grad and not gradient.requires_grad
    assert Cubes().prepare(case.fixed) is case.fixed
    with pytest.raises(NotImplementedError):
        Similarity()(case.fixed, case.moved)
