"""Samples of a model of anatomies: exact correspondence, invertible shapes, files."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from anatomy_doubles import GRID, INNER, SHAPE, make_model

from DeepRegLib.errors import FileFormatError, InputError, ParameterError
from DeepRegLib.geometry.field import compose_displacements
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.training.shape_model import AnatomyModel, Shapes
from DeepRegLib.training.shape_model_file import load_anatomies, read_summary, save_anatomies


@pytest.fixture(scope="module")
def model():
    return make_model()


def test_the_correspondence_of_two_samples_is_exact(model):
    shapes = model.draw_shapes(2, torch.Generator().manual_seed(1))
    one, other = shapes[0], shapes[1]
    u = one.to(other)
    assert u.shape == (1, 3, *SHAPE) and u.norm(dim=1).max() > 1.0
    # The point of the template that the fixed voxel shows is shown by the moving image at x + u.
    where = voxel_coordinates(SHAPE)
    in_fixed = where + one.back
    in_moving = where + u + sample(other.back, where + u)
    miss = (in_fixed - in_moving)[INNER].norm(dim=1)
    assert miss.mean() < 0.005 and miss.max() < 0.15
    # Neither the other order nor the other direction does.
    turned = compose_displacements(one.back, other.forward)
    for wrong in (turned, other.to(one), -u):
        at = where + wrong
        wrong_miss = (in_fixed - at - sample(other.back, at))[INNER].norm(dim=1)
        assert wrong_miss.mean() > 20 * miss.mean()


def test_samples_are_invertible_and_follow_the_spread(model):
    generator = torch.Generator().manual_seed(2)
    small = model.draw_shapes(4, generator, 0.5)
    generator = torch.Generator().manual_seed(2)
    large = model.draw_shapes(4, generator, 2.0)
    for shapes in (small, large):
        assert (jacobian_determinant(shapes.forward)[(slice(None), *INNER[2:])] > 0).all()
        round_trip = compose_displacements(shapes.back, shapes.forward)[INNER]
        moved = shapes.forward[INNER].norm(dim=1).mean()
        assert round_trip.norm(dim=1).mean() < 0.1 * moved
    assert large.forward.norm() > 2.0 * small.forward.norm()
    mean = model.draw_shapes(1, generator, 0.0)
    assert torch.allclose(mean.forward, Shapes.of(model.mean_velocity, SHAPE).forward)


def test_anatomies_are_the_first_ones_of_a_seed(model):
    three, one = model.sample(3, seed=5), model.sample(1, seed=5)
    assert three.images.shape == three.labels.shape == (3, 1, *SHAPE)
    assert torch.equal(three.images[:1], one.images)
    assert torch.equal(three.shapes.forward[:1], one.shapes.forward)
    assert not torch.equal(three.images[0], three.images[1])
    assert not torch.equal(one.images, model.sample(1, seed=6).images)
    assert three.images.min() >= 0 and three.images.max() <= 1
    assert set(three.labels.unique().tolist()) == {0, 1, 2}
    # Labels and intensities belong together.
    bright = [float(i[region == 1].mean()) for i, region in zip(three.images, three.labels)]
    dark = [float(i[region == 0].mean()) for i, region in zip(three.images, three.labels)]
    assert min(bright) > 5 * max(dark)
    with pytest.raises(ParameterError, match="at least 1"):
        model.sample(0)


def test_a_sample_is_its_texture_on_its_shape(model):
    made = model.sample(1, seed=3, texture_spread=0.0)
    back_on_template = sample(made.images, voxel_coordinates(SHAPE) + made.shapes.forward)
    apart = (back_on_template - model.template)[INNER].abs().mean()
    assert apart < 0.4 * (made.images - model.template)[INNER].abs().mean()


def test_textures_vary_where_the_images_do(model):
    drawn = model.draw_textures(200, torch.Generator().manual_seed(0))
    assert drawn.min() >= 0.0 and drawn.max() <= 1.0
    inside = model.template > 0.3
    found = drawn.std(dim=0, keepdim=True)[inside].mean()
    assert found.item() == pytest.approx(
        model.textures.std(dim=0, keepdim=True)[inside].square().mean().sqrt().item(), rel=0.2
    )
    assert drawn.std(dim=0, keepdim=True)[model.template < 0.01].max() < 0.02


def test_the_ends_of_a_mode_lie_opposite(model):
    ends = model.along_mode(0, (-2.0, 0.0, 2.0))
    forward = ends.shapes.forward - ends.shapes.forward[1]
    assert (forward[0] * forward[2]).sum() < -0.5 * forward[0].norm() * forward[2].norm()
    values, modes = model.shape_statistics.modes(1)
    flat = modes[0].flatten()
    assert flat.square().sum().item() == pytest.approx(values[0].item(), rel=1e-3)
    with pytest.raises(ParameterError, match="none of number 4"):
        make_model(locality_mm=(0.0,)).along_mode(4)


def test_size_is_that_of_the_shapes_in_mm():
    model = make_model()
    deviations = model.velocities - model.mean_velocity
    inside = model.template[:, :, ::2, ::2, ::2] > 0.05  # about the same voxels
    lengths = (deviations * 6.0).square().sum(dim=1, keepdim=True).sum(0, keepdim=True) / 4
    assert model.size_mm() == pytest.approx(lengths[inside].mean().sqrt().item(), rel=0.1)


def test_a_model_needs_three_images_and_arrays_that_fit():
    whole = make_model()
    for arrays in (
        (whole.velocities[:2], whole.textures[:2], None),
        (whole.velocities, whole.textures[:4], None),
        (whole.velocities, whole.textures[:, :, :10], None),
        (whole.velocities[:, :2], whole.textures, None),
        (whole.velocities, whole.textures, torch.zeros(1, 1, 4, 4, 4)),
    ):
        with pytest.raises(InputError):
            AnatomyModel(GRID, *arrays)


def test_a_model_comes_back_from_its_file(model, tmp_path):
    path = tmp_path / "brains.safetensors"
    told = save_anatomies(model, path)
    again = load_anatomies(path)
    assert again.grid.matches(model.grid) and again.subjects == 5
    assert torch.equal(again.velocities, model.velocities)
    assert torch.allclose(again.textures, model.textures, atol=1e-3)
    assert torch.equal(again.labels, model.labels)
    assert again.locality_mm == model.locality_mm and again.about == {"engine": "svf"}
    assert torch.allclose(again.sample(1).images, model.sample(1).images, atol=5e-3)
    assert told == read_summary(path)
    assert told["subjects"] == 5 and told["shape"] == list(SHAPE) and told["engine"] == "svf"
    shares = told["variance_explained"]["shape"]
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] <= 1.001
    assert told["effective_modes"] > 4
    save_anatomies(make_model(labels=False), path)
    assert load_anatomies(path).labels is None


def rewritten(path, target, **changes):
    """The file with entries of its description changed."""
    with safetensors.safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["deepreg_anatomies"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content |= {k: v for k, v in changes.items() if k not in tensors}
    tensors |= {k: v for k, v in changes.items() if k in tensors}
    target.write_bytes(safetensors.torch.save(tensors, {"deepreg_anatomies": json.dumps(content)}))
    return target


def test_files_that_are_no_models_are_refused(model, tmp_path):
    path, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_anatomies(model, path)
    whole = path.read_bytes()
    with pytest.raises(FileFormatError, match="no file"):
        load_anatomies(tmp_path / "none.safetensors")
    for content in (whole[: len(whole) // 2], whole[:20], b"some text that is no model"):
        bad.write_bytes(content)
        with pytest.raises(FileFormatError, match="damaged"):
            load_anatomies(bad)
    bad.write_bytes(safetensors.torch.save({"weights": torch.zeros(2)}))
    with pytest.raises(FileFormatError, match="no model of anatomies"):
        load_anatomies(bad)
    bad.write_bytes(safetensors.torch.save({"a": torch.zeros(2)}, {"deepreg_anatomies": "{"}))
    with pytest.raises(FileFormatError, match="damaged"):
        load_anatomies(bad)
    with pytest.raises(FileFormatError, match="version 7"):
        load_anatomies(rewritten(path, bad, version=7))
    broken = model.velocities.clone()
    broken[0, 0, 0, 0, 0] = torch.nan
    for changes in (
        {"grid_shape": [20, 28]}, {"grid_shape": [20, 28, 25]}, {"voxel_to_ras": "none"},
        {"voxel_to_ras": np.zeros((4, 4)).tolist()}, {"locality_mm": []},
        {"locality_mm": [-3.0]}, {"velocities": broken}, {"velocities": torch.zeros(5, 3, 2, 2)},
        {"about": 3},
    ):  # fmt: skip
        with pytest.raises(FileFormatError, match="is damaged"):
            load_anatomies(rewritten(path, bad, **changes))
    with pytest.raises(FileFormatError, match="ends in"):
        save_anatomies(model, tmp_path / "model.pt")
