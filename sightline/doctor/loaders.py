"""Readings of a user's loader that leave it as it was: what they change is put back, or they are refused."""

from __future__ import annotations

import io
import multiprocessing.process
import multiprocessing.queues
import operator
import socket
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from sightline.contract.errors import UserError
from sightline.contract.pytree import is_dense
from sightline.doctor.attempts import observe
from sightline.doctor.objects import (
    GENERATORS,
    find_read_values,
    get_contents,
    get_state,
    iter_reachable,
    iter_slots,
    set_state,
)

_MAX_ITEMS, _MAX_BYTES = 2**20, 2**24
"""Items of a container, and bytes of all arrays together, that are put back."""
_ADVICE = "pass a loader that begins anew each time, or a list of batches"
_PERSISTENT = {"persistent_workers": False, "_iterator": None}
"""Attributes of a loader of torch, as of one whose workers end with the epoch."""
Restore = Callable[[], object]


def assert_readable(loader: Any, *, name: str) -> None:
    """Raise UserError for a loader whose reading could not be undone; nothing of it is read."""
    if reason := find_obstacle(loader):
        raise UserError(f"{name}: {reason}; {_ADVICE}")


def find_obstacle(loader: Any) -> str:
    """Say why the batches that are read of a loader would be lost to the training after it; empty if they are not."""
    if isinstance(loader, Iterator):
        return (
            f"each batch of an iterator ({type(loader).__name__}) comes once, and training would not see what is read"
        )
    return next(filter(None, (_find_obstacle(path, value) for path, value in _iter_state(loader))), "")


def _find_obstacle(path: str, value: Any) -> str:
    what = ""
    if isinstance(value, io.IOBase):
        if not value.closed and value.readable() and _tell(value) is None:
            what = "a file without a position to go back to"
    elif isinstance(value, threading.Thread | multiprocessing.process.BaseProcess):
        what = "running beside the loop" if value.is_alive() else ""
    elif isinstance(value, socket.socket | multiprocessing.queues.Queue | multiprocessing.queues.SimpleQueue):
        what = "a connection, of which each message comes once"
    elif isinstance(value, Iterator) and not hasattr(value, "__dict__"):  # attributes can be put back
        what = f"an iterator ({type(value).__name__}), of which each item comes once"
    return what and f"'{path.removeprefix('[0]').lstrip('.')}' is {what}"


@contextmanager
def preserve_state(*objects: Any) -> Iterator[None]:
    """Context in which loaders are read, or functions run; at its end all that can be reached from them is as before.

    Put back are attributes, variables of closures, containers, random generators, positions of files, and arrays of up
    to 16 MiB in all; `find_obstacle` names what cannot be.
    """
    restores = list(_list_restores(objects))
    try:
        yield
    finally:
        for restore in reversed(restores):
            observe("state", restore)


def iterate(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterate over a loader's batches by workers of this reading alone: persistent ones stay as they are."""
    inside = [loader] if isinstance(loader, DataLoader) else [each for _, each in iter_reachable(loader, DataLoader)]
    held = [(vars(each), {name: vars(each)[name] for name in _PERSISTENT}) for each in inside]
    for attributes, _ in held:
        attributes.update(_PERSISTENT)
    try:
        yield from loader
    finally:
        for attributes, saved in held:
            attributes.update(saved)


def list_hooks(model: nn.Module) -> list[Any]:
    """List the hooks of a model's modules, which its copies call, too."""
    attributes = [value for module in model.modules() for name, value in vars(module).items() if "_hooks" in name]
    hooks = [hook for each in attributes if isinstance(each, dict) for hook in each.values()]
    return [hook for hook in hooks if not getattr(hook, "can_be_suspended", False)]  # not those of `watch`


def _iter_state(*objects: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over all that can be reached from objects, and from what the code of loaders' sets reads beside them."""
    sets = [type(getattr(each, "dataset", None)) for each in objects]
    code = [getattr(kind, name, None) for kind in sets for name in ("__getitem__", "__iter__")]
    outside = dict(pair for each in code for pair in find_read_values(each))
    return iter_reachable((*objects, outside), object, stops_at=(_BaseDataLoaderIter,))


def _list_restores(objects: Iterable[Any]) -> Iterator[Restore]:
    """Yield, for all that can be reached from objects, what puts it back."""
    bytes_left = _MAX_BYTES
    for _, value in _iter_state(*objects):
        if isinstance(value, np.ndarray | Tensor):
            size = value.nbytes if _is_copied(value) else 0
            if 0 < size <= bytes_left:
                bytes_left -= size
                yield partial(_restore_numbers, value, value.copy() if isinstance(value, np.ndarray) else value.clone())
        elif isinstance(value, GENERATORS):
            yield partial(set_state, value, get_state(value))
        elif isinstance(value, io.IOBase):
            if (position := None if value.closed else _tell(value)) is not None:
                yield partial(_restore_position, value, position)
        else:
            yield from _list_restores_of_members(value)


def _list_restores_of_members(value: Any) -> Iterator[Restore]:
    if isinstance(value, dict) and len(value) <= _MAX_ITEMS:
        yield partial(_restore_mapping, value, dict(value))
    elif isinstance(value, list | deque | set) and len(value) <= _MAX_ITEMS:
        yield partial(_restore_items, value, list(value))
    elif isinstance(value, bytearray) and len(value) <= _MAX_BYTES:
        yield partial(operator.setitem, value, slice(None), bytes(value))
    if isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            if (contents := get_contents(cell)) is not None:
                yield partial(setattr, cell, "cell_contents", contents)
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict) and not isinstance(value, types.FunctionType | types.MethodType):
        yield partial(_restore_mapping, attributes, dict(attributes))
    for name, item in iter_slots(value):
        yield partial(_restore_slot, value, name, item)


def _is_copied(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind != "O" and value.flags.writeable
    return is_dense(value) and value.device.type == "cpu" and not isinstance(value, nn.Parameter)


def _tell(file: Any) -> int | None:
    """Return the position of a file that can be read; None for one without, such as a pipe."""
    try:
        return int(file.tell()) if file.seekable() else None
    except (OSError, ValueError):
        return None


def _restore_position(file: Any, position: int) -> None:
    if not file.closed:
        file.seek(position)


def _restore_numbers(value: Any, saved: Any) -> None:
    if isinstance(value, np.ndarray):
        if value.tobytes() != saved.tobytes():
            value[...] = saved
    elif not torch.equal(value, saved):
        with torch.no_grad():
            value.copy_(saved)


def _restore_mapping(value: Any, saved: Mapping[Any, Any]) -> None:
    if len(value) != len(saved) or any(
        key is not old or item is not known
        for (key, item), (old, known) in zip(value.items(), saved.items(), strict=True)
    ):
        value.clear()
        value.update(saved)


def _restore_items(value: Any, saved: list[Any]) -> None:
    if len(value) != len(saved) or not all(map(operator.is_, value, saved)):
        value.clear()
        (value.update if isinstance(value, set) else value.extend)(saved)


def _restore_slot(owner: Any, name: str, saved: Any) -> None:
    if getattr(owner, name, None) is not saved:
        object.__setattr__(owner, name, saved)
