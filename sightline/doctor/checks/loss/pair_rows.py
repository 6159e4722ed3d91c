"""Contrastive losses of chosen rows: the task runs with a stand-in that returns these rows instead of its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sightline.doctor.context import Context
from sightline.engine.distributed import World
from sightline.engine.step import prepare_step
from sightline.tasks.contrast import Contrast

__all__ = ["BUILT_IN", "OUTPUTS", "pair_losses", "pairs_task"]

OUTPUTS = ("first", "second", "pictured")
"""Output keys that the contrastive losses of the package read: rows of two clouds and a picture of every object."""
BUILT_IN = ("intra_modal", "cross_modal")
"""Losses with a known definition; the losses of plugins may be of another kind."""


def pairs_task(context: Context) -> Contrast | None:
    """Return the run's contrastive task; None for another task, or without a contrastive loss of the package."""
    task = context.built.job.task
    if not isinstance(task, Contrast) or not any(loss.name in BUILT_IN for loss in context.config.losses):
        return None
    return task


def pair_losses(
    context: Context, rows: Mapping[str, Tensor], *, parts: int = 1, world: World | None = None
) -> dict[str, float]:
    """Compute the mean of each contrastive loss of the package for the output rows (M, D) of a step's M pairs.

    The step is split into `parts` micro-batches; `world` is a single process by default.
    """
    task: Any = pairs_task(context)
    assert task is not None, "only for a run that compares rows"
    process_group: Any = World() if world is None else world
    size = len(next(iter(rows.values())))
    keys = sorted({*context.built.data.train.reader.keys, "sample_index"})
    micro_batches = [dict.fromkeys(keys, index) for index in torch.arange(size).chunk(parts)]
    model = _FixedRows(rows)
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        step = prepare_step(task, model, micro_batches, process_group)
        for index in range(len(micro_batches)):
            for name, term in step.loss_sums(model, index).items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + term.double()
    sums = process_group.all_reduce_sum(sums, operation="losses of rows that are known")
    return {name: float(sums[name]) / float(step.counts[name]) for name in BUILT_IN if name in sums}


class _FixedRows(nn.Module):
    """Stand-in for the model: each input of a micro-batch contains row indices, and the rows with them are returned."""

    def __init__(self, rows: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._rows = dict(rows)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        index = next(iter(inputs.values()))
        return {name: rows[index] for name, rows in self._rows.items()}
