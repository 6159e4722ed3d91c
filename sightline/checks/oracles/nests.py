"""Nests of tensors, each tensor exchanged for another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["float32", "float64", "kept", "mapped", "with_history"]


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of mappings, lists, tuples and dataclasses with `change` of every tensor; all else as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: mapped(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: mapped(getattr(value, f.name), change) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **changed)
    return value


def kept(tensor: Tensor) -> Tensor:
    """A copy that later writing does not change, without a history."""
    return tensor.detach().clone()


def float64(tensor: Tensor) -> Tensor:
    """A copy, of floating numbers in float64, without a history."""
    return kept(tensor).double() if tensor.is_floating_point() else kept(tensor)


def float32(tensor: Tensor) -> Tensor:
    """A copy, of floating numbers in float32, without a history."""
    return kept(tensor).float() if tensor.is_floating_point() else kept(tensor)


def with_history(tensor: Tensor) -> Tensor:
    """A copy of floating numbers that gradients go through, so that a layer may write into what it is given."""
    return tensor.clone() if tensor.is_floating_point() else tensor
