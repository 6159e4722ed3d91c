"""One attempt to fit a fixed batch: the engine's own step, over and over, and how far the loss came."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from sightline.doctor.core.dry_run import isolated_copy
from sightline.engine.build import TrainingSetup
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.learnt_losses import combine_modules
from sightline.engine.optimizers import apply_freezing
from sightline.engine.precision import Precision, seed_everything
from sightline.engine.step import compute_batch_losses
from sightline.engine.train import NonFiniteGradientError, TrainState, train_step
from sightline.types import Batch

__all__ = ["FITTED", "SHARES", "FitCurve", "FitSetup", "Make", "Stop", "fit", "forward_once", "prepare_model"]

SHARES = (0.5, 0.1, 0.01)
"""Of the way from the first loss to the floor, what is left: a half, a tenth, a hundredth."""
FITTED = 0.1
"""The share at which samples count as fitted. Source: the pass rule of an over-fitted sample, a tenth."""
EXPLODED = 100.0
"""A loss this many times the way above the floor ends an attempt: what it may hit later by chance is not a fit."""
_NO_WAY = 1e-9
"""A way from the first loss to the floor that is shorter than this share of them is none."""

Make = Callable[[nn.Module, float], torch.optim.Optimizer]
"""An optimiser over a model's parameters at a rate, its groups with their `base_lr`."""
Stop = Literal["reached", "steps", "not finite", "exploded", "outpaced"]


@dataclass(frozen=True)
class FitSetup:
    """What all attempts share: the run whose weights they begin with, the batch, and what of the recipe is kept on.

    `floor` is the lowest loss that any outputs could have; None where the loss has none. `score` is asked after an
    attempt that fitted the samples, with its job, which it uses up, and the batch: the figure of the run's metric for
    them.
    """

    built: TrainingSetup
    batch: Batch
    floor: float | None
    steps: int
    keep: frozenset[str] = frozenset()
    score: Callable[[TrainState, Batch], float] | None = None

    @property
    def device(self) -> torch.device:
        return self.built.job.device

    @property
    def precision(self) -> str:
        """The recipe's own number format."""
        return self.built.job.precision.name

    def batch_in(self, precision: str) -> Batch:
        """The batch on the device, in a number format."""
        batch: Batch = to_device(self.batch, self.device, float_dtype=Precision(precision).parameter_dtype)
        return batch


@dataclass(frozen=True)
class FitCurve:
    """How one attempt went. `losses` holds the whole loss before each step, and after the last one; `terms` each loss.

    `stop` is the reason for its end: the goal, the smallest of `SHARES` or another, was reached, the steps were over, a
    gradient was not finite, the loss exploded, or another rate had been faster. `score` is the run's metric on the
    samples where they were fitted.
    """

    optimizer: str
    rate: float
    precision: str
    floor: float | None
    losses: tuple[float, ...]
    terms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    stop: Stop = "steps"
    score: float = math.nan

    @property
    def shares(self) -> list[float]:
        """What is left of the way from the first loss to the floor, at each step; NaN where there is no way."""
        if self.floor is None or not self.losses:
            return [math.nan] * len(self.losses)
        way = self.losses[0] - self.floor
        is_none = not way > _NO_WAY * max(abs(self.losses[0]), abs(self.floor))
        return [math.nan if is_none else (loss - self.floor) / way for loss in self.losses]

    @property
    def lowest(self) -> float:
        """The smallest share; NaN where there is none."""
        shares = [share for share in self.shares if not math.isnan(share)]
        return min(shares, default=math.nan)

    def steps_to(self, share: float) -> int | None:
        """After how many steps a share was reached first."""
        return next((step for step, each in enumerate(self.shares) if each <= share), None)

    @property
    def is_fitted(self) -> bool:
        return self.steps_to(FITTED) is not None

    @property
    def is_falling(self) -> bool:
        """Whether the last quarter still got a tenth further than all before it."""
        shares = self.shares
        cut = len(shares) * 3 // 4
        return self.stop == "steps" and cut > 0 and min(shares[cut:]) < 0.9 * min(shares[:cut])

    @property
    def order(self) -> tuple[float, ...]:
        """Sorts the better attempt first: by steps to the smallest share reached, then by how low it came."""
        steps = [math.inf if (found := self.steps_to(share)) is None else found for share in reversed(SHARES)]
        return (*steps, math.inf if math.isnan(self.lowest) else self.lowest)


def prepare_model(bench: FitSetup, precision: str) -> nn.Module:
    """A copy of the run's model as it begins, in a number format, without dropout unless it is kept."""
    model = isolated_copy(bench.built.job.model).to(dtype=Precision(precision).parameter_dtype)
    if "dropout" not in bench.keep:
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
    return model


def _job_of(
    bench: FitSetup, model: nn.Module, optimizer: torch.optim.Optimizer, *, precision: str, clip: bool
) -> TrainState:
    """The run's job with another model, at a constant rate; the weights of its losses are those after their ramps."""
    job = bench.built.job
    if "decay" not in bench.keep:
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
    return dataclasses.replace(
        job,
        model=model,
        optimizer=optimizer,
        schedule=_constant,
        loss_weights=job.loss_weights_at(job.num_steps),
        precision=Precision(precision),
        clip_norm=job.clip_norm if clip else None,
        ema_decay=None,
        ema=None,
        compile=False,
        step=0,
    )


def fit(
    bench: FitSetup,
    name: str,
    make: Make,
    rate: float,
    precision: str,
    *,
    clip: bool = False,
    unfreeze: bool = False,
    until: int | None = None,
    goal: float = SHARES[-1],
    change: Callable[[nn.Module], None] | None = None,
    through: Callable[[nn.Module], Any] | None = None,
    watch: Callable[[int, TrainState], None] | None = None,
) -> FitCurve:
    """Take the run's own steps on the batch until the share `goal` of the way is left, or the steps are over.

    `clip` bounds the gradient as the recipe does, `unfreeze` lets modules learn that the recipe holds still. `until`
    ends
    an attempt that did not get there in so many steps. `change` alters the copied model before its optimiser is made,
    `through` is what the step calls in the model's place, `watch` sees the job before each step.
    Starts from the same weights and the same random state each time.
    """
    with bench.built.job.losses.preserve_state():
        seed_everything(bench.built.config.seed, 1)
        model = prepare_model(bench, precision)
        if change is not None:
            change(model)
        job = _job_of(
            bench, model, make(combine_modules(model, bench.built.job.losses), rate), precision=precision, clip=clip
        )
        job.frozen = () if unfreeze else job.frozen
        batch = bench.batch_in(precision)
        replica = model if through is None else through(model)
        world, clock = World(device=bench.device), _NoClock()
        losses: list[float] = []
        terms: dict[str, list[float]] = {}
        stop: Stop = "steps"
        for step in range(bench.steps + 1):
            job.step = step
            if watch is not None:
                watch(step, job)
            try:
                terms_at_step = train_step(job, replica, [batch], world, clock).losses
            except NonFiniteGradientError:
                stop = "not finite"
                break
            for term in job.loss_weights:
                terms.setdefault(term, []).append(terms_at_step[term])
            losses.append(sum(weight * terms_at_step[term] for term, weight in job.loss_weights_at(step).items()))
            curve = FitCurve(name, rate, precision, bench.floor, (losses[0], losses[-1]))
            if curve.shares[-1] <= goal and watch is None:
                stop = "reached"
                break
            if curve.shares[-1] > EXPLODED:
                stop = "exploded"
                break
            if until is not None and step >= until:
                stop = "outpaced"
                break
        kept = {term: tuple(values) for term, values in terms.items()}
        found = FitCurve(name, rate, precision, bench.floor, tuple(losses), kept, stop)
        if bench.score is None or not found.is_fitted or watch is not None:
            return found
        return dataclasses.replace(found, score=bench.score(job, batch))


def forward_once(bench: FitSetup, model: nn.Module) -> Mapping[str, Any]:
    """What a copy of the model gives in training mode, in the recipe's format, with gradients where they are on."""
    job, batch = bench.built.job, bench.batch_in(bench.precision)
    seen: list[Mapping[str, Any]] = []
    handle = model.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    model.train()
    apply_freezing(model, job.frozen, 0)
    try:
        compute_batch_losses(job.task, model, batch, bench.device, job.precision)
    finally:
        handle.remove()
    return seen[-1]


def _constant(step: int) -> float:
    return 1.0


class _NoClock:
    """The loop reports how long its parts take; here nobody reads it."""

    def end_phase(self, name: str) -> None:
        """Nothing."""
