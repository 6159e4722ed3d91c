"""Whether a recipe memorises a few samples, beside what constants reach; if not, which relations do not hold."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sightline.contract.errors import UserError, join_some
from sightline.contract.types import Batch
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.check import examine_subject, make_subject
from sightline.doctor.finding import Fault, Finding, FindingLocation, Severity
from sightline.doctor.report import write_verdict
from sightline.doctor.rules import Rule
from sightline.engine.build import TrainingSetup
from sightline.engine.device import to_device
from sightline.engine.train import TrainState
from sightline.runs.curves import encode_curves
from sightline.workbench.check.checks.model.first_step import missing_keys_explained
from sightline.workbench.describe.trace import preserve_all_rng_states
from sightline.workbench.fit.attempt import OWN, FitCurve, FitSetup, fit, own_rate
from sightline.workbench.fit.loss_bounds import FITTED, LossBounds, final_loss, measure_bounds
from sightline.workbench.fit.samples import Samples, choose_samples, first_keys, training_score

Kept = Literal["augmentation", "dropout", "decay"]
Note = Callable[[str], None]

SECONDS = 120.0
"""Processor time after which no further step is taken."""
_FACTORS = (1.0, 0.1, 10.0)
"""Factors of the recipe's own rate, which was chosen for another batch and a schedule: any of these may fit."""
_LONGER = 4
"""Factor by which the best attempt is prolonged if its loss is still falling at its last step."""
_ADAM_RATES = (1e-2, 1e-3, 1e-1)
"""Rates of the optimiser that is compared with a recipe's that fails."""
_ASKED, _FEW_TARGETS = 16, 64
"""Number of samples that relations are asked of where those that were fitted have fewer targets than that."""


@dataclass(frozen=True)
class FitOptions:
    """Options of a fit: number of samples and steps, processor time, and parts of the recipe that stay on.

    With `only_own_rate` only the recipe's own rate is tried; else a tenth and ten times of it may do as well.
    """

    samples: int | None = None
    steps: int = 100
    keep: frozenset[str] = frozenset()
    seconds: float = SECONDS
    only_own_rate: bool = False


@dataclass(frozen=True)
class FitResult:
    """Result of a fit: the recipe's attempts, then those of another optimiser; findings, the likeliest cause first.

    `bounds` is None if no step could be taken. `verdict` says which relations of `check` were asked, if the samples
    were not fitted.
    """

    samples: Samples
    bounds: LossBounds | None
    attempts: tuple[FitCurve, ...]
    findings: tuple[Finding, ...] = ()
    verdict: tuple[str, ...] = ()

    @property
    def best(self) -> FitCurve | None:
        """The best attempt of the recipe."""
        own = [curve for curve in self.attempts if curve.optimizer == OWN]
        return min(own, key=_order, default=None)

    @property
    def is_fitted(self) -> bool:
        return self.best is not None and self.best.is_fitted

    @property
    def cause(self) -> str | None:
        """The slug of the likeliest cause; None if the samples were fitted."""
        return None if self.is_fitted or not self.findings else self.findings[0].cause

    def to_dict(self) -> dict[str, Any]:
        """Convert to the JSON document of `fit-one --json`."""
        return {
            "fitted": self.is_fitted,
            "cause": self.cause,
            "samples": {
                "indices": self.samples.indices,
                "repeats": self.samples.repeats,
                "left_out": list(self.samples.left_out),
                "note": self.samples.note,
            },
            "loss": None if self.bounds is None else _bounds_document(self.bounds),
            "attempts": [curve.to_dict() for curve in self.attempts],
            "findings": [finding.to_dict() for finding in self.findings],
            "verdict": list(self.verdict),
        }


def _bounds_document(bounds: LossBounds) -> dict[str, Any]:
    numbers = {"start": bounds.start, "constant": bounds.constant, "floor": bounds.floor}
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()}
    return {**finite, "counts": dict(bounds.counts)}


def _order(curve: FitCurve) -> tuple[bool, float]:
    return not curve.is_fitted, math.inf if math.isnan(curve.lowest) else curve.lowest


def make_setup(built: TrainingSetup, asked: FitOptions) -> tuple[FitSetup, Samples]:
    """Build the setup in which the requested samples are fitted (its floor is not known yet), and the samples."""
    samples = choose_samples(built, num=asked.samples, with_augmentation="augmentation" in asked.keep)
    score = functools.partial(_compute_score, built, samples)
    return FitSetup(built, samples.batch, asked.steps, keep=asked.keep, score=score), samples


def _compute_score(built: TrainingSetup, samples: Samples, job: TrainState, batch: Batch) -> float:
    with missing_keys_explained(built.config, job.model):
        return training_score(built, job, batch, samples.indices)


def with_bounds(setup: FitSetup, bounds: LossBounds) -> FitSetup:
    """Return the setup with the way to the floor."""
    return setup if bounds.floor is None else dataclasses.replace(setup, floor=bounds.floor, goal=bounds.goal)


def fit_one(built: TrainingSetup, asked: FitOptions, note: Note) -> FitResult:
    """Memorise a few samples of a run, and find the cause if that fails. Run and global random states do not change.

    Raises UserError for more samples than there are.
    """
    ends_s = time.process_time() + asked.seconds
    with preserve_all_rng_states():
        setup, samples = make_setup(built, asked)
        note(_describe_samples(samples))
        bounds = attempt("the first step", measure_bounds, {"setup": setup})
        if isinstance(bounds, MissingError):
            return FitResult(samples, None, (), *_explain(setup, setup.batch, None, failure=bounds.reason))
        note(_describe_bounds(bounds))
        setup = dataclasses.replace(with_bounds(setup, bounds), ends_s=ends_s)
        curves = _try_recipe(setup, asked, note) if bounds.floor is not None else []
        if any(curve.is_fitted for curve in curves):
            found = [_judge_constants(bounds), _judge_decay(setup, curves[-1], note)]
            return FitResult(samples, bounds, tuple(curves), tuple(each for each in found if each is not None))
        own = tuple(curves)
        for rate in _ADAM_RATES if curves else ():
            curves.append(_try(setup, "adam", rate, note))
            if curves[-1].is_fitted:
                break
        has_few = sum(bounds.counts.values()) < _FEW_TARGETS
        batch = samples.reader(first_keys(built, _ASKED)) if has_few else setup.batch
        return FitResult(samples, bounds, tuple(curves), *_explain(setup, batch, bounds, own, curves[len(own) :]))


def _try_recipe(setup: FitSetup, asked: FitOptions, note: Note) -> list[FitCurve]:
    """Try the recipe's optimiser at a few rates, up to the first that fits; the best may go on while it still falls."""
    curves: list[FitCurve] = []
    for factor in _FACTORS[: 1 if asked.only_own_rate else None]:
        curves.append(_try(setup, OWN, factor * own_rate(setup.built), note))
        if curves[-1].is_fitted:
            return curves
    best = min(curves, key=_order)
    if best.stop == "steps" and best.is_falling:
        curves.append(_try(dataclasses.replace(setup, steps=_LONGER * setup.steps), OWN, best.rate, note))
    return curves


def _try(setup: FitSetup, name: str, rate: float, note: Note) -> FitCurve:
    curve = fit(setup, name, rate)
    steps = curve.fitted_after
    share = "no loss" if math.isnan(curve.lowest) else f"{max(curve.lowest, 0):.3g} of the way left at best"
    ended = f"fitted after {steps} steps" if steps is not None else f"not fitted in {len(curve.losses) - 1} steps"
    note(f"{name} at rate {rate:g}: {ended}; {share}" + ("; out of time (--seconds)" if curve.stop == "time" else ""))
    return curve


# --- findings --------------------------------------------------------------------------------------------------------


def _explain(
    setup: FitSetup,
    batch: Batch,
    bounds: LossBounds | None,
    own: Sequence[FitCurve] = (),
    others: Sequence[FitCurve] = (),
    failure: str = "",
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Name the cause: relations of `check` that do not hold on this batch, and whether another optimiser fits."""
    job = setup.built.job
    batch = to_device(batch, job.device, float_dtype=job.precision.parameter_dtype)
    with job.losses.preserve_state():
        subject = make_subject(job.model, final_loss(job), [batch], job.optimizer)
        examination = examine_subject(subject)
    found = [finding for finding in examination.findings if finding.severity != "note"]
    fitting = next((curve for curve in others if curve.is_fitted), None)
    if failure:
        found.insert(0, _find("no step can be taken on these samples", "cfg.contract data.corrupt_sample", failure))
    elif fitting is not None:
        is_error = [finding.severity == "error" for finding in found]
        found.insert(sum(is_error), _blame_optimizer(setup, own, fitting))
    elif not found:
        found = [_judge_frozen(setup) or _leave_unexplained(bounds, own, examination.count("held"))]
    return tuple(found), tuple(write_verdict(examination))


def _find(
    summary: str, causes: str, measured: str, do: str = "", *, path: str = "model", severity: Severity = "warning"
) -> Finding:
    holds = f"at most {FITTED:g} of the way from constants to the lowest loss is left"
    fault = Fault(summary, measured=measured, where=FindingLocation(config_path=path))
    do = do or "run `sightline check`, which looks at more samples"
    return next(Rule("fit-one", severity, tuple(causes.split()), holds, do, lambda: fault, ()).find())


def _blame_optimizer(setup: FitSetup, own: Sequence[FitCurve], fitting: FitCurve) -> Finding:
    best, clip = min(own, key=_order), setup.built.job.clip_norm
    tried = ", ".join(f"{curve.rate:g}" for curve in own)
    return _find(
        "the recipe's optimiser does not fit these samples, Adam does",
        "optim.lr optim.hyper optim.param_coverage" + ("" if clip is None else " optim.clip"),
        f"{max(best.lowest, 0):.3g} of the way left at rates {tried}; Adam needs {fitting.fitted_after} steps at "
        f"{fitting.rate:g}, without clipping and freezing",
        "change optimizer.lr; see optimizer.frozen and train.clip_norm; or give more --steps",
        path="optimizer.lr",
    )


def _judge_frozen(setup: FitSetup) -> Finding | None:
    """Return a finding for parameters that want no gradient, if the recipe does not freeze them."""
    job = setup.built.job
    declared = tuple(f"{entry['modules']}." for entry in job.frozen)
    names = [name for name, p in job.model.named_parameters() if not p.requires_grad and p.is_floating_point()]
    if not (frozen := [name for name in names if not f"{name}.".startswith(declared)]):
        return None
    return _find(
        f"{len(frozen)} parameters do not learn, and the recipe does not freeze them: {join_some(frozen, most=4)}",
        "model.frozen_unintended",
        "requires_grad is false",
        "list in optimizer.frozen the modules that must not learn; look for requires_grad_(False)",
        path="optimizer",
    )


def _leave_unexplained(bounds: LossBounds | None, own: Sequence[FitCurve], num_held: int) -> Finding:
    best = min(own, key=_order, default=None)
    if best is not None and best.is_falling:
        return _find(
            "the loss was still falling: nothing is decided",
            "optim.lr",
            f"{best.lowest:.3g} of the way left after {len(best.losses) - 1} steps",
            "give more --steps, or more --seconds",
            path="optimizer.lr",
        )
    if best is not None and bounds is not None and bounds.is_stuck(min(best.losses)):
        return _find(
            "the network reaches what constants reach: its outputs do not follow its inputs",
            "model.constant_output data.duplicate_randomness data.missing_modality",
            f"a loss of {min(best.losses):.4g}; the best constants {bounds.constant:.4g}",
            "see by `sightline view` that the samples differ, and by --trace that every input reaches the output",
        )
    return _find(
        "these samples cannot be fitted, and no relation of `check` explains it",
        "model.structure model.init model.geometry",
        ("no lower bound" if best is None else f"{best.lowest:.3g} of the way left at best")
        + f"; {num_held} relations hold",
        "follow the samples through the layers by --trace; see that every input reaches the output",
    )


def _judge_constants(bounds: LossBounds) -> Finding | None:
    """Return a finding if constants fit these samples as well as any outputs."""
    if bounds.is_question:
        return None
    return _find(
        "constants fit these samples as well: that they are fitted proves nothing",
        "data.target_encoding data.sampling",
        f"the best constants reach {bounds.constant:.4g}, the best outputs {bounds.floor:.4g}",
        "give more --samples, or see their targets with `sightline view`",
        path="data",
        severity="note",
    )


def _judge_decay(setup: FitSetup, fitted: FitCurve, note: Note) -> Finding | None:
    """Return a finding if the recipe's weight decay, off until now, keeps the samples from being fitted."""
    decay = max(float(group["weight_decay"]) for group in setup.built.job.optimizer.param_groups)
    if decay == 0 or "decay" in setup.keep:
        return None
    decayed = dataclasses.replace(setup, keep=setup.keep | {"decay"}, is_brief=True, score=None)
    again = fit(decayed, OWN, fitted.rate)
    note(f"with weight decay {decay:g}: {'fitted' if again.is_fitted else 'not fitted'}")
    if again.is_fitted or again.stop == "time":
        return None
    return _find(
        f"with weight decay {decay:g} the recipe does not fit samples that it fits without",
        "optim.hyper optim.lr",
        f"{again.lowest:.3g} of the way left at rate {fitted.rate:g}; {fitted.lowest:.3g} without",
        "take a smaller weight decay, or a decoupled one (adamw)",
        path="optimizer.weight_decay",
    )


def _describe_samples(samples: Samples) -> str:
    indices = ", ".join(map(str, samples.indices[:8])) + (", ..." if len(samples.indices) > 8 else "")
    left_out = f"; without {', '.join(samples.left_out)}" if samples.left_out else ""
    return f"samples {indices}{left_out}" + (f" ({samples.note})" if samples.note else "")


def _describe_bounds(bounds: LossBounds) -> str:
    floor = "no lower bound is known" if bounds.floor is None else f"the best outputs {bounds.floor:.4g}"
    return f"initial loss {bounds.start:.4g}; the best constants reach {bounds.constant:.4g}, {floor}"


# --- pictures and variants -------------------------------------------------------------------------------------------


def draw_curves(curves: Mapping[str, FitCurve]) -> str:
    """Draw every loss of several attempts over their steps, one curve for each name."""
    return encode_curves({name: _curve_lines(curve) for name, curve in curves.items()})


def _curve_lines(curve: FitCurve) -> list[dict[str, Any]]:
    lines = []
    for step, (loss, share) in enumerate(zip(curve.losses, curve.shares, strict=True)):
        terms = {f"loss/{name}": values[step] for name, values in curve.terms.items()} if len(curve.terms) > 1 else {}
        remaining = None if math.isnan(share) else share
        lines.append({"step": step, "split": "", "loss/total": loss, **terms, "share left": remaining})
    return lines


def fit_variants(
    variants: Iterable[tuple[str, Callable[[], TrainingSetup]]], asked: FitOptions, note: Note
) -> Iterable[tuple[TrainingSetup, FitResult]]:
    """Fit every variant of a recipe, by name, from the same seed and on the same samples.

    Raises UserError if a variant trains on other samples than the first one.
    """
    indices: list[int] = []
    for name, build_variant in variants:
        note(f"variant {name}")
        built = build_variant()
        result = fit_one(built, asked, note)
        indices = indices or result.samples.indices
        if len(result.samples.indices) != len(indices):
            raise UserError("--vary: variants need different numbers of samples; give --samples")
        if result.samples.indices != indices:
            raise UserError(f"--vary: {name} changes which samples are fitted; vary something else")
        yield built, result
