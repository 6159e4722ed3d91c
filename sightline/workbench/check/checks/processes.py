"""Several processes: ranks that are remembered from before there were any, and norms that see few pairs on each."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from sightline.doctor.finding import FindingLocation
from sightline.doctor.objects import find_read_values
from sightline.engine.optimizers import apply_freezing
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.check.checks.loss_terms import pairs_task
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.dry_run import isolated_copy
from sightline.workbench.check.core.finding import Fault

_WORDS = frozenset({"get_rank", "get_world_size", "is_initialized", "get_node_local_rank", "environ", "getenv"})


@check(
    "remembered-rank",
    "static",
    causes=("dist.device", "dist.logging", "dist.seed"),
    expected="the value of this process, each time it is asked",
    action="take the cache off the function, or call it for the first time after init_process_group",
)
def remembered_rank(context: Context) -> Iterator[Fault]:
    """A function with a cache that asks for the rank or the world size remembers what it would return now.

    Finds: Helpers of a user's own that were called before the processes had ranks, so that each is the first.

    Looked at are functions without arguments that the model, the losses or the data set name.
    """
    bound = getattr(unwrap_distillation(context.built.job.task), "bound_losses", {})
    losses = [getattr(forward.function, "__self__", None) for forward, _ in bound.values()]
    parts = (context.built.data.train.dataset, *context.built.job.model.modules(), *losses)
    classes = {type(part) for part in parts if not type(part).__module__.startswith(("torch.", "sightline."))}
    seen: dict[int, tuple[str, Any]] = {}
    for function in (value for cls in classes for value in vars(cls).values()):
        seen |= {id(value): (name, value) for name, value in find_read_values(function) if _asks_for_rank(value)}
    for name, function in seen.values():
        kept, now = function(), function.__wrapped__()
        if kept != now:
            code = function.__wrapped__.__code__
            yield Fault(
                f"'{name}' remembers {kept!r}, and would return {now!r} now: it was called before there were ranks",
                where=FindingLocation(file=code.co_filename, line=code.co_firstlineno),
                measured=f"{kept!r} from its cache, {now!r} computed anew",
            )


def _asks_for_rank(value: Any) -> bool:
    """Return True for a function with a filled cache and no arguments that asks for the rank."""
    function = getattr(value, "__wrapped__", None)
    if not hasattr(value, "cache_info") or not inspect.isfunction(function):
        return False
    is_filled = value.cache_info().currsize > 0 and not inspect.signature(function).parameters
    return is_filled and not _WORDS.isdisjoint(function.__code__.co_names)


MIN_PAIRS = 16
"""Minimum number of pairs per process for statistics of its own; the notes' port had two."""


@check(
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
