"""Batch norms: statistics of few of a step's pairs, and inputs that vary less than epsilon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses
from sightline.workbench.check.checks.loss_terms import pairs_task
from sightline.workbench.check.context import Context, check, first_steps
from sightline.workbench.check.core.dry_run import DryRun, isolated_copy
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.oracles.results import float64, tree_map

MIN_PAIRS = 16
"""Minimum number of pairs per process for statistics of its own; the notes' port had two."""


@check(
    "G34",
    "batch-statistics",
    "static",
    severity="warning",
    causes=("dist.sync", "data.sampling"),
    config_path="distributed.sync_batch_norm",
)
def batch_statistics(context: Context) -> Fault | None:
    """Each batch norm of a contrastive run on several processes sees at least 16 pairs, or all pairs of the step.

    Finds: Batch norms that see few of a step's pairs, because each process computes its own statistics.

    The norm of a projection head has one row per embedding. The mean and deviation of few rows depend mostly on the
    embedding itself, so they reveal which samples are in the batch. Source: Chen et al. 2020, SimCLR, section 2.2
    (batch norms over all devices); the bound of 16 pairs is this project's own.
    """
    train, size = context.config.train, context.world.size
    if pairs_task(context) is None or size == 1 or context.config.distributed.sync_batch_norm:
        return None
    num_pairs = train.batch_size // train.micro_batches
    pairs_per_process = num_pairs // size
    norms = list(_iter_training_norms(context))
    if pairs_per_process >= MIN_PAIRS or not norms:
        return None
    larger_batch = "a larger train.batch_size"
    return Fault(
        f"{len(norms)} batch norm(s) see {pairs_per_process} pairs on each of {size} processes",
        measured=f"{num_pairs} pairs over {size} processes: statistics of {pairs_per_process} at '{norms[0]}' "
        "and the others",
        expected=f"{MIN_PAIRS} pairs or more, or the {num_pairs} of one process",
        action=f"set {larger_batch}" if train.compile else f"set distributed.sync_batch_norm: true, or {larger_batch}",
    )


def _iter_training_norms(context: Context) -> Iterator[str]:
    """Yield the names of the batch norms that use batch statistics in training; frozen modules do not."""
    model = isolated_copy(context.built.job.model).train()
    apply_freezing(model, context.built.job.frozen, context.built.job.epoch)
    for name, module in model.named_modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
        if is_norm and module.training:
            yield name


_MIN_RATIO = 10.0
_COLUMNS = ("batch norm", "input variance", "epsilon", "comes out with std")


@check(
    "G20",
    "norm-variance",
    "deep",
    each=first_steps,
    severity="note",
    causes=("model.init", "data.normalisation", "model.norm_mode"),
    config_path="model",
)
def norm_variance(context: Context, step: DryRun) -> Fault | None:
    """The input variance v of each batch norm is at least ten times epsilon; the output variance is v / (v + eps).

    Finds: Batch norms whose inputs vary so little that epsilon keeps the outputs below a variance of 1.
    """
    modules: dict[str, Any] = dict(context.built.job.model.named_modules())
    variances = {name: float(v.median()) for name, v in input_variances(context).items()}
    small = {name: v for name, v in variances.items() if v < _MIN_RATIO * modules[name].eps}
    if not small:
        return None
    rows = [
        [n, f"{v:.2e}", f"{modules[n].eps:g}", f"{(v / (v + modules[n].eps)) ** 0.5:.2f}"] for n, v in small.items()
    ]
    smallest = min(small, key=lambda name: small[name])
    return Fault(
        f"{len(small)} of {len(variances)} batch norms have inputs that vary less than ten times epsilon",
        layer=smallest,
        measured=f"variance {small[smallest]:.2e} in {smallest}, the median channel's",
        expected=f"over {_MIN_RATIO:g} epsilon = {_MIN_RATIO * modules[smallest].eps:g}",
        action="larger initial weights before it, or a smaller epsilon, unless the recipe intends it",
        evidence={"table": {"title": "batch norms of small inputs", "columns": list(_COLUMNS), "rows": rows}},
    )


def input_variances(context: Context) -> dict[str, Tensor]:
    """Measure the unbiased input variance (C,) of each batch norm in the first step, by module name.

    It is read from the running averages after one float64 pass, so that norms inside fused kernels are included.
    """
    job = context.built.job
    model = isolated_copy(job.model).double().train()
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None
    }
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # the average over one batch equals its statistics
    batch = tree_map(context.dry_run.batch, float64)
    compute_batch_losses(job.task, model, batch, context.world.device)
    return {name: norm.running_var.clone() for name, norm in norms.items() if int(norm.num_batches_tracked) > 0}  # type: ignore[union-attr, arg-type]
