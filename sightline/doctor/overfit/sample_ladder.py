"""From one sample to the task, rung by rung: each has a rule, and the first that is not kept ends the climb."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.config import RunConfig
from sightline.describe.trace import preserve_all_rng_states
from sightline.doctor.core.finding import Finding
from sightline.doctor.overfit.fit_attempt import FITTED
from sightline.doctor.overfit.fit_one import LONGER, FitOptions, fit_one
from sightline.doctor.overfit.fit_reporter import FitReporter
from sightline.doctor.overfit.samples import loss_between_samples
from sightline.doctor.overfit.scoring import evaluation_reader
from sightline.doctor.overfit.trivial import fit_constant
from sightline.engine.batch_stream import BatchSampler, evaluation_keys
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.engine.evaluate import Evaluation
from sightline.engine.records import StepRecord
from sightline.engine.train import NonFiniteGradientError, train
from sightline.errors import UserError

__all__ = ["ALL", "Rung", "parse_rungs", "run_ladder", "rung_document"]

ALL = "all"
LEARNING = 32
"""From so many samples on a rung asks what is learnt for others, not whether its own are known by heart."""
HELD_OUT = 256
"""Held-out samples at most, spread over the part: a result within minutes, at a standard error of three points."""
_CLOSER = {"some": 0.25, ALL: 0.5}
"""The required share of the way from the constant prediction to the perfect one: a quarter; for the task a half."""
_MOST_CONSTANT = 256
_TOLD = 10


@dataclass(frozen=True)
class Rung:
    """One rung: how many samples, its rule and what was measured, in words, and the numbers."""

    samples: int
    rule: str
    measured: str
    is_passed: bool
    figures: dict[str, float]


def parse_rungs(text: str, size: int) -> list[int | str]:
    """`1,8,64,all` as numbers in rising order. Raises UserError for anything else."""
    found: list[int | str] = []
    for word in text.split(","):
        if word.strip() == ALL:
            found.append(ALL)
        elif word.strip().isdigit() and int(word) > 0:
            found.append(int(word))
        else:
            raise UserError(f"--grow {text}: '{word}' is not a rung; give numbers of samples, and all for the task")
    sizes = [size if rung == ALL else int(rung) for rung in found]
    if sizes != sorted(set(sizes)):
        raise UserError(f"--grow {text}: rungs rise; the training part, all, has {size} samples")
    if sizes[-1] > size:
        raise UserError(f"--grow {text}: the training part has {size} samples; give at most as many, or all")
    return found


def run_ladder(
    config: RunConfig,
    world: World,
    built: TrainingSetup,
    rungs: Sequence[int | str],
    asked: FitOptions,
    note: Callable[[str], None],
) -> tuple[list[Rung], list[Finding]]:
    """Climb until a rule is not kept; the rungs that were tried, and why the last of them failed.

    Raises UserError for a rung of one sample where losses compare samples.
    """
    if rungs[0] == 1 and (compares := loss_between_samples(built)):
        raise UserError(f"--grow: rung 1: '{compares}' compares samples with one another; begin with 2 or more")
    climbed: list[Rung] = []
    for rung in rungs:
        is_task = rung == ALL
        size = len(built.data.train.indices) if is_task else int(rung)
        note(f"rung {rung}: {size} samples")
        if size < LEARNING and not is_task:
            found, findings = _by_heart(built, size, asked, note)
        else:
            found, findings = _learning(config, world, built, size, is_task=is_task, asked=asked, note=note)
        climbed.append(found)
        note(f"rung {rung}: {'passed' if found.is_passed else 'FAILED'}; rule: {found.rule}; {found.measured}")
        if not found.is_passed:
            return climbed, findings
    return climbed, []


# --- the lower rungs: known by heart ---------------------------------------------------------------------------------


def _by_heart(
    built: TrainingSetup, size: int, asked: FitOptions, note: Callable[[str], None]
) -> tuple[Rung, list[Finding]]:
    result = fit_one(built, dataclasses.replace(asked, samples=size, is_brief=True), note)
    if not result.verdicts:
        rule = "a step can be taken"
        return Rung(size, rule, result.findings[0].summary, False, {}), list(result.findings)
    curve = result.verdicts[0].trusted
    steps, lowest = curve.steps_to(FITTED), curve.lowest
    reached = f"after {steps} steps" if steps is not None else "never reached"
    figures = {"share": lowest, "steps": math.nan if steps is None else steps, "rate": curve.rate}
    rung = Rung(
        size,
        f"at most {FITTED:g} of the way to the floor is left within {asked.steps} steps, or {LONGER} times as many "
        "where the loss still falls",
        f"{reached}; {lowest:.3g} at best, rate {curve.rate:g}",
        result.is_fitted,
        figures,
    )
    return rung, [] if result.is_fitted else list(result.findings)


# --- the upper rungs: learnt for others ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Learnt:
    """The result of a training on some samples, beside the constant prediction."""

    metric: str
    trivial: float
    held_out: float
    known: float
    first_loss: float
    last_loss: float
    trivial_loss: float
    steps: int
    is_higher_better: bool

    def closeness(self, value: float) -> float:
        """The place on the way from the constant prediction (0) to the perfect one (1)."""
        best = (1.0 if self.trivial <= 1.0 else math.inf) if self.is_higher_better else 0.0
        way = best - self.trivial
        if way == 0:
            return 1.0
        if math.isinf(way):
            return value / self.trivial - 1.0
        return (value - self.trivial) / way


def _learning(
    config: RunConfig,
    world: World,
    built: TrainingSetup,
    size: int,
    *,
    is_task: bool,
    asked: FitOptions,
    note: Callable[[str], None],
) -> tuple[Rung, list[Finding]]:
    with preserve_all_rng_states():
        learnt = _learn(config, world, built, size, is_task=is_task, asked=asked, note=note)
    if learnt is None:
        finding = FitReporter(built).finding(
            severity="error",
            summary="training ended in a gradient that is not finite",
            causes=("optim.nonfinite", "optim.lr"),
            path="optimizer.lr",
            measured=f"a gradient that is not finite on {size} samples",
            expected="finite gradients",
            action="lower the learning rate or clip gradients (train.clip_norm)",
        )
        return Rung(size, "training ends", "a gradient was not finite", False, {}), [finding]
    wanted = _CLOSER[ALL if is_task else "some"]
    measured = learnt.closeness(learnt.held_out)
    rung = Rung(
        size,
        f"{learnt.metric} of held-out samples is {wanted:g} of the way from the constant prediction to the perfect one",
        f"{learnt.held_out:.4g}, the constant prediction {learnt.trivial:.4g}: {measured:.2f} of the way "
        f"after {learnt.steps} steps",
        measured >= wanted,
        {
            "closeness": measured,
            learnt.metric: learnt.held_out,
            "trivial": learnt.trivial,
            "training_samples": learnt.known,
            "first_loss": learnt.first_loss,
            "last_loss": learnt.last_loss,
            "trivial_loss": learnt.trivial_loss,
        },
    )
    return rung, [] if rung.is_passed else [_why(built, learnt, wanted, asked)]


def _learn(
    config: RunConfig,
    world: World,
    built: TrainingSetup,
    size: int,
    *,
    is_task: bool,
    asked: FitOptions,
    note: Callable[[str], None],
) -> _Learnt | None:
    """Train the recipe as it is written on so many samples; None where a gradient is not finite."""
    part = built.data.train
    order = BatchSampler(indices=part.indices, batch_size=size, seed=config.seed).step_keys(0)[0][0]
    chosen = np.array([key.index for key in order], dtype=part.indices.dtype)
    if not is_task:
        steps = 2 * asked.steps
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=steps, steps=steps))
    data = dataclasses.replace(built.data, train=dataclasses.replace(part, indices=chosen))
    run = build(config, world, data=data)
    losses: list[float] = []

    def at_step(record: StepRecord, stop_asked: bool) -> bool:
        losses.append(record.losses["total"])
        if record.step % max(1, record.num_steps // _TOLD) == 0:
            note(f"step {record.step} of {record.num_steps}: loss {losses[-1]:.4g}")
        return False

    try:
        train(run.job, world, at_step)
    except NonFiniteGradientError:
        return None
    held_out = dataclasses.replace(
        run.selection_evaluator, indices=_spread(run.selection_evaluator.indices), voting_reader=None, votes=1
    )
    known = dataclasses.replace(held_out, reader=evaluation_reader(run), indices=_spread(np.sort(chosen)))
    keys = evaluation_keys(known.indices, config.train.batch_size, epoch=0, seed=config.seed)
    constant = fit_constant(run, [known.reader(each) for each in keys])
    metric, tail = config.evaluate.metric, losses[-max(1, len(losses) // _TOLD) :]
    trivial: Evaluation = held_out(constant, world)
    weights = run.job.loss_weights_at(run.job.num_steps)
    of_known = known(constant, world)
    return _Learnt(
        metric=metric,
        trivial=trivial.metrics[metric],
        held_out=held_out(run.job.evaluation_model, world).metrics[metric],
        known=known(run.job.evaluation_model, world).metrics[metric],
        first_loss=losses[0],
        last_loss=math.fsum(tail) / len(tail),
        trivial_loss=math.fsum(weights[name] * value for name, value in of_known.losses.items()),
        steps=len(losses),
        is_higher_better=run.config.evaluate.mode == "max",
    )


def _spread(indices: np.ndarray) -> np.ndarray:
    """At most so many of these, evenly spread."""
    if len(indices) <= HELD_OUT:
        return indices
    chosen: np.ndarray = indices[np.linspace(0, len(indices) - 1, HELD_OUT).astype(np.int64)]
    return chosen


def _why(built: TrainingSetup, learnt: _Learnt, wanted: float, asked: FitOptions) -> Finding:
    """Whether training did nothing, what it learnt is lost in evaluation, or it holds for its own samples alone."""
    known = learnt.closeness(learnt.known)
    measured = (
        f"loss {learnt.first_loss:.4g} -> {learnt.last_loss:.4g} (constant prediction {learnt.trivial_loss:.4g}); "
        f"{learnt.metric} {learnt.known:.4g} of training and {learnt.held_out:.4g} of held-out samples "
        f"(constant prediction {learnt.trivial:.4g})"
    )
    if not learnt.last_loss < 0.9 * learnt.trivial_loss:
        causes, summary = ("optim.lr", "data.label_mapping", "optim.scheduler"), "training did not get below a constant"
        action = f"try more steps (--steps {4 * asked.steps}); then check the rate, then the targets"
        path = "optimizer.lr"
    elif known < wanted:
        causes = ("model.norm_mode", "data.augment_target_mismatch", "eval.mode")
        summary = "the training samples are learnt, but evaluation does not reproduce it"
        action = "compare training and evaluation: running statistics of batch norm, and both lists of transforms"
        path = "transforms.evaluate"
    else:
        causes = ("data.sampling", "data.split", "data.normalisation")
        summary = "the training samples are learnt, but others are not"
        action = "take more samples on this rung; else see whether both parts are alike (`sightline check`)"
        path = "data"
    return FitReporter(built).finding(
        severity="warning",
        summary=summary,
        causes=causes,
        path=path,
        measured=measured,
        expected=f"{wanted:g} of the way from the constant prediction to the perfect one, on held-out samples",
        action=action,
    )


def rung_document(rung: Rung) -> dict[str, Any]:
    """The JSON of a rung."""
    figures = {name: None if math.isnan(value) else value for name, value in rung.figures.items()}
    return {**dataclasses.asdict(rung), "figures": figures}
