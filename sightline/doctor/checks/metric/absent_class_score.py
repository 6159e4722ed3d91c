"""Metrics that do not give perfect predictions the best score, for example because absent classes score 0.

The labels serve as predictions, once with every class and once with a single one. If only the second score is below 1,
the metric scores classes that neither labels nor predictions have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from sightline.doctor.checks.metric.synthetic_predictions import (
    PredictionMaker,
    SyntheticBatch,
    build_prediction_maker,
    can_score,
    name_of_metric,
    score_metric,
)
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.engine.evaluate import BoundMetric
from sightline.optional_members import MetricMembers

__all__ = ["absent_class_score"]

_BEST_IS_ONE = re.compile(r"(^|[_\W])(m?iou|accuracy|acc|precision|recall|dice|f1)([_\W]|$)", re.IGNORECASE)
_ROUNDING = 1e-6  # the mean of a thousand float32 ones is nearer to 1
_MAX_BATCHES = 64


@check("G16", "absent-class-score", "preflight")
def absent_class_score(context: Context) -> list[Finding]:
    """Values named after an IoU, accuracy, precision, recall, Dice or F1 are 1 (or NaN) for perfect predictions.

    Finds: Metrics that do not give perfect predictions the best score, for example because absent classes score 0.
    """
    maker = build_prediction_maker(context)
    if maker is None:
        return []
    single, full = _make_one_class_batches(maker), _make_every_class_batches(maker)
    meters = [meter for meter in context.built.selection_evaluator.metrics if can_score(context, meter)]
    return [finding for meter in meters if full for finding in _metric_findings(context, meter, single, full)]


def _metric_findings(
    context: Context, meter: BoundMetric, single: list[SyntheticBatch], full: list[SyntheticBatch]
) -> Iterator[Finding]:
    try:
        single_values = score_metric(context, meter, single)
        full_values = score_metric(context, meter, full)
    except Exception:  # noqa: BLE001 - `per-batch-metric` reports why a metric fails
        return
    below_one = {name: value for name, value in full_values.items() if _falls_short(name, value)}
    if below_one:
        yield _finding_all(context, meter, below_one)
        return
    if MetricMembers.scores_absent_zero.get(meter.metric):
        return  # by the protocol, as the config asks for
    absent = {name: value for name, value in single_values.items() if _falls_short(name, value)}
    if absent:
        yield _finding_absent(context, meter, absent, full_values)


def _falls_short(name: str, value: float) -> bool:
    return _BEST_IS_ONE.search(name) is not None and not math.isnan(value) and value < 1 - _ROUNDING


def _make_one_class_batches(maker: PredictionMaker) -> list[SyntheticBatch]:
    """Make a batch of a single class: the first part of the category with the most parts, or the first class."""
    richest = max(range(len(maker.choices)), key=lambda category: len(maker.choices[category]))

    def choose_labels(rank: int, size: int, category: int) -> list[int]:
        return [maker.choices[category][0]] * size

    ranks = range(maker.num_samples)
    return [maker.make_batch(list(ranks), choose_labels, get_category=lambda rank: richest, wrong=False)]


def _make_every_class_batches(maker: PredictionMaker) -> list[SyntheticBatch]:
    """Make batches until every class and every category has occurred; an empty list if too few targets fit."""
    used: set[int] = set()
    categories: set[int] = set()
    batches: list[SyntheticBatch] = []
    num_targets = 0

    def get_category(rank: int) -> int:
        return rank % len(maker.choices)

    def choose_labels(rank: int, size: int, category: int) -> list[int]:
        nonlocal num_targets
        choices = maker.choices[category]
        start = 0 if len(maker.choices) > 1 else num_targets
        num_targets += size
        labels = [choices[(start + offset) % len(choices)] for offset in range(size)]
        used.update(labels)
        categories.add(category)
        return labels

    wanted = {label for choices in maker.choices for label in choices}
    is_of_parts = len(maker.choices) > 1
    while (len(categories) < len(maker.choices) if is_of_parts else used < wanted) and len(batches) < _MAX_BATCHES:
        first = len(batches) * maker.num_samples
        ranks = list(range(first, first + maker.num_samples))
        batches.append(maker.make_batch(ranks, choose_labels, get_category=get_category, wrong=False))
    return batches if used >= wanted else []


def _finding_absent(
    context: Context, meter: BoundMetric, absent: dict[str, float], full_values: dict[str, float]
) -> Finding:
    metric_name, path = name_of_metric(context, meter)
    name = next(iter(absent))
    return absent_class_score.finding(
        context,
        f"'{name}' of the metric '{metric_name}' scores classes that neither labels nor predictions have",
        causes=("eval.absent_class", "eval.protocol", "eval.decode"),
        at=path,
        measured=f"{_format_values(absent)} for perfect predictions with a single class; "
        f"{full_values.get(name, math.nan):.6g} with every class",
        expected="1 for perfect predictions, for any set of classes",
        action="score a part that both lack as 1 (shapes with parts), or leave the class out of the mean (scenes); "
        "never as 0",
        evidence={"figures": absent, "looked_at": "synthetic predictions"},
    )


def _finding_all(context: Context, meter: BoundMetric, below_one: dict[str, float]) -> Finding:
    metric_name, path = name_of_metric(context, meter)
    name = next(iter(below_one))
    return absent_class_score.finding(
        context,
        f"'{name}' of the metric '{metric_name}' is below 1 for perfect predictions",
        causes=("eval.decode", "eval.protocol", "eval.aggregation", "eval.absent_class"),
        at=path,
        measured=f"{_format_values(below_one)} for predictions equal to the labels, with every class among them",
        expected="1, the best score",
        action="check how the metric derives the prediction (argmax over the classes), and its divisor",
        evidence={"figures": below_one, "looked_at": "synthetic predictions"},
    )


def _format_values(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in _take_first(figures))


def _take_first(figures: dict[str, float]) -> Sequence[tuple[str, float]]:
    return list(figures.items())[:3]
