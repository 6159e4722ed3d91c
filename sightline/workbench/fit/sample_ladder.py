"""Ladder from one sample to the whole task: each rung has a rule, and the first failure ends the climb.

Best constant prediction: one output for all samples, fitted with the run's own loss.

Fits of the same samples by variants of a recipe: which option helps, and if a small network suffices.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.config import RunConfig
from sightline.config.overrides import split_values
from sightline.contract.errors import UserError
from sightline.contract.types import Batch
from sightline.doctor.finding import Finding
from sightline.engine.batch_stream import BatchSampler, evaluation_keys
from sightline.engine.build import TrainingSetup, build
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.evaluate import Evaluation
from sightline.engine.records import StepRecord
from sightline.engine.step import compute_batch_losses, prepare_step, weighted_sum
from sightline.engine.train import NonFiniteGradientError, train
from sightline.instrument import record
from sightline.parts.quantisation.parametrised import weight_sizes
from sightline.workbench.check.core.dry_run import isolated_copy
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import class_axis
from sightline.workbench.describe.trace import preserve_all_rng_states
from sightline.workbench.fit.fit_attempt import FITTED, build_findings
from sightline.workbench.fit.fit_one import LONGER, FitOptions, FitResult, fit_one
from sightline.workbench.fit.layer_trace import LayerTrace, trace_fit
from sightline.workbench.fit.samples import evaluation_reader, loss_between_samples

_STEPS = 60


class ConstantPredictor(nn.Module):
    """Model whose outputs `values` are the same for all samples, in the shapes of the given model's outputs.

    Logits of labels have one number per class; other outputs one number per entry, except along the first axis.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.values: dict[str, Tensor] = {}
        self.axes: dict[str, tuple[int, ...]] = {}

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with torch.no_grad():
            outputs = self.model(*args, **kwargs)
        constants = {}
        for name, value in outputs.items():
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
                constants[name] = self._get_constant(name, value).to(value.dtype).expand(value.shape)
            else:
                constants[name] = value
        return constants

    def _get_constant(self, name: str, like: Tensor) -> Tensor:
        if name not in self.values:
            axes = self.axes.get(name, tuple(range(1, like.ndim)))
            shape = [size if axis in axes else 1 for axis, size in enumerate(like.shape)]
            self.values[name] = like.new_zeros(shape, dtype=torch.float64).requires_grad_()
        return self.values[name]


def fit_constant(built: TrainingSetup, batches: Sequence[Batch]) -> ConstantPredictor:
    """Fit the constant with the lowest loss on these batches."""
    job, device = built.job, built.job.device
    model = ConstantPredictor(isolated_copy(job.model).eval())
    device_batches = [to_device(batch, device, float_dtype=job.precision.parameter_dtype) for batch in batches]
    world = World(device=device)
    _find_axes(built, model, device_batches[0])
    weights = job.loss_weights_at(job.num_steps)

    def total() -> Tensor:
        step = prepare_step(job.task, model, device_batches, world)
        sums: dict[str, Tensor] = {}
        for index in range(len(device_batches)):
            for name, term in step.loss_sums(model, index).items():
                sums[name] = sums[name] + term if name in sums else term
        return weighted_sum({name: value.double() for name, value in step.loss_means(sums).items()}, weights)

    total()  # makes the values, in the shapes of the outputs
    optimizer = torch.optim.LBFGS(list(model.values.values()), max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = total()
        if value.requires_grad:
            value.backward()
        return value.detach()

    with torch.enable_grad():
        optimizer.step(closure)
    model.values = {name: value.detach() for name, value in model.values.items()}
    return model


def _find_axes(built: TrainingSetup, model: ConstantPredictor, batch: Batch) -> None:
    """Find the class axis of logits, the only one along which their constant varies; sets `model.axes`."""
    job = built.job
    with torch.no_grad(), record({"": model.model}, keep=("outputs",), each=None) as tape:
        compute_batch_losses(job.task, model, batch, job.device)
    model.values.clear()
    logits, label = tape.outputs[-1].get("logits"), batch.get("label")
    if isinstance(logits, Tensor) and isinstance(label, Tensor) and (axis := class_axis(logits, label)) is not None:
        model.axes["logits"] = (axis,)


ALL = "all"
LEARNING = 32
"""Number of samples from which a rung tests generalisation to held-out samples, not memorisation."""
HELD_OUT = 256
"""Largest number of held-out samples, spread over the split: minutes, with a standard error of three points."""
_REQUIRED_CLOSENESS = {"some": 0.25, ALL: 0.5}
"""Required share of the way from the constant prediction to the perfect one: a quarter; for the task a half."""
_NUM_NOTES = 10


@dataclass(frozen=True)
class Rung:
    """One rung: number of samples, rule and measurement as text, and the figures."""

    samples: int
    rule: str
    measured: str
    is_passed: bool
    figures: dict[str, float]


def parse_rungs(text: str, size: int) -> list[int | str]:
    """Parse rungs such as `1,8,64,all`, in rising order. Raises UserError for anything else."""
    rungs: list[int | str] = []
    for word in text.split(","):
        if word.strip() == ALL:
            rungs.append(ALL)
        elif word.strip().isdigit() and int(word) > 0:
            rungs.append(int(word))
        else:
            raise UserError(f"--grow {text}: '{word}' is not a rung; give numbers of samples, and all for the task")
    sizes = [size if rung == ALL else int(rung) for rung in rungs]
    if sizes != sorted(set(sizes)):
        raise UserError(f"--grow {text}: rungs must increase; the training part, all, has {size} samples")
    if sizes[-1] > size:
        raise UserError(f"--grow {text}: the training part has {size} samples; give at most as many, or all")
    return rungs


def run_ladder(
    config: RunConfig,
    world: World,
    built: TrainingSetup,
    rungs: Sequence[int | str],
    asked: FitOptions,
    note: Callable[[str], None],
) -> tuple[list[Rung], list[Finding]]:
    """Climb until a rule fails; return the rungs that were tried, and findings on why the last one failed.

    Raises UserError for a rung of one sample if a loss compares samples.
    """
    if rungs[0] == 1 and (pair_loss := loss_between_samples(built)):
        raise UserError(f"--grow: rung 1: '{pair_loss}' compares samples with one another; begin with 2 or more")
    results: list[Rung] = []
    for rung in rungs:
        is_task = rung == ALL
        size = len(built.data.train.indices) if is_task else int(rung)
        note(f"rung {rung}: {size} samples")
        if size < LEARNING and not is_task:
            result, findings = _test_memorisation(built, size, asked, note)
        else:
            result, findings = _test_generalisation(config, world, built, size, is_task=is_task, asked=asked, note=note)
        results.append(result)
        note(f"rung {rung}: {'passed' if result.is_passed else 'FAILED'}; rule: {result.rule}; {result.measured}")
        if not result.is_passed:
            return results, findings
    return results, []


# --- the lower rungs: memorisation -----------------------------------------------------------------------------------


def _test_memorisation(
    built: TrainingSetup, size: int, asked: FitOptions, note: Callable[[str], None]
) -> tuple[Rung, list[Finding]]:
    result = fit_one(built, dataclasses.replace(asked, samples=size, is_brief=True), note)
    if not result.verdicts:
        rule = "a step can be taken"
        return Rung(size, rule, result.findings[0].summary, False, {}), list(result.findings)
    curve = result.verdicts[0].trusted_curve
    steps, lowest = curve.steps_to(FITTED), curve.lowest
    outcome = f"after {steps} steps" if steps is not None else "never reached"
    figures = {"share": lowest, "steps": math.nan if steps is None else steps, "rate": curve.rate}
    rung = Rung(
        size,
        f"at most {FITTED:g} of the way to the floor is left within {asked.steps} steps, or {LONGER} times as many "
        "where the loss still falls",
        f"{outcome}; {lowest:.3g} at best, rate {curve.rate:g}",
        result.is_fitted,
        figures,
    )
    return rung, [] if result.is_fitted else list(result.findings)


# --- the upper rungs: generalisation --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TrainingOutcome:
    """Result of a training on some samples, and of the constant prediction."""

    metric: str
    trivial: float
    held_out: float
    training_score: float
    first_loss: float
    last_loss: float
    trivial_loss: float
    steps: int
    is_higher_better: bool

    def closeness(self, value: float) -> float:
        """Return the position of a value between the constant prediction (0) and the perfect one (1)."""
        best = (1.0 if self.trivial <= 1.0 else math.inf) if self.is_higher_better else 0.0
        distance = best - self.trivial
        if distance == 0:
            return 1.0
        if math.isinf(distance):
            return value / self.trivial - 1.0
        return (value - self.trivial) / distance


def _test_generalisation(
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
        learnt = _train_on_samples(config, world, built, size, is_task=is_task, asked=asked, note=note)
    if learnt is None:
        fault = Fault(
            "training ended in a gradient that is not finite",
            causes=("optim.nonfinite", "optim.lr"),
            at="optimizer.lr",
            measured=f"a gradient that is not finite on {size} samples",
            expected="finite gradients",
            action="lower the learning rate or clip gradients (train.clip_norm)",
        )
        rung = Rung(size, "training ends", "a gradient was not finite", False, {})
        return rung, build_findings(built, [fault])
    required = _REQUIRED_CLOSENESS[ALL if is_task else "some"]
    measured = learnt.closeness(learnt.held_out)
    rung = Rung(
        size,
        f"{learnt.metric} of held-out samples is {required:g} of the way from the constant prediction to the "
        "perfect one",
        f"{learnt.held_out:.4g}, the constant prediction {learnt.trivial:.4g}: {measured:.2f} of the way "
        f"after {learnt.steps} steps",
        measured >= required,
        {
            "closeness": measured,
            learnt.metric: learnt.held_out,
            "trivial": learnt.trivial,
            "training_samples": learnt.training_score,
            "first_loss": learnt.first_loss,
            "last_loss": learnt.last_loss,
            "trivial_loss": learnt.trivial_loss,
        },
    )
    return rung, [] if rung.is_passed else build_findings(built, [_explain_failure(learnt, required, asked)])


def _train_on_samples(
    config: RunConfig,
    world: World,
    built: TrainingSetup,
    size: int,
    *,
    is_task: bool,
    asked: FitOptions,
    note: Callable[[str], None],
) -> _TrainingOutcome | None:
    """Train the unchanged recipe on `size` samples; None if a gradient is not finite."""
    part = built.data.train
    order = BatchSampler(indices=part.indices, batch_size=size, seed=config.seed).step_keys(0)[0][0]
    indices = np.array([key.index for key in order], dtype=part.indices.dtype)
    if not is_task:
        steps = 2 * asked.steps
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=steps, steps=steps))
    data = dataclasses.replace(built.data, train=dataclasses.replace(part, indices=indices))
    run = build(config, world, data=data)
    losses: list[float] = []

    def at_step(record: StepRecord, stop_asked: bool) -> bool:
        losses.append(record.losses["total"])
        if record.step % max(1, record.num_steps // _NUM_NOTES) == 0:
            note(f"step {record.step} of {record.num_steps}: loss {losses[-1]:.4g}")
        return False

    try:
        train(run.job, world, at_step)
    except NonFiniteGradientError:
        return None
    held_out_evaluator = dataclasses.replace(
        run.selection_evaluator, indices=_select_spread(run.selection_evaluator.indices), voting_reader=None, votes=1
    )
    training_evaluator = dataclasses.replace(
        held_out_evaluator, reader=evaluation_reader(run), indices=_select_spread(np.sort(indices))
    )
    keys = evaluation_keys(training_evaluator.indices, config.train.batch_size, epoch=0, seed=config.seed)
    constant = fit_constant(run, [training_evaluator.reader(batch_keys) for batch_keys in keys])
    metric, last_losses = config.evaluate.metric, losses[-max(1, len(losses) // _NUM_NOTES) :]
    trivial: Evaluation = held_out_evaluator(constant, world)
    weights = run.job.loss_weights_at(run.job.num_steps)
    constant_evaluation = training_evaluator(constant, world)
    return _TrainingOutcome(
        metric=metric,
        trivial=trivial.metrics[metric],
        held_out=held_out_evaluator(run.job.evaluation_model, world).metrics[metric],
        training_score=training_evaluator(run.job.evaluation_model, world).metrics[metric],
        first_loss=losses[0],
        last_loss=math.fsum(last_losses) / len(last_losses),
        trivial_loss=math.fsum(weights[name] * value for name, value in constant_evaluation.losses.items()),
        steps=len(losses),
        is_higher_better=run.config.evaluate.mode == "max",
    )


def _select_spread(indices: np.ndarray) -> np.ndarray:
    """Select at most `HELD_OUT` indices, evenly spaced."""
    if len(indices) <= HELD_OUT:
        return indices
    selected: np.ndarray = indices[np.linspace(0, len(indices) - 1, HELD_OUT).astype(np.int64)]
    return selected


def _explain_failure(learnt: _TrainingOutcome, required: float, asked: FitOptions) -> Fault:
    """Explain a failed rung: no training progress, a loss in evaluation, or no generalisation."""
    training_closeness = learnt.closeness(learnt.training_score)
    measured = (
        f"loss {learnt.first_loss:.4g} -> {learnt.last_loss:.4g} (constant prediction {learnt.trivial_loss:.4g}); "
        f"{learnt.metric} {learnt.training_score:.4g} of training and {learnt.held_out:.4g} of held-out samples "
        f"(constant prediction {learnt.trivial:.4g})"
    )
    if not learnt.last_loss < 0.9 * learnt.trivial_loss:
        causes, summary = ("optim.lr", "data.label_mapping", "optim.scheduler"), "training did not get below a constant"
        action = f"try more steps (--steps {4 * asked.steps}); then check the rate, then the targets"
        path = "optimizer.lr"
    elif training_closeness < required:
        causes = ("model.norm_mode", "data.augment_target_mismatch", "eval.mode")
        summary = "the training samples are learnt, but evaluation does not reproduce it"
        action = "compare training and evaluation: running statistics of batch norm, and both lists of transforms"
        path = "transforms.evaluate"
    else:
        causes = ("data.sampling", "data.split", "data.normalisation")
        summary = "the training samples are learnt, but others are not"
        action = "take more samples on this rung; else see whether both parts are alike (`sightline check`)"
        path = "data"
    return Fault(
        severity="warning",
        summary=summary,
        causes=causes,
        at=path,
        measured=measured,
        expected=f"{required:g} of the way from the constant prediction to the perfect one, on held-out samples",
        action=action,
    )


def rung_document(rung: Rung) -> dict[str, Any]:
    """Convert a rung to JSON."""
    figures = {name: None if math.isnan(value) else value for name, value in rung.figures.items()}
    return {**dataclasses.asdict(rung), "figures": figures}


@dataclass(frozen=True)
class FittedVariant:
    """Recipe with overrides and the result of its fit; `followed` is set if its config has expectations."""

    overrides: tuple[str, ...]
    parameters: int
    result: FitResult
    followed: LayerTrace | None = None

    @property
    def is_fitted(self) -> bool:
        """True if the variant fitted the samples and met the expectations of its config."""
        return self.result.is_fitted and (
            self.followed is None or all(expectation.is_met for expectation in self.followed.met)
        )

    @property
    def name(self) -> str:
        return " ".join(self.overrides)


def parse_variants(varied: Sequence[str]) -> list[tuple[str, ...]]:
    """Parse `key=value,value` options to the cross product of overrides. Commas in brackets belong to a value.

    Raises UserError for an option without values.
    """
    overrides_by_option: list[list[str]] = []
    for text in varied:
        key, equals, values = text.partition("=")
        split = split_values(values)
        if not equals or not key or not all(split):
            raise UserError(f"--vary {text}: give key=value,value, as --vary model.shortcuts=true,false")
        overrides_by_option.append([f"{key}={value}" for value in split])
    keys = [text.partition("=")[0] for text in varied]
    if len(set(keys)) < len(keys):
        raise UserError(f"--vary {varied[-1]}: the key is varied twice; name all its values at once")
    return [tuple(overrides) for overrides in itertools.product(*overrides_by_option)]


def fit_variants(
    variants: Iterable[tuple[tuple[str, ...], Callable[[], TrainingSetup]]],
    asked: FitOptions,
    note: Callable[[str], None],
) -> list[FittedVariant]:
    """Fit every variant with its own optimiser, from the same seed and on the same samples.

    Raises UserError if a variant trains on other samples than the first one.
    """
    fitted: list[FittedVariant] = []
    for overrides, build_variant in variants:
        note(f"variant {' '.join(overrides)}")
        built = build_variant()
        result = fit_one(built, asked, note)
        if fitted and result.samples.indices != fitted[0].result.samples.indices:
            if len(result.samples.indices) != len(fitted[0].result.samples.indices):
                raise UserError("--vary: variants need different numbers of samples; give --samples")
            raise UserError(f"--vary: {' '.join(overrides)} changes which samples are fitted; vary something else")
        parameters = sum(weight_sizes(built.job.model).values())
        followed = trace_fit(built, asked) if built.config.expect and result.probe is not None else None
        fitted.append(FittedVariant(overrides, parameters, result, followed))
    return fitted
