"""Distributed training: the world of processes and its collectives.

No other module of a run calls torch.distributed, but for the launcher, which starts processes by torch's agent. The
doctor does, too, for processes of loops that are not ours.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before the process group: see World.close
from torch import Tensor, nn

from sightline.contract.errors import RunError, UserError
from sightline.engine.device.freed_memory import keep_freed_memory
from sightline.engine.failures import PeerLostError, describe_failed_kernel, exit_process, report_failure
from sightline.engine.gradients import GradientReduction
from sightline.engine.launcher import RankInfo, rank_info_from_environment, rendezvous_address
from sightline.engine.process_inputs import ProcessesDifferError, describe_process, find_differences
from sightline.engine.watchdog import Watchdog, format_user_frame
from sightline.instrument import receive_gradients
from sightline.layers.batch_norm import SynchronisedBatchNorm, convert_sync_batchnorm
from sightline.runs.run_directory import RunDirectory

P = ParamSpec("P")
T = TypeVar("T")

_MIN_START_S = 60.0
"""Minimal time for all processes to start: a first import from a cold disk is not a hang."""
_MAX_HANDSHAKE_S = 30.0
_MAX_TELLING_S = 30.0
"""Time in which a process that ends before all have met tries to tell the others."""
_IS_DECIDED = threading.Event()
"""Set once all processes of a run have met, or it is known that they will not: nobody waits for this one any more."""


@dataclass(frozen=True)
class World:
    """Process among all processes of a run. A world of one makes no collective calls and needs no network.

    A collective that waits too long ends the run through the watchdog; one that breaks raises PeerLostError.
    On the CPU gradients have a group of their own, the only one of `gradient_groups`: they travel beside other
    collectives.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watchdog: Watchdog | None = None
    agreement: _Agreement | None = None
    gradient_groups: list[dist.ProcessGroup] = field(default_factory=list, compare=False)

    # --- numbers ------------------------------------------------------------------------------------------------------

    def all_reduce_sum(self, tensors: Mapping[str, Tensor], *, operation: str = "sums") -> dict[str, Tensor]:
        """Return the sum of each tensor over all processes, bitwise equal on each; one collective per dtype."""
        totals = self._all_reduce(tensors, operation=operation)
        self._wait_for_device(f"all_reduce of {operation}")
        return totals

    def gather_rows(self, rows: Tensor, *, operation: str = "rows") -> tuple[Tensor, int]:
        """Gather the rows (n, ...) of all processes in rank order, and the index of this process's first row."""
        if self.size == 1:
            return rows.detach(), 0
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(rows)
        counts: list[int] = self.all_reduce_sum({"rows": sizes}, operation=f"the number of {operation}")[
            "rows"
        ].tolist()
        # Sent as bytes, so that every dtype arrives unchanged.
        row_bytes = rows.element_size() * rows.shape[1:].numel()
        padded = torch.zeros(max(counts) * row_bytes, dtype=torch.uint8, device=self.device)
        padded[: len(rows) * row_bytes] = rows.detach().contiguous().reshape(-1).view(torch.uint8)
        gathered = [torch.empty_like(padded) for _ in counts]
        with self._collective(f"all_gather of {operation}", f"rows {_format_shape(rows[:0])}", padded):
            dist.all_gather(gathered, padded)
        row_data = torch.cat([part[: count * row_bytes] for part, count in zip(gathered, counts, strict=True)])
        self._wait_for_device(f"all_gather of {operation}")
        all_rows = row_data.view(rows.dtype).view(sum(counts), *rows.shape[1:])
        return all_rows.to(rows.device), sum(counts[: self.rank])

    def gather_text(self, text: str, *, operation: str = "text") -> list[str]:
        """Gather the text of every process, in rank order."""
        if self.size == 1:
            return [text]
        encoded = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        joined, _ = self.gather_rows(encoded, operation=operation)
        sizes, _ = self.gather_rows(
            torch.tensor([len(encoded)], device=self.device), operation=f"lengths of {operation}"
        )
        return [bytes(part.tolist()).decode() for part in joined.split(sizes.tolist())]

    def broadcast_text(self, text: str, *, operation: str = "text") -> str:
        """Return the first process's text, on every process."""
        return self.gather_text(text if self.rank == 0 else "", operation=operation)[0]

    def broadcast_from_rank_zero(self, compute: Callable[[], str], *, operation: str = "text") -> str:
        """Return on every process the text that the first process computes; the others compute none."""
        return self.broadcast_text(compute() if self.rank == 0 else "", operation=operation)

    def rank_zero_only(self, function: Callable[P, T]) -> Callable[P, T | None]:
        """Return the function itself on the first process; elsewhere one that does nothing and returns None."""
        return function if self.rank == 0 else _do_nothing

    def assert_equal(self, describe: Callable[[], Mapping[str, Any]], *, store: dist.Store | None = None) -> None:
        """Raise ProcessesDifferError on every process unless all describe the same values, in the group's store."""
        if self.size == 1:
            return
        with self._collective("the comparison of all processes", None):
            shared = store or dist.distributed_c10d._get_default_store()
            differences = find_differences(shared, rank=self.rank, size=self.size, values=describe())
        if differences:
            raise ProcessesDifferError(differences)

    def barrier(self, name: str) -> None:
        """Wait for every process; on a time-out, the error names the missing processes and their lines of code."""
        if self.size > 1:
            self.all_reduce_sum({"here": torch.ones((), dtype=torch.int64)}, operation=f"barrier '{name}'")

    # --- models -------------------------------------------------------------------------------------------------------

    def broadcast_weights(self, model: nn.Module) -> nn.Module:
        """Give every process the first one's weights; return the model to call in training.

        Raises ProcessesDifferError if processes have built different models.
        """
        if self.size == 1:
            return model
        entries = [*model.named_parameters(), *model.named_buffers()]
        self.assert_equal(lambda: {f"the model's {name}": _format_shape(tensor) for name, tensor in entries})
        self._broadcast([tensor for _, tensor in entries], operation="the model's first weights")
        return model

    @contextlib.contextmanager
    def reduce_gradients(self, model: nn.Module, *, is_last_micro_batch: bool) -> Iterator[None]:
        """Replace every gradient by its sum over processes, around a backward pass, if `is_last_micro_batch`.

        A bucket of gradients is sent as soon as the pass has computed them; the context ends when all have arrived. A
        gradient that no process has stays None, whichever parts of the model each process used. Raises RunError for a
        gradient that the pass changes after it was sent.
        """
        if self.size == 1 or not is_last_micro_batch:
            yield
            return
        reduction = GradientReduction(model, self._start_gradient_sum)
        can_send = self._can_send_early(model)
        with receive_gradients(reduction.parameters if can_send else (), reduction.receive):
            yield
        with self._collective("all_reduce of gradients", f"{reduction.num_buckets} buckets", *reduction.parameters):
            reduction.finish()

    def _can_send_early(self, model: nn.Module) -> bool:
        """Return False if the backward pass has collectives that could come between the gradients, on a GPU.

        Concurrent collectives of two groups of NCCL may wait for each other; those of gloo do not.
        """
        has_collectives = any(isinstance(module, SynchronisedBatchNorm) for module in model.modules())
        return bool(self.gradient_groups) or not has_collectives

    def _start_gradient_sum(self, flat: Tensor) -> dist.Work:
        group = self.gradient_groups[0] if self.gradient_groups else None
        with self._collective("all_reduce of gradients", None):
            work: dist.Work = dist.all_reduce(flat, group=group, async_op=True)
        return work

    def convert_sync_batchnorm(self, model: nn.Module) -> nn.Module:
        """Convert batch norms to compute their statistics from the batch of all processes."""
        return model if self.size == 1 else convert_sync_batchnorm(model, self._differentiable_sum)

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every process the buffers of the first (batch statistics differ between them while training)."""
        if self.size > 1:
            self._broadcast(list(model.buffers()), operation="the model's buffers")

    # --- files and order ----------------------------------------------------------------------------------------------

    def run_directory(self, path: Path) -> RunDirectory:
        """Return the run's directory; only the one of the first process writes."""
        return RunDirectory(path, is_writer=self.rank == 0)

    def close(self) -> None:
        """Wait for all processes, then leave the process group.

        Its threads end with it, or else one of them might abort the interpreter's end. Torch imports more of itself at
        the first optimiser step, and default arguments there would take the group and hold it: they are imported here.
        """
        if self.size > 1:
            self.barrier("end")
            if self.watchdog is not None:
                self.watchdog.stop()
            self.gradient_groups.clear()  # or its threads would live as long as this object
            dist.destroy_process_group()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _all_reduce(self, tensors: Mapping[str, Tensor], *, operation: str) -> dict[str, Tensor]:
        if self.size == 1:
            return dict(tensors)
        totals: dict[str, Tensor] = {}
        for dtype in sorted({tensor.dtype for tensor in tensors.values()}, key=str):
            assert dtype != torch.bool, f"{operation}: booleans have no sum; give whole numbers"
            names = sorted(name for name, tensor in tensors.items() if tensor.dtype == dtype)
            wide = torch.int32 if dtype == torch.int16 else dtype  # gloo does not support int16
            flat = torch.cat([tensors[name].detach().reshape(-1).to(self.device, wide) for name in names])
            with self._collective(f"all_reduce of {operation} ({', '.join(names[:5])})", ", ".join(names), flat):
                dist.all_reduce(flat)
            parts = flat.to(dtype).split([tensors[name].numel() for name in names])
            totals |= {n: part.view(tensors[n].shape) for n, part in zip(names, parts, strict=True)}
        return {name: totals[name] for name in tensors}

    @torch.no_grad()
    def _broadcast(self, tensors: Sequence[Tensor], *, operation: str) -> None:
        """Give every process the first one's values, as bytes."""
        if not tensors:
            return
        rows = (tensor.reshape(-1).clone(memory_format=torch.contiguous_format) for tensor in tensors)
        flat = torch.cat(
            [row.view(torch.uint8) for row in rows]
        )  # a stride of 2 is contiguous, too, for a single entry
        with self._collective(f"broadcast of {operation}", "", flat):
            dist.broadcast(flat, src=0)
        if self.rank > 0:
            parts = flat.split([tensor.numel() * tensor.element_size() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))
        self._wait_for_device(f"broadcast of {operation}")

    def _wait_for_device(self, operation: str) -> None:
        """Let the host wait for a collective on a GPU, so that the watchdog sees it wait."""
        if self.size > 1 and self.device.type == "cuda":
            with self._collective(operation, None):
                torch.cuda.synchronize(self.device)

    @contextlib.contextmanager
    def _collective(self, operation: str, details: str | None, *tensors: Tensor) -> Iterator[None]:
        """Context of one collective: optional check that all processes agree, watchdog, and readable errors."""
        if self.agreement is not None and details is not None:
            with self._watch(f"agreement on {operation}"):
                self.agreement.reach(operation, details, tensors)
        with self._watch(operation):
            try:
                yield
            except (RunError, torch.OutOfMemoryError):
                raise
            except RuntimeError as error:
                if describe_failed_kernel(error) is not None:  # of an earlier operation: it came to light here
                    raise
                raise _convert_error(operation, error) from error

    def _watch(self, operation: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self.watchdog is None else self.watchdog.watch_collective(operation)

    def _differentiable_sum(self, tensor: Tensor) -> Tensor:
        return _SumOverProcesses.apply(tensor, self)


def _do_nothing(*arguments: object, **named: object) -> None:
    """Do nothing: replaces functions that only the first process calls."""


class _SumOverProcesses(torch.autograd.Function):
    """y = sum over processes of x; so the gradient of each x is the sum over processes of the gradient of y."""

    @staticmethod
    def forward(ctx, tensor: Tensor, world: World) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.world = world
        return world._all_reduce({"statistics": tensor}, operation="batch statistics")["statistics"]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return ctx.world._all_reduce({"gradient": gradient}, operation="gradients of batch statistics")[
            "gradient"
        ], None


# --- agreement --------------------------------------------------------------------------------------------------------


class _Agreement:
    """Check before a collective that all processes are about to enter the same one.

    For debugging (SIGHTLINE_DEBUG_COLLECTIVES=1): collectives that do not match otherwise hang, abort, or mix numbers.
    """

    _NUM_BYTES = 2048

    def __init__(self, size: int) -> None:
        self._size = size
        self._number = 0

    def reach(self, what: str, details: str, tensors: Sequence[Tensor]) -> None:
        self._number += 1
        site = format_user_frame(sys._getframe())
        forms = " ".join(_format_shape(tensor) for tensor in tensors[:20])
        description = f"collective {self._number}: {what} [{details}] of {forms} at {site}".encode()[: self._NUM_BYTES]
        local_message = torch.tensor(list(description.ljust(self._NUM_BYTES)), dtype=torch.uint8)
        gathered = [torch.empty_like(local_message) for _ in range(self._size)]
        dist.all_gather(gathered, local_message)
        texts = [bytes(message.tolist()).decode(errors="replace").strip() for message in gathered]
        if len(set(texts)) > 1:
            states = "; ".join(f"rank {rank} is about to enter {text}" for rank, text in enumerate(texts))
            raise RunError(f"the processes disagree: {states}")


def _format_shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


# --- beginning and end ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def start_world(
    *, device: str | torch.device = "auto", timeout_s: float = 600.0, describe: Callable[[], Mapping[str, Any]] = dict
) -> Iterator[World]:
    """Join the processes that the launcher's environment describes, or be a world of one.

    From Python, `device` may also be one of torch. Several processes first compare what each describes, and their
    versions; only the first shows warnings. A process that fails notifies the others, which then end, too. Raises
    UserError for an incomplete environment, a device that this machine lacks, and processes that differ; RunError if
    the processes do not connect, or if code calls sys.exit.
    """
    rank_info = rank_info_from_environment()
    chosen = _select_device(str(device), rank_info.local_rank)
    if chosen.type == "cpu":
        keep_freed_memory()
    if rank_info.size == 1:
        try:
            yield World(device=chosen)
        except SystemExit as error:  # its code may be 0: nothing would say that the work is not done
            raise RunError(f"code called sys.exit({error.code}) at {_format_origin(error)}, before the end") from error
        return
    with _quiet_unless(rank_info.rank == 0):
        store, watchdog = _meet_processes(rank_info, timeout_s)
        try:
            checks_agreement = os.environ.get("SIGHTLINE_DEBUG_COLLECTIVES", "0") not in ("", "0")
            agreement = _Agreement(rank_info.size) if checks_agreement else None
            world = World(rank_info.rank, rank_info.size, chosen, watchdog, agreement)
            world.assert_equal(lambda: {**describe_process(chosen), **describe()}, store=store)
            _join_group(world, store, timeout_s)
            yield world
            world.close()
        except ProcessesDifferError:
            watchdog.stop()
            raise
        except PeerLostError as error:
            _exit_after_peer(error, watchdog)
        except SystemExit as error:
            watchdog.describe_failure(f"code called sys.exit({error.code}) at {_format_origin(error)}")
            raise RunError(
                f"process {rank_info.rank} was left by sys.exit({error.code}) at {_format_origin(error)}"
            ) from error
        except BaseException as error:
            watchdog.describe_failure(str(error) or type(error).__name__)
            raise


def _meet_processes(rank_info: RankInfo, timeout_s: float) -> tuple[dist.Store, Watchdog]:
    """Wait until every process has connected to the store, then start the watchdog."""
    patience_s = max(timeout_s, _MIN_START_S)
    store = _connect_store(rank_info, patience_s=patience_s)
    # The watchdog has a separate connection: one that is blocked in a long call would block its messages.
    listening = _connect_store(rank_info, patience_s=patience_s, is_second=True)
    watchdog = Watchdog(store=listening, rank=rank_info.rank, size=rank_info.size, timeout_s=timeout_s)
    watchdog.register()
    started = time.monotonic()
    while missing := watchdog.missing_ranks():
        if ended := _list_ended(store, missing):
            _IS_DECIDED.set()
            _hear(store, rank_info, [rank for rank in range(rank_info.size) if rank not in ended])
            raise RunError(f"rank {ended[0]} ended before all processes had met; it says why itself")
        if time.monotonic() - started > patience_s:
            ranks = ", ".join(map(str, missing))
            raise RunError(
                f"{len(missing)} of {rank_info.size} processes have not connected in {patience_s:g} s: rank {ranks}"
            )
        time.sleep(0.02)
    _IS_DECIDED.set()
    watchdog.start()
    return store, watchdog


def _list_ended(store: dist.Store, ranks: Sequence[int]) -> list[int]:
    try:
        return [rank for rank in ranks if store.check([f"ended/{rank}"])]
    except RuntimeError as error:
        _IS_DECIDED.set()
        raise RunError("the first process ended before all processes had met; it says why itself") from error


def _hear(store: dist.Store, rank_info: RankInfo, others: Sequence[int]) -> None:
    """Acknowledge that a process has ended; the one that hosts the store waits for the others to have read it, too."""
    with contextlib.suppress(RuntimeError):
        store.set(f"heard/{rank_info.rank}", "")
        if rank_info.rank == 0:
            store.wait([f"heard/{other}" for other in others], datetime.timedelta(seconds=_MAX_TELLING_S))


def tell_end() -> None:
    """Tell the processes that a scheduler started beside this one that it ends by an error before they have met.

    They would wait for it as for one that starts late. An agent of torchrun ends the others itself.
    """
    rank_info = rank_info_from_environment()
    if rank_info.size == 1 or _has_agent() or _IS_DECIDED.is_set():
        return
    with contextlib.suppress(RunError, RuntimeError):
        store = _connect_store(rank_info, patience_s=_MAX_TELLING_S)
        store.set(f"ended/{rank_info.rank}", "")
        _hear(store, rank_info, range(1, rank_info.size))


def _has_agent() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _join_group(world: World, store: dist.Store, timeout_s: float) -> None:
    backend = "cuda:nccl,cpu:gloo" if world.device.type == "cuda" else "gloo"
    # Our watchdog reports a hang at `timeout_s`; torch's own limit only has to come after it.
    limit = datetime.timedelta(seconds=2 * timeout_s + 30)
    with world._collective("the joining of all processes", None):
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=limit)
        if world.device.type == "cpu":
            world.gradient_groups.append(dist.new_group(timeout=limit))


def _connect_store(rank_info: RankInfo, *, patience_s: float, is_second: bool = False) -> dist.Store:
    """Connect to the key-value store of the processes, hosted by torchrun's agent or else by the first process."""
    environment = os.environ
    host, port = rendezvous_address()
    is_host = rank_info.rank == 0 and not is_second and not _has_agent()
    if is_host:
        host = "localhost"  # its second connection, like those of other processes, uses MASTER_ADDR
    else:
        _await_listener(host, port, rank_info.rank, patience_s)
    named = {"is_master": is_host, "timeout": datetime.timedelta(seconds=patience_s), "wait_for_workers": False}
    try:
        with ThreadPool(1) as pool:  # torch itself waits without end for a program that listens and does not respond
            store = pool.apply_async(dist.TCPStore, (host, port), named).get(_MAX_HANDSHAKE_S)
    except (RuntimeError, multiprocessing.TimeoutError) as error:
        reason = str(error).partition("\n")[0] or f"no response in {_MAX_HANDSHAKE_S:g} s"
        where = f"rank {rank_info.rank} cannot connect to the store at {host}:{port}"
        raise RunError(f"{where}: {reason}; if another program uses the port, choose another MASTER_PORT") from error
    return dist.PrefixStore(f"sightline/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _await_listener(host: str, port: int, rank: int, patience_s: float) -> None:
    """Wait until a process listens at the address: torch's store would wait twice as long and print its C++ frames."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1.0, deadline - time.monotonic())).close()
            return
        except UnicodeError as error:
            raise UserError(f"MASTER_ADDR: '{host}' is not a valid host name: {error}") from error
        except OSError as error:
            if time.monotonic() >= deadline:
                raise RunError(
                    f"rank {rank} cannot reach the first process at {host}:{port}, tried for {patience_s:g} s: "
                    f"{error.strerror or error}; start that process, or correct MASTER_ADDR and MASTER_PORT"
                ) from error
        time.sleep(0.05)


def _exit_after_peer(error: PeerLostError, watchdog: Watchdog) -> NoReturn:
    """End this process because another one failed, and report that reason as a consequence."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    report_failure(f"{watchdog.peer_failure_reason()}; {error}", exit_code=1, is_consequence=True)
    exit_process(1)


@contextlib.contextmanager
def _quiet_unless(is_shown: bool) -> Iterator[None]:
    """Suppress warnings unless `is_shown`: those of one process are enough."""
    if is_shown:
        yield
        return
    logger = logging.getLogger("sightline")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def _convert_error(what: str, error: RuntimeError) -> RunError:
    """Convert the error of a failed collective to a RunError; torch distinguishes the cases by text alone."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "gloo/transport" in reason and "enforce fail" not in reason:
        return PeerLostError(f"this process was in {what}")
    return RunError(f"{what} failed: {reason} (SIGHTLINE_DEBUG_COLLECTIVES=1 shows whether the processes disagree)")


def _format_origin(error: BaseException) -> str:
    frames = list(traceback.walk_tb(error.__traceback__))
    frame, line = next(
        entry for entry in reversed(frames) if entry[0].f_globals["__name__"] != "_sitebuiltins"
    )  # exit()
    return f"{frame.f_code.co_filename}:{line}"


def assert_device(name: str) -> None:
    """Raise UserError for a device that there is not, or that this machine lacks."""
    if name not in ("auto", "cpu", "cuda"):
        one = name.rpartition(":")[2]
        advice = f"; for this GPU, CUDA_VISIBLE_DEVICES={one} sightline ... --device cuda" if one.isdecimal() else ""
        raise UserError(f"--device: found '{name}', allowed are auto, cpu, cuda{advice}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no CUDA device on this machine; use --device cpu, or install a CUDA wheel"
        )


def _select_device(name: str, local_rank: int) -> torch.device:
    assert_device(name)
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if torch.cuda.device_count() == 1 and "SLURM_PROCID" in os.environ:
        local_rank = 0  # --gpus-per-task=1: each task sees only the GPU that is its own
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine has no GPU of its own: {torch.cuda.device_count()} are visible; "
            "start at most one process per GPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
