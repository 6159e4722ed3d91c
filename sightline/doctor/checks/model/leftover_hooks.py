"""Hooks on the model that a logger or a plugin left there, which see or change what flows through it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.doctor.context import Check, Context, check
from sightline.doctor.core.dry_run import isolated_copy
from sightline.doctor.core.finding import Finding, FindingLocation

__all__ = ["hooks_of", "hooks_of_loggers", "leftover_hooks"]

_OF_PASSES = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}
_OF_STATES = {
    "_state_dict_hooks": "state-dict hook",
    "_state_dict_pre_hooks": "state-dict pre-hook",
    "_load_state_dict_pre_hooks": "hook on loading",
    "_load_state_dict_post_hooks": "hook after loading",
}
_EVERYWHERE = {
    "_global_forward_hooks": "forward hook",
    "_global_forward_pre_hooks": "forward pre-hook",
    "_global_backward_hooks": "backward hook",
    "_global_backward_pre_hooks": "backward pre-hook",
}
"""What `torch.nn.modules.module` holds for every module there is."""
_OWN = ("torch", "sightline")
"""Packages whose hooks belong to a layer: parametrisations, pruning, and what checks put on copies."""


class _Hook(NamedTuple):
    """A hook: of which kind, on which layer, parameter or (`*`) all layers, and where its function stands."""

    kind: str
    layer: str
    owner: str
    file: str | None
    line: int | None


@check("G37", "leftover-hooks", "preflight")
def leftover_hooks(context: Context) -> list[Finding]:
    """No module and no parameter has a hook that is not a layer's own, by itself or with all others.

    Where one has, outputs must not hang on it.
    """
    hooks = hooks_of(context.built.job.model)
    if not hooks:
        return []
    changed = _changed(context) if any(hook.kind.startswith("forward") for hook in hooks) else []
    return [_of_hooks(leftover_hooks, hooks, changed)]


@check("G37", "hooks-of-loggers", "offline")
def hooks_of_loggers(context: Context) -> list[Finding]:
    """After a training its model has no hooks either: loggers receive numbers, and need none."""
    hooks = hooks_of(context.built.job.model)
    return [_of_hooks(hooks_of_loggers, hooks, [])] if hooks else []


def hooks_of(model: nn.Module) -> list[_Hook]:
    """The hooks on a model's modules and parameters, and on all there are, that are not its own.

    Its own are those of torch and of this package, methods of its modules, and for what is saved and loaded functions
    that stand in the file of the module's class: how torch would have old names renamed.
    """
    found = [hook for _, _, hook in _foreign_everywhere()]
    found += [hook for _, _, hook in _foreign_on_modules(model)]
    for name, parameter in model.named_parameters():
        for slot in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            held: Mapping[int, Any] | None = getattr(parameter, slot, None)
            hooks = [_described(hook, "gradient hook", name) for hook in tuple((held or {}).values())]
            found += [hook for hook in hooks if _is_of_others(hook)]
    return found


_Held = tuple[dict[int, Any], int, _Hook]
"""Where a hook is held, under which key, and what it is."""


def _foreign_everywhere() -> list[_Held]:
    slots = ((getattr(torch.nn.modules.module, slot), what) for slot, what in _EVERYWHERE.items())
    found = [(held, key, _described(hook, what, "*")) for held, what in slots for key, hook in held.items()]
    return [each for each in found if _is_of_others(each[2])]


def _foreign_on_modules(model: nn.Module) -> list[_Held]:
    modules = set(model.modules())
    found = []
    for name, module in model.named_modules():
        for slot, what in {**_OF_PASSES, **_OF_STATES}.items():
            held = getattr(module, slot, {})
            for key, hook in held.items():
                described = _described(hook, what, name)
                is_method = getattr(_unwrapped(hook), "__self__", None) in modules
                is_beside = slot in _OF_STATES and described.file == _file_of(module)
                if _is_of_others(described) and not is_method and not is_beside:
                    found.append((held, key, described))
    return found


def _is_of_others(hook: _Hook) -> bool:
    return hook.owner.split(".")[0] not in _OWN


def _file_of(module: nn.Module) -> str:
    return str(getattr(sys.modules.get(type(module).__module__), "__file__", ""))


def _unwrapped(hook: Any) -> Any:
    while isinstance(hook, functools.partial | torch.nn.modules.module._WrappedHook):
        hook = hook.func if isinstance(hook, functools.partial) else hook.hook
    return hook


def _described(hook: Any, what: str, name: str) -> _Hook:
    function = _unwrapped(hook)
    function = getattr(function, "__func__", function)
    if not inspect.isroutine(function):
        function = type(function)
    owner = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
    code = getattr(function, "__code__", None)
    file, line = (None, None) if code is None else (code.co_filename, code.co_firstlineno)
    return _Hook(what, name, owner, file, line)


def _changed(context: Context) -> list[str]:
    """The outputs that are other bits without the hooks, in evaluation mode, on the samples of the rehearsal."""
    if not context.dry_run.is_sound:
        return []
    job, batch, device = context.built.job, context.dry_run.batch, context.world.device
    with_hooks, without = isolated_copy(job.model).eval(), isolated_copy(job.model).eval()
    with torch.no_grad(), job.precision.autocast(device):
        ours = dict(_tensors(job.task.predict(with_hooks, batch)))
        with _without_foreign(without):
            plain = dict(_tensors(job.task.predict(without, batch)))
    return [name for name, value in ours.items() if name in plain and not torch.equal(value, plain[name])]


def _tensors(outputs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in outputs.items() if isinstance(value, Tensor))


@contextmanager
def _without_foreign(model: nn.Module) -> Iterator[None]:
    """Inside, no foreign hook is called; afterwards all are held as they were, in their order."""
    found = [*_foreign_everywhere(), *_foreign_on_modules(model)]
    kept = [(held, dict(held)) for held, _, _ in found]
    try:
        for held, key, _ in found:
            del held[key]
        yield
    finally:
        for held, before in kept:
            held.clear()
            held.update(before)


def _name_of_layer(layer: str) -> str:
    return "every module there is" if layer == "*" else f"'{layer or 'the model'}'"


def _of_hooks(check: Check, hooks: list[_Hook], changed: list[str]) -> Finding:
    first = hooks[0]
    listed = "; ".join(f"{hook.kind} {hook.owner} on {_name_of_layer(hook.layer)}" for hook in hooks[:3])
    more = f" and {len(hooks) - 3} more" if len(hooks) > 3 else ""
    effect = f", and '{changed[0]}' is another with {'it' if len(hooks) == 1 else 'them'}" if changed else ""
    return check.finding(
        FindingLocation(file=first.file, line=first.line, layer=first.layer.strip("*") or None, config_path="model"),
        f"{first.owner.split('.')[0]} has hooks on the model{effect}",
        severity="error" if changed else "warning",
        causes=("dist.hook", "model.structure" if changed else "dist.logging"),
        measured=f"{listed}{more}",
        expected="none: observers receive numbers and no model (log.wandb and log.tensorboard need no `watch`)",
        action="remove the hook's handle before training, or take the call that registers it out",
        evidence={"hooks": [hook.owner for hook in hooks], "changed": changed},
    )
