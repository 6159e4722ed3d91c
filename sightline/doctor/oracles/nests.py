"""Nested containers of tensors: functions applied to every tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sightline import pytree

__all__ = ["clone_detached", "float32", "float64", "tree_map", "with_history"]


def tree_map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to every tensor of a nested container; other values stay unchanged."""
    return pytree.tree_map(value, lambda _, tensor: change(tensor))


def clone_detached(tensor: Tensor) -> Tensor:
    """Copy a tensor without its autograd history; later in-place changes do not affect the copy."""
    return tensor.detach().clone()


def float64(tensor: Tensor) -> Tensor:
    """Copy a tensor without its autograd history; floating-point tensors become float64."""
    return clone_detached(tensor).double() if tensor.is_floating_point() else clone_detached(tensor)


def float32(tensor: Tensor) -> Tensor:
    """Copy a tensor without its autograd history; floating-point tensors become float32."""
    return clone_detached(tensor).float() if tensor.is_floating_point() else clone_detached(tensor)


def with_history(tensor: Tensor) -> Tensor:
    """Clone a floating-point tensor with its autograd history, so that a layer may modify it in place."""
    return tensor.clone() if tensor.is_floating_point() else tensor
