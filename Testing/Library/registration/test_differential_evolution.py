"""Differential evolution: a global search that keeps to its bounds."""

import numpy as np
import pytest

from DeepRegLib.registration.differential_evolution import EvolutionSettings, evolve

SIZE = 4
REACH = np.array([10.0, 10.0, 5.0, 2.0])
TRUTH = np.array([6.0, -7.0, 3.0, 1.0])


def rugged(x):
    """A bowl with many dents (Rastrigin's function), least at `TRUTH`."""
    away = x - TRUTH
    return (away**2 - 4.0 * np.cos(2.0 * np.pi * away / 3.0) + 4.0).sum(axis=1)


def test_finds_the_lowest_of_many_dents():
    settings = EvolutionSettings(population=40, generations=120)
    value, found = evolve(rugged, np.zeros(SIZE), REACH, settings)
    assert np.abs(found - TRUTH).max() < 0.2
    assert value == pytest.approx(rugged(found[None])[0])


def test_more_generations_are_never_worse():
    values = [
        evolve(rugged, np.zeros(SIZE), REACH, EvolutionSettings(20, n))[0] for n in (0, 5, 20, 60)
    ]
    assert values == sorted(values, reverse=True) and values[-1] < 0.3 * values[0]


def test_keeps_to_its_bounds_and_evaluates_generations_at_once():
    seen = []

    def outside(x):
        seen.append(x.copy())
        return -np.abs(x).sum(axis=1)

    middle = np.array([1.0, -2.0, 3.0, 0.0])
    _, found = evolve(outside, middle, REACH, EvolutionSettings(12, 80))
    assert all((np.abs(x - middle) <= REACH + 1e-12).all() for x in seen)
    assert [x.shape for x in seen] == [(12, SIZE)] * 81
    assert (np.abs(found - middle) > 0.8 * REACH).all()


def test_of_equal_values_the_start_is_taken():
    start = np.array([1.0, 2.0, 3.0, 4.0])
    value, found = evolve(lambda x: np.ones(len(x)), start, REACH, EvolutionSettings())
    assert value == 1.0 and (found == start).all()


def test_what_is_no_number_never_wins():
    def broken(x):
        values = rugged(x)
        values[x[:, 0] < 0.0] = np.nan
        return values

    value, found = evolve(broken, np.zeros(SIZE), REACH, EvolutionSettings(20, 30))
    assert np.isfinite(value) and found[0] >= 0.0


def test_the_seed_decides():
    runs = [
        evolve(rugged, np.zeros(SIZE), REACH, EvolutionSettings(8, 4, seed=seed))[1]
        for seed in (3, 3, 4)
    ]
    assert (runs[0] == runs[1]).all() and (runs[0] != runs[2]).any()
