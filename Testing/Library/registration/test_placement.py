"""From the answer of a network to the grids of the images: sub-voxel exact."""

from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch
from learned_doubles import (
    LINEAR,
    STRETCH,
    bend_mm,
    centered,
    errors_mm,
    make_start,
    noisy,
    on_network_grid,
    scene,
    wave_mm,
)
from support import ORIENTATIONS, make_grid

from DeepRegLib.errors import InputError
from DeepRegLib.geometry.bspline import BSplineLattice
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.registration.base import Image, ImagePair
from DeepRegLib.registration.learned import see
from DeepRegLib.registration.model_frame import ModelFrame, normalized
from DeepRegLib.registration.placement import placed
from DeepRegLib.registration.preprocess import object_region
from DeepRegLib.registration.trainable import Prediction


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("start", ["none", "linear", "field"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_known_displacement_comes_back_on_the_fixed_grid(orientation, start, linear):
    pair, grid = scene(orientation, start)
    center = pair.fixed.grid.center_ras
    initial = pair.initial or Transform()
    matrix = LINEAR if linear else np.eye(4)

    def expected(points):
        bent = points + bend_mm(points, center)
        return initial.map_points_ras(bent @ matrix[:3, :3].T + matrix[:3, 3])

    voxels = torch.from_numpy(grid.ras_to_voxel @ matrix @ grid.voxel_to_ras)
    prediction = Prediction(on_network_grid(grid, bend_mm, center), linear=voxels)
    result = placed(prediction, grid, pair)
    assert result.transform.field.grid is pair.fixed.grid
    assert errors_mm(pair, result.transform, expected).max() < 1e-3


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_curved_displacement_errs_by_its_interpolation_alone(orientation):
    pair, grid = scene(orientation)
    center = pair.fixed.grid.center_ras
    result = placed(Prediction(on_network_grid(grid, wave_mm, center)), grid, pair)
    errors = errors_mm(pair, result.transform, lambda p: p + wave_mm(p, center))
    # h^2 / 8 |u''| along each of three axes; half a voxel off would be 0.1 mm in the mean.
    assert errors.max() < 2.2**2 / 8 * 2.0 / 12.0**2 * 3


def test_an_answer_that_is_linear_alone_gives_a_linear_transform():
    pair, grid = scene("oblique", "linear")
    voxels = torch.from_numpy(grid.ras_to_voxel @ LINEAR @ grid.voxel_to_ras).float()
    result = placed(Prediction(linear=voxels), grid, pair)
    assert result.transform.is_linear
    np.testing.assert_allclose(result.transform.linear, pair.initial.linear @ LINEAR, atol=1e-4)
    pair, grid = scene("oblique", "field")
    result = placed(Prediction(linear=voxels), grid, pair)

    def expected(points):
        return pair.initial.map_points_ras(points @ LINEAR[:3, :3].T + LINEAR[:3, 3])

    assert errors_mm(pair, result.transform, expected).max() < 1e-3


@pytest.mark.parametrize("start", ["none", "linear"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_inverse_that_a_network_knows_is_kept(orientation, start):
    pair, grid = scene(orientation, start)
    center = pair.fixed.grid.center_ras
    back = np.linalg.inv(np.eye(3) + STRETCH)

    def undo_mm(points, center):
        return (points - center - [1.3, -0.7, 2.1]) @ back.T + center - points

    voxels = torch.from_numpy(grid.ras_to_voxel @ LINEAR @ grid.voxel_to_ras)
    prediction = Prediction(on_network_grid(grid, bend_mm, center),
                            on_network_grid(grid, undo_mm, center), voxels)  # fmt: skip
    result = placed(prediction, grid, pair)
    assert result.inverse.field.grid is pair.moving.grid
    # There and back, for moving voxels whose counterparts both grids hold.
    points = pairs.voxel_points(pair.moving.grid).reshape(-1, 3)
    there = result.inverse.map_points_ras(points)
    unbent = Transform(np.linalg.inv(result.transform.linear)).map_points_ras(points)
    inside = (np.abs(grid.to_voxel(unbent) * 2 / (np.array(grid.shape) - 1) - 1) < 1.0).all(1)
    initial = pair.initial or Transform()
    again = there + bend_mm(there, center)
    again = initial.map_points_ras(again @ LINEAR[:3, :3].T + LINEAR[:3, 3])
    assert inside.sum() > 50
    assert np.linalg.norm(again - points, axis=1)[inside].max() < 2e-3


def test_beyond_the_network_it_rests_and_inside_nothing_changes():
    """The network sees the middle of a larger fixed image, and moves the rim of what it sees."""
    fixed = make_grid("oblique", (40, 44, 36), (2.0, 1.6, 2.4), (0, 0, 0))
    pair = ImagePair(noisy(fixed, 1), noisy(make_grid("RAS"), 2))
    grid = Grid((16, 16, 16), np.diag([2.5, 2.5, 2.5, 1.0]))
    grid = centered(grid, fixed.center_ras)
    shift = torch.tensor([3.0, -2.0, 4.0]).view(1, 3, 1, 1, 1).expand(1, 3, 16, 16, 16)
    u = placed(Prediction(shift), grid, pair).transform.field.to_ras_mm()
    where = grid.to_voxel(pairs.voxel_points(fixed))
    inside = torch.from_numpy(((where >= 0) & (where <= 15)).all(-1))
    beyond = torch.from_numpy(((where < -13) | (where > 28)).any(-1))
    moved = u[0][:, inside].T
    assert inside.sum() > 500 and beyond.sum() > 1000
    torch.testing.assert_close(moved, torch.tensor([7.5, -5.0, 10.0]).expand_as(moved))
    assert u[0][:, beyond].abs().max() == 0.0
    assert jacobian_determinant(placed(Prediction(shift), grid, pair).transform.field.displacement
                                ).min() > 0.0  # fmt: skip


@pytest.mark.parametrize("orientation", ["RAS", "oblique"])
def test_control_points_stay_control_points(orientation):
    pair, grid = scene(orientation, "linear")
    lattice = BSplineLattice(grid, (3, 4, 3))
    control = torch.randn(1, 3, *lattice.control_grid.shape, generator=torch.manual_seed(3))
    displacement = lattice.evaluate(control)
    result = placed(Prediction(displacement, control_points=control, mesh=(3, 4, 3)), grid, pair)
    transform = result.transform
    # Between the voxels of the network's grid, through the control points.
    node = np.array([5, 6, 4])
    point = grid.to_ras(node)[None]
    vector = displacement[0, :, 5, 6, 4].numpy() * 2.2
    np.testing.assert_allclose(
        transform.map_points_ras(point),
        pair.initial.map_points_ras(point + vector), atol=1e-4,
    )  # fmt: skip
    # The field that moves images agrees with it at the voxels.
    by_field = Transform(transform.linear, transform.field)
    errors = errors_mm(pair, by_field, transform.map_points_ras)
    assert errors.max() < (1e-4 if orientation == "RAS" else 0.1)
    assert errors.mean() < (1e-4 if orientation == "RAS" else 0.03)
    # It comes to rest by itself beyond the grid of the network, instead of with a step.
    elements = grid.resized((3, 4, 3))
    for voxel in ([-0.5, 1, 1], [-3.5, 1, 1]):  # ends of the grid, and of the domain of the spline
        ends = elements.to_ras([np.add(voxel, [-1e-3, 0, 0]), np.add(voxel, [1e-3, 0, 0])])
        vectors = transform.spline.map_points_ras(ends) - ends
        assert np.abs(np.diff(vectors, axis=0)).max() < 0.05
        assert (np.abs(vectors).max() < 1e-3) == (voxel[0] < -3)
    bent = replace(pair, initial=make_start("field", pair.fixed.grid.center_ras))
    assert placed(Prediction(displacement, control_points=control, mesh=(3, 4, 3)), grid,
                  bent).transform.spline is None  # fmt: skip


def test_maps_come_back_on_the_grids_of_the_images():
    pair, grid = scene("oblique", "linear")
    points = pairs.voxel_points(grid)
    plane = torch.from_numpy(points[..., 0] * 0.5 - points[..., 2] + 7.0)[None, None].float()
    half = torch.from_numpy(points[..., 1] > pair.fixed.grid.center_ras[1])[None, None].to(
        torch.uint8
    )
    maps = {"height": plane, "segmentation": half * 7, "moving_height": plane}
    extras = placed(Prediction(maps=maps), grid, pair).extras
    inner = pairs.voxel_points(pair.fixed.grid)
    np.testing.assert_allclose(
        extras["height"].numpy(), inner[..., 0] * 0.5 - inner[..., 2] + 7.0, atol=1e-3
    )
    labels = extras["segmentation"]
    assert not labels.data.is_floating_point() and labels.pixel_type == "uint8"
    for top, kind in ((255, "uint8"), (256, "int16"), (40000, "int32")):
        wide = placed(Prediction(maps={"a": half.long() * top}), grid, pair).extras["a"]
        assert wide.pixel_type == kind and wide.data.max() == top
    assert placed(Prediction(maps={"a": half > 0}), grid, pair).extras["a"].pixel_type == "uint8"
    sure = np.abs(inner[..., 1] - pair.fixed.grid.center_ras[1]) > 2.3
    expected = 7 * (inner[..., 1] > pair.fixed.grid.center_ras[1])
    assert (labels.numpy() == expected)[sure].all() and set(np.unique(labels.numpy())) == {0, 7}
    # A map of the moving image lies on its grid; the network saw it through the start.
    back = np.linalg.inv(pair.initial.linear)
    seen = pairs.voxel_points(pair.moving.grid) @ back[:3, :3].T + back[:3, 3]
    height = seen[..., 0] * 0.5 - seen[..., 2] + 7.0
    voxel = grid.to_voxel(seen)
    inside = ((voxel > 0) & (voxel < np.array(grid.shape) - 1)).all(-1)
    assert inside.sum() > 100 and extras["moving_height"].grid is pair.moving.grid
    np.testing.assert_allclose(extras["moving_height"].numpy()[inside], height[inside], atol=1e-3)


def test_an_answer_that_is_no_number_is_refused():
    pair, grid = scene("RAS")
    with pytest.raises(InputError, match="no numbers"):
        placed(Prediction(torch.full((1, 3, *grid.shape), float("nan"))), grid, pair)


def test_the_network_sees_both_images_upright_in_the_fixed_space():
    pair = pairs.make_pair()
    pair = replace(pair, initial=Transform(pairs.known_matrix()),
                   fixed_labels=pairs.make_labels(pairs.fixed_grid()),
                   moving_labels=pairs.make_labels(pairs.moving_grid(),
                                                   np.linalg.inv(pairs.known_matrix())))  # fmt: skip
    view = see(pair, ModelFrame(3.0, (24, 32, 24)), 8, labels=True)
    assert np.allclose(view.grid.voxel_to_ras[:3, :3], np.eye(3) * 3.0)
    assert view.batch.spacing_mm == 3.0 and view.batch.shape == view.grid.shape
    truth = torch.from_numpy(pairs.phantom(pairs.voxel_points(view.grid)))
    for image in (view.batch.fixed, view.batch.moving):
        assert image.min() >= 0.0 and image.max() <= 1.0 + 1e-6
        assert np.corrcoef(image[0, 0].flatten(), truth.flatten())[0, 1] > 0.97
    labels = torch.from_numpy(pairs.label_phantom(pairs.voxel_points(view.grid)))
    for regions in (view.batch.fixed_labels, view.batch.moving_labels):
        assert regions.dtype == torch.int64 and (regions[0, 0] == labels).float().mean() > 0.95
    assert see(pair, ModelFrame(3.0, (24, 32, 24)), 8).batch.fixed_labels is None


@pytest.mark.parametrize("which", ["fixed_mask", "moving_mask", "both"])
def test_what_a_mask_leaves_out_is_background_in_both_images(which):
    pair = pairs.make_pair()
    pair = replace(pair, initial=Transform(pairs.known_matrix()))
    masks = {}
    for name, grid, back in (("fixed_mask", pair.fixed.grid, np.eye(4)),
                             ("moving_mask", pair.moving.grid,
                              np.linalg.inv(pairs.known_matrix()))):  # fmt: skip
        points = pairs.voxel_points(grid) @ back[:3, :3].T + back[:3, 3]
        masks[name] = Image.from_array((points[..., 0] > -8.0).astype(np.uint8), grid)
    chosen = masks if which == "both" else {which: masks[which]}
    view = see(replace(pair, **chosen), ModelFrame(3.0, (24, 32, 24)), 8)
    points = torch.from_numpy(pairs.voxel_points(view.grid))
    out, inside = points[..., 0] < -13.0, points[..., 0].abs() < 4.0
    center = (points.norm(dim=-1) < 15.0) & inside
    for image in (view.batch.fixed, view.batch.moving):
        # A smoothed edge leaves a little; both images end where one was cut.
        assert out.sum() > 300 and image[0, 0][out].max() < 0.25
        assert image[0, 0][center].mean() > 0.3


@pytest.mark.parametrize("start", ["none", "linear", "field"])
def test_the_moved_image_is_what_the_network_made_of_it(start):
    """What the network warps on its own grid is what the transform makes of the image itself."""
    pair = pairs.make_pair()
    pair = replace(pair, initial=make_start(start, pair.fixed.grid.center_ras))
    view = see(pair, ModelFrame(2.0, (32, 40, 32)), 8)
    vectors = on_network_grid(view.grid, wave_mm, view.grid.center_ras)
    where = voxel_coordinates(view.grid.shape) + vectors
    by_network = sample(view.batch.moving, where, padding="fill")
    transform = placed(Prediction(vectors), view.grid, pair).transform
    direct = transform.warp(normalized(pair.moving), pair.moving.grid, view.grid)
    inside = by_network > 0.1
    # Measured: 0.0024, from interpolating twice; 0.0046 with the field half a voxel off, 0.032 with
    # vectors that are 1 mm too long.
    assert inside.sum() > 3000 and (by_network - direct)[inside].abs().mean() < 0.004


def test_uncertainty_ends_where_the_object_ends():
    pair, grid = scene("oblique", "linear")
    # Larger than the network's grid can hold, so that the map is 1 all over the fixed grid.
    wide = grid.padded(8)
    maps = {"uncertainty_mm": torch.ones(1, 1, *wide.shape)}
    empty = placed(Prediction(maps=maps), wide, pair).extras["uncertainty_mm"].data
    assert bool((empty > 0.5).all()), "an image that shows nothing has no region"
    body = torch.zeros(1, 1, *pair.fixed.grid.shape)
    body[:, :, :2] = 1.0
    half = replace(pair, fixed=Image(body, pair.fixed.grid))
    shown = placed(Prediction(maps=maps), wide, half).extras["uncertainty_mm"].data
    region = object_region(half.fixed)
    assert torch.equal(shown > 0.5, region) and not shown[~region].any()
    assert region.any() and not region.all()
