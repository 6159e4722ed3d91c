"""Faults of plain loops in two processes: samples and files that the processes do not agree on."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler, TensorDataset

import sightline
from sightline.contract.errors import RunError
from sightline.doctor.finding import Finding, finding_from_dict
from sightline.engine.distributed import World
from tests.planted.loops import Loop
from tests.processes import free_port

RANKS = "DDP"
"""Name of the bench of plain loops in two processes."""
_NUM_PROCESSES = 2
_NUM_EPOCHS, _NUM_SAMPLES = 2, 96
_TIMEOUT_S = 10.0
_SAVES, _DRAWS_ALL = "O67", "O69"


def train_in_processes(seed: int, *, fault: str = "") -> Sequence[Finding]:
    """Train a loop in two processes, each watched; return what they logged, each finding once."""
    with tempfile.TemporaryDirectory() as folder:
        # One that ends badly ends both: what was found before that is in the files.
        with contextlib.suppress(ProcessExitedException, ProcessRaisedException):
            torch.multiprocessing.spawn(_train_rank, (free_port(), fault, seed, folder), _NUM_PROCESSES)
        lines = [line for path in sorted(Path(folder).glob("*.jsonl")) for line in path.read_text().splitlines()]
        num_ended = len(list(Path(folder).glob("*.ended")))
    findings = [finding_from_dict(json.loads(line)) for line in lines]
    if not findings and num_ended < _NUM_PROCESSES:
        raise RunError(f"{_NUM_PROCESSES - num_ended} of {_NUM_PROCESSES} processes ended before their loop did")
    return list({(finding.code, finding.cause): finding for finding in reversed(findings)}.values())[::-1]


def _train_rank(rank: int, port: int, fault: str, seed: int, folder: str) -> None:
    """Train the loop of a case in this process; each finding is written at once, as torch may abort the process."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    world = World(rank, _NUM_PROCESSES)
    store, timeout = f"tcp://127.0.0.1:{port}", datetime.timedelta(seconds=_TIMEOUT_S)
    distributed.init_process_group("gloo", init_method=store, timeout=timeout, rank=rank, world_size=world.size)
    logging.getLogger("sightline").addHandler(_FindingWriter(Path(folder) / f"{rank}.jsonl"))
    torch.manual_seed(seed)
    features = torch.randn(_NUM_SAMPLES, 10)
    data = TensorDataset(features, (features @ torch.randn(10, 4)).argmax(1))
    model = DistributedDataParallel(nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sampler = _make_sampler(fault, data, world, seed)
    num_savers = world.size if fault == _SAVES else 1
    with sightline.watch(model, optimizer=optimizer):
        for epoch in range(_NUM_EPOCHS):
            if isinstance(sampler, DistributedSampler):
                sampler.set_epoch(epoch)
            for inputs, label in DataLoader(data, batch_size=8, sampler=sampler):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), label).backward()
                optimizer.step()
            _evaluate(model, data, world)
            if world.rank < num_savers:
                torch.save(model.module.state_dict(), Path(folder) / "best.pt")
    (Path(folder) / f"{world.rank}.ended").touch()
    distributed.destroy_process_group()


def _make_sampler(fault: str, data: TensorDataset, world: World, seed: int) -> Sampler[int]:
    if fault == _DRAWS_ALL:
        return RandomSampler(data, generator=torch.Generator().manual_seed(seed))
    return DistributedSampler(data, world.size, world.rank, seed=seed)


@torch.no_grad()
def _evaluate(model: nn.Module, data: TensorDataset, world: World) -> Tensor:
    """Evaluate a part of the data on each process and add up."""
    features, label = data[world.rank :: world.size]
    model.eval()
    num_correct = (model.module(features).argmax(1) == label).sum()  # type: ignore[operator]
    model.train()
    return world.all_reduce_sum({"num_correct": num_correct})["num_correct"]


RANK_LOOPS: dict[str, Loop] = {fault: partial(train_in_processes, fault=fault) for fault in (_SAVES, _DRAWS_ALL)}
"""Loops in two processes by the ids of cases."""


class _FindingWriter(logging.Handler):
    """Log handler that writes each finding to a file at once, a line for each."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        if (finding := getattr(record, "finding", None)) is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finding.to_dict()) + "\n")
