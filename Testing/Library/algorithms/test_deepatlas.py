"""DeepAtlas: whose turn it is, what stands for unknown structures, and what a model gives."""

from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch
from torch import nn

from DeepRegLib import models
from DeepRegLib.algorithms.deepatlas import SPEC, Algorithm
from DeepRegLib.errors import ParameterError
from DeepRegLib.geometry.field import compose_displacements
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.losses.anatomy import anatomy_loss, class_map, segmentation_loss
from DeepRegLib.losses.curvature import curvature_energy
from DeepRegLib.losses.lncc import LNCC
from DeepRegLib.metrics.overlap import dice_per_label
from DeepRegLib.networks.blocks import warped
from DeepRegLib.registration import learned
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.registration.source import informed
from DeepRegLib.registration.trainable import Batch, total
from DeepRegLib.training.schedule import enter
from DeepRegLib.training.settings import TrainingSettings
from DeepRegLib.training.trainer import Trainer

SHAPE, STRUCTURES = (16, 20, 24), (4, 17, 53)
#: For trainings, whose shapes are multiples of 16.
TRAINED = (16, 32, 16)
SMALL = {
    "encoder": (4, 4, 4), "decoder": (4, 4), "structures": STRUCTURES,
    "segmentation_encoder": (4, 4, 4, 6), "segmentation_decoder": (4, 4),
}  # fmt: skip
CASES = {"both": (True, True), "moving": (False, True), "fixed": (True, False),
         "none": (False, False)}  # fmt: skip


def make(**values):
    return Algorithm(**SPEC.values(**{**SMALL, **values}))


def boxes(offset=0):
    """Three structures, and a number that is none of them."""
    labels = torch.zeros(1, 1, *SHAPE, dtype=torch.int64)
    labels[0, 0, 2:9, 4 + offset : 12 + offset, 3:12] = 17
    labels[0, 0, 4:7, 6 + offset : 10 + offset, 5:9] = 53
    labels[0, 0, 10:14, 4 + offset : 14 + offset, 14:22] = 4
    labels[0, 0, 0, 0, 0] = 99
    return labels


def batch_of(case="both", stage="joint", step=0):
    """A pair of images with two of its structures, which are known as the case says."""
    generator = torch.Generator().manual_seed(0)
    images = 0.05 * torch.rand(2, 1, 1, *SHAPE, generator=generator)
    truth = boxes(), boxes(2)
    fixed, moving = (image + labels.clamp(max=60) / 80 for image, labels in zip(images, truth))
    unknown = torch.full_like(truth[0], -1)
    known = [labels if there else unknown for labels, there in zip(truth, CASES[case])]
    if case == "none":
        known = [None, None]
    return Batch(fixed, moving, 3.0, *known, stage=stage, step=step)


class Double(nn.Module):
    """Stands for the networks: one displacement, and the same logits for each image of a mean."""

    def __init__(self, displacement, **logits):
        super().__init__()
        self.displacement = nn.Parameter(displacement)
        self.logits = nn.ParameterDict(logits)
        self.images = {}

    def forward(self, fixed, moving=None):
        if moving is not None:
            return 1.0 * self.displacement
        names = [next(n for n, seen in self.images.items() if torch.equal(seen, image[None]))
                 for image in fixed]  # fmt: skip
        return torch.cat([self.logits[name] for name in names])


def double(batch, seed=1):
    generator = torch.Generator().manual_seed(seed)
    logits = {name: torch.randn(1, 4, *SHAPE, generator=generator) for name in ("fixed", "moving")}
    network = Double(torch.randn(1, 3, *SHAPE, generator=generator), **logits)
    network.images = {"fixed": batch.fixed, "moving": batch.moving}
    return network


def learners(network, terms):
    """Names of the networks that a loss gives a gradient; the others have none, not zeros."""
    network.zero_grad(set_to_none=True)
    total(terms).backward()
    return {n.split(".")[0] for n, p in network.named_parameters() if p.grad is not None}


def test_stages_train_each_network_and_then_both():
    stages = make().stages()
    assert [s.name for s in stages] == ["registration", "segmentation", "joint"]
    assert [s.modules for s in stages] == [("registration",), ("segmentation",), ()]
    network = make().build()
    for stage in stages:
        weights = enter(stage, network)
        terms = make().training_loss(network, batch_of(stage=stage.name))
        total(terms).backward()
        assert any(w.grad is not None for w in weights)
        names = {"registration": {"similarity", "smoothness"}, "segmentation": {"labels"}}
        joint = {"similarity", "smoothness", "anatomy", "labels"}
        assert set(terms) == names.get(stage.name, joint)


@pytest.mark.parametrize("ratio", [1, 3])
def test_networks_take_turns_and_the_other_one_rests(ratio):
    algorithm = make(ratio=ratio)
    network = algorithm.build()
    turns = []
    for step in range(2 * (ratio + 1)):
        terms = algorithm.training_loss(network, batch_of("fixed", step=step))
        assert list(terms) == ["similarity", "smoothness", "anatomy", "labels"]
        assert terms["anatomy"] > 0
        assert (terms["labels"] > 0) != (terms["similarity"] > 0)
        turns.append(learners(network, terms))
    assert turns == 2 * [*ratio * [{"registration"}], {"segmentation"}]


def test_adam_leaves_the_resting_network_alone():
    torch.manual_seed(0)
    algorithm = make(ratio=1)
    network = algorithm.build()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(4):
        before = {n: p.detach().clone() for n, p in network.named_parameters()}
        optimizer.zero_grad(set_to_none=True)
        total(algorithm.training_loss(network, batch_of("both", step=step))).backward()
        optimizer.step()
        moved = {
            n.split(".")[0] for n, p in network.named_parameters() if not torch.equal(p, before[n])
        }
        assert moved == {"segmentation" if step % 2 else "registration"}


@pytest.mark.parametrize("case", list(CASES))
def test_registration_takes_predictions_for_unknown_structures(case):
    batch = batch_of(case)
    network = double(batch)
    terms = make(anatomy=2.0).training_loss(network, batch)
    if case == "none":
        assert terms["anatomy"] == 0.0 and not terms["anatomy"].requires_grad
    else:
        known = dict(zip(("fixed", "moving"), (batch.fixed_labels, batch.moving_labels)))
        parts = {name: class_map(labels, STRUCTURES) if CASES[case][i] else
                 network.logits[name].softmax(dim=1)
                 for i, (name, labels) in enumerate(known.items())}  # fmt: skip
        expected = 2.0 * anatomy_loss(parts["moving"], parts["fixed"], network.displacement, 4)
        assert terms["anatomy"].item() == pytest.approx(expected.item(), rel=1e-5)
    learned_by = learners(network, terms)
    assert learned_by == {"displacement"}


@pytest.mark.parametrize("case", ["both", "moving", "fixed"])
def test_segmentation_learns_from_labels_and_from_what_is_moved(case):
    batch = batch_of(case, step=3)
    network = double(batch)
    terms = make(anatomy=2.0).training_loss(network, batch)
    maps = {"fixed": class_map(boxes(), STRUCTURES), "moving": class_map(boxes(2), STRUCTURES)}
    known = [name for name, there in zip(("fixed", "moving"), CASES[case]) if there]
    expected = torch.stack([segmentation_loss(network.logits[n], maps[n]) for n in known]).mean()
    assert terms["labels"].item() == pytest.approx(expected.item(), rel=1e-5)
    anatomy = torch.zeros(())
    if case != "both":
        parts = {n: maps[n] if n in known else network.logits[n].softmax(dim=1) for n in maps}
        anatomy = 2.0 * anatomy_loss(parts["moving"], parts["fixed"], network.displacement, 4)
    assert terms["anatomy"].item() == pytest.approx(float(anatomy.detach()), rel=1e-5)
    # The image without a label map learns from the one with it; the registration rests.
    assert learners(network, terms) == {"logits"}
    assert all(network.logits[n].grad.abs().max() > 0 for n in maps)
    assert network.displacement.grad is None


def test_without_any_label_map_the_registration_takes_the_turn():
    network = make().build()
    terms = make().training_loss(network, batch_of("none", step=3))
    assert learners(network, terms) == {"registration"} and terms["anatomy"] == 0.0
    # Where the segmentation has the stage to itself, nothing is learned.
    terms = make().training_loss(network, batch_of("none", stage="segmentation"))
    total(terms).backward()
    assert all(not p.grad.any() for p in network.segmentation.parameters() if p.grad is not None)


def test_networks_apart_share_nothing():
    algorithm = make(anatomy=0.0)
    for step, case in ((0, "both"), (3, "fixed")):
        batch = batch_of(case, step=step)
        network = double(batch)
        terms = algorithm.training_loss(network, batch)
        assert terms["anatomy"] == 0.0
        learners(network, terms)
        unlabeled = network.logits["moving"].grad
        assert unlabeled is None or not unlabeled.any()


def test_batches_of_pairs_with_and_without_labels():
    one, other = batch_of("fixed"), batch_of("both")
    joined = {
        name: torch.cat([getattr(one, name), getattr(other, name)])
        for name in ("fixed", "moving", "fixed_labels", "moving_labels")
    }
    network = make().build()
    for step in (0, 3):
        both = Batch(**joined, spacing_mm=3.0, stage="joint", step=step)
        terms = make().training_loss(network, both)
        alone = [make().training_loss(network, replace(b, step=step)) for b in (one, other)]
        # All that is known is learned: two of four images by registration turns, three by labels.
        if step == 0:
            expected = torch.stack([t["anatomy"] for t in alone]).mean()
            assert torch.allclose(terms["anatomy"], expected, atol=1e-5)
        else:
            assert torch.allclose(terms["anatomy"], alone[0]["anatomy"], atol=1e-5)
            assert alone[1]["anatomy"] == 0.0 and terms["labels"] > 0


def test_terms_of_the_registration():
    batch = batch_of(stage="registration")
    network = double(batch)
    terms = make(smoothness=0.3).training_loss(network, batch)
    u, images = network.displacement.detach(), (batch.fixed, batch.moving)
    moved = warped(images[1], u)
    # The geometric mean of the sizes is 19.7: windows of 3 (at least), 3, and 2 * 2 + 1 voxels.
    expected = (0.1 + 0.3) * LNCC(1)(images[0], moved) + 0.6 * LNCC(2)(images[0], moved)
    assert terms["similarity"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["smoothness"].item() == pytest.approx(0.3 * curvature_energy(u).item(), rel=1e-5)
    wide = make(windows=(0.5,), window_weights=(2.0,)).training_loss(network, batch)
    blocks = 2.0 * LNCC(2, block=(2, 2, 2))(images[0], moved)
    assert wide["similarity"].item() == pytest.approx(blocks.item(), rel=1e-5)
    with pytest.raises(ParameterError, match="as many numbers"):
        make(windows=(0.5, 0.25))


def test_one_model_gives_displacement_and_both_segmentations():
    batch = batch_of()
    network = double(batch)
    with torch.no_grad():
        found = make().predict(network, batch.fixed, batch.moving, 3.0)
    assert torch.equal(found.displacement, network.displacement) and found.inverse is None
    assert list(found.maps) == ["segmentation", "moving_segmentation"]
    for name, side in (("segmentation", "fixed"), ("moving_segmentation", "moving")):
        shown = found.maps[name]
        assert shown.dtype == torch.int64 and shown.shape == (1, 1, *SHAPE)
        # The numbers are the labels of the training, not those of the classes.
        assert set(shown.unique().tolist()) == {0, *STRUCTURES}
        for number, label in enumerate((0, *STRUCTURES)):
            rows = network.logits[side].detach()[0, :, shown[0, 0] == label]
            assert (rows.argmax(0) == number).all()


def test_the_order_of_the_structures_makes_no_difference():
    assert make(structures=(53, 4, 17)).labels == make(structures=STRUCTURES).labels == (4, 17, 53)


def test_an_untrained_system_shows_no_structures():
    algorithm = make(structures=(0,))
    network = algorithm.build()
    batch = batch_of(step=3)
    with torch.no_grad():
        found = algorithm.predict(network, batch.fixed, batch.moving, 3.0)
    assert found.maps == {} and found.displacement.abs().max() < 0.01
    # And learns to register from a pair, label maps or not.
    assert learners(network, algorithm.training_loss(network, batch)) == {"registration"}
    pair = algorithm.training_loss(network, batch_of("none", stage="pair"))
    assert set(pair) == {"similarity", "smoothness"}
    assert algorithm.pair_modules == ("registration",)


def test_velocities_are_integrated_at_half_resolution():
    algorithm = make(deformation="velocity")
    batch = batch_of()
    network = double(batch)
    with torch.no_grad():
        network.displacement.zero_()
        network.displacement[:, 1] = 1.5  # voxels of the full grid, also after both resamplings
        found = algorithm.predict(network, batch.fixed, batch.moving, 3.0)
    middle = (0, slice(None), 8, 10, 12)
    assert torch.allclose(found.displacement[middle], torch.tensor([0.0, 1.5, 0.0]), atol=1e-4)
    x = voxel_coordinates(SHAPE)
    with torch.no_grad():
        network.displacement[:] = 2.0 * torch.sin(x[:, [1, 2, 0]] / 5.0)
        found = algorithm.predict(network, batch.fixed, batch.moving, 3.0)
    inner = (slice(None), slice(None), *(slice(5, -5),) * 3)
    left = compose_displacements(found.displacement, found.inverse)[inner].norm(dim=1)
    assert left.mean() < 0.1 * found.displacement[inner].norm(dim=1).mean()


def test_learns_a_shift_in_the_right_direction(shifted, learn, shift_at_object):
    algorithm = make(smoothness=0.02, encoder=(4, 8, 8, 8), decoder=(8, 8, 4))
    batch = replace(shifted, stage="registration")
    network, first, last = learn(algorithm, batch)
    u = algorithm.predict(network, shifted.fixed, shifted.moving, 3.0).displacement
    shift = shift_at_object(u.detach(), shifted)
    assert last["similarity"] < 0.8 * first["similarity"]
    assert 1.0 < shift[1] < 3.0 and shift[[0, 2]].abs().max() < 0.5


def test_structures_move_what_the_images_do_not_show():
    """Images without contrast, one label map: only the anatomy loss says where to go."""
    torch.manual_seed(0)
    batch = replace(batch_of("both"), fixed=torch.full((1, 1, *SHAPE), 0.5))
    batch = replace(batch, moving=batch.fixed)
    network = Double(torch.zeros(1, 3, *SHAPE))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    algorithm = make(smoothness=0.02)
    values = []
    for _ in range(40):
        terms = algorithm.training_loss(network, batch)
        optimizer.zero_grad()
        total(terms).backward()
        optimizer.step()
        values.append(terms["anatomy"].item())
    assert values[-1] < 0.3 * values[0]
    # The moving structures lie two voxels further along the second axis.
    where = voxel_coordinates(SHAPE) + network.displacement.detach()
    moved = sample(batch.moving_labels, where, "nearest")
    before = (batch.moving_labels == batch.fixed_labels)[batch.fixed_labels > 0].float().mean()
    after = (moved == batch.fixed_labels)[batch.fixed_labels > 0].float().mean()
    assert after > 0.9 > 0.8 > before


class Threshold(nn.Module):
    """Stands for a trained segmentation: class 1 is what is brighter than a fifth."""

    def forward(self, image):
        return torch.cat([torch.zeros_like(image), image - 0.2], dim=1)


class Thresholding(Algorithm):
    """DeepAtlas with that segmentation."""

    key = "deepatlas"

    def build(self):
        network = super().build()
        weights = network.segmentation.classes.weight
        network.segmentation = Threshold()
        network.segmentation.weight = nn.Parameter(weights.detach().clone())
        return network


def test_segmentations_lie_on_the_grids_of_both_images(tmp_path, monkeypatch):
    """Both grids are anisotropic and unlike, one is oblique; the network's is neither."""
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    monkeypatch.setattr(learned, "_SCRATCH_STEPS", 3)
    monkeypatch.setattr(learned, "_SCRATCH_VOXELS", {"cpu": 32**3})
    matrix = pairs.known_matrix()
    pair = pairs.make_pair(matrix, initial=Transform(matrix))
    values = SPEC.values(**{**SMALL, "structures": (7,)})
    result = Thresholding(**values).register(pair, Progress())
    body = {"segmentation": np.eye(4), "moving_segmentation": np.linalg.inv(matrix)}
    assert set(result.extras) == set(body)
    for name, image in (("segmentation", pair.fixed), ("moving_segmentation", pair.moving)):
        shown = result.extras[name]
        assert shown.grid.matches(image.grid) and shown.pixel_type == "uint8"
        assert set(shown.data.unique().tolist()) == {0, 7}
        truth = pairs.make_labels(image.grid, body[name]).data > 0
        found = shown.data == 7
        overlap = 2.0 * float((truth & found).sum()) / float(truth.sum() + found.sum())
        assert overlap > 0.85, (name, overlap)
    moved = result.transform.map_points_ras(pairs.body_points())
    expected = Transform(matrix).map_points_ras(pairs.body_points())
    np.testing.assert_allclose(moved, expected, atol=1.0)


class Few:
    """Pairs of which every other one has a label map, of the fixed image."""

    frame = ModelFrame(3.0, TRAINED)

    def draw(self, count, generator):
        known = bool(torch.rand((), generator=generator) < 0.75)
        labels = torch.zeros(count, 1, *TRAINED, dtype=torch.int64)
        labels[:, :, 3:9, 8:20, 4:12] = 17
        labels[:, :, 9:13, 8:20, 4:12] = 4
        noise = 0.1 * torch.rand(2, *labels.shape, generator=generator)
        fixed, moving = labels / 20 + noise[0], labels.roll(1, dims=3) / 20 + noise[1]
        sides = (labels, torch.full_like(labels, -1)) if known else (None, None)
        return Batch(fixed, moving, 3.0, *sides)

    def validation(self):
        return []

    def structures(self):
        return [4, 17]

    def describe(self):
        return {"text": "boxes"}


@pytest.mark.parametrize(("precision", "steps"), [("float32", 80), ("bfloat16", 12)])
def test_a_training_goes_through_all_stages(tmp_path, precision, steps):
    small = {**SMALL, "structures": (0,), "ratio": 1}
    system = informed("deepatlas", small, Few())
    assert system.labels == (4, 17)
    torch.manual_seed(0)
    before = system.build().state_dict()
    settings = TrainingSettings(steps=steps, precision=precision, accumulate=2, learning_rate=2e-2,
                                optimizer="adam")  # fmt: skip
    result = Trainer(system, Few(), settings, tmp_path).run()
    assert result.ended == "complete" and result.steps == steps
    rows = [row for row in result.history if row["kind"] == "training"]
    assert list(dict.fromkeys(row["stage"] for row in rows)) == [s.name for s in system.stages()]
    joint = [row for row in rows if row["stage"] == "joint"]
    assert any(row["loss_anatomy"] > 0 for row in joint)
    assert any(row["loss_labels"] > 0 for row in joint)
    weights = result.network.state_dict()
    learned = {n.split(".")[0] for n in weights if not torch.equal(weights[n], before[n])}
    assert learned == {"registration", "segmentation"}
    drawn = (Few().draw(1, torch.Generator().manual_seed(n)) for n in range(20))
    pair = next(batch for batch in drawn if batch.fixed_labels is not None)
    with torch.no_grad():
        found = system.predict(result.network, pair.fixed, pair.moving, 3.0)
    assert set(found.maps["segmentation"].unique().tolist()) <= {0, 4, 17}
    dice = dice_per_label(pair.fixed_labels, found.maps["segmentation"])
    # Dozens of steps teach the half of it; none gives nothing.
    assert min(dice.values()) > 0.4 or steps < 40
