"""A model from images: people that are one phantom, bent by velocities that are known."""

import pytest
import torch
from pairs import label_phantom, phantom, voxel_points

from DeepRegLib.errors import Cancelled, InputError, ParameterError
from DeepRegLib.geometry.field import fade_window
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.sampling import gaussian_smooth, sample, voxel_coordinates
from DeepRegLib.geometry.velocity import exponential
from DeepRegLib.metrics.overlap import dice_per_label
from DeepRegLib.networks.blocks import resized_vectors
from DeepRegLib.registration.base import Progress
from DeepRegLib.training import shape_model_fit
from DeepRegLib.training.shape_model_fit import FieldMaker, ModelSettings, fit_anatomies

SHAPE, LATTICE, SPACING = (20, 26, 22), (10, 13, 11), 3.2
QUICK = ModelSettings(preset="fast", rounds=1, locality_mm=(0.0, 30.0))


def grid():
    matrix = torch.diag(torch.tensor([SPACING, SPACING, SPACING, 1.0])).double().numpy()
    whole = Grid(SHAPE, matrix)
    matrix = matrix.copy()
    matrix[:3, 3] = -whole.center_ras
    return Grid(SHAPE, matrix)


def people(n=4, size=1.2, seed=0):
    """Images, label maps, and the velocities from the phantom to them (all lean to one side)."""
    points = voxel_points(grid())
    image = torch.from_numpy(phantom(points)).float()[None, None] / 100.0
    labels = torch.from_numpy(label_phantom(points)).long()[None, None]
    generator = torch.Generator().manual_seed(seed)
    noise = gaussian_smooth(torch.randn(n, 3, *LATTICE, generator=generator), 2.0)
    noise = noise * fade_window(LATTICE, 3)
    velocities = noise * (size / noise.norm(dim=1).max())
    back = torch.cat([resized_vectors(exponential(-v[None]), SHAPE) for v in velocities])
    where = voxel_coordinates(SHAPE) + back
    images = sample(image.expand(n, -1, -1, -1, -1), where, padding="fill").clamp(0, 1)
    regions = sample(labels.expand(n, -1, -1, -1, -1), where, "nearest", padding="fill")
    return list(images[:, None]), list(regions[:, None]), velocities, image, labels


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    images, labels, velocities, _, template_labels = people()
    messages = []
    progress = Progress(lambda event: messages.append(event.text or event.fraction))
    model = fit_anatomies(
        images, grid(), QUICK, folder, progress, labels=labels, names=["a", "b", "c", "d"]
    )
    return model, images, labels, velocities, template_labels, folder, messages


def test_images_agree_on_the_template(fitted):
    model, images = fitted[:2]
    before = torch.cat(images).std(dim=0).mean()
    assert model.textures.std(dim=0).mean() < 0.5 * before
    assert model.velocities.shape == (4, 3, *LATTICE) and model.grid.shape == SHAPE
    assert model.about["names"] == ["a", "b", "c", "d"] and model.about["engine"] == "svf"


def test_the_template_lies_in_the_middle(fitted):
    model = fitted[0]
    spread = (model.velocities - model.mean_velocity).norm(dim=1).mean()
    assert spread > 0.1
    assert model.mean_velocity.norm(dim=1).mean() < 0.25 * spread


def test_shapes_are_those_of_the_people(fitted):
    model, velocities = fitted[0], fitted[3]
    inside = (model.template[0, 0, ::2, ::2, ::2] > 0.2)[None, None].expand(4, 3, -1, -1, -1)
    found = (model.velocities - model.mean_velocity)[inside]
    truth = (velocities - velocities.mean(0))[inside]
    assert torch.corrcoef(torch.stack([found, truth]))[0, 1] > 0.8
    assert 0.6 < found.norm() / truth.norm() < 1.3


def test_the_template_has_the_labels_of_most(fitted):
    model, labels = fitted[0], fitted[2]
    assert set(model.labels.unique().tolist()) == {0, 1, 2, 3}
    where = voxel_coordinates(SHAPE)
    for region, velocity in zip(labels, model.velocities):
        u = resized_vectors(exponential(velocity[None]), SHAPE)
        moved = sample(region, where + u, "nearest", padding="fill")
        assert min(dice_per_label(model.labels, moved).values()) > 0.7


def test_progress_and_messages(fitted):
    messages = fitted[-1]
    assert sum("4 images to the template" in str(m) for m in messages) == 2
    fractions = [m for m in messages if isinstance(m, float)]
    assert fractions[-1] == 1.0


def test_a_second_time_nothing_is_registered(fitted, monkeypatch):
    def refuse(*_):
        raise AssertionError("registered again")

    monkeypatch.setattr(shape_model_fit, "run_stages", refuse)
    again = fit_anatomies(fitted[1], grid(), QUICK, fitted[5])
    assert torch.equal(again.velocities, fitted[0].velocities) and again.labels is None
    with pytest.raises(AssertionError, match="registered again"):
        fit_anatomies([1.0 - image for image in fitted[1]], grid(), QUICK, fitted[5])


def test_it_can_be_cancelled_in_the_midst(tmp_path):
    progress = Progress(lambda event: progress.cancel() if event.text else None)
    with pytest.raises(Cancelled):
        fit_anatomies(people()[0], grid(), QUICK, tmp_path, progress)


def test_the_fields_of_a_teacher_point_the_right_way(tmp_path):
    image = people()[3]
    shift = torch.zeros(1, 3, *SHAPE)
    shift[:, 1] = 2.0
    # What is at x in the fixed image is two voxels further along the second axis in the moving.
    moving = sample(image, voxel_coordinates(SHAPE) - shift, padding="fill")
    maker = FieldMaker(grid(), QUICK, tmp_path, Progress())
    found = maker.displacements([(image, moving)])
    assert found.shape == (1, 3, *LATTICE) and maker.lattice == LATTICE
    inside = image[0, 0, ::2, ::2, ::2] > 0.2
    mean = found[0][:, inside].mean(dim=1)
    assert mean[1].item() == pytest.approx(1.0, abs=0.25)  # voxels of the lattice are twice as wide
    assert mean[[0, 2]].abs().max() < 0.2


def test_what_cannot_be_fitted_is_refused(tmp_path):
    images = people()[0]
    with pytest.raises(InputError, match="at least 3 images"):
        fit_anatomies(images[:2], grid(), QUICK, tmp_path)
    with pytest.raises(InputError, match="on its grid"):
        fit_anatomies([*images[:2], images[2][:, :, 1:]], grid(), QUICK, tmp_path)
    for engine in ("rigid", "vxm"):
        with pytest.raises(ParameterError, match="cannot register"):
            ModelSettings(engine=engine)
    with pytest.raises(ParameterError, match="0 times or more"):
        ModelSettings(rounds=-1)
