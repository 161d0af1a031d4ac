"""Similarity, the quality card, and each rule of its verdict."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.inverse import invert
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.metrics import verdict
from DeepRegLib.metrics.report import ROWS, card_rows, card_text, quality_card
from DeepRegLib.metrics.similarity import (
    normalized_correlation,
    normalized_mutual_information,
    pair_similarity,
)
from DeepRegLib.registration.base import Image, ImagePair, Result


def result_of(pair: ImagePair, transform: Transform) -> Result:
    inverse = invert(transform, pair.moving.grid)[0]
    return Result(transform, inverse, seconds={"affine": 1.0, "greedy": 2.5})


def threshold_labels(image: Image) -> Image:
    data = (image.data > 40).to(torch.int16) + (image.data > 90).to(torch.int16)
    return Image(data, image.grid, "int16")


@pytest.fixture
def full_pair(pair, truth) -> ImagePair:
    points = pair.fixed.grid.to_ras([[8, 9, 10], [12, 20, 9], [14, 12, 24]])
    return replace(
        pair,
        fixed_labels=threshold_labels(pair.fixed),
        moving_labels=threshold_labels(pair.moving),
        fixed_landmarks_ras=points,
        moving_landmarks_ras=truth.map_points_ras(points),
    )


def test_similarity_is_highest_at_the_truth(pair, truth, scene):
    best = pair_similarity(pair, truth)
    assert best["ncc"] > 0.999 and best["nmi"] > 1.5 and best["overlap_percent"] > 99
    for x in (-2.0, 2.0):
        worse = pair_similarity(pair, truth.then_linear(scene.shift(x, 0, 0).linear))
        assert worse["ncc"] < best["ncc"] and worse["nmi"] < best["nmi"]
    assert pair_similarity(pair, truth) == best


def test_mutual_information_does_not_mind_contrast(pair, truth):
    inverted = replace(pair, moving=Image(-(pair.moving.data**1.5), pair.moving.grid))
    found = pair_similarity(inverted, truth)
    assert found["ncc"] < -0.9
    assert found["nmi"] > 1.6


def test_similarity_without_overlap_is_unknown(pair, scene):
    found = pair_similarity(pair, scene.shift(500.0, 0, 0))
    assert np.isnan(found["ncc"]) and np.isnan(found["nmi"]) and found["overlap_percent"] == 0


def test_moving_mask_limits_the_overlap(pair, truth):
    half = torch.zeros_like(pair.moving.data, dtype=torch.uint8)
    half[:, :, : pair.moving.grid.shape[0] // 2] = 1
    masked = replace(pair, moving_mask=Image(half, pair.moving.grid))
    assert 20 < pair_similarity(masked, truth)["overlap_percent"] < 80


def test_figures_of_plain_lists():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 100_000, generator=generator)
    assert normalized_correlation(a, 3 * a + 1) == pytest.approx(1.0)
    assert abs(normalized_correlation(a, b)) < 0.02
    assert normalized_correlation(a, torch.ones_like(a)) == 0.0
    assert normalized_mutual_information(a, a) == pytest.approx(2.0)
    assert normalized_mutual_information(a, b) == pytest.approx(1.0, abs=0.005)
    assert normalized_mutual_information(torch.ones(9), torch.ones(9)) == 1.0


def test_card_of_a_good_result(full_pair, truth):
    card = quality_card(full_pair, result_of(full_pair, truth), peak_memory_mb=123.0)
    assert card["verdict"] == "green" and card["reasons"] == []
    assert card["nmi_after"] > card["nmi_before"] and card["ncc_after"] > 0.99
    assert card["dice_after"] > 0.9 > card["dice_before"] and card["dice_labels"] == 2
    assert set(card["dice_per_label"]) == {"1", "2"}
    assert card["tre_mean_after_mm"] == pytest.approx(0.0, abs=1e-4)
    assert card["tre_max_before_mm"] >= card["tre_median_before_mm"] > 1 and card["tre_count"] == 3
    assert card["folds_percent"] == 0 and 0 < card["sdlogj"] < 0.5
    assert card["jacobian_p01"] < card["linear_determinant"] < card["jacobian_p99"]
    assert 0 < card["deformation_mean_mm"] < card["deformation_max_mm"]
    assert card["displacement_max_mm"] > card["deformation_max_mm"]
    assert card["inverse_p95_mm"] < 0.1
    assert card["seconds"] == 3.5 and card["peak_memory_mb"] == 123.0
    assert json.loads(json.dumps(card, allow_nan=False)) == card


def test_card_without_truth_or_inverse(pair, scene):
    card = quality_card(pair, Result(scene.shift(1, 0, 0)), seconds=7.0)
    assert "dice_after" not in card and "tre_mean_after_mm" not in card
    assert "inverse_mean_mm" not in card and card["seconds"] == 7.0
    assert card["folds_percent"] == 0 and card["deformation_max_mm"] == 0
    assert json.dumps(card, allow_nan=False)


def test_before_is_the_given_start(full_pair, truth):
    started = replace(full_pair, initial=truth, initial_is_given=True)
    card = quality_card(started, result_of(full_pair, truth))
    assert card["dice_before"] == card["dice_after"] and card["nmi_before"] == card["nmi_after"]
    earlier_stage = replace(started, initial_is_given=False)
    assert quality_card(earlier_stage, result_of(full_pair, truth))["dice_before"] < 0.9


def test_card_measures_inside_the_mask_and_on_any_field_grid(pair, truth):
    mask = torch.zeros_like(pair.fixed.data, dtype=torch.uint8)
    mask[:, :, 8:12, 9:14, 10:16] = 1
    masked = replace(pair, fixed_mask=Image(mask, pair.fixed.grid))
    small = quality_card(masked, Result(truth))
    whole = quality_card(pair, Result(truth))
    assert small["deformation_max_mm"] < whole["deformation_max_mm"]
    coarse = Transform(truth.linear, truth.field.resized((12, 14, 17)))
    again = quality_card(pair, Result(coarse))
    assert again["deformation_max_mm"] == pytest.approx(whole["deformation_max_mm"], rel=0.1)
    # A mask that is thinner than the cropped border leaves everything to be measured.
    mask[:] = 0
    mask[:, :, :1] = 1
    rim = quality_card(replace(pair, fixed_mask=Image(mask, pair.fixed.grid)), Result(truth))
    assert rim["deformation_max_mm"] > 0


def test_text_for_people(full_pair, truth):
    card = quality_card(full_pair, result_of(full_pair, truth))
    text = card_text(card)
    assert text.startswith("GREEN: The images match")
    for name, _, after in card_rows(card):
        assert name in text and after in text
    elsewhere = {"Peak memory", "Estimated error (TRE)", "Model of the estimate"}
    assert {row[0] for row in card_rows(card)} == {row[0] for row in ROWS} - elsewhere
    assert len({len(line) for line in text.splitlines()[1:]}) == 1
    # A long name leaves the figures where they are.
    told = {"estimated_tre_mm": 1.234, "estimated_tre_model": "a_name_that_is_long (of a model)"}
    more = card_text({**card, **told}).splitlines()
    assert set(text.splitlines()) < set(more)
    assert any(line.endswith(" 1.2 mm") for line in more)
    assert any(line.endswith(" a_name_that_is_long (of a model)") for line in more)


def test_failed_registration_is_red(full_pair, scene):
    away = quality_card(full_pair, Result(scene.shift(500.0, 0, 0)))
    assert away["verdict"] == "red" and "Only 0 %" in away["sentence"]
    assert away["nmi_after"] is None
    assert card_text(away).startswith("RED: ")
    worse = quality_card(full_pair, Result(scene.shift(-6.0, 4.0, 0)))
    assert worse["verdict"] == "red"
    assert any("farther apart" in reason for reason in worse["reasons"])
    assert any("overlap less" in reason for reason in worse["reasons"])


def test_folded_deformation_is_red(pair, truth, scene):
    wild = scene.smooth_field(scene.make_grid(), 14.0)
    card = quality_card(pair, Result(Transform(truth.linear, wild)))
    assert card["folds_percent"] > 1 and card["verdict"] == "red"


GOOD = {
    "overlap_percent": 99.0, "overlap_before_percent": 95.0, "nmi_before": 1.1, "nmi_after": 1.3,
    "ncc_before": 0.4, "ncc_after": 0.8, "folds_percent": 0.0, "linear_determinant": 1.1,
    "jacobian_p01": 0.6, "jacobian_p99": 1.9, "inverse_mean_voxel": 0.05,
    "inverse_p95_voxel": 0.1, "tre_mean_before_mm": 9.0, "tre_mean_after_mm": 1.0,
    "dice_before": 0.3, "dice_after": 0.7,
}  # fmt: skip
NO_TRUTH = {"tre_mean_before_mm": None, "dice_before": None}


@pytest.mark.parametrize(
    ("changes", "color", "words"),
    [
        ({}, "", ""),
        ({"overlap_percent": 49.0}, "amber", "extrapolated"),
        ({"overlap_percent": 9.0}, "red", "has failed"),
        ({"folds_percent": 0.02}, "amber", "folds in 0.02 %"),
        ({"folds_percent": 1.1}, "red", "folds"),
        (
            {"linear_determinant": -1.0, "jacobian_p01": -1.9, "jacobian_p99": -0.6},
            "red",
            "mirrors",
        ),
        (
            {"linear_determinant": 3.5, "jacobian_p99": 4.0, "jacobian_p01": 2.0},
            "amber",
            "factor of 3.5",
        ),
        (
            {"linear_determinant": 0.3, "jacobian_p99": 0.4, "jacobian_p01": 0.2},
            "amber",
            "factor of 0.3",
        ),
        ({"jacobian_p01": 0.2}, "amber", "anatomy"),
        ({"jacobian_p99": 5.6}, "amber", "anatomy"),
        ({"inverse_mean_voxel": 0.6}, "amber", "misses by 0.6 voxels"),
        ({"inverse_p95_voxel": 1.2}, "amber", "not exact"),
        ({"inverse_mean_voxel": None}, "", ""),
        ({"tre_mean_after_mm": 9.6}, "red", "farther apart"),
        ({"tre_mean_after_mm": 9.1}, "", ""),
        ({"dice_after": 0.28}, "red", "overlap less"),
        ({"nmi_after": 1.05, **NO_TRUTH}, "red", "match less than before"),
        ({"nmi_after": 1.05}, "", ""),  # labels and landmarks show the gain
        ({"nmi_after": 1.1, **NO_TRUTH}, "amber", "no better than before"),
        ({"nmi_after": 1.1, "ncc_after": 0.95, **NO_TRUTH}, "", ""),
        ({"nmi_after": 1.05, "overlap_before_percent": 20.0, **NO_TRUTH}, "", ""),
        ({"nmi_before": None, "overlap_before_percent": None, **NO_TRUTH}, "", ""),
        (
            {"nmi_after": 1.01, "ncc_after": 0.1, "nmi_before": 1.0, **NO_TRUTH},
            "amber",
            "hardly any",
        ),
        ({"nmi_after": None, "ncc_after": None}, "", ""),
    ],
)
def test_rules_of_the_verdict(changes, color, words):
    found = verdict.findings({**GOOD, **changes})
    assert {finding.color for finding in found} == ({color} if color else set())
    assert not words or any(words in finding.sentence for finding in found)


def test_several_findings_give_the_worst_color_first(pair, scene):
    field = Field(scene.smooth_field(scene.make_grid(), 14.0).displacement, scene.make_grid())
    card = quality_card(pair, Result(Transform(np.diag([2.0, 1.6, 1.5, 1.0]), field)))
    assert card["verdict"] == "red" and len(card["reasons"]) > 1
    assert card["sentence"] == card["reasons"][0]
    assert all(f"  also: {reason}" in card_text(card) for reason in card["reasons"][1:])
