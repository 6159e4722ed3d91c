"""One attempt to memorise a fixed batch with the engine's own training step, and its loss curve."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from sightline.contract import registry
from sightline.contract.types import Batch, ComponentConfig
from sightline.engine.build import TrainingSetup
from sightline.engine.device import Precision, seed_everything, to_device
from sightline.engine.distributed import World
from sightline.engine.learnt_losses import combine_modules
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses
from sightline.engine.train import NonFiniteGradientError, TrainState, train_step
from sightline.instrument import record
from sightline.workbench.check.core.dry_run import isolated_copy

SHARES = (0.5, 0.1, 0.01)
"""Remaining shares of the way from the first loss to the floor: a half, a tenth, a hundredth."""
_EXPLODED = 100.0
"""A loss this many times the way above the floor ends an attempt: a later low loss by chance is not a fit."""
_MIN_WAY = 1e-9
"""Smallest way to the floor, as a share of the losses at its ends, that counts."""
OWN = "recipe"

Stop = Literal["reached", "steps", "not finite", "exploded", "time"]


@dataclass(frozen=True)
class FitSetup:
    """Setup that all attempts share: the run with the initial weights, the batch, and the enabled parts of the recipe.

    `floor` is the lowest loss of any outputs, and samples are fitted at the loss `goal`; both are NaN if not known. No
    step is taken after `ends_s` of the process's time, nor, with `is_brief`, after samples are fitted. `score(job,
    batch)` computes the run's metric for the samples after an attempt that fitted them; it changes the job.
    """

    built: TrainingSetup
    batch: Batch
    steps: int
    floor: float = math.nan
    goal: float = math.nan
    keep: frozenset[str] = frozenset()
    ends_s: float = math.inf
    is_brief: bool = False
    score: Callable[[TrainState, Batch], float] | None = None

    @property
    def device(self) -> torch.device:
        return self.built.job.device

    def batch_in(self, precision: str) -> Batch:
        """Move the batch to the device, in a number format."""
        batch: Batch = to_device(self.batch, self.device, float_dtype=Precision(precision).parameter_dtype)
        return batch


@dataclass(frozen=True)
class FitCurve:
    """Loss curve of one attempt: the total loss before each step and after the last; `terms` are the single losses.

    `stop` is the reason for its end: a hundredth of the way was left, the steps or the time were over, a gradient was
    not finite, or the loss exploded. `score` is the run's metric on the samples, if they were fitted.
    """

    optimizer: str
    rate: float
    floor: float
    goal: float
    losses: tuple[float, ...]
    terms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    stop: Stop = "steps"
    score: float = math.nan

    @property
    def shares(self) -> list[float]:
        """Remaining share of the way to the floor, at each step; NaN if there is no way."""
        start = self.losses[0] if self.losses else math.nan
        way = start - self.floor
        has_no_way = not way > _MIN_WAY * max(abs(start), abs(self.floor))
        return [math.nan if has_no_way else (loss - self.floor) / way for loss in self.losses]

    @property
    def lowest(self) -> float:
        """The smallest share; NaN if there is none."""
        return min((share for share in self.shares if not math.isnan(share)), default=math.nan)

    def steps_to(self, share: float) -> int | None:
        """Return the number of steps after which a share was first reached; None if never."""
        return next((step for step, left in enumerate(self.shares) if left <= share), None)

    @property
    def fitted_after(self) -> int | None:
        """Number of steps after which the samples were first fitted; None if never."""
        return next((step for step, loss in enumerate(self.losses) if loss <= self.goal), None)

    @property
    def is_fitted(self) -> bool:
        return self.fitted_after is not None

    @property
    def is_falling(self) -> bool:
        """True if the last quarter still got a tenth lower than all steps before it."""
        shares, cut = self.shares, len(self.losses) * 3 // 4
        return self.stop in ("steps", "time") and cut > 0 and min(shares[cut:]) < 0.9 * min(shares[:cut])

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "optimizer": self.optimizer,
            "rate": self.rate,
            "is_fitted": self.is_fitted,
            "steps_to": {f"{share:g}": self.steps_to(share) for share in SHARES},
            "lowest_share": None if math.isnan(self.lowest) else self.lowest,
            "score": None if math.isnan(self.score) else self.score,
            "stop": self.stop,
            "losses": list(self.losses),
        }


def prepare_model(setup: FitSetup) -> nn.Module:
    """Copy the run's initial model, without dropout unless the setup keeps it."""
    model = isolated_copy(setup.built.job.model)
    for module in () if "dropout" in setup.keep else model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


def forward_once(setup: FitSetup, model: nn.Module) -> Mapping[str, Any]:
    """Run a copy of the model on the batch, in training mode, and return its outputs."""
    job = setup.built.job
    model.train()
    apply_freezing(model, job.frozen, 0)
    with record({"": model}, keep=("outputs",), each=None) as tape:
        compute_batch_losses(job.task, model, setup.batch_in(job.precision.name), setup.device, job.precision)
    outputs: Mapping[str, Any] = tape.outputs[-1]
    return outputs


def own_rate(built: TrainingSetup) -> float:
    """Return the highest base rate of the recipe's optimiser."""
    return max((float(group["base_lr"]) for group in built.job.optimizer.param_groups), default=0.0)


def _copy_own_optimizer(built: TrainingSetup, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Copy the run's optimiser for a copy of its model, with every group's rate scaled in proportion."""
    source = built.job.optimizer
    names = {id(parameter): name for name, parameter in built.job.trained_module.named_parameters()}
    copied = dict(model.named_parameters())
    optimizer = copy.copy(source)
    optimizer.state = type(source.state)(source.state.default_factory)
    optimizer.param_groups = []
    highest = own_rate(built)
    for group in source.param_groups:
        parameters = [copied[names[id(parameter)]] for parameter in group["params"] if id(parameter) in names]
        base = group["base_lr"] * (rate / highest) if highest > 0 else rate
        optimizer.param_groups.append({**group, "params": parameters, "base_lr": base, "lr": base})
    return optimizer


def build_optimizer(name: str, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Build a usual optimiser with its usual arguments."""
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    recipe = registry.optimizers.build(ComponentConfig(name, {"lr": rate, "weight_decay": 0.0, **momentum}), facts={})
    optimizer: torch.optim.Optimizer = recipe.build(model)
    return optimizer


def _make_job(setup: FitSetup, name: str, rate: float) -> TrainState:
    """Copy the run's job with another model, a constant rate, and the loss weights after their ramps.

    The recipe's optimiser clips gradients and freezes modules as in the run, any other does not.
    """
    job, model, is_own = setup.built.job, prepare_model(setup), name == OWN
    trained = combine_modules(model, job.losses)
    optimizer = _copy_own_optimizer(setup.built, trained, rate) if is_own else build_optimizer(name, trained, rate)
    for group in () if "decay" in setup.keep else optimizer.param_groups:
        group["weight_decay"] = 0.0
    return dataclasses.replace(
        job,
        model=model,
        optimizer=optimizer,
        schedule=_constant_schedule,
        loss_weights=job.loss_weights_at(job.num_steps),
        clip_norm=job.clip_norm if is_own else None,
        frozen=job.frozen if is_own else (),
        ema_decay=None,
        ema=None,
        compile=False,
        step=0,
    )


def fit(setup: FitSetup, name: str, rate: float, *, watch: Callable[[int, TrainState], None] | None = None) -> FitCurve:
    """Take the run's own training steps on the batch until a hundredth of the way is left, or the steps are over.

    `name` is `OWN`, or an optimiser. `watch(step, job)` is called before each step; then all steps are taken. Every
    attempt starts from the same weights and the same random state.
    """
    with setup.built.job.losses.preserve_state():
        seed_everything(setup.built.config.seed, 1)
        job = _make_job(setup, name, rate)
        batch, world, clock = setup.batch_in(job.precision.name), World(device=setup.device), _NoClock()
        losses: list[float] = []
        terms: dict[str, list[float]] = {}
        stop: Stop = "steps"
        for step in range(setup.steps + 1):
            job.step = step
            if watch is not None:
                watch(step, job)
            try:
                found = train_step(job, job.model, [batch], world, clock).losses
            except NonFiniteGradientError:
                stop = "not finite"
                break
            for term in job.loss_weights:
                terms.setdefault(term, []).append(found[term])
            losses.append(sum(weight * found[term] for term, weight in job.loss_weights_at(step).items()))
            if watch is None and (end := _find_end(setup, losses)) is not None:
                stop = end
                break
        values = {term: tuple(each) for term, each in terms.items()}
        curve = FitCurve(name, rate, setup.floor, setup.goal, tuple(losses), values, stop)
        if setup.score is None or not curve.is_fitted or watch is not None:
            return curve
        return dataclasses.replace(curve, score=setup.score(job, batch))


def _find_end(setup: FitSetup, losses: list[float]) -> Stop | None:
    share = FitCurve("", 0.0, setup.floor, setup.goal, (losses[0], losses[-1])).shares[-1]
    if losses[-1] <= setup.goal and (setup.is_brief or share <= SHARES[-1]):
        return "reached"
    if share > _EXPLODED:
        return "exploded"
    return "time" if time.process_time() > setup.ends_s else None


def _constant_schedule(step: int) -> float:
    return 1.0


class _NoClock:
    """Clock that ignores the phases of a step."""

    def end_phase(self, name: str) -> None:
        """Do nothing."""
