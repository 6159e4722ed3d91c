"""Loops in two processes: what they do not agree on is named, and processes that agree raise nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import torch

from sightline.doctor.watch.processes import observe_collectives, open_board
from sightline.doctor.watch.rank_records import CollectiveCall, RankJudge, RankRecord
from tests.processes import run_ranks

# --- the rules --------------------------------------------------------------------------------------------------------


def call(number: int, form: str = "all_reduce of float32[1]", *, passes: int = 8) -> CollectiveCall:
    return CollectiveCall(number, form, "train.py:30 in evaluate", passes, passes)


def record(*calls: CollectiveCall, passes: int = 8, **fields: Any) -> RankRecord:
    return RankRecord("host", step=passes, passes=passes, calls=list(calls), **fields)


def judge(first: RankRecord, second: RankRecord, times_s: Sequence[float] = (0.0,)) -> list[str]:
    """Judge at these times on both ranks; return the codes at the last, which must be the same on both."""
    both = []
    for rank in (0, 1):
        judge = RankJudge(rank)
        codes = [[finding.code for finding in judge.judge({0: first, 1: second}, now_s)] for now_s in times_s]
        both.append(codes[-1])
    assert both[0] == both[1]
    return both[0]


def test_processes_that_agree_raise_nothing() -> None:
    assert judge(record(call(1)), record(call(1))) == []


@pytest.mark.parametrize(
    ("ahead", "times_s", "codes"),
    [
        (record(passes=8), (0.0, 60.0), []),  # not there yet, however long it takes
        (record(passes=9), (0.0, 1.0), []),  # one batch more than the other: it may still come
        (record(passes=9), (0.0, 2.0), ["collectives-differ"]),
        (record(passes=8, is_over=True), (0.0,), ["collectives-differ"]),
        (record(passes=8, is_over=True, has_failed=True), (0.0, 60.0), []),  # it ended by another error
        (record(passes=9, is_over=True, has_failed=True), (0.0,), ["collectives-differ"]),
    ],
)
def test_a_collective_of_one_process_is_named_once_the_other_has_passed_it(
    ahead: RankRecord, times_s: Sequence[float], codes: list[str]
) -> None:
    assert judge(record(call(1)), ahead, times_s) == codes
    assert judge(ahead, record(call(1)), times_s) == codes


def test_different_collectives_in_one_place_are_named() -> None:
    own, other = record(call(1), call(2)), record(call(1), call(2, "broadcast of float32[1]"))
    assert judge(own, other) == ["collectives-differ"]
    assert judge(record(call(1)), record(dataclasses.replace(other).calls[0])) == []


@pytest.mark.parametrize(
    ("first", "second", "codes"),
    [
        ({"1": "a", "2": "b"}, {"1": "a", "2": "b"}, ["same-samples"]),
        ({"1": "a", "2": "b", "4": "c"}, {"1": "a", "2": "b"}, ["same-samples"]),
        ({"1": "a"}, {"1": "a"}, []),  # a first batch of ones, say
        ({"1": "a", "2": "a"}, {"1": "a", "2": "a"}, []),  # one batch for ever has a code of its own
        ({"1": "a", "2": "b", "4": "c"}, {"1": "a", "2": "b", "4": "d"}, []),
        ({"1": "a", "2": "b"}, {"1": "b", "2": "a"}, []),
        ({"1": "a", "2": "b"}, {}, []),
    ],
)
def test_batches_are_the_same_if_all_that_were_compared_are(
    first: dict[str, str], second: dict[str, str], codes: list[str]
) -> None:
    assert judge(record(batches=first), record(batches=second)) == codes


def test_a_file_is_shared_on_one_machine_alone() -> None:
    own, other = record(files={"/runs/best.pt": 5}), record(files={"/runs/best.pt": 6, "/runs/last.pt": 6})
    assert judge(own, other) == ["file-race"]
    assert judge(own, dataclasses.replace(other, host="another")) == []
    assert judge(own, record(files={"/runs/1/best.pt": 5})) == []


def test_a_record_survives_its_text() -> None:
    own = record(call(1), batches={"1": "a"}, files={"/best.pt": 3}, is_over=True)
    assert RankRecord.from_text(own.to_text()) == own


# --- processes --------------------------------------------------------------------------------------------------------

TWO_PROCESSES = """
import logging, os, tempfile
from pathlib import Path
import torch
import torch.distributed as dist
import torch.nn.functional as F
import sightline
from tests.runtime.healthy_loops import batches, net

logging.getLogger("sightline").setLevel(logging.CRITICAL)
dist.init_process_group("gloo")
rank = dist.get_rank()
folder = Path(os.environ["FOLDER"])

def train(*, seed, path=None, lone=False, declared=()):
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with sightline.watch(model, optimizer=optimizer, declared=declared) as watch:
        for step, (points, label) in enumerate(batches(8, seed=seed)):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(points), label)).backward()
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= 2
            scaler.unscale_(optimizer)  # the means above are no clipping
            scaler.step(optimizer)
            if step == 3 and path is not None:
                torch.save(model.state_dict(), path)
        if rank == 0 and lone:
            dist.all_reduce(torch.ones(1))
        if not lone:
            gathered = [None, None]
            dist.all_gather_object(gathered, rank)
            assert gathered == [0, 1]
    if lone and rank == 1:
        dist.all_reduce(torch.ones(1))  # lets the other go on
    return [(finding.code, finding.cause, finding.where.step) for finding in watch.findings]

own = folder / str(rank)
own.mkdir()
assert train(seed=rank, path=own / "best.pt") == []
assert train(seed=rank, path=folder / "best.pt" if rank == 0 else None) == []
assert train(seed=7) == [("same-samples", "dist.sampler", 2)], train(seed=7)
assert train(seed=7, declared=("same-samples",)) == []
with open(os.devnull, "wb") as nothing:
    assert train(seed=rank, path=nothing) == []
assert train(seed=rank, path=folder / "best.pt") == [("file-race", "ckpt.race", 4)]
assert train(seed=rank, lone=True) == [("collectives-differ", "dist.collective_mismatch", 9)]
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.processes
def test_two_processes_are_compared(tmp_path: Any) -> None:
    run_ranks(["-W", "error", "-c", TWO_PROCESSES], 2, environment={"FOLDER": str(tmp_path)})


def test_a_single_process_has_no_board_and_its_functions_come_back() -> None:
    assert open_board("watch") is None
    reduce = torch.distributed.all_reduce
    with observe_collectives(lambda form, line: None):
        assert torch.distributed.all_reduce is not reduce
    assert torch.distributed.all_reduce is reduce


def test_each_of_several_observers_gets_the_line_of_the_loop() -> None:
    lines: list[str] = []
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(observe_collectives(lambda form, line: lines.append(line)))
        with suppress(ValueError):  # no group of processes
            torch.distributed.barrier()
    assert len(lines) == 3
    assert all(line.startswith(f"{__file__}:") for line in lines)
