"""The error map: what it learns from, what it says, and that it is no registration.

These tests need a registry that knows the systems of `DeepRegLib/estimators`.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from training_doubles import Blobs

from DeepRegLib import models, registry
from DeepRegLib.errors import InputError, ParameterError
from DeepRegLib.estimators.error_map import SPEC, Algorithm
from DeepRegLib.geometry.sampling import gaussian_smooth, voxel_coordinates
from DeepRegLib.networks.error_net import ErrorNetwork
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.compose import parse_stages
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.registration.trainable import Batch, Prediction, total
from DeepRegLib.training.agreement import agreement
from DeepRegLib.training.residual_pairs import Residual, ResidualPairs
from DeepRegLib.training.validation import validate

SMALL = {"channels": (4, 6), "hidden": (8, 6), "window": 1, "patch": 22, "patches": 2}


def make(**values):
    return Algorithm(**SPEC.values(**{**SMALL, **values}))


def textured(shape, seed=0):
    """A smooth random image, 0.1 to 1, that ends inside the volume."""
    noise = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    image = gaussian_smooth(noise, 1.2)
    image = (image - image.min()) / (image.max() - image.min()) * 0.9 + 0.1
    inside = torch.zeros_like(image)
    inside[:, :, 2:-2, 2:-2, 2:-2] = 1.0
    return image * inside


class Says(nn.Module):
    """Stands for a network that says a number for every patch, and remembers what it saw."""

    field = 18

    def __init__(self, number):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(float(number)))

    def forward(self, pair, step=4, settled=False):
        self.seen = pair
        return self.number.expand(len(pair), 1, *((n - self.field) // step + 1 for n in pair.shape[2:]))


def test_the_objective_is_the_squared_difference_from_the_clipped_error():
    shape, spacing = (24, 28, 20), 2.5
    truth = torch.zeros(1, 3, *shape)
    truth[:, 0], truth[:, 2] = 0.6, -0.8  # one voxel long
    image = torch.ones(1, 1, *shape)
    batch = Batch(image, image, spacing, truth=truth)
    for largest, expected in ((6.0, (2.5 - 1.0) ** 2), (2.0, (2.0 - 1.0) ** 2)):
        terms = make(largest_mm=largest).training_loss(Says(1.0), batch)
        assert list(terms) == ["error"]
        assert terms["error"].item() == pytest.approx(expected, rel=1e-5)


def test_errors_are_compared_at_the_middle_of_the_patches():
    """An error that rises along an axis, and a network that says how far its patch lies along it."""
    shape = (26, 44, 24)
    place = voxel_coordinates(shape)[:, 1:2]
    truth = torch.cat([torch.zeros_like(place), place * 0.1, torch.zeros_like(place)], 1)
    # The moving image carries the place, so that the double can read it off a patch.
    batch = Batch(torch.ones_like(place), 1.0 + place, 1.0, truth=truth)

    class Reads(Says):
        def forward(self, pair, step=4, settled=False):
            row = pair[:, :1].amax((2, 4), keepdim=True)  # channel 0 is the moving image
            count = [(n - self.field) // step + 1 for n in pair.shape[2:]]
            # The two rows around the middle; beyond the image there is nothing to read.
            rows = [
                torch.stack([row[:, :, 0, step * i + k, 0] for i in range(count[1])], 2)
                for k in (8, 9)
            ]
            inside = [(values > 0).float() for values in rows]
            place = sum((values - 1.0) * share for values, share in zip(rows, inside))
            place = (place / sum(inside).clamp(min=1.0)).view(len(pair), 1, 1, -1, 1)
            return 0.1 * place.expand(len(pair), 1, *count) + 0.0 * self.number

    torch.manual_seed(3)
    terms = make(largest_mm=100.0, patch=26).training_loss(Reads(0.0), batch)
    assert terms["error"].item() == pytest.approx(0.0, abs=1e-8)


def test_the_background_does_not_count_and_patches_lie_at_what_is_shown():
    shape = (40, 40, 40)
    image = torch.zeros(1, 1, *shape)
    image[:, :, 20:24, 20:24, 20:24] = 1.0
    truth = torch.ones(1, 3, *shape) * 100.0
    network = Says(0.0)
    system = make(patch=22, patches=20, largest_mm=3.0)
    terms = system.training_loss(network, Batch(image, image, 3.0, truth=truth))
    assert terms["error"].item() == pytest.approx(9.0, rel=1e-5)
    assert (network.seen.amax((1, 2, 3, 4)) == 1.0).all() and len(network.seen) == 20
    nothing = Batch(0 * image, 0 * image, 3.0, truth=truth)
    assert system.training_loss(network, nothing)["error"].item() == 0.0


def test_small_volumes_are_padded_to_a_patch():
    shape = (12, 30, 18)
    image = torch.rand(1, 1, *shape)
    batch = Batch(image, image, 3.0, truth=torch.zeros(1, 3, *shape))
    system = make(patch=26)
    torch.manual_seed(0)
    assert total(system.training_loss(system.build().train(), batch)).isfinite()


def test_without_a_known_error_there_is_nothing_to_learn():
    image = torch.rand(1, 1, 20, 20, 20)
    with pytest.raises(InputError, match="error is known"):
        make().training_loss(Says(0.0), Batch(image, image, 3.0))


def test_a_prediction_is_in_mm_and_in_range():
    system = make(largest_mm=2.0)
    network = system.build().eval()
    nn.init.constant_(network.last.bias, 50.0)
    fixed, moving = textured((14, 18, 22)), textured((14, 18, 22), 1)
    with torch.no_grad():
        found = system.predict(network, fixed, moving, 3.0)
    assert found.displacement is None and found.linear is None
    assert (found.maps["error_mm"] == 2.0).all() and found.values["error_mean_mm"] == 2.0
    nn.init.constant_(network.last.bias, -50.0)
    with torch.no_grad():
        assert (system.predict(network, fixed, moving, 3.0).maps["error_mm"] == 0.0).all()


class Textures:
    """Images of random texture, ever new ones; the pairs have no truth."""

    frame = ModelFrame(3.0, (24, 28, 20))

    def draw(self, count, generator):
        seeds = torch.randint(10000, (count,), generator=generator).tolist()
        images = [textured(self.frame.shape, seed) for seed in seeds]
        return Batch(torch.cat(images), torch.cat(images), 3.0)

    def validation(self):
        return [Batch(textured(self.frame.shape, 9), textured(self.frame.shape, 8), 3.0)]

    def describe(self):
        return {"text": "textures"}


def test_it_learns_to_judge_images_that_it_has_not_seen():
    """In both stages; what it then says of whole volumes agrees with the truth, edges included."""
    source = ResidualPairs(Textures(), Residual(3.0, (40.0, 80.0), registered=0.0), mixed=8)
    system = make(channels=(8, 12), hidden=(24, 12), step=4)
    torch.manual_seed(0)
    network = system.build().train()
    number = 0
    for stage, steps in zip(system.stages(), (60, 30)):
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3 * stage.rate)
        for _ in range(steps):
            number += 1
            batch = source.draw(1, torch.Generator().manual_seed(number))
            loss = total(system.training_loss(network, replace(batch, stage=stage.name)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert len(batch.fixed) == 8
    network.eval()
    unseen = source.draw(1, torch.Generator().manual_seed(1000))
    with torch.no_grad():
        said = [system.predict(network, unseen.fixed[i : i + 1], unseen.moving[i : i + 1], 3.0)
                for i in range(8)]  # fmt: skip
    found = torch.cat([prediction.maps["error_mm"] for prediction in said])
    shown = unseen.fixed > 0.02
    figures = agreement(found[shown], system.error_mm(unseen)[shown])
    assert figures["correlation"] > 0.35 and figures["score"] > 0.0


def test_in_the_last_stage_the_statistics_stay():
    system = make()
    image = torch.rand(1, 1, 24, 24, 24)
    batch = Batch(image, image, 3.0, truth=torch.zeros(1, 3, 24, 24, 24))
    network = system.build().train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    assert [stage.name for stage in system.stages()] == ["patches", "settled"]
    system.training_loss(network, replace(batch, stage="settled"))
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())
    system.training_loss(network, replace(batch, stage="patches"))
    assert any(not torch.equal(before[name], value) for name, value in network.named_buffers())


def test_figures_of_a_validation():
    shape = (8, 9, 10)
    fixed = torch.ones(1, 1, *shape)
    truth = torch.zeros(1, 3, *shape)
    truth[:, 1] = torch.linspace(0.0, 1.0, 9).view(1, 1, 9, 1)
    batch = Batch(fixed, fixed, 2.0, truth=truth)
    system = make()
    known = system.error_mm(batch)

    def examined(said):
        system.predict = lambda *_: Prediction(maps={"error_mm": said})
        return system.examine(torch.nn.Identity(), batch)

    assert examined(known.clone()) == agreement(known, known)
    assert examined(known + 0.5)["rmse_mm"] == pytest.approx(0.5)
    assert system.examine(torch.nn.Identity(), Batch(fixed, fixed, 2.0)) == {}


def test_the_trainer_validates_it_by_its_errors():
    system = make(step=4)
    network = system.build().eval()
    pairs = ResidualPairs(Textures(), Residual(registered=0.0)).validation()
    figures = validate(system, network, pairs, torch.device("cpu"))
    assert {"correlation", "rmse_mm", "deviation_mm", "score"} <= set(figures)
    assert "dice" not in figures


def test_it_learns_from_any_pairs(tmp_path):
    found = make().source(Blobs(), tmp_path, Progress())
    assert isinstance(found, ResidualPairs)
    assert found.describe()["residual"]["widths_mm"] == (12.0, 24.0, 48.0, 96.0)
    assert found.draw(1, torch.Generator().manual_seed(0)).truth is not None


@pytest.mark.parametrize(
    ("values", "words"),
    [({"step": 3}, "takes 1, 2 or 4"), ({"window": 2, "patch": 22}, "24 voxels or more")],
)
def test_values_that_do_not_fit_are_refused(values, words):
    with pytest.raises(ParameterError, match=words):
        make(**values)


def test_it_is_no_registration(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    assert "error_map" not in registry.specs()
    assert registry.spec("error_map") == SPEC
    assert isinstance(registry.create("error_map", **SMALL), Algorithm)
    with pytest.raises(ParameterError, match="judges a registration"):
        make().register(None, Progress())
    with pytest.raises(ParameterError, match="registers nothing"):
        parse_stages("rigid+error_map")
    assert isinstance(make().build(), ErrorNetwork)


def test_places_at_the_edges_are_judged_in_training():
    """What the network is taught there is the error of the very place, with nothing beyond."""
    shape = (20, 24, 22)
    image = torch.zeros(1, 1, *shape)
    image[:, :, :2] = 1.0  # all that is shown touches the edge
    truth = torch.ones(1, 3, *shape)
    network = Says(0.0)
    system = make(patch=20, patches=12, largest_mm=2.0)
    torch.manual_seed(1)
    terms = system.training_loss(network, Batch(image, image, 3.0, truth=truth))
    assert terms["error"].item() == pytest.approx(4.0, rel=1e-4)
    # The middle of a patch of 18 voxels is where the image is: half of it lies beyond the edge.
    rows = network.seen[:, 0].amax((2, 3))
    assert (rows[:, :7] == 0).all() and (rows[:, 7:10] == 1).any(dim=1).all()


def test_a_single_patch_of_the_least_size_is_enough_to_learn():
    """Batch normalization needs more than one place."""
    image = torch.rand(1, 1, 24, 24, 24)
    batch = Batch(image, image, 3.0, truth=torch.ones(1, 3, 24, 24, 24))
    system = make(patch=20, patches=1)
    for stage in system.stages():
        staged = replace(batch, stage=stage.name)
        assert total(system.training_loss(system.build().train(), staged)).isfinite()
