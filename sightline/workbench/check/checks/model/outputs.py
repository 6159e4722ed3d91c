"""Checks of a model's inputs and outputs: final activation, category, detection head.

The outputs for one cloud in evaluation mode are compared, bit for bit, between categories.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.autograd_graph import output_range
from sightline.doctor.finding import Finding
from sightline.workbench.check.context import Context, assignments, check, first_steps
from sightline.workbench.check.core.assigned_boxes import AssignedBoxes
from sightline.workbench.check.core.dry_run import DryRun, isolated_copy
from sightline.workbench.check.core.finding import Fault, diagnose
from sightline.workbench.check.core.sample_statistics import class_axis, is_standardised
from sightline.workbench.check.oracles.derivatives import SquaredErrorLoss
from sightline.workbench.check.oracles.results import loss_sums

_diagnose = functools.partial(diagnose, __file__)
_SLACK = 1e-6
_MAX_ZEROS, _MAX_BLOCKED = 0.3, 0.01
"""Shares of exact zeros, and of those whose target is above: a ReLU at 0 gets no gradient to reach it."""
_RECTIFIERS = ("Relu", "Threshold")


@check("final-activation", "preflight", each=first_steps, config_path="model")
def final_activation(context: Context, step: DryRun) -> Iterator[Fault]:
    """The range of the last operation includes every target, and outputs at 0 below a target get a gradient.

    Finds: A last layer that cannot reach the loss's targets: a ReLU, a sigmoid or the like at the end.

    The graph of operations decides, not the loss, which falls also while some outputs have gradients.
    """
    names = [component.name for component in context.config.losses if component.name not in context.squared_losses]
    for name, squares in context.squared_losses.items():
        layer = step.makers.get(squares.output_key) or context.last_layer
        yield from (replace(fault, layer=layer) for fault in _squares_faults(step, name, squares))
    for name in names:
        layer = step.makers.get("logits") or context.last_layer
        yield from (replace(fault, layer=layer) for fault in _logits_faults(context, name))


def _squares_faults(step: DryRun, name: str, squares: SquaredErrorLoss) -> Iterator[Fault]:
    key, operation = squares.output_key, step.ends.get(squares.output_key, "")
    words = {"key": key, "name": name, "operation": _describe_operation(operation)}
    low, high = output_range(operation)
    counted = squares.weight > 0
    target, output = squares.target[counted], squares.output[counted]
    slack = _SLACK * float(target.abs().max().clamp(min=1e-30))
    outside = _share((target < low - slack) | (target > high + slack))
    if outside > 0:
        measured = f"{outside:.1%} of the targets are outside {_format_interval(low, high)}"
        measured += f": {float(target.min()):.3g} to {float(target.max()):.3g}"
        yield _diagnose("unreachable targets", measured, **words)
    elif bool((output >= 0).all()) and bool((target > 0).any()):
        zeros, blocked = _share(output == 0), _share((output == 0) & (target > _SLACK * target.max()))
        is_new = zeros == 1 and set(step.gradients.values()) - {"zero", "none"}  # a last layer that starts at zero
        if (zeros > _MAX_ZEROS and blocked > 0 and not is_new) or (operation in _RECTIFIERS and blocked > _MAX_BLOCKED):
            shares = {"zeros": zeros, "blocked": blocked, "most_zeros": _MAX_ZEROS, "most_blocked": _MAX_BLOCKED}
            yield _diagnose("rectified", severity="error" if zeros == 1 else "warning", **words, **shares)


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


def _logits_faults(context: Context, name: str) -> Iterator[Fault]:
    """Yield faults of bounded logits of a shift-invariant loss (softmax): the loss cannot reach 0."""
    logits, label = context.dry_run.seen_outputs.get("logits"), context.dry_run.batch.get("label")
    operation = context.dry_run.ends.get("logits", "")
    low, high = output_range(operation)
    if not isinstance(logits, Tensor) or not isinstance(label, Tensor) or (low, high) == (-math.inf, math.inf):
        return
    axis = class_axis(logits, label)
    if axis is None or operation == "LogSoftmax" or not _is_shift_invariant(context, name):
        return
    others, words = logits.shape[axis] - 1, {"key": "logits", "name": name, "operation": _describe_operation(operation)}
    if math.isfinite(low) and math.isfinite(high):
        floor = math.log1p(others * math.exp(low - high))
        measured = f"logits within {_format_interval(low, high)}"
        causes = ("model.activation", "loss.double_softmax")[:: -1 if operation == "Softmax" else 1]
        yield _diagnose(
            "bounded logits", measured, causes=causes, floor=floor, others=others, width=high - low, **words
        )
    elif low == 0:
        yield _diagnose("rectified logits", zeros=_share(logits == 0), **words)


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


_MAX_SECONDS = 0.1  # CPU time of this thread, at the start of a training
_CPU = torch.device("cpu")  # an index out of range makes a GPU unusable for the rest of the process


_PRIOR, _FACTOR = 0.01, 10.0
_ROWS, _COLUMNS = 8, 11
"""Size of the finest map; each coarser map has one more row and two more columns, so that all sizes differ."""
_CORNER_SIZE = 5
_MIN_SHARE = 0.5
_LARGER_SCALE = 3
"""Scale of the maps of the second test: the receptive field of a deep head covers all of the small maps."""


@check(
    "level-order",
    "preflight",
    each=assignments,
    causes=("model.structure", "assign.anchor_coverage"),
    config_path="model.head",
    expected=f"more than {_MIN_SHARE:.0%}",
    action="flatten by flatten_to_priors of models/detection/heads.py: levels finest first, rows, columns, "
    "priors of a cell",
)
def level_order(context: Context, assigned: AssignedBoxes) -> Fault | Finding | None:
    """A change of the upper right corner of each map mostly changes the outputs of the priors there.

    Finds: A head that does not start with rare objects, or whose outputs are in another order than the priors.

    The order of priors is level, row, column, prior of a cell.
    """
    model: Any = context.built.job.model
    channels = getattr(getattr(model, "neck", None), "channels", None)
    if channels is None:
        return None
    head = isolated_copy(model.head).eval().cpu().double()
    try:
        misordered = _find_misordered(head, channels, 1) and _find_misordered(head, channels, _LARGER_SCALE)
    except Exception as error:  # noqa: BLE001 - a plugin's head may need maps of certain sizes
        return level_order.not_run(context, error)
    if not misordered:
        return None
    name, shares = next(iter(misordered.items()))
    return Fault(
        f"'{name}' of the head is in another order than the priors",
        measured=f"of the change of a corner of each map, {', '.join(shares)} at the priors of that corner, by level",
        layer="head",
    )


def _find_misordered(head: Any, channels: Sequence[int], scale: int) -> dict[str, list[str]]:
    """Return the outputs that change too little near the corner, with the share of their change there by level."""
    draws = torch.Generator().manual_seed(0)
    sizes = [((_ROWS + level) * scale, (_COLUMNS + 2 * level) * scale) for level in range(len(channels))]
    pairs = zip(channels, sizes, strict=True)
    maps = [torch.randn(1, width, *size, generator=draws).double() for width, size in pairs]
    changed_maps = [level_shares.clone() for level_shares in maps]
    for level_shares in changed_maps:
        level_shares[:, :, 1, -2] *= -10
    with torch.no_grad():
        shares = dict(_iter_corner_shares(head(maps), head(changed_maps), sizes, _CORNER_SIZE * scale))
    return {
        name: [f"{share:.0%}" for share in level_shares]
        for name, level_shares in shares.items()
        if min(level_shares) < _MIN_SHARE
    }


def _iter_corner_shares(
    outputs: Mapping[str, Tensor], changed_outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]], near: int
) -> Iterator[tuple[str, list[float]]]:
    """Yield each output's name and the share of its squared change, by level, within `near` cells of the corner."""
    for name in sorted(outputs.keys() & {"logits", "codes", "centreness", "objectness"}):
        energy = (changed_outputs[name] - outputs[name])[0].square().reshape(outputs[name].shape[1], -1).sum(dim=1)
        per_cell = len(energy) // sum(rows * columns for rows, columns in sizes)
        levels = energy.split([rows * columns * per_cell for rows, columns in sizes])
        grids = [grid.view(*size, per_cell).sum(dim=2) for grid, size in zip(levels, sizes, strict=True)]
        yield name, [float(grid[:near, -near:].sum() / grid.sum()) for grid in grids]


@check(
    "prior-bias",
    "preflight",
    each=assignments,
    severity="warning",
    causes=("model.init", "model.structure"),
    config_path="model.head",
    action="start the class layer with the bias -ln((1 - p) / p) and small weights, and no norm after it",
)
def prior_bias(context: Context, assigned: AssignedBoxes) -> Fault | None:
    """The mean score, or objectness, of an untrained detector is the head's `prior` (0.01) within a factor of 10.

    Finds: A head that does not start with rare objects, or whose outputs are in another order than the priors.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, section 4.1.
    """
    if not context.is_fresh:
        return None
    head = context.config.model.arguments.get("head")
    prior = float(getattr(head, "arguments", {}).get("prior", _PRIOR))
    outputs = context.first_outputs[1]
    score = float(outputs.get("objectness", outputs["logits"]).double().sigmoid().mean())
    if prior / _FACTOR <= score <= prior * _FACTOR:
        return None
    is_normed = is_standardised(outputs.get("objectness", outputs["logits"]).double())
    return Fault(
        "the untrained detector does not start with rare objects",
        causes=prior_bias.causes[:: -1 if is_normed else 1],
        measured=f"a mean score of {score:.4g}" + (", of logits with mean 0 and deviation 1" if is_normed else ""),
        expected=f"p = {prior:g}, to a factor of {_FACTOR:g}",
    )
