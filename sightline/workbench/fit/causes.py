"""Search for the cause of a failed fit: loss, optimiser, precision, head and so on; the first guilty part.

Detection of modules that compute in a coarser number format than their parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from sightline.contract.pytree import tree_leaves
from sightline.doctor.finding import Severity
from sightline.engine.build import TrainingSetup
from sightline.engine.device import Precision
from sightline.instrument import ModuleCall, record
from sightline.parts.quantisation.parametrised import weight_sizes
from sightline.workbench.check.context import get_loss_path
from sightline.workbench.check.core.dry_run import forward_backward
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.fit.fit_attempt import FITTED, FitCurve, FitSetup, prepare_model
from sightline.workbench.fit.loss_probe import GradientCheck, LossProbe
from sightline.workbench.fit.network import activation_cause, constant_cause, gradient_cause, head_cause
from sightline.workbench.fit.optimizer_grid import Candidate, OptimizerResult, own_rate, run_candidate


class Lowered(NamedTuple):
    """Module whose results have fewer bits than its parameters, and their dtype."""

    layer: str
    dtype: str


def find_lowered(bench: FitSetup, precision: str) -> Lowered | None:
    """Find the first module of a training step that computes in a coarser format than its parameters; else None."""
    model = prepare_model(bench, precision)
    bits = torch.finfo(Precision(precision).parameter_dtype).bits
    lowered: list[Lowered] = []

    def note(call: ModuleCall | None, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
        for _, tensor in () if lowered else tree_leaves(result):
            if tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < bits:
                lowered.append(Lowered("" if call is None else call.path, str(tensor.dtype).removeprefix("torch.")))

    with record(model, operators=note):
        forward_backward(bench.built.job, model, [bench.batch_in(precision)], bench.device)
    return lowered[0] if lowered else None


_MIN_GRADIENT_RATIO = 1e-3
"""Ratio of gradient to finite differences below which the gradient is zero or has the wrong sign."""
_MIN_DIFFERENCE = 1e-3
"""Least share by which outputs that favour the label must be worse: of instances both are equal, to rounding."""


@dataclass(frozen=True)
class BisectionStep:
    """Outcome of one part of the search."""

    name: str
    summary: str
    is_guilty: bool = False

    def to_dict(self) -> dict[str, str | bool]:
        """Convert to plain values for JSON."""
        return {"name": self.name, "summary": self.summary, "is_guilty": self.is_guilty}


@dataclass(frozen=True)
class FailedFit:
    """Failed fit: the attempts in the run's own number format, and the candidates for further attempts."""

    bench: FitSetup
    probe: LossProbe
    verdicts: Sequence[OptimizerResult]
    candidates: Sequence[Candidate]
    note: Callable[[str], None]

    @property
    def recipe_result(self) -> OptimizerResult:
        return self.verdicts[0]

    @property
    def precision(self) -> str:
        return self.recipe_result.precision


def bisect(case: FailedFit) -> tuple[Fault, list[BisectionStep], list[OptimizerResult]]:
    """Find the first guilty part; return its fault, the outcome of each part, and the further attempts."""
    parts: list[BisectionStep] = []
    further: list[OptimizerResult] = []
    steps: tuple[tuple[str, Callable[[], tuple[Fault | None, str]]], ...] = (
        ("loss", lambda: _check_loss(case)),
        ("optimiser", lambda: _check_optimiser(case)),
        ("precision", lambda: _check_precision(case, further)),
        ("output range", lambda: activation_cause(case.bench, case.probe)),
        ("head", lambda: head_cause(case.bench, is_falling=bool(_falling_curves(case)))),
        ("features", lambda: constant_cause(case.bench, case.probe)),
        ("steps", lambda: _check_still_falling(case)),
        ("gradients", lambda: gradient_cause(case.bench)),
    )
    for name, check in steps:
        case.note(f"why: {name}")
        fault, summary = check()
        parts.append(BisectionStep(name, summary, fault is not None))
        if fault is not None:
            return fault, parts, further
    return _make_unexplained(case, parts), parts, further


# --- the loss --------------------------------------------------------------------------------------------------------


def _check_loss(case: FailedFit) -> tuple[Fault | None, str]:
    fault = loss_cause(case.probe, case.bench.built)
    if fault is None and not any(verdict.best.is_fitted for verdict in case.verdicts):
        fault = next(inconsistent_gradients(case.probe, case.bench.built, severity="error"), None)
    floor = "no floor" if case.probe.floor is None else f"a floor of {case.probe.floor:.4g}"
    right = all(slope.is_right for slope in case.probe.slopes.values())
    return fault, f"{floor}; gradients {'agree' if right else 'do not agree'} with finite differences"


def loss_cause(probe: LossProbe, built: TrainingSetup) -> Fault | None:
    """Find a loss with a zero or ascending gradient, without a lower bound, or that rewards wrong predictions.

    A wrong gradient that still descends is not a cause by itself: see `inconsistent_gradients`.
    """
    for name, slope in _wrong_slopes(probe, built):
        if slope.ratio < _MIN_GRADIENT_RATIO:
            return _make_slope_fault(name, slope, built, "error")
    if not probe.read or all(math.isnan(slope.ratio) for slope in probe.slopes.values()):
        return Fault(
            "no loss depends on the model's outputs",
            causes=("loss.detached", "loss.form"),
            at="losses",
            measured="a change of the outputs changes no loss",
            expected="a loss that changes with the outputs it reads",
            action="look for argmax, rounding, detach() or no_grad between the model's outputs and the loss",
        )
    measured = ""
    if probe.floor is None:
        measured = (
            f"the loss falls without bound: no size of outputs is large enough; from {probe.start:.4g} to "
            f"{probe.lowest:.4g} and on"
        )
    elif probe.truth is not None and probe.truth[0] > probe.truth[1] + _MIN_DIFFERENCE * abs(probe.truth[1]):
        favouring, opposing = probe.truth
        measured = f"{favouring:.4g} for outputs that favour the label, {opposing:.4g} for outputs that oppose it"
    if not measured:
        return None
    return Fault(
        "the loss has the wrong sign: it falls as predictions get worse",
        causes=("loss.sign", "loss.form", "data.label_mapping"),
        at="losses",
        measured=measured,
        expected="a loss with a floor, and lower for better predictions",
        action="minimise the negative log likelihood or the distance: drop or add the minus",
    )


def inconsistent_gradients(probe: LossProbe, built: TrainingSetup, *, severity: Severity) -> Iterator[Fault]:
    """Report losses whose gradient differs from their value's but descends; intended if a weight is detached."""
    for name, slope in _wrong_slopes(probe, built):
        if slope.ratio >= _MIN_GRADIENT_RATIO:
            yield _make_slope_fault(name, slope, built, severity)


def _wrong_slopes(probe: LossProbe, built: TrainingSetup) -> list[tuple[str, GradientCheck]]:
    weights = built.job.loss_weights_at(built.job.num_steps)
    return [(name, slope) for name, slope in probe.slopes.items() if weights[name] > 0 and not slope.is_right]


def _make_slope_fault(name: str, slope: GradientCheck, built: TrainingSetup, severity: Severity) -> Fault:
    causes: tuple[str, ...]
    if abs(slope.ratio + 1) < 0.1:
        causes, description = ("loss.sign", "loss.form"), "has the wrong sign: descending it raises the loss"
    elif abs(slope.ratio) < _MIN_GRADIENT_RATIO:
        causes, description = ("loss.detached", "loss.inplace"), "is zero, though the loss depends on the outputs"
    else:
        causes, description = ("loss.form", "loss.inplace", "loss.detached"), "differs from that of its value"
    return Fault(
        f"the gradient of the loss '{name}' {description}",
        severity=severity,
        causes=causes,
        at=get_loss_path(built.config, name),
        measured=f"autograd gives {slope.ratio:.3g} times the finite differences, "
        f"{slope.misfit:.2g} of them unexplained",
        expected="1 times, 0 of them unexplained",
        action="nothing, if the loss detaches a weight or a target on purpose; else look for .data and edits in place"
        if severity == "warning"
        else "compare the loss's backward with its forward pass; look for .data, detach() and edits in place",
        evidence={"ratio": slope.ratio, "misfit": slope.misfit},
    )


# --- the optimiser ---------------------------------------------------------------------------------------------------


def _check_optimiser(case: FailedFit) -> tuple[Fault | None, str]:
    """Find out if the recipe's optimiser fits at another rate, or if another optimiser fits."""
    fitted_curves = [curve for curve in case.recipe_result.curves if curve.is_fitted]
    fitted_others = [verdict for verdict in case.verdicts[1:] if verdict.best.is_fitted]
    if not fitted_curves and not fitted_others:
        attempts = sum(len(verdict.curves) for verdict in case.verdicts)
        return None, f"none of {attempts} attempts with {len(case.verdicts)} optimisers fits"
    best = min([*fitted_curves, *(verdict.best for verdict in fitted_others)], key=lambda curve: curve.order)
    summary = f"{best.optimizer} fits at rate {best.rate:g} after {best.steps_to(FITTED)} steps"
    return next(_iter_optimiser_faults(case, bool(fitted_curves), summary)), summary


def _iter_optimiser_faults(case: FailedFit, same_fits: bool, summary: str) -> Iterator[Fault]:
    rate, curve = own_rate(case.bench.built), case.recipe_result.trusted_curve
    lowest = "none of the way gone" if math.isnan(curve.lowest) else f"{curve.lowest:.3g} of the way left at best"
    measured = f"the recipe's, at {rate:g} and a tenth and ten times of it: {lowest}; {summary}"
    expected = f"at most {FITTED:g} of the way left after {case.bench.steps} steps"
    optimised = {id(p) for group in case.bench.built.job.optimizer.param_groups for p in group["params"]}
    parameters = case.bench.built.job.model.named_parameters()
    left_out = [name for name, parameter in parameters if parameter.requires_grad and id(parameter) not in optimised]
    warn = partial(Fault, severity="warning", measured=measured, expected=expected)
    if left_out:
        yield warn(
            f"the recipe's optimiser does not contain {len(left_out)} parameters, {left_out[0]} among them",
            causes=("optim.param_coverage", "optim.hyper"),
            at="optimizer",
            action="make the optimiser of all parameters of the model that trains",
            evidence={"parameters": left_out[:10]},
        )
    clip = case.bench.built.job.clip_norm
    if clip is not None and _fits_unclipped(case):
        yield warn(
            f"the recipe's optimiser fits only if gradients are not clipped to {clip:g}",
            causes=("optim.clip", "optim.lr"),
            at="train.clip_norm",
            action="raise train.clip_norm above the usual norm of the gradient, or leave it out",
        )
    is_rate = same_fits or rate == 0
    yield warn(
        f"the learning rate {rate:g} does not fit these samples; the network and the loss can"
        if is_rate
        else "the recipe's optimiser does not fit these samples; the network and the loss can",
        causes=("optim.lr", "optim.hyper") if is_rate else ("optim.hyper", "optim.lr", "optim.clip"),
        at="optimizer.lr" if is_rate else "optimizer",
        action=f"start a search from the rate that fits ({summary})"
        if is_rate
        else f"look at the optimiser's own arguments; {summary}",
    )


def _fits_unclipped(case: FailedFit) -> bool:
    candidate = case.candidates[0]
    rates = candidate.trusted_rates
    return run_candidate(case.bench, candidate, case.precision, note=case.note, rates=rates, clip=False).is_fitted


# --- the number format -----------------------------------------------------------------------------------------------


def _check_precision(case: FailedFit, further: list[OptimizerResult]) -> tuple[Fault | None, str]:
    """Find out if a finer number format than the recipe's fits."""
    finer = {"float32": ("float64",), "bf16": ("float32", "float64"), "fp16": ("float32", "float64")}
    lowest_share = min((v.best.lowest for v in case.verdicts if not math.isnan(v.best.lowest)), default=math.inf)
    for precision in finer.get(case.precision, ()):
        for candidate, verdict in zip(case.candidates, case.verdicts, strict=True):
            rates = candidate.trusted_rates if verdict is case.recipe_result else (verdict.best.rate,)
            attempt = run_candidate(case.bench, candidate, precision, note=case.note, rates=rates, clip=False)
            further.append(attempt)
            if attempt.best.is_fitted and lowest_share > 2 * FITTED:
                summary = f"{precision} fits with {candidate.name} at rate {attempt.best.rate:g}"
                return _make_precision_fault(case, precision, summary, lowest_share), summary
    return None, "a finer number format does not fit either" if further else "the recipe already has the finest format"


def _make_precision_fault(case: FailedFit, precision: str, summary: str, lowest_share: float) -> Fault:
    lowered = find_lowered(case.bench, case.precision)
    is_autocast = case.precision in ("bf16", "fp16") and precision == "float32"
    causes: tuple[str, ...] = ("sys.backend", "model.numerics")
    action = f"`sightline compare CONFIG --against {precision}` names the layer whose error rounding does not explain"
    if is_autocast:
        causes, action = (
            ("optim.amp", "model.numerics"),
            "train in float32, or look at the layers in the coarser format",
        )
    elif lowered is not None:
        causes = ("model.numerics", "sys.backend")
        action = f"take the conversion to {lowered.dtype} out of {lowered.layer or 'the model'}"
    lowered_text = "" if lowered is None else f"; {lowered.layer or 'the model'} computes in {lowered.dtype}"
    return Fault(
        severity="warning",
        summary=f"{case.precision} loses digits that {precision} keeps: the same steps fit only with more digits",
        causes=causes,
        at="train.precision" if is_autocast else "model",
        layer=None if lowered is None else lowered.layer,
        measured=f"{case.precision}: {lowest_share:.3g} of the way left at best; {summary}{lowered_text}",
        expected=f"{case.precision} and {precision} reach about the same loss",
        action=action,
    )


# --- what is left ----------------------------------------------------------------------------------------------------


def _check_still_falling(case: FailedFit) -> tuple[Fault | None, str]:
    """Report an attempt whose loss was still falling at its last step: it decides nothing."""
    falling = _falling_curves(case)
    if not falling:
        return None, "no attempt was still falling when it ended"
    best = min(falling, key=lambda curve: curve.lowest)
    summary = f"{best.optimizer} at rate {best.rate:g} was still falling, {best.lowest:.3g} of the way left"
    fault = Fault(
        severity="warning",
        summary=f"{case.bench.steps} steps do not decide: the loss was still falling",
        causes=("optim.lr", "optim.hyper", "model.init"),
        at="optimizer.lr",
        measured=summary,
        expected=f"at most {FITTED:g} of the way left",
        action=f"give --steps {4 * case.bench.steps}",
    )
    return fault, summary


def _falling_curves(case: FailedFit) -> list[FitCurve]:
    curves = [curve for verdict in case.verdicts for curve in verdict.curves]
    return [curve for curve in curves if curve.is_falling and curve.lowest < 0.9]


def _make_unexplained(case: FailedFit, parts: Sequence[BisectionStep]) -> Fault:
    lowest = case.recipe_result.trusted_curve.lowest
    return Fault(
        severity="warning",
        summary="these samples cannot be fitted, and none of the usual causes explains it",
        causes=("model.structure", "model.init", "model.geometry"),
        at="model",
        measured=f"{lowest:.3g} of the way left at best; "
        + "; ".join(f"{part.name}: {part.summary}" for part in parts),
        expected=f"at most {FITTED:g} of the way left after {case.bench.steps} steps",
        action="follow the samples through the layers by --trace; see that every input reaches the output",
        evidence=BisectionStep("parameters", str(_count_parameters(case.bench.built.job.model))).to_dict(),
    )


def _count_parameters(model: nn.Module) -> int:
    return sum(size for parameter, size in weight_sizes(model).items() if parameter.requires_grad)
