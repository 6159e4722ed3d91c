"""A run that ends with a loss a thousandfold above its start, infinite, or no better than a constant prediction's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.doctor.checks.loss.trivial_plateau import improves, trivial_plateau
from sightline.doctor.checks.loss.trivial_predictors import trivial_predictions
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.runs.run_documents import read_lines

__all__ = ["diverged_loss"]

_RISEN = 1e3
_FEWEST_STEPS = 50
_SHARE_OF_RUN = 4
_CLASSES, _SQUARES = 0.98, 1.02  # heat maps that learn stay just below the loss of zeros for long

Lines = Sequence[Mapping[str, Any]]


@check(
    "G21",
    "diverged-loss",
    "offline",
    severity="warning",
    causes=("optim.lr", "model.numerics", "loss.form"),
    action="lower optimizer.lr by a factor of 10 or more, warm up (schedule.warmup_epochs), or bound the gradient "
    "(train.clip_norm)",
)
def diverged_loss(context: Context) -> list[Finding]:
    """Of `metrics.jsonl`: the last loss is finite, not a thousand times the first, below that of a constant."""
    if context.run is None or not (context.run / "metrics.jsonl").is_file():
        return []
    file = context.run / "metrics.jsonl"
    lines = read_lines(file)
    trained = [line for line in lines if line.get("split") == "train"]
    return list(_of_end(context, lines, trained, file)) if trained else []


def _of_end(context: Context, lines: Lines, trained: Lines, file: Path) -> Iterator[Finding]:
    rate = max(group["base_lr"] for group in context.built.job.optimizer.param_groups)
    last = trained[-1].get("loss/total")
    start = trained[0].get("loss/total") if context.first_loss is None else context.first_loss
    place = FindingLocation(file=str(file), step=trained[-1]["step"], config_path="optimizer.lr")
    diverged = f"the training diverged at a learning rate of {rate:.3g}"
    if last is None:
        yield diverged_loss.finding(
            place,
            f"{diverged}: its last losses are not finite",
            measured=f"loss/total is null in the line of step {place.step}",
            expected="a finite loss at every step",
        )
    elif start is not None and abs(last) >= _RISEN * abs(start) > 0:
        yield diverged_loss.finding(
            place,
            f"{diverged}: its loss has risen from {start:.4g} to {last:.4g}",
            measured=f"{last / start:.3g} times the first",
            expected=f"a loss that falls; not {_RISEN:,.0f} times the first",
            evidence={"first": start, "last": last, "lr": rate},
        )
    elif place.step is not None and place.step >= _FEWEST_STEPS:
        yield from _of_chance(context, lines, trained, place, rate)


def _of_chance(
    context: Context, lines: Lines, trained: Lines, place: FindingLocation, rate: float
) -> Iterator[Finding]:
    """Every loss whose constant prediction is known is no better than it, and the metric does not improve."""
    metric, mode = context.config.evaluate.metric, context.config.evaluate.mode
    if improves(lines, metric, is_larger_better=mode == "max"):
        return
    quarter = trained[-max(1, len(trained) // _SHARE_OF_RUN) :]
    chances = _chances(context)
    means = {name: _mean(quarter, name) for name in chances}
    if not chances or not all(means[name] >= share * value for name, (value, share) in chances.items()):
        return
    if trivial_plateau(context):  # the same, and the predictions are that constant
        return
    shown = ", ".join(f"'{name}' {means[name]:.4g} (a constant prediction {chances[name][0]:.4g})" for name in chances)
    yield diverged_loss.finding(
        place,
        f"the run ends at chance, at a learning rate of {rate:.3g}: no loss is below that of a constant prediction",
        causes=("optim.lr", "loss.detached", "data.target_encoding"),
        measured=f"{shown} over the last {len(quarter)} of {len(trained)} lines; {metric} does not improve",
        expected="a loss below that of a constant prediction",
        action="lower optimizer.lr by a factor of 10; where that does not help, `sightline fit-one` on the config",
        evidence={"means": means, "chances": {name: value for name, (value, _) in chances.items()}, "lr": rate},
    )


def _chances(context: Context) -> dict[str, tuple[float, float]]:
    """By the name of the loss that of a constant prediction, and the share of it that is chance.

    The best constant of classes; of numbers the worse of zeros and the mean. Penalties, which have no targets, are left
    out.
    """
    values: dict[str, list[float]] = {}
    for trivial in trivial_predictions(context):
        squares = context.squared_losses.get(trivial.loss)
        if squares is None or squares.target_key is not None:
            values.setdefault(trivial.loss, []).append(trivial.value)
    return {
        name: (max(each), _SQUARES) if name in context.squared_losses else (min(each), _CLASSES)
        for name, each in values.items()
    }


def _mean(lines: Lines, name: str) -> float:
    """The mean of a loss over the lines; NaN, which is above nothing, where one of them has none."""
    values = [line.get(f"loss/{name}") for line in lines]
    return math.nan if None in values else math.fsum(map(float, values)) / len(values)  # type: ignore[arg-type]
