"""Rules of losses with their runs: logits before training, and the divisor of a loss of priors."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.engine.step import compute_batch_losses, divide_by_count
from sightline.ops.priors import BACKGROUND, IGNORED
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.dry_run import DryRun
from sightline.workbench.check.core.fixed_outputs import FixedOutputs
from sightline.workbench.check.core.sample_statistics import class_axis

_MAX_STD = 3.0


@rule(
    "initial-loss",
    "warning",
    "model.init model.numerics data.normalisation",
    holds="logits of an untrained model that have a standard deviation of at most 3 over the classes",
    do="scale the initial weights by 1/sqrt(fan-in), or normalise what goes into the last layer",
)
def initial_loss(run: Context, first_step: DryRun) -> Fault | None:
    """Measure the logits of an untrained model."""
    batch, outputs = run.first_outputs
    logits, label = outputs.get("logits"), batch.get("label")
    if not run.is_fresh or not isinstance(logits, Tensor) or not isinstance(label, Tensor):
        raise NotApplicableError("no class logits of an untrained model")
    axis = class_axis(logits, label)
    if axis is None or logits.shape[axis] < 2 or not bool(logits.isfinite().all()):
        raise NotApplicableError("no class logits of an untrained model")
    std = float((logits - logits.mean(dim=axis, keepdim=True)).double().std(correction=0))
    if std <= _MAX_STD:
        return None
    return Fault(
        f"the untrained model is over-confident: its logits have standard deviation {std:.3g}",
        measured=f"{std:.4g}",
        expected=f"at most {_MAX_STD:g}; a loss near ln {logits.shape[axis]} = {math.log(logits.shape[axis]):.4g}",
        where=FindingLocation(layer=run.last_layer, config_path="model"),
    )


_BACKGROUND_LOGIT = -50.0
"""Logit of a prior that predicts background with certainty: its loss is 0."""
_TOLERANCE = 2e-3
_MAX_OTHER_PRIORS = 1000
"""Number of priors without a box that are kept: enough for the sums, few enough for eighty classes."""


@rule(
    "loss-normaliser",
    "error",
    "loss.normaliser data.ignore_handling loss.form",
    holds="a loss of priors that others, which are ignored or certainly background, do not change",
    do="count priors with a box, (target >= 0).sum(), and leave those whose target is -2 out of the sum",
)
def loss_normaliser(run: Context) -> Iterator[Fault]:
    """Double the priors. Source: Lin et al. 2017, Focal Loss for Dense Object Detection, section 4.1."""
    if run.assignments is None or not int(run.assignments.positives.sum()):
        raise NotApplicableError("no boxes with priors")
    original, with_background, with_ignored = (_compute_losses(run, target) for target in (None, BACKGROUND, IGNORED))
    for name, (value, count) in original.items():
        for what, enlarged in (("background, predicted for certain", with_background), ("ignored", with_ignored)):
            other, other_count = enlarged[name]
            if not math.isclose(value, other, rel_tol=_TOLERANCE, abs_tol=1e-9):
                is_learned = enlarged is with_ignored and other_count == count
                yield Fault(
                    f"the loss '{name}' depends on how many priors are {what}",
                    causes=("data.ignore_handling", "loss.normaliser", "loss.form") if is_learned else (),
                    where=FindingLocation(config_path=run.loss_path(name)),
                    measured=f"{value:.6g}, and {other:.6g} with twice as many priors, the new ones {what}; divided by "
                    f"{count:g}, and by {other_count:g}",
                    evidence={"field": name},
                )


def _compute_losses(context: Context, added: int | None) -> dict[str, tuple[float, float]]:
    """Compute each mean loss and its count at some priors, plus as many with the target `added` unless None."""
    job, (batch, outputs) = context.built.job, context.first_outputs
    task: Any = copy.copy(job.task)
    run_context = task.context(job.model, batch)
    num_priors, is_selected = len(run_context["priors"]), (run_context["target"] >= 0).any(dim=0)
    is_selected[:: 1 + num_priors // _MAX_OTHER_PRIORS] = True

    def enlarge(value: Tensor, fill: float | None = None) -> Tensor:
        axis = next((axis for axis in (1, 0) if value.shape[axis : axis + 1] == (num_priors,)), None)
        if axis is None:
            return value
        selected = value.index_select(axis, is_selected.nonzero().flatten())
        extra = selected if fill is None else torch.full_like(selected, fill)
        return selected if added is None else torch.cat([selected, extra], dim=axis)

    run_context = {
        name: enlarge(value, added if name in ("target", "second_match") else None)
        for name, value in run_context.items()
    }
    logit = _BACKGROUND_LOGIT if added == BACKGROUND else -_BACKGROUND_LOGIT
    outputs = {
        name: enlarge(value, logit if name in ("logits", "objectness") else None) for name, value in outputs.items()
    }
    task.context = lambda model, batch: run_context
    with torch.no_grad():
        sums, counts = compute_batch_losses(task, FixedOutputs(outputs), batch, context.world.device, job.precision)
    return {name: (float(divide_by_count(total, counts[name])), float(counts[name])) for name, total in sums.items()}
