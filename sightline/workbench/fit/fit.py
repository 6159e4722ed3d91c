"""Fit of a few samples by a run's recipe, beside what constants reach; if it fails, the likely cause."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sightline.contract import registry
from sightline.contract.types import ComponentConfig
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.finding import Fault, Finding, FindingLocation, Severity
from sightline.doctor.rules import Rule
from sightline.engine.build import TrainingSetup
from sightline.engine.device import seed_everything
from sightline.engine.train import TrainState
from sightline.workbench.check.first_step_rules import missing_keys_explained
from sightline.workbench.compare.steps import train_on_batch
from sightline.workbench.describe.trace import preserve_all_rng_states
from sightline.workbench.fit.loss_bounds import FITTED, LossBounds, copy_without_dropout, measure_bounds
from sightline.workbench.fit.samples import Samples, choose_samples, move_batch, training_score

Note = Callable[[str], None]
Stop = Literal["reached", "steps", "not finite", "exploded", "time"]

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
_MIN_WAY = 1e-9
"""Smallest way to the floor, as a share of the losses at its ends, that counts."""


@dataclass(frozen=True)
class Attempt:
    """One training on the samples: the loss before each step and after the last, and the way to the floor.

    `stop` is the reason for its end, `score` the run's metric on the samples, if they were fitted.
    """

    optimizer: str
    rate: float
    bounds: LossBounds
    losses: tuple[float, ...]
    stop: Stop = "steps"
    score: float = math.nan

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
        return self.fitted_after is not None

    @property
    def rank(self) -> tuple[bool, float]:
        """Key that sorts the best attempt first."""
        return not self.is_fitted, math.inf if math.isnan(self.lowest_share) else self.lowest_share

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "optimizer": self.optimizer,
            "rate": self.rate,
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

    @property
    def is_fitted(self) -> bool:
        return any(each.optimizer == OWN and each.is_fitted for each in self.attempts)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "fitted": self.is_fitted,
            "samples": {"indices": self.samples.indices, "left_out": list(self.samples.left_out)},
            "loss": None if self.bounds is None else self.bounds.to_dict(),
            "attempts": [each.to_dict() for each in self.attempts],
        }


def fit_samples(
    built: TrainingSetup, num_samples: int | None, note: Note, *, steps: int = STEPS, seconds: float = SECONDS
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
                samples, None, (), (_find("no step can be taken on these samples", causes, bounds.reason),)
            )
        note(bounds.describe())
        fitter = _Fitter(built, samples, bounds, steps, time.process_time() + seconds, note)
        own = fitter.try_recipe() if bounds.floor is not None else []
        if any(each.is_fitted for each in own):
            return FitResult(samples, bounds, tuple(own), () if bounds.is_question else (_judge_constants(bounds),))
        others = fitter.try_adam() if own else []
        return FitResult(samples, bounds, (*own, *others), (_explain(built, bounds, own, others),))


@dataclass(frozen=True)
class _Fitter:
    """Trainer of copies of a run on the samples; no step is taken after `ends_s` of the process's time."""

    built: TrainingSetup
    samples: Samples
    bounds: LossBounds
    steps: int
    ends_s: float
    note: Note

    def try_recipe(self) -> list[Attempt]:
        """Try the recipe's optimiser at a few rates, up to the first that fits."""
        config, facts = self.built.config, self.built.data.facts
        recipe = registry.optimizers.build(config.optimizer, facts=facts)
        tried: list[Attempt] = []
        for factor in _FACTORS:
            tried.append(self._train(OWN, recipe, factor))
            if tried[-1].is_fitted:
                return tried
        return tried

    def try_adam(self) -> list[Attempt]:
        """Try Adam at a few rates, up to the first that fits, without clipping and freezing."""
        tried: list[Attempt] = []
        for rate in _ADAM_RATES:
            adam = ComponentConfig("adam", {"lr": rate, "weight_decay": 0.0})
            tried.append(self._train("adam", registry.optimizers.build(adam, facts={}), 1.0))
            if tried[-1].is_fitted:
                break
        return tried

    def _train(self, name: str, recipe: Any, factor: float) -> Attempt:
        """Train a copy until a hundredth of the way is left; each from the same weights and random state."""
        built = self.built
        with built.job.losses.preserve_state():
            seed_everything(built.config.seed, 1)
            job = self._make_job(recipe, factor, is_own=name == OWN)
            rate = factor * max((float(group["base_lr"]) for group in job.optimizer.param_groups), default=0.0)
            batch = move_batch(self.samples.batch, job, job.precision)
            losses: list[float] = []
            stop: Stop | None = None
            for loss in train_on_batch(job, job.model, batch, num_steps=self.steps + 1):
                losses.append(loss)
                stop = self._find_end(losses)
                if stop is not None:
                    break
            stop = stop or ("steps" if len(losses) > self.steps else "not finite")
            found = Attempt(name, rate, self.bounds, tuple(losses) or (math.nan,), stop)
            if found.is_fitted:
                with missing_keys_explained(built.config, job.model):
                    found = dataclasses.replace(found, score=training_score(built, job, batch, self.samples.indices))
        self._describe(found)
        return found

    def _make_job(self, recipe: Any, factor: float, *, is_own: bool) -> TrainState:
        """Copy the run's job with another model, a constant rate, and the loss weights after their ramps."""
        job = self.built.job
        model = copy_without_dropout(job)
        return dataclasses.replace(
            job,
            model=model,
            optimizer=recipe.build(model, job.losses),
            schedule=lambda step: factor,
            loss_weights=job.loss_weights_at(job.num_steps),
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

    def _describe(self, found: Attempt) -> None:
        steps, share = found.fitted_after, found.lowest_share
        left = "no loss" if math.isnan(share) else f"{max(share, 0):.3g} of the way left at best"
        ended = f"fitted after {steps} steps" if steps is not None else f"not fitted in {len(found.losses) - 1} steps"
        time_over = "; out of time (--seconds)" if found.stop == "time" else ""
        self.note(f"{found.optimizer} at rate {found.rate:g}: {ended}; {left}{time_over}")


# --- findings --------------------------------------------------------------------------------------------------------


def _find(
    summary: str, causes: str, measured: str, do: str = "", *, path: str = "model", severity: Severity = "error"
) -> Finding:
    holds = f"at most {FITTED:g} of the way from constants to the lowest loss is left"
    fault = Fault(summary, measured=measured, where=FindingLocation(config_path=path))
    do = do or "see the other findings of this check"
    return next(Rule("fit", severity, tuple(causes.split()), holds, do, lambda: fault, ()).find())


def _explain(built: TrainingSetup, bounds: LossBounds, own: Sequence[Attempt], others: Sequence[Attempt]) -> Finding:
    """Name the likeliest cause of samples that were not fitted."""
    fitting = next((each for each in others if each.is_fitted), None)
    if not own:
        return _find(
            "no lower bound of the loss is known: the samples were not fitted",
            "loss.sign loss.form loss.detached",
            f"initial loss {bounds.start:.4g}, and a loss that falls without bound, or reads no output",
        )
    best = min(own, key=lambda each: each.rank)
    if fitting is not None:
        return _blame_optimizer(built, own, best, fitting)
    left = f"{best.lowest_share:.3g} of the way left after {len(best.losses) - 1} steps"
    if bounds.is_stuck(min(best.losses)):
        return _find(
            "the network reaches what constants reach: its outputs do not follow its inputs",
            "model.constant_output data.duplicate_randomness data.missing_modality",
            f"a loss of {min(best.losses):.4g}; the best constants {bounds.constant:.4g}",
            "see by `sightline view` that the samples differ, and that every input reaches the output",
        )
    causes = "model.structure model.init model.geometry"
    do = "give more --steps or --seconds if the losses in --json still fall; see the other findings of this check"
    return _find("these samples were not fitted, by the recipe or by Adam", causes, left, do)


def _blame_optimizer(built: TrainingSetup, own: Sequence[Attempt], best: Attempt, fitting: Attempt) -> Finding:
    tried = ", ".join(f"{each.rate:g}" for each in own)
    return _find(
        "the recipe's optimiser does not fit these samples, Adam does",
        "optim.lr optim.hyper optim.param_coverage" + ("" if built.job.clip_norm is None else " optim.clip"),
        f"{max(best.lowest_share, 0):.3g} of the way left at rates {tried}; Adam needs {fitting.fitted_after} steps at "
        f"{fitting.rate:g}, without weight decay, clipping and freezing",
        "change optimizer.lr or its weight_decay; see optimizer.frozen and train.clip_norm; or give more --steps",
        path="optimizer.lr",
    )


def _judge_constants(bounds: LossBounds) -> Finding:
    return _find(
        "constants fit these samples as well: that they are fitted proves nothing",
        "data.target_encoding data.sampling",
        f"the best constants reach {bounds.constant:.4g}, the best outputs {bounds.floor:.4g}",
        "give more --samples, or see their targets with `sightline view`",
        path="data",
        severity="note",
    )
