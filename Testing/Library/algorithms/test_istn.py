"""Image-and-spatial transformers: terms of the variants, refinement, native transforms."""

from types import SimpleNamespace

import numpy as np
import pairs
import pytest
import torch

from DeepRegLib import models
from DeepRegLib.algorithms.istn import SPEC, Algorithm, soi_from_points, soi_map
from DeepRegLib.errors import GeometryError, ParameterError
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.models import ModelCard
from DeepRegLib.networks.bspline_net import unit_lattice
from DeepRegLib.networks.istn_net import Aligned, bounded_affine
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.registration.pair_fit import FitSettings, fit
from DeepRegLib.registration.trainable import Batch, total

SHAPE = (16, 32, 16)
VARIANTS = ("stn_u", "stn_s", "istn_e", "istn_i")
TERMS = {
    "stn_u": ["images"],
    "stn_s": ["structures"],
    "istn_e": ["structures", "fixed map", "moving map"],
    "istn_i": ["structures", "moved map", "fixed map"],
}


def make(**values):
    return Algorithm(**SPEC.values(**{"grid_shape": SHAPE, "spacing": 8.0, **values}))


def soft(center, radius=3.5):
    away = voxel_coordinates(SHAPE) - torch.tensor(center).view(1, 3, 1, 1, 1)
    return torch.sigmoid(2.0 * (radius - away.norm(dim=1, keepdim=True)))


def batch(stage="train", labels=True, fraction=1.0):
    """Structure 5 lies 2 voxels further along the second axis in the moving image."""
    fixed, moving = soft((7.0, 14.0, 8.0)), soft((7.0, 16.0, 8.0))
    maps = [5 * (image > 0.5).long() for image in (fixed, moving)] if labels else [None, None]
    return Batch(fixed, moving, 3.0, *maps, stage=stage, fraction=fraction)


def known():
    """An answer of a network: maps, an affine map and a displacement."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 1, 1, *SHAPE, generator=generator)
    matrix = bounded_affine(torch.randn(1, 12, generator=generator), SHAPE)
    return Aligned(maps[0], maps[1], matrix, torch.sin(voxel_coordinates(SHAPE) / 4.0), None)


class Answer:
    """Stands for a network that finds the same for every pair."""

    def __init__(self):
        self.found, self.frozen = known(), None

    def __call__(self, fixed, moving, frozen=False):
        self.frozen = frozen
        return self.found


def moved(image, found):
    where = voxel_coordinates(SHAPE) + found.displacement
    flat = found.matrix[0, :3, :3] @ where.flatten(2) + found.matrix[0, :3, 3:]
    return sample(image, flat.reshape(where.shape), padding="fill")


@pytest.mark.parametrize("variant", VARIANTS)
def test_terms_are_those_of_the_publication(variant):
    data, answer = batch(), Answer()
    terms = make(variant=variant, structures=(5,)).training_loss(answer, data)
    f = answer.found
    s_fixed, s_moving = (data.fixed_labels == 5).float(), (data.moving_labels == 5).float()
    expected = {
        "images": (moved(data.moving, f) - data.fixed).square().mean(),
        "structures": (moved(s_moving, f) - s_fixed).square().mean(),
        "moving map": (f.moving - s_moving).square().mean(),
        "moved map": (moved(f.moving, f) - s_fixed).square().mean(),
        "fixed map": (f.fixed - (moved(s_moving, f) if variant == "istn_i" else s_fixed))
        .square()
        .mean(),
    }
    assert list(terms) == TERMS[variant] and not answer.frozen
    for name, term in terms.items():
        assert float(term) == pytest.approx(float(expected[name]), rel=1e-4), name


def test_the_implicit_maps_are_told_the_structures_at_first():
    told, later = (
        make(variant="istn_i", structures=(5,)).training_loss(Answer(), batch(fraction=fraction))
        for fraction in (0.0, 0.5)
    )
    explicit = make(variant="istn_e", structures=(5,)).training_loss(Answer(), batch())
    assert list(told) == TERMS["istn_e"] and list(later) == TERMS["istn_i"]
    assert all(torch.equal(told[name], explicit[name]) for name in told)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_refinement_compares_the_maps_and_sees_no_labels(variant):
    answer = Answer()
    values = [
        make(variant=variant).training_loss(answer, batch("pair", labels)) for labels in (1, 0)
    ]
    f = answer.found
    expected = (moved(f.moving, f) - f.fixed).square().mean()
    assert answer.frozen and list(values[0]) == ["maps"]
    assert float(values[0]["maps"]) == float(values[1]["maps"]) == pytest.approx(float(expected))


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_labels_the_images_are_compared(variant):
    assert list(make(variant=variant).training_loss(Answer(), batch(labels=False))) == ["images"]


@pytest.mark.parametrize("variant", ["stn_u", "istn_i"])
def test_only_the_spatial_transformer_is_refined(variant):
    system = make(variant=variant, structures=(5,))
    torch.manual_seed(0)
    network = system.build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    history = fit(system, network, [batch(labels=False)], FitSettings(12, 2e-3))
    assert history[-1]["value"] < history[0]["value"]
    parts = {
        name.split(".")[0] for name, value in network.state_dict().items()
        if not torch.equal(value, before[name])
    }  # fmt: skip
    assert parts == {"affine", "bspline"}


def test_what_is_refined_never_reaches_the_next_pair(tmp_path, monkeypatch):
    system = make()
    torch.manual_seed(0)
    card = ModelCard("m", "istn", {"grid_shape": list(SHAPE), "spacing": 8.0}, 4.0, SHAPE)
    save_model(tmp_path / "m.safetensors", system.build(), card)
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    one, other = pairs.make_pair(), pairs.make_pair(pairs.known_matrix(shift=(-6.0, 2.0, 1.0)))
    alone = make(pair_steps=3).register(other, Progress())
    refined = make(pair_steps=3)
    refined.register(one, Progress())
    again = refined.register(other, Progress())
    assert torch.equal(again.transform.field.displacement, alone.transform.field.displacement)
    assert np.array_equal(again.transform.linear, alone.transform.linear)
    plain = make().register(other, Progress())
    assert not np.array_equal(plain.transform.linear, alone.transform.linear)
    # The learned maps come along, each on its own image.
    assert alone.extras["representation"].grid is other.fixed.grid
    assert alone.extras["moving_representation"].grid is other.moving.grid


@pytest.mark.parametrize("kind", ["affine", "bspline", "both"])
def test_the_transform_is_native(kind):
    system = make(transform_model=kind, variant="istn_e")
    torch.manual_seed(0)
    network = system.build()
    for part in (network.affine, network.bspline):
        if part is not None:
            torch.nn.init.normal_(part.numbers.bias, 0.0, 0.5)
    fixed, moving = batch().fixed, batch().moving
    with torch.no_grad():
        found = system.predict(network, fixed, moving, 3.0)
    assert (found.linear is None) == (kind == "bspline")
    assert (found.control_points is None) == (found.displacement is None) == (kind == "affine")
    assert list(found.maps) == ["representation", "moving_representation"]
    if kind == "affine":
        return
    assert found.mesh == (2, 4, 2)
    spline = unit_lattice(SHAPE, found.mesh).evaluate(found.control_points)
    assert torch.equal(spline, found.displacement) and spline.abs().max() > 0.1


def test_images_alone_give_no_maps():
    system = make(variant="stn_s")
    assert system.build().itn is None
    assert system.predict(system.build(), batch().fixed, batch().moving, 3.0).maps == {}


def test_maps_of_structures():
    labels = torch.tensor([0, 3, 7, 9, 4]).view(1, 1, 1, 1, 5)
    found = {
        kind: soi_map(labels, (7, 3), kind)[0, :, 0, 0].tolist()
        for kind in ("intensities", "union", "groups")
    }
    assert found["intensities"] == [[0.0, 1.0, 0.5, 0.0, 0.0]]
    assert found["union"] == [[0.0, 1.0, 1.0, 0.0, 0.0]]
    assert found["groups"] == [[0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]]
    assert soi_map(labels, (0,))[0, 0, 0, 0].tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("soi", "channels"), [("intensities", 1), ("union", 1), ("groups", 3)])
def test_maps_have_as_many_channels_as_the_structures(soi, channels):
    system = make(soi=soi, structures=(1, 2, 5))
    network = system.build()
    total(system.training_loss(network, batch())).backward()
    found = system.predict(network, batch().fixed, batch().moving, 3.0)
    assert found.maps["representation"].shape == (1, channels, *SHAPE)


def test_landmarks_as_structures():
    points = torch.tensor([[3.0, 20.0, 5.0], [10.0, 4.5, 12.0]])
    maps = soi_from_points(points, SHAPE, 1.5)
    assert maps.shape == (1, 2, *SHAPE) and float(maps[0, 0, 3, 20, 5]) == 1.0
    for heat, point in zip(maps[0], points):
        middle = (voxel_coordinates(SHAPE)[0] * heat).sum((1, 2, 3)) / heat.sum()
        assert torch.allclose(middle, point, atol=0.1)
    assert float(maps[0, 0, 3, 20, 8]) == pytest.approx(np.exp(-2.0))
    with pytest.raises(GeometryError, match="landmarks"):
        soi_from_points(points.T, SHAPE)


def test_structures_lead_where_the_images_do_not(learn):
    """The brightest object moves one way, the structure of interest the other."""
    fixed = soft((7.0, 9.0, 8.0), 4.5) + 0.5 * soft((7.0, 23.0, 8.0))
    moving = soft((7.0, 11.0, 8.0), 4.5) + 0.5 * soft((7.0, 21.0, 8.0))
    maps = [(soft((7.0, y, 8.0)) > 0.5).long() for y in (23.0, 21.0)]
    data = Batch(fixed, moving, 3.0, *maps)
    shifts = {}
    for variant in ("stn_u", "istn_e"):
        system = make(variant=variant, transform_model="affine", structures=(1,))
        network, first, last = learn(system, data, steps=40, rate=5e-3)
        with torch.no_grad():
            found = system.predict(network, data.fixed, data.moving, 3.0)
        point = torch.tensor([7.0, 23.0, 8.0, 1.0], dtype=torch.float64)
        shifts[variant] = float((found.linear @ point - point)[1])
        assert sum(last.values()) < sum(first.values())
    assert shifts["istn_e"] < -0.5 < shifts["stn_u"], shifts


@pytest.mark.parametrize("kind", ["affine", "bspline", "both"])
def test_learns_a_shift_in_the_right_direction(kind, learn, shift_at_object):
    # One pair may be learned by heart.
    system = make(variant="istn_i", transform_model=kind, structures=(5,), dropout=0.0)
    network, first, last = learn(system, batch(), steps=60, rate=1e-3)
    with torch.no_grad():
        found = system.predict(network, batch().fixed, batch().moving, 3.0)
    where = voxel_coordinates(SHAPE)
    if found.displacement is not None:
        where = where + found.displacement
    if found.linear is not None:
        linear = found.linear.float()
        flat = linear[:3, :3] @ where.flatten(2) + linear[:3, 3:]
        where = flat.reshape(where.shape)
    shift = shift_at_object(where - voxel_coordinates(SHAPE), batch())
    assert last["structures"] < 0.8 * first["structures"]
    assert 0.8 < shift[1] < 3.0 and shift[[0, 2]].abs().max() < 0.7


def test_every_weight_learns():
    system = make(structures=(5,))
    torch.manual_seed(0)
    network = system.build()
    for part in (network.affine, network.bspline):
        torch.nn.init.normal_(part.numbers.weight, 0.0, 0.1)
    total(system.training_loss(network, batch())).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_source_tells_of_another_grid_and_leaves_out_what_has_no_labels():
    said = []
    given = SimpleNamespace(frame=ModelFrame(3.0, (32, 32, 32)), labeled=lambda: "labeled")
    progress = Progress(lambda event: said.append(event.text))
    assert make().source(given, None, progress) == "labeled"
    assert "16.0 x 8.0 x 16.0 voxels apart" in said[0]
    assert make(variant="stn_u", transform_model="affine").source(given, None, progress) is given
    assert len(said) == 1


def test_a_grid_has_three_sizes():
    with pytest.raises(ParameterError, match="grid_shape"):
        make(grid_shape=(48, 64))
