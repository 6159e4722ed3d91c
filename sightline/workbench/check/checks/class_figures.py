"""Tables of figures by class: each row follows its class, and a mean is that of its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from sightline.workbench.check.checks.synthetic_predictions import (
    PredictionMaker,
    SyntheticBatch,
    build_prediction_maker,
    can_score,
    repeat_choices,
    score_metric,
)
from sightline.workbench.check.context import Context, JudgedMetric, check, metrics
from sightline.workbench.check.core.finding import Fault

_MIN_CLASSES, _MAX_CLASSES = 3, 16
_MEANS = ("mean", "total", "average")


@check(
    "class-figures",
    "preflight",
    causes=("report.table", "eval.aggregation"),
    expected="figures of a class that follow its predictions, and a mean of the classes that is theirs",
    action="look at how rows and their mean are put together: for a copied name, an index, or a fixed number",
)
def class_figures(context: Context) -> Iterator[Fault]:
    """A figure of a class falls if its targets are predicted wrongly, and the mean over classes is that of the rows.

    Finds: Tables of classes that repeat a row, or whose total is not the mean of their rows.

    Figures of classes are those whose names contain the data set's names of them.
    """
    maker, names = build_prediction_maker(context), context.built.data.facts.get("class_names") or ()
    is_few = _MIN_CLASSES <= len(names) <= _MAX_CLASSES
    if maker is None or maker.has_category or not is_few or len(maker.choices[0]) != len(names):
        return
    for metric in metrics(context):
        if can_score(context, metric.meter):
            yield from _judge_table(context, maker, metric, list(names))


def _judge_table(
    context: Context, maker: PredictionMaker, metric: JudgedMetric, names: Sequence[str]
) -> Iterator[Fault]:
    sheet = _make_sheet(maker)
    sheets = (sheet, *(_make_wrong(maker, sheet, label) for label in maker.choices[0]))
    try:
        plain, *changed = (score_metric(context, metric.meter, [each]) for each in sheets)
    except Exception:  # noqa: BLE001 - `per-batch-metric` reports why a metric fails
        return
    rows = _find_rows(plain, names)
    if rows is None:
        return
    still = [number for number, name in enumerate(rows) if _is_same(changed[number][name], plain[name])]
    for number in still[:1]:
        row = rows[number]
        others = [other for other, values in zip(rows, changed, strict=True) if not _is_same(values[row], plain[row])]
        yield Fault(
            f"the metric '{metric.name}' repeats a row: '{row}' does not follow its class",
            at=metric.path,
            measured=f"{plain[row]:.6g}, whether or not all targets of the class are predicted wrongly; it "
            f"follows {', '.join(others[:2]) or 'no class'}",
        )
    for name in () if still else [name for name in plain if name not in rows and _is_mean(name)]:
        means = [sum(values[row] for row in rows) / len(rows) for values in (plain, *changed)]
        totals = [values[name] for values in (plain, *changed)]
        off = [pair for pair in zip(totals, means, strict=True) if not _is_same(*pair)]
        if off and len(off) == len(means):
            yield Fault(
                f"'{name}' of the metric '{metric.name}' is not the mean of its rows",
                at=metric.path,
                measured=f"{off[0][0]:.6g}, and {off[0][1]:.6g} over the {len(rows)} rows",
            )


def _make_sheet(maker: PredictionMaker) -> SyntheticBatch:
    """Make a batch with every class twice or more, predicted correctly: few samples if each has many targets."""
    classes = maker.choices[0]
    return maker.make_batch(
        range(2 if maker.min_targets >= 2 * len(classes) else 2 * len(classes)),
        lambda rank, size, category: repeat_choices(classes, rank, size),
        get_category=lambda rank: 0,
        wrong=False,
    )


def _make_wrong(maker: PredictionMaker, sheet: SyntheticBatch, label: int) -> SyntheticBatch:
    """Return the batch with the targets of one class predicted wrongly."""
    axis = sheet.logits.ndim + maker.axis
    is_wrong = (sheet.batch["label"] == label).unsqueeze(axis)
    return SyntheticBatch(sheet.batch, torch.where(is_wrong, sheet.logits.roll(1, axis), sheet.logits))


def _find_rows(values: Mapping[str, float], names: Sequence[str]) -> list[str] | None:
    """Find the figure of each class, by names that differ in the class alone; None without such figures."""
    for key in values:
        if names[0] in key:
            rows = [key.replace(names[0], name) for name in names]
            if all(row in values and math.isfinite(values[row]) for row in rows):
                return rows
    return None


def _is_mean(name: str) -> bool:
    return any(word in name.lower() for word in _MEANS)


def _is_same(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(first) and math.isnan(second))
