"""Image and spatial transformers: weights shared, bounds, units, what is frozen."""

import copy

import pytest
import torch
from scipy.spatial.transform import Rotation

from DeepRegLib.networks.istn_net import (
    ISTN,
    ImageTransformer,
    SplineTransformer,
    bounded_affine,
)

SHAPE = (16, 48, 32)


def images(count=1, seed=0):
    return torch.rand(2, count, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))


def make(maps=1, affine=True, mesh=(2, 5, 3), seed=0):
    torch.manual_seed(seed)
    return ISTN(maps, 2, affine, mesh)


@pytest.mark.parametrize("outputs", [1, 3])
def test_maps_have_the_shape_of_the_images(outputs):
    network = ImageTransformer(outputs)
    assert network(images(2)[0]).shape == (2, outputs, *SHAPE)
    widths = [m.out_channels for m in network.modules() if hasattr(m, "out_channels")]
    assert widths == [2, 4, 8, 8, 16, 16, 8, 4, 2, 2, outputs]


def test_maps_do_not_shift():
    """Mirrored kernels give the mirrored map: no axis has a direction, as with strides."""
    torch.manual_seed(0)
    network = ImageTransformer()
    image = images()[0]
    straight = network(image)
    for axis in (2, 3, 4):
        mirrored = copy.deepcopy(network)
        with torch.no_grad():
            for layer in mirrored.modules():
                if hasattr(layer, "weight"):
                    layer.weight.copy_(layer.weight.flip(axis))
        assert torch.allclose(mirrored(image.flip(axis)), straight.flip(axis), atol=1e-4)


def test_both_images_pass_the_same_network():
    network = make()
    fixed, moving = images()
    one, other = network(fixed, moving), network(moving, fixed)
    assert torch.allclose(one.fixed, other.moving, atol=1e-6)
    assert torch.allclose(one.moving, other.fixed, atol=1e-6)
    assert not torch.allclose(one.fixed, one.moving)


@pytest.mark.parametrize(("affine", "mesh"), [(True, None), (False, (2, 5, 3)), (True, (2, 5, 3))])
def test_begins_with_the_identity(affine, mesh):
    found = make(affine=affine, mesh=mesh)(*images(2))
    if affine:
        assert torch.allclose(found.matrix, torch.eye(4).expand(2, 4, 4), atol=1e-6)
    assert (found.matrix is None) != affine
    assert (found.displacement is None) == (mesh is None)
    if mesh:
        assert found.displacement.shape == (2, 3, *SHAPE) and not found.displacement.any()


def test_without_maps_the_images_are_seen():
    fixed, moving = images()
    found = make(maps=None)(fixed, moving)
    assert torch.equal(found.fixed, fixed) and torch.equal(found.moving, moving)


def test_affine_map_is_the_product_of_its_parts():
    numbers = torch.randn(1, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, r, s, h = torch.tanh(numbers[0]).reshape(4, 3)
    turn = Rotation.from_rotvec((torch.pi / 4 * r).numpy()).as_matrix()
    axes = Rotation.from_rotvec((torch.pi / 4 * h).numpy()).as_matrix()
    stretch = torch.diag(torch.exp(0.2 * s)).numpy()
    linear = torch.from_numpy(axes @ stretch @ axes.T @ turn)
    shift = 0.1 * t * torch.tensor([8.0, 24.0, 16.0])
    middle = torch.tensor([7.5, 23.5, 15.5], dtype=torch.float64)
    x = torch.tensor([3.0, 30.0, 5.0], dtype=torch.float64)
    expected = linear @ (x - middle + shift) + middle
    matrix = bounded_affine(numbers, SHAPE)[0]
    assert torch.allclose(matrix[:3, :3] @ x + matrix[:3, 3], expected)
    assert matrix[3].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_numbers_are_bounded():
    matrix = bounded_affine(torch.full((1, 12), 1e3), SHAPE)[0]
    sizes = torch.linalg.svdvals(matrix[:3, :3])
    assert torch.allclose(sizes.log(), torch.full((3,), 0.2), atol=1e-5)
    spline = SplineTransformer(1, (2, 5, 3))
    torch.nn.init.constant_(spline.numbers.bias, 1e3)
    vectors = spline.coefficients(*images())
    expected = 0.2 * torch.tensor([8.0, 24.0, 16.0])
    assert torch.allclose(vectors.amax((0, 2, 3, 4)), expected)
    # All control points alike move all voxels alike, in voxels along each axis.
    field = spline.lattice(SHAPE).evaluate(vectors)
    assert torch.allclose(field, expected.view(1, 3, 1, 1, 1).expand_as(field), atol=1e-4)


def test_the_lattice_fits_any_grid():
    spline = SplineTransformer(1, (2, 5, 3))
    for shape in (SHAPE, (32, 16, 64)):
        pair = torch.rand(2, 1, 1, *shape)
        vectors = spline.coefficients(*pair)
        assert tuple(vectors.shape) == (1, 3, 5, 8, 6)
        assert spline.lattice(shape).evaluate(vectors).shape == (1, 3, *shape)


def test_the_spline_sees_what_the_affine_map_moved():
    network = make()
    with torch.no_grad():
        network.affine.numbers.bias[1] = 200.0  # 2.4 voxels along the second axis
    seen = []
    network.bspline.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    fixed, moving = images()
    found = network(fixed, moving)
    assert torch.equal(seen[0][0], found.fixed)
    expected = 0.6 * found.moving[:, :, :, 22] + 0.4 * found.moving[:, :, :, 23]
    assert torch.allclose(seen[0][1][:, :, :, 20], expected, atol=1e-4)


def test_frozen_maps_get_no_gradient():
    for frozen in (True, False):
        network = make()
        for part in (network.affine, network.bspline):
            torch.nn.init.normal_(part.numbers.weight, 0.0, 0.1)
        found = network(*images(), frozen=frozen)
        (found.matrix.square().sum() + found.displacement.square().sum()).backward()
        for name, parameter in network.named_parameters():
            learns = parameter.grad is not None and bool(parameter.grad.any())
            wanted = not (frozen and name.startswith("itn"))
            # The last bias of the maps shifts both of them alike, which may change nothing.
            assert learns == wanted or (wanted and name.startswith("itn.last")), name


def test_half_precision_keeps_transforms_exact():
    network = make()
    with torch.no_grad():
        network.affine.numbers.bias.copy_(torch.linspace(-1, 1, 12))
        network.bspline.numbers.bias.fill_(0.37)
    exact = network(*images())
    with torch.autocast("cpu", torch.bfloat16):
        found = network(*images())
    assert found.matrix.dtype == found.displacement.dtype == found.fixed.dtype == torch.float32
    assert torch.allclose(found.matrix, exact.matrix, atol=1e-5)
    assert torch.allclose(found.displacement, exact.displacement, atol=1e-5)


def with_numbers(**options):
    torch.manual_seed(0)
    network = SplineTransformer(1, (2, 5, 3), **options)
    torch.nn.init.normal_(network.numbers.weight)
    return network


def test_what_is_left_out_in_training_is_seen_in_use():
    network, plain = with_numbers(dropout=0.8), with_numbers()
    pair = images()
    assert not torch.equal(network(*pair), network(*pair))
    assert torch.equal(network.eval()(*pair), plain(*pair))
    assert torch.equal(plain(*pair), plain.train()(*pair))


def test_brightness_and_contrast_of_what_is_read_make_no_difference():
    network, maps = with_numbers(), ImageTransformer()
    fixed, moving = images()
    expected = network(fixed, moving)
    assert torch.allclose(network(0.1 * fixed + 0.3, 5.0 * moving), expected, atol=1e-3)
    assert torch.allclose(maps(0.1 * fixed + 0.3), maps(fixed), atol=1e-3)


def test_as_many_features_as_were_asked_for():
    assert with_numbers(hidden=50).numbers.in_features == 50
