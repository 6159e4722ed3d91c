"""One attempt to fit a fixed batch with the engine's own training step, and its loss curve.

Findings of an overfitting test: their shared fields and config paths.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from sightline.contract.types import Batch
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.device import Precision, seed_everything, to_device
from sightline.engine.distributed import World
from sightline.engine.learnt_losses import combine_modules
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses
from sightline.engine.train import NonFiniteGradientError, TrainState, train_step
from sightline.instrument import record
from sightline.workbench.check.context import Context, FindingBuilder
from sightline.workbench.check.core.dry_run import isolated_copy
from sightline.workbench.check.core.finding import Fault

SHARES = (0.5, 0.1, 0.01)
"""Remaining shares of the way from the first loss to the floor: a half, a tenth, a hundredth."""
FITTED = 0.1
"""Share at which samples count as fitted. Source: the pass rule of an over-fitted sample, a tenth."""
EXPLODED = 100.0
"""A loss this many times the way above the floor ends an attempt: a later low loss by chance is not a fit."""
_MIN_WAY = 1e-9
"""Smallest way from the first loss to the floor, as a share of these losses, that counts."""

Make = Callable[[nn.Module, float], torch.optim.Optimizer]
"""Function that builds an optimiser of a model at a rate; its groups have a `base_lr`."""
Stop = Literal["reached", "steps", "not finite", "exploded", "outpaced"]


@dataclass(frozen=True)
class FitSetup:
    """Setup that all attempts share: the run with the initial weights, the batch, and the enabled parts of the recipe.

    `floor` is the lowest loss of any outputs; None if the loss has none. `score(job, batch)` is called after an attempt
    that fitted the samples and returns the run's metric for them; it changes the job.
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
        """Number format of the recipe."""
        return self.built.job.precision.name

    def batch_in(self, precision: str) -> Batch:
        """Move the batch to the device, in a number format."""
        batch: Batch = to_device(self.batch, self.device, float_dtype=Precision(precision).parameter_dtype)
        return batch


@dataclass(frozen=True)
class FitCurve:
    """Loss curve of one attempt: the total loss before each step and after the last; `terms` are the single losses.

    `stop` is the reason for its end: the goal (the smallest of `SHARES`, or another share) was reached, the steps were
    over, a gradient was not finite, the loss exploded, or another rate had been faster. `score` is the run's metric on
    the samples, if they were fitted.
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
        """Remaining share of the way from the first loss to the floor, at each step; NaN if there is no way."""
        if self.floor is None or not self.losses:
            return [math.nan] * len(self.losses)
        distance = self.losses[0] - self.floor
        has_no_way = not distance > _MIN_WAY * max(abs(self.losses[0]), abs(self.floor))
        return [math.nan if has_no_way else (loss - self.floor) / distance for loss in self.losses]

    @property
    def lowest(self) -> float:
        """The smallest share; NaN if there is none."""
        shares = [share for share in self.shares if not math.isnan(share)]
        return min(shares, default=math.nan)

    def steps_to(self, share: float) -> int | None:
        """Return the number of steps after which a share was first reached; None if never."""
        return next((step for step, step_share in enumerate(self.shares) if step_share <= share), None)

    @property
    def is_fitted(self) -> bool:
        return self.steps_to(FITTED) is not None

    @property
    def is_falling(self) -> bool:
        """True if the last quarter still got a tenth lower than all steps before it."""
        shares = self.shares
        cut = len(shares) * 3 // 4
        return self.stop == "steps" and cut > 0 and min(shares[cut:]) < 0.9 * min(shares[:cut])

    @property
    def order(self) -> tuple[float, ...]:
        """Sort key, best attempt first: steps to the smallest share, to the larger ones, then the lowest share."""
        steps = [math.inf if (num_steps := self.steps_to(share)) is None else num_steps for share in reversed(SHARES)]
        return (*steps, math.inf if math.isnan(self.lowest) else self.lowest)


def prepare_model(bench: FitSetup, precision: str) -> nn.Module:
    """Copy the run's initial model, in a number format, without dropout unless the setup keeps it."""
    model = isolated_copy(bench.built.job.model).to(dtype=Precision(precision).parameter_dtype)
    if "dropout" not in bench.keep:
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
    return model


def _make_job(
    bench: FitSetup, model: nn.Module, optimizer: torch.optim.Optimizer, *, precision: str, clip: bool
) -> TrainState:
    """Copy the run's job with another model, a constant rate, and the loss weights after their ramps."""
    job = bench.built.job
    if "decay" not in bench.keep:
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
    return dataclasses.replace(
        job,
        model=model,
        optimizer=optimizer,
        schedule=_constant_schedule,
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
    """Take the run's own training steps on the batch until the share `goal` of the way is left, or the steps are over.

    `clip` clips gradients as in the recipe, `unfreeze` trains the modules that the recipe freezes. `until` ends an
    attempt that did not reach the goal in that many steps. `change(model)` alters the copied model before its optimiser
    is built, `through(model)` returns the callable that the step uses as the model, `watch(step, job)` is called before
    each step. Every attempt starts from the same weights and the same random state.
    """
    with bench.built.job.losses.preserve_state():
        seed_everything(bench.built.config.seed, 1)
        model = prepare_model(bench, precision)
        if change is not None:
            change(model)
        job = _make_job(
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
        term_curves = {term: tuple(values) for term, values in terms.items()}
        fit_curve = FitCurve(name, rate, precision, bench.floor, tuple(losses), term_curves, stop)
        if bench.score is None or not fit_curve.is_fitted or watch is not None:
            return fit_curve
        return dataclasses.replace(fit_curve, score=bench.score(job, batch))


def forward_once(bench: FitSetup, model: nn.Module) -> Mapping[str, Any]:
    """Run a copy of the model on the batch, in training mode and the recipe's format, and return its outputs."""
    job, batch = bench.built.job, bench.batch_in(bench.precision)
    model.train()
    apply_freezing(model, job.frozen, 0)
    with record({"": model}, keep=("outputs",), each=None) as tape:
        compute_batch_losses(job.task, model, batch, bench.device, job.precision)
    outputs: Mapping[str, Any] = tape.outputs[-1]
    return outputs


def _constant_schedule(step: int) -> float:
    return 1.0


class _NoClock:
    """Clock that ignores the phases of a step."""

    def end_phase(self, name: str) -> None:
        """Do nothing."""


_FIT_ONE = FindingBuilder(code="fit-one")


def build_findings(built: TrainingSetup, faults: Iterable[Fault]) -> list[Finding]:
    """Build findings of faults about the training split of a run."""
    context = Context(built, World(device=built.job.device))
    return [_FIT_ONE.build(fault, context, split="train") for fault in faults]
