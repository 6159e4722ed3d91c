"""Nests of tensors, each tensor exchanged for another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sightline import nests

__all__ = ["float32", "float64", "kept", "mapped", "with_history"]


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest with `change` of every tensor; all else as it is."""
    return nests.mapped(value, lambda _, tensor: change(tensor))


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
