"""Hooks before and after the calls of modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

ForwardPreHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]
ForwardHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]


@contextmanager
def module_hooks(
    modules: Iterable[nn.Module], enter: ForwardPreHook, leave: ForwardHook | None = None
) -> Iterator[None]:
    """Context in which every call of these modules begins with `enter(module, args, kwargs)` and ends with `leave`.

    `leave` gets the result as well. A value other than None that either returns replaces the arguments, or the result.
    """
    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        if leave is not None:
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
