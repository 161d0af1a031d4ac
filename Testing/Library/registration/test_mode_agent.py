"""An agent that bends along modes: what steps are worth, and how a run of it ends."""

import itertools

import pytest
import torch

from DeepRegLib.registration.mode_agent import ModeSteps, bend, mode_values

KNOWN = torch.ones(3, dtype=torch.bool)


def test_values_of_steps():
    left = torch.tensor([[3.0, 0.0, 0.0], [0.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    values = mode_values(left, 0.5)
    assert values.shape == (3, 6)
    assert int(values[0].argmax()) == 0 and values[0, 0] == pytest.approx(1.0 + 0.5 * 1.5)
    assert int(values[1].argmax()) == 4 and values[1, 4] == pytest.approx(1.0 + 0.5)
    assert values[1, 1] == pytest.approx(-1.0 + 0.5 * 1.75)
    assert (values[2] < 0.0).all()


def perfect(truth, size=0.25):
    def values(coefficients):
        return mode_values(((truth - coefficients) / size)[None], 0.2)[0]

    return values


TRUTH = torch.tensor([1.5, -0.9, 0.3])


def test_a_perfect_agent_arrives_one_by_one():
    bending = bend(perfect(TRUTH), KNOWN, ModeSteps(0.25, several=0))
    assert (bending.found - TRUTH).abs().max() <= 0.13 and bending.ended in ("rest", "cycle")
    assert len(bending.coefficients) >= 1 + 6 + 4 + 1
    moves = [(b - a).abs() for a, b in itertools.pairwise(bending.coefficients[:12])]
    assert all((m > 0).sum() == 1 and m.max() == pytest.approx(0.25) for m in moves)
    errors = [float((c - TRUTH).norm()) for c in bending.coefficients[:12]]
    assert errors == sorted(errors, reverse=True)


def test_several_modes_at_once_take_fewer_rounds():
    truth = torch.tensor([1.0, -1.0, 1.0])
    one = bend(perfect(truth), KNOWN, ModeSteps(0.25, several=0))
    many = bend(perfect(truth), KNOWN, ModeSteps(0.25, several=50, sure=0.5))
    assert len(one.coefficients) == 13 and len(many.coefficients) < 8
    assert (many.found - truth).abs().max() <= 0.13
    # Who has to be as sure as of the best moves few at once.
    sure = bend(perfect(TRUTH), KNOWN, ModeSteps(0.25, several=50, sure=1.0))
    assert len(sure.coefficients) >= 10


def test_to_and_fro_ends_in_between():
    turns = iter([0, 0, 3, 0])

    def values(_):
        found = torch.full((6,), -1.0)
        found[next(turns)] = 1.0
        return found

    bending = bend(values, KNOWN, ModeSteps(0.5, several=0))
    assert bending.ended == "cycle"
    assert bending.found.tolist() == pytest.approx([0.75, 0.0, 0.0])


def test_coming_back_ends_the_first_rounds_only():
    # Two modes are moved at once, to and fro; then one by one, each to its own end.
    truth = torch.tensor([0.24, 0.24, 0.0])
    rounds = []

    def values(coefficients):
        rounds.append(coefficients)
        if len(rounds) <= 2:
            sign = 1.0 if len(rounds) == 1 else -1.0
            return torch.tensor([sign, sign, -1.0, -sign, -sign, -1.0])
        return perfect(truth)(coefficients)

    bending = bend(values, KNOWN, ModeSteps(0.25, several=50))
    assert bending.coefficients[2].tolist() == pytest.approx([0.125, 0.125, 0.0])
    assert bending.ended in ("rest", "cycle") and (bending.found - truth).abs().max() < 0.14


def test_unknown_modes_are_left_alone():
    known = torch.tensor([False, True, False])
    bending = bend(perfect(TRUTH), known, ModeSteps(0.25))
    assert bending.found[[0, 2]].tolist() == [0.0, 0.0] and bending.found[1] < -0.7
    none = bend(lambda _: torch.ones(6), torch.zeros(3, dtype=torch.bool), ModeSteps())
    assert none.ended == "rest" and none.found.tolist() == [0.0] * 3


def test_limits():
    onwards = torch.tensor([1.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    bending = bend(lambda _: onwards, KNOWN, ModeSteps(0.5, most=5))
    assert bending.ended == "limit" and len(bending.coefficients) == 6
    # Coefficients end at four standard deviations.
    stuck = bend(lambda _: onwards, KNOWN, ModeSteps(0.5, most=50))
    assert stuck.found[0] == 4.0 and stuck.ended == "cycle"
