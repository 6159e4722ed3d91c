"""A last layer that cannot reach the loss's targets: a ReLU, a sigmoid or the like at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.context import Context, check
from sightline.doctor.core.class_axes import class_axis
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.graph import output_range
from sightline.doctor.oracles.replay import loss_sums
from sightline.doctor.oracles.squares import SquaredErrorLoss

__all__ = ["final_activation"]

_SLACK = 1e-6
_MAX_ZEROS = 0.3
_LOW_TARGET, _MAX_LOW_TARGETS = 0.01, 0.1
"""Bound of low targets (share of the largest) and their maximum share: a ReLU at 0 gets no gradient to reach them."""
_RECTIFIERS = ("Relu", "Threshold")


@check("G22", "final-activation", "preflight", config_path="model")
def final_activation(context: Context) -> list[Finding]:
    """The range of the last operation includes every target, and outputs at 0 below a target get a gradient.

    Finds: A last layer that cannot reach the loss's targets: a ReLU, a sigmoid or the like at the end.

    The graph of operations decides, not the loss, which falls all the same while some outputs have gradients.
    """
    if not context.dry_run.is_sound:
        return []
    findings = [
        finding
        for name, squares in context.squared_losses.items()
        for finding in _squares_findings(context, name, squares)
    ]
    for component in context.config.losses:
        if component.name not in context.squared_losses:
            findings += _logits_findings(context, component.name)
    return findings


def _squares_findings(context: Context, name: str, squares: SquaredErrorLoss) -> Iterator[Finding]:
    operation = context.dry_run.ends.get(squares.output_key, "")
    low, high = output_range(operation)
    counted = squares.weight > 0
    target, output = squares.target[counted], squares.output[counted]
    slack = _SLACK * float(target.abs().max().clamp(min=1e-30))
    outside = _share((target < low - slack) | (target > high + slack))
    if outside > 0:
        yield _finding_at_end(
            context,
            squares.output_key,
            f"'{squares.output_key}' ends in {_describe_operation(operation)}, "
            f"which cannot reach the targets of '{name}'",
            measured=f"{outside:.1%} of the targets are outside {_format_interval(low, high)}: "
            f"{float(target.min()):.3g} to {float(target.max()):.3g}",
            expected="a linear last layer, or targets within its range",
            causes=("model.activation", "data.target_encoding", "data.normalisation"),
        )
    elif bool((output >= 0).all()) and bool((target > 0).any()):
        yield from _rectified_findings(context, name, squares, operation, output, target)


def _rectified_findings(
    context: Context, name: str, squares: SquaredErrorLoss, operation: str, output: Tensor, target: Tensor
) -> Iterator[Finding]:
    """Yield a finding for outputs at 0 below their targets, or a ReLU with many targets just above 0."""
    zeros, blocked = _share(output == 0), _share((output == 0) & (target > _SLACK * target.max()))
    low = _share((target > 0) & (target < _LOW_TARGET * target.max()))
    if (zeros > _MAX_ZEROS and blocked > 0) or (operation in _RECTIFIERS and low > _MAX_LOW_TARGETS):
        yield _finding_at_end(
            context,
            squares.output_key,
            f"the last layer of '{squares.output_key}' is rectified: no gradient flows where it outputs 0",
            severity="warning",
            measured=f"{zeros:.0%} of the outputs are exactly 0, {blocked:.0%} of all with a target above; "
            f"{low:.0%} of the targets of '{name}' are just above 0; "
            f"the last operation is {_describe_operation(operation)}",
            expected=f"a linear last layer, or at most {_MAX_ZEROS:.0%} exact zeros and targets well above 0",
            causes=("model.activation", "model.init"),
        )


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


def _logits_findings(context: Context, name: str) -> Iterator[Finding]:
    """Yield findings on bounded logits of a shift-invariant loss (softmax): the loss cannot reach 0."""
    logits, label = context.dry_run.seen_outputs.get("logits"), context.dry_run.batch.get("label")
    operation = context.dry_run.ends.get("logits", "")
    low, high = output_range(operation)
    if not isinstance(logits, Tensor) or not isinstance(label, Tensor) or (low, high) == (-math.inf, math.inf):
        return
    axis = class_axis(logits, label)
    if axis is None or operation == "LogSoftmax" or not _is_shift_invariant(context, name):
        return
    num_classes = logits.shape[axis]
    if math.isfinite(low) and math.isfinite(high):
        floor = math.log1p((num_classes - 1) * math.exp(low - high))
        yield _finding_at_end(
            context,
            "logits",
            f"the logits end in {_describe_operation(operation)}, so the loss '{name}' cannot fall below {floor:.4g}",
            measured=f"logits within {_format_interval(low, high)}",
            expected=f"logits without bounds; these reach ln(1 + {num_classes - 1} e^-{high - low:g}) at best",
            causes=("loss.double_softmax", "model.activation")
            if operation == "Softmax"
            else ("model.activation", "loss.double_softmax"),
        )
    elif low == 0:
        yield _finding_at_end(
            context,
            "logits",
            f"the logits end in {_describe_operation(operation)}: a class with logit 0 gets no gradient",
            severity="warning",
            measured=f"{float((logits == 0).double().mean()):.0%} of the logits are exactly 0",
            expected="a linear last layer",
            causes=("model.activation",),
        )


def _is_shift_invariant(context: Context, name: str) -> bool:
    """Return True if adding a constant to all logits keeps the loss, and adding other values changes it."""
    outputs, batch = dict(context.dry_run.seen_outputs), context.dry_run.batch
    logits = outputs["logits"].double()
    ramp = torch.arange(logits.numel(), dtype=torch.float64, device=logits.device).sin().view(logits.shape)
    values = []
    with torch.no_grad():
        for shift in (0.0, 1.0, ramp):
            shifted = {**outputs, "logits": logits + shift}
            values.append(float(loss_sums(context.built.job, batch, shifted)[name]))
    is_constant_ignored, is_ramp_ignored = (
        math.isclose(values[0], value, rel_tol=1e-9, abs_tol=1e-9) for value in values[1:]
    )
    return is_constant_ignored and not is_ramp_ignored


def _describe_operation(operation: str) -> str:
    return f"'{operation.lower()}'" if operation else "an operation that the graph does not name"


def _format_interval(low: float, high: float) -> str:
    return f"{low:g} .. {high:g}".replace("inf", "infinity")


def _find_last_layer(context: Context) -> str | None:
    """Return the name of the last module with direct parameters, which the activation follows; None without one."""
    names = [name for name, module in context.built.job.model.named_modules() if list(module.parameters(recurse=False))]
    return names[-1] if names else None


def _finding_at_end(context: Context, output: str, summary: str, **fields: Any) -> Finding:
    action = f"remove the activation after the last layer from the model; '{output}' must be linear"
    return final_activation.finding(context, summary, layer=_find_last_layer(context), action=action, **fields)
