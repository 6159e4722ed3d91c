"""Losses and metrics that do not leave out the targets that the data set ignores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.checks.metric.synthetic_predictions import (
    PredictionMaker,
    SyntheticBatch,
    build_prediction_maker,
    can_score,
    name_of_metric,
    score_metric,
)
from sightline.doctor.context import Context, check
from sightline.doctor.core.class_axes import class_axis
from sightline.doctor.core.finding import Finding
from sightline.doctor.oracles.replay import FixedOutputs
from sightline.engine.evaluate import BoundMetric
from sightline.engine.step import compute_batch_losses

__all__ = ["ignored_targets"]

_MAX_ROWS = 8
"""Rows of range images: enough for a decision, and few enough to sort."""
_RELATIVE = 1e-4


@check(
    "G4",
    "ignored-targets",
    "preflight",
    causes=("data.ignore_handling", "loss.form", "eval.protocol"),
    expected="the same whatever is predicted for targets that the data set ignores",
    action="make it take the fact `ignore_index`, and leave out the targets that have it",
)
def ignored_targets(context: Context) -> list[Finding]:
    """No loss over labels and no metric depends on the predictions for targets with the ignore index.

    Finds: Losses and metrics that do not leave out the targets that the data set ignores.
    """
    ignored, maker = context.built.data.facts.get("ignore_index"), build_prediction_maker(context)
    if ignored is None or maker is None:
        return []
    meters = [meter for meter in context.built.selection_evaluator.metrics if can_score(context, meter)]
    metric_findings = (finding for meter in meters for finding in _metric_findings(context, maker, meter, ignored))
    return [*_loss_findings(context, ignored), *metric_findings]


def _loss_findings(context: Context, ignored: int) -> Iterator[Finding]:
    outputs, batch = context.dry_run.seen_outputs, context.dry_run.batch
    logits, label = outputs["logits"].detach(), batch["label"]
    axis = class_axis(logits, label)
    assert axis is not None, "a run without a class axis has no maker"
    if label.ndim == 3:
        logits, label = logits.movedim(axis, -1)[:, :_MAX_ROWS].movedim(-1, axis), label[:, :_MAX_ROWS]
    hidden, other_label = _hide_labels(label, ignored), label.flatten().roll(label.numel() // 2).view(label.shape)
    try:
        plain, rolled, relabelled = (
            _compute_losses(context, {**outputs, "logits": case_logits}, {**batch, "label": case_label})
            for case_logits, case_label in (
                (logits, hidden),
                (_roll_classes(logits, axis, hidden == ignored), hidden),
                (logits, torch.where(hidden == ignored, hidden, other_label)),
            )
        )
    except Exception as error:  # noqa: BLE001 - a loss may need labels and logits of whole batches
        yield ignored_targets.not_run(context, error)
        return
    for name, value in plain.items():
        is_of_labels = not torch.isclose(relabelled[name], value, rtol=_RELATIVE)
        if is_of_labels and not torch.isclose(rolled[name], value, rtol=_RELATIVE, atol=0):
            yield ignored_targets.finding(
                context,
                f"the loss '{name}' learns from targets that the data set ignores",
                at=context.loss_path(name),
                measured=f"{float(value):.6g}, and {float(rolled[name]):.6g} with other logits where the label is "
                f"{ignored}",
                evidence={"field": "label"},
            )


def _metric_findings(context: Context, maker: PredictionMaker, meter: BoundMetric, ignored: int) -> Iterator[Finding]:
    classes = maker.choices[0]
    synthetic = maker.make_batch(
        range(maker.num_samples),
        lambda rank, size, category: [classes[(rank + offset) % len(classes)] for offset in range(size)],
        get_category=lambda rank: 0,
        wrong=True,
    )
    label = _hide_labels(synthetic.batch["label"], ignored)
    batch = {**synthetic.batch, "label": label}
    rolled = _roll_classes(synthetic.logits, synthetic.logits.ndim + maker.axis, label == ignored)
    try:
        plain, other = (
            score_metric(context, meter, [SyntheticBatch(batch, logits)]) for logits in (synthetic.logits, rolled)
        )
    except Exception:  # noqa: BLE001 - `per-batch-metric` reports why a metric fails
        return
    changed = [name for name, value in plain.items() if abs(other[name] - value) > _RELATIVE]
    if changed:
        name, path = name_of_metric(context, meter)
        yield ignored_targets.finding(
            context,
            f"the metric '{name}' scores targets that the data set ignores",
            causes=("eval.protocol", "data.ignore_handling"),
            at=path,
            measured=f"{changed[0]} {plain[changed[0]]:.6g}, and {other[changed[0]]:.6g} with other predictions where "
            f"the label is {ignored}",
            evidence={"field": "target"},
        )


def _hide_labels(label: Tensor, ignored: int) -> Tensor:
    """Set every third label to the ignore index."""
    is_hidden = torch.arange(label.numel(), device=label.device).view(label.shape) % 3 == 0
    return label.masked_fill(is_hidden, ignored)


def _roll_classes(logits: Tensor, axis: int, mask: Tensor) -> Tensor:
    """Roll the logits of the targets in `mask` by one class."""
    return torch.where(mask.unsqueeze(axis), logits.roll(1, axis), logits)


def _compute_losses(context: Context, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
    job = context.built.job
    with torch.no_grad():
        return compute_batch_losses(job.task, FixedOutputs(outputs), dict(batch), context.world.device, job.precision)[
            0
        ]
