"""Checks of a model's inputs and outputs: final activation, category, detection head.

The outputs for one cloud in evaluation mode are compared, bit for bit, between categories.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import isolated_copy, read_batch, step_keys
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.object_graph import output_range
from sightline.doctor.core.sample_statistics import class_axis, parts_by_category
from sightline.doctor.oracles.derivatives import SquaredErrorLoss
from sightline.doctor.oracles.results import loss_sums
from sightline.numba_kernels import compute_seconds

_SLACK = 1e-6
_MAX_ZEROS = 0.3
_LOW_TARGET, _MAX_LOW_TARGETS = 0.01, 0.1
"""Bound of low targets (share of the largest) and their maximum share: a ReLU at 0 gets no gradient to reach them."""
_RECTIFIERS = ("Relu", "Threshold")


@check("G22", "final-activation", "preflight", config_path="model")
def final_activation(context: Context) -> list[Finding]:
    """The range of the last operation includes every target, and outputs at 0 below a target get a gradient.

    Finds: A last layer that cannot reach the loss's targets: a ReLU, a sigmoid or the like at the end.

    The graph of operations decides, not the loss, which falls also while some outputs have gradients.
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


_MAX_SECONDS = 0.1  # CPU time of this thread, at the start of a training
_MAX_SECONDS_OF_CHECK = 5.0
_EVIDENCE = {"looked_at": "one training cloud in evaluation mode, on the CPU"}
_CPU = torch.device("cpu")  # an index out of range makes a GPU unusable for the rest of the process


@check("G3", "category-input", "preflight", config_path="model")
def category_input(context: Context) -> list[Finding]:
    """Each category has different outputs, and indices beyond the categories have no distinct outputs.

    Finds: Models that ignore their category input, or that were built for another number of categories than the data.
    """
    table, model = parts_by_category(context.built.data.facts), context.built.job.model
    rehearsal = context.dry_run
    if table is None or len(table) < 2 or not rehearsal.is_sound or "category" not in rehearsal.batch:
        return []
    if "category" not in inspect.signature(model.forward).parameters:
        return [_finding_no_category(context)] if context.is_thorough else []
    outputs = _CategoryOutputs(context, len(table))
    return list(_output_findings(context, outputs, len(table)))


class _CategoryOutputs:
    """Outputs of a copy of the model on the CPU for one training cloud, per category, within a time limit."""

    def __init__(self, context: Context, num_categories: int) -> None:
        job = context.built.job
        self.outputs: dict[int, Tensor | None] = {}
        self._model = isolated_copy(job.model).to(_CPU).eval()
        self._task = job.task
        self._batch = read_batch(job, step_keys(job, step=0)[:1], _CPU)
        max_seconds = _MAX_SECONDS_OF_CHECK if context.is_thorough else _MAX_SECONDS
        start_seconds = compute_seconds()
        for category in _order_categories(num_categories):
            if len(self.outputs) > 1 and compute_seconds() - start_seconds > max_seconds:
                break
            self.outputs[category] = self._run(category)

    def _run(self, category: int) -> Tensor | None:
        """Return the probabilities that the task predicts; None if the model fails on this category."""
        batch = {**self._batch, "category": torch.full_like(self._batch["category"], category)}
        try:
            with torch.no_grad():
                predictions = self._task.predict(self._model, batch)
        except (IndexError, ValueError, RuntimeError):
            return None
        probabilities = predictions.get("probabilities")
        return probabilities if isinstance(probabilities, Tensor) else None

    def are_alike(self, one: int, other: int) -> bool:
        """Return True if both categories have outputs, and these are bit-identical."""
        output, other_output = self.outputs.get(one), self.outputs.get(other)
        return output is not None and other_output is not None and torch.equal(output, other_output)


def _order_categories(num_categories: int) -> list[int]:
    """Return the categories in the order of testing: first and last two, two indices beyond, then all others."""
    ends = [0, 1, num_categories - 1, num_categories - 2, num_categories, num_categories + 1]
    return list(dict.fromkeys([*ends, *range(num_categories)]))


def _output_findings(context: Context, category_outputs: _CategoryOutputs, num_categories: int) -> Iterator[Finding]:
    """Yield a finding if outputs are missing, equal, or distinct beyond the data's categories."""
    tested = [category for category in range(num_categories) if category in category_outputs.outputs]
    refused = [category for category in tested if category_outputs.outputs[category] is None]
    if len(refused) == len(tested):
        return  # the failure is due to the single cloud or the device, not the category
    pairs = [
        (one, other) for one in tested for other in tested if one < other and category_outputs.are_alike(one, other)
    ]
    if refused:
        yield _finding_refused(context, refused, num_categories)
    elif len(pairs) == len(tested) * (len(tested) - 1) // 2:
        yield _finding_ignored(context, tested)
    elif pairs:
        yield _finding_equal(context, pairs, num_categories)
    else:
        beyond = category_outputs.outputs.get(num_categories)
        is_same = category_outputs.are_alike(num_categories, num_categories + 1)
        is_clamped = any(category_outputs.are_alike(num_categories, category) for category in tested)
        if beyond is not None and num_categories + 1 in category_outputs.outputs and not is_same and not is_clamped:
            yield _finding_length(context, num_categories)


def _finding_no_category(context: Context) -> Finding:
    return category_input.finding(
        context,
        f"model '{context.config.model.name}' does not take the category of an object",
        severity="note",
        causes=("cfg.contract",),
        measured="its forward takes no 'category'",
        expected="nothing; some published part models take the one-hot category and others do not",
        action="compare its results with those of models without the category too, or choose a model that takes it",
        evidence=_EVIDENCE,
    )


def _finding_refused(context: Context, refused: Sequence[int], num_categories: int) -> Finding:
    return category_input.finding(
        context,
        f"the model fails on category {refused[0]}, which occurs in the data",
        causes=("cfg.class_count", "cfg.contract"),
        measured=f"no output for category {', '.join(map(str, refused[:8]))} of 0 .. {num_categories - 1}",
        expected=f"outputs for all {num_categories} categories, the data set's fact num_categories",
        action="build the model for num_categories (a fact: name it in the constructor)",
        evidence=_EVIDENCE,
    )


def _finding_ignored(context: Context, categories: Sequence[int]) -> Finding:
    return category_input.finding(
        context,
        "the model takes 'category', but its outputs do not depend on it",
        severity="warning",
        causes=("cfg.contract", "model.structure", "model.init"),
        measured=f"the same bits for one cloud as category {', '.join(map(str, categories))}",
        expected="different outputs for different categories",
        action="join the one-hot category to the features of the head; a zero-initialised branch needs no change",
        evidence=_EVIDENCE,
    )


def _finding_equal(context: Context, pairs: Sequence[tuple[int, int]], num_categories: int) -> Finding:
    listed = ", ".join(f"{one} and {other}" for one, other in pairs[:8])
    return category_input.finding(
        context,
        f"the model cannot distinguish category {pairs[0][0]} from {pairs[0][1]}",
        causes=("cfg.class_count", "model.structure"),
        measured=f"the same bits for one cloud as category {listed}",
        expected=f"a one-hot of length {num_categories}, the data set's fact num_categories",
        action="build the model for num_categories (a fact: name it in the constructor), and do not clamp the category",
        evidence=_EVIDENCE,
    )


def _finding_length(context: Context, num_categories: int) -> Finding:
    return category_input.finding(
        context,
        f"the model was built for more categories than the {num_categories} of the data",
        severity="warning",
        causes=("cfg.class_count", "cfg.contract"),
        measured=f"category {num_categories} has distinct outputs",
        expected=f"a one-hot of length {num_categories}, the data set's fact num_categories",
        action="build the model for num_categories (a fact: name it in the constructor)",
        evidence=_EVIDENCE,
    )


_PRIOR, _FACTOR = 0.01, 10.0
_ROWS, _COLUMNS = 8, 11
"""Size of the finest map; each coarser map has one more row and two more columns, so that all sizes differ."""
_CORNER_SIZE = 5
_MIN_SHARE = 0.5
_LARGER_SCALE = 3
"""Scale of the maps of the second test: the receptive field of a deep head covers all of the small maps."""


@check(
    "G29", "level-order", "preflight", causes=("model.structure", "assign.anchor_coverage"), config_path="model.head"
)
def level_order(context: Context) -> list[Finding]:
    """A change of the upper right corner of each map mostly changes the outputs of the priors there.

    Finds: A head that does not start with rare objects, or whose outputs are in another order than the priors.

    The order of priors is level, row, column, prior of a cell.
    """
    model: Any = context.built.job.model
    channels = getattr(getattr(model, "neck", None), "channels", None)
    if context.assignments is None or channels is None:
        return []
    head = isolated_copy(model.head).eval().cpu().double()
    try:
        misordered = _find_misordered(head, channels, 1) and _find_misordered(head, channels, _LARGER_SCALE)
    except Exception as error:  # noqa: BLE001 - a plugin's head may need maps of certain sizes
        return [level_order.not_run(context, error)]
    return [
        level_order.finding(
            context,
            f"'{name}' of the head is in another order than the priors",
            measured=f"of the change of a corner of each map, {', '.join(shares)} at the priors of that corner, "
            "by level",
            expected=f"more than {_MIN_SHARE:.0%}",
            action="flatten by flatten_to_priors of models/detection/heads.py: levels finest first, rows, columns, "
            "priors of a cell",
            layer="head",
        )
        for name, shares in list(misordered.items())[:1]
    ]


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
    "G20",
    "prior-bias",
    "preflight",
    severity="warning",
    causes=("model.init", "model.structure"),
    config_path="model.head",
)
def prior_bias(context: Context) -> list[Finding]:
    """The mean score, or objectness, of an untrained detector is the head's `prior` (0.01) within a factor of 10.

    Finds: A head that does not start with rare objects, or whose outputs are in another order than the priors.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, section 4.1.
    """
    head = context.config.model.arguments.get("head")
    if context.assignments is None or context.config.init is not None or context.built.job.step:
        return []
    prior = float(getattr(head, "arguments", {}).get("prior", _PRIOR))
    outputs = context.first_outputs[1]
    score = float(outputs.get("objectness", outputs["logits"]).double().sigmoid().mean())
    if prior / _FACTOR <= score <= prior * _FACTOR:
        return []
    return [
        prior_bias.finding(
            context,
            "the untrained detector does not start with rare objects",
            measured=f"a mean score of {score:.4g}",
            expected=f"p = {prior:g}, to a factor of {_FACTOR:g}",
            action="start the class layer with the bias -ln((1 - p) / p) and small weights, and no norm after it",
        )
    ]
