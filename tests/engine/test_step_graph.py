"""Which steps are replayed, that they are the steps, and what is not replayed: on a CPU, with an emulated graph."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.contract.errors import RunError
from sightline.contract.types import Batch
from sightline.engine import step_graph
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.queued_step import Gate, QueuedStep
from sightline.engine.records import StepRecord
from sightline.engine.step_graph import NUM_WARM, StepGraphs
from sightline.engine.train import TrainState
from sightline.ops.waits import read_list, send_list
from tests.engine.graph_emulator import CPU, emulated_graphs
from tests.engine.told import records_of
from tests.recipe_steps import SmallStep
from tests.runs.small import PLAIN, small_run

NUM_STEPS = 24
READY = NUM_WARM + 4
"""Steps of one form before the first that is replayed: warm, met, watched, captured, compared."""


def make_job(*overrides: str) -> TrainState:
    job = small_run(f"train.steps={NUM_STEPS}", "train.epochs=50", "train.tail=drop", *PLAIN, *overrides).job
    torch.manual_seed(1)
    return job


def run(job: TrainState, every: int = 6) -> list[StepRecord]:
    return records_of(job, is_read_after=lambda step: step % every == 0)


def numbers(job: TrainState) -> dict[str, Tensor]:
    averages = {} if job.ema is None else {f"ema of {name}": value for name, value in job.ema.state_dict().items()}
    states = enumerate(job.optimizer.state.values())
    moments = {f"{n} of {i}": v for i, state in states for n, v in state.items() if isinstance(v, Tensor)}
    return {**job.model.state_dict(), **averages, **moments}


RUNS = {
    "adam": ("optimizer={name: adam, lr: 0.01, weight_decay: 0.01}", "train.ema_decay=0.9"),
    "sgd": ("optimizer={name: sgd, lr: 0.05}", "train.clip_norm=0.5", "log.gradients=true"),
    "two micro-batches": ("train.micro_batches=2", "optimizer={name: adamw, lr: 0.01}"),
    "two rates": (
        "optimizer={name: adamw, lr: 0.01, groups: [{modules: head, lr_factor: 0.1}]}",
        "train.ema_decay=0.8",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_replayed_steps_are_the_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: weights, buffers, averages, states of the optimiser and records, with dropout and a schedule."""
    plain, replayed = (make_job(*RUNS[name]) for _ in range(2))
    with emulated_graphs(monkeypatch, is_strict=True) as graphs:
        monkeypatch.setattr(graphs, "reason", "not now")
        expected = run(plain)
        monkeypatch.undo()
    torch.manual_seed(1)
    with emulated_graphs(monkeypatch, is_strict=True) as graphs:
        records = run(replayed)
    assert graphs.num_replayed == NUM_STEPS - READY, graphs.reason
    for one, other in zip(records, expected, strict=True):
        assert (one.losses, one.grad_norm, one.lr, one.step) == (other.losses, other.grad_norm, other.lr, other.step)
        assert one.extra_scalars == other.extra_scalars
    for (key, ours), theirs in zip(numbers(replayed).items(), numbers(plain).values(), strict=True):
        assert torch.equal(ours, theirs), key


def test_a_task_that_reads_a_part_of_its_batches_is_replayed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = SmallStep("pose/synthetic_hands_v2v_small", tmp_path, "train.precision=float32").job
    job.num_steps = READY + 3
    with emulated_graphs(monkeypatch) as graphs:
        records = run(job, every=20)
    assert len(records) == READY + 3
    assert graphs.num_replayed == 3, graphs.reason


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_rate_of_the_host_is_found(is_strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The averages of weights with a share that Python knows: neither losses nor gradients show it."""
    job = make_job("train.ema_decay=0.9")
    with emulated_graphs(monkeypatch, is_strict=is_strict) as graphs:
        monkeypatch.setattr(Gate, "share", property(lambda gate: torch.tensor(0.1)))
        run(job)
    assert graphs.num_replayed == 0
    assert "moves weights while all rates are 0" in graphs.reason


def test_a_failed_step_among_replayed_ones_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    job, read = make_job(), []
    stream = job.stream.reader

    def plant(keys: Any) -> Batch:
        batch = stream(keys)
        read.append(keys[0].step)
        return {**batch, "points": batch["points"] * (torch.nan if keys[0].step == READY + 3 else 1.0)}

    object.__setattr__(job.stream, "reader", plant)
    records: list[StepRecord] = []
    with emulated_graphs(monkeypatch) as graphs, pytest.raises(Exception, match=rf"step {READY + 3}"):
        train(job, World(), lambda r, stop: bool(records.append(r)), is_read_after=lambda step: step % 6 == 0)
    assert graphs.num_replayed > 3
    assert job.step == READY + 3
    assert [record.step for record in records] == [*range(1, READY + 4)]


# --- what is not replayed ---------------------------------------------------------------------------------------------


class Toy:
    """Work of a step with its state: a weight moves by the mean of the points, times a rate."""

    def __init__(self, host: Callable[[], float] = lambda: 0.0) -> None:
        self.weight, self.rate, self.host, self.calls = torch.zeros(()), torch.ones(()), host, 0

    def __call__(self, batches: Sequence[Batch]) -> QueuedStep:
        self.calls += 1
        value = batches[0]["points"].mean() + self.host()
        self.weight += self.rate * value
        return QueuedStep(("value",), 1, value.reshape(1).double())

    def list_all(self) -> list[Tensor]:
        return [self.weight]

    list_moved = list_all

    def stilled(self) -> Any:
        class Stilled:
            def __enter__(_) -> None:  # noqa: N805
                self.rate.zero_()

            def __exit__(_, *error: object) -> None:  # noqa: N805
                self.rate.fill_(1.0)

        return Stilled()


def make_batch(size: int = 4, **more: Any) -> list[Batch]:
    return [{"points": torch.ones(size, 3), "names": torch.zeros(torch.randint(1, 9, ()).item()), **more}]


def steps(graphs: StepGraphs, toy: Toy, number: int, *, key: object = None, size: int = 4, **more: Any) -> list[bool]:
    return [graphs.run(key, make_batch(size, **more), toy, toy).is_released for _ in range(number)]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Any:
    with emulated_graphs(monkeypatch) as made:
        yield made


def test_a_form_is_replayed_after_it_was_compared(graphs: StepGraphs) -> None:
    """Each step counts once, also the one that is replayed and taken back; a part that nobody reads may vary."""
    toy = Toy()
    assert steps(graphs, toy, READY + 4) == [False] * READY + [True] * 4
    assert toy.weight.item() == READY + 4
    assert graphs.num_replayed == 4


def test_another_form_is_computed_and_the_first_stays(graphs: StepGraphs) -> None:
    toy = Toy()
    steps(graphs, toy, READY)
    assert steps(graphs, toy, 1, size=3) == [False]
    assert steps(graphs, toy, 2) == [True, True]
    for size in (5, 6, 7):
        steps(graphs, toy, 4, size=size)
    assert sum(form.graph is not None for form in graphs._forms.values()) == 2
    assert steps(graphs, toy, 1, key="another weight of a loss") == [False]
    assert steps(graphs, toy, 4, key="another weight of a loss") == [False, False, False, True]


def test_numbers_and_text_that_are_read_are_a_part_of_the_form(graphs: StepGraphs) -> None:
    class Reading(Toy):
        def __call__(self, batches: Sequence[Batch]) -> Any:
            self.gain = batches[0]["gain"]
            return super().__call__(batches)

    toy = Reading()
    steps(graphs, toy, READY, gain=1.0)
    assert steps(graphs, toy, 1, gain=1.0) == [True]
    assert steps(graphs, toy, 1, gain=1.5) == [False]


def test_batches_of_ever_other_forms_end_it(graphs: StepGraphs) -> None:
    toy = Toy()
    for size in range(2, 20):
        steps(graphs, toy, 1, size=size)
    assert graphs.reason == "batches have ever other forms"


def test_a_step_that_draws_on_the_host_is_not_captured(graphs: StepGraphs, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert not any(steps(graphs, Toy(lambda: 0.0 * random.random()), READY + 2))
    assert "the host draws numbers in a step" in graphs.reason
    assert caplog.text.count("not replayed as a CUDA graph") == 1


def test_a_step_that_reads_what_the_host_sent_is_not_captured(graphs: StepGraphs) -> None:
    """Its numbers would stay those of the step that was captured."""
    sent = send_list([0.0, 1.0], CPU)
    assert not any(steps(graphs, Toy(lambda: float(read_list(sent)[0])), READY + 2))
    assert "the host reads numbers in a step, at " in graphs.reason
    assert "test_step_graph.py" in graphs.reason


class Sending(Toy):
    """Work that reads the offsets of its batch, or other numbers, and sends numbers that it makes of them."""

    def __init__(self, make: Callable[[list[int]], list[float]], *, is_changed: bool = False) -> None:
        super().__init__()
        self.make, self.is_changed = make, is_changed

    def __call__(self, batches: Sequence[Batch]) -> QueuedStep:
        sent = send_list(self.make(read_list(batches[0]["offsets"])), CPU, torch.float32)
        if self.is_changed:
            sent.mul_(2)
        return super().__call__([{"points": batches[0]["points"] * sent.sum()}])


def test_what_follows_from_offsets_is_sent_once_for_all_steps_with_these(graphs: StepGraphs) -> None:
    toy = Sending(lambda offsets: [float(offsets[-1])])
    for last in (2, 3):
        before = toy.weight.item()
        ready = READY if last == 2 else READY - NUM_WARM
        found = [steps(graphs, toy, 1, offsets=send_list([0, last], CPU)) for _ in range(ready + 4)]
        assert found == [[False]] * ready + [[True]] * 4
        assert toy.weight.item() - before == (ready + 4) * last
    assert steps(graphs, toy, 1, offsets=send_list([0, 2], CPU)) == [True]
    assert toy.weight.item() == 2 * (READY + 5) + 3 * (READY - NUM_WARM + 4)


def test_ever_other_offsets_end_it(graphs: StepGraphs) -> None:
    toy = Sending(lambda offsets: [float(offsets[-1])])
    for last in range(20):
        assert steps(graphs, toy, 1, offsets=send_list([0, last], CPU)) == [False]
    assert graphs.reason == "batches have ever other forms"


COUNTS = itertools.count(1)
MISUSES = {
    "other numbers in each step": (Sending(lambda offsets: [float(next(COUNTS))]), "the host sends other numbers"),
    "more of them": (Sending(lambda offsets: [1.0] * (1 + next(COUNTS) % 2)), "the host sends other numbers"),
    "changed in place": (Sending(lambda offsets: [1.0], is_changed=True), "changes numbers that the host sent"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_what_the_host_sends_must_be_the_same_in_each_step(name: str, graphs: StepGraphs) -> None:
    toy, reason = MISUSES[name]
    assert not any(steps(graphs, toy, READY + 3, offsets=send_list([0, 2], CPU)))
    assert reason in graphs.reason
    assert "test_step_graph.py" in graphs.reason


def test_numbers_that_change_after_two_steps_show_in_the_compared_one(graphs: StepGraphs) -> None:
    toy = Sending(lambda offsets: [1.0 if toy.calls < NUM_WARM + 3 else 2.0])
    assert not any(steps(graphs, toy, READY + 3, offsets=send_list([0, 2], CPU)))
    assert "the host sends other numbers in each step, at " in graphs.reason


def test_a_graph_with_other_numbers_is_dropped(graphs: StepGraphs) -> None:
    """What the host decided when the graph was captured holds for ever; the step that shows it counts as computed."""
    toy = Toy()
    toy.host = lambda: float(toy.calls)
    assert not any(steps(graphs, toy, READY + 2))
    assert "a replayed step" in graphs.reason
    assert toy.weight.item() == sum(1.0 + call for call in range(1, READY + 4) if call != NUM_WARM + 3)


def test_what_no_graph_can_hold_is_named(graphs: StepGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(step_graph, "_Captured", refuse)
    toy = Toy()
    assert not any(steps(graphs, toy, READY + 1))
    assert graphs.reason == "a step cannot be captured: operation not permitted when stream is capturing"
    assert toy.weight.item() == READY + 1


def test_a_reason_leaves_all_steps_as_they_are() -> None:
    toy = Toy()
    assert not any(steps(StepGraphs(CPU, reason="several processes"), toy, READY + 1))
    assert toy.calls == READY + 1


def test_numbers_that_change_later_end_the_run(graphs: StepGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graph, "_SENDS_EVERY", 10)
    toy = Sending(lambda offsets: [1.0 if toy.calls <= READY else 2.0])
    with pytest.raises(RunError, match=r"sends other numbers .*test_step_graph\.py:\d+: .* train\.graph=off"):
        steps(graphs, toy, READY + 10, offsets=send_list([0, 2], CPU))
    assert graphs.num_replayed > 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16])
def test_numbers_in_another_format_are_others(dtype: torch.dtype, graphs: StepGraphs) -> None:
    toy, calls = Toy(), itertools.count()
    toy.host = lambda: 0.0 * send_list([1.0], CPU, torch.float32 if next(calls) < NUM_WARM + 3 else dtype).sum()  # type: ignore[assignment, return-value]
    assert not any(steps(graphs, toy, READY + 3))
    assert "the host sends other numbers in each step" in graphs.reason
