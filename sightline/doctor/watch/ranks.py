"""Several processes of one loop: a thread beside each compares them through notes, without a collective."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import MissingError, observe
from sightline.doctor.watch.loop import ForwardCall, Found, Loop, Monitor, record_event
from sightline.doctor.watch.processes import RankBoard, observe_collectives, open_board
from sightline.doctor.watch.rank_records import CollectiveCall, RankJudge, RankRecord
from sightline.instrument import observe_saves

logger = logging.getLogger(__name__)

_MAX_INPUTS, _SAMPLE_SIZE = 4, 256
_FIRST_INTERVAL_S, _MAX_INTERVAL_S = 0.1, 0.5
_MAX_WAIT_S = 5.0
"""Seconds for which the first collective of a line waits for a sign of the others, which it waits for in any case."""
_MAX_END_S = 1.0
"""Seconds for which the end of a loop waits for the ends of the others."""

Receive = Callable[[Iterable[Found]], None]


class RankMonitor(Monitor):
    """Progress of this process, written for the others and compared with theirs.

    The loop notes facts in memory; a thread exchanges them, twice a second. The loop itself exchanges them at the
    first, second, fourth, eighth, ... collective of a line of code. Batches are compared at such updates alone.
    """

    def __init__(self, loop: Loop, board: RankBoard, receive: Receive) -> None:
        self._loop = loop
        self._board = board
        self._receive = receive
        self._record = RankRecord(socket.gethostname())
        self._judge = RankJudge(board.rank)
        self._samples: dict[int, tuple[list[Tensor], list[torch.Event]]] = {}
        self._num_entered: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._quietly(self._follow), name="watch-ranks", daemon=True)

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Context of the loop: its collectives and files are noted, and compared with those of the others."""
        with ExitStack() as stack:
            stack.enter_context(observe_saves(self._quietly(self._on_save)))
            stack.enter_context(observe_collectives(self._quietly(self._on_collective)))
            self._quietly(self._exchange)()
            self._thread.start()
            try:
                yield
            except BaseException:
                self._finish(has_failed=True)
                raise
            self._finish(has_failed=False)

    def on_forward(self, loop: Loop, call: ForwardCall) -> Iterable[Found]:
        step = loop.step - loop.first_step + 1
        if call.has_gradient and _is_power_of_two(step) and step not in self._samples:
            inputs = [tensor for _, tensor in dense_leaves(call.inputs) if tensor.numel() > 1][:_MAX_INPUTS]
            samples = [take_sample(tensor).to("cpu", non_blocking=True) for tensor in inputs]
            devices = {tensor.device for tensor in inputs if tensor.device.type != "cpu"}
            self._samples[step] = samples, [record_event(device) for device in devices]
        return ()

    # --- events ------------------------------------------------------------------------------------------------------

    def _on_save(self, file: Any) -> None:
        name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
        if isinstance(name, str | os.PathLike):
            path = Path(name).resolve()
            if path.is_file() or not path.exists():  # not /dev/null
                self._update_progress()
                self._record.add_file(str(path))

    def _on_collective(self, form: str, line: str) -> None:
        self._update_progress()
        call = self._record.add_call(form, line)
        number = self._num_entered[line] = self._num_entered.get(line, 0) + 1
        if _is_power_of_two(number):
            self._exchange()
        if number == 1:
            self._await_others(call)

    def _await_others(self, call: CollectiveCall) -> None:
        """Wait until the others enter the collective, too, or it is known that one does not."""
        deadline = time.monotonic() + _MAX_WAIT_S
        while time.monotonic() < deadline:
            records, has_found = self._exchange(writes=False)
            others = [record for rank, record in records.items() if rank != self._board.rank]
            arrived = [record.num_calls >= call.number or record.is_over for record in others]
            if has_found or (len(arrived) == len(self._board.others) and all(arrived)) or not arrived:
                return
            time.sleep(0.005)

    def _quietly(self, run: Callable[..., object]) -> Callable[..., None]:
        """Return the function as one that never raises: the loop is the user's, and must not end by an observer."""

        def run_quietly(*arguments: Any) -> None:
            if self._stopped.is_set():
                return
            missing = observe("comparison of processes", run, *arguments)
            if isinstance(missing, MissingError) and not self._stopped.is_set():
                self._stop(missing)

        return run_quietly

    def _stop(self, missing: MissingError) -> None:
        """Stop to compare: the store ends with its process, which is not a fault of the loop."""
        self._stopped.set()
        self._loop.failures[missing.reason] = None
        logger.info("watch-ranks: %s", missing.reason)

    # --- the exchange ------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        interval_s = _FIRST_INTERVAL_S
        while not self._stopped.wait(interval_s):
            interval_s = min(2 * interval_s, _MAX_INTERVAL_S)
            self._update_progress()
            records, _ = self._exchange()
            others = [record for rank, record in records.items() if rank != self._board.rank]
            if len(others) == len(self._board.others) and all(record.is_over for record in others):
                return  # the store may end with the process that hosts it

    def _update_progress(self) -> None:
        self._record.step, self._record.passes = self._loop.step - self._loop.first_step, self._loop.num_forwards
        for step, (samples, arrivals) in list(self._samples.items()):
            if str(step) not in self._record.batches and all(arrival.query() for arrival in arrivals):
                if any(bool((sample != sample[0]).any()) for sample in samples):  # a sparse volume may look empty
                    data = b"".join(sample.view(torch.uint8).numpy().tobytes() for sample in samples)
                    self._record.batches = {**self._record.batches, str(step): hashlib.sha256(data).hexdigest()[:16]}
                self._samples[step] = [], arrivals

    def _exchange(self, *, writes: bool = True) -> tuple[dict[int, RankRecord], bool]:
        """Write the own record, read those of the others, and judge; return them, and True if a fault was found."""
        with self._lock:
            if writes:
                self._board.write(self._record.to_text())
            records = {rank: RankRecord.from_text(text) for rank, text in self._board.read().items()}
            records[self._board.rank] = self._record
            found = list(self._judge.judge(records, time.monotonic()))
        self._receive(found)
        return records, bool(found)

    def _finish(self, *, has_failed: bool) -> None:
        """Write the last record, and compare it with the last ones of the others, if they end soon."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join(_MAX_END_S)
        missing = observe("comparison of the ends of processes", self._compare_ends, has_failed)
        if isinstance(missing, MissingError):
            self._stop(missing)

    def _compare_ends(self, has_failed: bool) -> None:
        self._update_progress()
        self._record.is_over, self._record.has_failed = True, has_failed
        deadline = time.monotonic() + _MAX_END_S
        records, _ = self._exchange()
        while time.monotonic() < deadline and not all(record.is_over for record in records.values()):
            time.sleep(0.01)
            records, _ = self._exchange(writes=False)


def take_sample(values: Tensor) -> Tensor:
    """Take evenly spaced values; the odd step meets every column of an image, which may be empty at its edge."""
    flat = values.detach().flatten()
    return flat[:: max(1, math.ceil(flat.numel() / _SAMPLE_SIZE)) | 1].clone()


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def start_monitor(loop: Loop, name: str, receive: Receive) -> RankMonitor | None:
    """Make the monitor of a loop that runs in several processes; None for a single one. `name` is that of the loop."""
    board = open_board(name)
    return None if board is None else RankMonitor(loop, board, receive)
