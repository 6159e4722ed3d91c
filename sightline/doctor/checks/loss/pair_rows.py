"""Losses between rows, asked about rows of our own making: the task is given a stand-in for its model."""

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
"""What the losses of the package read: the rows of two clouds and of a picture of every object."""
BUILT_IN = ("intra_modal", "cross_modal")
"""The losses whose definition is known here; those of plugins may be of another kind."""


def pairs_task(context: Context) -> Contrast | None:
    """The run's task, where it compares rows that the losses of the package could read; None for any other."""
    task = context.built.job.task
    if not isinstance(task, Contrast) or not any(loss.name in BUILT_IN for loss in context.config.losses):
        return None
    return task


def pair_losses(
    context: Context, rows: Mapping[str, Tensor], *, parts: int = 1, world: World | None = None
) -> dict[str, float]:
    """The mean of each loss of the package as the task gives it, were these the outputs (M, D) of a step's M pairs.

    The step is split into `parts` micro-batches; `world` is a single process by default.
    """
    task: Any = pairs_task(context)
    assert task is not None, "only for a run that compares rows"
    everyone: Any = World() if world is None else world
    size = len(next(iter(rows.values())))
    keys = sorted({*context.built.data.train.reader.keys, "sample_index"})
    micro_batches = [dict.fromkeys(keys, index) for index in torch.arange(size).chunk(parts)]
    model = _Given(rows)
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        step = prepare_step(task, model, micro_batches, everyone)
        for index in range(len(micro_batches)):
            for name, term in step.loss_sums(model, index).items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + term.double()
    sums = everyone.all_reduce_sum(sums, operation="losses of rows that are known")
    return {name: float(sums[name]) / float(step.counts[name]) for name in BUILT_IN if name in sums}


class _Given(nn.Module):
    """Stands in for the model: every input of a micro-batch is the rows' own numbers, and these rows are returned."""

    def __init__(self, rows: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._rows = dict(rows)

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        index = next(iter(given.values()))
        return {name: rows[index] for name, rows in self._rows.items()}
