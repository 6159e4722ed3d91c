"""Why samples could not be fitted: loss, optimiser, precision, head, one after another; the first that is guilty."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from sightline.doctor.core.finding import Finding, Severity
from sightline.doctor.overfit.fit_attempt import FITTED, FitCurve, FitSetup
from sightline.doctor.overfit.fit_reporter import FitReporter
from sightline.doctor.overfit.loss_probe import GradientCheck, LossProbe
from sightline.doctor.overfit.network import activation_cause, constant_cause, gradient_cause, head_cause
from sightline.doctor.overfit.numbers import lowered_in
from sightline.doctor.overfit.optimizer_candidates import Candidate, own_rate
from sightline.doctor.overfit.optimizer_grid import OptimizerResult, run_candidate
from sightline.layers.quantisation.parametrised import weight_sizes

__all__ = ["BisectionStep", "FailedFit", "bisect", "inconsistent_gradients", "loss_cause"]

_LEADS_NOWHERE = 1e-3
"""A gradient of less than this times that of the value is none, or one of the wrong sign."""


@dataclass(frozen=True)
class BisectionStep:
    """The outcome of one part of the bisection."""

    name: str
    summary: str
    is_guilty: bool = False

    def to_dict(self) -> dict[str, str | bool]:
        """Plain values for JSON."""
        return {"name": self.name, "summary": self.summary, "is_guilty": self.is_guilty}


@dataclass(frozen=True)
class FailedFit:
    """A run that did not fit: what was tried in its own number format, and what can be tried still."""

    bench: FitSetup
    probe: LossProbe
    verdicts: Sequence[OptimizerResult]
    candidates: Sequence[Candidate]
    reporter: FitReporter
    note: Callable[[str], None]

    @property
    def own(self) -> OptimizerResult:
        return self.verdicts[0]

    @property
    def precision(self) -> str:
        return self.own.precision


def bisect(case: FailedFit) -> tuple[Finding, list[BisectionStep], list[OptimizerResult]]:
    """The first guilty part, what each part showed, and the attempts that were made on the way."""
    parts: list[BisectionStep] = []
    further: list[OptimizerResult] = []
    steps: tuple[tuple[str, Callable[[], tuple[Finding | None, str]]], ...] = (
        ("loss", lambda: _loss(case)),
        ("optimiser", lambda: _optimiser(case)),
        ("precision", lambda: _precision(case, further)),
        ("output range", lambda: activation_cause(case.bench, case.probe, case.reporter)),
        ("head", lambda: head_cause(case.bench, case.reporter, is_falling=bool(_falling(case)))),
        ("features", lambda: constant_cause(case.bench, case.probe, case.reporter)),
        ("steps", lambda: _too_slow(case)),
        ("gradients", lambda: gradient_cause(case.bench, case.reporter)),
    )
    for name, look in steps:
        case.note(f"why: {name}")
        finding, shown = look()
        parts.append(BisectionStep(name, shown, finding is not None))
        if finding is not None:
            return finding, parts, further
    return _unexplained(case, parts), parts, further


# --- the loss --------------------------------------------------------------------------------------------------------


def _loss(case: FailedFit) -> tuple[Finding | None, str]:
    finding = loss_cause(case.probe, case.reporter)
    if finding is None and not any(verdict.best.is_fitted for verdict in case.verdicts):
        finding = next(iter(inconsistent_gradients(case.probe, case.reporter, severity="error")), None)
    floor = "no floor" if case.probe.floor is None else f"a floor of {case.probe.floor:.4g}"
    right = all(slope.is_right for slope in case.probe.slopes.values())
    return finding, f"{floor}; gradients {'agree' if right else 'do not agree'} with finite differences"


def loss_cause(probe: LossProbe, reporter: FitReporter) -> Finding | None:
    """A loss whose gradient is zero or leads upwards, that falls without bound, or that rewards wrong predictions.

    One whose gradient is wrong and yet leads downwards is not a cause by itself: see `bent_losses`.
    """
    for name, slope in _wrong_slopes(probe, reporter):
        if slope.ratio < _LEADS_NOWHERE:
            return _of_slope(name, slope, reporter, "error")
    if not probe.read or all(math.isnan(slope.ratio) for slope in probe.slopes.values()):
        return reporter.finding(
            severity="error",
            summary="no loss depends on the model's outputs",
            causes=("loss.detached", "loss.form"),
            path="losses",
            measured="moving the outputs moves no loss",
            expected="a loss that changes with the outputs it reads",
            action="look for argmax, rounding, detach() or no_grad between the model's outputs and the loss",
        )
    if probe.floor is None:
        return _of_sign(
            f"the loss falls without bound: no size of outputs is large enough; from {probe.start:.4g} to "
            f"{probe.lowest:.4g} and on",
            reporter,
        )
    if probe.truth is not None and probe.truth[0] > probe.truth[1]:
        to, away = probe.truth
        return _of_sign(f"{to:.4g} for outputs that favour the label, {away:.4g} for outputs that oppose it", reporter)
    return None


def inconsistent_gradients(probe: LossProbe, reporter: FitReporter, *, severity: Severity) -> list[Finding]:
    """Losses whose gradient is not that of their value, but leads downwards: by intent where a weight is detached."""
    wrong = _wrong_slopes(probe, reporter)
    return [_of_slope(name, slope, reporter, severity) for name, slope in wrong if slope.ratio >= _LEADS_NOWHERE]


def _wrong_slopes(probe: LossProbe, reporter: FitReporter) -> list[tuple[str, GradientCheck]]:
    job = reporter.built.job
    weights = job.loss_weights_at(job.num_steps)
    return [(name, slope) for name, slope in probe.slopes.items() if weights[name] > 0 and not slope.is_right]


def _of_slope(name: str, slope: GradientCheck, reporter: FitReporter, severity: Severity) -> Finding:
    causes: tuple[str, ...]
    if abs(slope.ratio + 1) < 0.1:
        causes, shown = ("loss.sign", "loss.form"), "has the wrong sign: descending it raises the loss"
    elif abs(slope.ratio) < _LEADS_NOWHERE:
        causes, shown = ("loss.detached", "loss.inplace"), "is zero, though the loss depends on the outputs"
    else:
        causes, shown = ("loss.form", "loss.inplace", "loss.detached"), "is not that of its value"
    return reporter.finding(
        severity=severity,
        summary=f"the gradient of the loss '{name}' {shown}",
        causes=causes,
        path=reporter.loss_path(name),
        measured=f"autograd gives {slope.ratio:.3g} times the finite differences, and {slope.misfit:.2g} beside them",
        expected="1 times, and 0 beside them",
        action="nothing, where the loss detaches a weight or a target by intent; else look for .data and edits in place"
        if severity == "warning"
        else "compare the loss's backward with its forward pass; look for .data, detach() and edits in place",
        evidence={"ratio": slope.ratio, "misfit": slope.misfit},
    )


def _of_sign(measured: str, reporter: FitReporter) -> Finding:
    return reporter.finding(
        severity="error",
        summary="the loss has the wrong sign: it falls as predictions get worse",
        causes=("loss.sign", "loss.form", "data.label_mapping"),
        path="losses",
        measured=measured,
        expected="a loss with a floor, and lower for better predictions",
        action="minimise the negative log likelihood or the distance: drop or add the minus",
    )


# --- the optimiser ---------------------------------------------------------------------------------------------------


def _optimiser(case: FailedFit) -> tuple[Finding | None, str]:
    """Whether the same optimiser at another rate, or another one, fits what the recipe's does not."""
    elsewhere = [curve for curve in case.own.curves if curve.is_fitted]
    others = [verdict for verdict in case.verdicts[1:] if verdict.best.is_fitted]
    if not elsewhere and not others:
        attempts = sum(len(verdict.curves) for verdict in case.verdicts)
        return None, f"none of {attempts} attempts with {len(case.verdicts)} optimisers fits"
    best = min([*elsewhere, *(verdict.best for verdict in others)], key=lambda curve: curve.order)
    shown = f"{best.optimizer} fits at rate {best.rate:g} after {best.steps_to(FITTED)} steps"
    return next(_of_optimiser(case, bool(elsewhere), shown)), shown


def _of_optimiser(case: FailedFit, same_fits: bool, shown: str) -> Iterator[Finding]:
    rate, own = own_rate(case.bench.built), case.own.trusted
    lowest = "none of the way gone" if math.isnan(own.lowest) else f"{own.lowest:.3g} of the way left at best"
    measured = f"the recipe's, at {rate:g} and a tenth and ten times of it: {lowest}; {shown}"
    expected = f"at most {FITTED:g} of the way left after {case.bench.steps} steps"
    held = {id(p) for group in case.bench.built.job.optimizer.param_groups for p in group["params"]}
    named = case.bench.built.job.model.named_parameters()
    left_out = [name for name, parameter in named if parameter.requires_grad and id(parameter) not in held]
    shared = {"severity": "warning", "measured": measured, "expected": expected}
    if left_out:
        yield case.reporter.finding(
            summary=f"the recipe's optimiser does not hold {len(left_out)} parameters, {left_out[0]} among them",
            causes=("optim.param_coverage", "optim.hyper"),
            path="optimizer",
            action="make the optimiser of all parameters of the model that trains",
            evidence={"parameters": left_out[:10]},
            **shared,
        )
    clip = case.bench.built.job.clip_norm
    if clip is not None and _fits_unclipped(case):
        yield case.reporter.finding(
            summary=f"the recipe's optimiser fits only where gradients are not clipped to {clip:g}",
            causes=("optim.clip", "optim.lr"),
            path="train.clip_norm",
            action="raise train.clip_norm above the usual norm of the gradient, or leave it out",
            **shared,
        )
    is_rate = same_fits or rate == 0
    yield case.reporter.finding(
        summary=f"the learning rate {rate:g} does not fit these samples; the network and the loss can"
        if is_rate
        else "the recipe's optimiser does not fit these samples; the network and the loss can",
        causes=("optim.lr", "optim.hyper") if is_rate else ("optim.hyper", "optim.lr", "optim.clip"),
        path="optimizer.lr" if is_rate else "optimizer",
        action=f"take what fits ({shown}) as the start of a search"
        if is_rate
        else f"look at the optimiser's own arguments; {shown}",
        **shared,
    )


def _fits_unclipped(case: FailedFit) -> bool:
    own = case.candidates[0]
    rates = own.trusted
    return run_candidate(case.bench, own, case.precision, note=case.note, rates=rates, clip=False).is_fitted


# --- the number format -----------------------------------------------------------------------------------------------


def _precision(case: FailedFit, further: list[OptimizerResult]) -> tuple[Finding | None, str]:
    """Whether more digits fit what the recipe's number format does not."""
    finer = {"float32": ("float64",), "bf16": ("float32", "float64"), "fp16": ("float32", "float64")}
    reached = min((v.best.lowest for v in case.verdicts if not math.isnan(v.best.lowest)), default=math.inf)
    for precision in finer.get(case.precision, ()):
        for candidate, verdict in zip(case.candidates, case.verdicts, strict=True):
            rates = candidate.trusted if verdict is case.own else (verdict.best.rate,)
            tried = run_candidate(case.bench, candidate, precision, note=case.note, rates=rates, clip=False)
            further.append(tried)
            if tried.best.is_fitted and reached > 2 * FITTED:
                shown = f"{precision} fits with {candidate.name} at rate {tried.best.rate:g}"
                return _of_precision(case, precision, shown, reached), shown
    return None, "more digits do not fit either" if further else "the recipe has the most digits already"


def _of_precision(case: FailedFit, precision: str, shown: str, reached: float) -> Finding:
    lowered = lowered_in(case.bench, case.precision)
    is_autocast = case.precision in ("bf16", "fp16") and precision == "float32"
    causes: tuple[str, ...] = ("sys.backend", "model.numerics")
    action = f"`sightline compare CONFIG --against {precision}` names the layer whose error rounding does not explain"
    if is_autocast:
        causes, action = ("optim.amp", "model.numerics"), "train in float32, or look where the lowered layers lose it"
    elif lowered is not None:
        causes = ("model.numerics", "sys.backend")
        action = f"take the conversion to {lowered.dtype} out of {lowered.layer or 'the model'}"
    found = "" if lowered is None else f"; {lowered.layer or 'the model'} computes in {lowered.dtype}"
    return case.reporter.finding(
        severity="warning",
        summary=f"{case.precision} loses what {precision} keeps: the same steps fit with more digits alone",
        causes=causes,
        path="train.precision" if is_autocast else "model",
        layer=None if lowered is None else lowered.layer,
        measured=f"{case.precision}: {reached:.3g} of the way left at best; {shown}{found}",
        expected=f"{case.precision} and {precision} come about as far",
        action=action,
    )


# --- what is left ----------------------------------------------------------------------------------------------------


def _too_slow(case: FailedFit) -> tuple[Finding | None, str]:
    """An attempt that was still falling when its steps were over decides nothing."""
    falling = _falling(case)
    if not falling:
        return None, "no attempt was still falling when it ended"
    best = min(falling, key=lambda curve: curve.lowest)
    shown = f"{best.optimizer} at rate {best.rate:g} was still falling, {best.lowest:.3g} of the way left"
    finding = case.reporter.finding(
        severity="warning",
        summary=f"{case.bench.steps} steps do not decide: the loss was still falling",
        causes=("optim.lr", "optim.hyper", "model.init"),
        path="optimizer.lr",
        measured=shown,
        expected=f"at most {FITTED:g} of the way left",
        action=f"give --steps {4 * case.bench.steps}",
    )
    return finding, shown


def _falling(case: FailedFit) -> list[FitCurve]:
    curves = [curve for verdict in case.verdicts for curve in verdict.curves]
    return [curve for curve in curves if curve.is_falling and curve.lowest < 0.9]


def _unexplained(case: FailedFit, parts: Sequence[BisectionStep]) -> Finding:
    lowest = case.own.trusted.lowest
    return case.reporter.finding(
        severity="warning",
        summary="these samples cannot be fitted, and none of the usual reasons explains it",
        causes=("model.structure", "model.init", "model.geometry"),
        path="model",
        measured=f"{lowest:.3g} of the way left at best; " + "; ".join(f"{one.name}: {one.summary}" for one in parts),
        expected=f"at most {FITTED:g} of the way left after {case.bench.steps} steps",
        action="follow the samples through the layers by --trace; see that every input reaches the output",
        evidence=BisectionStep("parameters", str(_num_parameters(case.bench.built.job.model))).to_dict(),
    )


def _num_parameters(model: nn.Module) -> int:
    return sum(size for parameter, size in weight_sizes(model).items() if parameter.requires_grad)
