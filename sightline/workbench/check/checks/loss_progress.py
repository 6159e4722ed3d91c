"""Checks of the loss during training: divergence, chance, plateaus of trivial predictors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.doctor.finding import Finding, FindingLocation
from sightline.instrument import record
from sightline.parts.losses.embeddings import CHANCE_SUFFIX
from sightline.runs.run_directory import read_lines
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.dry_run import read_batch, step_keys
from sightline.workbench.check.core.finding import Fault, diagnose
from sightline.workbench.check.core.sample_statistics import class_axis
from sightline.workbench.check.oracles.derivatives import SquaredErrorLoss
from sightline.workbench.check.oracles.results import loss_counts, loss_sums

_diagnose = partial(diagnose, __file__)
_MIN_CHANCE_STEPS = 100
_MIN_SLOW_STEPS = 300  # a cross-modal loss was seen at 0.955 of chance after 128 steps
_PARTS_OF_RUN = 4
_MAX_SHARE_OF_CHANCE = 0.9
_MIN_DECREASE = 0.05
_COLLAPSE_TOLERANCE = 0.005

Lines = Sequence[Mapping[str, Any]]


@check(
    "loss-at-chance",
    "offline",
    severity="warning",
    action="check which objects are paired (`sightline view`), then the learning rate, then the inputs of the loss",
)
def loss_at_chance(context: Context) -> list[Finding]:
    """Each loss's share of ln(2M - 1) in the last quarter of `metrics.jsonl` is well below 1.

    Finds: A run that ends with a contrastive loss at chance: nothing was learnt.
    """
    return [finding for file, lines in logs(context) for finding in at_chance(lines, file=file)]


def logs(context: Context) -> Iterator[tuple[Path, Lines]]:
    """List the log of the run's figures, if it has one, with its lines."""
    file = None if context.run is None else context.run / "metrics.jsonl"
    if file is not None and file.is_file():
        yield file, read_lines(file)


def at_chance(lines: Lines, *, file: Path) -> list[Finding]:
    """Return findings on the training lines of a run; runs of fewer than a hundred steps are not judged.

    A share of exactly 1 is a network with the same output for all samples; a share of nearly 1 that has not fallen in
    three hundred steps is a network that learns nothing.
    """
    trained = [line for line in lines if line.get("split") == "train"]
    if not trained or trained[-1]["step"] < _MIN_CHANCE_STEPS:
        return []
    names = [key.removesuffix(CHANCE_SUFFIX) for key in trained[-1] if key.endswith(CHANCE_SUFFIX)]
    return [loss_at_chance.build(fault) for name in names for fault in _chance_faults(trained, name, file)]


def _chance_faults(lines: Lines, name: str, file: Path) -> Iterator[Fault]:
    num_lines = max(1, len(lines) // _PARTS_OF_RUN)
    first_share, last_share = _mean_loss(lines[:num_lines], name), _mean_loss(lines[-num_lines:], name)
    is_collapsed = abs(last_share - 1) <= _COLLAPSE_TOLERANCE
    final = lines[-1]
    is_slow = (
        last_share >= _MAX_SHARE_OF_CHANCE
        and first_share - last_share < _MIN_DECREASE
        and final["step"] >= _MIN_SLOW_STEPS
    )
    if not is_collapsed and not is_slow:
        return
    chance, num_negatives = final.get("chance"), final.get("negatives")
    stated = "" if chance is None else f"; chance is {chance:.4f} with {num_negatives:g} negatives"
    words = {"name": name, "last_lines": num_lines, "lines": len(lines), "first": first_share, "last": last_share}
    yield _diagnose(
        "one output" if is_collapsed else "nothing learnt",
        where=FindingLocation(file=str(file), step=final["step"]),
        most=_MAX_SHARE_OF_CHANCE,
        stated=stated,
        evidence={"first": first_share, "last": last_share, "lines": len(lines)},
        **words,
    )


def _mean_loss(lines: Lines, name: str) -> float:
    """Return the mean share of chance of a loss over the lines that have it; NaN if none has."""
    values = [line[name + CHANCE_SUFFIX] for line in lines if line.get(name + CHANCE_SUFFIX) is not None]
    return math.fsum(values) / len(values) if values else math.nan


_MIN_SHARE = 1e-6


@dataclass(frozen=True)
class ConstantBaseline:
    """A constant prediction: its description, its loss, and the key of its output."""

    loss: str
    description: str
    value: float
    output_key: str
    prediction: float | None = None


def trivial_predictions(context: Context) -> Iterator[ConstantBaseline]:
    """Yield all constant predictions whose losses are known for this run."""
    for name, squares in context.squared_losses.items():
        yield from squared_loss_baselines(name, squares)
    for name in _cross_entropies(context):
        yield from _class_baselines(context, name)


def _cross_entropies(context: Context) -> list[str]:
    names = [component.name for component in context.config.losses if component.name == "cross_entropy"]
    return names if context.dry_run.is_sound else []


def squared_loss_baselines(name: str, squares: SquaredErrorLoss) -> Iterator[ConstantBaseline]:
    """Yield the baselines 0 and mean target of a squared error; none for a penalty, whose target is 0."""
    if squares.zero == 0:
        return
    yield ConstantBaseline(name, "0 everywhere", squares.zero, squares.output_key, 0.0)
    description = f"the mean target {squares.middle:.4g} everywhere"
    yield ConstantBaseline(name, description, squares.constant_baseline, squares.output_key, squares.middle)


def _class_baselines(context: Context, name: str) -> Iterator[ConstantBaseline]:
    census = next((counts for counts in context.class_counts if counts is not None and counts.split == "train"), None)
    logits, label = context.dry_run.seen_outputs.get("logits"), context.dry_run.batch.get("label")
    if census is None or not census.targets.sum() or not isinstance(logits, Tensor) or not isinstance(label, Tensor):
        return
    axis = class_axis(logits, label)
    if axis is None or logits.shape[axis] != len(census.targets):
        return
    shares = census.targets / census.targets.sum()
    prior = np.log(np.maximum(shares, _MIN_SHARE))
    predictions = (("all classes equally likely", np.zeros_like(prior)), ("the classes' shares in training", prior))
    for description, prediction in predictions if len(set(shares.tolist())) > 1 else predictions[:1]:
        value = _compute_expected_loss(context, name, axis, torch.from_numpy(prediction), shares)
        if math.isfinite(value):
            yield ConstantBaseline(name, description, value, "logits")


def _compute_expected_loss(context: Context, name: str, axis: int, prediction: Tensor, shares: np.ndarray) -> float:
    """Compute the configured loss of constant logits (C,), with each label as frequent as in training."""
    job, rehearsal = context.built.job, context.dry_run
    logits = rehearsal.seen_outputs["logits"]
    shape = [1] * logits.ndim
    shape[axis] = -1
    outputs = {**rehearsal.seen_outputs, "logits": prediction.to(logits.device).view(shape).expand(logits.shape)}
    total, count = 0.0, 0.0
    for number, share in enumerate(shares.tolist()):
        if share > 0:
            batch = {**rehearsal.batch, "label": torch.full_like(rehearsal.batch["label"], number)}
            with torch.no_grad():
                total += share * float(loss_sums(job, batch, outputs)[name])
                count += share * loss_counts(job, batch, outputs)[name]
    return total / count if count else math.nan


_TOLERANCE = 0.02
_FIRST_STEP = 50
_MIN_STEPS = 50
_MAX_DISTANCE = 0.1  # relative to the targets, or of logits over samples: a network that has begun to learn exceeds it
_MIN_GAIN = 0.02


@check(
    "trivial-plateau",
    "offline",
    each=logs,
    severity="warning",
    causes=("model.constant_output", "model.activation", "optim.lr", "data.target_encoding"),
    action="`sightline check --deep` on the config: last activation, dead units, gradients; then the learning rate",
)
def trivial_plateau(context: Context, log: tuple[Path, Lines]) -> Iterator[Fault]:
    """No loss in `metrics.jsonl` ends with fifty or more steps within 2 % of a constant prediction's.

    Finds: A run whose loss stays at that of a constant prediction: zeros, the mean target, equal probabilities.

    It is reported only if the trained model's predictions are still near that constant, and the metric that chooses the
    best checkpoint does not improve: the losses of heat maps stay constant while their peaks move.
    """
    file, lines = log
    metric, mode = context.config.evaluate.metric, context.config.evaluate.mode
    if (
        context.trained_model is None
        or not context.dry_run.is_sound
        or improves(lines, metric, is_larger_better=mode == "max")
    ):
        return
    found: set[str] = set()
    for trivial in trivial_predictions(context):
        span = stays_at(lines, trivial.loss, trivial.value)
        distance = None if span is None or trivial.loss in found else _measure_distance(context, trivial)
        if span is not None and distance is not None and distance < _MAX_DISTANCE:
            first, last, measured = span
            found.add(trivial.loss)
            yield _diagnose(
                "plateau",
                where=FindingLocation(file=str(file), step=last, config_path=context.loss_path(trivial.loss)),
                trivial=trivial,
                loss=measured,
                first=first,
                last=last,
                distance=distance,
                evidence={"trivial": trivial.value, "measured": measured},
            )


def stays_at(lines: Lines, loss: str, value: float) -> tuple[int, int, float] | None:
    """Return the first and last step of a final plateau within 2 % of a value, and its mean; None below 50 steps."""
    trained = [line for line in lines if line.get("split") == "train" and line.get(f"loss/{loss}") is not None]
    plateau: list[tuple[int, float]] = []
    last_step = 0
    for line in trained:
        measured = float(line[f"loss/{loss}"])
        is_near = last_step >= _FIRST_STEP and value > 0 and abs(measured / value - 1) < _TOLERANCE
        plateau = [*plateau, (line["step"] - last_step, measured)] if is_near else []
        last_step = line["step"]
    steps = sum(count for count, _ in plateau)
    if steps < _MIN_STEPS:
        return None
    return last_step - steps, last_step, math.fsum(measured for _, measured in plateau) / len(plateau)


def improves(lines: Lines, metric: str, *, is_larger_better: bool) -> bool:
    """Return True if the second half of the evaluations reaches a better value than the first."""
    values = [float(line[metric]) for line in lines if line.get("split") != "train" and line.get(metric) is not None]
    if len(values) < 2:
        return False
    half = len(values) // 2
    first, last = (max(part) if is_larger_better else min(part) for part in (values[:half], values[half:]))
    gain = last - first if is_larger_better else first - last
    return gain > _MIN_GAIN * max(abs(first), abs(last))


def _measure_distance(context: Context, trivial: ConstantBaseline) -> float | None:
    """Measure the distance of the trained model's outputs from the constant; None if the output is missing.

    It is relative to the targets' size for squared errors, else the standard deviation of the logits over samples.
    """
    job, model = context.built.job, context.trained_model
    assert model is not None, "only for a run that kept a checkpoint"
    batch = read_batch(job, step_keys(job, step=0)[: context.dry_run.num_samples], context.world.device)
    with torch.no_grad(), record({"": model}, keep=("outputs",)) as tape:
        job.task.predict(model, batch)
    outputs = tape.outputs[-1] if tape.outputs else None
    output = outputs.get(trivial.output_key) if isinstance(outputs, Mapping) else None
    if not isinstance(output, Tensor):
        return None
    squares = context.squared_losses.get(trivial.loss)
    if squares is None or trivial.prediction is None:
        return float((output - output.mean(dim=0, keepdim=True)).double().std(correction=0))
    size = float((squares.target - trivial.prediction).abs().max())
    return float((output.double() - trivial.prediction).abs().max()) / size if size > 0 else None


_MAX_RATIO = 1e3
_CLASS_FACTOR, _SQUARES_FACTOR = 0.98, 1.02  # heat maps that learn have losses just below that of zeros for a long time


@check(
    "diverged-loss",
    "offline",
    each=logs,
    severity="warning",
    causes=("optim.lr", "model.numerics", "loss.form"),
    action="lower optimizer.lr by a factor of 10 or more, warm up (schedule.warmup_epochs), or bound the gradient "
    "(train.clip_norm)",
)
def diverged_loss(context: Context, log: tuple[Path, Lines]) -> Iterator[Fault]:
    """The last loss in `metrics.jsonl` is finite, below 1000 times the first and below a constant prediction's.

    Finds: A run whose last loss is 1000 times its first, not finite, or no better than a constant prediction's.
    """
    file, lines = log
    trained = [line for line in lines if line.get("split") == "train"]
    if trained:
        location = FindingLocation(file=str(file), step=trained[-1]["step"], config_path="optimizer.lr")
        for fault in _end_faults(context, lines, trained):
            yield replace(fault, where=location)


def _end_faults(context: Context, lines: Lines, trained: Lines) -> Iterator[Fault]:
    rate = max(group["base_lr"] for group in context.built.job.optimizer.param_groups)
    last_loss, last_step = trained[-1].get("loss/total"), trained[-1]["step"]
    first_loss = trained[0].get("loss/total") if context.first_loss is None else context.first_loss
    if last_loss is None:
        yield _diagnose("not finite", rate=rate, last_step=last_step)
    elif first_loss is not None and abs(last_loss) >= _MAX_RATIO * abs(first_loss) > 0:
        words = {"rate": rate, "first": first_loss, "last": last_loss, "ratio": last_loss / first_loss}
        evidence = {"first": first_loss, "last": last_loss, "lr": rate}
        yield _diagnose("risen", evidence=evidence, most=_MAX_RATIO, **words)
    elif last_step is not None and last_step >= _MIN_STEPS:
        yield from _end_at_chance_faults(context, lines, trained, rate)


def _end_at_chance_faults(context: Context, lines: Lines, trained: Lines, rate: float) -> Iterator[Fault]:
    """Yield a fault if no loss is below its constant prediction's and the selection metric does not improve."""
    metric, mode = context.config.evaluate.metric, context.config.evaluate.mode
    if improves(lines, metric, is_larger_better=mode == "max"):
        return
    last_quarter = trained[-max(1, len(trained) // _PARTS_OF_RUN) :]
    chances = _chance_levels(context)
    means = {name: _mean(last_quarter, name) for name in chances}
    if not chances or not all(means[name] >= share * value for name, (value, share) in chances.items()):
        return
    if trivial_plateau(context):  # it reports the same, and that the predictions are constant
        return
    comparison = ", ".join(
        f"'{name}' {means[name]:.4g} (a constant prediction {chances[name][0]:.4g})" for name in chances
    )
    evidence = {"means": means, "chances": {name: value for name, (value, _) in chances.items()}, "lr": rate}
    words = {"rate": rate, "comparison": comparison, "metric": metric, "lines": len(trained)}
    yield _diagnose("chance", evidence=evidence, last_lines=len(last_quarter), **words)


def _chance_levels(context: Context) -> dict[str, tuple[float, float]]:
    """Map each loss to the loss of a constant prediction and to the factor of it that counts as chance.

    For classes the best constant; for squared errors the worse of zeros and the mean target. Penalties, which have no
    targets, are left out.
    """
    values: dict[str, list[float]] = {}
    for trivial in trivial_predictions(context):
        squares = context.squared_losses.get(trivial.loss)
        if squares is None or squares.target_key is not None:
            values.setdefault(trivial.loss, []).append(trivial.value)
    return {
        name: (max(losses), _SQUARES_FACTOR) if name in context.squared_losses else (min(losses), _CLASS_FACTOR)
        for name, losses in values.items()
    }


def _mean(lines: Lines, name: str) -> float:
    """Return the mean of a loss over the lines; NaN, which no comparison accepts, if a line lacks it."""
    values = [line.get(f"loss/{name}") for line in lines]
    return math.nan if None in values else math.fsum(map(float, values)) / len(values)  # type: ignore[arg-type]
