"""A run whose last loss is 1000 times its first, not finite, or no better than a constant prediction's."""

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

_MAX_RATIO = 1e3
_MIN_STEPS = 50
_PARTS_OF_RUN = 4
_CLASS_FACTOR, _SQUARES_FACTOR = 0.98, 1.02  # heat maps that learn have losses just below that of zeros for a long time

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
    """The last loss in `metrics.jsonl` is finite, below 1000 times the first and below a constant prediction's.

    Finds: A run whose last loss is 1000 times its first, not finite, or no better than a constant prediction's.
    """
    if context.run is None or not (context.run / "metrics.jsonl").is_file():
        return []
    file = context.run / "metrics.jsonl"
    lines = read_lines(file)
    trained = [line for line in lines if line.get("split") == "train"]
    return list(_end_findings(context, lines, trained, file)) if trained else []


def _end_findings(context: Context, lines: Lines, trained: Lines, file: Path) -> Iterator[Finding]:
    rate = max(group["base_lr"] for group in context.built.job.optimizer.param_groups)
    last_loss = trained[-1].get("loss/total")
    first_loss = trained[0].get("loss/total") if context.first_loss is None else context.first_loss
    location = FindingLocation(file=str(file), step=trained[-1]["step"], config_path="optimizer.lr")
    diverged = f"the training diverged at a learning rate of {rate:.3g}"
    if last_loss is None:
        yield diverged_loss.finding(
            location,
            f"{diverged}: its last losses are not finite",
            measured=f"loss/total is null in the line of step {location.step}",
            expected="a finite loss at every step",
        )
    elif first_loss is not None and abs(last_loss) >= _MAX_RATIO * abs(first_loss) > 0:
        yield diverged_loss.finding(
            location,
            f"{diverged}: its loss has risen from {first_loss:.4g} to {last_loss:.4g}",
            measured=f"{last_loss / first_loss:.3g} times the first",
            expected=f"a loss that falls; not {_MAX_RATIO:,.0f} times the first",
            evidence={"first": first_loss, "last": last_loss, "lr": rate},
        )
    elif location.step is not None and location.step >= _MIN_STEPS:
        yield from _chance_findings(context, lines, trained, location, rate)


def _chance_findings(
    context: Context, lines: Lines, trained: Lines, location: FindingLocation, rate: float
) -> Iterator[Finding]:
    """Yield a finding if no loss is below its constant prediction's and the selection metric does not improve."""
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
    yield diverged_loss.finding(
        location,
        f"the run ends at chance, at a learning rate of {rate:.3g}: no loss is below that of a constant prediction",
        causes=("optim.lr", "loss.detached", "data.target_encoding"),
        measured=f"{comparison} over the last {len(last_quarter)} of {len(trained)} lines; {metric} does not improve",
        expected="a loss below that of a constant prediction",
        action="lower optimizer.lr by a factor of 10; if that does not help, run `sightline fit-one` on the config",
        evidence={"means": means, "chances": {name: value for name, (value, _) in chances.items()}, "lr": rate},
    )


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
