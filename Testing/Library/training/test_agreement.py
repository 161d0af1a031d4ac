"""Figures of estimates beside what is known."""

import pytest
import torch

from DeepRegLib.training.agreement import agreement

TRUE = torch.linspace(0.0, 3.0, 31)


def test_right_shifted_and_constant_estimates():
    right = agreement(TRUE, TRUE)
    assert right["correlation"] == pytest.approx(1.0) and right["score"] == pytest.approx(1.0)
    assert right["rmse_mm"] == 0.0
    off = agreement(TRUE + 0.5, TRUE)
    assert off["rmse_mm"] == pytest.approx(0.5) and off["correlation"] == pytest.approx(1.0)
    flat = agreement(torch.full((31,), 1.5), TRUE)
    assert flat["score"] == pytest.approx(0.0, abs=1e-6) and flat["correlation"] == 0.0
    assert flat["rmse_mm"] == pytest.approx(flat["deviation_mm"])
    assert agreement(-TRUE, TRUE)["correlation"] == pytest.approx(-1.0)


def test_the_same_truth_everywhere_and_too_few_numbers():
    still = agreement(TRUE, torch.zeros(31))
    assert still["correlation"] == 0.0 and still["deviation_mm"] == 0.0 and still["score"] < 0
    assert agreement(TRUE[:1], TRUE[:1]) == {} and agreement(TRUE[:0], TRUE[:0]) == {}
