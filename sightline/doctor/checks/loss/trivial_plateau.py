"""A run whose loss stays at that of a constant prediction: zeros, the mean target, equal probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.checks.loss.trivial_predictors import ConstantBaseline, trivial_predictions
from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import detach_nested, read_batch, step_keys
from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.runs.run_documents import read_lines

__all__ = ["improves", "stays_at", "trivial_plateau"]

_TOLERANCE = 0.02
_FIRST_STEP = 50
_MIN_STEPS = 50
_MAX_DISTANCE = 0.1  # relative to the targets, or of logits over samples: a network that has begun to learn exceeds it
_MIN_GAIN = 0.02


@check(
    "G21",
    "trivial-plateau",
    "offline",
    severity="warning",
    causes=("model.constant_output", "model.activation", "optim.lr", "data.target_encoding"),
)
def trivial_plateau(context: Context) -> list[Finding]:
    """No loss in `metrics.jsonl` ends with fifty or more steps within 2 % of a constant prediction's.

    Finds: A run whose loss stays at that of a constant prediction: zeros, the mean target, equal probabilities.

    It is reported only if the trained model's predictions are still near that constant, and the metric that chooses the
    best checkpoint does not improve: the losses of heat maps stay constant while their peaks move.
    """
    if context.run is None or not (context.run / "metrics.jsonl").is_file() or context.trained_model is None:
        return []
    file = context.run / "metrics.jsonl"
    lines = read_lines(file)
    metric, mode = context.config.evaluate.metric, context.config.evaluate.mode
    if not context.dry_run.is_sound or improves(lines, metric, is_larger_better=mode == "max"):
        return []
    findings: dict[str, Finding] = {}
    for trivial in trivial_predictions(context):
        span = stays_at(lines, trivial.loss, trivial.value)
        if span is not None and trivial.loss not in findings:
            distance = _measure_distance(context, trivial)
            if distance is not None and distance < _MAX_DISTANCE:
                findings[trivial.loss] = _finding_plateau(context, trivial, span, distance, file)
    return list(findings.values())


def stays_at(lines: Sequence[Mapping[str, Any]], loss: str, value: float) -> tuple[int, int, float] | None:
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


def improves(lines: Sequence[Mapping[str, Any]], metric: str, *, is_larger_better: bool) -> bool:
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
    outputs: list[Any] = []
    handle = model.register_forward_hook(lambda module, inputs, result: outputs.append(detach_nested(result)))
    try:
        with torch.no_grad():
            job.task.predict(model, batch)
    finally:
        handle.remove()
    output = outputs[-1].get(trivial.output_key) if outputs and isinstance(outputs[-1], Mapping) else None
    if not isinstance(output, Tensor):
        return None
    squares = context.squared_losses.get(trivial.loss)
    if squares is None or trivial.prediction is None:
        return float((output - output.mean(dim=0, keepdim=True)).double().std(correction=0))
    size = float((squares.target - trivial.prediction).abs().max())
    return float((output.double() - trivial.prediction).abs().max()) / size if size > 0 else None


def _finding_plateau(
    context: Context, trivial: ConstantBaseline, plateau: tuple[int, int, float], distance: float, file: Path
) -> Finding:
    first, last, measured = plateau
    return trivial_plateau.finding(
        FindingLocation(file=str(file), step=last, config_path=context.loss_path(trivial.loss)),
        f"'{trivial.loss}' stays at the loss of a constant prediction ({trivial.description}): nothing was learnt",
        measured=f"{measured:.4e} over steps {first} to {last}; the predictions differ from the constant "
        f"by {distance:.2g}",
        expected=f"well below {trivial.value:.4e}, by the targets",
        action="`sightline check --deep` on the config: last activation, dead units, gradients; then the learning rate",
        evidence={"trivial": trivial.value, "measured": measured},
    )
