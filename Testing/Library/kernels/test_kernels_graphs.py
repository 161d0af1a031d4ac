"""The graph of a step: what is called instead, and what a replay reads and writes."""

import logging

import pytest
import torch

from DeepRegLib.kernels import StepGraph, graphs


class Step:
    """Counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, y):
        self.calls += 1
        return x + y, x * y


@pytest.fixture
def pretend(monkeypatch):
    """As on a CUDA device: the recorded step writes its results where it wrote the first ones."""
    monkeypatch.setattr(graphs, "_suitable", lambda inputs: True)

    class Graph:
        def __init__(self, owner):
            self.owner = owner

        def replay(self):
            results = self.owner._step(*self.owner._inputs)
            for kept, result in zip(self.owner._outputs, results):
                kept.copy_(result)

    def capture(self, inputs):
        self._inputs = [t.clone() for t in inputs]
        self._outputs = self._step(*self._inputs)
        return Graph(self)

    monkeypatch.setattr(StepGraph, "_capture", capture)


def test_on_the_cpu_the_step_itself_is_called():
    step = Step()
    graph = StepGraph(step)
    for n in (1.0, 2.0):
        total, product = graph(torch.tensor(n), torch.tensor(3.0))
        assert (float(total), float(product)) == (n + 3, n * 3)
    assert step.calls == 2
    assert not graph.captured


def test_autograd_and_the_environment_lead_to_the_step(monkeypatch):
    x = torch.ones(2, requires_grad=True)
    assert not graphs._suitable([x])
    (total, _) = StepGraph(Step())(x, x)
    total.sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]
    monkeypatch.setenv("DEEPREG_GRAPHS", "0")
    assert not graphs._suitable([torch.ones(2)])
    assert not graphs._suitable([])


def test_a_failed_recording_is_told_once_and_not_tried_again(monkeypatch, caplog):
    tries = []

    def capture(self, inputs):
        tries.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "_suitable", lambda inputs: True)
    monkeypatch.setattr(StepGraph, "_capture", capture)
    graph = StepGraph(Step())
    with caplog.at_level(logging.WARNING):
        results = [float(graph(torch.tensor(n), torch.tensor(1.0))[0]) for n in (1.0, 2.0, 3.0)]
    assert results == [2.0, 3.0, 4.0]
    assert len(tries) == 1
    (record,) = caplog.records
    assert "stream is capturing" in record.getMessage()
    assert not graph.captured


def test_a_defect_of_the_step_is_raised_and_not_hidden(monkeypatch):
    def defective(x):
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        StepGraph(defective)(torch.ones(1))


def test_replays_read_new_inputs_and_reuse_their_outputs(pretend):
    graph = StepGraph(Step())
    first = graph(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert first[0].tolist() == [4.0, 6.0]
    assert graph.captured
    x = torch.tensor([5.0, 6.0])
    second = graph(x, torch.tensor([1.0, 1.0]))
    assert second[0] is first[0]
    assert second[1].tolist() == [5.0, 6.0]
    assert x.tolist() == [5.0, 6.0]


def test_an_output_may_be_the_next_input(pretend):
    graph = StepGraph(Step())
    x, one = torch.tensor([0.0]), torch.tensor([1.0])
    for _ in range(5):
        x, _ = graph(x, one)
    assert x.tolist() == [5.0]


def test_other_shapes_and_types_lead_to_the_step(pretend):
    step = Step()
    graph = StepGraph(step)
    graph(torch.ones(2), torch.ones(2))
    kept = graph._outputs[0]
    longer, _ = graph(torch.ones(3), torch.ones(3))
    assert longer.tolist() == [2.0, 2.0, 2.0]
    double, _ = graph(torch.ones(2).double(), torch.ones(2).double())
    assert double.dtype == torch.float64
    assert kept.tolist() == [2.0, 2.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_graph():
    graph = StepGraph(lambda x, y: (x + y, x * y))
    x, one = torch.zeros(5, device="cuda"), torch.ones(5, device="cuda")
    for _ in range(4):
        x, _ = graph(x, one)
    assert graph.captured
    assert x.tolist() == [4.0] * 5
    failing = StepGraph(lambda t: (t * float(t.sum()),))
    assert failing(one)[0].tolist() == [5.0] * 5
    assert not failing.captured
