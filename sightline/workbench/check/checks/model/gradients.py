"""Checks of gradients: parameters without one, layers that lose it."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.errors import join_some
from sightline.contract.pytree import is_float, tree_leaves
from sightline.engine.device import seed_torch
from sightline.engine.step import single_batch_step
from sightline.instrument import record
from sightline.store.loading.batch_reader import array_leaves
from sightline.workbench.check.context import Context, check, first_steps
from sightline.workbench.check.core.diagnoses import diagnose
from sightline.workbench.check.core.dry_run import DryRun, forward_backward, isolated_copy
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.object_graph import iter_reachable
from sightline.workbench.check.oracles.results import loss_sums

_diagnose = functools.partial(diagnose, __file__)
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers with a unit for each output channel."""
_MIN_RELATIVE_RATIO = 1e-7  # relative to the median layer's gradient-to-weight ratio
_MAX_RELATIVE_RATIO = 1e6
_MAX_DEAD = 0.5
_MAX_DEVIATIONS = 4.0
"""Standard deviations above that share; of the some forty layers of a network, one in a thousand networks is there."""
_MIN_UNITS = 8
_COLUMNS = ("layer", "weights", "weight rms", "gradient rms", "ratio", "dead units", "exact zeros")


@dataclass(frozen=True)
class LayerGradient:
    """RMS of one layer's weight and of its gradient at the first step, and shares of dead units and zero gradients.

    A unit computes one channel; it is dead if the gradient of all its weights is zero.
    """

    name: str
    units: int
    size: int
    weight: float
    gradient: float
    dead: float
    zeros: float

    @property
    def ratio(self) -> float:
        return self.gradient / self.weight if self.weight > 0 else float("inf")


@check("G10", "gradient-flow", "deep", each=first_steps, config_path="model")
def gradient_flow(context: Context, step: DryRun) -> Iterator[Fault]:
    """Each layer's gradient-to-weight ratio is within 1e-7 to 1e6 of the median, and at most half its units are dead.

    Finds: Gradients that vanish or explode in the backward pass, and dead units, at the first step.

    Linear layers and convolutions are measured, on a copy without dropout, on the samples of the first step.
    """
    flows = _measure_layers(context)
    if flows:
        yield _make_note(flows)
        faults = list(_size_faults(flows))
        yield from _leave_out_idle_branches(context, faults) if faults else []
        yield from _dead_faults(flows, step.num_samples)


def _measure_layers(context: Context, *, of_outputs: bool = False) -> list[LayerGradient]:
    """Measure the gradients of the losses, or `of_outputs` those of a random sum of all outputs alike."""
    job = context.built.job
    model = isolated_copy(job.model)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    model.zero_grad(set_to_none=True)
    if of_outputs:
        _sum_outputs(model.train()(**context.dry_run.inputs)).backward()
    else:
        forward_backward(job, model, [context.dry_run.batch], context.world.device)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LAYERS)]
    weights = {name: _get_weight(layer) for name, layer in layers}
    measured = {name for name, weight in weights.items() if weight.ndim > 1 and weight.grad is not None}
    return [measure_layer(name, layer) for name, layer in layers if name in measured]


def _sum_outputs(outputs: Any) -> Tensor:
    """Compute the sum of all numbers of the outputs, with random signs."""
    generator, total = torch.Generator().manual_seed(0), torch.zeros(())
    for _, value in tree_leaves(outputs):
        if value.is_floating_point() and value.requires_grad:
            signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
            total = total.to(value) + (signs * value).sum()
    return total


def _get_weight(layer: nn.Module) -> Tensor:
    """Return the parameter behind a layer's weight: of a quantised layer, its weight before it is quantised."""
    chain = getattr(layer, "parametrizations", {})
    return chain["weight"].original if "weight" in chain else layer.weight  # type: ignore[return-value]


def measure_layer(name: str, layer: nn.Module) -> LayerGradient:
    """Measure the weight and the gradient of a layer."""
    weight, gradient = _get_weight(layer).detach(), _get_weight(layer).grad.detach()  # type: ignore[union-attr]
    by_unit = gradient.transpose(0, 1) if isinstance(layer, nn.modules.conv._ConvTransposeNd) else gradient
    is_zero = by_unit.flatten(1) == 0
    size, gradient_size = (float(tensor.double().square().mean().sqrt()) for tensor in (weight, gradient))
    dead, zeros = float(is_zero.all(dim=1).double().mean()), float(is_zero.double().mean())
    return LayerGradient(name, len(is_zero), weight.numel(), size, gradient_size, dead, zeros)


def _make_note(flows: Sequence[LayerGradient]) -> Fault:
    rows = [
        [
            layer.name,
            layer.size,
            *(f"{value:.2e}" for value in (layer.weight, layer.gradient, layer.ratio)),
            f"{layer.dead:.0%}",
            f"{layer.zeros:.0%}",
        ]
        for layer in flows
    ]
    moving = [flow for flow in flows if 0 < flow.ratio < float("inf")] or list(flows)
    smallest, largest = (end(moving, key=lambda flow: flow.ratio) for end in (min, max))
    table = {"title": "gradients at the first step", "columns": list(_COLUMNS), "rows": rows}
    measured, factor = f"{len(flows)} layers; smallest ratio in {smallest.name}", 1 / _MIN_RELATIVE_RATIO
    return _diagnose("sizes", measured, smallest=smallest, largest=largest, factor=factor, evidence={"table": table})


def _size_faults(flows: Sequence[LayerGradient]) -> Iterator[Fault]:
    """Yield a fault for the layers with the smallest and the largest ratio, if they are out of bounds."""
    ratios = {flow.name: flow.ratio for flow in flows if 0 < flow.ratio < float("inf")}
    if len(ratios) < 3:
        return
    median = statistics.median(ratios.values())
    smallest, largest = min(ratios, key=lambda name: ratios[name]), max(ratios, key=lambda name: ratios[name])
    for name, is_far, diagnosis in (
        (smallest, ratios[smallest] < _MIN_RELATIVE_RATIO * median, "vanishing"),
        (largest, ratios[largest] > _MAX_RELATIVE_RATIO * median, "exploding"),
    ):
        if is_far:
            measured = f"gradient / weight {ratios[name]:.2e}, {ratios[name] / median:.1e} times the median layer's"
            bounds = {"low": _MIN_RELATIVE_RATIO, "high": _MAX_RELATIVE_RATIO, "median": median}
            yield _diagnose(diagnosis, measured, layer=name, **bounds)


def _leave_out_idle_branches(context: Context, faults: Sequence[Fault]) -> list[Fault]:
    """Keep the faults that a random sum of all outputs has as well.

    A branch that the loss weighs little, such as a level of a pyramid without a box, gets a small gradient by the loss
    alone: through the network, gradients do reach it.
    """
    try:
        flows = _measure_layers(context, of_outputs=True)
    except Exception:  # noqa: BLE001 - a network may return what cannot be summed
        return list(faults)
    others = {fault.layer for fault in _size_faults(flows)}
    return [fault for fault in faults if fault.layer in others or "explode" in fault.summary]


def _is_dead(flow: LayerGradient) -> bool:
    """Return True for dead units beyond chance: a ReLU of inputs that hardly vary is off for half of all units."""
    deviation = math.sqrt(_MAX_DEAD * (1 - _MAX_DEAD) / max(1, flow.units))
    return flow.dead == 1 or flow.dead > _MAX_DEAD + _MAX_DEVIATIONS * deviation


def _dead_faults(flows: Sequence[LayerGradient], num_samples: int) -> Iterator[Fault]:
    """Yield a fault for the last layer with mostly dead units; layers before it may be dead because of it.

    A branch that ends in a zero-initialised layer passes no gradient at first, by design.
    """
    has_zero_layer = any(flow.weight == 0 for flow in flows)
    dead = [f for f in flows if _is_dead(f) and f.units >= _MIN_UNITS and not (f.dead == 1 and has_zero_layer)]
    for last in dead[-1:]:
        yield dataclasses.replace(
            make_dead_fault(last.name, last.dead, last.units),
            severity="warning",
            expected=f"at most {_MAX_DEAD:.0%} on {num_samples} samples, and what chance adds to that",
            causes=("model.activation", "model.init", "data.normalisation"),
            action="look at the activation after it and at its bias: a ReLU of negative inputs passes no gradient on",
        )


def make_dead_fault(layer: str, share: float, num_units: int) -> Fault:
    """Make the fault of a layer in which a share of the units is dead; the caller adds what it expects."""
    return Fault(
        f"{share:.0%} of the units of '{layer}' are dead: no sample gives them a gradient",
        layer=layer,
        measured=f"the gradient is exactly 0 for {round(share * num_units)} of {num_units} units",
    )


_MAX_SHOWN = 10
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


@check(
    "G10",
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
    has_terms = any(term.requires_grad and float(rehearsal.counts[name]) > 0 for name, term in rehearsal.terms.items())
    if (
        not has_terms
        or not set(rehearsal.gradients.values()) <= {"zero", "none"}
        or "zero" not in rehearsal.gradients.values()
    ):
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
    if frozen:
        yield _make_fault(frozen, "frozen")


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


def _make_fault(names: Sequence[str], diagnosis: str, measured: str = "", **words: Any) -> Fault:
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
