"""Several processes of one loop: their batches and files are compared by notes in torch's store, not by collectives."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import MissingError, observe
from sightline.doctor.processes import is_one_of_several
from sightline.doctor.rules import find_by
from sightline.doctor.rules.run import same_samples
from sightline.doctor.rules.state import file_race
from sightline.doctor.watch.loop import ForwardCall, Found, Loop, Monitor, record_event
from sightline.instrument import observe_saves

logger = logging.getLogger(__name__)

_MAX_INPUTS, _SAMPLE_SIZE = 4, 256
_MAX_FILES = 64
"""Files of a note."""
_MAX_OTHERS = 8
"""Processes whose notes one process reads, so that the store of a large group is not flooded."""
_STORE_TIMEOUT_S, _MAX_END_S = 10.0, 1.0
"""Seconds for which the store is waited for, and the end of a loop waits for the ends of the others."""


@dataclass
class RankRecord:
    """Record of one process: digests of its batches by update, files that it saved, and True once its loop is over."""

    host: str
    batches: dict[str, str] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    is_over: bool = False


class RankBoard:
    """Notes of the processes of a group for one another, in the group's store: no collective, and nothing waits.

    `others` are the ranks whose notes are read.
    """

    def __init__(self, store: dist.Store, *, rank: int, size: int) -> None:
        self._store = store
        self.rank = rank
        self.others = sorted({(rank + 2**i) % size for i in range(_MAX_OTHERS)} - {rank})

    def exchange(self, own: RankRecord) -> dict[int, RankRecord]:
        """Replace the note of this process, and read those that others have written, by rank."""
        self._store.set(f"note/{self.rank}", json.dumps(asdict(own)))
        written = [other for other in self.others if self._store.check([f"note/{other}"])]
        notes = {other: RankRecord(**json.loads(self._store.get(f"note/{other}"))) for other in written}
        return {self.rank: own, **notes}


def open_board(name: str) -> RankBoard | None:
    """Open the board of a name on the default process group, a new one at each call; None for a single process."""
    if not is_one_of_several():
        return None
    rank = dist.get_rank()
    own_connection = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
    own_connection.set_timeout(datetime.timedelta(seconds=_STORE_TIMEOUT_S))
    number = own_connection.add(f"sightline/{name}/opened/{rank}", 1)
    return RankBoard(
        dist.PrefixStore(f"sightline/{name}/{number}", own_connection), rank=rank, size=dist.get_world_size()
    )


class RankMonitor(Monitor):
    """Batches of the first, second, fourth, eighth, ... update and files of this process, compared with the others'."""

    def __init__(self, loop: Loop, board: RankBoard, receive: Callable[[Iterable[Found]], None]) -> None:
        self._loop = loop
        self._board = board
        self._receive = receive
        self._record = RankRecord(socket.gethostname())
        self._samples: dict[int, tuple[list[Tensor], list[torch.Event]]] = {}
        self._has_ended = False

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Context of the loop: its files are noted, and at its end compared with those of the others."""
        with observe_saves(lambda file: self._try(self._on_save, file)):
            try:
                yield
            finally:
                self._try(self._finish)

    def on_forward(self, loop: Loop, call: ForwardCall) -> None:
        step = loop.step - loop.first_step + 1
        if call.has_gradient and step & (step - 1) == 0 and step not in self._samples:
            inputs = [tensor for _, tensor in dense_leaves(call.inputs) if tensor.numel() > 1][:_MAX_INPUTS]
            samples = [take_sample(tensor).to("cpu", non_blocking=True) for tensor in inputs]
            devices = {tensor.device for tensor in inputs if tensor.device.type != "cpu"}
            self._samples[step] = samples, [record_event(device) for device in devices]
            self._try(self._compare)

    def _on_save(self, file: Any) -> None:
        name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
        path = Path(name).resolve() if isinstance(name, str | os.PathLike) else Path()
        is_kept = path.is_file() or not path.exists()  # not /dev/null
        if is_kept and str(path) not in self._record.files and len(self._record.files) < _MAX_FILES:
            self._record.files[str(path)] = self._loop.step - self._loop.first_step
            self._compare()

    def _try(self, run: Callable[..., object], *arguments: Any) -> None:
        """Compare until it fails: the store ends with its process, which is not a fault of the loop."""
        missing = None if self._has_ended else observe("comparison of processes", run, *arguments)
        if isinstance(missing, MissingError):
            self._has_ended = True
            self._loop.failures[str(missing)] = None
            logger.info("watch-ranks: %s", missing)

    def _compare(self) -> bool:
        """Write the own record, and judge it beside those of the others; return True if all loops are over."""
        for step, (samples, arrivals) in self._samples.items():
            if samples and all(arrival.query() for arrival in arrivals):
                if any(bool((sample != sample[0]).any()) for sample in samples):  # a sparse volume may look empty
                    data = b"".join(sample.view(torch.uint8).numpy().tobytes() for sample in samples)
                    self._record.batches[str(step)] = hashlib.sha256(data).hexdigest()[:16]
                self._samples[step] = [], arrivals
        records = self._board.exchange(self._record)
        self._receive(judge(records))
        return len(records) > len(self._board.others) and all(record.is_over for record in records.values())

    def _finish(self) -> None:
        """Write the last record, and compare it with the last ones of the others, if they end soon."""
        self._record.is_over = True
        deadline = time.monotonic() + _MAX_END_S
        while not self._compare() and time.monotonic() < deadline:
            time.sleep(0.01)


def take_sample(values: Tensor) -> Tensor:
    """Take evenly spaced values; the odd step meets every column of an image, which may be empty at its edge."""
    flat = values.detach().flatten()
    return flat[:: max(1, math.ceil(flat.numel() / _SAMPLE_SIZE)) | 1].clone()


def judge(records: Mapping[int, RankRecord]) -> Iterator[Found]:
    """Yield faults of the first two processes that train on the same batches, and that save one file of a machine."""
    pairs = list(itertools.combinations(sorted(records.items()), 2))
    yield from next(filter(None, itertools.starmap(_judge_batches, pairs)), ())
    yield from next(filter(None, itertools.starmap(_judge_files, pairs)), ())


def _judge_batches(one: tuple[int, RankRecord], other: tuple[int, RankRecord]) -> list[Found]:
    (a, first), (b, second) = one, other
    common = [step for step in first.batches if step in second.batches]
    is_same = all(first.batches[step] == second.batches[step] for step in common)
    changed = [step for step in common if is_same and first.batches[step] != first.batches[common[0]]]
    return find_by(same_samples, ranks=(a, b), common_steps=common, changed_steps=changed)


def _judge_files(one: tuple[int, RankRecord], other: tuple[int, RankRecord]) -> list[Found]:
    (a, first), (b, second) = one, other
    files = first.files.items() if first.host == second.host else ()
    saved = [(path, step, second.files[path]) for path, step in files if path in second.files]
    return find_by(file_race, ranks=(a, b), saved=saved)


def start_monitor(loop: Loop, name: str, receive: Callable[[Iterable[Found]], None]) -> RankMonitor | None:
    """Make the monitor of a loop that runs in several processes; None for a single one. `name` is that of the loop."""
    board = open_board(name)
    return None if board is None else RankMonitor(loop, board, receive)
