"""Gradients that are not derivatives on purpose, such as straight-through: declared by whoever writes them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["find_surrogates", "note_surrogates", "surrogate_gradient"]

Declared = TypeVar("Declared", bound=Callable[..., Any])
_MARK = "surrogate_gradient"
_NOTED: ContextVar[set[str] | None] = ContextVar("noted_surrogates", default=None)


def surrogate_gradient(declared: Declared) -> Declared:
    """Declare that the gradient of a function, of an autograd `Function` or of a module is no derivative on purpose.

    A class, or a module, gets the attribute `surrogate_gradient = True`, which may as well be set by hand.
    """
    if isinstance(declared, type | nn.Module):
        setattr(declared, _MARK, True)
        return declared

    @functools.wraps(declared)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and (noted := _NOTED.get()) is not None:
            noted.add(declared.__qualname__)
        return declared(*args, **kwargs)

    setattr(call, _MARK, True)
    return call  # type: ignore[return-value]


@contextmanager
def note_surrogates() -> Iterator[set[str]]:
    """Inside, the names of declared functions that are called are added to the set."""
    noted: set[str] = set()
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


def find_surrogates(outputs: Iterable[Tensor], parts: Iterable[Any] = ()) -> set[str]:
    """The names of declared parts (modules, or classes), and of declared `Function`s that the outputs came through."""
    found = {_name(part) for part in parts if _is_declared(part)}
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        kind = getattr(node, "_forward_cls", None)
        if kind is not None and _is_declared(kind):
            found.add(_name(kind))
        before = {each for each, _ in node.next_functions if each is not None} - seen
        waiting += before
        seen |= before
    return found


def _is_declared(part: Any) -> bool:
    return getattr(part, _MARK, False) is True


def _name(part: Any) -> str:
    name: str = getattr(part, "__qualname__", type(part).__qualname__)
    return name
