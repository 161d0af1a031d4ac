"""Differential evolution: a global search for the least value of a function of few parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class EvolutionSettings:
    """How differential evolution searches.

    Args:
        population: Candidates of a generation, at least 4.
        generations: How often each of them is challenged.
        weight: Share of the difference of two candidates that is added to a third (F).
        crossover: Probability that a parameter of a challenger is a new one (CR).
        seed: Beginning of the random numbers.
    """

    population: int = 24
    generations: int = 20
    weight: float = 0.7
    crossover: float = 0.9
    seed: int = 0


def evolve(
    function: Callable[[Vector], Vector],
    start: Vector,
    reach: Vector,
    settings: EvolutionSettings,
) -> tuple[float, Vector]:
    """Minimizes a function by differential evolution, scheme rand/1/bin.

    Storn & Price 1997, doi:10.1023/A:1008202821328, equations 3 to 6. All challengers of a
    generation are evaluated at once. The first generation is the start itself and candidates that
    are drawn evenly around it; a challenger beyond the bounds is drawn anew there.

    Args:
        function: Values (N,) of candidates (N, P); one that is not finite never wins.
        start: Middle of the bounds, (P,).
        reach: Largest distance from it along each parameter, (P,).
        settings: See `EvolutionSettings`.

    Returns:
        The least value and its parameters. Of equal values, that of the start is taken.
    """
    rng = np.random.default_rng(settings.seed)
    count, size = max(settings.population, 4), len(start)
    people = start + reach * rng.uniform(-1.0, 1.0, (count, size))
    people[0] = start
    values = _finite(function(people))
    for _ in range(settings.generations):
        challengers = _challengers(people, start, reach, settings, rng)
        found = _finite(function(challengers))
        better = found < values
        people[better], values[better] = challengers[better], found[better]
    best = int(np.argmin(values))
    return float(values[best]), people[best]


def _challengers(
    people: Vector, start: Vector, reach: Vector, settings: EvolutionSettings,
    rng: np.random.Generator,
) -> Vector:  # fmt: skip
    """Returns one challenger for each candidate."""
    count, size = people.shape
    # Three others for each: the smallest random keys, with the candidate itself put last.
    keys = rng.random((count, count))
    np.fill_diagonal(keys, 2.0)
    a, b, c = np.argsort(keys, axis=1)[:, :3].T
    mutants = people[a] + settings.weight * (people[b] - people[c])
    crossed = rng.random((count, size)) < settings.crossover
    crossed[np.arange(count), rng.integers(size, size=count)] = True
    challengers = np.where(crossed, mutants, people)
    outside = np.abs(challengers - start) > reach
    anew = start + reach * rng.uniform(-1.0, 1.0, (count, size))
    return np.where(outside, anew, challengers)


def _finite(values: Vector) -> Vector:
    values = np.array(values, np.float64)
    values[~np.isfinite(values)] = np.inf
    return values
