"""Batch norms that see few of a step's pairs, because each process computes its own statistics."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from sightline.doctor.checks.loss.pair_rows import pairs_task
from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import isolated_copy
from sightline.doctor.core.finding import Finding
from sightline.engine.optimizers import apply_freezing

__all__ = ["batch_statistics"]

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
def batch_statistics(context: Context) -> list[Finding]:
    """Each batch norm of a contrastive run on several processes sees at least 16 pairs, or all pairs of the step.

    Finds: Batch norms that see few of a step's pairs, because each process computes its own statistics.

    The norm of a projection head has one row per embedding. The mean and deviation of few rows depend mostly on the
    embedding itself, so they reveal which samples are in the batch. Source: Chen et al. 2020, SimCLR, section 2.2
    (batch norms over all devices); the bound of 16 pairs is this project's own.
    """
    train, size = context.config.train, context.world.size
    if pairs_task(context) is None or size == 1 or context.config.distributed.sync_batch_norm:
        return []
    num_pairs = train.batch_size // train.micro_batches
    pairs_per_process = num_pairs // size
    norms = list(_iter_training_norms(context))
    if pairs_per_process >= MIN_PAIRS or not norms:
        return []
    larger_batch = "a larger train.batch_size"
    return [
        batch_statistics.finding(
            context,
            f"{len(norms)} batch norm(s) see {pairs_per_process} pairs on each of {size} processes",
            measured=f"{num_pairs} pairs over {size} processes: statistics of {pairs_per_process} at '{norms[0]}' "
            "and the others",
            expected=f"{MIN_PAIRS} pairs or more, or the {num_pairs} of one process",
            action=f"set {larger_batch}"
            if train.compile
            else f"set distributed.sync_batch_norm: true, or {larger_batch}",
        )
    ]


def _iter_training_norms(context: Context) -> Iterator[str]:
    """Yield the names of the batch norms that use batch statistics in training; frozen modules do not."""
    model = isolated_copy(context.built.job.model).train()
    apply_freezing(model, context.built.job.frozen, context.built.job.epoch)
    for name, module in model.named_modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
        if is_norm and module.training:
            yield name
