"""Over-fit one sample or a few with the recipe's optimiser and others; where that fails, find out why."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sightline.describe.trace import preserve_all_rng_states
from sightline.doctor.checks.model.first_evaluation import missing_keys_explained
from sightline.doctor.checks.model.first_step import first_step
from sightline.doctor.context import Context
from sightline.doctor.core.finding import Finding
from sightline.doctor.overfit.audit import audit_batch, audit_first_loss, audit_targets
from sightline.doctor.overfit.causes import BisectionStep, FailedFit, bisect, inconsistent_gradients, loss_cause
from sightline.doctor.overfit.fit_attempt import FITTED, FitSetup
from sightline.doctor.overfit.fit_reporter import FitReporter
from sightline.doctor.overfit.loss_probe import LossProbe, probe_loss
from sightline.doctor.overfit.network import activation_warning, parameters_without_gradient
from sightline.doctor.overfit.optimizer_candidates import Candidate, candidates
from sightline.doctor.overfit.optimizer_grid import OptimizerResult, document_of_verdict, run_candidate
from sightline.doctor.overfit.samples import Samples, choose_samples
from sightline.doctor.overfit.scoring import training_score
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.engine.train import TrainState
from sightline.errors import summarise_error
from sightline.types import Batch

__all__ = ["LONGER", "FitOptions", "FitResult", "Kept", "fit_one", "make_setup", "result_document"]

Kept = Literal["augmentation", "dropout", "decay"]
Note = Callable[[str], None]

LONGER = 4
"""An attempt that still falls when its steps are over gets this many times as many."""


@dataclass(frozen=True)
class FitOptions:
    """What a user asked for: how many samples, how many steps, and what of the recipe stays on.

    With `is_brief` only the recipe's own optimiser is tried, in its own number format, and nothing else where it fits.
    With `only_own_rate` no rate but the recipe's decides, else a tenth and ten times of it may as well.
    """

    samples: int | None = None
    steps: int = 100
    keep: frozenset[str] = frozenset()
    is_brief: bool = False
    only_own_rate: bool = False


@dataclass(frozen=True)
class FitResult:
    """What came of it. `findings` has the one cause first where the samples were not fitted; else at most warnings."""

    samples: Samples
    probe: LossProbe | None
    verdicts: tuple[OptimizerResult, ...]
    findings: tuple[Finding, ...]
    parts: tuple[BisectionStep, ...] = ()
    further: tuple[OptimizerResult, ...] = field(default=())

    @property
    def is_fitted(self) -> bool:
        return bool(self.verdicts) and self.verdicts[0].is_fitted and not self.has_error

    @property
    def has_error(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def cause(self) -> str | None:
        """The slug of the one cause; None where the samples were fitted."""
        return None if self.is_fitted or not self.findings else self.findings[0].cause


def make_setup(built: TrainingSetup, asked: FitOptions) -> tuple[FitSetup, Samples]:
    """The samples that are asked for, and a bench on which to fit them, whose floor is not known yet."""
    samples = choose_samples(built, num=asked.samples, with_augmentation="augmentation" in asked.keep)
    score = functools.partial(_score, built, samples)
    return FitSetup(built, samples.batch, None, asked.steps, asked.keep, score), samples


def _score(built: TrainingSetup, samples: Samples, job: TrainState, batch: Batch) -> float:
    with missing_keys_explained(built.config, job.model):
        return training_score(built, job, batch, samples.indices)


def fit_one(built: TrainingSetup, asked: FitOptions, note: Note) -> FitResult:
    """Fit a few samples of a run, and find the cause where that fails. Run and global random states stay as they are.

    Raises UserError for samples that there are not.
    """
    with preserve_all_rng_states():
        return _fit_one(built, asked, note)


def _fit_one(built: TrainingSetup, asked: FitOptions, note: Note) -> FitResult:
    bench, samples = make_setup(built, asked)
    reporter = FitReporter(built)
    note(_describe_samples(samples))
    broken = audit_batch(bench, reporter)
    if broken:
        return FitResult(samples, None, (), tuple(broken))
    try:
        probe = probe_loss(bench)
    except Exception as error:  # noqa: BLE001 - the check of a first step reports whatever it fails with
        return FitResult(samples, None, (), tuple(_of_first_step(built, reporter, error)))
    bench = dataclasses.replace(bench, floor=probe.floor)
    note(_describe_floor(probe))
    if (nothing := audit_first_loss(probe, reporter)) is not None:
        return FitResult(samples, probe, (), (nothing,))
    wrong = audit_targets(bench, samples, probe, reporter)
    errors = [finding for finding in wrong if finding.severity == "error"]
    own, *others = candidates(built)
    if asked.only_own_rate:
        own = dataclasses.replace(own, num_trusted=1)
    brief: dict[str, Any] = {"rates": own.trusted, "is_first_enough": asked.is_brief, "clip": True}
    own_verdict = _extended(bench, own, run_candidate(bench, own, bench.precision, note=note, **brief), note)
    if errors:
        return FitResult(samples, probe, (own_verdict,), tuple([*errors, *(f for f in wrong if f not in errors)]))
    if (guilty := loss_cause(probe, reporter)) is not None:
        return FitResult(
            samples, probe, (own_verdict,), (guilty, *wrong), (BisectionStep("loss", guilty.summary, True),)
        )
    wrong += inconsistent_gradients(probe, reporter, severity="warning")
    if own_verdict.is_fitted:
        verdicts = [own_verdict] if asked.is_brief else _compare(bench, own, others, own_verdict, note)
        findings = [*wrong, *_warnings(bench, probe, own, own_verdict, reporter, note)]
        return FitResult(samples, probe, tuple(verdicts), tuple(findings))
    verdicts = [_with_more_rates(bench, own, own_verdict, note)]
    verdicts += [run_candidate(bench, other, bench.precision, note=note) for other in others]
    case = FailedFit(bench, probe, verdicts, (own, *others), reporter, note)
    finding, parts, further = bisect(case)
    frozen = None if finding.cause == "model.frozen_unintended" else _of_frozen(bench, reporter)
    beside = (*(each for each in wrong if each.summary != finding.summary), *([] if frozen is None else [frozen]))
    return FitResult(samples, probe, tuple(verdicts), (finding, *beside), tuple(parts), tuple(further))


def _extended(bench: FitSetup, own: Candidate, verdict: OptimizerResult, note: Note) -> OptimizerResult:
    """The verdict, where the best attempt that decides was still falling as its steps ended with more of them."""
    before = verdict.trusted
    if verdict.is_fitted or not before.is_falling:
        return verdict
    longer = dataclasses.replace(bench, steps=LONGER * bench.steps)
    again = run_candidate(
        longer, own, bench.precision, note=note, rates=(before.rate,), where=", still falling", clip=True
    )
    curves = tuple(again.curves[0] if curve is before else curve for curve in verdict.curves)
    return dataclasses.replace(verdict, curves=curves)


def _compare(
    bench: FitSetup, own: Candidate, others: list[Candidate], first: OptimizerResult, note: Note
) -> list[OptimizerResult]:
    """The recipe's optimiser over all its rates and the others, then each at its best rate in another number format."""
    verdicts = [_with_more_rates(bench, own, first, note)]
    verdicts += [run_candidate(bench, other, bench.precision, note=note) for other in others]
    finer = "float32" if bench.precision == "float64" else "float64"
    pairs = list(zip((own, *others), verdicts, strict=True))
    verdicts += [
        run_candidate(bench, each, finer, note=note, rates=(v.best.rate,), clip=each is own) for each, v in pairs
    ]
    return verdicts


def _with_more_rates(bench: FitSetup, own: Candidate, first: OptimizerResult, note: Note) -> OptimizerResult:
    """The rates of the recipe's optimiser that do not decide, beside those that do."""
    rest = own.rates[own.num_trusted :]
    if not rest:
        return first
    more = run_candidate(bench, own, bench.precision, note=note, rates=rest, where=" at usual rates", clip=True)
    return dataclasses.replace(first, curves=(*first.curves, *more.curves))


# --- further findings ----------------------------------------------------------------------------------------------


def _warnings(
    bench: FitSetup, probe: LossProbe, own: Candidate, verdict: OptimizerResult, reporter: FitReporter, note: Note
) -> list[Finding]:
    """Of a run that fitted: what will be in its way later."""
    found = [
        _of_rate(verdict, reporter),
        _of_decay(bench, own, verdict, reporter, note),
        activation_warning(bench, probe, reporter),
        _of_frozen(bench, reporter),
    ]
    given = [finding for finding in found if finding is not None]
    return sorted(given, key=lambda finding: finding.severity == "note")


def _of_rate(verdict: OptimizerResult, reporter: FitReporter) -> Finding | None:
    """The recipe's own rate did not fit, one ten times larger or smaller did."""
    first = verdict.curves[0]
    if first.is_fitted:
        return None
    best = verdict.trusted
    return reporter.finding(
        severity="note",
        summary=f"the rate {first.rate:g} itself did not fit these samples, {best.rate:g} did",
        causes=("optim.lr", "optim.hyper"),
        path="optimizer.lr",
        measured=f"{first.lowest:.3g} of the way left at {first.rate:g}, {best.lowest:.3g} at {best.rate:g}",
        expected=f"at most {FITTED:g} of the way left",
        action="nothing, where the recipe's batch is larger or its schedule warms up",
    )


def _of_decay(
    bench: FitSetup, own: Candidate, verdict: OptimizerResult, reporter: FitReporter, note: Note
) -> Finding | None:
    """The recipe's weight decay, which was off: it must not keep a few samples from being fitted."""
    decay = max(float(group["weight_decay"]) for group in bench.built.job.optimizer.param_groups)
    if decay == 0 or "decay" in bench.keep:
        return None
    kept = dataclasses.replace(bench, keep=bench.keep | {"decay"}, score=None)
    rate = verdict.trusted.rate
    again = run_candidate(kept, own, bench.precision, note=lambda _: None, rates=(rate,), clip=True, goal=FITTED)
    note(f"with weight decay {decay:g}: {'fitted' if again.is_fitted else 'not fitted'}")
    if again.is_fitted:
        return None
    return reporter.finding(
        severity="warning",
        summary=f"with weight decay {decay:g} the recipe does not fit samples that it fits without",
        causes=("optim.hyper", "optim.lr"),
        path="optimizer.weight_decay",
        measured=f"{again.trusted.lowest:.3g} of the way left at rate {rate:g}; {verdict.trusted.lowest:.3g} without",
        expected=f"at most {FITTED:g} of the way left",
        action="take a smaller weight decay, or a decoupled one (adamw)",
    )


def _of_frozen(bench: FitSetup, reporter: FitReporter) -> Finding | None:
    """Parameters that cannot move, and that no `frozen` of the recipe names."""
    job = bench.built.job
    declared = tuple(entry["modules"] for entry in job.frozen)
    held = {id(parameter) for group in job.optimizer.param_groups for parameter in group["params"]}
    silent = set(parameters_without_gradient(bench))
    idle = [
        name
        for name, parameter in job.model.named_parameters()
        if not parameter.requires_grad or id(parameter) not in held or name in silent
        if not any(name == module or name.startswith(f"{module}.") for module in declared)
    ]
    resting = [name for name in idle if name not in silent]
    if not resting:
        return None
    return reporter.finding(
        severity="warning",
        summary=f"{len(resting)} parameters do not learn, and the recipe does not freeze them: {resting[0]}",
        causes=("model.frozen_unintended", "optim.param_coverage"),
        path="optimizer",
        layer=resting[0].rpartition(".")[0],
        measured=f"requires_grad is false, or no group of the optimiser holds them: {', '.join(resting[:5])}",
        expected="every parameter outside optimizer.frozen learns",
        action="list in optimizer.frozen the modules that must not learn; look for requires_grad_(False)",
        evidence={"parameters": resting[:50]},
    )


def _of_first_step(built: TrainingSetup, reporter: FitReporter, error: Exception) -> list[Finding]:
    """The findings of the check of a first step; where it goes through there, what failed here."""
    found = first_step(Context(built, World(device=built.job.device)))
    if found:
        return found
    return [
        reporter.finding(
            severity="error",
            summary="no step can be taken on these samples",
            causes=("cfg.contract", "data.corrupt_sample"),
            path="model",
            measured=summarise_error(error),
            expected="forward pass and losses go through",
            action="run `sightline check`, which looks at more samples",
        )
    ]


def _describe_samples(samples: Samples) -> str:
    given = ", ".join(map(str, samples.indices[:8])) + (", ..." if len(samples.indices) > 8 else "")
    left_out = f"; without {', '.join(samples.left_out)}" if samples.left_out else ""
    note = f" ({samples.note})" if samples.note else ""
    return f"samples {given}{left_out}{note}"


def _describe_floor(probe: LossProbe) -> str:
    if not math.isfinite(probe.start):
        return f"initial loss {probe.start:.4g}"
    floor = "no lower bound is known" if probe.floor is None else f"lowest achievable {probe.floor:.4g}"
    return f"initial loss {probe.start:.4g}; {floor}"


def result_document(result: FitResult) -> dict[str, Any]:
    """What `fit-one --json` holds of one fit."""
    probe = result.probe
    return {
        "fitted": result.is_fitted,
        "cause": result.cause,
        "samples": {
            "indices": result.samples.indices,
            "repeats": result.samples.repeats,
            "left_out": list(result.samples.left_out),
            "note": result.samples.note,
        },
        "loss": None if probe is None else _loss_document(probe),
        "combinations": [document_of_verdict(verdict) for verdict in (*result.verdicts, *result.further)],
        "bisection": [part.to_dict() for part in result.parts],
        "findings": [finding.to_dict() for finding in result.findings],
    }


def _loss_document(probe: LossProbe) -> dict[str, Any]:
    """The first loss and the floor, null where they are not finite."""
    numbers = {"start": probe.start, "floor": probe.floor}
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()}
    return {**finite, "counts": dict(probe.counts)}
