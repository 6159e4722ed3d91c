"""Result of the oracles for one kind of layer; functions applied to every tensor; a stand-in for a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.contract import pytree

FORWARD = 1e-3
"""Maximum error of a float32 output against that of the known type, relative to the largest value or 1."""
GRADIENT = 1e-3
"""Maximum relative error of a gradient against finite differences; whole models stay below 1e-4."""


@dataclass(frozen=True)
class OracleResult:
    """Errors of a kind of layer against its oracles; None for what was not compared.

    `kind` is the type and arguments, `place` the first such module, `count` the number of modules, `weakest` the tensor
    with the largest gradient error. `declared` names surrogate gradients, which are not compared; `is_torch` tells of a
    layer with torch's own code.
    """

    kind: str
    place: str
    count: int = 1
    forward: float | None = None
    gradient_error: float | None = None
    weakest: str = ""
    declared: tuple[str, ...] = ()
    is_torch: bool = False
    note: str = ""
    file: tuple[str | None, int | None] = (None, None)

    @property
    def verdict(self) -> str:
        """`wrong`, `declared` (a surrogate gradient), `checked`, `torch's` (its own code) or `not checked`."""
        if self.is_wrong_forward or self.is_wrong_backward:
            return "wrong"
        if self.declared or self.is_torch:
            return "declared" if self.declared else "torch's"
        return "not checked" if self.gradient_error is None else "checked"

    @property
    def is_wrong_forward(self) -> bool:
        return self.forward is not None and not self.forward <= FORWARD

    @property
    def is_wrong_backward(self) -> bool:
        return self.gradient_error is not None and not self.gradient_error <= GRADIENT


def class_location(cls: Any) -> tuple[str | None, int | None]:
    """Return the file and first line of a class; None for classes of installed libraries."""
    try:
        file, line = inspect.getsourcefile(cls), inspect.getsourcelines(cls)[1]
    except (OSError, TypeError):
        return None, None
    return (file, line) if file and "site-packages" not in Path(file).parts else (None, None)


def tree_map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to every tensor of a nested container; other values stay unchanged."""
    return pytree.tree_map(value, lambda _, tensor: change(tensor))


def clone_detached(tensor: Tensor) -> Tensor:
    """Copy a tensor without its autograd history; later in-place changes do not affect the copy."""
    return tensor.detach().clone()


def float64(tensor: Tensor) -> Tensor:
    """Copy a tensor without its autograd history; floating-point tensors become float64."""
    return clone_detached(tensor).double() if tensor.is_floating_point() else clone_detached(tensor)


def with_history(tensor: Tensor) -> Tensor:
    """Clone a floating-point tensor with its autograd history, so that a layer may modify it in place."""
    return tensor.clone() if tensor.is_floating_point() else tensor
