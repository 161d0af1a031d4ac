"""The search for a rigid map: by any measure, from any start, with a true gradient."""

import numpy as np
import torch

from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.networks.composite import moved_by
from DeepRegLib.registration.rigid_motion import motion_matrix, motion_parameters
from DeepRegLib.registration.rigid_search import RigidSearch, SearchSettings

SHAPE = (16, 20, 18)
CENTER = [(n - 1) / 2 for n in SHAPE]
SPACING = 3.0


def squares(fixed, moved):
    return (fixed - moved).square().flatten(1).mean(dim=1)


def image(seed=0):
    """A textured object that does not reach the rim."""
    noise = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    smooth = gaussian_smooth(noise, 1.5)
    smooth = (smooth - smooth.amin()) / (smooth.amax() - smooth.amin())
    window = torch.ones(1, 1, *SHAPE)
    for axis, n in enumerate(SHAPE):
        ramp = torch.linspace(0, torch.pi, n).sin().view([-1 if d == axis else 1 for d in range(3)])
        window = window * ramp
    return smooth * window


def pair(parameters):
    """A pair whose truth is the motion with these parameters."""
    truth = motion_matrix(torch.tensor([parameters]).double(), SPACING, CENTER)
    fixed = image()
    return fixed, moved_by(fixed, torch.linalg.inv(truth).float(), None), truth[0]


def away(matrix, truth):
    left = torch.linalg.inv(matrix) @ truth
    return motion_parameters(left, SPACING, CENTER).abs().max().item()


def test_finds_a_motion_from_far_away():
    fixed, moving, truth = pair([5.0, -4.0, 6.0, 8.0, -9.0, 6.0])
    settings = SearchSettings(reach_mm=12.0, reach_deg=12.0, population=30, generations=40,
                              iterations=25, passes=2, spread=0.2)  # fmt: skip
    search = RigidSearch(squares, fixed, moving, SPACING, settings)
    value, found = search.run()
    # Interpolation blurs the images, so that the least value is not exactly at the truth.
    at_truth = RigidSearch(squares, fixed, moving, SPACING, settings, truth).value()
    assert value < 1.1 * at_truth < 0.2 * search.value()
    assert away(found, truth) < 3.0


def test_the_second_order_refinement_alone_does_the_rest():
    fixed, moving, truth = pair([1.5, -2.0, 1.0, 2.0, -2.0, 3.0])
    settings = SearchSettings(generations=0, iterations=25, passes=4, spread=0.3)
    _, found = RigidSearch(squares, fixed, moving, SPACING, settings).run()
    assert away(found, truth) < 1.2 < 2.9 < away(torch.eye(4).double(), truth)


def test_a_start_is_composed_with():
    fixed, moving, truth = pair([5.0, -4.0, 6.0, 8.0, -9.0, 6.0])
    near = truth @ motion_matrix(torch.tensor([2.0, 1.0, -2.0, 3.0, 4.0, -3.0]).double(), SPACING,
                                 CENTER)  # fmt: skip
    settings = SearchSettings(generations=0, iterations=25, passes=1)
    search = RigidSearch(squares, fixed, moving, SPACING, settings, near)
    _, found = search.run()
    assert away(near, truth) > 3.5 > 2.0 > away(found, truth)


def test_the_gradient_is_that_of_the_smoothed_value():
    fixed, moving, _ = pair([4.0, -3.0, 2.0, 5.0, -4.0, 3.0])
    search = RigidSearch(squares, fixed, moving, SPACING, SearchSettings(passes=3, spread=0.4))
    here = np.array([0.7, -0.4, 0.9, 1.1, -0.3, 0.6])
    value, gradient = search._value_and_gradient(here)
    step, slope = 0.02, np.zeros(6)
    for axis in range(6):
        sides = []
        for sign in (1.0, -1.0):
            there = here.copy()
            there[axis] += sign * step
            sides.append(search._value_and_gradient(there)[0])
        slope[axis] = (sides[0] - sides[1]) / (2 * step)
    assert np.linalg.norm(slope - gradient) < 0.03 * np.linalg.norm(gradient)
    assert np.isclose(value, search._values(here + search._offsets.numpy()).mean())


def test_averaging_smooths_a_rough_measure_and_leaves_its_middle():
    # A measure with ripples over the shift, which it reads off the images.
    fixed = torch.zeros(1, 1, *SHAPE)
    ramp = torch.arange(SHAPE[0]).float().view(1, 1, -1, 1, 1).expand(1, 1, *SHAPE)

    def rippled(_, moved):
        shift = (moved[:, 0, 6, 9, 9] - 6.0) * SPACING
        return shift.square() / 10.0 + 0.5 * torch.cos(6.0 * shift)

    def ripples(passes):
        search = RigidSearch(rippled, fixed, ramp, SPACING, SearchSettings(passes=passes))
        at = np.linspace(-4.0, 4.0, 81)
        values = [
            search._values(np.array([[x, 0, 0, 0, 0, 0]]) + search._offsets.numpy()).mean()
            for x in at
        ]
        smooth = np.polyval(np.polyfit(at, values, 2), at)
        return np.std(values - smooth), at[int(np.argmin(smooth))]

    single, averaged = ripples(1), ripples(32)
    assert averaged[0] < 0.6 * single[0]
    assert abs(averaged[1]) < 0.3


def test_passes_come_in_opposite_pairs():
    for passes in (1, 2, 5, 8):
        search = RigidSearch(squares, image(), image(), SPACING, SearchSettings(passes=passes))
        assert search._offsets.shape == (passes, 6)
        assert search._offsets.sum(dim=0).abs().max() < 1e-12
