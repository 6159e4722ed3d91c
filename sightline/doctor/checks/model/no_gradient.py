"""Parameters that no gradient reaches, that no optimiser holds, or that the model does not register."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sightline.data.loading.sample_arrays import array_leaves
from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import DryRun, isolated_copy
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.object_graph import iter_reachable
from sightline.engine.step import single_batch_step

__all__ = ["no_gradient"]

_SHOWN = 10
_INTERNAL = frozenset(vars(nn.Module()))


@check("G10", "no-gradient", "preflight")
def no_gradient(context: Context) -> list[Finding]:
    """Each parameter that is not frozen on purpose is registered, gets a gradient, and is in the optimiser."""
    coverage = list(_of_coverage(context))
    rehearsal = context.dry_run
    if not rehearsal.is_sound:
        return coverage
    reach = [*_of_reach(context), *_of_losses(context)]
    return [*coverage, *_of_registration(context), *_of_terms(context), *reach, *_of_intent(context)]


def _of_coverage(context: Context) -> Iterator[Finding]:
    """Optimiser and model, with the losses that learn, hold the same trainable parameters."""
    job = context.built.job
    trained = job.trained_module
    held = {id(parameter) for group in job.optimizer.param_groups for parameter in group["params"]}
    own = {id(parameter) for parameter in trained.parameters()}
    trainable = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    left_out = [name for name, parameter in trainable.items() if id(parameter) not in held]
    foreign = len(held - own)
    if not left_out and not foreign:
        return
    yield _of_parameters(
        context,
        left_out,
        f"{len(left_out)} trainable parameter(s) in no group of the optimiser"
        if left_out
        else f"the optimiser holds {foreign} parameters that are not the model's",
        causes=("optim.param_coverage", "model.frozen_unintended", "model.unregistered"),
        at="optimizer",
        measured=f"{len(trainable) - len(left_out)} of {len(trainable)} trainable parameters are held"
        + (f"; {foreign} that it holds belong to another object" if foreign else ""),
        expected="each trainable parameter in exactly one group, unless optimizer.frozen names it",
        action="make the optimiser from the model that trains, and last; name in optimizer.frozen what is to rest",
    )


def _of_registration(context: Context) -> Iterator[Finding]:
    """Parameters in plain lists, dicts or objects: they get gradients, but nobody trains, moves or saves them."""
    model = context.dry_run.model
    known = {id(parameter) for parameter in model.parameters()}
    for name, module in model.named_modules():
        held = {key: value for key, value in vars(module).items() if key not in _INTERNAL}
        paths = [
            path
            for path, value in iter_reachable(held, nn.Parameter)
            if id(value) not in known and value.requires_grad and value.grad is not None
        ]
        if not paths:
            continue
        known |= {id(value) for _, value in iter_reachable(held, nn.Parameter)}
        attribute = paths[0].split("]", 1)[0].strip("['")
        yield _of_parameters(
            context,
            [f"{name}.{attribute}".lstrip(".")],
            f"'{attribute}' holds layers that the model does not register, so they are never trained",
            layer=name or type(module).__name__,
            causes=("model.unregistered", "optim.param_coverage"),
            at="model",
            measured=f"{len(paths)} parameters in a {type(held.get(attribute)).__name__} get gradients, and are not "
            "among model.parameters()",
            expected="every parameter that takes part is registered",
            action=f"make '{attribute}' an nn.ModuleList, nn.ModuleDict or nn.ParameterList",
        )


def _of_terms(context: Context) -> Iterator[Finding]:
    """A loss term that counts and, at either end of the run, weighs something, but depends on no parameter."""
    rehearsal, job = context.dry_run, context.built.job
    first, last = job.loss_weights_at(0), job.loss_weights_at(job.num_steps)
    for name, term in rehearsal.terms.items():
        is_counted = float(rehearsal.counts[name]) > 0 and max(first[name], last[name]) > 0
        if not is_counted or term.requires_grad or _is_frozen_on_purpose(context, name):
            continue
        yield _of_parameters(
            context,
            [],
            f"the loss '{name}' gives no gradient: it is cut off from the model",
            causes=("loss.detached", "model.frozen_unintended"),
            at=context.loss_path(name),
            measured=f"sum {float(term):.6g} over a count of {float(rehearsal.counts[name]):g}, requires_grad False",
            expected="a sum that depends on the model's parameters",
            action="look for detach(), no_grad, numpy() or argmax between the model's outputs and this loss",
        )


def _of_reach(context: Context) -> Iterator[Finding]:
    """Trainable parameters without a gradient in any of the tries, by what keeps it from them."""
    rehearsal, job = context.dry_run, context.built.job
    is_detached = any(True for _ in _of_terms(context))
    held = _names_held(context)
    silent = [
        name
        for name, parameter in job.model.named_parameters()
        if parameter.requires_grad and rehearsal.gradients[name] == "none" and name not in held
    ]
    if not silent or (is_detached and len(silent) == len(rehearsal.gradients)):
        return
    idle_outputs = _idle_outputs(rehearsal)
    from_idle = _reached(context, silent, idle_outputs) if idle_outputs else set()
    from_read = _reached(context, silent, rehearsal.output_reads) - from_idle
    executed = {name for name in silent if _owner(name) in rehearsal.executed}
    groups = (
        ([name for name in silent if name in from_idle], "unused"),
        ([name for name in silent if name in from_read], "detached"),
        ([name for name in silent if name not in from_idle | from_read and name not in executed], "idle"),
        ([name for name in silent if name not in from_idle | from_read and name in executed], "cut"),
    )
    for names, reason in groups:
        if names:
            yield _of_silent(context, names, reason, idle_outputs)


def _of_losses(context: Context) -> Iterator[Finding]:
    """Parameters of losses that no gradient of the rehearsed step reached."""
    job = context.built.job
    held = tuple(f"{entry['modules']}." for entry in job.frozen)
    silent = [
        name
        for name, parameter in job.trained_module.named_parameters()
        if job.losses.owner(name) and parameter.requires_grad and parameter.grad is None and not name.startswith(held)
    ]
    if silent:
        yield _of_parameters(
            context,
            silent,
            f"{len(silent)} parameter(s) of losses get no gradient",
            causes=("loss.detached", "model.structure"),
            at="losses",
            measured=f"no gradient in {context.dry_run.num_tries} micro-batches",
            expected="the loss depends on each of its parameters",
            action="use them in the loss's forward, or make them buffers if they are constants",
        )


def _of_silent(context: Context, names: Sequence[str], reason: str, idle_outputs: set[str]) -> Finding:
    is_alone = context.world.size == 1
    unused = ("model.structure", "dist.unused_params") if is_alone else ("dist.unused_params", "model.structure")
    rehearsal = context.dry_run
    causes, detail, action = {
        "unused": (
            unused,
            f"only the outputs {', '.join(sorted(idle_outputs))} depend on them, which no loss reads",
            "give these outputs a loss, or take the head out; several processes would wait for its gradients",
        ),
        "detached": (
            ("loss.detached", "dist.unused_params"),
            "a loss reads outputs that depend on them, but its value does not",
            "look for detach(), no_grad or argmax between these outputs and the loss",
        ),
        "idle": (
            ("model.structure", "dist.unused_params"),
            "their modules never ran",
            "call these modules in forward, take them out, or declare them in optimizer.frozen",
        ),
        "cut": (
            ("model.frozen_unintended", "model.structure", "dist.unused_params"),
            "their modules ran, but no output depends on them",
            "look for detach(), no_grad or .data in the model, or declare them in optimizer.frozen",
        ),
    }[reason]
    return _of_parameters(
        context,
        names,
        f"{len(names)} parameter(s) get no gradient",
        causes=causes,
        at="model",
        measured=f"no gradient in {rehearsal.num_tries} micro-batches of {rehearsal.num_samples} samples: {detail}",
        expected="a gradient in at least one of them, unless optimizer.frozen names the module",
        action=action,
    )


def _of_intent(context: Context) -> Iterator[Finding]:
    """Parameters that ask for no gradient though no one froze them in the config."""
    held = _names_held(context)
    still = [n for n, p in context.built.job.model.named_parameters() if not p.requires_grad and n not in held]
    if not still:
        return
    yield _of_parameters(
        context,
        still,
        f"{len(still)} parameter(s) frozen, though the config freezes nothing there",
        severity="warning",
        causes=("model.frozen_unintended", "cfg.contract"),
        at="optimizer.frozen",
        measured="requires_grad False",
        expected="requires_grad True, unless optimizer.frozen names the module",
        action="declare them in optimizer.frozen, make them buffers if they are constants, or let them train",
    )


def _names_held(context: Context) -> set[str]:
    """Parameters under modules that the config freezes at any time."""
    prefixes = [f"{entry['modules']}." for entry in context.built.job.frozen]
    names = [name for name, _ in context.built.job.model.named_parameters()]
    return {name for name in names if any(f"{name}.".startswith(prefix) for prefix in prefixes)}


def _idle_outputs(rehearsal: DryRun) -> set[str]:
    return set(rehearsal.seen_outputs) - rehearsal.output_reads


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _reached(context: Context, names: Sequence[str], outputs: Any) -> set[str]:
    """Which of these parameters the named outputs depend on, by a fresh forward pass on a copy."""
    model = isolated_copy(context.built.job.model)
    seen, _ = _forward(context, model)
    parameters = dict(model.named_parameters())
    roots = [
        tensor.sum()
        for given in seen
        for name in outputs
        for _, tensor in array_leaves(given.get(name))
        if isinstance(tensor, Tensor) and tensor.requires_grad
    ]
    if not roots:
        return set()
    total = torch.stack([root.double() for root in roots]).sum()
    found = torch.autograd.grad(total, [parameters[name] for name in names], allow_unused=True)
    return {name for name, gradient in zip(names, found, strict=True) if gradient is not None}


def _is_frozen_on_purpose(context: Context, loss: str) -> bool:
    """Whether a loss would depend on parameters if those that the config freezes asked for gradients."""
    held = _names_held(context)
    model = isolated_copy(context.built.job.model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or name in held)
    return bool(held) and _forward(context, model)[1][loss].requires_grad


def _forward(context: Context, model: nn.Module) -> tuple[list[Any], Mapping[str, Tensor]]:
    """What a copy gives for the rehearsed batch, and the losses of it."""
    job, batch, device = context.built.job, context.dry_run.batch, context.world.device
    model.train()
    seen: list[Any] = []
    handle = model.register_forward_hook(lambda module, inputs, given: seen.append(given))
    step = single_batch_step(job.task, model, batch, device, job.precision)
    seen.clear()
    terms = step.loss_sums(model)
    handle.remove()
    return seen, terms


def _of_parameters(
    context: Context, names: Sequence[str], summary: str, *, layer: str | None = None, **fields: Any
) -> Finding:
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    first = names[0] if names else None
    return no_gradient.finding(
        context,
        summary + (f": {shown}" if names else ""),
        param=first,
        layer=layer or (_owner(first) or None if first else None),
        evidence={"parameters": list(names[:_SHOWN]), "num_parameters": len(names)},
        **fields,
    )
