"""Actions of an agent, what they are worth, and how a run of it ends."""

import itertools

import pytest
import torch

from DeepRegLib.registration.agent import (
    ACTIONS,
    Steps,
    action_values,
    follow,
    path_value,
    states_on_paths,
)
from DeepRegLib.registration.rigid_motion import motion_matrix, motion_parameters

CENTER = torch.tensor([7.5, 9.0, 8.0], dtype=torch.float64)
SPACING = 2.0
STILL = torch.eye(4, dtype=torch.float64)


def motion(*parameters):
    return motion_matrix(torch.tensor(parameters).double(), SPACING, CENTER)


def parameters_of(matrix):
    return motion_parameters(matrix, SPACING, CENTER)


@pytest.mark.parametrize("steps", [Steps(), Steps(0.2, 2.0)])
def test_each_action_is_one_step_of_one_parameter(steps):
    found = parameters_of(steps.motions(SPACING, CENTER))
    assert len(ACTIONS) == len(found) == 12
    for name, values in zip(ACTIONS, found.tolist()):
        axis = "RAS".index(name[-2]) + (3 if name.startswith("turn") else 0)
        size = (steps.deg if axis > 2 else steps.mm) * (1 if name[-1] == "+" else -1)
        expected = [size if i == axis else 0.0 for i in range(6)]
        assert values == pytest.approx(expected, abs=1e-9)


def test_centers_of_several_regions():
    centers = torch.tensor([[2.0, 3.0, 4.0], [9.0, 1.0, 5.0]])
    both = Steps().motions(SPACING, centers)
    assert both.shape == (2, 12, 4, 4)
    for one, center in zip(both, centers):
        torch.testing.assert_close(one, Steps().motions(SPACING, center))


def brute_force(left, discount):
    """The value of the greedy path, step by step."""
    left, value, weight = [abs(x) for x in left], 0.0, 1.0
    length = lambda v: sum(x * x for x in v) ** 0.5  # noqa: E731
    while max(left) > 0.5:
        options = []
        for axis, sign in itertools.product(range(6), (1, -1)):
            there = list(left)
            there[axis] = abs(there[axis] - sign)
            options.append((length(left) - length(there), there))
        reward, there = max(options)
        value, weight, left = value + weight * reward, weight * discount, there
    return value


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9])
def test_value_of_the_path_as_found_step_by_step(discount):
    generator = torch.Generator().manual_seed(2)
    left = 8.0 * torch.rand(6, 6, generator=generator, dtype=torch.float64) - 4.0
    left[0] = torch.tensor([3.0, 0, 0, 0, 0, 0])
    left[1] = 0.4
    found = path_value(left, discount).tolist()
    assert found == pytest.approx([brute_force(x, discount) for x in left.tolist()], abs=2e-2)
    assert found[0] == pytest.approx(1.0 + discount + discount**2) and found[1] == 0.0


def test_values_of_actions_for_a_shift():
    values = action_values(motion(3.0, 0, 0, 0, 0, 0)[None], Steps(), 0.5, SPACING, CENTER)[0]
    by_name = dict(zip(ACTIONS, values.tolist()))
    assert max(by_name, key=by_name.get) == "R+"
    assert by_name["R+"] == pytest.approx(1.0 + 0.5 * (1.0 + 0.5))
    assert by_name["R-"] == pytest.approx(-1.0 + 0.5 * (1.0 + 0.5 + 0.25 + 0.125))
    assert min(by_name, key=by_name.get) == "R-"


@pytest.mark.parametrize("axis", range(6))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_best_action_undoes_what_is_left(axis, sign):
    left = [0.3, -0.2, 0.1, 0.2, 0.3, -0.1]
    left[axis] = 5.0 * sign
    values = action_values(motion(*left)[None], Steps(), 0.9, SPACING, CENTER)[0]
    best = int(values.argmax())
    assert best == axis + (0 if sign > 0 else 6)
    # Taken, it is nearer: what the residual means and what an action does fit each other.
    after = torch.linalg.inv(Steps().motions(SPACING, CENTER)[best]) @ motion(*left)
    assert parameters_of(after).norm() < parameters_of(motion(*left)).norm() - 0.8


def test_no_action_is_worth_taking_at_the_truth():
    values = action_values(STILL[None], Steps(), 0.9, SPACING, CENTER)
    assert (values < 0.0).all()


def test_centers_of_each_state():
    centers = torch.tensor([[2.0, 3.0, 4.0], [9.0, 1.0, 5.0]])
    residual = torch.stack([motion_matrix(torch.tensor([1.0, 2, 3, 4, 5, 6]).double(), SPACING, c)
                            for c in centers])  # fmt: skip
    values = action_values(residual, Steps(), 0.9, SPACING, centers)
    torch.testing.assert_close(values[0], values[1])


def perfect(truth, steps=Steps()):  # noqa: B008
    """The policy of one who knows the truth."""
    motions = steps.motions(SPACING, CENTER)

    def policy(matrix):
        left = (torch.linalg.inv(matrix) @ truth)[None]
        values = action_values(left, steps, 0.9, SPACING, CENTER)[0]
        best = int(values.argmax())
        return (best, motions[best]) if values[best] > 0 else None

    return policy


def test_a_perfect_agent_arrives():
    truth = motion(11.0, -7.0, 4.0, 12.0, -3.0, -9.0)
    episode = follow(perfect(truth), STILL, Steps(), 200, SPACING, CENTER)
    left = parameters_of(torch.linalg.inv(episode.found) @ truth)
    assert left.abs().max() < 0.75 and episode.ended in ("rest", "cycle")
    assert 40 <= len(episode.actions) <= 60
    assert len(episode.transforms) == len(episode.actions) + 1
    distances = [parameters_of(torch.linalg.inv(t) @ truth).norm() for t in episode.transforms]
    falls = sum(float(b) < float(a) for a, b in itertools.pairwise(distances))
    assert falls >= 0.95 * len(episode.actions)


def test_steps_have_a_size():
    truth = motion(2.0, 0, 0, 0, 0, 6.0)
    steps = Steps(0.5, 2.0)
    episode = follow(perfect(truth, steps), STILL, steps, 200, SPACING, CENTER)
    assert sorted(ACTIONS[a] for a in episode.actions) == ["R+"] * 4 + ["turn S+"] * 3


def test_to_and_fro_ends_in_between():
    motions = Steps().motions(SPACING, CENTER)
    turns = iter([0, 0, 4, 6, 0, 6])

    def policy(_):
        action = next(turns)
        return action, motions[action]

    # R+, R+, turn A+, then R- and R+: back where it was before the last two.
    episode = follow(policy, STILL, Steps(), 50, SPACING, CENTER)
    assert episode.ended == "cycle" and [ACTIONS[a] for a in episode.actions][3:] == ["R-", "R+"]
    expected = (episode.transforms[-3] + episode.transforms[-2]) / 2
    torch.testing.assert_close(episode.found, expected)


def test_longer_cycles_end_too():
    motions = Steps().motions(SPACING, CENTER)
    around = itertools.cycle([0, 1, 6, 7])

    def policy(_):
        action = next(around)
        return action, motions[action]

    episode = follow(policy, STILL, Steps(), 50, SPACING, CENTER)
    assert episode.ended == "cycle" and len(episode.actions) == 4
    assert parameters_of(episode.found).tolist() == pytest.approx([0.5, 0.5, 0, 0, 0, 0], abs=1e-6)


def test_rest_and_limit():
    rest = follow(lambda _: None, STILL, Steps(), 50, SPACING, CENTER)
    assert rest.ended == "rest" and rest.actions == [] and torch.equal(rest.found, STILL)
    onwards = Steps().motions(SPACING, CENTER)[2]
    limit = follow(lambda _: (2, onwards), STILL, Steps(), 7, SPACING, CENTER)
    assert limit.ended == "limit" and len(limit.actions) == 7
    assert parameters_of(limit.found)[2] == pytest.approx(7.0)


def test_states_lie_on_the_way_and_densely_near_the_truth():
    torch.manual_seed(0)
    left = states_on_paths(4000, (30.0, 15.0), Steps())
    bounds = torch.tensor([30.0] * 3 + [15.0] * 3)
    assert (left.abs() <= bounds).all() and left.mean(dim=0).abs().max() < 1.0
    assert left[:, :3].abs().max() > 25.0 and left[:, 3:].abs().max() > 13.0
    shifts, turns = left[:, :3].abs(), left[:, 3:].abs()
    largest = shifts.amax(dim=1)
    assert (largest < 3.0).double().mean() > 0.25, "a fifth of the way is within a tenth of it"
    # Where the path has begun, several parameters share the largest size.
    shared = (shifts > largest[:, None] - 1e-9).sum(dim=1)
    assert (shared >= 2).double().mean() > 0.5
    # An agent may be done with shifts before it sees the turns.
    assert ((largest < 1.0) & (turns.amax(dim=1) > 5.0)).double().mean() > 0.05


def test_who_goes_too_far_is_lost_and_finds_nothing():
    onwards, start = Steps().motions(SPACING, CENTER), motion(5.0, 0, 0, 0, 0, 0)
    shifted = follow(lambda _: (2, onwards[2]), start, Steps(), 50, SPACING, CENTER, (6.5, 90.0))
    assert shifted.ended == "lost" and len(shifted.actions) == 7
    assert torch.equal(shifted.found, start)
    turned = follow(lambda _: (3, onwards[3]), start, Steps(), 50, SPACING, CENTER, (90.0, 4.5))
    assert turned.ended == "lost" and len(turned.actions) == 5
