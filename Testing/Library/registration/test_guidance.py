"""Objectives beside the plain similarity: sums, label overlap, landmarks, prepared intensities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import make_grid

from DeepRegLib.errors import InputError, ParameterError
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.losses import parse_terms, similarity
from DeepRegLib.losses.dice import one_hot
from DeepRegLib.metrics.overlap import dice_per_label, mean_dice
from DeepRegLib.registration.base import Image, ImagePair, Progress
from DeepRegLib.registration.dense import DenseEngine, DenseSettings
from DeepRegLib.registration.guidance import hold_out, label_pair
from DeepRegLib.registration.preparation import prepared
from DeepRegLib.registration.preprocess import foreground

GRID = make_grid("oblique", (28, 32, 18), (2.0, 2.0, 3.5))
SETTINGS = DenseSettings(
    similarity="lncc", radius=2, factors=(2, 1), iterations=(40, 20), step=1.0, update_sigma=1.7,
    field_sigma=0.7, volume_weight=0.1, lattice=2, tolerance=0.0, finest_mm=0.0,
)  # fmt: skip


def _points():
    return GRID.to_ras(np.moveaxis(np.indices(GRID.shape), 0, -1)) - GRID.center_ras


def _ball(shift, radius=14.0):
    return np.linalg.norm(_points() - shift, axis=-1) < radius


@pytest.fixture
def pair():
    """A ball with a core; in the moving image the core, which has hardly any contrast, is moved."""
    cores = [_ball(shift, 7.0) for shift in ((0, 0, 0), (5.0, 0, 0))]
    images = [Image.from_array((_ball((0, 0, 0), 20.0) * 1.0).astype("f4"), GRID) for _ in cores]
    labels = [Image.from_array((core * 3).astype("u1"), GRID) for core in cores]
    return ImagePair(*images, fixed_labels=labels[0], moving_labels=labels[1])


def _label_dice(transform, pair):
    moved = transform.warp(pair.moving_labels.data, GRID, GRID, "nearest", 0)
    return mean_dice(dice_per_label(pair.fixed_labels.data, moved), {3})


def test_label_overlap_moves_what_the_images_do_not_show(pair):
    without = DenseEngine(SETTINGS).register(pair, Progress()).transform
    settings = replace(SETTINGS, label_weight=3.0)
    with_labels = DenseEngine(settings).register(pair, Progress()).transform
    assert _label_dice(without, pair) < 0.75
    assert _label_dice(with_labels, pair) > 0.9


def test_label_weight_needs_labels(pair):
    with pytest.raises(InputError, match="label maps of both"):
        label_pair(replace(pair, moving_labels=None))
    other = Image.from_array(np.full(GRID.shape, 9, "u1"), GRID)
    with pytest.raises(InputError, match="share no label"):
        label_pair(replace(pair, moving_labels=other))


def test_dice_gradient_is_that_of_its_value():
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 4, (1, 1, 7, 6, 5), generator=generator)
    fixed = one_hot(labels, (1, 2, 3)).double()
    moved = torch.rand(fixed.shape, generator=generator).double()
    mask = torch.rand(1, 1, 7, 6, 5, generator=generator).double()
    dice = similarity("dice")
    _, gradient = dice.value_and_gradient(fixed, moved, mask)
    direction = torch.rand(fixed.shape, generator=generator).double() - 0.5
    ahead, behind = (float(dice(fixed, moved + s * direction, mask)) for s in (1e-5, -1e-5))
    assert (ahead - behind) / 2e-5 == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_landmarks_pull_softly_and_are_judged_by_those_held_out(pair):
    rng = np.random.default_rng(0)
    fixed = rng.normal(size=(12, 3)) * 8 + GRID.center_ras
    moving = fixed + (4.0, -3.0, 2.0)
    pair = replace(pair, fixed_landmarks_ras=fixed, moving_landmarks_ras=moving)
    told = []
    settings = replace(SETTINGS, landmark_weight=0.3, landmark_holdout=0.25)
    progress = Progress(lambda event: told.append(event.text))
    transform = DenseEngine(settings).register(pair, progress).transform
    kept, held = hold_out(pair, 0.25)
    assert len(held) == 3 and len(kept.fixed_landmarks_ras) == 9
    before = np.linalg.norm(fixed - moving, axis=1)
    after = np.linalg.norm(transform.map_points_ras(fixed) - moving, axis=1)
    seen = np.setdiff1d(np.arange(12), held)
    assert after[seen].mean() < 0.5 * before[seen].mean()
    assert after[held].mean() < before[held].mean()
    (text,) = [text for text in told if "held out" in text]
    assert f"{np.median(after[held]):.2f} mm" in text


def test_a_sum_of_similarities_is_read_and_weighs():
    assert parse_terms("lncc + 0.5*mi") == [(1.0, "lncc"), (0.5, "mi")]
    for text in ("lncc+", "2*", "-1*mi", "x*mi", "ssd"):
        with pytest.raises(ParameterError, match="positive weight"):
            parse_terms(text)


def test_terms_add_up(pair):
    def first(**changes):
        settings = replace(SETTINGS, factors=(1,), iterations=(1,), **changes)
        moving = Image(torch.roll(pair.moving.data, 1, 2), GRID)
        result = DenseEngine(settings).register(replace(pair, moving=moving), Progress())
        return result.history[0]["value"]

    alone, other = first(), first(similarity="mse")
    assert first(more_terms="0.5*mse") == pytest.approx(alone + 0.5 * other, rel=1e-5)


def test_histograms_are_matched_in_the_foreground():
    rng = np.random.default_rng(1)
    data = (_ball((0, 0, 0), 20.0) * (100 + 20 * rng.normal(size=GRID.shape))).astype("f4")
    fixed = Image.from_array(data, GRID)
    moving = Image.from_array((np.clip(data, 0, None) ** 1.5 + 7).astype("f4"), GRID)
    matched = prepared(ImagePair(fixed, moving), "match").moving
    inside = foreground(fixed)
    difference = (matched.data - fixed.data)[inside].abs().mean()
    assert float(difference) < 2.0
    assert torch.equal(moving.data, ImagePair(fixed, moving).moving.data)


def test_a_smooth_bias_is_flattened():
    grid = make_grid("oblique", (28, 32, 22), (6.0, 6.0, 8.0))  # a head, larger than the window
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1)) - grid.center_ras
    ball = np.linalg.norm(points, axis=-1) < 75.0
    bias = np.exp(0.008 * points[..., 0])
    flat = Image.from_array((100.0 * ball).astype("f4"), grid)
    biased = Image.from_array((100.0 * ball * bias).astype("f4"), grid)
    mended = prepared(ImagePair(flat, biased), "bias").moving
    before, after = (np.log(x.numpy()[ball]).std() for x in (biased, mended))
    assert after < 0.5 * before
    with pytest.raises(ParameterError, match="negative"):
        prepared(ImagePair(flat, Image(biased.data - 500, grid)), "bias")


def test_outliers_are_cut_and_unknown_steps_refused():
    data = torch.rand(1, 1, *GRID.shape)
    data[0, 0, 3, 3, 3] = 1e6
    image = Image(data, GRID)
    cut = prepared(ImagePair(image, image), "winsorize + match").fixed
    assert float(cut.data.max()) <= 1.0
    with pytest.raises(ParameterError, match="no preparation 'n4'"):
        prepared(ImagePair(image, image), "n4")
    assert prepared(ImagePair(image, image), "none").fixed is image


def test_the_start_is_kept_apart_from_the_pair(pair):
    result = DenseEngine(replace(SETTINGS, iterations=(0, 0))).register(pair, Progress())
    assert np.allclose(result.transform.linear, Transform().linear)
