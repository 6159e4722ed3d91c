"""Ladder from one sample to the whole task: the first rung that fails ends the climb, with its cause."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import nn

from sightline.contract.errors import RunError, UserError
from sightline.contract.types import Batch
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.engine.records import EvaluationRecord, StepRecord
from sightline.engine.run_loading import open_run
from sightline.engine.train import TrainState
from sightline.runs.process_folder import process_folder
from sightline.runs.run_files import RunFiles
from sightline.training.stop_request import StopRequest, restore_signal_handlers
from sightline.training.train_run import train_run
from sightline.workbench.describe.trace import preserve_all_rng_states
from sightline.workbench.fit.constant import fit_constant
from sightline.workbench.fit.fit import Attempt, Note, fit_samples, make_finding
from sightline.workbench.fit.samples import evaluation_reader

ALL = "all"
LARGE = 32
"""Number of samples from which a rung also scores held-out samples."""
_SCORED = 256
"""Largest number of samples that are scored, spread over their part: a standard error of three points."""
_REQUIRED = 0.25
"""Share of the way from the best constant's score to the perfect one that the task must reach on held-out samples."""
_HOLDS = f"held-out samples are {_REQUIRED:g} of the way from the best constant's score to the perfect one"
_MAX_OF_START = 0.05
"""Share of their start in running statistics above which evaluation mode is not that of a trained network yet."""
_LEARNT = 0.9
"""A training loss above this share of the best constant's has learnt nothing of the inputs."""

RungVerdict = Literal["passed", "failed", "not decided", "not judged"]


@dataclass(frozen=True)
class Rung:
    """One rung: its number of samples or `all`, what was measured, in words and figures, and findings on a failure."""

    rung: int | str
    verdict: RungVerdict
    measured: str
    figures: dict[str, float]
    findings: tuple[Finding, ...] = ()

    def describe(self) -> str:
        """Describe the rung in one line."""
        return f"rung {self.rung}: {self.verdict}; {self.measured}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        figures = {name: value if math.isfinite(value) else None for name, value in self.figures.items()}
        return {"rung": self.rung, "verdict": self.verdict, "measured": self.measured, "figures": figures}


def parse_rungs(text: str) -> list[int | str]:
    """Parse rungs such as `1,8,64,all`, which rise. Raises UserError for anything else."""
    rungs: list[int | str] = []
    for word in (word.strip() for word in text.split(",")):
        if word != ALL and not (word.isascii() and word.isdigit() and int(word) > 0):
            raise UserError(f"--grow {text}: '{word}' is no rung; give numbers of samples from 1, and all for the task")
        rungs.append(ALL if word == ALL else int(word))
    sizes = [math.inf if rung == ALL else rung for rung in rungs]
    if sizes != sorted(set(sizes)):
        raise UserError(f"--grow {text}: rungs must rise, as 1,8,64,all")
    return rungs


def climb(built: TrainingSetup, rungs: Sequence[int | str], note: Note, *, steps: int, seconds: float) -> list[Rung]:
    """Climb until a rung is not passed; return the rungs that were tried. The run does not change.

    A number of samples is fitted as `fit_samples` does; `all` trains the recipe as it is written, in a temporary
    folder.
    Every rung may take `seconds` of processor time. Raises UserError for more samples than there are.
    """
    size = len(built.data.train.indices)
    if too_large := [rung for rung in rungs if isinstance(rung, int) and rung > size]:
        raise UserError(
            f"--grow: rung {too_large[0]}: the training part has {size} samples; give at most as many, or all"
        )
    tried: list[Rung] = []
    for rung in rungs:
        if isinstance(rung, int):
            tried.append(_memorise(built, rung, note, steps=steps, seconds=seconds))
        else:
            note(f"rung {ALL}: trains the recipe on {size} samples for {built.job.num_steps} steps")
            min_steps = max((before.figures.get("fitted_after", 0.0) for before in tried), default=0.0)
            tried.append(_train_task(built, note, seconds, min_steps=min_steps))
        note(tried[-1].describe())
        if tried[-1].verdict in ("failed", "not decided"):
            break
    return tried


# --- numbers of samples ----------------------------------------------------------------------------------------------


def _memorise(built: TrainingSetup, size: int, note: Note, *, steps: int, seconds: float) -> Rung:
    """Fit some samples; of many, also score held-out ones with the fitted network, beside the best constant."""
    if size == 1 and built.job.task.compares_rows:
        return Rung(size, "not judged", "the losses compare samples with one another, of which there is one", {})
    scores: dict[str, float] = {}

    def look(job: TrainState, batch: Batch, tried: Attempt | None) -> None:
        if tried is not None and tried.is_fitted:
            scores["held_out"] = _score(built, job.model, built.data.selection.evenly_spaced_indices(_SCORED))

    result = fit_samples(built, size, note, steps=steps, seconds=seconds, look=look if size >= LARGE else None)
    if result.bounds is None:
        if "more than 1 value per channel" in result.findings[0].measured:
            return Rung(size, "not judged", "batch norm takes two samples or more", {})
        return Rung(size, "failed", result.findings[0].summary, {}, result.findings)
    best = result.best
    if best is None or not result.is_fitted:
        verdict: RungVerdict = "failed" if result.verdict == "not fitted" else "not decided"
        left = math.nan if best is None else best.lowest_share
        return Rung(size, verdict, result.findings[0].summary, {"way_left": left}, result.findings)
    fitted_after = best.fitted_after or 0
    measured = f"fitted after {fitted_after} steps at rate {best.rate:g}"
    figures = {"fitted_after": float(fitted_after), "rate": best.rate, "way_left": best.lowest_share}
    if scores:
        scores["best_constant"], _ = _score_constant(built, np.array(result.samples.indices))
        num = min(_SCORED, len(built.data.selection.indices))
        measured += (
            f"; {built.config.evaluate.metric} of {num} held-out samples {scores['held_out']:.4g}, "
            f"of the best constant {scores['best_constant']:.4g}"
        )
    return Rung(size, "passed", measured, figures | scores, result.findings)


def _score(built: TrainingSetup, model: nn.Module, indices: np.ndarray, *, of_training: bool = False) -> float:
    """Compute `evaluate.metric` of a model on held-out samples, or on training samples read as in evaluation."""
    evaluator = dataclasses.replace(
        built.selection_evaluator,
        indices=np.sort(indices),
        precision=built.job.precision,
        workers=0,
        voting_reader=None,
        votes=1,
        reader=evaluation_reader(built) if of_training else built.selection_evaluator.reader,
    )
    return evaluator(model, World(device=built.job.device)).metrics[built.config.evaluate.metric]


def _score_constant(built: TrainingSetup, indices: np.ndarray) -> tuple[float, float]:
    """Return the held-out score of the constant that is best on these training samples, and its loss on them.

    NaN where outputs are of a form that no constant has, such as maps of unequal sizes.
    """

    def measure() -> tuple[float, float]:
        constant, loss = fit_constant(built, np.sort(indices))
        return _score(built, constant, built.data.selection.evenly_spaced_indices(_SCORED)), loss

    scores = attempt("the best constant", measure, {})
    return (math.nan, math.nan) if isinstance(scores, MissingError) else scores


# --- the task --------------------------------------------------------------------------------------------------------


class _Clock:
    """Observer that requests a stop when the processor time is over, and keeps the losses."""

    def __init__(self, stop: StopRequest, ends_s: float) -> None:
        self._stop, self._ends_s = stop, ends_s
        self.is_over = False
        self.losses: list[float] = []

    def on_step(self, record: StepRecord) -> None:
        self.losses.append(record.losses["total"])
        if time.process_time() > self._ends_s and record.step < record.num_steps:
            self.is_over = True
            self._stop.request()

    def on_evaluation(self, record: EvaluationRecord) -> None:
        return

    def on_end(self, reason: str) -> None:
        return

    @property
    def last_loss(self) -> float:
        """Mean loss of the last tenth of the steps."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return math.fsum(last) / len(last)


@dataclass(frozen=True)
class _Outcome:
    """Scores of a training on held-out and on training samples, beside the best constant's, and the losses of both."""

    held_out: float
    of_training: float
    constant: float
    last_loss: float
    constant_loss: float
    is_higher_better: bool

    @property
    def has_learnt(self) -> bool:
        """True if the training loss is below that of the best constant."""
        return self.last_loss < _LEARNT * self.constant_loss

    def closeness(self, score: float) -> float:
        """Return the position of a score between the best constant's (0) and the perfect one (1)."""
        if not self.is_higher_better:
            return 1.0 - score / self.constant if self.constant else 0.0
        if self.constant > 1.0:  # without a perfect score
            return score / self.constant - 1.0
        return (score - self.constant) / (1.0 - self.constant) if self.constant < 1.0 else 1.0


def _train_task(built: TrainingSetup, note: Note, seconds: float, *, min_steps: float = 0.0) -> Rung:
    """Train the recipe as it is written, up to `seconds`, and score held-out samples beside the best constant.

    One that fails after fewer than `min_steps`, which the rung before took, is not decided.
    """
    stop, config = StopRequest(), built.config
    clock = _Clock(stop, time.process_time() + seconds)
    with process_folder("fit") as folder, preserve_all_rng_states():
        with restore_signal_handlers():
            out, device = folder / "run", built.job.device
            try:
                train_run(config, out=out, checks=False, device=device, stop=stop, observers=[clock])
            except RunError as error:
                ended = make_finding(
                    "the training ended early", "optim.nonfinite optim.lr data.corrupt_sample", str(error)
                )
                return Rung(ALL, "failed", ended.summary, {}, (ended,))
        if stop and not clock.is_over:
            raise KeyboardInterrupt
        model = open_run(RunFiles(out), config=config, world=World(device=device)).model
        learnt = _measure(built, model, clock)
    steps = f"after {len(clock.losses)} of {built.job.num_steps} steps"
    position, metric = learnt.closeness(learnt.held_out), config.evaluate.metric
    if math.isnan(position):
        measured = f"{metric} of held-out samples {learnt.held_out:.4g} {steps}; no constant can be compared with it"
        return Rung(ALL, "not judged", measured, {"held_out": learnt.held_out})
    measured = (
        f"{metric} of held-out samples {learnt.held_out:.4g} {steps}, of the best constant {learnt.constant:.4g}: "
        f"{position:.2f} of the way from this to the perfect one, {_REQUIRED:g} needed"
    )
    figures = {name: value for name, value in vars(learnt).items() if name != "is_higher_better"}
    figures |= {"closeness": position, "steps": float(len(clock.losses))}
    if position >= _REQUIRED:
        return Rung(ALL, "passed", measured, figures)
    if clock.is_over:
        summary, do = "the training was stopped by time: the task is not decided", "give more --seconds"
        cut = make_finding(summary, "sys.resource", measured, do, severity="warning")
        cut = dataclasses.replace(cut, expected=_HOLDS)
        return Rung(ALL, "not decided", f"stopped by time; {measured}", figures, (cut,))
    if reason := _find_shortness(model, learnt, len(clock.losses), min_steps):
        summary, do = "the training has too few steps: the task is not decided", "train for more steps or epochs"
        short = make_finding(summary, "sys.resource", f"{reason}; {measured}", do, severity="warning", path="train")
        short = dataclasses.replace(short, expected=_HOLDS)
        return Rung(ALL, "not decided", f"{reason}; {measured}", figures, (short,))
    return Rung(ALL, "failed", measured, figures, (_explain(built, learnt, measured),))


def _find_shortness(model: nn.Module, learnt: _Outcome, steps: int, min_steps: float) -> str:
    """Describe by what a training of a few steps cannot be judged yet; empty for one that can."""
    if steps < min_steps:
        return f"a few samples alone were fitted after {min_steps:.0f} steps"
    of_start = _measure_share_of_start(model)
    if of_start > _MAX_OF_START and learnt.has_learnt and learnt.closeness(learnt.of_training) < _REQUIRED:
        return f"{of_start:.2f} of the running statistics of batch norm are what they started from"
    return ""


def _measure_share_of_start(model: nn.Module) -> float:
    """Return how much of the running statistics of a network is what they started from, of the norm with most of it."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    shares = [
        (1 - norm.momentum) ** int(norm.num_batches_tracked)
        for norm in norms
        if norm.momentum is not None and norm.num_batches_tracked is not None
    ]
    return max(shares, default=0.0)


def _measure(built: TrainingSetup, model: nn.Module, clock: _Clock) -> _Outcome:
    chosen = built.data.train.evenly_spaced_indices(_SCORED)
    constant, loss = _score_constant(built, chosen)
    return _Outcome(
        held_out=_score(built, model, built.data.selection.evenly_spaced_indices(_SCORED)),
        of_training=_score(built, model, chosen, of_training=True),
        constant=constant,
        last_loss=clock.last_loss,
        constant_loss=loss,
        is_higher_better=built.config.evaluate.mode == "max",
    )


def _explain(built: TrainingSetup, learnt: _Outcome, measured: str) -> Finding:
    """Name the likeliest cause of a failed task: nothing learnt, lost in evaluation, or learnt by heart alone."""
    if not learnt.has_learnt:
        summary, causes = (
            "the training did not get below the best constant",
            "optim.lr optim.scheduler data.label_mapping",
        )
        do, path = "see the rate and its schedule, then the targets; or train for longer", "optimizer.lr"
        measured = (
            f"last training loss {learnt.last_loss:.4g}, of the best constant {learnt.constant_loss:.4g}; {measured}"
        )
    elif learnt.closeness(learnt.of_training) < _REQUIRED:
        summary = "the training loss falls, but evaluation does not reproduce it, on the training samples either"
        causes, path = "model.norm_mode data.augment_target_mismatch eval.mode", "transforms.evaluate"
        do = "compare training and evaluation: running statistics of batch norm, and both lists of transforms"
    else:
        summary, causes = (
            "the training samples are learnt, others are not",
            "data.sampling data.split data.normalisation",
        )
        do, path = "give more samples; see whether both parts are alike", "data"
    measured = f"{measured}; of training samples {learnt.of_training:.4g}"
    severity: Literal["error", "warning"] = "error" if learnt.closeness(learnt.held_out) <= 0 else "warning"
    finding = make_finding(summary, causes, measured, do, path=path, severity=severity)
    return dataclasses.replace(finding, expected=_HOLDS)
