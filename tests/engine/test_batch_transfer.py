"""Batches that are read and copied while the step before runs. The stream of a GPU is a stand-in that keeps a record:
what the host does, and when, is tested; that the copies then run beside the step is not, since no GPU is at hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from sightline.contract.errors import DataError
from sightline.contract.pytree import tree_leaves
from sightline.contract.types import Batch
from sightline.engine import loop as training
from sightline.engine.device.transfer import BatchTransfer
from sightline.engine.distributed import World
from sightline.engine.loop import train
from tests.runs.small import PLAIN, small_run

CPU = torch.device("cpu")


class RecordedStream:
    """What a copy stream is asked for, in order."""

    def __init__(self, events: list[str], *, is_idle: bool = True) -> None:
        self.events, self._is_idle = events, is_idle

    def is_idle(self) -> bool:
        return self._is_idle

    @contextlib.contextmanager
    def select(self) -> Iterator[None]:
        self.events.append("copies begin")
        yield
        self.events.append("copies are queued")

    def hand_over(self, batches: Any) -> None:
        self.events.append(f"the step waits for {len([*tree_leaves(batches)])} tensor(s)")


class RecordedClock:
    def __init__(self, events: list[str]) -> None:
        self.events = events

    def end_phase(self, name: str) -> None:
        self.events.append(f"end of {name}")


def read(events: list[str], num_steps: int, *, broken: int = -1) -> Iterator[Sequence[Batch]]:
    for step in range(num_steps):
        if step == broken:
            raise DataError("scans/7.npz: is cut")
        events.append(f"read {step}")
        yield [{"points": torch.full((2,), float(step)), "name": ["a"]}]


def test_the_next_batch_is_copied_before_the_step_is_waited_for() -> None:
    events: list[str] = []
    clock = RecordedClock(events)
    transfer = BatchTransfer(read(events, 2), CPU, torch.float64, RecordedStream(events))  # type: ignore[arg-type]
    received = []
    for _ in range(2):
        received += transfer.receive(clock)
        events.append("step is queued")
        transfer.read_ahead(clock)
        transfer.read_ahead(clock)  # a step that is repeated asks twice
        events.append("step is waited for")
    assert events == [
        *("read 0", "end of data", "end of transfer", "step is queued"),
        *("end of optimise", "read 1", "copies begin", "copies are queued", "end of data", "step is waited for"),
        *("the step waits for 1 tensor(s)", "end of transfer", "step is queued"),
        *("end of optimise", "end of data", "end of optimise", "end of data", "step is waited for"),
    ]
    assert [batch["points"].tolist() for batch in received] == [[0.0, 0.0], [1.0, 1.0]]
    assert received[1]["points"].dtype == torch.float64


def test_reading_counts_as_a_wait_only_if_the_device_is_done() -> None:
    events: list[str] = []
    clock, stream = RecordedClock(events), RecordedStream(events, is_idle=False)
    transfer = BatchTransfer(read(events, 2), CPU, torch.float32, stream)  # type: ignore[arg-type]
    transfer.receive(clock)
    transfer.read_ahead(clock)
    assert events[-1] == "end of ahead"


def test_without_a_copy_stream_nothing_is_read_ahead() -> None:
    events: list[str] = []
    clock = RecordedClock(events)
    transfer = BatchTransfer(read(events, 2), CPU, torch.float32, None)
    transfer.receive(clock)
    transfer.read_ahead(clock)
    assert events == ["read 0", "end of data", "end of transfer"]


def test_an_error_in_reading_is_raised_by_the_step_that_needs_the_batch() -> None:
    events: list[str] = []
    clock = RecordedClock(events)
    transfer = BatchTransfer(read(events, 3, broken=1), CPU, torch.float32, RecordedStream(events))  # type: ignore[arg-type]
    transfer.receive(clock)
    transfer.read_ahead(clock)
    with pytest.raises(DataError, match="is cut"):
        transfer.receive(clock)


def test_a_run_that_reads_ahead_has_the_bits_of_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps in two calls of the loop, the first of which ends early: what it had read ahead is read again."""
    weights = []
    for copies in (None, RecordedStream([])):
        monkeypatch.setattr(
            training, "BatchTransfer", lambda steps, device, dtype, _, c=copies: BatchTransfer(steps, device, dtype, c)
        )
        job = small_run("train.steps=6", "train.micro_batches=2", *PLAIN).job
        torch.manual_seed(1)
        train(job, World(), lambda record, stop: record.step == 2)
        train(job, World(), lambda record, stop: False)
        assert job.step == 6
        weights.append(job.model.state_dict())
    assert copies is not None
    assert copies.events.count("copies are queued") == 5
    assert sum(event.startswith("the step waits") for event in copies.events) == 4
    for ours, theirs in zip(weights[0].values(), weights[1].values(), strict=True):
        assert torch.equal(ours, theirs)
