"""Trees of tensors: nested mappings, lists, tuples and dataclasses in samples, batches, arguments and results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def tree_leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Iterate over the tensors of a tree, each with its path: `logits`, `1.points`."""
    if isinstance(value, Tensor):
        yield path, value
        return
    for name, item in tree_children(value):
        yield from tree_leaves(item, join_path(path, name))


def dense_leaves(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the tensors of a tree whose numbers can be read, each with its path, as `is_dense` tells them."""
    return ((path, tensor) for path, tensor in tree_leaves(value) if is_dense(tensor))


def is_dense(tensor: Tensor) -> bool:
    """Return True for a tensor with a number in memory for each of its places.

    Sparse, nested and quantised tensors have none, nor those of lazy modules, of the meta device, inside of a transform
    of torch.func, and of subclasses that wrap others, as a tensor that is spread over processes.
    """
    return (
        not is_lazy(tensor)
        and not is_functorch_wrapped_tensor(tensor)
        and tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)
        and not is_traceable_wrapper_subclass(tensor)
    )


def tree_map(value: Any, function: Callable[[str, Tensor], Any], path: str = "") -> Any:
    """Replace every tensor of a tree by `function(path, tensor)`; other values stay as they are."""
    if isinstance(value, Tensor):
        return function(path, value)
    fixed = {f.name for f in dataclasses.fields(value) if not f.init} if dataclasses.is_dataclass(value) else set()
    changed = {
        name: tree_map(item, function, join_path(path, name))
        for name, item in tree_children(value)
        if name not in fixed
    }
    if isinstance(value, Mapping):
        return type(value)(zip(value, changed.values(), strict=True))  # type: ignore[call-arg]
    if isinstance(value, list | tuple):
        return type(value)(*changed.values()) if hasattr(value, "_fields") else type(value)(changed.values())
    return dataclasses.replace(value, **changed) if changed else value


def tree_cast(value: Any, dtype: torch.dtype) -> Any:
    """Convert the floating-point tensors of a tree to a number format; other values stay as they are."""
    return tree_map(value, lambda _, tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def is_float(value: object) -> TypeGuard[Tensor]:
    """Return True for a floating-point tensor."""
    return isinstance(value, Tensor) and value.is_floating_point()


def tree_children(value: Any) -> list[tuple[str, Any]]:
    """List the children of a tree node, with names as text; empty for a leaf."""
    if isinstance(value, Mapping):
        return [(str(name), item) for name, item in value.items()]
    if isinstance(value, list | tuple):
        return [(str(index), item) for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def join_path(path: str, name: str) -> str:
    """Join the path of a node and the name of its child."""
    return f"{path}.{name}" if path else name


class ReadTrackingDict(dict[str, Any]):
    """Dictionary that records which of its keys were read."""

    def __init__(self, items: Mapping[str, Any]) -> None:
        super().__init__(items)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        self.read.update(super().keys())
        return super().__iter__()

    def items(self) -> Any:
        self.read.update(super().keys())
        return super().items()

    def values(self) -> Any:
        self.read.update(super().keys())
        return super().values()
