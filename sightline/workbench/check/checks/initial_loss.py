"""Checks of the loss before training: its value at chance for each kind of loss."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.contract.errors import UserError
from sightline.contract.types import Batch
from sightline.engine.step import compute_batch_losses
from sightline.ops.labels import widen_labels
from sightline.ops.numba_kernels import compute_seconds
from sightline.workbench.check.context import Context, check, first_steps
from sightline.workbench.check.core.dry_run import DryRun, Outputs, take_samples
from sightline.workbench.check.core.finding import Fault, Hypothesis, explain, is_near
from sightline.workbench.check.core.sample_statistics import class_axis
from sightline.workbench.check.oracles.results import FixedOutputs, loss_counts, task_with

_NUM_PERMUTATIONS = 100
_MIN_PERMUTATIONS = 50
_MAX_SECONDS = 0.5
_FEW_PERMUTATIONS, _SMALL_Z = 12, 3.0
"""Permutations that give their deviation to a factor of 2, but for one run in 100,000, and half of `_MAX_Z`."""
_MANY_TARGETS = 4 * 2**12
"""Targets of a batch of which two samples are enough at a training's start."""
_MIN_CLASSES = 5
_MAX_Z = 6.0  # the maximum of 60 correct networks was 2.9
_MAX_STD = 3.0
_RELATIVE = 1e-4  # float32 sums of a few hundred terms are off by some 1e-6
_RELATIVE_16_BIT = 3e-2


@dataclass(frozen=True)
class _Case:
    """Loss that reads `logits` and `label`, with the first outputs of the model, to evaluate it for any labels."""

    context: Context
    name: str
    batch: Batch
    outputs: Outputs
    label: Tensor
    is_class: Tensor
    num_classes: int
    log_p: Tensor
    logits: Tensor

    def value(self, label: Tensor) -> tuple[float, float]:
        """Return the configured loss's sum and count for these labels."""
        job, device = self.context.built.job, self.context.world.device
        with torch.no_grad():
            sums, counts = compute_batch_losses(
                task_with(job, self.name), FixedOutputs(self.outputs), self._batch(label), device, job.precision
            )
        return float(sums[self.name]), float(counts[self.name])

    def count(self, label: Tensor) -> float:
        """Return the configured loss's count for these labels."""
        with torch.no_grad():
            job, device = self.context.built.job, self.context.world.device
            counts = loss_counts(job, self._batch(label), self.outputs, device, loss=self.name)
        return counts[self.name]

    def _batch(self, label: Tensor) -> Batch:
        return {**self.batch, "label": label}

    def mean(self, label: Tensor) -> float:
        total, count = self.value(label)
        return total / count if count > 0 else math.nan

    def relabel(self, table: Tensor) -> Tensor:
        """Map the labels by `table` (num_classes,) int64; ignored targets keep their labels."""
        return torch.where(self.is_class, table[self.label.clamp(0, self.num_classes - 1)], self.label)


@check("initial-loss", "preflight", each=first_steps)
def initial_loss(context: Context, step: DryRun) -> Iterator[Fault]:
    """The mean cross entropy over all cyclic shifts of the classes is mean_i[logsumexp(z_i) - mean_c z_ic].

    Finds: A first loss that differs from the cross entropy of the same logits, and logits that no untrained model has.

    This holds for any logits z. The logits of an untrained model have a standard deviation of at most 3, and its loss
    on the true labels is as that on permuted classes.
    """
    batch, outputs = context.first_outputs
    label = batch.get("label")
    if not context.is_thorough and isinstance(label, Tensor) and label.numel() > _MANY_TARGETS:
        batch, outputs = (take_samples(part, batch, range(2)) for part in (batch, outputs))
    for component in context.config.losses:
        case = _make_case(context, component.name, batch, outputs)
        if case is not None:
            fault = _judge_definition(case) if component.name == "cross_entropy" else None
            yield from [fault] if fault is not None else _start_faults(case) if context.is_fresh else []


def _make_case(context: Context, name: str, batch: Batch, outputs: Outputs) -> _Case | None:
    facts = context.built.data.facts
    logits, label, num_classes = outputs.get("logits"), batch.get("label"), facts.get("num_classes")
    if not isinstance(logits, Tensor) or not isinstance(label, Tensor) or not isinstance(num_classes, int):
        return None
    axis = class_axis(logits, label)
    if axis is None or logits.shape[axis] != num_classes or num_classes < 2 or label.is_floating_point():
        return None
    label = widen_labels(label)
    is_class = (label >= 0) & (label < num_classes)
    if facts.get("ignore_index") is not None:
        is_class &= label != facts["ignore_index"]
    if not bool(is_class.any()) or not bool(logits.isfinite().all()):
        return None
    logits_NC = logits.movedim(axis, -1)[is_class].double()
    return _Case(
        context, name, batch, outputs, label, is_class, num_classes, F.log_softmax(logits_NC, dim=-1), logits_NC
    )


# --- the exact part: what cross entropy is ---------------------------------------------------------------------------


def _judge_definition(case: _Case) -> Fault | None:
    """Compare the loss, averaged over all cyclic shifts of the classes, with the definition of cross entropy.

    Over all shifts every class is the label once, so label smoothing and targets cancel. With weights w_c (measured by
    the counts) the mean is sum_ic w_c (-log p_ic) / (N sum_c w_c), exactly.
    """
    shifts = [torch.arange(case.num_classes, device=case.label.device).roll(shift) for shift in range(case.num_classes)]
    values = [case.value(case.relabel(table)) for table in shifts]
    measured_sum, measured_count = (math.fsum(column) for column in zip(*values, strict=True))
    weights_C = _measure_class_weights(case)
    if weights_C is None or measured_count <= 0:
        return None
    measured = measured_sum / measured_count
    expected = _weighted_mean(case.log_p, weights_C)
    tolerance = _RELATIVE if case.outputs["logits"].dtype in (torch.float32, torch.float64) else _RELATIVE_16_BIT
    if abs(measured - expected) <= tolerance * max(1.0, abs(expected)):
        return None
    ratio = measured / expected if expected else math.nan
    best, *_ = explain(
        measured,
        expected,
        _iter_loss_faults(case, weights_C),
        likeness=is_near(1e-3),
        otherwise=Hypothesis("loss.form", f"{ratio:.4g} times it", action="compare the loss with its definition"),
    )
    others = ("loss.normaliser", "loss.form", "loss.weights", "loss.double_softmax", "loss.sign")
    return Fault(
        f"the loss '{case.name}' is not the cross entropy of these logits: {best.text}",
        causes=(best.cause, *[other for other in others if other != best.cause][:3]),
        at=case.context.loss_path(case.name),
        measured=f"{measured:.6g}, sum / count over all {case.num_classes} shifts of the classes",
        expected=f"{expected:.6g} = mean_i[logsumexp(z_i) - mean_c z_ic]"
        + ("" if float(weights_C.std()) < 1e-12 else " with the class weights"),
        action=best.hypothesis.action,
        evidence={
            "field": case.name,
            "ratio": measured / expected,
            "targets": len(case.logits),
            "num_classes": case.num_classes,
        },
    )


def _measure_class_weights(case: _Case) -> Tensor | None:
    """Measure the class weights (C,), relative to their mean, by counts of one-class batches; None if invalid."""
    try:
        counts = [case.count(torch.where(case.is_class, c, case.label)) for c in range(case.num_classes)]
    except UserError:  # the count of a class with a negative weight, which `class-weight-length` names
        return None
    weights_C = torch.tensor(counts, dtype=torch.float64, device=case.log_p.device)
    return weights_C / weights_C.mean() if bool(weights_C.isfinite().all()) and float(weights_C.sum()) > 0 else None


def _weighted_mean(log_p_NC: Tensor, weights_C: Tensor) -> float:
    return float(-(log_p_NC * weights_C).sum() / (len(log_p_NC) * weights_C.sum()))


def _iter_loss_faults(case: _Case, weights_C: Tensor) -> Iterator[Hypothesis]:
    """Yield what a cross entropy may be instead: of a softmax, negative, or with a division missing or one too many."""
    yield Hypothesis(
        "loss.double_softmax",
        "the value of a softmax taken twice",
        _weighted_mean(F.log_softmax(case.logits.softmax(dim=-1), dim=-1), weights_C),
        "give the loss logits: take the softmax out of the model or of the loss",
    )
    action = "minimise the negative log likelihood: drop the extra minus"
    yield Hypothesis("loss.sign", "its sign is flipped", operator.neg, action)
    logits, num_samples = case.outputs["logits"], len(case.batch["sample_index"])
    numbers = {
        "the samples of the batch": num_samples,
        "the targets of a sample": logits.numel() // (num_samples * case.num_classes),
        "all targets": len(case.logits),
        "the classes": case.num_classes,
        "all logits": logits.numel(),
    }
    for name, number in numbers.items():
        for factor, change in ((1 / number, "divided by"), (number, "multiplied by")) if number > 1 else ():
            action = "return a SUM from forward and its divisor from count"
            yield Hypothesis("loss.normaliser", f"{change} {name} ({number})", partial(operator.mul, factor), action)


# --- the statistical part: a fresh model has learnt nothing -----------------------------------------------------------


def _start_faults(case: _Case) -> Iterator[Fault]:
    centred_NC = case.logits - case.logits.mean(dim=-1, keepdim=True)
    std = float(centred_NC.std(correction=0))
    uniform = math.log(case.num_classes)
    measured = case.mean(case.label)
    if std > _MAX_STD:
        yield Fault(
            f"the untrained model is over-confident: its logits have standard deviation {std:.3g}",
            severity="warning",
            causes=("model.init", "model.numerics", "data.normalisation"),
            at="model",
            layer=case.context.last_layer,
            measured=f"logit std {std:.4g}, '{case.name}' {measured:.4g}",
            expected=f"std <= {_MAX_STD:g}; a loss near ln {case.num_classes} = {uniform:.4g} (plus std^2 / 2)",
            action="scale the initial weights by 1/sqrt(fan-in), or normalise what goes into the last layer",
            evidence={"targets": len(case.logits)},
        )
    elif case.num_classes >= _MIN_CLASSES:
        yield from _dependence_faults(case, measured)


def _dependence_faults(case: _Case, measured: float) -> Iterator[Fault]:
    """Yield a fault if the loss on the true labels is far from that on permuted classes, before training."""
    draws = np.random.Generator(np.random.PCG64(0))
    start_seconds = compute_seconds()
    values: list[float] = []
    while len(values) < _NUM_PERMUTATIONS and compute_seconds() - start_seconds < _MAX_SECONDS:
        table = torch.from_numpy(draws.permutation(case.num_classes)).to(case.label.device)
        values.append(case.mean(case.relabel(table)))
        if (compute_seconds() - start_seconds) / len(values) * _MIN_PERMUTATIONS > _MAX_SECONDS and len(values) > 2:
            return  # there is no time for as many as are needed
        if len(values) == _FEW_PERMUTATIONS and abs(measured - np.mean(values)) <= _SMALL_Z * np.std(values):
            return
    mean, std = float(np.mean(values)), float(np.std(values))
    if len(values) < _MIN_PERMUTATIONS or not math.isfinite(std) or std <= 1e-9 * max(1.0, abs(mean)):
        return
    z = (measured - mean) / std
    if abs(z) <= _MAX_Z:
        return
    is_lower = z < 0
    yield Fault(
        f"the untrained model does far {'better' if is_lower else 'worse'} on the true labels than on permuted ones",
        severity="warning",
        causes=("data.label_leak", "model.init") if is_lower else ("data.label_mapping", "model.init", "loss.sign"),
        at="data" if is_lower else case.context.loss_path(case.name),
        split="train",
        measured=f"'{case.name}' {measured:.4g}, z = {z:.3g} against {len(values)} permutations of the classes",
        expected=f"{mean:.4g} +- {std:.2g}, |z| <= {_MAX_Z:g}",
        action=f"look for {'the label among the inputs' if is_lower else 'classes in another order in data or head'}",
        evidence={"targets": len(case.logits), "renamings": len(values)},
    )


_TOLERANCE = 1e-6  # relative, in float64: both sides have the same rows
_MIN_PAIRS = 4


_MIN_SHARE = 0.5
_MAX_RATIO = 2.0
_MAX_DEVIATIONS = 4
"""Standard deviations of a mean of squares that are taken for chance: one is sqrt(2 / N) of the mean."""
