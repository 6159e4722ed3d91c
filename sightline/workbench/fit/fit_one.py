"""Overfitting test on one or a few samples with several optimisers, and the cause if it fails.

Pictures of attempts: loss curves for `view.curves`, and panels over the learning rates.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sightline.contract.errors import summarise_error
from sightline.contract.types import Batch
from sightline.doctor.finding import Finding
from sightline.draw.charts import ChartPanel, Series, render_svg
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.engine.train import TrainState
from sightline.runs.curves import encode_curves
from sightline.workbench.check.checks.model.first_step import first_step, missing_keys_explained
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.describe.trace import preserve_all_rng_states
from sightline.workbench.fit.audit import audit_batch, audit_first_loss, audit_targets
from sightline.workbench.fit.causes import BisectionStep, FailedFit, bisect, inconsistent_gradients, loss_cause
from sightline.workbench.fit.fit_attempt import FITTED, FitCurve, FitSetup, build_findings
from sightline.workbench.fit.loss_probe import LossProbe, probe_loss
from sightline.workbench.fit.network import activation_warning, parameters_without_gradient
from sightline.workbench.fit.optimizer_grid import (
    Candidate,
    OptimizerResult,
    candidates,
    run_candidate,
    verdict_document,
)
from sightline.workbench.fit.samples import Samples, choose_samples, training_score

Kept = Literal["augmentation", "dropout", "decay"]
Note = Callable[[str], None]

LONGER = 4
"""Factor by which an attempt is prolonged if its loss is still falling at its last step."""


@dataclass(frozen=True)
class FitOptions:
    """Options of an overfitting test: number of samples and steps, and parts of the recipe that stay on.

    With `is_brief` only the recipe's own optimiser and number format are tried, unless they fail. With `only_own_rate`
    only the recipe's own rate decides; else a tenth and ten times of it may as well.
    """

    samples: int | None = None
    steps: int = 100
    keep: frozenset[str] = frozenset()
    is_brief: bool = False
    only_own_rate: bool = False


@dataclass(frozen=True)
class FitResult:
    """Result of an overfitting test: `findings` has the single cause first if the fit failed, else at most warnings."""

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
        """The slug of the single cause; None if the samples were fitted."""
        return None if self.is_fitted or not self.findings else self.findings[0].cause


def make_setup(built: TrainingSetup, asked: FitOptions) -> tuple[FitSetup, Samples]:
    """Build the setup in which the requested samples are fitted (its floor is not known yet), and the samples."""
    samples = choose_samples(built, num=asked.samples, with_augmentation="augmentation" in asked.keep)
    score = functools.partial(_compute_score, built, samples)
    return FitSetup(built, samples.batch, None, asked.steps, asked.keep, score), samples


def _compute_score(built: TrainingSetup, samples: Samples, job: TrainState, batch: Batch) -> float:
    with missing_keys_explained(built.config, job.model):
        return training_score(built, job, batch, samples.indices)


def fit_one(built: TrainingSetup, asked: FitOptions, note: Note) -> FitResult:
    """Fit a few samples of a run, and find the cause if that fails. Run and global random states do not change.

    Raises UserError for more samples than there are.
    """
    with preserve_all_rng_states():
        bench, samples = make_setup(built, asked)
        note(_describe_samples(samples))
        return fit_samples(bench, samples, asked, note)


def fit_samples(bench: FitSetup, samples: Samples, asked: FitOptions, note: Note) -> FitResult:
    """Fit the samples of a setup whose floor is not known yet, and find the cause if that fails."""
    built = bench.built
    build = functools.partial(build_findings, built)
    batch_findings = build(audit_batch(bench))
    if batch_findings:
        return FitResult(samples, None, (), tuple(batch_findings))
    try:
        probe = probe_loss(bench)
    except Exception as error:  # noqa: BLE001 - the check of a first step reports any error
        findings = first_step(Context(built, World(device=built.job.device))) or build([_make_failure(error)])
        return FitResult(samples, None, (), tuple(findings))
    bench = dataclasses.replace(bench, floor=probe.floor)
    note(_describe_floor(probe))
    if loss_findings := build(audit_first_loss(probe)):
        return FitResult(samples, probe, (), tuple(loss_findings))
    target_findings = build(audit_targets(bench, samples, probe))
    recipe_candidate, *other_candidates = candidates(built)
    if asked.only_own_rate:
        recipe_candidate = dataclasses.replace(recipe_candidate, num_trusted=1)
    brief_options: dict[str, Any] = {
        "rates": recipe_candidate.trusted_rates,
        "is_first_enough": asked.is_brief,
        "clip": True,
    }
    own_verdict = _prolong_if_falling(
        bench,
        recipe_candidate,
        run_candidate(bench, recipe_candidate, bench.precision, note=note, **brief_options),
        note,
    )
    if any(finding.severity == "error" for finding in target_findings):
        errors_first = sorted(target_findings, key=lambda finding: finding.severity != "error")
        return FitResult(samples, probe, (own_verdict,), tuple(errors_first))
    if (guilty := loss_cause(probe, built)) is not None:
        parts = (BisectionStep("loss", guilty.summary, True),)
        return FitResult(samples, probe, (own_verdict,), (*build([guilty]), *target_findings), parts)
    target_findings += build(inconsistent_gradients(probe, built, severity="warning"))
    if own_verdict.is_fitted:
        verdicts = (
            [own_verdict]
            if asked.is_brief
            else _compare_optimisers(bench, recipe_candidate, other_candidates, own_verdict, note)
        )
        warnings = build(_find_warnings(bench, probe, recipe_candidate, own_verdict, note))
        return FitResult(samples, probe, tuple(verdicts), (*target_findings, *warnings))
    verdicts = [_with_more_rates(bench, recipe_candidate, own_verdict, note)]
    verdicts += [run_candidate(bench, other, bench.precision, note=note) for other in other_candidates]
    case = FailedFit(bench, probe, verdicts, (recipe_candidate, *other_candidates), note)
    fault, steps, further = bisect(case)
    (finding,) = build([fault])
    frozen = None if finding.cause == "model.frozen_unintended" else _judge_frozen(bench)
    further_findings = (
        *(target_finding for target_finding in target_findings if target_finding.summary != finding.summary),
        *build([] if frozen is None else [frozen]),
    )
    return FitResult(samples, probe, tuple(verdicts), (finding, *further_findings), tuple(steps), tuple(further))


def _prolong_if_falling(
    bench: FitSetup, recipe_candidate: Candidate, verdict: OptimizerResult, note: Note
) -> OptimizerResult:
    """Return the verdict; if its deciding attempt was still falling, repeat that attempt with more steps."""
    curve = verdict.trusted_curve
    if verdict.is_fitted or not curve.is_falling:
        return verdict
    longer = dataclasses.replace(bench, steps=LONGER * bench.steps)
    again = run_candidate(
        longer, recipe_candidate, bench.precision, note=note, rates=(curve.rate,), where=", still falling", clip=True
    )
    curves = tuple(again.curves[0] if other is curve else other for other in verdict.curves)
    return dataclasses.replace(verdict, curves=curves)


def _compare_optimisers(
    bench: FitSetup, recipe_candidate: Candidate, other_candidates: list[Candidate], first: OptimizerResult, note: Note
) -> list[OptimizerResult]:
    """Run the recipe's optimiser at all its rates, the others, then each at its best rate in another format."""
    verdicts = [_with_more_rates(bench, recipe_candidate, first, note)]
    verdicts += [run_candidate(bench, other, bench.precision, note=note) for other in other_candidates]
    finer = "float32" if bench.precision == "float64" else "float64"
    pairs = list(zip((recipe_candidate, *other_candidates), verdicts, strict=True))
    verdicts += [
        run_candidate(bench, candidate, finer, note=note, rates=(v.best.rate,), clip=candidate is recipe_candidate)
        for candidate, v in pairs
    ]
    return verdicts


def _with_more_rates(
    bench: FitSetup, recipe_candidate: Candidate, first: OptimizerResult, note: Note
) -> OptimizerResult:
    """Extend the verdict of the recipe's optimiser by the rates that do not decide."""
    other_rates = recipe_candidate.rates[recipe_candidate.num_trusted :]
    if not other_rates:
        return first
    further = run_candidate(
        bench, recipe_candidate, bench.precision, note=note, rates=other_rates, where=" at usual rates", clip=True
    )
    return dataclasses.replace(first, curves=(*first.curves, *further.curves))


# --- further findings ----------------------------------------------------------------------------------------------


def _find_warnings(
    bench: FitSetup, probe: LossProbe, recipe_candidate: Candidate, verdict: OptimizerResult, note: Note
) -> list[Fault]:
    """List warnings for a run that fitted: faults that will matter later."""
    results = [
        _judge_rate(verdict),
        _judge_decay(bench, recipe_candidate, verdict, note),
        activation_warning(bench, probe),
        _judge_frozen(bench),
    ]
    return sorted((fault for fault in results if fault is not None), key=lambda fault: fault.severity == "note")


def _judge_rate(verdict: OptimizerResult) -> Fault | None:
    """Return a fault if the recipe's own rate did not fit, but one ten times larger or smaller did."""
    first = verdict.curves[0]
    if first.is_fitted:
        return None
    best = verdict.trusted_curve
    return Fault(
        f"the rate {first.rate:g} itself did not fit these samples, {best.rate:g} did",
        severity="note",
        causes=("optim.lr", "optim.hyper"),
        at="optimizer.lr",
        measured=f"{first.lowest:.3g} of the way left at {first.rate:g}, {best.lowest:.3g} at {best.rate:g}",
        expected=f"at most {FITTED:g} of the way left",
        action="nothing, if the recipe's batch is larger or its schedule warms up",
    )


def _judge_decay(bench: FitSetup, recipe_candidate: Candidate, verdict: OptimizerResult, note: Note) -> Fault | None:
    """Return a fault if the recipe's weight decay, off until now, keeps the samples from being fitted."""
    decay = max(float(group["weight_decay"]) for group in bench.built.job.optimizer.param_groups)
    if decay == 0 or "decay" in bench.keep:
        return None
    decayed = dataclasses.replace(bench, keep=bench.keep | {"decay"}, score=None)
    rate = verdict.trusted_curve.rate
    again = run_candidate(
        decayed, recipe_candidate, bench.precision, note=lambda _: None, rates=(rate,), clip=True, goal=FITTED
    )
    note(f"with weight decay {decay:g}: {'fitted' if again.is_fitted else 'not fitted'}")
    if again.is_fitted:
        return None
    return Fault(
        severity="warning",
        summary=f"with weight decay {decay:g} the recipe does not fit samples that it fits without",
        causes=("optim.hyper", "optim.lr"),
        at="optimizer.weight_decay",
        measured=f"{again.trusted_curve.lowest:.3g} of the way left at rate {rate:g}; "
        f"{verdict.trusted_curve.lowest:.3g} without",
        expected=f"at most {FITTED:g} of the way left",
        action="take a smaller weight decay, or a decoupled one (adamw)",
    )


def _judge_frozen(bench: FitSetup) -> Fault | None:
    """Return a fault for parameters that cannot learn and are not frozen by the recipe."""
    job = bench.built.job
    declared = tuple(entry["modules"] for entry in job.frozen)
    optimised = {id(parameter) for group in job.optimizer.param_groups for parameter in group["params"]}
    silent = set(parameters_without_gradient(bench))
    idle = [
        name
        for name, parameter in job.model.named_parameters()
        if not parameter.requires_grad or id(parameter) not in optimised or name in silent
        if not any(name == module or name.startswith(f"{module}.") for module in declared)
    ]
    frozen = [name for name in idle if name not in silent]
    if not frozen:
        return None
    return Fault(
        severity="warning",
        summary=f"{len(frozen)} parameters do not learn, and the recipe does not freeze them: {frozen[0]}",
        causes=("model.frozen_unintended", "optim.param_coverage"),
        at="optimizer",
        layer=frozen[0].rpartition(".")[0],
        measured=f"requires_grad is false, or no group of the optimiser contains them: {', '.join(frozen[:5])}",
        expected="every parameter outside optimizer.frozen learns",
        action="list in optimizer.frozen the modules that must not learn; look for requires_grad_(False)",
        evidence={"parameters": frozen[:50]},
    )


def _make_failure(error: Exception) -> Fault:
    """Make the fault of an error that the check of the first step does not find."""
    return Fault(
        "no step can be taken on these samples",
        causes=("cfg.contract", "data.corrupt_sample"),
        at="model",
        measured=summarise_error(error),
        expected="forward pass and losses go through",
        action="run `sightline check`, which looks at more samples",
    )


def _describe_samples(samples: Samples) -> str:
    indices = ", ".join(map(str, samples.indices[:8])) + (", ..." if len(samples.indices) > 8 else "")
    left_out = f"; without {', '.join(samples.left_out)}" if samples.left_out else ""
    note = f" ({samples.note})" if samples.note else ""
    return f"samples {indices}{left_out}{note}"


def _describe_floor(probe: LossProbe) -> str:
    if not math.isfinite(probe.start):
        return f"initial loss {probe.start:.4g}"
    floor = "no lower bound is known" if probe.floor is None else f"lowest achievable {probe.floor:.4g}"
    return f"initial loss {probe.start:.4g}; {floor}"


def result_document(result: FitResult) -> dict[str, Any]:
    """Convert a result to the JSON document of `fit-one --json`."""
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
        "combinations": [verdict_document(verdict) for verdict in (*result.verdicts, *result.further)],
        "bisection": [part.to_dict() for part in result.parts],
        "findings": [finding.to_dict() for finding in result.findings],
    }


def _loss_document(probe: LossProbe) -> dict[str, Any]:
    """Convert the first loss and the floor to JSON, null if they are not finite."""
    numbers = {"start": probe.start, "floor": probe.floor}
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()}
    return {**finite, "counts": dict(probe.counts)}


_MIN_SHARE = 1e-4
"""Smallest share drawn: below a hundredth an attempt has ended, and its exact share does not matter."""


def draw_curves(curves: Mapping[str, FitCurve]) -> str:
    """Draw every loss of several attempts over their steps, one curve for each name."""
    return encode_curves({name: _curve_lines(curve) for name, curve in curves.items()})


def draw_verdicts(verdicts: Sequence[OptimizerResult]) -> str:
    """Draw the best attempt of each optimiser, one panel per number format; below, the lowest share of each rate."""
    formats = list(dict.fromkeys(verdict.precision for verdict in verdicts))
    format_panels = []
    for precision in formats:
        series = [_share_series(v.optimizer, v.best) for v in verdicts if v.precision == precision]
        visible_series = tuple(curve for curve in series if curve.points)
        format_panels.append(
            ChartPanel(f"share of the way left, {precision}", "step", visible_series, x_scale="linear")
        )
    rate_panels = [panel for v in verdicts if v.precision == formats[0] and (panel := _rate_panel(v)) is not None]
    return render_svg([[panel if panel.series else None for panel in format_panels], rate_panels] if formats else [])


def _share_series(name: str, curve: FitCurve) -> Series:
    points = [(float(step), max(share, _MIN_SHARE)) for step, share in enumerate(curve.shares) if not math.isnan(share)]
    return Series(name, tuple(points))


def _rate_panel(verdict: OptimizerResult) -> ChartPanel | None:
    points = [(c.rate, max(c.lowest, _MIN_SHARE)) for c in verdict.curves if c.rate > 0 and not math.isnan(c.lowest)]
    if not points:
        return None
    return ChartPanel(f"{verdict.optimizer}: lowest share", "rate", (Series(verdict.optimizer, tuple(sorted(points))),))


def _curve_lines(curve: FitCurve) -> list[dict[str, Any]]:
    lines = []
    for step, loss in enumerate(curve.losses):
        share = curve.shares[step]
        terms = {f"loss/{name}": values[step] for name, values in curve.terms.items()} if len(curve.terms) > 1 else {}
        remaining = None if math.isnan(share) else share
        lines.append({"step": step, "split": "", "loss/total": loss, **terms, "share left": remaining})
    return lines
