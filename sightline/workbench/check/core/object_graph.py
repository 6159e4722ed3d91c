"""Traversal of an object's attributes and containers: stored arrays, generators, modules.

Last operation of a tensor in the autograd graph, and the range of its values.
"""

from __future__ import annotations

import functools
import inspect
import math
import random
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Kind = TypeVar("Kind")

_MAX_OBJECTS = 20_000
_MAX_ELEMENTS = 4_096
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_LEAVES = (Tensor, np.ndarray, str, bytes, bytearray, int, float, complex, type, types.ModuleType, type(None))


def iter_reachable(root: object, kind: type[Kind] | tuple[type[Kind], ...]) -> Iterator[tuple[str, Kind]]:
    """Yield the path and the object for every object of a kind reachable from `root`, once; evaluates no property.

    Follows attributes, slots, lists, tuples, sets, mappings, closures, partial functions and bound methods, up to the
    first 4,096 elements of a container and 20,000 objects in total.
    """
    visited: dict[int, object] = {}  # keeps what is visited alive, so that no id is used twice
    stack: list[tuple[str, object]] = [("", root)]
    while stack and len(visited) < _MAX_OBJECTS:
        path, value = stack.pop()
        if id(value) in visited:
            continue
        visited[id(value)] = value
        if isinstance(value, kind):
            yield path, value
        stack.extend(reversed(list(_iter_members(value, path))))


def find_generators(*roots: object) -> list[Any]:
    """Return the random generators that are reachable from these objects."""
    return [generator for _, generator in iter_reachable(roots, _GENERATORS)]


def find_named_generators(root: object) -> list[tuple[str, Any]]:
    """Return the path and the object of the random generators that are reachable from an object."""
    return list(iter_reachable(root, _GENERATORS))


def find_read_values(function: Any, *, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each global and outer variable that a function's code reads, and those it calls."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    if not isinstance(function, types.FunctionType):
        return
    code, outer = function.__code__, function.__closure__ or ()
    values = {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    values |= {name: _get_contents(cell) for name, cell in zip(code.co_freevars, outer, strict=True)}
    for name, value in values.items():
        if not isinstance(value, types.FunctionType):
            yield name, value
        elif depth > 1:
            yield from find_read_values(value, depth=depth - 1)


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
            contents = _get_contents(cell)
            if contents is not None:
                yield f"{path}()", contents
    for name, item in _iter_attributes(value):
        yield f"{path}.{name}".lstrip("."), item


def _limit(items: Any) -> Iterator[Any]:
    return (item for _, item in zip(range(_MAX_ELEMENTS), items, strict=False))


def _get_contents(cell: types.CellType) -> object | None:
    try:
        return cell.cell_contents
    except ValueError:  # a closure variable that has no value yet
        return None


def _iter_attributes(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        return
    yield from list(getattr(value, "__dict__", {}).items())
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


_MAX_STEPS = 64
_SHAPE_OPERATIONS = frozenset(
    "View UnsafeView ReshapeAlias Permute Transpose T Unsqueeze Squeeze Clone ToCopy Slice Select Expand Alias "
    "Contiguous AsStrided Narrow Flip MoveDim Index".split()
)
"""Operations that move values without changing them."""
_INF = math.inf
_RANGES: dict[str, tuple[float, float]] = {
    "Relu": (0.0, _INF),
    "Threshold": (0.0, _INF),
    "Sigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softmax": (0.0, 1.0),
    "LogSoftmax": (-_INF, 0.0),
    "LogSigmoid": (-_INF, 0.0),
    "Softplus": (0.0, _INF),
    "Exp": (0.0, _INF),
    "Abs": (0.0, _INF),
    "Gelu": (-0.17, _INF),
    "Silu": (-0.2785, _INF),
    "Elu": (-1.0, _INF),
}


def last_operation(tensor: Tensor) -> str:
    """Return the name of the last operation that changed values, such as `Relu`; "" for a tensor without history."""
    return get_node_name(last_node(tensor))


def output_range(operation: str) -> tuple[float, float]:
    """Return the minimum and maximum of an operation's output; infinite if unknown."""
    return _RANGES.get(operation, (-_INF, _INF))


def hidden_outputs(outputs: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of outputs from which other outputs are computed, such as features before logits."""
    last_nodes = {name: last_node(value) for name, value in outputs.items() if isinstance(value, Tensor)}
    ancestors = {name: {*iter_nodes([node])} - {node} for name, node in last_nodes.items()}
    return frozenset(
        name
        for name, node in last_nodes.items()
        if node is not None and any(node in nodes for nodes in ancestors.values())
    )


def iter_nodes(roots: Iterable[Any], *, until: Iterable[Any] = ()) -> Iterator[Any]:
    """Iterate over the nodes of an autograd graph from some on, breadth first, without those of `until`.

    None, as tensors without history have it, is skipped.
    """
    skipped = {None, *until}
    waiting = deque(root for root in dict.fromkeys(roots) if root not in skipped)
    known = skipped.union(waiting)
    while waiting:
        node = waiting.popleft()
        yield node
        for parent, _ in node.next_functions:
            if parent not in known:
                known.add(parent)
                waiting.append(parent)


def last_node(tensor: Tensor) -> Any:
    """Return the node of the last operation that changed values; None for a tensor without history."""
    return skip_shape_operations(tensor.grad_fn)


def skip_shape_operations(node: Any) -> Any:
    """Return the first node, from one of the autograd graph on, that changes values."""
    for _ in range(_MAX_STEPS):
        if node is None or get_node_name(node) not in _SHAPE_OPERATIONS or not node.next_functions:
            break
        node = node.next_functions[0][0]
    return node


def get_node_name(node: Any) -> str:
    """Return a node's name without torch's additions: `SafeSoftmaxBackward0` becomes `Softmax`."""
    if node is None:
        return ""
    plain = node.name().removeprefix("torch::autograd::").partition("Backward")[0]
    return plain.lstrip("_").removeprefix("Safe")
