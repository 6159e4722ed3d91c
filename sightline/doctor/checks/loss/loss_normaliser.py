"""A loss of priors that is divided by all of them, or that ignored ones move: background drowns the boxes."""

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

_SURE = -50.0
"""The logit of a prior that is sure of background: no loss is left of it."""
_RELATIVE = 2e-3
_FEW = 1000
"""Priors besides those with a box: enough for the sums, few enough for eighty classes."""


@check("G20", "loss-normaliser", "preflight", causes=("loss.normaliser", "data.ignore_handling", "loss.form"))
def loss_normaliser(context: Context) -> list[Finding]:
    """Twice as many priors, the new ones surely background or ignored whatever they predict, leave every loss as it is.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, section 4.1: divided by the priors with a box.
    """
    if context.assignments is None or not int(context.assignments.positives.sum()):
        return []
    try:
        plain, wide, hidden = (_means(context, target) for target in (None, BACKGROUND, IGNORED))
    except Exception as error:  # noqa: BLE001 - a loss of others may read what cannot be enlarged
        return [loss_normaliser.not_run(context, error)]
    return [
        loss_normaliser.finding(
            context,
            f"the loss '{name}' depends on how many priors are {what}",
            at=context.loss_path(name),
            measured=f"{value:.6g}, and {moved[name]:.6g} with twice as many priors, the new ones {what}",
            expected="the same",
            action="count priors with a box, (target >= 0).sum(), and leave those whose target is -2 out of the sum",
            evidence={"field": name},
        )
        for name, value in plain.items()
        for what, moved in (("background, predicted for certain", wide), ("ignored", hidden))
        if not math.isclose(value, moved[name], rel_tol=_RELATIVE, abs_tol=1e-9)
    ]


def _means(context: Context, added: int | None) -> dict[str, float]:
    """Each loss on first outputs at some priors; with as many more whose target is `added`, where that is stated."""
    job, (batch, outputs) = context.built.job, context.first_outputs
    task: Any = copy.copy(job.task)
    around = task.context(job.model, batch)
    count, kept = len(around["priors"]), (around["target"] >= 0).any(dim=0)
    kept[:: 1 + count // _FEW] = True

    def doubled(value: Tensor, fill: float | None = None) -> Tensor:
        axis = next((axis for axis in (1, 0) if value.shape[axis : axis + 1] == (count,)), None)
        if axis is None:
            return value
        some = value.index_select(axis, kept.nonzero().flatten())
        more = some if fill is None else torch.full_like(some, fill)
        return some if added is None else torch.cat([some, more], dim=axis)

    around = {
        name: doubled(value, added if name in ("target", "second_match") else None) for name, value in around.items()
    }
    logit = _SURE if added == BACKGROUND else -_SURE
    outputs = {
        name: doubled(value, logit if name in ("logits", "objectness") else None) for name, value in outputs.items()
    }
    task.context = lambda model, batch: around
    with torch.no_grad():
        sums, counts = compute_batch_losses(task, FixedOutputs(outputs), batch, context.world.device, job.precision)
    return {name: float(divide_by_count(total, counts[name])) for name, total in sums.items()}
