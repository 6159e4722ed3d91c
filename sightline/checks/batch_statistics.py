"""Guard G34: batch norms that see few of a step's samples, because processes share the step and not the statistics."""

from __future__ import annotations

from torch import nn

from sightline.checks.finding import Finding
from sightline.checks.suite import Context, check

__all__ = ["batch_statistics"]

CODE = "batch-statistics"
FEWEST = 16
"""Samples from which the mean and deviation of a channel are worth something: the notes' port had 2 pairs a process."""


@check(code=CODE, moment="static")
def batch_statistics(context: Context) -> list[Finding]:
    """On several processes a batch norm sees 16 samples of a step or more, or all of them (`sync_batch_norm`).

    Fewer make another network than the same batch on one process: noisier statistics, and pairs that tell by them what
    they are read with. Source: Ioffe and Szegedy 2015, section 3.1 (statistics of a batch); `spec/points.md` 3.2.
    """
    train, size = context.config.train, context.world.size
    if size == 1 or context.config.distributed.sync_batch_norm:
        return []
    alone = train.batch_size // size // train.micro_batches
    norms = [n for n, m in context.built.job.model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if alone >= FEWEST or not norms:
        return []
    shared = f"{size} processes" + (f" and {train.micro_batches} micro-batches" if train.micro_batches > 1 else "")
    return [
        Finding(
            guard="G34",
            code=CODE,
            severity="warning",
            summary=f"{len(norms)} batch norm(s) see {alone} of a step's {train.batch_size} samples",
            cause="dist.sync",
            alternatives=("data.sampling",),
            where=context.place("distributed.sync_batch_norm"),
            measured=f"{train.batch_size} samples over {shared}: statistics of {alone} at '{norms[0]}' and the others",
            expected=f"{FEWEST} or more, or those of the whole batch, as one process has them",
            action="set distributed.sync_batch_norm: true, or a larger train.batch_size",
        )
    ]
