"""Self-supervision: every row of a step sees every other, over micro-batches and processes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.binding import AvailableKeys, bind
from sightline.errors import ConfigError
from sightline.losses.base import Loss, cast_forward, learns
from sightline.losses.contrast import PairLoss, chance_level
from sightline.tasks.supervised import AllReduce
from sightline.types import Batch

__all__ = ["CHANCE_SUFFIX", "Contrast"]

CHANCE_SUFFIX = "_of_chance"
"""How a step calls a loss as a share of the level of chance, after the loss's name."""


class AllGather(AllReduce, Protocol):
    """What the task needs of the processes around it."""

    size: int

    def gather_rows(self, rows: Tensor, *, operation: str = ...) -> tuple[Tensor, int]: ...


@dataclass(frozen=True)
class _Around:
    """Where a micro-batch's rows belong. With one micro-batch its live rows are what everyone is given.

    With several, `everyone` holds the outputs of all rows, without gradient, and ours begin at `start`.
    """

    world: AllGather
    everyone: Mapping[str, Tensor] | None = None
    start: int = 0


@registry.tasks.add("contrast")
class Contrast:
    """Learns without labels, from pairs that belong together among all that do not.

    Every loss is given the rows of all micro-batches and processes (`negatives: gathered`), so that value and gradient
    are those of the whole batch on one process; with `negatives: process`, those of its own process alone, as the
    distributed port of CrossPoint does it. Its gradient flows through the rows of each part in turn. Losses must be
    `PairLoss`es. Source: Chen et al. 2020, SimCLR, section 2.2; Afham et al. 2022, CrossPoint, section 3.
    """

    predicts: frozenset[str] = frozenset()

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
        if "features" in batch_keys.keys and "features" not in inspect.signature(model.forward).parameters:
            raise ConfigError(
                f"data: {batch_keys.source} gives points features beside their coordinates (normals, colours), which "
                f"'{type(model).__name__}' does not compare; leave them out (normals: none)"
            )
        self._forward = bind(model.forward, batch_keys, owner=f"model '{type(model).__name__}'")
        self._terms = {
            name: bind(cast_forward(loss), output_keys, owner=f"losses.{name}") for name, loss in losses.items()
        }
        self._learnt = {name: loss for name, loss in losses.items() if learns(loss)}
        self._compared = tuple(dict.fromkeys(name for term in self._terms.values() for name in term.names))

    def prepare(
        self, model: nn.Module, micro_batches: Sequence[Batch], world: AllGather
    ) -> tuple[dict[str, Tensor], list[_Around]]:
        """How many pairs the step has over all; with several micro-batches also the outputs of all their rows."""
        sizes = [len(batch["sample_index"]) for batch in micro_batches]
        total = world.all_reduce_sum({"pairs": torch.tensor(sum(sizes))}, operation="the number of pairs")["pairs"]
        counts = dict.fromkeys(self._terms, total)
        if len(micro_batches) == 1:
            return counts, [_Around(world)]
        with torch.no_grad(), _statistics_held(model):
            outputs = [self._outputs(model, batch) for batch in micro_batches]
        own = {name: torch.cat([part[name] for part in outputs]) for name in self._compared}
        everyone, start = self._everyone(own, world)
        starts = [start + sum(sizes[:place]) for place in range(len(sizes))]
        return counts, [_Around(world, everyone, place) for place in starts]

    def losses(self, model: nn.Module, batch: Batch, context: _Around) -> dict[str, Tensor]:
        """Each loss's sum over this micro-batch's pairs, with the gradient that the whole step has through its rows."""
        return self._sums(self._outputs(model, batch), context)

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """The model's outputs."""
        return self._outputs(model, batch)

    def losses_and_predictions(
        self, model: nn.Module, batch: Batch, context: _Around
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Loss sums and outputs of one forward pass."""
        outputs = self._outputs(model, batch)
        return self._sums(outputs, context), outputs

    def step_metrics(self, losses: Mapping[str, float], num_samples: int, num_processes: int) -> dict[str, float]:
        """How many negatives an anchor had, the loss of a collapsed network, and each loss as a share of that.

        Means over the step's pairs, where processes compare within themselves and hold different numbers of them.
        """
        sizes = [num_samples]
        if self.negatives == "process":  # as the stream deals a step: evenly, what is over to the first
            each, over = divmod(num_samples, num_processes)
            sizes = [each + (rank < over) for rank in range(num_processes)]
        chance = sum(size * chance_level(size) for size in sizes if size) / num_samples
        negatives = sum(size * (2 * size - 2) for size in sizes) / num_samples
        shares = {f"{name}{CHANCE_SUFFIX}": loss / chance for name, loss in losses.items() if chance > 0}
        return {"negatives": negatives, "chance": chance, **shares}

    def _outputs(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = model(**self._forward.select(batch))
        return outputs

    def _everyone(self, own: Mapping[str, Tensor], world: AllGather) -> tuple[dict[str, Tensor], int]:
        """The rows of all processes whose rows are negatives here, and the place where our own begin."""
        if self.negatives == "process" or world.size == 1:
            return {name: rows.detach() for name, rows in own.items()}, 0
        widths = [rows.shape[1] for rows in own.values()]
        joined, start = world.gather_rows(torch.cat(list(own.values()), dim=1), operation="rows to compare with")
        return dict(zip(own, joined.split(widths, dim=1), strict=True)), start

    def _sums(self, live: Mapping[str, Tensor], context: _Around) -> dict[str, Tensor]:
        here = {name: live[name] for name in self._compared}  # and no other: what no loss reads is reported as unread
        everyone, start = context.everyone, context.start
        if everyone is None:
            everyone, start = self._everyone(here, context.world)
        own = slice(start, start + len(here[self._compared[0]]))
        rows = {name: torch.cat([all_[: own.start], here[name], all_[own.stop :]]) for name, all_ in everyone.items()}
        return {name: self._own_sum(name, rows, own) for name in self._terms}

    def _own_sum(self, name: str, rows: Mapping[str, Tensor], own: slice) -> Tensor:
        """A loss's sum over our own pairs, with the gradient of all rows; its own parameters have that of our pairs."""
        term = self._terms[name]
        if name not in self._learnt:
            return _own_sum(term(rows), own)
        fixed = {key: each.detach() for key, each in rows.items()}
        ours = term(fixed)[own].sum()
        with _held_constant(self._learnt[name]):
            return _own_sum(term(rows), own) - ours.detach() + ours


def _own_sum(each: Tensor, own: slice) -> Tensor:
    """The value of our own pairs, and the gradient of all: a row is part of every other pair's loss as well.

    Summed over the parts of a step, values and gradients are those of the whole.
    """
    whole = each.sum()
    return whole - whole.detach() + each[own].sum().detach()


@contextmanager
def _held_constant(loss: Loss) -> Iterator[None]:
    """Inside, the parameters of a loss are constants: every part of a step computes the same sum over all pairs."""
    learning = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _assert_repeatable(model: nn.Module) -> None:
    """Raises ConfigError where a model draws at random: its rows would differ between its two passes."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ConfigError(
                f"train.micro_batches: {name} drops out at random, so a pair's rows would differ between the two "
                "passes that several micro-batches need; set its dropout to 0, or micro_batches to 1"
            )


@contextmanager
def _statistics_held(model: nn.Module) -> Iterator[None]:
    """Running averages as they were before: the pass inside is made a second time."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
