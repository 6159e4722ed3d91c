"""A loss of priors that is divided by all priors, or that ignored priors change: background drowns the boxes."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.oracles.replay import FixedOutputs
from sightline.engine.step import compute_batch_losses, divide_by_count
from sightline.geometry.boxes.priors import BACKGROUND, IGNORED

__all__ = ["loss_normaliser"]

_BACKGROUND_LOGIT = -50.0
"""Logit of a prior that predicts background with certainty: its loss is 0."""
_TOLERANCE = 2e-3
_MAX_OTHER_PRIORS = 1000
"""Number of priors without a box that are kept: enough for the sums, few enough for eighty classes."""


@check("G20", "loss-normaliser", "preflight", causes=("loss.normaliser", "data.ignore_handling", "loss.form"))
def loss_normaliser(context: Context) -> list[Finding]:
    """Doubling the priors with ones that are ignored, or certainly background, does not change any loss.

    Finds: A loss of priors that is divided by all priors, or that ignored priors change: background drowns the boxes.

    The sum is divided by the number of priors with a box. Source: Lin et al. 2017, Focal Loss for Dense Object
    Detection, section 4.1.
    """
    if context.assignments is None or not int(context.assignments.positives.sum()):
        return []
    try:
        original, with_background, with_ignored = (
            _compute_mean_losses(context, target) for target in (None, BACKGROUND, IGNORED)
        )
    except Exception as error:  # noqa: BLE001 - a plugin's loss may read inputs that cannot be enlarged
        return [loss_normaliser.not_run(context, error)]
    return [
        loss_normaliser.finding(
            context,
            f"the loss '{name}' depends on how many priors are {what}",
            at=context.loss_path(name),
            measured=f"{value:.6g}, and {enlarged[name]:.6g} with twice as many priors, the new ones {what}",
            expected="the same",
            action="count priors with a box, (target >= 0).sum(), and leave those whose target is -2 out of the sum",
            evidence={"field": name},
        )
        for name, value in original.items()
        for what, enlarged in (("background, predicted for certain", with_background), ("ignored", with_ignored))
        if not math.isclose(value, enlarged[name], rel_tol=_TOLERANCE, abs_tol=1e-9)
    ]


def _compute_mean_losses(context: Context, added: int | None) -> dict[str, float]:
    """Compute each mean loss on the first outputs at some priors, plus as many with the target `added` unless None."""
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
    return {name: float(divide_by_count(total, counts[name])) for name, total in sums.items()}
