"""The loss of a network with constant output, computed from the targets alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sightline.doctor.context import Check, Context, check
from sightline.doctor.core.class_axes import class_axis
from sightline.doctor.core.finding import Finding
from sightline.doctor.oracles.replay import loss_counts, loss_sums
from sightline.doctor.oracles.squares import SquaredErrorLoss

__all__ = ["ConstantBaseline", "trivial_classes", "trivial_predictions", "trivial_predictors"]

_MIN_SHARE = 1e-6


@dataclass(frozen=True)
class ConstantBaseline:
    """A constant prediction: its description, its loss, and the key of its output."""

    loss: str
    description: str
    value: float
    output_key: str
    prediction: float | None = None


@check("G21", "trivial-predictors", "preflight")
def trivial_predictors(context: Context) -> list[Finding]:
    """Each squared error falls below the losses of predicting 0 and the mean target, which this check notes.

    Finds: The loss of a network with constant output, computed from the targets alone.
    """
    return [
        _note(trivial_predictors, context, name, predictions)
        for name, squares in context.squared_losses.items()
        if (predictions := list(squared_loss_baselines(name, squares)))
    ]


@check("G21", "trivial-classes", "deep")
def trivial_classes(context: Context) -> list[Finding]:
    """Cross entropy falls below the losses of equal probabilities and of the class shares, which this check notes.

    Finds: The loss of a network with constant output, computed from the targets alone.
    """
    names = [component.name for component in context.config.losses if component.name == "cross_entropy"]
    predictions = {name: list(_class_baselines(context, name)) for name in names if context.dry_run.is_sound}
    return [_note(trivial_classes, context, name, baselines) for name, baselines in predictions.items() if baselines]


def trivial_predictions(context: Context) -> Iterator[ConstantBaseline]:
    """Yield all constant predictions whose losses are known for this run."""
    for name, squares in context.squared_losses.items():
        yield from squared_loss_baselines(name, squares)
    for component in context.config.losses:
        if component.name == "cross_entropy" and context.dry_run.is_sound:
            yield from _class_baselines(context, component.name)


def squared_loss_baselines(name: str, squares: SquaredErrorLoss) -> Iterator[ConstantBaseline]:
    """Yield the baselines 0 and mean target of a squared error; none for a penalty, whose target is 0."""
    if squares.zero == 0:
        return
    yield ConstantBaseline(name, "0 everywhere", squares.zero, squares.output_key, 0.0)
    description = f"the mean target {squares.middle:.4g} everywhere"
    yield ConstantBaseline(name, description, squares.constant_baseline, squares.output_key, squares.middle)


def _class_baselines(context: Context, name: str) -> Iterator[ConstantBaseline]:
    census = next((counts for counts in context.class_counts if counts is not None and counts.split == "train"), None)
    logits, label = context.dry_run.seen_outputs.get("logits"), context.dry_run.batch.get("label")
    if census is None or not census.targets.sum() or not isinstance(logits, Tensor) or not isinstance(label, Tensor):
        return
    axis = class_axis(logits, label)
    if axis is None or logits.shape[axis] != len(census.targets):
        return
    shares = census.targets / census.targets.sum()
    prior = np.log(np.maximum(shares, _MIN_SHARE))
    predictions = (("all classes equally likely", np.zeros_like(prior)), ("the classes' shares in training", prior))
    for description, prediction in predictions if len(set(shares.tolist())) > 1 else predictions[:1]:
        value = _compute_expected_loss(context, name, axis, torch.from_numpy(prediction), shares)
        if math.isfinite(value):
            yield ConstantBaseline(name, description, value, "logits")


def _compute_expected_loss(context: Context, name: str, axis: int, prediction: Tensor, shares: np.ndarray) -> float:
    """Compute the configured loss of constant logits (C,), with each label as frequent as in training."""
    job, rehearsal = context.built.job, context.dry_run
    logits = rehearsal.seen_outputs["logits"]
    shape = [1] * logits.ndim
    shape[axis] = -1
    outputs = {**rehearsal.seen_outputs, "logits": prediction.to(logits.device).view(shape).expand(logits.shape)}
    total, count = 0.0, 0.0
    for number, share in enumerate(shares.tolist()):
        if share > 0:
            batch = {**rehearsal.batch, "label": torch.full_like(rehearsal.batch["label"], number)}
            with torch.no_grad():
                total += share * float(loss_sums(job, batch, outputs)[name])
                count += share * loss_counts(job, batch, outputs)[name]
    return total / count if count else math.nan


def _note(check: Check, context: Context, name: str, predictions: list[ConstantBaseline]) -> Finding:
    description = "; ".join(f"{prediction.description}: {prediction.value:.4e}" for prediction in predictions)
    return check.finding(
        context,
        f"'{name}' of a network with constant output: {description}",
        severity="note",
        causes=("model.constant_output",),
        at=context.loss_path(name),
        measured=description,
        expected="a training loss that goes below all of these",
        action="nothing; a loss that stays at one of these has learned nothing",
        evidence={prediction.description: prediction.value for prediction in predictions},
    )
