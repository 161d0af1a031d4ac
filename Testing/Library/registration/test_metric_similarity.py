"""Similarities by a network: gradients, masks, voxel sizes, intensities, sampled lattices."""

import numpy as np
import pairs
import pytest
import torch

from DeepRegLib.errors import ParameterError
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.losses import parse_terms
from DeepRegLib.losses.feature_distance import feature_distance
from DeepRegLib.networks.feature_autoencoder import FeatureAutoencoder
from DeepRegLib.networks.patch_metric import PatchMetric
from DeepRegLib.registration.levels import PairLevel
from DeepRegLib.registration.metric_similarity import (
    FeatureSimilarity,
    PatchSimilarity,
    similarity_for,
)
from DeepRegLib.registration.preprocess import Level
from DeepRegLib.registration.samples import lattice_points, thinned

SHAPE = (13, 18, 11)


def measures(spacing=(2.0, 2.0, 2.0), model_mm=2.0):
    torch.manual_seed(0)
    patches, features = PatchMetric((4, 4, 5, 5, 6)).double(), FeatureAutoencoder((4, 5)).double()
    torch.nn.init.normal_(patches.head.convolution.weight, 0.0, 0.3)
    # Head computes in single precision, whatever comes in.
    patches.head.forward = patches.head.convolution.forward
    return {
        "patches": PatchSimilarity(patches, spacing, model_mm),
        "features": FeatureSimilarity(features, spacing, model_mm, (1.0, 0.5)),
    }


def images(seed=0, shape=SHAPE):
    noise = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(seed))
    smooth = gaussian_smooth(noise, 1.2).double()
    return (0.5 + smooth / (2.5 * smooth.abs().max())).split(1)


def mask(seed=5, shape=SHAPE):
    part = torch.zeros(1, 1, *shape, dtype=torch.float64)
    part[..., 2:11, 3:15, 1:9] = 1.0
    return part


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.0, 1.0, 1.5)])
@pytest.mark.parametrize("name", ["patches", "features"])
def test_gradient_against_finite_differences(name, spacing, masked):
    measure, (fixed, moved) = measures(spacing)[name], images()
    part = mask() if masked else None
    value, gradient = measure.value_and_gradient(fixed, moved, part)
    assert gradient.shape == moved.shape
    for place in [(0, 0, 6, 9, 5), (0, 0, 4, 5, 3), (0, 0, 0, 0, 0), (0, 0, 9, 13, 8)]:
        change = torch.zeros_like(moved)
        change[place] = 1e-5
        up, down = (float(measure(fixed, moved + s * change, part)) for s in (1, -1))
        assert float(gradient[place]) == pytest.approx(
            (up - down) / 2e-5, abs=1e-3 * float(gradient.abs().max())
        )
    bound = measure.bind(fixed, part)
    again, slope = bound.value_and_gradient(moved)
    assert float(again) == pytest.approx(float(value), abs=1e-9)
    torch.testing.assert_close(slope, gradient, atol=1e-9, rtol=1e-6)
    # Another mask at the call takes the place of the bound one, as in the engines.
    other = bound.value_and_gradient(moved, mask() * 0.5)[0]
    direct = measure.value_and_gradient(fixed, moved, mask() * 0.5)[0]
    assert float(other) == pytest.approx(float(direct), abs=1e-9)


@pytest.mark.parametrize("name", ["patches", "features"])
def test_both_gradients(name):
    measure, (fixed, moved) = measures()[name], images()
    value, by_fixed, by_moved = measure.value_and_both_gradients(fixed, moved, mask())
    expected = measure.value_and_gradient(fixed, moved, mask())
    assert float(value) == pytest.approx(float(expected[0]), abs=1e-9)
    torch.testing.assert_close(by_moved, expected[1])
    assert by_fixed.abs().max() > 1e-6 and not torch.allclose(by_fixed, by_moved)


@pytest.mark.parametrize("name", ["patches", "features"])
def test_what_lies_outside_the_mask_does_not_count(name):
    measure, (fixed, moved), part = measures()[name], images(), mask()
    value, gradient = measure.value_and_gradient(fixed, moved, part)
    noise = torch.rand_like(moved)
    other, ground = (torch.where(part > 0, image, noise) for image in (moved, fixed))
    assert float(measure(ground, other, part)) == pytest.approx(float(value), abs=1e-9)
    assert float(gradient[part == 0].abs().max()) == 0.0
    assert float(gradient[part > 0].abs().max()) > 0.0
    assert float(measure(fixed, moved)) != pytest.approx(float(value), abs=1e-6)
    empty, none = measure.value_and_gradient(fixed, moved, torch.zeros_like(part))
    assert float(empty) == 0.0 and float(none.abs().max()) == 0.0


@pytest.mark.parametrize("shape", [(1, 20, 18), (5, 4, 30), (2, 2, 2)])
@pytest.mark.parametrize("name", ["patches", "features"])
def test_thin_images_work(name, shape):
    fixed, moved = images(3, shape)
    value, gradient = measures()[name].value_and_gradient(fixed, moved)
    assert bool(torch.isfinite(value)) and gradient.shape == moved.shape
    assert bool(torch.isfinite(gradient).all())


def test_networks_see_cubic_voxels_never_finer_than_their_own():
    # Finer than the model: its voxels. Coarser: those of the level. Thick slices: cubes.
    cases = {
        (1.0, 1.0, 1.0): [20, 20, 20], (4.0, 4.0, 4.0): [40, 40, 40], (2.1, 1.9, 2.0): [40] * 3,
        (1.0, 1.0, 6.0): [20, 20, 120], (4.0, 4.0, 8.0): [40, 40, 80],
    }  # fmt: skip
    for spacing, expected in cases.items():
        assert measures(spacing)["patches"].seen_shape((40, 40, 40)) == expected
    assert measures((5.0, 1.0, 1.0))["patches"].seen_shape((1, 40, 40)) == [1, 20, 20]


def test_features_of_equal_images_do_not_differ_and_their_size_does_not_matter():
    fixed, moved = (torch.rand(1, 3, 8, 8, 8) for _ in range(2))
    layers = [fixed], [moved]
    assert float(feature_distance([fixed], [fixed], (1.0,))) == 0.0
    value = float(feature_distance(*layers, (1.0,)))
    assert float(feature_distance([7.0 * fixed], [7.0 * moved], (3.0,))) == pytest.approx(value)
    expected = ((fixed - moved) ** 2).sum(1).mean() / fixed.var(dim=(2, 3, 4), correction=0).sum()
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert value == pytest.approx(2.0, abs=0.3)
    two = feature_distance([fixed, fixed], [moved, fixed], (1.0, 3.0))
    assert float(two) == pytest.approx(0.25 * value, rel=1e-5)


def test_features_of_the_fixed_image_are_computed_once(monkeypatch):
    measure, (fixed, moved) = measures()["features"], images()
    seen = []
    features = measure.features
    monkeypatch.setattr(measure, "features", lambda i, m: seen.append(i is fixed) or features(i, m))
    bound = measure.bind(fixed)
    for _ in range(3):
        bound.value_and_gradient(moved)
    assert seen.count(True) == 1 and seen.count(False) == 3


def test_levels_show_networks_the_intensities_of_their_training():
    pair = pairs.make_pair()
    level = PairLevel.of(pair, np.eye(4), 4.0)
    seen = level.with_features(measures()["patches"])
    # The foreground, not all there is, decides; the geometry stays as it is.
    inside = seen.fixed > 0.5 * float(seen.fixed.mean())
    assert 0.0 < float((seen.fixed[inside] >= 1.0).float().mean()) < 0.03
    ratio = (seen.fixed / level.fixed)[inside & (seen.fixed < 1.0)]
    assert float(ratio.std()) < 1e-5 and float(ratio.mean()) > 1.02
    np.testing.assert_array_equal(seen.to_moving, level.to_moving)
    assert seen.moving.shape == level.moving.shape and float(seen.moving.max()) <= 1.0


def test_points_of_a_lattice_are_the_voxels_of_the_level_in_its_order():
    pair = pairs.make_pair()
    level = Level(pair.fixed.data[..., ::2, ::2, ::2], pair.fixed.grid.resized((11, 14, 10)))
    weights = torch.zeros(1, 1, *pair.fixed.grid.shape)
    weights[..., 4:12, 6:20, 8:16] = 1.0
    rest = (level, None, 0.0)
    samples = lattice_points(level, weights, True, Transform(), rest)
    assert samples.intensities.shape == samples.fixed_mask.shape == (1, 1, 4, 7, 4)
    torch.testing.assert_close(samples.intensities[0, 0, 0, 0, 0], level.data[0, 0, 2, 3, 4])
    points = samples.fixed_ras.reshape(4, 7, 4, 3).double().numpy()
    np.testing.assert_allclose(points[1, 2, 3], level.grid.to_ras([3, 5, 7]), atol=1e-4)
    assert thinned(samples, 10) is samples
    whole = lattice_points(level, weights, False, Transform(), rest)
    assert whole.fixed_mask is None


def test_learned_names_are_known_in_sums_and_unknown_ones_refused():
    assert parse_terms("lncc + 0.5*deep_metric") == [(1.0, "lncc"), (0.5, "deep_metric")]
    assert type(similarity_for("mi", (1.0, 1.0, 1.0), "unused")).__name__ == "MutualInformation"
    ngf = similarity_for("ngf", (1.0, 2.0, 3.0), spacing_mm=(1.0, 2.0, 3.0))
    assert ngf.spacing_mm == (1.0, 2.0, 3.0)
    with pytest.raises(ParameterError, match="no similarity 'deep'"):
        similarity_for("deep", (1.0, 1.0, 1.0))
