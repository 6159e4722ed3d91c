"""Fit of a few samples by a run's recipe, beside what constants reach; if it fails, the likely cause."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from sightline.contract import registry
from sightline.contract.types import Batch, ComponentConfig
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.evidence.levels import FITTED, LossBounds
from sightline.doctor.finding import Fault, Finding, FindingLocation, Severity
from sightline.doctor.rules import Rule
from sightline.engine.build import TrainingSetup
from sightline.engine.device.numerics import Precision, seed_everything
from sightline.engine.learnt_losses import LearntLosses
from sightline.engine.optimizers import OptimizerSpec
from sightline.engine.train import TrainState
from sightline.workbench.check.first_step_rules import missing_keys_explained
from sightline.workbench.check.run_subject import find_rectified
from sightline.workbench.compare.steps import train_on_batch
from sightline.workbench.describe.trace import preserve_all_rng_states
from sightline.workbench.fit.samples import (
    Samples,
    choose_samples,
    copy_without_dropout,
    measure_bounds,
    move_batch,
    training_score,
)

Note = Callable[[str], None]
Stop = Literal["reached", "steps", "not finite", "exploded", "time"]
Verdict = Literal["fitted", "not yet", "stopped by time", "not fitted"]
"""`not yet`: the loss still falls at the last step; neither that nor a stop by time is an error."""

STEPS, SECONDS = 100, 120.0
"""Steps of an attempt, and processor time after which no further step is taken."""
OWN = "recipe"
_FACTORS = (1.0, 0.1, 10.0)
"""Factors of the recipe's own rate, which was chosen for another batch and a schedule: any of these may fit."""
_ADAM_RATES = (1e-2, 1e-3, 1e-1)
"""Rates of the optimiser that is compared with a recipe's that fails."""
_END = 0.01
"""Remaining share of the way to the floor at which an attempt ends."""
_EXPLODED = 100.0
"""A loss this many times the way above the floor ends an attempt: a later low loss by chance is not a fit."""
_FALLS, _RESTS, _STANDS = 10, 40, 1000
"""A loss still falls if, falling on as in its last half, it reaches the goal within so many times as many steps.

If that takes more than `_RESTS` times as many, it has come to rest, of more than `_STANDS` times it is as good as flat.
"""
_MIN_STEPS = 12
"""Steps below which quarters of a curve are one or two losses, whose fall says nothing."""
_ALIKE = 0.05
"""Share of the way by which two attempts that have come to rest may differ for both to be at one level."""
_MIN_WAY = 1e-9
"""Smallest way to the floor, as a share of the losses at its ends, that counts."""


@dataclass(frozen=True)
class Attempt:
    """One training on the samples: the loss before each step and after the last, and the way to the floor.

    `stop` is the reason for its end, `score` the run's metric on the samples, if they were fitted. `factor` is that of
    the recipe's own rates. `looks` are what `Fitter.look` returned before the first step and after the last.
    """

    optimizer: str
    rate: float
    bounds: LossBounds
    losses: tuple[float, ...]
    stop: Stop = "steps"
    score: float = math.nan
    precision: str = "float32"
    factor: float = 1.0
    looks: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    @property
    def num_steps(self) -> int:
        """The number of steps that were taken."""
        return len(self.losses) - 1

    @property
    def shares(self) -> list[float]:
        """Remaining share of the way to the floor, at each step; NaN if there is no way."""
        start, floor = self.losses[0], math.nan if self.bounds.floor is None else self.bounds.floor
        has_no_way = not start - floor > _MIN_WAY * max(abs(start), abs(floor))
        return [math.nan if has_no_way else (loss - floor) / (start - floor) for loss in self.losses]

    @property
    def lowest_share(self) -> float:
        """The smallest share; NaN if there is none."""
        return min((share for share in self.shares if not math.isnan(share)), default=math.nan)

    @property
    def fitted_after(self) -> int | None:
        """Number of steps after which the samples were first fitted; None if never."""
        return next((step for step, loss in enumerate(self.losses) if loss <= self.bounds.goal), None)

    @property
    def is_fitted(self) -> bool:
        """True if the samples were fitted."""
        return self.fitted_after is not None

    @property
    def final_loss(self) -> float:
        """Mean loss of the last quarter of the steps."""
        return _mean(self.losses[-self._quarter :])

    @property
    def expected_steps(self) -> float:
        """Number of steps to the goal if the loss falls on as in the last half of the steps; infinite if it does not.

        The distance to the floor is taken to shrink by the same factor as from the third to the last quarter.
        """
        floor, size = self.bounds.floor, self._quarter
        if floor is None or self.stop not in ("steps", "time") or len(self.losses) < 2 * size:
            return math.inf
        before, last = _mean(self.losses[-2 * size : -size]) - floor, self.final_loss - floor
        goal = self.bounds.goal - floor
        if not 0 < goal < last < min(before, self.losses[0] - floor):
            return math.inf
        return self.num_steps + size * math.log(last / goal) / math.log(before / last)

    @property
    def still_falls(self) -> bool:
        return self.expected_steps <= _FALLS * self.num_steps

    @property
    def _quarter(self) -> int:
        return max(1, len(self.losses) // 4)

    @property
    def rank(self) -> tuple[bool, float]:
        """Key that sorts the best attempt first."""
        return not self.is_fitted, math.inf if math.isnan(self.lowest_share) else self.lowest_share

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "optimizer": self.optimizer,
            "rate": self.rate,
            "precision": self.precision,
            "fitted_after": self.fitted_after,
            "lowest_share": None if math.isnan(self.lowest_share) else self.lowest_share,
            "score": None if math.isnan(self.score) else self.score,
            "stop": self.stop,
            "losses": list(self.losses),
        }


@dataclass(frozen=True)
class FitResult:
    """Result of a fit: the recipe's attempts, then those of another optimiser, and findings.

    `bounds` is None if no step could be taken.
    """

    samples: Samples
    bounds: LossBounds | None
    attempts: tuple[Attempt, ...]
    findings: tuple[Finding, ...] = ()
    verdict: Verdict = "not fitted"

    @property
    def is_fitted(self) -> bool:
        """True if the samples were fitted."""
        return self.verdict == "fitted"

    @property
    def best(self) -> Attempt | None:
        """The recipe's best attempt; None if there is none."""
        return min(
            (attempt for attempt in self.attempts if attempt.optimizer == OWN),
            key=lambda attempt: attempt.rank,
            default=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "fitted": self.is_fitted,
            "verdict": self.verdict,
            "samples": {"indices": self.samples.indices, "left_out": list(self.samples.left_out)},
            "loss": None if self.bounds is None else self.bounds.to_dict(),
            "attempts": [attempt.to_dict() for attempt in self.attempts],
        }


Look = Callable[[TrainState, Batch, Attempt | None], Any]
"""Look at a job and its batch, before its first step, and after its last with the attempt; it changes nothing."""


def fit_samples(
    built: TrainingSetup,
    num_samples: int | None,
    note: Note,
    *,
    steps: int = STEPS,
    seconds: float = SECONDS,
    look: Look | None = None,
) -> FitResult:
    """Memorise a few samples of a run, and find the cause if that fails. Run and global random states do not change.

    Raises UserError for more samples than there are.
    """
    with preserve_all_rng_states():
        samples = choose_samples(built, num_samples)
        note(samples.describe())
        bounds = attempt("the first step", measure_bounds, {"built": built, "batch": samples.batch})
        if isinstance(bounds, MissingError):
            causes = "cfg.contract data.corrupt_sample"
            return FitResult(
                samples, None, (), (make_finding("no step can be taken on these samples", causes, str(bounds)),)
            )
        note(bounds.describe())
        fitter = Fitter(built, samples, bounds, steps, time.process_time() + seconds, note, look)
        recipe_attempts = fitter.try_rates(fitter.recipe, _FACTORS) if bounds.floor is not None else []
        if recipe_attempts and recipe_attempts[-1].is_fitted:
            notes = (*_judge_constants(bounds), *_judge_rate(recipe_attempts))
            return FitResult(samples, bounds, tuple(recipe_attempts), notes, "fitted")
        if any(tried.stop == "time" for tried in recipe_attempts):
            return FitResult(
                samples, bounds, tuple(recipe_attempts), (_describe_time(recipe_attempts, steps),), "stopped by time"
            )
        if recipe_attempts and (rectified := find_rectified(built)):
            cause = dataclasses.replace(rectified[0], code="fit", severity="error")
            return FitResult(samples, bounds, tuple(recipe_attempts), (cause,))
        if (slow := _find_falling(bounds, recipe_attempts)) is not None:
            return FitResult(samples, bounds, tuple(recipe_attempts), (_describe_falling(slow),), "not yet")
        adam_attempts = (
            dataclasses.replace(fitter, look=None).try_rates(make_candidate("adam"), _ADAM_RATES)
            if recipe_attempts
            else []
        )
        if recipe_attempts and steps < _MIN_STEPS and not any(tried.is_fitted for tried in adam_attempts):
            return FitResult(
                samples, bounds, (*recipe_attempts, *adam_attempts), (_describe_few(recipe_attempts, steps),), "not yet"
            )
        return FitResult(
            samples,
            bounds,
            (*recipe_attempts, *adam_attempts),
            (_explain(built, bounds, recipe_attempts, adam_attempts),),
        )


@dataclass(frozen=True)
class Candidate:
    """Optimiser to try; the recipe's own (`OWN`) comes with its clipping and freezing, others without."""

    name: str
    spec: OptimizerSpec


def make_candidate(name: str) -> Candidate:
    """Make an optimiser of rate 1, which the factors of its attempts are multiplied with, without weight decay."""
    block = ComponentConfig(name, {"lr": 1.0, "weight_decay": 0.0})
    return Candidate(name, registry.optimizers.build(block, facts={}))


@dataclass(frozen=True)
class Fitter:
    """Trainer of copies of a run on the samples; no step is taken after `ends_s` of the process's time."""

    built: TrainingSetup
    samples: Samples
    bounds: LossBounds
    steps: int
    ends_s: float
    note: Note
    look: Look | None = None

    @property
    def recipe(self) -> Candidate:
        """The recipe's optimiser, at its rates."""
        config = self.built.config
        return Candidate(OWN, registry.optimizers.build(config.optimizer, facts=self.built.data.facts))

    @property
    def recipe_rate(self) -> float:
        """The highest rate of the recipe's optimiser, before its schedule."""
        return max(float(group["base_lr"]) for group in self.built.job.optimizer.param_groups)

    def try_rates(
        self, candidate: Candidate, factors: Sequence[float], precision: Precision | None = None, *, every: bool = False
    ) -> list[Attempt]:
        """Try an optimiser with its rates times each factor, up to the first that fits; with `every`, with all of them.

        The number format is the run's own if none is named.
        """
        tried: list[Attempt] = []
        for factor in factors:
            tried.append(self._train(candidate, factor, precision or self.built.job.precision))
            if tried[-1].is_fitted and not every:
                break
        return tried

    def _train(self, candidate: Candidate, factor: float, precision: Precision) -> Attempt:
        """Train a copy until a hundredth of the way is left; each from the same weights and random state."""
        built = self.built
        with _converted(built.job.losses, precision, built.job.precision), built.job.losses.preserve_state():
            seed_everything(built.config.seed, 1)
            job = self._make_job(candidate, factor, precision)
            rate = factor * max((float(group["base_lr"]) for group in job.optimizer.param_groups), default=0.0)
            batch = move_batch(self.samples.batch, job, precision)
            looks = [] if self.look is None else [self.look(job, batch, None)]
            losses: list[float] = []
            stop: Stop | None = None
            for loss in train_on_batch(job, job.model, batch, num_steps=self.steps + 1):
                losses.append(loss)
                stop = self._find_end(losses)
                if stop is not None:
                    break
            stop = stop or ("steps" if len(losses) > self.steps else "not finite")
            attempt = Attempt(
                candidate.name,
                rate,
                self.bounds,
                tuple(losses) or (math.nan,),
                stop,
                precision=precision.name,
                factor=factor,
            )
            if attempt.is_fitted:
                with missing_keys_explained(built.config, job.model):
                    attempt = dataclasses.replace(
                        attempt, score=training_score(built, job, batch, self.samples.indices)
                    )
            if self.look is not None:
                attempt = dataclasses.replace(attempt, looks=(*looks, self.look(job, batch, attempt)))
        self._describe(attempt)
        return attempt

    def _make_job(self, candidate: Candidate, factor: float, precision: Precision) -> TrainState:
        """Copy the run's job with another model, a constant rate, and the loss weights after their ramps."""
        job, is_own = self.built.job, candidate.name == OWN
        model = copy_without_dropout(job).to(dtype=precision.parameter_dtype)
        return dataclasses.replace(
            job,
            model=model,
            optimizer=candidate.spec.build(model, job.losses),
            schedule=lambda step: factor,
            loss_weights=job.loss_weights_at(job.num_steps),
            precision=precision,
            clip_norm=job.clip_norm if is_own else None,
            frozen=job.frozen if is_own else (),
            ema_decay=None,
            ema=None,
            compile=False,
            step=0,
        )

    def _find_end(self, losses: Sequence[float]) -> Stop | None:
        share = Attempt("", 0.0, self.bounds, (losses[0], losses[-1])).shares[-1]
        if losses[-1] <= self.bounds.goal and share <= _END:
            return "reached"
        if share > _EXPLODED:
            return "exploded"
        return "time" if time.process_time() > self.ends_s else None

    def _describe(self, attempt: Attempt) -> None:
        steps, share = attempt.fitted_after, attempt.lowest_share
        left = "no loss" if math.isnan(share) else f"{max(share, 0):.3g} of the way left at best"
        ended = f"fitted after {steps} steps" if steps is not None else f"not fitted in {attempt.num_steps} steps"
        time_over = "; out of time (--seconds)" if attempt.stop == "time" else ""
        kind = "" if attempt.precision == self.built.job.precision.name else f" in {attempt.precision}"
        self.note(f"{attempt.optimizer} at rate {attempt.rate:g}{kind}: {ended}; {left}{time_over}")


@contextmanager
def _converted(losses: LearntLosses, precision: Precision, usual: Precision) -> Iterator[None]:
    """Context in which losses with parameters have those of a number format; they are converted back at its end."""
    if precision.parameter_dtype == usual.parameter_dtype:
        yield
        return
    losses.to(dtype=precision.parameter_dtype)
    try:
        yield
    finally:
        losses.to(dtype=usual.parameter_dtype)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# --- findings --------------------------------------------------------------------------------------------------------


def make_finding(
    summary: str, causes: str, measured: str, do: str = "", *, path: str = "model", severity: Severity = "error"
) -> Finding:
    """Build a finding of `sightline fit`."""
    holds = f"at most {FITTED:g} of the way from constants to the lowest loss is left"
    fault = Fault(summary, measured=measured, where=FindingLocation(config_path=path))
    do = do or "see the findings of `sightline check`"
    return next(Rule("fit", severity, tuple(causes.split()), holds, do, lambda: fault, ()).find())


def _find_falling(bounds: LossBounds, attempts: Sequence[Attempt]) -> Attempt | None:
    """Find the attempt whose loss still falls and that would be fitted first; None if the samples do not get fitted.

    A fall counts only below the level at which attempts have come to rest: two alike, one that is flat, or one that
    hardly falls any more shortly above the best constants, which only outputs that follow the inputs pass.
    """
    waits = [
        (attempt.final_loss, attempt.expected_steps / attempt.num_steps)
        for attempt in attempts
        if attempt.stop == "steps"
    ]
    at_rest, near = [loss for loss, wait in waits if wait > _RESTS], _ALIKE * abs(bounds.start - (bounds.floor or 0.0))
    levels = [loss for loss in at_rest if sum(abs(other - loss) < near for other in at_rest) > 1]
    levels += [loss for loss, wait in waits if _STANDS < wait < math.inf]
    slow = [loss for loss, wait in waits if wait > _FALLS and bounds.is_stuck(loss) and loss >= bounds.constant]
    levels += [bounds.constant] if slow else []
    falling = [
        attempt for attempt in attempts if attempt.still_falls and attempt.final_loss < min(levels, default=math.inf)
    ]
    return min(falling, key=lambda attempt: attempt.expected_steps, default=None)


def _describe_falling(slow: Attempt) -> Finding:
    return make_finding(
        "these samples are not fitted yet, and the loss still falls",
        "optim.lr model.init",
        f"{slow.shares[-1]:.3g} of the way left after {slow.num_steps} steps at rate {slow.rate:g}; falling on like "
        f"this, it takes some {slow.expected_steps:.0f}",
        f"give more steps, as --steps {math.ceil(1.5 * slow.expected_steps)}",
        path="optimizer.lr",
        severity="warning",
    )


def _describe_few(attempts: Sequence[Attempt], steps: int) -> Finding:
    left = min((attempt.lowest_share for attempt in attempts if not math.isnan(attempt.lowest_share)), default=math.nan)
    return make_finding(
        "too few steps to tell if these samples can be fitted",
        "optim.lr model.init",
        f"{steps} steps" + ("" if math.isnan(left) else f", {max(left, 0):.3g} of the way left"),
        f"give at least --steps {_MIN_STEPS}; {STEPS} are usual",
        path="optimizer.lr",
        severity="warning",
    )


def _describe_time(attempts: Sequence[Attempt], steps: int) -> Finding:
    cut = next(attempt for attempt in attempts if attempt.stop == "time")
    left = "" if math.isnan(cut.lowest_share) else f", {max(cut.lowest_share, 0):.3g} of the way left"
    return make_finding(
        "stopped by time: whether these samples can be fitted is not decided",
        "sys.resource",
        f"rate {cut.rate:g}: {cut.num_steps} of {steps} steps{left}",
        "give more --seconds, fewer --steps, or a smaller network",
        severity="warning",
    )


def _judge_rate(attempts: Sequence[Attempt]) -> Iterator[Finding]:
    """Note that another rate than the recipe's fitted."""
    *missed, fitting = attempts
    if not missed:
        return
    first = missed[0]
    state = f"; the loss still falls, for some {first.expected_steps:.0f} steps" if first.still_falls else ""
    yield make_finding(
        "only another rate than the recipe's fits these samples",
        "optim.lr",
        f"rate {first.rate:g}: {max(first.lowest_share, 0):.3g} of the way left after {first.num_steps} steps "
        f"({first.stop}){state}; rate {fitting.rate:g}: fitted after {fitting.fitted_after}",
        f"try a rate {fitting.factor:g} times the recipe's, unless its schedule or batch size is made for this one",
        path="optimizer.lr",
        severity="note",
    )


def _explain(
    built: TrainingSetup, bounds: LossBounds, recipe_attempts: Sequence[Attempt], adam_attempts: Sequence[Attempt]
) -> Finding:
    """Name the likeliest cause of samples that were not fitted."""
    fitting = next((attempt for attempt in adam_attempts if attempt.is_fitted), None)
    if not recipe_attempts:
        return make_finding(
            "no lower bound of the loss is known: the samples were not fitted",
            "loss.sign loss.form loss.detached",
            f"initial loss {bounds.start:.4g}, and a loss that falls without bound, or reads no output",
        )
    best = min(recipe_attempts, key=lambda attempt: attempt.rank)
    if fitting is not None:
        return _blame_optimizer(built, recipe_attempts, best, fitting)
    left = f"{max(best.lowest_share, 0):.3g} of the way left after {best.num_steps} steps"
    if bounds.is_stuck(min(best.losses)):
        return make_finding(
            "the network reaches what constants reach: its outputs do not follow its inputs",
            "model.constant_output data.duplicate_randomness data.missing_modality",
            f"a loss of {min(best.losses):.4g}; the best constants {bounds.constant:.4g}",
            "see by `sightline view` that the samples differ, and that every input reaches the output",
        )
    causes = "model.structure model.init model.geometry"
    summary = "these samples were not fitted, by the recipe or by Adam"
    if any(attempt.stop == "time" for attempt in adam_attempts):
        summary = "these samples were not fitted by the recipe; Adam was stopped by time (--seconds)"
    return make_finding(summary, causes, left)


def _blame_optimizer(
    built: TrainingSetup, recipe_attempts: Sequence[Attempt], best: Attempt, fitting: Attempt
) -> Finding:
    tried = ", ".join(f"{attempt.rate:g}" for attempt in recipe_attempts)
    return make_finding(
        "the recipe's optimiser does not fit these samples, Adam does",
        "optim.lr optim.hyper optim.param_coverage" + ("" if built.job.clip_norm is None else " optim.clip"),
        f"{max(best.lowest_share, 0):.3g} of the way left at rates {tried}; Adam needs {fitting.fitted_after} steps at "
        f"{fitting.rate:g}, without weight decay, clipping and freezing",
        "change optimizer.lr or its weight_decay; see optimizer.frozen and train.clip_norm; or give more --steps",
        path="optimizer.lr",
    )


def _judge_constants(bounds: LossBounds) -> Iterator[Finding]:
    if bounds.is_question:
        return
    yield make_finding(
        "constants fit these samples as well: that they are fitted proves nothing",
        "data.target_encoding data.sampling",
        f"the best constants reach {bounds.constant:.4g}, the best outputs {bounds.floor:.4g}",
        "give more --samples, or see their targets with `sightline view`",
        path="data",
        severity="note",
    )
