"""Contrastive learning: every row of a step is compared with every other, over micro-batches and processes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.binding import AvailableKeys, BoundFunction, bind, locate_output_error
from sightline.contract.errors import ConfigError
from sightline.contract.loss import Loss, cast_forward, learns
from sightline.contract.task import AllReduce, Task
from sightline.contract.types import Batch
from sightline.instrument import preserve_buffers
from sightline.parts.losses.contrast import CHANCE_SUFFIX, PairLoss, chance_level


class AllGather(AllReduce, Protocol):
    """Interface of the task to the world of processes."""

    size: int

    def gather_rows(self, rows: Tensor, *, operation: str = ...) -> tuple[Tensor, int]:
        """Gather rows (n, ...) of all processes in rank order; return them, and where ours begin."""


@dataclass(frozen=True)
class _MicroBatchContext:
    """Context of a micro-batch in its step; with a single micro-batch, its rows are gathered in the forward pass.

    With several, `gathered` contains the outputs of all rows, without gradient, and ours begin at `start`.
    """

    world: AllGather
    gathered: Mapping[str, Tensor] | None = None
    start: int = 0


@registry.tasks.add("contrast")
class Contrast(Task):
    """Learns without labels, from pairs that belong together among all that do not.

    Every loss receives the rows of all micro-batches and processes (`negatives: gathered`), so that value and gradient
    are those of the whole batch on one process; with `negatives: process`, the rows of its process alone, as in the
    distributed port of CrossPoint. The gradient flows through the rows of each micro-batch in turn. Losses must be
    `PairLoss`es. Source: Chen et al. 2020, SimCLR, section 2.2; Afham et al. 2022, CrossPoint, section 3.
    """

    compares_rows = True

    def __init__(
        self,
        *,
        model: nn.Module,
        losses: Mapping[str, Loss],
        batch_keys: AvailableKeys,
        output_keys: AvailableKeys,
        micro_batches: int = 1,
        negatives: Literal["gathered", "process"] = "gathered",
    ) -> None:
        if micro_batches > 1:
            _assert_repeatable(model)
        for name, loss in losses.items():
            if not isinstance(loss, PairLoss):
                raise ConfigError(
                    f"losses.{name}: the task 'contrast' takes losses between rows, such as intra_modal and cross_modal"
                )
        self.negatives = negatives
        self.micro_batches = micro_batches
        if "features" in batch_keys.keys and "features" not in inspect.signature(model.forward).parameters:
            raise ConfigError(
                f"data: {batch_keys.source} gives points features in addition to coordinates (normals, colours), "
                f"which '{type(model).__name__}' does not compare; leave them out (normals: none)"
            )
        self._forward = bind(model.forward, batch_keys, owner=f"model '{type(model).__name__}'")
        self._terms = {
            name: bind(cast_forward(loss), output_keys, owner=f"losses.{name}") for name, loss in losses.items()
        }
        self._learnt = {name: loss for name, loss in losses.items() if learns(loss)}
        self._compared = tuple(dict.fromkeys(name for term in self._terms.values() for name in term.names))

    @property
    def bound_losses(self) -> dict[str, tuple[BoundFunction, None]]:
        """Each loss, which returns a value for each pair, with the keys that it takes; pairs are its count."""
        return {name: (term, None) for name, term in self._terms.items()}

    def prepare(
        self, model: nn.Module, micro_batches: Sequence[Batch], world: AllGather
    ) -> tuple[dict[str, Tensor], list[_MicroBatchContext]]:
        """Count the step's pairs over all processes; with several micro-batches, also gather all rows."""
        sizes = [len(batch["sample_index"]) for batch in micro_batches]
        total = world.all_reduce_sum({"pairs": torch.tensor(sum(sizes))}, operation="the number of pairs")["pairs"]
        counts = dict.fromkeys(self._terms, torch.where(total > 1, total, 0))  # a pair alone has no negatives
        if len(micro_batches) == 1:
            return counts, [_MicroBatchContext(world)]
        with torch.no_grad(), preserve_buffers(model):  # the pass will be repeated
            outputs = [self._compute_outputs(model, batch) for batch in micro_batches]
        local_outputs = {name: torch.cat([part[name] for part in outputs]) for name in self._compared}
        gathered, start = self._gather_rows(local_outputs, world)
        starts = [start + sum(sizes[:micro_batch]) for micro_batch in range(len(sizes))]
        return counts, [_MicroBatchContext(world, gathered, micro_batch) for micro_batch in starts]

    def losses(self, model: nn.Module, batch: Batch, context: _MicroBatchContext) -> dict[str, Tensor]:
        """Return each loss's sum over this micro-batch's pairs, with the step's whole gradient through its rows."""
        return self._compute_sums(self._compute_outputs(model, batch), context)

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Compute the model's outputs."""
        return self._compute_outputs(model, batch)

    def losses_and_predictions(
        self, model: nn.Module, batch: Batch, context: _MicroBatchContext
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Compute loss sums and outputs of one forward pass."""
        outputs = self._compute_outputs(model, batch)
        return self._compute_sums(outputs, context), outputs

    def step_metrics(self, losses: Mapping[str, float], num_samples: int, num_processes: int) -> dict[str, float]:
        """Compute the number of negatives per anchor, the chance level, and each loss as a share of that.

        They are means over the step's pairs if processes compare within themselves and have different numbers of pairs.
        """
        sizes = [num_samples]
        if self.negatives == "process":  # as the stream divides a step: into micro-batches first
            parts = _split_evenly(num_samples, max(1, min(self.micro_batches, num_samples // num_processes)))
            shares = [_split_evenly(part, num_processes) for part in parts]
            sizes = [sum(rank_shares) for rank_shares in zip(*shares, strict=True)]
        chance = sum(size * chance_level(size) for size in sizes if size) / num_samples
        negatives = sum(size * (2 * size - 2) for size in sizes) / num_samples
        of_chance = {f"{name}{CHANCE_SUFFIX}": loss / chance for name, loss in losses.items() if chance > 0}
        return {"negatives": negatives, "chance": chance, **of_chance}

    def _compute_outputs(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = model(**self._forward.select(batch))
        if not isinstance(outputs, Mapping) or not outputs.keys() >= {*self._compared}:
            reads, forward = self._compared, self._forward.function
            error = KeyError(*reads)
            raise locate_output_error(error, outputs, owner="the task", reads=reads, forward=forward) or error
        return outputs

    def _gather_rows(self, local_rows: Mapping[str, Tensor], world: AllGather) -> tuple[dict[str, Tensor], int]:
        """Gather the rows of all processes that are negatives here; also return the index of our first row."""
        if self.negatives == "process" or world.size == 1:
            return {name: rows.detach() for name, rows in local_rows.items()}, 0
        widths = [rows.shape[1] for rows in local_rows.values()]
        joined, start = world.gather_rows(torch.cat(list(local_rows.values()), dim=1), operation="rows to compare with")
        return dict(zip(local_rows, joined.split(widths, dim=1), strict=True)), start

    def _compute_sums(self, live: Mapping[str, Tensor], context: _MicroBatchContext) -> dict[str, Tensor]:
        local_rows = {
            name: live[name] for name in self._compared
        }  # and no other: what no loss reads is reported as unread
        gathered, start = context.gathered, context.start
        if gathered is None:
            gathered, start = self._gather_rows(local_rows, context.world)
        own_rows = slice(start, start + len(local_rows[self._compared[0]]))
        rows = {
            name: torch.cat([all_rows[: own_rows.start], local_rows[name], all_rows[own_rows.stop :]])
            for name, all_rows in gathered.items()
        }
        return {name: self._sum_own_pairs(name, rows, own_rows) for name in self._terms}

    def _sum_own_pairs(self, name: str, rows: Mapping[str, Tensor], own_rows: slice) -> Tensor:
        """Sum a loss over our own pairs, with the gradient of all rows; its parameters have that of our pairs."""
        term = self._terms[name]
        if name not in self._learnt:
            return _sum_own_pairs(term(rows), own_rows)
        fixed = {key: values.detach() for key, values in rows.items()}
        own_sum = term(fixed)[own_rows].sum()
        with _parameters_constant(self._learnt[name]):
            return _sum_own_pairs(term(rows), own_rows) - own_sum.detach() + own_sum


def _split_evenly(size: int, count: int) -> list[int]:
    """Split a size into `count` parts that differ by at most one, the larger ones first."""
    base, remainder = divmod(size, count)
    return [base + (index < remainder) for index in range(count)]


def _sum_own_pairs(values: Tensor, own_rows: slice) -> Tensor:
    """Return the sum (scalar) over our own pairs, with the gradient of all: a row is part of every pair's loss.

    Summed over the parts of a step, values and gradients are those of the whole.
    """
    total = values.sum()
    return total - total.detach() + values[own_rows].sum().detach()


@contextmanager
def _parameters_constant(loss: Loss) -> Iterator[None]:
    """Context in which the parameters of a loss are constants: every part of a step computes the same sum."""
    learning = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _assert_repeatable(model: nn.Module) -> None:
    """Raise ConfigError if a model has dropout: its rows would differ between its two passes."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ConfigError(
                f"train.micro_batches: {name} drops out at random, so a pair's rows would differ between the two "
                "passes that several micro-batches need; set its dropout to 0, or micro_batches to 1"
            )
