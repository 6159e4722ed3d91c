"""Observers that torch's other readers of a program do not see: those that record, copy, save, script or count it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from sightline.instrument import replace_function

_HOOKS = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
}
"""Attributes of a module that hold its hooks of forward passes by number, and those that hold flags of the same."""
_KEYS = getattr(torch._C, "_TorchDispatchModeKey", None)
_RECORDERS = tuple(getattr(_KEYS, name) for name in ("FAKE", "PROXY", "FUNCTIONAL") if hasattr(_KEYS, name))


_count_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)


def is_recorded() -> bool:
    """Return True while torch records a program for a graph: compiles, traces, exports, or runs it without numbers."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return has_modes() and any(torch._C._get_dispatch_mode(key) is not None for key in _RECORDERS)


def has_modes() -> bool:
    """Return True inside of modes that take the place of torch's operators, as those that count operations do."""
    return _count_modes() > 0


def run_unseen(run: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function whose operators no mode of the program sees, nor its functions of torch."""
    if torch._C._len_torch_function_stack():
        with torch._C.DisableTorchFunction():
            return _run_unseen(run, *arguments)
    return _run_unseen(run, *arguments)


def _run_unseen(run: Callable[..., Any], *arguments: Any) -> Any:
    if not has_modes():
        return run(*arguments)
    with _disable_current_modes():
        return run(*arguments)


@contextmanager
def hide_hooks(is_hidden: Callable[[Any], bool]) -> Iterator[None]:
    """Context in which copies, pickles and scripted forms of modules are made without some of their hooks.

    A copy would keep them for ever, a saved module would need their package, and torch compiles hooks that it scripts.
    """

    def reduce(original: Any, module: nn.Module, protocol: Any) -> Any:
        reduced = original(module, protocol)
        if not isinstance(reduced, tuple) or len(reduced) < 3:
            return reduced
        state = reduced[2]
        if isinstance(state, tuple) and state and isinstance(state[0], dict):  # of a class with slots
            state = _remove(state[0], is_hidden), *state[1:]
        return (*reduced[:2], _remove(state, is_hidden) if isinstance(state, dict) else state, *reduced[3:])

    def script(original: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for submodule in module.modules():
                before, attributes = {**vars(submodule)}, vars(submodule)
                after = _remove(before, is_hidden)
                if after is not before:
                    stack.callback(attributes.update, {name: before[name] for name in _list_changed(before, after)})
                    attributes.update(after)
            return original(module, *args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(replace_function(nn.Module, "__reduce_ex__", reduce))
        recursive = getattr(torch.jit, "_recursive", None)  # traces and scripts both go through it
        if hasattr(recursive, "create_script_module"):
            stack.enter_context(replace_function(recursive, "create_script_module", script))
        yield


def _remove(state: dict[str, Any], is_hidden: Callable[[Any], bool]) -> dict[str, Any]:
    """Return attributes of a module without hidden hooks; the same dictionary if there is none."""
    changed: dict[str, Any] = {}
    for name, flags in _HOOKS.items():
        hidden = {number for number, hook in (state.get(name) or {}).items() if is_hidden(hook)}
        for key in (name, *flags) if hidden else ():
            items = (state.get(key) or {}).items()
            changed[key] = OrderedDict((number, item) for number, item in items if number not in hidden)
    return {**state, **changed} if changed else state


def _list_changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name, value in before.items() if after[name] is not value]
