"""Which samples a step reads: every one once an epoch, the same for any split, from any step on."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.contract.errors import ConfigError, DataError, RunError
from sightline.contract.types import SampleKey
from sightline.engine.batches import workers
from sightline.engine.batches.sampler import BatchSampler, evaluation_keys
from sightline.engine.batches.stream import BatchStream, _warn_of_cores, read_batches
from tests.limits import ENDLESS_S, HANG_S


def flat(plan: BatchSampler, step: int) -> list[int]:
    return [key.index for micro in plan.step_keys(step) for rank in micro for key in rank]


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 90),
    batch_size=st.integers(1, 20),
    micro_batches=st.integers(1, 5),
    num_processes=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_an_epoch_visits_every_sample_once(
    size: int, batch_size: int, micro_batches: int, num_processes: int, seed: int
) -> None:
    try:
        plan = BatchSampler(np.arange(100, 100 + size), batch_size, seed, micro_batches, "keep", num_processes)
    except ConfigError:
        assert batch_size < num_processes or 0 < size % batch_size < num_processes
        return
    visited = [index for step in range(plan.steps_per_epoch) for index in flat(plan, step)]
    assert sorted(visited) == list(range(100, 100 + size))
    assert all(rank for step in range(plan.steps_per_epoch) for micro in plan.step_keys(step) for rank in micro)


def test_the_split_does_not_change_what_a_step_reads() -> None:
    whole = BatchSampler(np.arange(43), 8, seed=1)
    for micro_batches, num_processes in ((4, 1), (1, 2), (2, 2), (1, 3)):
        split = BatchSampler(np.arange(43), 8, seed=1, micro_batches=micro_batches, num_processes=num_processes)
        assert [flat(split, step) for step in range(12)] == [flat(whole, step) for step in range(12)]


def test_epochs_differ_and_seeds_differ() -> None:
    plan, other = BatchSampler(np.arange(64), 64, seed=0), BatchSampler(np.arange(64), 64, seed=1)
    assert flat(plan, 0) != flat(plan, 1)
    assert flat(plan, 0) != flat(other, 0)


def test_dropping_the_tail_drops_only_it() -> None:
    plan = BatchSampler(np.arange(43), 8, seed=0, tail="drop")
    assert plan.steps_per_epoch == 5
    assert {len(flat(plan, step)) for step in range(10)} == {8}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"indices": np.arange(0)}, "no samples"),
        ({"num_processes": 9}, "cannot feed 9 processes"),
        ({"num_processes": 4}, "3 sample.*4 processes"),
    ],
)
def test_impossible_plans_are_refused_before_the_start(arguments: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        BatchSampler(**{"indices": np.arange(43), "batch_size": 8, "seed": 0} | arguments)


def read(keys: list[SampleKey]) -> dict:
    return {"sample_index": [key.index for key in keys], "draw": [key.generator().random() for key in keys]}


@pytest.mark.parametrize("start", [0, 7])
def test_workers_read_what_the_process_itself_reads(start: int) -> None:
    plan = BatchSampler(np.arange(43), 8, seed=2, micro_batches=2, num_processes=2)
    alone = list(BatchStream(plan, read, rank=1).iterate(start, 14))
    assert list(BatchStream(plan, read, rank=1, workers=2).iterate(start, 14)) == alone
    assert list(BatchStream(plan, read, rank=1).iterate(0, 14))[start:] == alone


def test_evaluation_keys_are_whole_batches_in_order() -> None:
    keys = evaluation_keys(np.array([3, 5, 8, 13, 21]), 2, epoch=0, seed=0)
    assert [[key.index for key in batch] for batch in keys] == [[3, 5], [8, 13], [21]]


def breaks(keys: list[SampleKey]) -> dict:
    if any(key.index == 13 for key in keys):
        raise DataError("cloud_13.npy: is cut short at byte 12")
    return read(keys)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_worker_is_the_same_one_line_as_without(workers: int) -> None:
    stream = BatchStream(BatchSampler(np.arange(20), 4, seed=0), breaks, workers=workers)
    with pytest.raises(DataError, match=r"^cloud_13.npy: is cut short at byte 12$"):
        list(stream.iterate(0, 5))


def test_a_stray_stop_iteration_does_not_end_an_epoch_early() -> None:
    """As of `next` on an iterator that is empty, in a transform of a user's own."""
    batches = read_batches(lambda keys: next(iter([])), iter([[SampleKey(0, 0, 0)]]), workers=0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(batches)


def test_more_workers_than_cores_are_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    _warn_of_cores.cache_clear()
    stream = BatchStream(BatchSampler(np.arange(8), 4, seed=0), read, workers=2)
    for _ in range(2):
        list(stream.iterate(0, 2))
    (record,) = caplog.records
    assert record.getMessage().startswith("many-workers: loader.workers is 2, and this machine offers 1 core(s)")
    assert not recwarn.list  # torch's own


def sleeps(keys: list[SampleKey]) -> dict:
    if keys[0].epoch:
        time.sleep(ENDLESS_S)
    return read(keys)


def test_closing_the_stream_ends_workers_in_the_middle_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch itself would wait five seconds for each, here without end."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", ENDLESS_S)
    steps = BatchStream(BatchSampler(np.arange(4), 4, seed=0), sleeps, workers=2).iterate(0, 5)
    next(steps)
    started = multiprocessing.active_children()
    rescue = threading.Timer(HANG_S, lambda: [worker.kill() for worker in started])
    rescue.start()
    steps.close()
    rescue.cancel()
    assert [worker.exitcode for worker in started] == [0, 0], "none was killed"
    assert not multiprocessing.active_children()


# --- workers that cannot go on ----------------------------------------------------------------------------------------


def read_many(keys: Sequence[SampleKey]) -> dict[str, torch.Tensor]:
    """Each tensor travels by a file handle of its own."""
    return {f"field {number}": torch.ones(2) for number in range(30)}


def test_a_worker_without_file_handles_is_an_error_and_no_endless_wait() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    batches = read_batches(read_many, iter([[SampleKey(index, 0, 0)] for index in range(9)]), workers=1)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
    try:
        with pytest.raises(RunError, match=r"^no file handle is left to read data by workers; raise the limit"):
            list(batches)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        batches.close()
    assert not multiprocessing.active_children()


def kill(keys: Sequence[SampleKey]) -> dict[str, torch.Tensor]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def fail(keys: Sequence[SampleKey]) -> dict[str, torch.Tensor]:
    raise ValueError("of a plugin")


@pytest.mark.parametrize(("size", "place"), [("1", "in a worker that"), ("2", "in a worker of rank 1 that")])
def test_a_fault_in_a_worker_names_the_rank(size: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RunError, match=f"^{place} reads data:\nTraceback") as caught:
        list(read_batches(fail, iter([[SampleKey(0, 0, 0)]]), workers=1))
    assert str(caught.value).rstrip().endswith("ValueError: of a plugin")


def test_a_worker_that_is_killed_is_one_line() -> None:
    with pytest.raises(
        RunError,
        match=r"^a worker that reads data ended \(out of memory\?\): DataLoader worker .*; set loader.workers lower",
    ) as caught:
        list(read_batches(kill, iter([[SampleKey(0, 0, 0)]]), workers=1))
    assert "\n" not in str(caught.value)


def dies_with_the_lock(keys: Sequence[SampleKey]) -> dict[str, torch.Tensor]:
    """What can happen wherever a worker is killed while torch's loop asks whether it is to stop, here made certain."""
    frame = sys._getframe()
    while "done_event" not in frame.f_locals:
        frame = frame.f_back
    frame.f_locals["done_event"]._cond.acquire()
    if keys[0].index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(keys)


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "closed"])
def test_a_lock_that_dies_with_its_worker_stops_no_ending(is_killed: bool) -> None:
    batches = read_batches(dies_with_the_lock, iter([[SampleKey(int(is_killed), 0, 0)]]), workers=1)
    faulthandler.dump_traceback_later(HANG_S, exit=True)  # who waits for the lock waits without end
    try:
        if is_killed:
            with pytest.raises(RunError, match=r"^a worker that reads data ended"):
                next(batches)
        else:
            next(batches)
            batches.close()
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert not multiprocessing.active_children()


@pytest.fixture(scope="module")
def num_stalls() -> Iterator[Any]:
    """Number of forks to come that wait for ever before they reach their own code, as those of CPython 3.11 can."""
    left = multiprocessing.Value("i", 0, lock=False)

    def stall() -> None:
        if left.value > 0:
            left.value -= 1
            signal.pause()

    os.register_at_fork(after_in_child=stall)
    yield left
    left.value = 0


def test_a_fork_that_does_not_come_to_life_is_made_again(num_stalls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_START_LIMITS_S", (*[0.3] * 20, HANG_S))
    num_stalls.value = 1
    keys = [[SampleKey(index, 0, 0)] for index in range(4)]
    assert list(read_batches(read, iter(keys), workers=2)) == [read(batch) for batch in keys]
    assert num_stalls.value == 0
    assert not multiprocessing.active_children()


def test_where_no_fork_comes_to_life_the_run_ends_in_a_line(num_stalls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_START_LIMITS_S", (0.3, 0.3))
    num_stalls.value = 9
    with pytest.raises(RunError, match=r"^no worker process came to life in 2 tries, within 1 s: .* loader.workers"):
        list(read_batches(read, iter([[SampleKey(3, 0, 0)]]), workers=2))
    num_stalls.value = 0
    assert not multiprocessing.active_children()
