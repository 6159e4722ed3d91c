"""Hooks that a logger or a plugin left on the model, which observe or change its activations."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.errors import join_some
from sightline.doctor.finding import FindingLocation
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.dry_run import isolated_copy
from sightline.workbench.check.core.finding import Fault

_PASS_HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}
_STATE_HOOKS = {
    "_state_dict_hooks": "state-dict hook",
    "_state_dict_pre_hooks": "state-dict pre-hook",
    "_load_state_dict_pre_hooks": "hook on loading",
    "_load_state_dict_post_hooks": "hook after loading",
}
_GLOBAL_HOOKS = {
    "_global_forward_hooks": "forward hook",
    "_global_forward_pre_hooks": "forward pre-hook",
    "_global_backward_hooks": "backward hook",
    "_global_backward_pre_hooks": "backward pre-hook",
}
"""Global hooks of `torch.nn.modules.module`, which are called for every module."""
_OWN_PACKAGES = ("torch", "sightline")
"""Packages whose hooks belong to a layer: parametrisations, pruning, and hooks of checks on copies."""


class _Hook(NamedTuple):
    """Hook: its kind, its layer, parameter or `*` (all layers), and the name, file and line of its function."""

    kind: str
    layer: str
    owner: str
    file: str | None
    line: int | None


_FOREIGN = partial(
    check,
    expected="none: observers receive numbers and no model (log.wandb and log.tensorboard need no `watch`)",
    action="remove the hook's handle before training, or remove the call that registers it",
)
"""Declaration of a rule about foreign hooks."""


@_FOREIGN("leftover-hooks", "preflight")
def leftover_hooks(context: Context) -> Fault | None:
    """No module and no parameter has a foreign hook, neither its own nor a global one.

    Finds: Hooks that a logger or a plugin left on the model, which observe or change its activations.

    Outputs must not depend on a foreign hook.
    """
    hooks = find_foreign_hooks(context.built.job.model)
    is_forward = any(hook.kind.startswith("forward") for hook in hooks)
    return _judge_hooks(hooks, _find_changed_outputs(context) if is_forward else [])


@_FOREIGN("hooks-of-loggers", "offline")
def hooks_of_loggers(context: Context) -> Fault | None:
    """The model has no foreign hooks after training: loggers receive numbers and need no hooks.

    Finds: Hooks that a logger or a plugin left on the model, which observe or change its activations.
    """
    return _judge_hooks(find_foreign_hooks(context.built.job.model), [])


def find_foreign_hooks(model: nn.Module) -> list[_Hook]:
    """Find the foreign hooks on a model's modules and parameters, and the foreign global hooks.

    Hooks of torch and of this package, methods of the model's modules, and state-dict hooks defined in the file of the
    module's class (with which torch has old names renamed) are not foreign.
    """
    foreign_hooks = [hook for _, _, hook in _find_global_hooks()]
    foreign_hooks += [hook for _, _, hook in _find_module_hooks(model)]
    for name, parameter in model.named_parameters():
        for slot in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            parameter_hooks: Mapping[int, Any] | None = getattr(parameter, slot, None)
            hooks = [_describe_hook(hook, "gradient hook", name) for hook in tuple((parameter_hooks or {}).values())]
            foreign_hooks += [hook for hook in hooks if _is_foreign(hook)]
    return foreign_hooks


_HookEntry = tuple[dict[int, Any], int, _Hook]
"""Dictionary that contains a hook, its key in it, and the hook's description."""


def _find_global_hooks() -> list[_HookEntry]:
    slots = ((getattr(torch.nn.modules.module, slot), kind) for slot, kind in _GLOBAL_HOOKS.items())
    entries = [(hooks, key, _describe_hook(hook, kind, "*")) for hooks, kind in slots for key, hook in hooks.items()]
    return [entry for entry in entries if _is_foreign(entry[2])]


def _find_module_hooks(model: nn.Module) -> list[_HookEntry]:
    modules = set(model.modules())
    entries = []
    for name, module in model.named_modules():
        for slot, kind in {**_PASS_HOOKS, **_STATE_HOOKS}.items():
            hooks = getattr(module, slot, {})
            for key, hook in hooks.items():
                described = _describe_hook(hook, kind, name)
                is_method = getattr(_unwrap(hook), "__self__", None) in modules
                is_in_class_file = slot in _STATE_HOOKS and described.file == _get_class_file(module)
                if _is_foreign(described) and not is_method and not is_in_class_file:
                    entries.append((hooks, key, described))
    return entries


def _is_foreign(hook: _Hook) -> bool:
    return hook.owner.split(".")[0] not in _OWN_PACKAGES


def _get_class_file(module: nn.Module) -> str:
    return str(getattr(sys.modules.get(type(module).__module__), "__file__", ""))


def _unwrap(hook: Any) -> Any:
    while isinstance(hook, functools.partial | torch.nn.modules.module._WrappedHook):
        hook = hook.func if isinstance(hook, functools.partial) else hook.hook
    return hook


def _describe_hook(hook: Any, kind: str, name: str) -> _Hook:
    function = _unwrap(hook)
    function = getattr(function, "__func__", function)
    if not inspect.isroutine(function):
        function = type(function)
    owner = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
    code = getattr(function, "__code__", None)
    file, line = (None, None) if code is None else (code.co_filename, code.co_firstlineno)
    return _Hook(kind, name, owner, file, line)


def _find_changed_outputs(context: Context) -> list[str]:
    """Return the outputs that change without the hooks, in evaluation mode, on the samples of the dry run."""
    if not context.dry_run.is_sound:
        return []
    job, batch, device = context.built.job, context.dry_run.batch, context.world.device
    with_hooks, without = isolated_copy(job.model).eval(), isolated_copy(job.model).eval()
    with torch.no_grad(), job.precision.autocast(device):
        outputs = dict(_iter_tensors(job.task.predict(with_hooks, batch)))
        with _remove_foreign_hooks(without):
            outputs_without = dict(_iter_tensors(job.task.predict(without, batch)))
    return [
        name
        for name, value in outputs.items()
        if name in outputs_without and not torch.equal(value, outputs_without[name])
    ]


def _iter_tensors(outputs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in outputs.items() if isinstance(value, Tensor))


@contextmanager
def _remove_foreign_hooks(model: nn.Module) -> Iterator[None]:
    """Context without foreign hooks; all are restored afterwards, in their order."""
    entries = [*_find_global_hooks(), *_find_module_hooks(model)]
    originals = [(hooks, dict(hooks)) for hooks, _, _ in entries]
    try:
        for hooks, key, _ in entries:
            del hooks[key]
        yield
    finally:
        for hooks, original in originals:
            hooks.clear()
            hooks.update(original)


def _describe_layer(layer: str) -> str:
    return "every module" if layer == "*" else f"'{layer or 'the model'}'"


def _judge_hooks(hooks: list[_Hook], changed: list[str]) -> Fault | None:
    if not hooks:
        return None
    first = hooks[0]
    listed = [f"{hook.kind} {hook.owner} on {_describe_layer(hook.layer)}" for hook in hooks]
    effect = f", and '{changed[0]}' differs with {'it' if len(hooks) == 1 else 'them'}" if changed else ""
    layer = first.layer.strip("*") or None
    return Fault(
        f"{first.owner.split('.')[0]} has hooks on the model{effect}",
        where=FindingLocation(file=first.file, line=first.line, layer=layer, config_path="model"),
        severity="error" if changed else "warning",
        causes=("dist.hook", "model.structure" if changed else "dist.logging"),
        measured=join_some(listed, most=3, separator="; "),
        evidence={"hooks": [hook.owner for hook in hooks], "changed": changed},
    )
