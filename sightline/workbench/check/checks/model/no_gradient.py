"""Parameters that get no gradient, that no optimiser holds, or that the model does not register."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.errors import join_some
from sightline.contract.pytree import is_float
from sightline.doctor.objects import iter_reachable
from sightline.engine.device import seed_torch
from sightline.engine.step import single_batch_step
from sightline.instrument import record
from sightline.store.loading.batch_reader import array_leaves
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.dry_run import DryRun, isolated_copy
from sightline.workbench.check.core.finding import Fault, diagnose
from sightline.workbench.check.oracles.results import loss_sums

_diagnose = functools.partial(diagnose, __file__)
_MAX_SHOWN = 10
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


@check(
    "no-gradient",
    "preflight",
    causes=("model.frozen_unintended", "loss.detached", "model.structure"),
    expected="a gradient for each parameter that the optimiser holds",
    action="look for detach(), no_grad or an unused output; freeze on purpose with requires_grad_(False)",
)
def no_gradient(context: Context) -> Iterator[Fault]:
    """Each parameter that the config does not freeze is registered, gets a gradient, and is in the optimiser.

    Finds: Parameters that get no gradient, that are in no optimiser, or that the model does not register.
    """
    yield from _coverage_faults(context)
    if context.dry_run.is_sound:
        yield from registration_faults(context.dry_run.model)
        yield from _term_faults(context)
        yield from _zero_faults(context)
        yield from _reach_faults(context)
        yield from _loss_faults(context)
        yield from _intent_faults(context)


def _coverage_faults(context: Context) -> Iterator[Fault]:
    """Check that the optimiser holds exactly the trainable parameters of the model and its learnt losses."""
    job = context.built.job
    trained = job.trained_module
    optimised = {id(parameter) for group in job.optimizer.param_groups for parameter in group["params"]}
    trained_ids = {id(parameter) for parameter in trained.parameters()}
    trainable = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    left_out = [name for name, parameter in trainable.items() if id(parameter) not in optimised]
    foreign = len(optimised - trained_ids)
    if not left_out and not foreign:
        return
    measured = f"{len(trainable) - len(left_out)} of {len(trainable)} trainable parameters are optimised"
    measured += f"; {foreign} that it holds belong to another object" if foreign else ""
    yield _make_fault(left_out, "left out" if left_out else "foreign", measured, foreign=foreign)


def registration_faults(model: nn.Module) -> Iterator[Fault]:
    """Yield a fault for parameters in plain lists, dicts or objects, which are not trained, moved or saved.

    The model has the gradients of a backward pass.
    """
    registered = {id(parameter) for parameter in model.parameters()}
    for name, module in model.named_modules():
        attributes = {key: value for key, value in vars(module).items() if key not in _MODULE_ATTRIBUTES}
        paths = [
            path
            for path, value in iter_reachable(attributes, nn.Parameter)
            if id(value) not in registered and value.requires_grad and value.grad is not None
        ]
        if not paths:
            continue
        registered |= {id(value) for _, value in iter_reachable(attributes, nn.Parameter)}
        attribute = paths[0].split("]", 1)[0].strip("['")
        kind, names = type(attributes.get(attribute)).__name__, [f"{name}.{attribute}".lstrip(".")]
        measured = f"{len(paths)} parameters in a {kind} get gradients, and are not among model.parameters()"
        yield _make_fault(names, "unregistered", measured, layer=name or type(module).__name__, attribute=attribute)


def _term_faults(context: Context) -> Iterator[Fault]:
    """Yield a fault for each loss with a positive count and weight that depends on no parameter."""
    rehearsal, job = context.dry_run, context.built.job
    first, last = job.loss_weights_at(0), job.loss_weights_at(job.num_steps)
    for name, term in rehearsal.terms.items():
        is_counted = float(rehearsal.counts[name]) > 0 and max(first[name], last[name]) > 0
        if not is_counted or term.requires_grad or _is_frozen_by_config(context, name):
            continue
        measured = f"sum {float(term):.6g} over a count of {float(rehearsal.counts[name]):g}, requires_grad False"
        yield _make_fault([], "cut-off loss", measured, name=name, at=context.loss_path(name))


def _zero_faults(context: Context) -> Iterator[Fault]:
    """Yield a fault if every gradient is exactly 0, because of the losses or of the network."""
    rehearsal, job = context.dry_run, context.built.job
    counted = [name for name in rehearsal.terms if float(rehearsal.counts[name]) > 0]
    if not set(rehearsal.gradients.values()) <= {"zero", "none"} or "zero" not in rehearsal.gradients.values():
        return
    if not counted:
        yield _make_fault([], "nothing counted", names=", ".join(rehearsal.terms), samples=rehearsal.num_samples)
    if not any(rehearsal.terms[name].requires_grad for name in counted):
        return
    outputs = {
        name: value.clone().requires_grad_() if is_float(value) else value
        for name, value in rehearsal.seen_outputs.items()
    }
    total = sum(term.sum() for term in loss_sums(job, rehearsal.batch, outputs).values())
    leaves = [value for value in outputs.values() if isinstance(value, Tensor) and value.requires_grad]
    gradients = torch.autograd.grad(total, leaves, allow_unused=True) if isinstance(total, Tensor) and leaves else ()
    is_of_loss = not any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    diagnosis = "zero by the losses" if is_of_loss else "zero by the model"
    yield _make_fault([], diagnosis, number_zero=len(rehearsal.gradients))


def _reach_faults(context: Context) -> Iterator[Fault]:
    """Yield a fault per reason for trainable parameters without a gradient in all micro-batches tried."""
    rehearsal, job = context.dry_run, context.built.job
    is_detached = any(True for _ in _term_faults(context))
    frozen_names = _find_frozen_names(context)
    silent = [
        name
        for name, parameter in job.model.named_parameters()
        if parameter.requires_grad and rehearsal.gradients[name] == "none" and name not in frozen_names
    ]
    if not silent or (is_detached and len(silent) == len(rehearsal.gradients)):
        return
    idle_outputs = _find_idle_outputs(rehearsal)
    from_idle = _find_reached(context, silent, idle_outputs) if idle_outputs else set()
    from_read = _find_reached(context, silent, rehearsal.output_reads) - from_idle
    executed = {name for name in silent if _get_owner(name) in rehearsal.executed}
    cut = [name for name in silent if name not in from_idle | from_read and name in executed]
    unread = _find_unread(context, cut)
    groups = (
        ([name for name in silent if name in from_idle], "unused"),
        ([name for name in silent if name in from_read], "detached"),
        ([name for name in silent if name not in from_idle | from_read and name not in executed], "idle"),
        ([name for name in cut if name in unread], "unread"),
        ([name for name in cut if name not in unread], "cut"),
    )
    words = {"tries": rehearsal.num_tries, "samples": rehearsal.num_samples, "outputs": ", ".join(sorted(idle_outputs))}
    for names, reason in groups:
        is_waited_for = reason == "unused" and context.world.size > 1
        causes = {"causes": ("dist.unused_params", "model.structure")} if is_waited_for else {}
        if names:
            yield _make_fault(names, reason, **words, **causes)


def _loss_faults(context: Context) -> Iterator[Fault]:
    """Yield a fault for parameters of losses that got no gradient in the dry run."""
    job = context.built.job
    frozen_prefixes = tuple(f"{entry['modules']}." for entry in job.frozen)
    silent = [
        name
        for name, parameter in job.trained_module.named_parameters()
        if job.losses.owner(name)
        and parameter.requires_grad
        and parameter.grad is None
        and not name.startswith(frozen_prefixes)
    ]
    if silent:
        yield _make_fault(silent, "of a loss", tries=context.dry_run.num_tries)


def _intent_faults(context: Context) -> Iterator[Fault]:
    """Yield a fault for parameters with requires_grad False that the config does not freeze."""
    frozen_names = _find_frozen_names(context)
    frozen = [n for n, p in context.built.job.model.named_parameters() if not p.requires_grad and n not in frozen_names]
    if frozen and not is_frozen_by_kind(context.built.job.model.modules()):
        yield _make_fault(frozen, "frozen")


def is_frozen_by_kind(modules: Iterable[nn.Module]) -> bool:
    """Return True if all biases train, and no other parameter of their modules: BitFit (Ben Zaken et al. 2022)."""
    own = [list(module.named_parameters(recurse=False)) for module in modules]
    mixed = [named for named in own if len({p.requires_grad for _, p in named}) == 2]
    return len(mixed) > 1 and all(p.requires_grad == name.endswith("bias") for named in mixed for name, p in named)


def _find_frozen_names(context: Context) -> set[str]:
    """Return the names of the parameters in modules that the config freezes at any time."""
    prefixes = [f"{entry['modules']}." for entry in context.built.job.frozen]
    names = [name for name, _ in context.built.job.model.named_parameters()]
    return {name for name in names if any(f"{name}.".startswith(prefix) for prefix in prefixes)}


def _find_idle_outputs(rehearsal: DryRun) -> set[str]:
    return set(rehearsal.seen_outputs) - rehearsal.output_reads


def _get_owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _find_reached(context: Context, names: Sequence[str], outputs: Any) -> set[str]:
    """Return the parameters, among `names`, that the named outputs depend on, by a forward pass on a copy."""
    model = isolated_copy(context.built.job.model)
    passes, _ = _run_forward(context, model)
    parameters = dict(model.named_parameters())
    roots = [
        tensor.sum()
        for result in passes
        for name in outputs
        for _, tensor in array_leaves(result.get(name))
        if isinstance(tensor, Tensor) and tensor.requires_grad
    ]
    if not roots:
        return set()
    total = torch.stack([root.double() for root in roots]).sum()
    gradients = torch.autograd.grad(total, [parameters[name] for name in names], allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def _find_unread(context: Context, names: Sequence[str]) -> set[str]:
    """Return the parameters, among `names`, whose values change no output: they are all drawn anew on a copy."""
    if not names:
        return set()
    results = []
    for is_drawn in (False, True):
        model = isolated_copy(context.built.job.model)
        for name, parameter in model.named_parameters() if is_drawn else ():
            if name in names:
                parameter.data = torch.randn_like(parameter)
        seed_torch(0)
        results.append([tensor for result in _run_forward(context, model)[0] for _, tensor in array_leaves(result)])
    is_same = all(torch.equal(first, second) for first, second in zip(*results, strict=True))
    return {*names} if is_same else set()


def _is_frozen_by_config(context: Context, loss: str) -> bool:
    """Return True if a loss would depend on parameters if the config froze none."""
    frozen_names = _find_frozen_names(context)
    model = isolated_copy(context.built.job.model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or name in frozen_names)
    return bool(frozen_names) and _run_forward(context, model)[1][loss].requires_grad


def _run_forward(context: Context, model: nn.Module) -> tuple[list[Any], Mapping[str, Tensor]]:
    """Return the outputs of each call of a copy in training mode on the batch of the dry run, and its loss sums."""
    job, batch, device = context.built.job, context.dry_run.batch, context.world.device
    step = single_batch_step(job.task, model.train(), batch, device, job.precision)
    with record({"": model}, keep=("outputs",), each=None) as tape:
        terms = step.loss_sums(model)
    return tape.outputs, terms


def _make_fault(names: Sequence[str], diagnosis: str, measured: str = "", /, **words: Any) -> Fault:
    """Make the fault of some parameters, which its summary lists; `number` is the word for how many there are."""
    first = names[0] if names else None
    fault = _diagnose(diagnosis, measured, number=len(names), **words)
    is_listed = bool(names) and f"'{first}'" not in fault.summary
    return dataclasses.replace(
        fault,
        summary=fault.summary + (f": {join_some(names, most=_MAX_SHOWN)}" if is_listed else ""),
        param=first,
        layer=fault.layer or (_get_owner(first) or None if first else None),
        evidence={"parameters": list(names[:_MAX_SHOWN]), "num_parameters": len(names)},
    )
