"""Faults of the network that prevent a fit: output activation, head, constant features, missing gradients.

Output activation: the last operation that bounds a model's outputs, and the model without it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sightline.doctor.finding import Severity
from sightline.instrument import InterceptedFunctions, ModuleCall, record
from sightline.workbench.check.core.dry_run import forward_backward
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.fit.fit_attempt import FITTED, FitCurve, FitSetup, fit, forward_once, prepare_model
from sightline.workbench.fit.loss_probe import LossProbe
from sightline.workbench.fit.optimizer_grid import build_optimizer

_COPYING = frozenset(
    "View Reshape UnsafeView Permute Transpose T Squeeze Unsqueeze Expand Clone ToCopy Alias Slice Select AsStrided "
    "Copy Unfold SwapAxes".split()
)
"""Operations that copy numbers without changing them, by autograd's names."""

_RANGES: dict[str, tuple[float, float]] = {
    "Relu": (0.0, math.inf),
    "Sigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softmax": (0.0, 1.0),
    "LogSoftmax": (-math.inf, 0.0),
    "Softplus": (0.0, math.inf),
    "Hardtanh": (-1.0, 1.0),
    "Clamp": (-math.inf, math.inf),
    "ClampMin": (-math.inf, math.inf),
    "ClampMax": (-math.inf, math.inf),
}
"""Bounds of an operation's results; those of a clamp are taken from the outputs."""

_FUNCTIONS = {
    **dict.fromkeys(("relu", "relu_"), "Relu"),
    **dict.fromkeys(("sigmoid", "sigmoid_"), "Sigmoid"),
    **dict.fromkeys(("tanh", "tanh_"), "Tanh"),
    "softmax": "Softmax",
    "log_softmax": "LogSoftmax",
    "softplus": "Softplus",
    **dict.fromkeys(("hardtanh", "hardtanh_", "relu6"), "Hardtanh"),
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_"), "Clamp"),
    **dict.fromkeys(("clamp_min", "clamp_min_"), "ClampMin"),
    **dict.fromkeys(("clamp_max", "clamp_max_"), "ClampMax"),
}


@dataclass(frozen=True)
class OutputActivation:
    """Last operation of an output: its name, range, index among all bounding calls, and module.

    `zeros` is the share of outputs that are exactly zero, `low` and `high` are their range in this pass.
    """

    output: str
    operation: str
    bounds: tuple[float, float]
    call: int
    layer: str | None
    zeros: float
    low: float
    high: float


class WithoutActivation:
    """Replacement of a model in which the bounding function number `call` is the identity."""

    def __init__(self, model: nn.Module, call: int) -> None:
        self._model = model
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        numbers = itertools.count()

        def run(function: Any, function_args: tuple[Any, ...], function_kwargs: dict[str, Any]) -> Any:
            if getattr(function, "__name__", "") in _FUNCTIONS and next(numbers) == self._call:
                return function_args[0] if function_args else function_kwargs["input"]
            return function(*function_args, **function_kwargs)

        with InterceptedFunctions(run):
            return self._model(*args, **kwargs)


def find_output_activation(model: nn.Module, forward: Any, read: tuple[str, ...]) -> OutputActivation | None:
    """Find the first of the outputs `read` that ends in a bounding operation; `forward(model)` returns the outputs.

    The model must be a copy that may be changed; gradients must be enabled.
    """
    bounded: list[tuple[Any, str]] = []  # node and module of each bounding function's result

    def note(call: ModuleCall | None, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        if getattr(function, "__name__", "") in _FUNCTIONS and isinstance(result, Tensor) and call is not None:
            bounded.append((result.grad_fn, call.path))

    with record(model, functions=note):
        outputs: Mapping[str, Tensor] = forward(model)
    for name in read:
        node = _last_computing_node(outputs[name].grad_fn)
        kind = _kind(node)
        if kind not in _RANGES:
            continue
        index = next((i for i in reversed(range(len(bounded))) if bounded[i][0] == node), None)
        if index is None:
            continue
        value = outputs[name].detach()
        low, high = float(value.min()), float(value.max())
        bounds = _RANGES[kind] if not kind.startswith("Clamp") else (low, high)
        zeros = float((value == 0).double().mean())
        return OutputActivation(name, kind.lower(), bounds, index, bounded[index][1] or None, zeros, low, high)
    return None


def _last_computing_node(node: Any) -> Any:
    """Return the operation that computed an output's numbers, before those that only copied them."""
    while node is not None and _kind(node).removeprefix("Unsafe") in _COPYING and node.next_functions:
        node = node.next_functions[0][0]
    return node


def _kind(node: Any) -> str:
    """Return the operation's name, such as `Relu` for `ReluBackward0`."""
    return "" if node is None else node.name().split("::")[-1].partition("Backward")[0].lstrip("_")


_RATES = (1e-2, 1e-3, 1e-1)
_MAX_ZERO_SHARE = 0.3
"""Share of exactly zero outputs above which a rectified output counts as dying. Source: pose, section 7.3."""
_HEADS = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)


# --- how the outputs end ---------------------------------------------------------------------------------------------


def activation_cause(bench: FitSetup, probe: LossProbe) -> tuple[Fault | None, str]:
    """Find an output activation without which the samples are fitted, or that excludes the targets."""
    ending = _find_activation(bench, probe)
    if ending is None:
        return None, "the outputs end in no function that bounds them"
    excluded_target = _describe_excluded_target(ending, bench, probe)
    summary = f"'{ending.output}' ends in {ending.operation}, {_format_interval(ending)}"
    if excluded_target is not None:
        summary = f"{summary}; {excluded_target}"
        return _make_activation_fault(bench, ending, summary, "error"), summary
    curve = _fit_with_adam(bench, through=lambda model: WithoutActivation(model, ending.call))
    if not curve.is_fitted:
        return None, f"{summary}; without it the samples are not fitted either"
    summary = f"{summary}; without it they are fitted after {curve.steps_to(FITTED)} steps"
    return _make_activation_fault(bench, ending, summary, "warning"), summary


def activation_warning(bench: FitSetup, probe: LossProbe) -> Fault | None:
    """Warn of an output activation that excludes targets, or whose outputs are largely exactly zero.

    A rectifier whose targets are not negative, and whose units are alive, is a legitimate choice.
    """
    ending = _find_activation(bench, probe)
    if ending is None:
        return None
    excluded_target = _describe_excluded_target(ending, bench, probe)
    is_dying = ending.operation in ("relu", "clamp", "clampmin") and ending.zeros > _MAX_ZERO_SHARE
    if excluded_target is None and not is_dying:
        return None
    summary = f"'{ending.output}' ends in {ending.operation}, {_format_interval(ending)}"
    reason = excluded_target or f"{ending.zeros:.0%} of the first outputs are exactly 0 and pass no gradient"
    return _make_activation_fault(bench, ending, f"{summary}; {reason}", "warning")


def _find_activation(bench: FitSetup, probe: LossProbe) -> OutputActivation | None:
    model = prepare_model(bench, bench.precision)
    return find_output_activation(model, lambda copied: forward_once(bench, copied), probe.read)


def _describe_excluded_target(ending: OutputActivation, bench: FitSetup, probe: LossProbe) -> str | None:
    """Describe a target of the output's shape that is outside its range; None if there is none."""
    low, high = ending.bounds
    shape = probe.outputs[ending.output].shape
    for name in probe.targets:
        target = bench.batch[name]
        if isinstance(target, Tensor) and target.is_floating_point() and target.shape == shape:
            lowest, highest = float(target.min()), float(target.max())
            if lowest < low or highest > high:
                return f"the target '{name}' is {lowest:.4g} .. {highest:.4g}"
    return None


def _make_activation_fault(bench: FitSetup, ending: OutputActivation, measured: str, severity: Severity) -> Fault:
    names = {component.name for component in bench.built.config.losses}
    is_doubled = ending.operation == "softmax" and "cross_entropy" in names
    causes: tuple[str, ...] = ("model.activation", "model.structure")
    if is_doubled:
        causes = ("loss.double_softmax", "model.activation")
    return Fault(
        severity=severity,
        summary=f"the last layer ends in {ending.operation}: the outputs cannot reach the targets",
        causes=causes,
        at="model",
        layer=ending.layer,
        measured=measured,
        expected="a last layer that is linear, or whose range contains the targets",
        action=f"take the {ending.operation} after the last layer out",
        evidence={"zeros": ending.zeros, "low": ending.low, "high": ending.high},
    )


def _format_interval(ending: OutputActivation) -> str:
    low, high = ending.bounds
    if math.isinf(low) or math.isinf(high):
        return f"at least {low:g}" if math.isinf(high) else f"at most {high:g}"
    return f"{low:.4g} .. {high:.4g}"


# --- the head --------------------------------------------------------------------------------------------------------


def head_cause(bench: FitSetup, *, is_falling: bool) -> tuple[Fault | None, str]:
    """Find out if a reinitialised head on frozen features fits the samples that the network does not.

    If the network's loss is still falling (`is_falling`), only a head that cannot learn is at fault.
    """
    name = _find_head(bench)
    if name is None:
        return None, "no linear layer or convolution is called last"
    curve = _fit_with_adam(bench, unfreeze=True, change=lambda model: _reinitialise_head(model, name))
    if not curve.is_fitted:
        return None, f"a fresh {name} on the frozen features does not fit either"
    summary = f"a fresh {name} on the frozen features fits after {curve.steps_to(FITTED)} steps"
    head = bench.built.job.model.get_submodule(name)
    is_frozen = not any(parameter.requires_grad for parameter in head.parameters())
    weights = torch.cat([parameter.detach().flatten() for parameter in head.parameters()]).double()
    size = float(weights.abs().max())
    causes: tuple[str, ...] = ("model.structure", "model.init", "model.activation")
    if is_frozen:
        causes = ("model.frozen_unintended", "optim.param_coverage")
    elif not math.isfinite(size) or size == 0 or size > 1e3:
        causes = ("model.init", "model.structure")
    elif is_falling:
        return None, f"{summary}; the loss of the whole network is still falling"
    fault = Fault(
        severity="warning",
        summary=f"the head '{name}' is frozen: the samples cannot be fitted"
        if is_frozen
        else f"the head '{name}' prevents a fit: its input features suffice",
        causes=causes,
        at="optimizer.frozen" if is_frozen and bench.built.job.frozen else "model",
        layer=name,
        measured=f"{summary}; its own weights are at most {size:.3g}"
        + (", and none of them requires a gradient" if is_frozen else ""),
        expected="a head that learns with the rest",
        action=f"let '{name}' learn: look for requires_grad_(False) and optimizer.frozen"
        if is_frozen
        else f"look at how '{name}' is initialised, and at the layers between it and the loss",
    )
    return fault, summary


def _find_head(bench: FitSetup) -> str | None:
    """Find the last linear layer or convolution that a forward pass calls."""
    model = prepare_model(bench, bench.precision)
    heads = {path: module for path, module in model.named_modules() if isinstance(module, _HEADS)}
    with torch.no_grad(), record(heads) as tape:
        forward_once(bench, model)
    return max(tape.calls, key=lambda call: call.ended).path if tape.calls else None


def _reinitialise_head(model: nn.Module, name: str) -> None:
    """Freeze all other modules and reinitialise this layer, in place."""
    model.requires_grad_(False)
    head: Any = model.get_submodule(name)
    head.reset_parameters()
    head.requires_grad_(True)


# --- what reaches the head -------------------------------------------------------------------------------------------


def constant_cause(bench: FitSetup, probe: LossProbe) -> tuple[Fault | None, str]:
    """Find an output that is equal for all samples from the start."""
    constant_output = _find_constant_output(bench, probe)
    if constant_output is None:
        return None, "the model distinguishes its samples"
    fault = Fault(
        severity="warning",
        summary="the model gives the same output for different samples",
        causes=("model.constant_output", "model.numerics", "model.init"),
        at="model",
        measured=f"'{constant_output}' is the same for all samples of the batch",
        expected="different outputs for different inputs",
        action="follow the samples through the layers by --trace: where does the last difference vanish?",
    )
    return fault, f"'{constant_output}' is the same for all samples"


def gradient_cause(bench: FitSetup) -> tuple[Fault | None, str]:
    """Find out if no parameter receives a gradient."""
    silent = parameters_without_gradient(bench)
    trainable = [name for name, parameter in bench.built.job.model.named_parameters() if parameter.requires_grad]
    if len(silent) < len(trainable):
        return None, f"{len(trainable) - len(silent)} of {len(trainable)} parameters get a gradient"
    fault = Fault(
        severity="warning",
        summary="no parameter gets a gradient",
        causes=("loss.detached", "model.frozen_unintended", "model.activation"),
        at="model",
        measured=f"{len(silent)} of {len(trainable)} trainable parameters have a gradient of zero or none",
        expected="a gradient in every parameter that is to learn",
        action="look for detach(), no_grad and layers that are dead; `sightline check` names them",
    )
    return fault, "no gradient reaches any parameter"


def parameters_without_gradient(bench: FitSetup) -> list[str]:
    """List the trainable parameters whose gradient is missing or zero in the first step."""
    job = bench.built.job
    model = prepare_model(bench, bench.precision)
    forward_backward(job, model, [bench.batch_in(bench.precision)], bench.device)
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.any()))
    ]


def _find_constant_output(bench: FitSetup, probe: LossProbe) -> str | None:
    """Find an output that losses read, with one row per sample, whose rows are all equal."""
    num = len(bench.batch["sample_index"])
    if len(set(bench.batch["sample_index"].tolist())) < 2:
        return None
    for name in probe.read:
        value = probe.outputs[name]
        if value.ndim and len(value) == num and bool((value == value[:1]).all()):
            return name
    return None


def _fit_with_adam(bench: FitSetup, **fit_options: Any) -> FitCurve:
    """Return the best attempt of Adam at a few rates."""
    curves: list[FitCurve] = []
    for rate in _RATES:
        curves.append(
            fit(
                bench,
                "adam",
                lambda model, at: build_optimizer("adam", model, at),
                rate,
                bench.precision,
                **fit_options,
            )
        )
        if curves[-1].is_fitted:
            break
    return min(curves, key=lambda curve: curve.order)
