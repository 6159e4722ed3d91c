"""Snapshot of what a function holds between its calls, and puts back: variables, defaults, objects and tensors."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sightline.doctor.objects import (
    get_contents,
    get_python_function,
    iter_called_functions,
    iter_reachable,
    list_variables,
)

_MAX_NUMBERS = 2**24
_OF_MODULE = ("_parameters", "_buffers", "_modules")
_STATELESS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type, partial)
Restore = Callable[[], None]


class Snapshot:
    """State that a function, method or callable object can reach, as it is now; `restore` puts back what has changed.

    Covered are globals and outer variables of its code and of the functions that it calls, default arguments, lists,
    dicts and sets, and the numbers of up to 2^24 elements of tensors and arrays; attributes of objects whose class is
    of the package of such a function, or can be reset. Data sets, loaders and `untouched` are not looked into.
    """

    def __init__(self, function: Any, *, untouched: Iterable[object] = ()) -> None:
        skipped = {id(value) for value in untouched}
        called = [*iter_called_functions(get_python_function(function))]
        self._restores = [restore for each in called for restore in _keep_variables(each)]
        roots = [function, [value for each in called for _, value in list_variables(each)]]
        roots += [[each.__defaults__, each.__kwdefaults__] for each in called]

        packages = {each.__module__.partition(".")[0] for each in called}

        def skips(value: object) -> bool:
            if id(value) in skipped or isinstance(value, Dataset | DataLoader | types.ModuleType | type):
                return True
            is_object = not isinstance(value, (*_STATELESS, dict, list, tuple, set, deque)) and hasattr(
                value, "__dict__"
            )
            own = type(value).__module__.partition(".")[0] in packages or hasattr(type(value), "reset")
            return is_object and not own and not isinstance(value, Tensor | np.ndarray)

        num_numbers = 0
        for _, value in iter_reachable(roots, object, skips=skips):
            if isinstance(value, Tensor | np.ndarray):
                num_numbers += value.numel() if isinstance(value, Tensor) else value.size
                if num_numbers > _MAX_NUMBERS:
                    continue
            self._restores += _keep_contents(value)

    def restore(self) -> None:
        """Put back what has changed; what has not is not written to."""
        for restore in self._restores:
            restore()


def _keep_variables(function: types.FunctionType) -> Iterator[Restore]:
    names = [name for name in function.__code__.co_names if name in function.__globals__]
    yield partial(_put_back_items, function.__globals__, {name: function.__globals__[name] for name in names})
    for cell in function.__closure__ or ():
        yield partial(_put_back_cell, cell, get_contents(cell))


def _put_back_items(variables: dict[str, Any], kept: dict[str, Any]) -> None:
    for name, value in kept.items():
        if variables.get(name) is not value:
            variables[name] = value


def _put_back_cell(cell: types.CellType, kept: Any) -> None:
    if kept is not None and get_contents(cell) is not kept:
        cell.cell_contents = kept


def _keep_contents(value: object) -> Iterator[Restore]:
    if isinstance(value, Tensor):
        if type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_meta:
            yield partial(_put_back_tensor, value, value.detach().clone())
    elif isinstance(value, np.ndarray):
        if value.dtype != object and value.flags.writeable:
            yield partial(_put_back_array, value, value.copy())
    elif isinstance(value, dict):
        yield partial(_put_back_dict, value, dict(value))
    elif isinstance(value, set):
        yield partial(_put_back_set, value, set(value))
    elif isinstance(value, list | deque):
        yield partial(_put_back_sequence, value, list(value))
    elif not isinstance(value, _STATELESS) and isinstance(attributes := getattr(value, "__dict__", None), dict):
        yield partial(_put_back_dict, attributes, dict(attributes))
        if isinstance(value, nn.Module):
            members = [attributes[name] for name in _OF_MODULE if isinstance(attributes.get(name), dict)]
            yield from (partial(_put_back_dict, each, dict(each)) for each in members)


def _put_back_tensor(tensor: Tensor, kept: Tensor) -> None:
    data = tensor.detach()
    if data.shape == kept.shape and not torch.equal(data, kept):
        tensor.data.copy_(kept)


def _put_back_array(array: np.ndarray, kept: np.ndarray) -> None:
    if array.shape == kept.shape and array.tobytes() != kept.tobytes():
        array[...] = kept


def _put_back_dict(mapping: dict[Any, Any], kept: dict[Any, Any]) -> None:
    if len(mapping) != len(kept) or any(mapping.get(key) is not value for key, value in kept.items()):
        dict.clear(mapping)
        dict.update(mapping, kept)


def _put_back_set(items: set[Any], kept: set[Any]) -> None:
    if items != kept:
        items.clear()
        items.update(kept)


def _put_back_sequence(items: list[Any] | deque[Any], kept: list[Any]) -> None:
    if len(items) != len(kept) or any(one is not other for one, other in zip(items, kept, strict=True)):
        items.clear()
        items.extend(kept)
