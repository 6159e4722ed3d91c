"""Loops in two processes: what they do not agree on is named, and processes that agree raise nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sightline.doctor.watch.ranks import RankRecord, judge, open_board
from tests.processes import run_ranks

# --- the rules --------------------------------------------------------------------------------------------------------


def codes_of(first: RankRecord, second: RankRecord) -> list[str]:
    return [finding.code for finding in judge({0: first, 1: second})]


def record(**fields: Any) -> RankRecord:
    return RankRecord("host", **fields)


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
    assert codes_of(record(batches=first), record(batches=second)) == codes


def test_a_file_is_shared_on_one_machine_alone() -> None:
    own, other = record(files={"/runs/best.pt": 5}), record(files={"/runs/best.pt": 6, "/runs/last.pt": 6})
    assert codes_of(own, other) == ["file-race"]
    assert codes_of(own, dataclasses.replace(other, host="another")) == []
    assert codes_of(own, record(files={"/runs/1/best.pt": 5})) == []


# --- processes --------------------------------------------------------------------------------------------------------

TWO_PROCESSES = """
import logging, os, tempfile
from pathlib import Path
import torch
import torch.distributed as dist
import torch.nn.functional as F
import sightline
from sightline.doctor.watch import ranks
from tests.limits import HANG_S
from tests.runtime.healthy_loops import batches, net

logging.getLogger("sightline").setLevel(logging.CRITICAL)
ranks._MAX_END_S = HANG_S  # a loop that ended waits for the other one on any machine
dist.init_process_group("gloo")
rank = dist.get_rank()
folder = Path(os.environ["FOLDER"])

def train(*, seed, path=None, declared=()):
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
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.processes
def test_two_processes_are_compared(tmp_path: Any) -> None:
    run_ranks(["-W", "error", "-c", TWO_PROCESSES], 2, environment={"FOLDER": str(tmp_path)})


def test_a_single_process_has_no_board() -> None:
    assert open_board("watch") is None
