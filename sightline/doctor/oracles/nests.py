"""Nests of tensors, each tensor exchanged for another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sightline import pytree

__all__ = ["clone_detached", "float32", "float64", "tree_map", "with_history"]


def tree_map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest with `change` of every tensor; all else as it is."""
    return pytree.tree_map(value, lambda _, tensor: change(tensor))


def clone_detached(tensor: Tensor) -> Tensor:
    """A copy that later writing does not change, without a history."""
    return tensor.detach().clone()


def float64(tensor: Tensor) -> Tensor:
    """A copy, of floating numbers in float64, without a history."""
    return clone_detached(tensor).double() if tensor.is_floating_point() else clone_detached(tensor)


def float32(tensor: Tensor) -> Tensor:
    """A copy, of floating numbers in float32, without a history."""
    return clone_detached(tensor).float() if tensor.is_floating_point() else clone_detached(tensor)


def with_history(tensor: Tensor) -> Tensor:
    """A copy of floating numbers that gradients go through, so that a layer may write into what it is given."""
    return tensor.clone() if tensor.is_floating_point() else tensor
