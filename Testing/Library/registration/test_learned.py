"""Registration by a network: sub-voxel exact placement, models, fits to a pair, windows."""

import math
from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch
from support import ORIENTATIONS, make_grid, smooth_displacement
from torch import nn

from DeepRegLib import models, registry
from DeepRegLib.errors import Cancelled, FileFormatError, InputError, ParameterError
from DeepRegLib.geometry.bspline import BSplineLattice
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import resize_image, sample, voxel_coordinates
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.models import ModelCard
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.registration import learned
from DeepRegLib.registration.base import Image, ImagePair, Progress
from DeepRegLib.registration.learned import LearnedRegistration, see
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.registration.pair_fit import FitSettings, fit
from DeepRegLib.registration.placement import placed
from DeepRegLib.registration.tiles import Tiling, predict_in_tiles
from DeepRegLib.registration.trainable import Batch, Prediction, Stage
from DeepRegLib.spec import AlgorithmSpec, Needs, Parameter

SPEC = AlgorithmSpec(
    key="tiny", title="Tiny", family="unsupervised", summary="For tests.", transform="dense",
    needs=Needs(training=True),
    parameters=(
        Parameter(name="model", default="", help="Model."),
        Parameter(name="pair_steps", default=0, minimum=0, maximum=10000, help="Steps."),
        Parameter(name="nodes", default=(4, 4, 4), minimum=1, help="Nodes.", training=True),
        Parameter(name="factor", default=1.0, help="Factor.", training=True),
    ),
)  # fmt: skip


class Tiny(LearnedRegistration):
    """A network without eyes: its weights are a coarse displacement."""

    key = "tiny"
    multiple = 8
    scratch_rate = pair_rate = 0.05

    def build(self):
        return Nodes(self.values["nodes"], self.values["factor"])

    def training_loss(self, network, batch):
        u = network(batch.shape)
        where = voxel_coordinates(batch.shape, u.device) + u
        return {"similarity": (sample(batch.moving, where) - batch.fixed).square().mean(),
                "size": 1e-5 * u.square().mean()}  # fmt: skip

    def predict(self, network, fixed, moving, spacing_mm):
        return Prediction(displacement=network(fixed.shape[2:]), values={"code": [1.5]})


class Nodes(nn.Module):
    def __init__(self, nodes, factor):
        super().__init__()
        self.nodes = nn.Parameter(torch.randn(1, 3, *nodes) * 0.01)
        self.factor = factor

    def forward(self, shape):
        return self.factor * resize_image(self.nodes, tuple(shape), antialias=False)


class Local(LearnedRegistration):
    """Two convolutions: what it says at a voxel depends on two voxels around it, and no more."""

    key = "tiny"
    multiple = 8
    limit = math.inf

    def build(self):
        return nn.Sequential(
            nn.Conv3d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 3, 3, padding=1)
        )

    def training_loss(self, network, batch):
        self._check(batch.fixed)
        u = network(torch.cat([batch.fixed, batch.moving], 1))
        where = voxel_coordinates(batch.shape, u.device) + u
        return {"similarity": (sample(batch.moving, where) - batch.fixed).square().mean()}

    def predict(self, network, fixed, moving, spacing_mm):
        self._check(fixed)
        u = network(torch.cat([fixed, moving], 1))
        return Prediction(displacement=u, maps={"loud_mm": u.norm(dim=1, keepdim=True),
                                                "parts": (u[:, :1] * 50).round().long()},
                          values={"code": float(fixed.mean())})  # fmt: skip

    def _check(self, fixed):
        if fixed[0, 0].numel() > self.limit:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] not enough memory")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of models; the registry knows the double alone."""
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    monkeypatch.setattr(registry, "specs", lambda: {"tiny": SPEC})
    monkeypatch.setattr(learned, "_SCRATCH_STEPS", 6)
    return tmp_path


def make(kind=Tiny, **values):
    return kind(**SPEC.values(**values))


def put_model(folder, name="brain", network=None, **changes):
    values = {"nodes": [4, 4, 4], "factor": 1.0}
    card = ModelCard(name, "tiny", values, 4.0, (24, 24, 24), anatomy="brain", contrast="T1",
                     data="generated images", terms="CC0", figures={"dice": 0.8})  # fmt: skip
    save_model(folder / f"{name}.safetensors", network or Nodes((4, 4, 4), 1.0),
               replace(card, **changes))  # fmt: skip


def noisy(grid, seed=0):
    noise = torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(seed))
    return Image(noise * 100.0, grid)


# --- placement ------------------------------------------------------------------------------------

LINEAR = np.array([[1.04, 0.05, -0.02, 3.0], [-0.06, 0.97, 0.03, -2.0],
                   [0.02, -0.04, 1.02, 1.5], [0.0, 0.0, 0.0, 1.0]])  # fmt: skip
STRETCH = np.array([[0.05, -0.03, 0.02], [0.01, -0.06, 0.04], [-0.02, 0.03, 0.04]])


def bend_mm(points_ras, center):
    """A displacement that is linear in RAS, so that interpolation adds nothing to it."""
    return (points_ras - center) @ STRETCH.T + [1.3, -0.7, 2.1]


def wave_mm(points_ras, center):
    return 2.0 * np.sin((points_ras - center)[..., [1, 2, 0]] / 12.0)


def on_network_grid(grid, function, center):
    """What a network would say, in voxels of its upright grid."""
    vectors = function(pairs.voxel_points(grid), center) / grid.spacing_mm
    return torch.from_numpy(np.moveaxis(vectors, -1, 0)[None].copy()).float()


def centered(grid, center):
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, 3] += center - grid.center_ras
    return Grid(grid.shape, matrix)


def make_start(kind, center):
    """A start of the pair, on a grid of its own for the field."""
    if kind == "none":
        return None
    linear = pairs.known_matrix(shift=(2.0, 1.0, -3.0))
    if kind == "linear":
        return Transform(linear)
    grid = centered(make_grid("SAR", (14, 18, 16), (4.1, 3.3, 3.7)), center)
    return Transform(linear, Field(smooth_displacement(grid.shape, 0.8), grid))


def scene(orientation, start="none", margin=4):
    """A pair on unlike grids and the grid of a network around the fixed one."""
    fixed = make_grid(orientation, (15, 19, 13), (1.7, 1.2, 2.3), (12, -30, 25))
    moving = centered(make_grid("LPS", (16, 12, 18), (2.1, 2.6, 1.9)), fixed.center_ras + 3.0)
    pair = ImagePair(noisy(fixed, 1), noisy(moving, 2), initial=make_start(start, fixed.center_ras))
    extent = fixed.corners_ras()
    shape = [math.ceil(e / 2.2) + 2 * margin for e in np.ptp(extent, axis=0)]
    matrix = np.diag([2.2, 2.2, 2.2, 1.0])
    # The middle of the network's grid is elsewhere, by no whole number of voxels.
    matrix[:3, 3] = fixed.center_ras + [0.37, -0.81, 0.5] - 2.2 * (np.array(shape) - 1) / 2
    return pair, Grid(tuple(shape), matrix)


def errors_mm(pair, transform, expected):
    """Distances at the fixed voxels, away from the outermost layer."""
    points = pairs.voxel_points(pair.fixed.grid)[1:-1, 1:-1, 1:-1].reshape(-1, 3)
    mapped = transform.map_points_ras(points)
    return np.linalg.norm(mapped - expected(points), axis=1)


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
    maps = {"uncertainty_mm": plane, "segmentation": half * 7, "moving_height": plane}
    extras = placed(Prediction(maps=maps), grid, pair).extras
    inner = pairs.voxel_points(pair.fixed.grid)
    np.testing.assert_allclose(
        extras["uncertainty_mm"].numpy(), inner[..., 0] * 0.5 - inner[..., 2] + 7.0, atol=1e-3
    )
    labels = extras["segmentation"]
    assert labels.data.dtype == torch.uint8 and labels.pixel_type == "uint8"
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


# --- what the network sees ------------------------------------------------------------------------


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


# --- models ---------------------------------------------------------------------------------------


def test_a_model_is_found_used_and_named(folder):
    network = Nodes((2, 3, 2), 2.0)
    with torch.no_grad():
        network.nodes.copy_(torch.tensor([0.5, -1.0, 0.25]).view(1, 3, 1, 1, 1))
    put_model(folder, network=network, parameters={"nodes": [2, 3, 2], "factor": 2.0})
    events = []
    pair = pairs.make_pair()
    result = make().register(pair, Progress(events.append))
    middle = result.transform.map_points_ras([[0.0, 0.0, 0.0]])
    # The parameters of the model hold (factor 2), and its voxels of 4 mm.
    np.testing.assert_allclose(middle, [[4.0, -8.0, 2.0]], atol=1e-3)
    about = result.provenance["model"]
    assert about["name"] == "brain" and about["data"] == "generated images"
    assert about["terms"] == "CC0" and about["figures"] == {"dice": 0.8}
    assert result.provenance["values"] == {"code": [1.5]} and result.history == []
    assert result.provenance["pair_steps"] == 0 and result.provenance["windows"] == 1
    assert any("'brain' (brain, T1)" in e.text for e in events if e.kind == "message")
    fractions = [e.fraction for e in events if e.kind == "progress"]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and len(fractions) >= 2


def test_models_that_do_not_fit_the_system_are_refused(folder):
    pair = pairs.make_pair()
    with pytest.raises(ParameterError, match="no model 'none'"):
        make(model="none").register(pair, Progress())
    put_model(folder, "other", algorithm="large")
    with pytest.raises(ParameterError, match="belongs to 'large'"):
        make(model="other").register(pair, Progress())
    put_model(folder, "later", parameters={"nodes": [4, 4, 4], "depth": 3})
    with pytest.raises(FileFormatError, match="parameter 'depth'"):
        make(model="later").register(pair, Progress())
    put_model(folder, "odd", parameters={"nodes": "many"})
    with pytest.raises(FileFormatError, match="'odd' does not fit"):
        make(model="odd").register(pair, Progress())
    put_model(folder, "small", network=Nodes((2, 2, 2), 1.0))
    with pytest.raises(FileFormatError, match="does not fit the network"):
        make(model="small").register(pair, Progress())


def test_without_a_model_the_network_is_fitted_to_the_pair(monkeypatch):
    monkeypatch.setattr(learned, "_SCRATCH_STEPS", 60)
    shift = np.eye(4)
    shift[:3, 3] = [4.0, -3.0, 2.5]
    pair, events = pairs.make_pair(shift), []
    result = make(pair_steps=3).register(pair, Progress(events.append, preview_seconds=0.0))
    assert any("no trained model for 'tiny'" in e.text for e in events)
    before, after = pairs.error_mm(Transform(), shift), pairs.error_mm(result.transform, shift)
    assert after < 0.35 * before, (before, after)
    values = [entry["value"] for entry in result.history]
    assert len(values) == 60 and values[-1] < 0.6 * values[0]
    assert {"level", "iteration", "value"} <= set(result.history[0])
    assert result.provenance["model"] is None
    previews = [e.transform for e in events if e.kind == "preview"]
    assert pairs.error_mm(previews[-1], shift) < pairs.error_mm(previews[0], shift)


def test_random_weights_are_the_same_each_time():
    pair, found = pairs.make_pair(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(make().register(pair, Progress()).transform.field.displacement)
    assert torch.equal(*found)


def test_a_network_is_fitted_from_the_start_that_is_given(monkeypatch):
    """The fit makes up for what the start leaves, on top of it."""
    monkeypatch.setattr(learned, "_SCRATCH_STEPS", 60)
    matrix = pairs.known_matrix()
    start = matrix.copy()
    start[:3, 3] += [2.5, -2.0, 2.0]
    pair = pairs.make_pair(matrix, initial=Transform(start))
    result = make().register(pair, Progress())
    assert pairs.error_mm(result.transform, matrix) < 0.5 * pairs.error_mm(Transform(start), matrix)


def test_what_is_fitted_to_a_pair_never_reaches_the_next(folder):
    put_model(folder)
    path = folder / "brain.safetensors"
    content, state = path.read_bytes(), torch.get_rng_state()
    one, other = pairs.make_pair(), pairs.make_pair(pairs.known_matrix(shift=(-6.0, 2.0, 1.0)))
    alone = make(pair_steps=4).register(other, Progress())
    system = make(pair_steps=4)
    values = dict(system.values)
    system.register(one, Progress())
    after = system.register(other, Progress())
    assert torch.equal(after.transform.field.displacement, alone.transform.field.displacement)
    plain = make().register(other, Progress())
    assert not torch.equal(plain.transform.field.displacement, after.transform.field.displacement)
    assert path.read_bytes() == content and dict(system.values) == values
    assert torch.equal(torch.get_rng_state(), state)


def test_cancel_and_stop(folder):
    pair = pairs.make_pair()
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        make().register(pair, progress)

    def stop_at(count):
        seen = []

        def listen(event):
            seen.append(event)
            if sum(e.kind == "progress" for e in seen) >= count:
                progress.stop()

        progress = Progress(listen)
        return make(pair_steps=50).register(pair, progress), seen

    # Before the first step, random weights are nothing to keep.
    result, seen = stop_at(1)
    assert result.transform.is_linear and len([e for e in seen if e.kind == "progress"]) <= 2
    result, _ = stop_at(5)
    assert not result.transform.is_linear and 1 <= len(result.history) < 10
    put_model(folder)
    result, _ = stop_at(1)
    assert not result.transform.is_linear and result.history == []


def test_labels_are_only_measured_unless_the_system_asks(folder):
    put_model(folder)
    seen = []

    class Curious(Tiny):
        def training_loss(self, network, batch):
            seen.append(batch.fixed_labels)
            return super().training_loss(network, batch)

    pair = replace(pairs.make_pair(), fixed_labels=pairs.make_labels(pairs.fixed_grid()),
                   moving_labels=pairs.make_labels(pairs.moving_grid()))  # fmt: skip
    make(Curious, pair_steps=1).register(pair, Progress())
    assert all(labels is None for labels in seen)
    Curious.fits_labels = True
    seen.clear()
    make(Curious, pair_steps=1).register(pair, Progress())
    assert all(set(labels.unique().tolist()) == {0, 1, 2, 3} for labels in seen)


# --- the fit --------------------------------------------------------------------------------------


class Valley(LearnedRegistration):
    """Two numbers with known best values, learned one after the other."""

    key = "tiny"

    def __init__(self, losses=None):
        super().__init__()
        self.losses, self.seen = losses, []

    def build(self):
        network = nn.Module()
        network.first, network.second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        nn.init.zeros_(network.first.weight)
        nn.init.zeros_(network.second.weight)
        return network

    def stages(self):
        return (Stage("one", 0.25, ("first",)), Stage("two", 0.75, ("second",)))

    def training_loss(self, network, batch):
        a, b = network.first.weight, network.second.weight
        self.seen.append((batch.stage, batch.fraction, a.item(), b.item()))
        value = (a - 1.0).square().sum() + (b + 2.0).square().sum()
        if self.losses and torch.is_grad_enabled():
            value = value * 0.0 + self.losses.pop(0)
        return {"a": value, "b": value * 0.0}

    def predict(self, network, fixed, moving, spacing_mm):
        return Prediction()


BATCH = Batch(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8), 2.0)


def test_the_fit_goes_through_the_stages_of_a_training():
    system = Valley()
    network = system.build()
    history = fit(system, network, [BATCH], FitSettings(400, 0.05, from_scratch=True))
    assert abs(float(network.first.weight) - 1.0) < 0.05
    assert abs(float(network.second.weight) + 2.0) < 0.05
    names = [stage for stage, *_ in system.seen]
    # One more look after each stage, at the weights of its last step.
    assert names == ["one"] * 101 + ["two"] * 301
    assert all(b == 0.0 for name, _, _, b in system.seen if name == "one")
    firsts = [a for name, _, a, _ in system.seen if name == "two"]
    assert len(set(firsts)) == 1
    fractions = [f for name, f, *_ in system.seen if name == "two"]
    assert fractions == sorted(fractions) and fractions[0] == 0.0 and fractions[-1] == 1.0
    assert [entry["level"] for entry in history] == [0] * 100 + [1] * 300


def test_a_trained_network_is_fitted_as_a_whole():
    system = Valley()
    network = system.build()
    fit(system, network, [BATCH], FitSettings(5, 0.05))
    assert float(network.first.weight) > 0.0 > float(network.second.weight)
    assert {(name, fraction) for name, fraction, *_ in system.seen} == {("pair", 1.0)}


def test_the_best_weights_are_kept():
    """The third step sees the least loss, so the weights before it win over the last ones."""
    system = Valley(losses=[5.0, 4.0, 1.0, 6.0, 7.0])
    network = system.build()
    states = []

    def report(done, value, network):
        with torch.no_grad():  # the losses of the list have no slope
            network.first.weight += 0.1
        states.append(network.first.weight.item())
        return False

    fit(system, network, [BATCH], FitSettings(5, 0.0), report)
    assert float(network.first.weight) == states[1]


def test_a_loss_that_is_no_number_ends_the_fit_with_the_best():
    system = Valley(losses=[5.0, 4.0, float("nan"), 1.0])
    network = system.build()
    history = fit(system, network, [BATCH], FitSettings(4, 0.01))
    assert [entry["value"] for entry in history] == [5.0, 4.0]
    assert torch.isfinite(network.first.weight).all()


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 56, 24), (41, 30, 17)])
def test_windows_say_the_same_as_the_whole(shape):
    """A grid that is no multiple of what the network halves by gets background around it."""
    torch.manual_seed(0)
    system = make(Local)
    network = system.build().eval()
    images = torch.zeros(2, 1, 1, *(-(-n // 8) * 8 for n in shape))
    inside = (..., *(slice(n) for n in shape))
    images[inside] = torch.rand(2, 1, 1, *shape)
    tiling = Tiling.of(shape, 24, 8)
    assert len(tiling.starts) >= 4 and all(s % 8 == 0 for start in tiling.starts for s in start)
    with torch.no_grad():
        whole = system.predict(network, *images, 2.0)
        parts = predict_in_tiles(system, network, Batch(*images[inside], 2.0), tiling)
    for part, reference in ((parts.displacement, whole.displacement),
                            (parts.maps["loud_mm"], whole.maps["loud_mm"])):  # fmt: skip
        torch.testing.assert_close(part, reference[inside], atol=1e-5, rtol=0)
    assert (parts.maps["parts"] == whole.maps["parts"][inside]).float().mean() > 0.999
    assert parts.maps["parts"].dtype == torch.int64
    assert len(parts.values["code"]) == len(tiling.starts)


def test_weights_of_windows_fade_towards_their_cuts_alone():
    tiling = Tiling.of((64, 24, 24), 32, 8)
    first = tiling.weights((0, 0, 0), torch.device("cpu"))[0, 0]
    assert first[0].min() == 1.0 and first[-1].max() == 0.0 and first[-2].max() == 0.0
    middle = tiling.weights(tiling.starts[1], torch.device("cpu"))[0, 0]
    assert middle[0].max() == middle[-1].max() == 0.0 and middle[16].min() == 1.0
    assert (first.diff(dim=0) <= 0).all()


def test_too_little_memory_leads_to_windows(folder, monkeypatch):
    """Both the fit and the answer go on in windows; the answer is that of the whole."""
    monkeypatch.setattr(learned, "_EDGES", (16,))
    put_model(folder, network=make(Local).build(), spacing_mm=3.0, shape=(24, 32, 24))
    pair = pairs.make_pair()
    whole = make(Local).register(pair, Progress())
    assert whole.provenance["windows"] == 1
    events = []
    monkeypatch.setattr(Local, "limit", 17**3)
    result = make(Local).register(pair, Progress(events.append))
    assert result.provenance["windows"] >= 8
    assert any("overlapping windows" in e.text for e in events)
    torch.testing.assert_close(result.transform.field.displacement,
                               whole.transform.field.displacement, atol=1e-4, rtol=0)  # fmt: skip
    fitted = make(Local, pair_steps=3).register(pair, Progress())
    assert len(fitted.history) == 3 and fitted.provenance["windows"] >= 8
    monkeypatch.setattr(Local, "limit", 10)
    with pytest.raises(RuntimeError, match="memory"):
        make(Local).register(pair, Progress())
    monkeypatch.setattr(Local, "limit", 17**3)
    monkeypatch.setattr(Local, "in_tiles", False)
    with pytest.raises(RuntimeError, match="memory"):
        make(Local).register(pair, Progress())


def test_a_fit_that_ran_out_of_memory_begins_again_with_the_weights_of_the_model(
    folder, monkeypatch
):
    seen = []

    class Failing(Local):
        def training_loss(self, network, batch):
            if batch.fixed[0, 0].numel() > 17**3 and len(seen) == 2:
                raise RuntimeError("out of memory")
            seen.append(network[0].weight.detach().clone())
            return super().training_loss(network, batch)

    monkeypatch.setattr(learned, "_EDGES", (16,))
    put_model(folder, network=make(Local).build(), spacing_mm=3.0, shape=(24, 32, 24))
    result = make(Failing, pair_steps=4).register(pairs.make_pair(), Progress())
    assert len(result.history) == 4 and not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_large_grids_are_cut_before_memory_runs_out(folder, monkeypatch):
    monkeypatch.setattr(learned, "_EDGES", (16,))
    monkeypatch.setattr(learned, "_MOST_VOXELS", 5000)
    put_model(folder, network=make(Local).build(), spacing_mm=3.0, shape=(24, 32, 24))
    assert make(Local).register(pairs.make_pair(), Progress()).provenance["windows"] >= 8


def test_other_errors_are_not_taken_for_a_lack_of_memory(folder, monkeypatch):
    def fail(self, fixed):
        raise RuntimeError("a defect")

    monkeypatch.setattr(Local, "_check", fail)
    put_model(folder, network=make(Local).build())
    with pytest.raises(RuntimeError, match="a defect"):
        make(Local).register(pairs.make_pair(), Progress())


@pytest.mark.gpu
def test_the_gpu_gives_the_same(folder):
    put_model(folder, network=make(Local).build(), spacing_mm=3.0, shape=(24, 32, 24))
    pair = replace(pairs.make_pair(), initial=Transform(pairs.known_matrix()))
    for steps in (0, 3):
        here = make(Local, pair_steps=steps).register(pair, Progress())
        there = make(Local, pair_steps=steps).register(pair.to("cuda"), Progress())
        assert there.transform.field.displacement.device.type == "cuda"
        apart = there.transform.field.displacement.cpu() - here.transform.field.displacement
        assert apart.abs().max() < 1e-2
    state = torch.cuda.get_rng_state()
    make(Local, pair_steps=1).register(pair.to("cuda"), Progress())
    assert torch.equal(torch.cuda.get_rng_state(), state)
