"""Metrics over a whole part, the same bits on any number of processes: global sums, every sample seen exactly once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.binding import Bound
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.precision import Precision
from sightline.engine.stream import Reader, evaluation_keys
from sightline.engine.train import Task, mean
from sightline.metrics.base import Metric, State
from sightline.pictures import Picture
from sightline.types import Batch, SampleKey

__all__ = ["Evaluation", "Evaluator", "Meter"]


@dataclass(frozen=True)
class Meter:
    """A metric and how its update is bound to batch and prediction keys."""

    metric: Metric
    update: Bound


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured: numbers, numbers per class, tables, and the mean of each loss."""

    metrics: Mapping[str, float]
    losses: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, Any]]
    tables: Mapping[str, Any]
    num_samples: int
    seconds: float
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Evaluator:
    """Evaluates one part of a data set. `voting_reader`, where given, reads the passes of `votes` > 1."""

    task: Task
    meters: Sequence[Meter]
    reader: Reader
    indices: np.ndarray
    batch_size: int
    loss_names: tuple[str, ...] = ()
    seed: int = 0
    workers: int = 0
    precision: Precision = field(default_factory=lambda: Precision("float32"))
    voting_reader: Reader | None = None
    votes: int = 1

    def __call__(self, model: nn.Module, world: World, *, pictures: bool = False) -> Evaluation:
        """Whole batches are dealt to processes in turn; the only collective comes at the end."""
        started = time.perf_counter()
        was_training = model.training
        model.eval()
        states = [
            {name: tensor.to(world.device) for name, tensor in meter.metric.new_state().items()}
            for meter in self.meters
        ]
        plan = evaluation_keys(self.indices, self.batch_size, epoch=0, seed=self.seed)
        ledger = _Ledger(num_batches=len(plan), indices=self.indices, loss_names=self.loss_names)
        drawn: tuple[Picture, ...] = ()
        with torch.no_grad():
            for number in range(world.rank, len(plan), world.size):
                batch, predictions = self._predict(model, plan[number], world, ledger, number)
                for meter, state in zip(self.meters, states, strict=True):
                    meter.metric.update(state, **meter.update.select(batch, predictions))
                if number == 0 and pictures and hasattr(self.task, "show"):
                    drawn = tuple(self.task.show(batch, predictions))
        model.train(was_training)
        return self._reduce(states, ledger, world, started, drawn)

    def _predict(
        self, model: nn.Module, keys: list[SampleKey], world: World, ledger: _Ledger, number: int
    ) -> tuple[Batch, Mapping[str, Any]]:
        floats = self.precision.parameters
        batch = to_device(self.reader(keys), world.device, floats=floats)
        ledger.saw(batch["sample_index"])
        alone = World(device=world.device)
        with self.precision.autocast(world.device):
            counts, around = self.task.prepare(model, [batch], alone)
            sums, predictions = self.task.assess(model, batch, around[0])
            ledger.note_losses(number, sums, counts)
            if self.votes > 1:
                assert self.voting_reader is not None, "votes need a reader that varies its input"
                passes = [predictions]
                for vote in range(1, self.votes):
                    varied = self.voting_reader([SampleKey(key.index, vote, key.seed) for key in keys])
                    passes.append(self.task.predict(model, to_device(varied, world.device, floats=floats)))
                predictions = self.task.vote(passes)  # type: ignore[attr-defined]
        return batch, predictions

    def _reduce(
        self, states: list[State], ledger: _Ledger, world: World, started: float, drawn: tuple[Picture, ...]
    ) -> Evaluation:
        flat = {f"{number}/{name}": tensor for number, state in enumerate(states) for name, tensor in state.items()}
        totals = world.all_reduce_sum(flat | ledger.tensors(), what="metrics")
        ledger.assert_complete(totals)
        result: dict[str, float] = {}
        per_class: dict[str, dict[str, Any]] = {}
        tables: dict[str, Any] = {}
        for number, meter in enumerate(self.meters):
            prefix = f"{number}/"
            state = {n.removeprefix(prefix): t.cpu() for n, t in totals.items() if n.startswith(prefix)}
            result |= {self._label(name): value for name, value in meter.metric.compute(state).items()}
            if hasattr(meter.metric, "per_class"):
                for name, row in meter.metric.per_class(state).items():
                    per_class.setdefault(name, {}).update(row)
            if hasattr(meter.metric, "tables"):
                tables |= meter.metric.tables(state)
        losses = ledger.mean_losses(totals)
        seconds = time.perf_counter() - started
        return Evaluation(result, losses, per_class, tables, len(self.indices), seconds, drawn)

    def _label(self, name: str) -> str:
        """Voted figures carry their number of votes, so that nobody compares them with unvoted ones."""
        return name if self.votes == 1 else f"{name}_vote{self.votes}"


class _Ledger:
    """Which samples were seen, and each batch's losses in a slot of its own: sums do not depend on who did what."""

    def __init__(self, *, num_batches: int, indices: np.ndarray, loss_names: Sequence[str]) -> None:
        self.indices = torch.from_numpy(indices.astype(np.int64))
        self.seen = torch.zeros(int(indices.max()) + 1 if len(indices) else 0, dtype=torch.int64)
        self.sums = {name: torch.zeros(num_batches, dtype=torch.float64) for name in loss_names}
        self.counts = {name: torch.zeros(num_batches, dtype=torch.float64) for name in loss_names}

    def saw(self, sample_index: Tensor) -> None:
        self.seen += torch.bincount(sample_index.cpu(), minlength=len(self.seen))

    def note_losses(self, number: int, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> None:
        for name, total in sums.items():
            self.sums[name][number] = float(total)
            self.counts[name][number] = float(counts[name])

    def tensors(self) -> dict[str, Tensor]:
        """What to add up over processes."""
        slots = {f"loss sums/{n}": t for n, t in self.sums.items()} | {
            f"loss counts/{n}": t for n, t in self.counts.items()
        }
        return {"seen": self.seen} | slots

    def assert_complete(self, totals: Mapping[str, Tensor]) -> None:
        times = totals["seen"].cpu()[self.indices]
        assert bool((times == 1).all()), (
            f"evaluation saw {int((times == 0).sum())} samples never and {int((times > 1).sum())} more than once"
        )

    def mean_losses(self, totals: Mapping[str, Tensor]) -> dict[str, float]:
        names = [name.removeprefix("loss sums/") for name in totals if name.startswith("loss sums/")]
        return {
            name: mean(totals[f"loss sums/{name}"].sum(), totals[f"loss counts/{name}"].sum()).item() for name in names
        }
