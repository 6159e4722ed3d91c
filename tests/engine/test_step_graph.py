"""Which steps are replayed, and when none is; on a CPU, with a stand-in for the graph."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.contract.types import Batch
from sightline.engine import step_graph
from sightline.engine.step_graph import NUM_WARM, StepGraphs, StepValues

CPU = torch.device("cpu")
READY = NUM_WARM + 3
"""Steps of one form before the first that is replayed: warm, watched, captured, compared."""


class Recorded:
    """Stand-in for a graph: what the work reads of the host is what it was when it was captured."""

    def __init__(self, work: Callable[[Sequence[Batch]], StepValues], batches: list[Batch]) -> None:
        self.work, self.is_compared, self.keys = work, False, [*batches[0]]

    def replay(self, batches: list[Batch]) -> StepValues:
        return self.work(batches)


class Toy:
    """Work of a step: adds the mean of the points to a weight, and counts its calls."""

    def __init__(self) -> None:
        self.weight, self.calls, self.frozen = torch.zeros(()), 0, 0.0

    def __call__(self, batches: Sequence[Batch]) -> StepValues:
        self.calls += 1
        self.weight += batches[0]["points"].mean() + self.frozen
        return StepValues(("weight",), self.weight.reshape(1).double(), {}, ())

    def state(self) -> list[Tensor]:
        return [self.weight]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> StepGraphs:
    monkeypatch.setattr(step_graph, "_Captured", Recorded)
    monkeypatch.setattr(step_graph, "_noted_waits", lambda: contextlib.nullcontext([]))
    return StepGraphs(CPU)


def make_batch(size: int = 4, **more: Any) -> list[Batch]:
    return [{"points": torch.ones(size, 3), "names": torch.zeros(torch.randint(1, 9, ()).item()), **more}]


def run(graphs: StepGraphs, work: Any, number: int, *, key: object = None, size: int = 4) -> list[bool]:
    return [graphs.run(key, make_batch(size), work, work.state)[1] for _ in range(number)]


def test_a_form_is_replayed_after_it_was_compared(graphs: StepGraphs) -> None:
    """Each step counts once, also the one that is replayed and taken back; a part that nobody reads may vary."""
    toy = Toy()
    assert run(graphs, toy, READY + 4) == [False] * READY + [True] * 4
    assert toy.weight.item() == READY + 4
    assert graphs.num_replayed == 4
    assert next(iter(graphs._graphs.values())).keys == ["points"]


def test_another_form_is_computed_and_the_first_stays(graphs: StepGraphs) -> None:
    toy = Toy()
    run(graphs, toy, READY)
    assert run(graphs, toy, 1, size=3) == [False]
    assert run(graphs, toy, 1, key="another weight of a loss") == [False]
    assert run(graphs, toy, 2) == [True, True]
    for size in (5, 6, 7):
        run(graphs, toy, 4, size=size)
    assert len(graphs._graphs) == 2


def test_a_step_that_draws_on_the_host_is_not_captured(graphs: StepGraphs, caplog: pytest.LogCaptureFixture) -> None:
    class Drawing(Toy):
        def __call__(self, batches: Sequence[Batch]) -> StepValues:
            random.random()
            return super().__call__(batches)

    with caplog.at_level(logging.INFO):
        assert not any(run(graphs, Drawing(), READY + 2))
    assert "the host draws numbers in a step" in graphs.reason
    assert caplog.text.count("not replayed as a CUDA graph") == 1


def test_a_graph_with_other_numbers_is_dropped(graphs: StepGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host decided when the graph was captured holds for ever; the step that shows it counts as computed."""

    def replay(recorded: Recorded, batches: list[Batch]) -> StepValues:
        toy.frozen = 0.5
        try:
            return recorded.work(batches)
        finally:
            toy.frozen = 0.0

    toy = Toy()
    monkeypatch.setattr(Recorded, "replay", replay)
    assert not any(run(graphs, toy, READY + 2))
    assert "a replayed step has other numbers" in graphs.reason
    assert toy.weight.item() == READY + 2


def test_what_no_graph_can_hold_is_named(graphs: StepGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(step_graph, "_Captured", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    toy = Toy()
    assert not any(run(graphs, toy, READY + 1))
    assert graphs.reason == "a step cannot be captured: operation not permitted when stream is capturing"
    assert toy.weight.item() == READY + 1


def test_a_reason_leaves_all_steps_as_they_are() -> None:
    toy = Toy()
    assert not any(run(StepGraphs(CPU, reason="several processes"), toy, READY + 1))
    assert toy.calls == READY + 1
