"""One process of several, judged without the others: models without their wrappers, and no collective."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from sightline.doctor.attempts import NotApplicableError
from sightline.instrument import replace_function

_WRAPPERS = {DistributedDataParallel: "module", DataParallel: "module"}
"""Classes that call another module with what they are called with, and where they have it."""
_COMPILED = "_orig_mod"
_SHARDED = ("FullyShardedDataParallel", "FSDPModule")
"""Names of classes of torch whose parameters are spread over processes: importing the classes takes a second."""
_COLLECTIVES = (
    *("allreduce", "allreduce_coalesced", "allgather", "allgather_coalesced", "_allgather_base", "broadcast", "reduce"),
    *("allgather_into_tensor_coalesced", "all_gather_single", "all_gather_single_coalesced", "gather", "scatter"),
    *("reduce_scatter", "_reduce_scatter_base", "reduce_scatter_tensor_coalesced", "reduce_scatter_single"),
    *("reduce_scatter_single_coalesced", "alltoall", "alltoall_base", "all_to_all_single", "barrier"),
    *("monitored_barrier", "send", "recv", "recv_anysource"),
)
"""Methods of a process group that wait for other processes."""


def is_one_of_several() -> bool:
    """Return True if torch joins this process with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module that a parallel or compiled model calls: it computes the same without other processes."""
    while True:
        name = next((name for kind, name in _WRAPPERS.items() if isinstance(model, kind)), _COMPILED)
        inner = dict(model.named_children()).get(name)
        if inner is None:
            return model
        model = inner


def describe_spread(model: nn.Module) -> str:
    """Say why one process cannot run an unwrapped model, or a copy of it, without the others; empty if it can."""
    for path, module in model.named_modules():
        kinds = [kind.__name__ for kind in type(module).__mro__]
        if isinstance(module, DistributedDataParallel):
            return f"its part '{path}' is a {type(module).__name__}, whose passes wait for the other processes"
        if any(kind in _SHARDED for kind in kinds):
            return "its parameters are spread over the processes (FSDP)"
    if any(hasattr(parameter, "to_local") for parameter in model.parameters()):
        return "its parameters are spread over the processes (DTensor)"
    return ""


@contextmanager
def leave_others_alone() -> Iterator[None]:
    """Context in which this process is for its own code a single one: it starts no collective.

    Code that asks torch whether there are other processes hears of none, so that a synchronised batch norm computes
    that of this process; code that does not ask gets a NotApplicableError. Other threads go on as before.
    """
    if not is_one_of_several():
        yield
        return
    # Threads of autograd begin during a pass, and are none of Python's.
    others = {thread.ident for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}
    others.discard(threading.get_ident())

    def is_here() -> bool:
        return threading.get_ident() not in others

    def is_initialized(original: Any) -> bool:
        return not is_here() and bool(original())

    with replace_function(dist, "is_initialized", is_initialized), refuse_collectives(is_here):
        yield


@contextmanager
def refuse_collectives(is_refused: Callable[[], bool]) -> Iterator[None]:
    """Context in which a collective raises NotApplicableError where `is_refused()`, and else runs as before."""

    def run(original: Any, *args: Any, **kwargs: Any) -> Any:
        if is_refused():
            raise NotApplicableError("a collective, which waits for the other processes")
        return original(*args, **kwargs)

    functional = getattr(dist, "_functional_collectives", None)
    functions: list[tuple[Any, str]] = [(dist.ProcessGroup, name) for name in _COLLECTIVES]
    functions += [(functional, name) for name in ("_resolve_group", "_resolve_group_name")]
    with ExitStack() as stack:
        for owner, name in functions:
            if hasattr(owner, name):
                stack.enter_context(replace_function(owner, name, run))
        yield
