"""Rule of the logits of a run before its training."""

from __future__ import annotations

import math

from torch import Tensor

from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.dry_run import DryRun
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
