"""Batch norms that see few of a step's pairs, because processes share the step and not the statistics."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from sightline.doctor.checks.loss.pair_rows import pairs_task
from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import isolated_copy
from sightline.doctor.core.finding import Finding
from sightline.engine.optimizers import apply_freezing

__all__ = ["batch_statistics"]

FEWEST = 16
"""Pairs of a process below which statistics ought to be those of all: two of them were what the notes' port had."""


@check(
    "G34",
    "batch-statistics",
    "static",
    severity="warning",
    causes=("dist.sync", "data.sampling"),
    config_path="distributed.sync_batch_norm",
)
def batch_statistics(context: Context) -> list[Finding]:
    """Where pairs are compared on several processes, a batch norm sees 16 of them or more, or all of the step's.

    A projection head's norm has a row for each embedding. Of few rows the mean and deviation are mostly those of the
    embedding itself, and they show a pair what it is read with. Source: Chen et al. 2020, SimCLR, section 2.2
    (batch norms over all devices); the bound of 16 pairs is this project's own.
    """
    train, size = context.config.train, context.world.size
    if pairs_task(context) is None or size == 1 or context.config.distributed.sync_batch_norm:
        return []
    part = train.batch_size // train.micro_batches
    alone = part // size
    norms = list(_moving_norms(context))
    if alone >= FEWEST or not norms:
        return []
    larger = "a larger train.batch_size"
    return [
        batch_statistics.finding(
            context,
            f"{len(norms)} batch norm(s) see {alone} pairs on each of {size} processes",
            measured=f"{part} pairs over {size} processes: statistics of {alone} at '{norms[0]}' and the others",
            expected=f"{FEWEST} pairs or more, or the {part} of one process",
            action=f"set {larger}" if train.compile else f"set distributed.sync_batch_norm: true, or {larger}",
        )
    ]


def _moving_norms(context: Context) -> Iterator[str]:
    """The batch norms that take the statistics of a batch in training: those of frozen modules rest."""
    model = isolated_copy(context.built.job.model).train()
    apply_freezing(model, context.built.job.frozen, context.built.job.epoch)
    for name, module in model.named_modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
        if is_norm and module.training:
            yield name
