"""Traversal of an object's attributes and containers: stored arrays, generators, modules."""

from __future__ import annotations

import functools
import gc
import inspect
import logging
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Kind = TypeVar("Kind")

_MAX_OBJECTS = 20_000
_MAX_ELEMENTS = 4_096
GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_OWN_REFERENCES = 3
"""References to the variables of a call that nobody else looks at: of the call, of a name, of an argument."""
_HELD = ("_parameters", "_buffers", "_modules")
_LEAVES = (
    *(Tensor, np.ndarray, str, bytes, bytearray, int, float, complex, type, types.ModuleType, type(None)),
    logging.Logger,
)


def iter_reachable(
    root: object,
    kind: type[Kind] | tuple[type[Kind], ...],
    *,
    stops_at: tuple[type, ...] = (),
    skips: Callable[[object], bool] = lambda value: False,
) -> Iterator[tuple[str, Kind]]:
    """Yield the path and the object for every object of a kind reachable from `root`, once; evaluates no property.

    Follows attributes, slots, lists, tuples, sets, mappings, closures, partial functions and bound methods, up to the
    first 4,096 elements of a container and 20,000 objects in total. Objects of the types `stops_at`, and those of which
    `skips` is true, are not entered.
    """
    visited: dict[int, object] = {}  # keeps what is visited alive, so that no id is used twice
    stack: list[tuple[str, object]] = [("", root)]
    while stack and len(visited) < _MAX_OBJECTS:
        path, value = stack.pop()
        if id(value) in visited or isinstance(value, stops_at) or skips(value):
            continue
        visited[id(value)] = value
        if isinstance(value, kind):
            yield path, value
        stack.extend(reversed(list(_iter_members(value, path))))


def find_alive(kind: type[Kind]) -> list[Kind]:
    """Return the objects of a kind that this process has, wherever they are; the search looks at each object once."""
    return [value for value in gc.get_objects() if issubclass(type(value), kind)]


def find_generators(*roots: object) -> list[Any]:
    """Return the random generators that are reachable from these objects."""
    return [generator for _, generator in iter_reachable(roots, GENERATORS)]


def get_python_function(function: Any) -> types.FunctionType | None:
    """Return the function of Python behind a method, a partial function, a wrapper, or an object that is called."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(getattr(function, "__func__", function))
    if not isinstance(function, types.FunctionType):
        function = inspect.getattr_static(type(function), "__call__", None)
    return function if isinstance(function, types.FunctionType) else None


def iter_called_functions(function: Any, *, depth: int = 3) -> Iterator[types.FunctionType]:
    """Yield a function of Python, and those that its code reads by a global or outer name; of other kinds nothing."""
    function = get_python_function(function)
    if function is None:
        return
    yield function
    for _, value in list_variables(function) if depth > 1 else ():
        if isinstance(value, types.FunctionType):
            yield from iter_called_functions(value, depth=depth - 1)


def list_variables(function: types.FunctionType) -> list[tuple[str, Any]]:
    """List the name and value of each global and outer variable that the code of a function reads."""
    code, outer = function.__code__, function.__closure__ or ()
    values = {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    values |= {name: get_contents(cell) for name, cell in zip(code.co_freevars, outer, strict=True)}
    return [*values.items()]


def find_read_values(function: Any, *, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each global and outer variable that a function's code reads, and those it calls."""
    for called in iter_called_functions(function, depth=depth):
        yield from (
            (name, value) for name, value in list_variables(called) if not isinstance(value, types.FunctionType)
        )


def find_read_generators(loader: Any) -> list[Any]:
    """Return the random generators of a loader, its sampler and data set, and those that the set's code reads."""
    method = getattr(type(getattr(loader, "dataset", None)), "__getitem__", None)
    return find_generators(loader, dict(find_read_values(method)))


@contextmanager
def preserve_generators(generators: Sequence[Any]) -> Iterator[None]:
    """Context that restores the states of these random generators at its end."""
    states = [get_state(generator) for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            set_state(generator, state)


def _iter_members(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, _LEAVES):
        return
    if isinstance(value, Mapping):
        yield from ((f"{path}[{key!r}]", item) for key, item in _limit(value.items()))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"{path}[{index}]", item) for index, item in _limit(enumerate(value)))
    elif isinstance(value, types.MethodType):
        yield f"{path}.__self__", value.__self__
    elif isinstance(value, functools.partial):
        yield f"{path}.func", value.func
        yield f"{path}.args", (value.args, value.keywords)
    elif isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            contents = get_contents(cell)
            if contents is not None:
                yield f"{path}()", contents
    for name, item in _iter_attributes(value):
        yield f"{path}.{name}".lstrip("."), item


def _limit(items: Any) -> Iterator[Any]:
    return (item for _, item in zip(range(_MAX_ELEMENTS), items, strict=False))


def get_contents(cell: types.CellType) -> object | None:
    """Return the value of a closure's variable; None for one that has no value yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _iter_attributes(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        return
    attributes = dict(getattr(value, "__dict__", {}))
    if isinstance(value, nn.Module):  # its layers and tensors by the names that it has for them
        held = [attributes.pop(name) for name in _HELD if isinstance(attributes.get(name), dict)]
        attributes = {name: item for members in held for name, item in members.items()} | attributes
    yield from attributes.items()
    yield from iter_slots(value)


def iter_slots(value: object) -> Iterator[tuple[str, object]]:
    """Yield the name and the object of each slot that has one."""
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            descriptor = cls.__dict__.get(name)
            if isinstance(descriptor, types.MemberDescriptorType) and hasattr(value, name):
                yield name, getattr(value, name)


def get_state(generator: Any) -> Any:
    """Return the state of a random generator."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState | torch.Generator):
        return generator.get_state()
    return generator.getstate()


def set_state(generator: Any, state: Any) -> None:
    """Set a random generator to a state that `get_state` has returned."""
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState | torch.Generator):
        generator.set_state(state)
    else:
        generator.setstate(state)


def read_rate(group: Mapping[str, Any]) -> float:
    """Return the learning rate of a group of parameters; 1 for an optimiser that chooses its steps itself."""
    rate = group.get("lr")
    return 1.0 if rate is None else float(rate)


def read_variables(frame: types.FrameType) -> dict[str, Any]:
    """Return the variables of a call, and leave no copy of them with it.

    CPython before 3.13 keeps one, in which what the program deletes would live on until the call returns. It stays
    where somebody else holds it, such as a program that has called `locals()`.
    """
    values = frame.f_locals
    variables = {**values}
    is_copy = frame.f_code.co_flags & inspect.CO_OPTIMIZED and type(values) is dict
    if is_copy and sys.getrefcount(values) <= _OWN_REFERENCES:
        values.clear()
    return variables
