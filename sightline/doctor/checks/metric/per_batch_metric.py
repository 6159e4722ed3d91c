"""Metrics whose figures depend on how the samples are dealt to batches, such as a mean of batches.

The same predictions are scored as one batch and as two; a metric of sums and counts gives the same figures. Predictions
are made where a task predicts by logits; the model's predictions of a few evaluated samples serve for every task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sightline.doctor.checks.metric.synthetic_predictions import (
    Predicted,
    PredictionMaker,
    SyntheticBatch,
    can_score,
    maker_of,
    metric_values,
    name_of_metric,
    task_predictions,
)
from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import error_location
from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.engine.evaluate import BoundMetric
from sightline.errors import summarise_error
from sightline.optional_members import MetricMembers

__all__ = ["per_batch_metric"]

_TOLERANCE = (
    1e-6  # float32 sums in another order differ by less over the few samples here; a mean of batches by far more
)

_FEWEST_DEALT = 2
_FEWEST_SAMPLES = 3  # of two the only split is even; where a step has fewer, one of them lends its form twice


@check("G16", "per-batch-metric", "preflight")
def per_batch_metric(context: Context) -> list[Finding]:
    """Each figure is the same for one batch and for two with the same predictions, and follows from the state alone."""
    maker = maker_of(context)
    found: list[Finding] = []
    for meter in context.built.selection_evaluator.metrics:
        made = _made(context, meter, maker) if maker is not None and can_score(context, meter) else []
        found += made or _predicted(context, meter)
    return found


def _made(context: Context, meter: BoundMetric, maker: PredictionMaker) -> list[Finding]:
    """Of made predictions, some of them wrong, as one batch and as two uneven ones."""
    ranks = list(range(max(_FEWEST_SAMPLES, maker.num_samples)))
    try:
        whole, dealt = (
            task_predictions(context, _sheets(maker, *parts)) for parts in ([ranks], [ranks[:1], ranks[1:]])
        )
        return _of_meter(context, meter, whole, [dealt], "made predictions")
    except Exception as error:  # noqa: BLE001 - whatever a metric dies of, it would end the first evaluation
        return [_of_failure(context, meter, error)]


def _predicted(context: Context, meter: BoundMetric) -> list[Finding]:
    """Of the model's predictions of a few evaluated samples; where evaluating fails, `first-evaluation` reports it."""
    each = next(iter(context.dry_evaluations), None)
    if each is None or each.failure is not None or len(each.batch.get("sample_index", ())) < _FEWEST_DEALT:
        return []
    ranks = list(range(len(each.keys)))
    half = len(ranks) // 2
    try:
        whole, *dealt = (
            [row for part in split if (row := each.rows(part, meter.update.names)) is not None]
            for split in ([ranks], [ranks[:1], ranks[1:]], [ranks[:half], ranks[half:]])
        )
        return _of_meter(context, meter, whole, dealt, "predictions") if whole else []
    except Exception as error:  # noqa: BLE001 - as above: an evaluation may end with a batch of one sample
        return [_of_failure(context, meter, error)]


def _sheets(maker: PredictionMaker, *batches: list[int]) -> list[SyntheticBatch]:
    """The samples of these ranks, partly predicted wrongly, whichever batch they are in."""

    def labels(rank: int, size: int, category: int) -> list[int]:
        own = maker.choices[category]
        return [own[(rank + place) % len(own)] for place in range(size)]

    def category(rank: int) -> int:
        return rank % len(maker.choices)

    return [maker.sheet(batch, labels, category_of=category, wrong=True) for batch in batches]


def _of_meter(
    context: Context, meter: BoundMetric, whole: Sequence[Predicted], splits: Sequence[Sequence[Predicted]], kind: str
) -> list[Finding]:
    together = metric_values(meter, whole)
    missed = {n: (one, together.other.get(n)) for n, one in together.used.items()}
    missed = {n: pair for n, pair in missed.items() if not _are_equal(*pair)}
    if missed:
        return [_of_own_state(context, meter, missed)]
    by_definition = MetricMembers.within_batch.get(meter.metric)
    for dealt in splits:
        apart = metric_values(meter, dealt).used
        pairs = {n: (one, apart[n]) for n, one in together.used.items() if n in apart and n not in by_definition}
        differing = {n: pair for n, pair in pairs.items() if not _are_equal(*pair)}
        if differing:
            return [_of_difference(context, meter, differing, [len(b["sample_index"]) for b, _ in dealt], kind)]
    return []


def _are_equal(one: float, other: float | None) -> bool:
    if other is None:
        return False
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _of_difference(
    context: Context, meter: BoundMetric, differing: dict[str, tuple[float, float]], sizes: Sequence[int], kind: str
) -> Finding:
    called, path = name_of_metric(context, meter)
    return per_batch_metric.finding(
        context,
        f"'{next(iter(differing))}' of the metric '{called}' depends on the split of the samples into batches",
        causes=("eval.aggregation", "eval.protocol", "eval.mode"),
        at=path,
        measured=f"{sum(sizes)} samples as one batch, and the same {kind} as batches of {sizes[0]} and {sizes[1]}: "
        + ", ".join(f"{name} {one:.6g} and {other:.6g}" for name, (one, other) in list(differing.items())[:3]),
        expected="the same figure for every split: counts summed over all samples, divided once in `compute`",
        action="keep counts, or a row for each sample, in the state, and take no mean in `update`",
        evidence={
            "field": path,
            "figures": {name: list(pair) for name, pair in differing.items()},
            "looked_at": kind,
        },
    )


def _of_own_state(context: Context, meter: BoundMetric, missed: dict[str, tuple[float, float | None]]) -> Finding:
    called, path = name_of_metric(context, meter)
    listed = [
        f"{name} {one:.6g} and {'nothing' if other is None else format(other, '.6g')}"
        for name, (one, other) in missed.items()
    ]
    return per_batch_metric.finding(
        context,
        f"'{next(iter(missed))}' of the metric '{called}' does not follow from its state alone",
        causes=("eval.aggregation", "eval.protocol"),
        at=path,
        measured=f"by the object that was updated, and by another with the same state: {', '.join(listed[:3])}",
        expected="the same figure: `compute` runs on the sum of the states of all processes, once per evaluation",
        action="keep what `update` puts on the object in the state: int64 counts, or a row for each sample",
        evidence={"field": path},
    )


def _of_failure(context: Context, meter: BoundMetric, error: Exception) -> Finding:
    called, path = name_of_metric(context, meter)
    file, line = error_location(error)
    return per_batch_metric.finding(
        FindingLocation(file=file, line=line, config_path=path) if file else context.place(path),
        f"the metric '{called}' cannot be computed: {type(error).__name__}",
        causes=("eval.protocol", "cfg.contract", "eval.decode"),
        measured=summarise_error(error),
        expected="figures for predictions in the form of a training batch",
        action="correct the metric: the first evaluation would end the run",
        evidence={"field": path, "looked_at": "made predictions"},
    )
