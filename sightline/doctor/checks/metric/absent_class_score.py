"""Metrics that do not give perfect predictions the best score, as where an absent class is scored 0.

The labels themselves serve as predictions, once with every class there and once with a single one: where only the
second score falls short of 1, the metric scores classes that neither labels nor predictions have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from sightline.doctor.checks.metric.synthetic_predictions import (
    PredictionMaker,
    SyntheticBatch,
    can_score,
    maker_of,
    name_of_metric,
    score_metric,
)
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.engine.evaluate import BoundMetric
from sightline.optional_members import MetricMembers

__all__ = ["absent_class_score"]

_BEST_IS_ONE = re.compile(r"(^|[_\W])(m?iou|accuracy|acc|precision|recall|dice|f1)([_\W]|$)", re.IGNORECASE)
_ROUNDING = 1e-6  # means of a thousand float32 ones stay nearer to 1
_MOST_SHEETS = 64


@check("G16", "absent-class-score", "preflight")
def absent_class_score(context: Context) -> list[Finding]:
    """Each figure named for an IoU, an accuracy, a precision or a recall is 1 (or NaN) for perfect predictions."""
    maker = maker_of(context)
    if maker is None:
        return []
    sparse, full = _with_one_class(maker), _with_every_class(maker)
    meters = [meter for meter in context.built.selection_evaluator.metrics if can_score(context, meter)]
    return [finding for meter in meters if full for finding in _of_meter(context, meter, sparse, full)]


def _of_meter(
    context: Context, meter: BoundMetric, sparse: list[SyntheticBatch], full: list[SyntheticBatch]
) -> Iterator[Finding]:
    try:
        alone = score_metric(context, meter, sparse)
        whole = score_metric(context, meter, full)
    except Exception:  # noqa: BLE001 - `per-batch-metric` reports why a metric fails
        return
    short = {name: value for name, value in whole.items() if _falls_short(name, value)}
    if short:
        yield _of_all(context, meter, short)
        return
    if MetricMembers.scores_absent_zero.get(meter.metric):
        return  # by the protocol, as the config asks for
    absent = {name: value for name, value in alone.items() if _falls_short(name, value)}
    if absent:
        yield _of_absent(context, meter, absent, whole)


def _falls_short(name: str, value: float) -> bool:
    return _BEST_IS_ONE.search(name) is not None and not math.isnan(value) and value < 1 - _ROUNDING


def _with_one_class(maker: PredictionMaker) -> list[SyntheticBatch]:
    """Samples of the category with the most parts, every target its first part; or of the first class."""
    richest = max(range(len(maker.choices)), key=lambda category: len(maker.choices[category]))

    def labels(rank: int, size: int, category: int) -> list[int]:
        return [maker.choices[category][0]] * size

    ranks = range(maker.num_samples)
    return [maker.sheet(list(ranks), labels, category_of=lambda rank: richest, wrong=False)]


def _with_every_class(maker: PredictionMaker) -> list[SyntheticBatch]:
    """As many batches as it takes until each class, and each category, has occurred; none where too few targets fit."""
    seen: set[int] = set()
    categories: set[int] = set()
    sheets: list[SyntheticBatch] = []
    given = 0

    def category_of(rank: int) -> int:
        return rank % len(maker.choices)

    def labels(rank: int, size: int, category: int) -> list[int]:
        nonlocal given
        own = maker.choices[category]
        start = 0 if len(maker.choices) > 1 else given
        given += size
        found = [own[(start + place) % len(own)] for place in range(size)]
        seen.update(found)
        categories.add(category)
        return found

    wanted = {label for own in maker.choices for label in own}
    is_of_parts = len(maker.choices) > 1
    while (len(categories) < len(maker.choices) if is_of_parts else seen < wanted) and len(sheets) < _MOST_SHEETS:
        first = len(sheets) * maker.num_samples
        ranks = list(range(first, first + maker.num_samples))
        sheets.append(maker.sheet(ranks, labels, category_of=category_of, wrong=False))
    return sheets if seen >= wanted else []


def _of_absent(context: Context, meter: BoundMetric, absent: dict[str, float], whole: dict[str, float]) -> Finding:
    called, path = name_of_metric(context, meter)
    name = next(iter(absent))
    return absent_class_score.finding(
        context,
        f"'{name}' of the metric '{called}' scores classes that neither labels nor predictions have",
        causes=("eval.absent_class", "eval.protocol", "eval.decode"),
        at=path,
        measured=f"{_listed(absent)} for perfect predictions with a single class; {whole.get(name, math.nan):.6g} "
        "with every class",
        expected="1 for perfect predictions, for any set of classes",
        action="count a part that both lack as 1 (shapes with parts), or leave the class out of the mean (scenes); "
        "never as 0",
        evidence={"figures": absent, "looked_at": "made predictions"},
    )


def _of_all(context: Context, meter: BoundMetric, short: dict[str, float]) -> Finding:
    called, path = name_of_metric(context, meter)
    name = next(iter(short))
    return absent_class_score.finding(
        context,
        f"'{name}' of the metric '{called}' is below 1 for perfect predictions",
        causes=("eval.decode", "eval.protocol", "eval.aggregation", "eval.absent_class"),
        at=path,
        measured=f"{_listed(short)} for predictions equal to the labels, with every class among them",
        expected="1, the best score",
        action="look at how the metric takes the prediction (argmax over the classes), and at its divisor",
        evidence={"figures": short, "looked_at": "made predictions"},
    )


def _listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in _first(figures))


def _first(figures: dict[str, float]) -> Sequence[tuple[str, float]]:
    return list(figures.items())[:3]
