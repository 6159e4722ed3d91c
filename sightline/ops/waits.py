"""Numbers of a device without waiting for it: those that the host sent, and checks that a step reads at its end."""

from __future__ import annotations

import atexit
import itertools
import logging
import math
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


class DeviceCheck(NamedTuple):
    """Check of values on a device: `holds` (0-d, bool), and a function that makes the error if it does not hold."""

    holds: Tensor
    make_error: Callable[[], Exception]


_FREE_DEVICES = frozenset({"cpu"})
_MAX_KNOWN = 4096
"""Numbers of a tensor of which the host keeps a list: sizes and offsets, not labels of points."""
_LIST = "list"
_traffic: HostTraffic | None = None
_deferred: list[DeviceCheck] | None = None  # not a context variable: a GPU's backward pass runs in a thread of its own


def is_on_host(values: Tensor) -> bool:
    """Return True if reading `values` (...) needs no wait for a device."""
    return values.device.type in _FREE_DEVICES


def is_exporting() -> bool:
    """Return True while torch.export records operations.

    `torch.compiler.is_exporting` of torch 2.6 to 2.12 is also True while torch.compile does (issue 176347 of torch).
    """
    return torch.compiler._is_exporting_flag


def is_recording() -> bool:
    """Return True while torch.export or TorchScript records operations: a graph has no values to read."""
    return is_exporting() or torch.jit.is_tracing()


def is_transformed() -> bool:
    """Return True inside of a transform of torch.func, such as `grad`, whose tensors have no memory of their own."""
    return not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None


def has_values(values: Tensor) -> bool:
    """Return True if `values` (...) have numbers to read: those of a graph, `vmap` and the device `meta` have none."""
    if is_recording() or torch.compiler.is_compiling() or _is_meta(values):
        return False
    if type(values).__module__.startswith("torch._subclasses"):  # fake and functional tensors
        return False
    while torch._C._functorch.is_gradtrackingtensor(values):
        values = torch._C._functorch.get_unwrapped(values)
    return not torch._C._functorch.is_batchedtensor(values)


def _is_meta(values: Tensor) -> bool:
    return values.is_meta and type(values) in (Tensor, torch.nn.Parameter)


def require(holds: Tensor, make_error: Callable[[], Exception]) -> None:
    """Raise the error of `make_error` unless all of `holds` (...) are True: now, or in `deferred_checks` at its end.

    Neither a recorded nor a compiled graph contains the check; those of operators run inside of them.
    """
    if not has_values(holds):
        return
    checks = _deferred if _deferred is not None else _local.checks
    if checks is not None and not is_on_host(holds):
        checks.append(DeviceCheck(holds if holds.ndim == 0 else holds.all(), make_error))
    elif not bool(holds.all()):
        raise make_error()


@contextmanager
def deferred_checks() -> Iterator[list[DeviceCheck]]:
    """Context that collects the checks of values on a device; the caller reads them before it trusts any result."""
    global _deferred
    previous, _deferred = _deferred, []
    try:
        yield _deferred
    finally:
        _deferred = previous


def require_between(values: Tensor, low: float, high: float, make_error: Callable[[], Exception]) -> None:
    """Raise the error unless `low` <= values (...) <= `high`, as `require` does; NaN is not. In one pass on a CPU."""
    if not (values.numel() and has_values(values)):
        return
    lowest, highest = torch.aminmax(values.detach())
    if not is_on_host(values):
        holds = lowest >= low
        require(holds if high == math.inf else holds & (highest <= high), make_error)
    elif not (low <= lowest.item() and highest.item() <= high):
        raise make_error()


# --- checks of operators outside of a step ---------------------------------------------------------------------------

_MAX_PENDING = 16
"""Checks that may be unread; each keeps what its operator was given, to name the number at fault."""
_pending: list[DeviceCheck] = []


class _Local(threading.local):
    checks: list[DeviceCheck] | None = None


_local = _Local()


@contextmanager
def pending_checks() -> Iterator[None]:
    """Context of an operator on a GPU: `check` reads its checks, unless a step around it does.

    A CUDA graph that is captured has no checks: its numbers come later.
    """
    before = _local.checks
    is_captured = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
    _local.checks = [] if is_captured else _pending
    try:
        yield
    finally:
        _local.checks = before
    if len(_pending) >= _MAX_PENDING:
        check()


def check() -> None:
    """Raise the error of the first operator on a GPU that was given values that it refuses, such as NaN.

    On a GPU an operator does not wait for its check of values. It is read here, together with those of all calls
    before, which waits for the device; also where sightline reads numbers of the device anyway, and after every 16
    checks. On a CPU each call raises at once, and there is nothing to do here: `loss.backward(); ops.check()`.
    """
    found = [_pending.pop(0) for _ in range(len(_pending))]  # in a backward pass, other threads append
    for one, holds in zip(found, _read_all([one.holds for one in found]), strict=True):
        if not holds:
            raise one.make_error()


def _read_all(flags: Sequence[Tensor]) -> list[bool]:
    """Read numbers (), in one transfer for each device."""
    values: dict[int, bool] = {}
    for device in {flag.device for flag in flags}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # of all streams: the flags may be of several
        places = [flag_index for flag_index, flag in enumerate(flags) if flag.device == device]
        values |= zip(places, torch.stack([flags[flag_index] for flag_index in places]).tolist(), strict=True)
    return [values[flag_index] for flag_index in range(len(flags))]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pending.clear)  # a child cannot read its parent's device


@atexit.register
def _report_unread() -> None:
    """Log the error that nothing has read when the program ends."""
    try:
        check()
    except Exception as error:  # noqa: BLE001 - the program has ended
        logging.getLogger("sightline.ops").error("sightline: found after the last call of ops.check(): %s", error)


# --- what the host sends and knows -----------------------------------------------------------------------------------


class SentValues(NamedTuple):
    """Values of the host and what was sent of them, in its version then; `location` is file and line."""

    location: str
    values: Tensor
    sent: Tensor
    version: int


class HostTraffic:
    """Values that the host sends to a device, and lists of sent values that it reads there, in the order of a step.

    With those that an equal step sent before, it sends nothing: these are taken in their place.
    """

    def __init__(self, sent_before: Sequence[SentValues] | None = None) -> None:
        self.sent: list[SentValues] = []
        self.read: list[tuple[str, list[Any]]] = []
        self._before = sent_before

    def send(self, values: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
        """Send values of the host. Raises RuntimeError if an equal step sent others."""
        if self._before is None:
            sent = _send(values, device, dtype)
            self.sent.append(SentValues(_locate_caller(), values.detach().clone(), sent, _version(sent)))
            return sent
        number = len(self.sent)
        if number == len(self._before) or not _is_sent_again(self._before[number], values, device, dtype):
            raise RuntimeError(f"the host sends other numbers in each step, at {_locate_caller()}")
        self.sent.append(self._before[number])
        return self._before[number].sent

    def differs_from(self, sent: Sequence[SentValues]) -> str:
        """Return file and line of the first values that are not those of `sent`, or nothing."""
        for ours, theirs in itertools.zip_longest(self.sent, sent):
            both = ours is not None and theirs is not None
            if not both or not _is_sent_again(theirs, ours.values, ours.sent.device, ours.sent.dtype):
                return (ours or theirs).location
        return ""

    def find_misuse(self, inputs: Sequence[Tensor]) -> str:
        """Return why a CUDA graph could not repeat this step, or nothing; `inputs` are those it gets again.

        It could not if the host reads numbers that neither `inputs` nor the step sent, or changes what it sent.
        """
        known = {id(get_known_list(tensor)) for tensor in (*inputs, *(value.sent for value in self.sent))}
        for location, values in self.read:
            if id(values) not in known:
                return f"the host reads numbers in a step, at {location}"
        for value in self.sent:
            if _version(value.sent) != value.version:
                return f"a step changes numbers that the host sent, at {value.location}"
        return ""


def _is_sent_again(before: SentValues, values: Tensor, device: torch.device, dtype: torch.dtype | None) -> bool:
    """Return True if values of the host are those of before, in the same format there and on the device."""
    formats = [(tensor.shape, tensor.dtype) for tensor in (before.values, values)]
    is_same_form = formats[0] == formats[1] and before.sent.dtype == (dtype or values.dtype)
    if not is_same_form or before.sent.device.type != device.type:
        return False
    ours, theirs = (tensor.detach().reshape(-1).contiguous().view(torch.uint8) for tensor in (before.values, values))
    return torch.equal(ours, theirs)


@contextmanager
def host_traffic(sent_before: Sequence[SentValues] | None = None) -> Iterator[HostTraffic]:
    """Context that notes what the host sends and reads."""
    global _traffic
    previous, _traffic = _traffic, HostTraffic(sent_before)
    try:
        yield _traffic
    finally:
        _traffic = previous


def _locate_caller() -> str:
    frame = next(f for f in reversed(traceback.extract_stack()) if f.filename != __file__)
    return f"{frame.filename.rpartition('/sightline/')[2]}:{frame.lineno}"


def get_known_list(values: Tensor) -> list[Any] | None:
    """Return the list of values that the host sent, itself, if they are unchanged."""
    known: list[Any] | None = recall(values, _LIST)
    return known


def clone_known(values: Tensor) -> Tensor:
    """Clone values, with the list that the host knows of them."""
    cloned, known = values.clone(), get_known_list(values)
    if known is not None:
        remember(cloned, _LIST, known)
    return cloned


def send(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy values (...) to `device` as `dtype`; those of the host without waiting, and `read_list` knows a few of them.

    Values of another device have arrived when this returns.
    """
    return _send_noted(values, device, dtype) if _is_of_host(values) else _send(values, device, dtype)


def _is_of_host(values: Tensor) -> bool:
    return values.device.type == "cpu"


def _send_noted(values: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    is_noted = _traffic is not None and not is_on_host(torch.empty(0, device=device))
    return _traffic.send(values, device, dtype) if is_noted and _traffic else _send(values, device, dtype)


def _send(values: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    is_of_host = _is_of_host(values)
    if device.type == "cuda" and is_of_host:
        values = values.pin_memory()  # from pageable memory the copy would wait for the device
    sent = values.to(device, dtype or values.dtype, non_blocking=is_of_host)
    is_known = is_of_host and not values.is_floating_point() and values.numel() <= _MAX_KNOWN
    if is_known and not (is_on_host(sent) or is_recording() or torch.compiler.is_compiling()):
        remember(sent, _LIST, values.tolist())
    return sent


def send_list(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Copy a list of numbers (n,), or a nested one, to `device` without waiting."""
    sent = _send_noted(torch.tensor(values, dtype=dtype), device, None)
    remember(sent, _LIST, list(values))  # a graph knows sizes, not values
    return sent


def read_list(values: Tensor) -> list[Any]:
    """Read values (...) as a list, nested like them; waits for the device unless `send` sent them unchanged.

    Raises ValueError for offsets or numbers that are no tensor.
    """
    if not isinstance(values, Tensor):
        raise ValueError(f"found a {type(values).__name__} of offsets or numbers; give a tensor: torch.tensor(...)")
    known = get_known_list(values)
    if known is not None:
        if _traffic is not None:
            _traffic.read.append((_locate_caller(), known))
        return known
    if not is_on_host(values):
        assert_no_meta(values, name="offsets or numbers")
        check()
    return values.tolist()


def assert_no_meta(values: Tensor, *, name: str) -> None:
    """Raise NotImplementedError for values of the device `meta`, where the size of a result depends on them."""
    if _is_meta(values):
        raise NotImplementedError(
            f"{name}: found {tuple(values.shape)} on the device meta, which has no values, and the size of the result "
            "depends on them; give a tensor of the CPU, or fake tensors (torch._subclasses.FakeTensorMode)"
        )


def knows_list(values: Tensor) -> bool:
    """Return True if `read_list` needs no device: the host sent these values (...), or a graph knows them."""
    return get_known_list(values) is not None


def call_on_host(function: Callable[..., Any], *arguments: Any, device: torch.device) -> Any:
    """Call a function with its tensors on the host, fetched in one transfer, and send the tensors that it returns.

    Both may be nested in lists, tuples and mappings. A function without tensors, such as one that draws on the host,
    waits for nothing.
    """
    result = function(*_fetch_tree(arguments))
    values, form = tree_flatten(result)
    return tree_unflatten([send(value, device) if isinstance(value, Tensor) else value for value in values], form)


def fetch(tree: Any) -> Any:
    """Copy a tree of tensors to the host, in one transfer; on the host it stays as it is."""
    tensors = (value for value in tree_flatten(tree)[0] if isinstance(value, Tensor))
    return tree if all(map(is_on_host, tensors)) else _fetch_tree(tree)


def _fetch_tree(tree: Any) -> Any:
    values, form = tree_flatten(tree)
    tensors = [value for value in values if isinstance(value, Tensor)]
    copies = iter(_fetch(tensors) if tensors else ())
    return tree_unflatten([next(copies) if isinstance(value, Tensor) else value for value in values], form)


def _fetch(tensors: Sequence[Tensor]) -> list[Tensor]:
    check()
    wide_first = sorted(range(len(tensors)), key=lambda index: -tensors[index].itemsize)  # so that all stay aligned
    parts = [tensors[index].detach().reshape(-1).contiguous().view(torch.uint8) for index in wide_first]
    copies: list[Tensor] = [*tensors]
    for index, part in zip(wide_first, torch.cat(parts).cpu().split([len(part) for part in parts]), strict=True):
        copies[index] = part.view(tensors[index].dtype).view(tensors[index].shape)
    return copies


POSITIVE = "positive"
"""Name under which `find_positive` remembers what it found."""


def find_positive(values: Tensor) -> tuple[Tensor, ...]:
    """Return the indices (n,), one of each axis, of values (...) of 0 or more; found once for a tensor."""
    index: tuple[Tensor, ...] | None = recall(values, POSITIVE)
    if index is None:
        index = (values >= 0).nonzero(as_tuple=True)
        remember(values, POSITIVE, index)
    return index


def remember(values: Tensor, name: str, known: Any) -> None:
    """Keep what the host knows of `values` (...) beside them, under a name, as long as they are unchanged."""
    setattr(values, f"_known_{name}", (_version(values), known))


def recall(values: Tensor, name: str) -> Any:
    """Return what `remember` keeps of values that are unchanged, else None; what a compiled graph gets is as sent."""
    version, known = getattr(values, f"_known_{name}", (None, None))
    return known if torch.compiler.is_compiling() or version == _version(values) else None


def _version(values: Tensor) -> int:
    return -1 if torch.compiler.is_compiling() or values.is_inference() else values._version
