"""Label-driven registration: what it compares, units, composition, and what it needs in use."""

import numpy as np
import pairs
import pytest
import torch

from DeepRegLib import models
from DeepRegLib.algorithms.label_reg import SPEC, Algorithm, dealt_structures, drawn_structures
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.losses import similarity
from DeepRegLib.losses.bending import bending_energy
from DeepRegLib.losses.multiscale_dice import multiscale_dice
from DeepRegLib.models import ModelCard
from DeepRegLib.networks.affine_net import affine_matrix, apply_affine, center_of
from DeepRegLib.networks.local_net import Found
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.trainable import Batch

SHAPE = (16, 32, 16)


def make(**values):
    return Algorithm(**SPEC.values(**{"channels": 2, "affine_channels": 2, **values}))


def ball(center, radius=3.0, shape=SHAPE):
    away = voxel_coordinates(shape) - torch.tensor(center).view(1, 3, 1, 1, 1)
    return (away.norm(dim=1, keepdim=True) < radius).long()


def smooth(seed=0, size=1.5):
    where = voxel_coordinates(SHAPE)
    phase = torch.rand(3, generator=torch.Generator().manual_seed(seed)).view(1, 3, 1, 1, 1)
    return size * torch.sin(where[:, [1, 2, 0]] / 5.0 + 6.0 * phase)


def batch(count=1, labels=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    fixed, moving = torch.rand(2, count, 1, *SHAPE, generator=generator)
    maps = (2 * ball((7.0, 14.0, 8.0)), 2 * ball((8.0, 17.0, 7.0)))
    maps = [m.repeat(count, 1, 1, 1, 1) for m in maps] if labels else [None, None]
    return Batch(fixed, moving, 3.0, *maps)


def answers(matrix=None, displacement=None):
    """Stands for a network that finds the same for every pair."""
    return lambda fixed, moving: Found(matrix, displacement)


def test_structures_that_both_maps_hold_are_drawn():
    fixed, moving = torch.zeros(2, 2, 1, 4, 5, 6, dtype=torch.int64)
    fixed[0, 0, 0], fixed[0, 0, 1], fixed[0, 0, 2] = 3, 7, 9
    moving[0, 0, 2], moving[0, 0, 3], moving[0, 0, 0] = 3, 9, 4
    fixed[1], moving[1] = -1, -1  # not known
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        one, other = drawn_structures(fixed, moving, 1)
        assert one.shape == other.shape == (2, 1, 4, 5, 6) and one.dtype == torch.float32
        (label,) = fixed[0][one[0] > 0].unique().tolist()
        assert torch.equal(one[0, 0] > 0, fixed[0, 0] == label)
        assert torch.equal(other[0, 0] > 0, moving[0, 0] == label)
        assert not one[1].any() and not other[1].any()
        seen.add(label)
    assert seen == {3, 9}
    one, other = drawn_structures(fixed, moving, 3)
    assert one[0].amax((1, 2, 3)).tolist() == [1.0, 1.0, 0.0]


def test_every_structure_of_both_maps_is_dealt_to_one_group_and_to_the_same_one():
    shape = (5, 6, 7)
    generator = torch.Generator().manual_seed(2)
    fixed, moving = torch.randint(-1, 12, (2, 2, 1, *shape), generator=generator)
    fixed[fixed == 5], moving[moving == 6] = 0, 0
    moving[1] = -1  # not known
    shared = set(range(1, 12)) - {5, 6}
    partners = set()
    for seed in range(10):
        torch.manual_seed(seed)
        one, other = dealt_structures(fixed, moving, 4)
        assert one.shape == other.shape == (2, 4, *shape) and one.dtype == torch.float32
        assert not one[1].any() and not other[1].any()
        groups = [set(fixed[0, 0][group > 0].tolist()) for group in one[0]]
        assert groups == [set(moving[0, 0][group > 0].tolist()) for group in other[0]]
        assert sorted(x for group in groups for x in group) == sorted(shared)
        assert {len(group) for group in groups} == {2, 3}
        for label in shared:
            assert one[0].sum(0)[fixed[0, 0] == label].eq(1).all()
        partners |= next(group for group in groups if 1 in group) - {1}
    assert len(partners) > 4, "dealt anew in every step"
    one, _ = dealt_structures(fixed[:1], moving[:1], 12)
    assert one[0].amax((1, 2, 3)).tolist() == [1.0] * 9 + [0.0] * 3


def test_the_objective_is_that_of_the_publication():
    data, u = batch(), smooth()
    terms = make(scales=(0, 3, 6), bending=0.7).training_loss(answers(None, u), data)
    moved = sample((data.moving_labels == 2).float(), voxel_coordinates(SHAPE) + u, padding="fill")
    # Widths in mm, on voxels of 3 mm.
    expected = multiscale_dice((data.fixed_labels == 2).float(), moved, (0.0, 1.0, 2.0))
    assert set(terms) == {"dice", "bending"}
    assert torch.allclose(terms["dice"], expected)
    assert torch.allclose(terms["bending"], 0.7 * bending_energy(u))


def test_affine_map_and_displacement_are_composed():
    values = ([0.5, -1.0, 0.0], [0.3, 0.1, -0.2], [1.1, 1.0, 0.9], [0.0] * 3)
    middle = center_of(SHAPE)
    matrix = affine_matrix(*(torch.tensor([v]) for v in values), middle, middle)
    data, u, where = batch(), smooth(), voxel_coordinates(SHAPE)
    algorithm = make(network="composite", scales=(0,))
    value = algorithm.training_loss(answers(matrix, u), data)["dice"]
    one, other = ((x == 2).float() for x in (data.fixed_labels, data.moving_labels))

    def dice(place):
        return multiscale_dice(one, sample(other, place, padding="fill"), (0.0,))

    assert torch.allclose(value, dice(apply_affine(matrix, where + u)))
    assert (value - dice(apply_affine(matrix, where) + u)).abs() > 1e-3, "not added"


@pytest.mark.parametrize("kind", ["lncc", "mi"])
def test_the_same_network_can_be_trained_by_images(kind):
    algorithm, u = make(supervision=kind), smooth()
    terms = algorithm.training_loss(answers(None, u), batch())
    bare = algorithm.training_loss(answers(None, u), batch(labels=False))
    moved = sample(batch().moving, voxel_coordinates(SHAPE) + u, padding="fill")
    measure = similarity(kind, radius=2) if kind == "lncc" else similarity(kind)
    assert torch.allclose(terms["similarity"], measure(batch().fixed, moved))
    assert {n: float(t) for n, t in terms.items()} == {n: float(t) for n, t in bare.items()}
    names = [set(make(supervision=s).build().state_dict()) for s in ("labels", kind)]
    assert names[0] == names[1]


def test_without_labels_mutual_information_takes_their_place():
    terms = make().training_loss(answers(None, smooth()), batch(labels=False))
    by_images = make(supervision="mi").training_loss(answers(None, smooth()), batch())
    assert float(terms["similarity"]) == float(by_images["similarity"])


@pytest.mark.parametrize(
    ("network", "linear", "dense"),
    [("local", False, True), ("global", True, False), ("composite", True, True)],
)
def test_what_each_network_gives(network, linear, dense):
    algorithm = make(network=network)
    found = algorithm.predict(algorithm.build().eval(), *torch.rand(2, 1, 1, *SHAPE), 3.0)
    assert (found.linear is not None, found.displacement is not None) == (linear, dense)
    assert algorithm.in_tiles == (network == "local")
    if linear:
        assert found.linear.dtype == torch.float64
        assert torch.allclose(found.linear, torch.eye(4).double())


def test_pairs_without_labels_are_left_out_of_a_training_by_labels():
    class Pairs:
        def labeled(self):
            return "labeled"

    given = Pairs()
    assert make().source(given, None, Progress()) == "labeled"
    assert make(supervision="mi").source(given, None, Progress()) is given


def learned(algorithm, learn, moving_center, rate=2e-3, steps=40):
    """Trains on a pair of unlike contrasts; gives the mean displacement of the structure."""
    one, other = ball((7.0, 9.0, 8.0)), ball(moving_center)
    # Bright in one image, dark in the other.
    data = Batch(0.2 + 0.6 * one.float(), 0.8 - 0.5 * other.float(), 3.0, 4 * one, 4 * other)
    network, first, last = learn(algorithm, data, steps=steps, rate=rate)
    with torch.no_grad():
        found = algorithm.predict(network.eval(), data.fixed, data.moving, 3.0)
    weight = one / one.sum()
    return (found.displacement * weight).sum((0, 2, 3, 4)), first, last


def test_learns_from_labels_whatever_the_contrasts(learn):
    shift, first, last = learned(make(bending=0.05), learn, (7.0, 12.0, 8.0))
    assert last["dice"] < 0.6 * first["dice"]
    assert 1.5 < shift[1] < 4.5 and shift[[0, 2]].abs().max() < 1.0


def test_scales_bring_together_what_does_not_overlap(learn):
    center = (7.0, 18.0, 8.0)  # 9 voxels apart, with radii of 3
    # Without an overlap there is no slope: what does not move in a few steps never does.
    single, first, last = learned(make(scales=(0,), bending=0.05), learn, center, steps=8)
    assert first["dice"] == last["dice"] == 1.0 and single.abs().max() < 0.1
    many, first, last = learned(make(bending=0.05), learn, center)
    assert many[1] > 2.0 and last["dice"] < first["dice"]


def test_a_model_of_an_oblique_pair(tmp_path, monkeypatch):
    """What the network says in voxels of its grid arrives in the space of unlike, oblique grids."""
    algorithm = make(network="composite", levels=(1, 4))
    network = algorithm.build()
    with torch.no_grad():
        network.local.heads[0].convolution.bias.copy_(torch.tensor([1.0, -0.5, 0.0]))
        network.local.heads[1].convolution.bias.copy_(torch.tensor([-0.5, 0.0, 0.25]))
        network.affine.numbers.bias[1] = 1.0  # the first axis grows by 0.1 of the second
    names = ("network", "channels", "affine_channels", "levels")
    values = {name: algorithm.values[name] for name in names}
    save_model(tmp_path / "m.safetensors", network,
               ModelCard("m", "label_reg", values, 4.0, (16, 32, 16)))  # fmt: skip
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    pair = pairs.make_pair(np.eye(4))
    result = make(model="m").register(pair, Progress())
    # Axes to R, A, S and voxels of 4 mm: u is (2, -2, 1) mm, then R grows by 0.1 A.
    points = np.array([[0.0, 0.0, 0.0], [0.0, 10.0, 0.0], [5.0, -10.0, 3.0]])
    moved = result.transform.map_points_ras(points)
    step = moved - points
    np.testing.assert_allclose(step[:, 1:], [[-2.0, 1.0]] * 3, atol=1e-3)
    np.testing.assert_allclose(np.diff(step[:, 0]), 0.1 * np.diff(points[:, 1]), atol=1e-3)
