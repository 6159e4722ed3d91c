"""Losses of a network with constant output: constant predictions whose losses are known from the targets alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sightline.workbench.check.context import Context, SquaredLoss, check, squared_losses
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import class_axis
from sightline.workbench.check.oracles.derivatives import SquaredErrorLoss
from sightline.workbench.check.oracles.results import loss_counts, loss_sums

_MIN_SHARE = 1e-6


@dataclass(frozen=True)
class ConstantBaseline:
    """A constant prediction: its description, its loss, and the key of its output."""

    loss: str
    description: str
    value: float
    output_key: str
    prediction: float | None = None


_NOTE = partial(
    check,
    "G21",
    severity="note",
    causes=("model.constant_output",),
    expected="a training loss that goes below all of these",
    action="nothing; a loss that stays at one of these has learned nothing",
)
"""Declaration of a rule that notes the losses of constant predictions."""


@_NOTE("trivial-predictors", "preflight", each=squared_losses)
def trivial_predictors(context: Context, loss: SquaredLoss) -> Iterator[Fault]:
    """Each squared error falls below the losses of predicting 0 and the mean target, which this check notes.

    Finds: The loss of a network with constant output, computed from the targets alone.
    """
    return _make_notes(context, loss.name, squared_loss_baselines(loss.name, loss.squares))


@_NOTE("trivial-classes", "deep")
def trivial_classes(context: Context) -> Iterator[Fault]:
    """Cross entropy falls below the losses of equal probabilities and of the class shares, which this check notes.

    Finds: The loss of a network with constant output, computed from the targets alone.
    """
    for name in _cross_entropies(context):
        yield from _make_notes(context, name, _class_baselines(context, name))


def trivial_predictions(context: Context) -> Iterator[ConstantBaseline]:
    """Yield all constant predictions whose losses are known for this run."""
    for name, squares in context.squared_losses.items():
        yield from squared_loss_baselines(name, squares)
    for name in _cross_entropies(context):
        yield from _class_baselines(context, name)


def _cross_entropies(context: Context) -> list[str]:
    names = [component.name for component in context.config.losses if component.name == "cross_entropy"]
    return names if context.dry_run.is_sound else []


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


def _make_notes(context: Context, name: str, predictions: Iterable[ConstantBaseline]) -> Iterator[Fault]:
    losses = {prediction.description: prediction.value for prediction in predictions}
    if losses:
        measured = "; ".join(f"{description}: {value:.4e}" for description, value in losses.items())
        yield Fault(
            f"'{name}' of a network with constant output: {measured}",
            at=context.loss_path(name),
            measured=measured,
            evidence=losses,
        )
