"""Batches read in this process, or ahead by worker processes: the same ones, in the same order."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import multiprocessing.util
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils.data import DataLoader

from sightline.contract.binding import BoundFunction
from sightline.contract.errors import DataError, RunError, UserError
from sightline.contract.pytree import tree_cast
from sightline.contract.types import PREPARED, Batch, SampleKey
from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.batches.workers import WorkerContext, WorkerStopEvent, worker_setup
from sightline.engine.failures import rank_label, worker_exit_message

logger = logging.getLogger(__name__)

BatchLoader = Callable[[Sequence[SampleKey]], Batch]

_NO_HANDLES = (os.strerror(errno.EMFILE), "received 0 items of ancdata")
"""Error texts of Python, of torch, and of a socket whose receiver has no file handle left."""
_TOO_MANY_FILES = "no file handle is left to read data by workers; raise the limit (ulimit -n), or lower loader.workers"


@dataclass(frozen=True)
class BatchStream:
    """Batches of one process, by step and micro-batch; worker processes, if any, read ahead.

    `prepare` adds to each batch of `reader`, in the process that reads it, what the network computes of it first.
    """

    plan: BatchSampler
    reader: BatchLoader
    rank: int = 0
    workers: int = 0
    prefetch: int = 2
    prepare: Callable[[Batch], Batch] | None = None

    def iterate(self, step: int, num_steps: int) -> Generator[list[Batch], None, None]:
        """Yield the micro-batches of steps `step` to `num_steps`, in order; closing the generator ends the workers."""
        keys = _iterate_keys(self.step_keys, step, num_steps)
        reader = self.reader if self.prepare is None else _PreparingReader(self.reader, self.prepare)
        with contextlib.closing(read_batches(reader, keys, self.workers, self.prefetch)) as batches:
            for step_index in range(step, num_steps):
                yield [next(batches) for _ in self.step_keys(step_index)]

    def step_keys(self, step: int) -> list[list[SampleKey]]:
        """Return the keys of each micro-batch of a step, of this process."""
        return [micro[self.rank] for micro in self.plan.step_keys(step)]


@dataclass(frozen=True)
class _PreparingReader:
    reader: BatchLoader
    prepare: Callable[[Batch], Batch]

    def __call__(self, keys: Sequence[SampleKey]) -> Batch:
        return self.prepare(self.reader(keys))


@dataclass(frozen=True)
class Preparation:
    """Function that adds to a batch, under `PREPARED`, what a model's `make_preparation` makes of it.

    It is made of numbers of `float_dtype`, as they are sent to the model.
    """

    bound: BoundFunction
    float_dtype: torch.dtype

    def __call__(self, batch: Batch) -> Batch:
        arguments = tree_cast(self.bound.select(batch), self.float_dtype)
        try:
            return {**batch, PREPARED: self.bound.function(**arguments)}
        except ValueError:  # of these points: the forward pass raises it, where errors of a step are explained
            return batch


def _iterate_keys(keys: Callable[[int], list[list[SampleKey]]], step: int, num_steps: int) -> Iterator[list[SampleKey]]:
    for step_index in range(step, num_steps):
        yield from keys(step_index)


def read_batches(
    reader: BatchLoader, keys: Iterator[list[SampleKey]], workers: int, prefetch: int = 2
) -> Generator[Batch, None, None]:
    """Yield the batches of `keys`, in order, read in this process or ahead by workers; closing ends those.

    An error of a worker is raised here as it would have been without workers.
    """
    if workers == 0:
        for batch_keys in keys:  # not by `map`, which a StopIteration of the reader would end like the last batch
            yield reader(batch_keys)
        return
    _warn_of_cores(workers)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # until a worker has installed its handler
    try:
        with _worker_errors_named(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # our own warning is one line
            loader: Any = iter(_make_loader(reader, keys, workers, prefetch))
            loader._workers_done_event = WorkerStopEvent(loader._workers)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        while (batch := _receive(loader)) is not None:
            if isinstance(batch, _Failure):
                raise batch.as_error()
            yield batch
    finally:
        loader._shutdown_workers()
        for worker in loader._workers:
            if worker.is_alive():  # in library code that blocks signals
                worker.kill()


@functools.cache
def _warn_of_cores(workers: int) -> None:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers > usable:
        logger.warning(
            "many-workers: loader.workers is %d, and this machine offers %d core(s) to them and to the training; lower "
            "it unless they wait for a disk",
            *(workers, usable),
            extra={"code": "many-workers"},
        )


def _receive(loader: Iterator[Any]) -> Batch | _Failure | None:
    """Return the next batch or failure that a worker sent; None at the end."""
    with _worker_errors_named():
        packed = next(loader, None)
        return ForkingPickler.loads(packed) if isinstance(packed, bytes) else packed


@contextlib.contextmanager
def _worker_errors_named() -> Iterator[None]:
    """Convert errors of workers to RunError: no file handle left, or a worker process that ended."""
    try:
        yield
    except (OSError, RuntimeError, EOFError) as error:
        if _lacks_handles(error):
            raise RunError(_TOO_MANY_FILES) from error
        is_socket_gone = isinstance(error, ConnectionError | FileNotFoundError | EOFError)
        if is_socket_gone or str(error).startswith("DataLoader worker"):
            raise RunError(worker_exit_message(error)) from error
        raise


def _lacks_handles(error: Exception) -> bool:
    return any(sign in str(error) for sign in _NO_HANDLES)


@dataclass(frozen=True)
class _Failure:
    """A worker's report of an error: exceptions themselves do not all survive the way between processes."""

    message: str
    is_users: bool

    def as_error(self) -> Exception:
        return DataError(self.message) if self.is_users else RunError(self.message)


class _TorchDataset:
    """Adapter of the batch reader to torch's data set protocol: fetches a list of keys at once.

    Batches are pickled here, so that an error is reported: torch's queue drops a batch that it cannot pickle, and the
    training process would wait for it forever.
    """

    def __init__(self, reader: BatchLoader) -> None:
        self.reader = reader

    def __getitems__(self, keys: Sequence[SampleKey]) -> bytes | _Failure:
        try:
            return bytes(ForkingPickler.dumps(self.reader(keys)))
        except UserError as error:
            return _Failure(str(error), is_users=True)
        except Exception as error:  # noqa: BLE001 - sent to the training process, which raises it
            if _lacks_handles(error):
                return _Failure(_TOO_MANY_FILES, is_users=False)
            source = f"in a worker of {rank} that" if (rank := rank_label()) else "in a worker that"
            return _Failure(f"{source} reads data:\n{traceback.format_exc()}", is_users=False)

    def __getitem__(self, key: SampleKey) -> bytes | _Failure:
        return self.__getitems__([key])


class _KeyListIterable:
    """Batch sampler for torch's loader: an iterable of key lists, to be iterated once."""

    def __init__(self, keys: Iterator[list[SampleKey]]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self.keys


def _make_loader(reader: BatchLoader, keys: Iterator[list[SampleKey]], workers: int, prefetch: int) -> Any:
    """Build torch's data loader: worker processes read the batches of `keys` ahead and return them in order.

    torch draws a seed for them, from a separate generator: else dropout would depend on the number of workers.
    The folder of their sockets is this process's, which removes it when it ends; workers may end at any moment.
    """
    multiprocessing.util.get_temp_dir()
    return DataLoader(
        _TorchDataset(reader),  # type: ignore[arg-type]
        batch_sampler=_KeyListIterable(keys),
        num_workers=workers,
        prefetch_factor=prefetch,
        collate_fn=_identity,
        multiprocessing_context=WorkerContext(),
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=worker_setup(),
    )


def _identity(batch: Any) -> Any:
    return batch
