"""Snapshot of all that can be reached from objects of a program: what a reading or a call changes is put back."""

from __future__ import annotations

import io
import operator
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from sightline.contract.pytree import is_dense
from sightline.doctor.attempts import observe
from sightline.doctor.objects import (
    GENERATORS,
    find_read_values,
    get_contents,
    get_state,
    iter_called_functions,
    iter_reachable,
    iter_slots,
    list_variables,
    set_state,
)

_MAX_ITEMS, _MAX_BYTES = 2**20, 2**24
"""Items of a container, and bytes of all arrays together, that are put back."""
_STATELESS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type, partial)
Restore = Callable[[], object]


class Snapshot:
    """State of objects as it is now, which `restore` puts back, as often as it is called.

    Put back are attributes, slots, variables of closures, containers, random generators, positions of files, and arrays
    and tensors of up to 16 MiB in all; parameters of modules are not. What has not changed is not written to.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self._restores: list[Restore] = []
        bytes_left = _MAX_BYTES
        for value in values:
            if isinstance(value, np.ndarray | Tensor):
                size = value.nbytes if _is_copied(value) else 0
                if 0 < size <= bytes_left:
                    bytes_left -= size
                    saved = value.copy() if isinstance(value, np.ndarray) else value.detach().clone()
                    self._restores.append(partial(_restore_numbers, value, saved))
            else:
                self._restores += _list_restores(value)

    @classmethod
    def of_function(cls, function: Any, *, untouched: Iterable[object] = ()) -> Snapshot:
        """Take the state that a function, method or callable object holds between its calls.

        To it belong globals and outer variables of its code and of the functions that it calls, and default arguments;
        of objects those whose class is of the package of such a function, or can be reset. Data sets, loaders and
        `untouched` are not looked into.
        """
        skipped = {id(value) for value in untouched}
        called = [*iter_called_functions(function)]
        packages = {each.__module__.partition(".")[0] for each in called}

        def skips(value: object) -> bool:
            if id(value) in skipped or isinstance(value, Dataset | DataLoader | types.ModuleType | type):
                return True
            containers = (dict, list, tuple, set, deque, Tensor, np.ndarray)
            is_object = hasattr(value, "__dict__") and not isinstance(value, (*_STATELESS, *containers))
            is_own = type(value).__module__.partition(".")[0] in packages or hasattr(type(value), "reset")
            return is_object and not is_own

        roots = [function, *([value for _, value in list_variables(each)] for each in called)]
        roots += [[each.__defaults__, each.__kwdefaults__] for each in called]
        snapshot = cls(value for _, value in iter_reachable(roots, object, skips=skips))
        for each in called:
            read = {name: each.__globals__[name] for name in each.__code__.co_names if name in each.__globals__}
            snapshot._restores += [partial(_restore_variables, each.__globals__, read), *_list_restores(each)]
        return snapshot

    def restore(self) -> None:
        """Put back what has changed; what cannot be put back any more does not keep the rest from it."""
        for restore in reversed(self._restores):
            observe("state", restore)


@contextmanager
def preserve_state(*objects: Any) -> Iterator[None]:
    """Context in which loaders are read, or functions run; at its end all that can be reached from them is as before.

    `loaders.find_obstacle` names what cannot be.
    """
    snapshot = Snapshot(value for _, value in iter_state(*objects))
    try:
        yield
    finally:
        snapshot.restore()


def iter_state(*objects: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over all that can be reached from objects, and from what the code of loaders' sets reads beside them."""
    sets = [type(getattr(each, "dataset", None)) for each in objects]
    code = [getattr(kind, name, None) for kind in sets for name in ("__getitem__", "__iter__")]
    outside = dict(pair for each in code for pair in find_read_values(each))
    return iter_reachable((*objects, outside), object, stops_at=(_BaseDataLoaderIter,))


def tell(file: Any) -> int | None:
    """Return the position of a file that can be read; None for one without, such as a pipe."""
    try:
        return int(file.tell()) if file.seekable() else None
    except (OSError, ValueError):
        return None


def _list_restores(value: Any) -> Iterator[Restore]:
    """Yield what puts an object back that holds no numbers of its own."""
    if isinstance(value, GENERATORS):
        yield partial(set_state, value, get_state(value))
        return
    if isinstance(value, io.IOBase):
        if (position := None if value.closed else tell(value)) is not None:
            yield partial(_restore_position, value, position)
        return
    if isinstance(value, dict) and len(value) <= _MAX_ITEMS:
        yield partial(_restore_mapping, value, dict(value))
    elif isinstance(value, list | deque | set) and len(value) <= _MAX_ITEMS:
        yield partial(_restore_items, value, list(value))
    elif isinstance(value, bytearray) and len(value) <= _MAX_BYTES:
        yield partial(operator.setitem, value, slice(None), bytes(value))
    if isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            if (contents := get_contents(cell)) is not None:
                yield partial(_restore_cell, cell, contents)
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict) and not isinstance(value, _STATELESS):
        yield partial(_restore_mapping, attributes, dict(attributes))
        for held in (attributes.get(name) for name in ("_parameters", "_buffers", "_modules")):
            if isinstance(value, nn.Module) and isinstance(held, dict):
                yield partial(_restore_mapping, held, dict(held))
    for name, item in iter_slots(value):
        yield partial(_restore_slot, value, name, item)


def _is_copied(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind != "O" and value.flags.writeable
    return is_dense(value) and not isinstance(value, nn.Parameter)


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


def _restore_variables(variables: dict[str, Any], saved: Mapping[str, Any]) -> None:
    """Put back some of a module's variables: others may be new."""
    for name, value in saved.items():
        if variables.get(name) is not value:
            variables[name] = value


def _restore_cell(cell: types.CellType, saved: Any) -> None:
    if get_contents(cell) is not saved:
        cell.cell_contents = saved


def _restore_mapping(value: dict[Any, Any], saved: Mapping[Any, Any]) -> None:
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
