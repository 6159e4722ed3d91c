"""Metrics whose values depend on the split of the samples into batches, such as a mean of batches.

The same predictions are scored as one batch and as two; a metric of sums and counts gives the same values. Synthetic
predictions are scored if the task predicts from logits, the model's own of a few evaluated samples for every task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sightline.doctor.checks.metric.synthetic_predictions import (
    Predicted,
    PredictionMaker,
    SyntheticBatch,
    build_prediction_maker,
    can_score,
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

_MIN_EVALUATED = 2
_MIN_SAMPLES = 3  # two samples only split evenly; a step with fewer gives the form of one of them twice


@check("G16", "per-batch-metric", "preflight")
def per_batch_metric(context: Context) -> list[Finding]:
    """Each value is the same for one batch and for two with the same predictions, and follows from the state alone.

    Finds: Metrics whose values depend on the split of the samples into batches, such as a mean of batches.
    """
    maker = build_prediction_maker(context)
    findings: list[Finding] = []
    for meter in context.built.selection_evaluator.metrics:
        synthetic = (
            _synthetic_findings(context, meter, maker) if maker is not None and can_score(context, meter) else []
        )
        findings += synthetic or _model_findings(context, meter)
    return findings


def _synthetic_findings(context: Context, meter: BoundMetric, maker: PredictionMaker) -> list[Finding]:
    """Compare synthetic predictions, some of them wrong, as one batch and as two uneven ones."""
    ranks = list(range(max(_MIN_SAMPLES, maker.num_samples)))
    try:
        joint, split = (
            task_predictions(context, _make_batches(maker, *parts)) for parts in ([ranks], [ranks[:1], ranks[1:]])
        )
        return _metric_findings(context, meter, joint, [split], "synthetic predictions")
    except Exception as error:  # noqa: BLE001 - whatever a metric raises, it would end the first evaluation
        return [_finding_failure(context, meter, error)]


def _model_findings(context: Context, meter: BoundMetric) -> list[Finding]:
    """Compare the model's predictions of a few evaluated samples as one batch and as two.

    If the evaluation fails, `first-evaluation` reports it.
    """
    dry = next(iter(context.dry_evaluations), None)
    if dry is None or dry.failure is not None or len(dry.batch.get("sample_index", ())) < _MIN_EVALUATED:
        return []
    ranks = list(range(len(dry.keys)))
    half = len(ranks) // 2
    try:
        joint, *splits = (
            [row for part in split if (row := dry.rows(part, meter.update.names)) is not None]
            for split in ([ranks], [ranks[:1], ranks[1:]], [ranks[:half], ranks[half:]])
        )
        return _metric_findings(context, meter, joint, splits, "predictions") if joint else []
    except Exception as error:  # noqa: BLE001 - as above: an evaluation may end with a batch of one sample
        return [_finding_failure(context, meter, error)]


def _make_batches(maker: PredictionMaker, *batches: list[int]) -> list[SyntheticBatch]:
    """Make batches of these ranks, partly predicted wrongly, regardless of the split."""

    def choose_labels(rank: int, size: int, category: int) -> list[int]:
        choices = maker.choices[category]
        return [choices[(rank + offset) % len(choices)] for offset in range(size)]

    def get_category(rank: int) -> int:
        return rank % len(maker.choices)

    return [maker.make_batch(batch, choose_labels, get_category=get_category, wrong=True) for batch in batches]


def _metric_findings(
    context: Context, meter: BoundMetric, joint: Sequence[Predicted], splits: Sequence[Sequence[Predicted]], kind: str
) -> list[Finding]:
    joint_values = metric_values(meter, joint)
    missed = {name: (value, joint_values.other.get(name)) for name, value in joint_values.used.items()}
    missed = {name: pair for name, pair in missed.items() if not _are_equal(*pair)}
    if missed:
        return [_finding_own_state(context, meter, missed)]
    by_definition = MetricMembers.within_batch.get(meter.metric)
    for split in splits:
        apart = metric_values(meter, split).used
        pairs = {
            name: (value, apart[name])
            for name, value in joint_values.used.items()
            if name in apart and name not in by_definition
        }
        differing = {name: pair for name, pair in pairs.items() if not _are_equal(*pair)}
        if differing:
            return [
                _finding_difference(context, meter, differing, [len(batch["sample_index"]) for batch, _ in split], kind)
            ]
    return []


def _are_equal(one: float, other: float | None) -> bool:
    if other is None:
        return False
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _finding_difference(
    context: Context, meter: BoundMetric, differing: dict[str, tuple[float, float]], sizes: Sequence[int], kind: str
) -> Finding:
    metric_name, path = name_of_metric(context, meter)
    return per_batch_metric.finding(
        context,
        f"'{next(iter(differing))}' of the metric '{metric_name}' depends on the split of the samples into batches",
        causes=("eval.aggregation", "eval.protocol", "eval.mode"),
        at=path,
        measured=f"{sum(sizes)} samples as one batch, and the same {kind} as batches of {sizes[0]} and {sizes[1]}: "
        + ", ".join(f"{name} {one:.6g} and {other:.6g}" for name, (one, other) in list(differing.items())[:3]),
        expected="the same value for every split: counts summed over all samples, divided once in `compute`",
        action="keep counts, or a row for each sample, in the state, and take no mean in `update`",
        evidence={
            "field": path,
            "figures": {name: list(pair) for name, pair in differing.items()},
            "looked_at": kind,
        },
    )


def _finding_own_state(context: Context, meter: BoundMetric, missed: dict[str, tuple[float, float | None]]) -> Finding:
    metric_name, path = name_of_metric(context, meter)
    listed = [
        f"{name} {one:.6g} and {'nothing' if other is None else format(other, '.6g')}"
        for name, (one, other) in missed.items()
    ]
    return per_batch_metric.finding(
        context,
        f"'{next(iter(missed))}' of the metric '{metric_name}' does not follow from its state alone",
        causes=("eval.aggregation", "eval.protocol"),
        at=path,
        measured=f"from the object that was updated, and from another with the same state: {', '.join(listed[:3])}",
        expected="the same value: `compute` runs on the sum of the states of all processes, once per evaluation",
        action="keep what `update` puts on the object in the state: int64 counts, or a row for each sample",
        evidence={"field": path},
    )


def _finding_failure(context: Context, meter: BoundMetric, error: Exception) -> Finding:
    metric_name, path = name_of_metric(context, meter)
    file, line = error_location(error)
    return per_batch_metric.finding(
        FindingLocation(file=file, line=line, config_path=path) if file else context.place(path),
        f"the metric '{metric_name}' cannot be computed: {type(error).__name__}",
        causes=("eval.protocol", "cfg.contract", "eval.decode"),
        measured=summarise_error(error),
        expected="values for predictions in the form of a training batch",
        action="correct the metric: the first evaluation would end the run",
        evidence={"field": path, "looked_at": "synthetic predictions"},
    )
