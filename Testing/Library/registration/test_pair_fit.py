"""The fit of a network to one pair."""

import functools

import torch
from torch import nn

from DeepRegLib.registration.learned import LearnedRegistration
from DeepRegLib.registration.pair_fit import FitSettings, fit
from DeepRegLib.registration.trainable import Batch, Prediction, Stage


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


#: The large steps that a network of two weights bears are Adam's.
quick = functools.partial(FitSettings, optimizer="adam")
BATCH = Batch(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8), 2.0)


def test_the_fit_goes_through_the_stages_of_a_training():
    system = Valley()
    network = system.build()
    history = fit(system, network, [BATCH], quick(400, 0.05, from_scratch=True))
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
    fit(system, network, [BATCH], quick(5, 0.05))
    assert float(network.first.weight) > 0.0 > float(network.second.weight)
    assert {(name, fraction) for name, fraction, *_ in system.seen} == {("pair", 1.0)}


def test_a_system_may_leave_parts_of_a_trained_network_alone():
    class Half(Valley):
        pair_modules = ("second",)

    system = Half()
    network = system.build()
    fit(system, network, [BATCH], quick(200, 0.05))
    assert float(network.first.weight) == 0.0 and abs(float(network.second.weight) + 2.0) < 0.05
    assert {name for name, *_ in system.seen} == {"pair"}


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

    fit(system, network, [BATCH], quick(5, 0.0), report)
    assert float(network.first.weight) == states[1]


def test_a_loss_that_is_no_number_ends_the_fit_with_the_best():
    system = Valley(losses=[5.0, 4.0, float("nan"), 1.0])
    network = system.build()
    history = fit(system, network, [BATCH], quick(4, 0.01))
    assert [entry["value"] for entry in history] == [5.0, 4.0]
    assert torch.isfinite(network.first.weight).all()
