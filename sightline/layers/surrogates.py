"""Surrogate gradients, like the straight-through estimator (STE), as declared by their authors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Declared = TypeVar("Declared", bound=Callable[..., Any])
_MARK = "surrogate_gradient"
_NOTED: ContextVar[set[str] | None] = ContextVar("noted_surrogates", default=None)


def surrogate_gradient(declared: Declared) -> Declared:
    """Declare the gradient of a function, an autograd `Function` or a module as a surrogate, not the derivative.

    A class, or a module, gets the attribute `surrogate_gradient = True`, which can also be set directly.
    """
    if isinstance(declared, type | nn.Module):
        setattr(declared, _MARK, True)
        return declared

    @functools.wraps(declared)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and (names := _NOTED.get()) is not None:
            names.add(declared.__qualname__)
        return declared(*args, **kwargs)

    setattr(call, _MARK, True)
    return call  # type: ignore[return-value]


@contextmanager
def note_surrogates() -> Iterator[set[str]]:
    """Context that collects the names of declared functions that are called."""
    names: set[str] = set()
    token = _NOTED.set(names)
    try:
        yield names
    finally:
        _NOTED.reset(token)


def find_surrogates(outputs: Iterable[Tensor], parts: Iterable[Any] = ()) -> set[str]:
    """Find declared modules and classes, and declared `Function`s in the graph of the outputs; return their names."""
    names = {_get_name(part) for part in parts if _is_declared(part)}
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    visited = set(waiting)
    while waiting:
        node = waiting.pop()
        kind = getattr(node, "_forward_cls", None)
        if kind is not None and _is_declared(kind):
            names.add(_get_name(kind))
        next_nodes = {next_node for next_node, _ in node.next_functions if next_node is not None} - visited
        waiting += next_nodes
        visited |= next_nodes
    return names


def _is_declared(part: Any) -> bool:
    return getattr(part, _MARK, False) is True


def _get_name(part: Any) -> str:
    name: str = getattr(part, "__qualname__", type(part).__qualname__)
    return name
