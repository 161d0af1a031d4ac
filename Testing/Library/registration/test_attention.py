"""What agents see, and where their attention lies."""

import torch

from DeepRegLib.geometry.sampling import voxel_coordinates
from DeepRegLib.registration.attention import (
    attention,
    blurred,
    look,
    regions,
    rich_centers,
    view_points,
)
from DeepRegLib.registration.rigid_motion import motion_matrix

SHAPE = (18, 22, 26)


def coordinates_as_image(axis):
    return voxel_coordinates(SHAPE)[:, axis : axis + 1].clone()


def test_views_are_cubes_about_their_centers():
    points = view_points(4, 2.0, torch.tensor([[8.0, 9.0, 10.0], [3.0, 3.0, 3.0]]))
    assert points.shape == (2, 3, 4, 4, 4)
    assert points[0, 0, :, 0, 0].tolist() == [5.0, 7.0, 9.0, 11.0]
    assert points[0, 2, 0, 0, :].tolist() == [7.0, 9.0, 11.0, 13.0]
    assert points.mean(dim=(2, 3, 4)).tolist() == [[8.0, 9.0, 10.0], [3.0, 3.0, 3.0]]
    for axis in range(3):
        seen = look(coordinates_as_image(axis), points)
        assert torch.allclose(seen[:, 0], points[:, axis], atol=1e-4)


def test_maps_come_before_the_image_and_beyond_it_there_is_nothing():
    center = torch.tensor([8.0, 9.0, 10.0])
    points = view_points(4, 2.0, center)
    shift = motion_matrix(torch.tensor([[0.0, 6.0, 0, 0, 0, 0]]), 2.0, center)
    seen = look(coordinates_as_image(1), points, shift)
    assert torch.allclose(seen[0, 0], points[0, 1] + 3.0, atol=1e-5)
    far = look(coordinates_as_image(1) + 1.0, view_points(4, 2.0, torch.tensor([-40.0, 9.0, 10.0])))
    assert not far.any()


def test_blur_leaves_the_full_resolution_alone():
    image = torch.rand(1, 1, *SHAPE)
    assert torch.equal(blurred(image, 1.0), image)
    assert blurred(image, 2.0).std() < 0.6 * image.std()


def test_attention_lies_where_the_decision_is_made():
    fixed, moved = torch.rand(2, 1, 1, 16, 16, 16)

    def values(one, other):
        here = (one * other)[:, 0, 11:14, 2:5, 6:9].mean(dim=(1, 2, 3))
        elsewhere = other[:, 0, :4, :4, :4].mean(dim=(1, 2, 3))
        # The best action is told by one place, the others by another.
        return torch.stack([here + 1.0, elsewhere - 1.0], dim=1)

    with torch.no_grad():
        salience = attention(values, fixed, moved)
    place = [int(i) for i in torch.unravel_index(salience.argmax(), salience.shape)[2:]]
    assert all(abs(a - b) <= 1 for a, b in zip(place, (12, 3, 7)))
    assert (salience >= 0).all() and not salience.requires_grad


def test_regions_are_apart_and_best_first():
    points = view_points(16, 2.0, torch.tensor([20.0, 20.0, 20.0]))
    salience = torch.zeros(1, 1, 16, 16, 16)
    salience[0, 0, 3, 4, 5], salience[0, 0, 3, 4, 6], salience[0, 0, 12, 4, 5] = 5.0, 4.0, 3.0
    found = regions(salience, points, 3, 8.0)
    expected = [points[0, :, 3, 4, 5].tolist(), points[0, :, 12, 4, 5].tolist()]
    assert found.tolist() == expected
    assert regions(salience, points, 1, 8.0).tolist() == expected[:1]
    # No attention: the middle.
    assert regions(torch.zeros_like(salience), points, 3, 8.0).tolist() == [[20.0, 20.0, 20.0]]


def test_places_rich_in_detail_are_drawn_more_often():
    torch.manual_seed(0)
    images = torch.zeros(2, 1, *SHAPE)
    images[0, 0, 10:14, 3:7, 16:20] = torch.rand(4, 4, 4)
    images[1, 0, 2:6, 14:18, 4:8] = torch.rand(4, 4, 4)
    centers = rich_centers(images, 1.0, 200)
    assert centers.shape == (400, 3)
    assert (centers[:200].mean(dim=0) - torch.tensor([11.5, 4.5, 17.5])).abs().max() < 0.7
    assert (centers[200:].mean(dim=0) - torch.tensor([3.5, 15.5, 5.5])).abs().max() < 0.7
    ends = torch.tensor(SHAPE).double() - 1
    assert (centers >= 0).all() and (centers <= ends).all()
