"""Guard G16: metrics whose figures depend on how the samples are dealt to batches, such as a mean of batches.

The same answers are scored as one batch and as two of unlike size; a metric of sums and counts gives the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from sightline.checks.answers import Maker, Sheet, can_score, maker_of, name_of_metric, score
from sightline.checks.finding import Finding, Place
from sightline.checks.rehearsal import frame_of
from sightline.checks.suite import Context, check
from sightline.engine.evaluate import Meter

__all__ = ["per_batch_metric"]

CODE = "per-batch-metric"
_TOLERANCE = (
    1e-6  # float32 sums in another order differ by less over the few samples here; a mean of batches by far more
)

_FEWEST_SAMPLES = 3  # of two the only split is even; where a step has fewer, one of them lends its form twice


@check(code=CODE, moment="preflight")
def per_batch_metric(context: Context) -> list[Finding]:
    """Each figure is the same for one batch and for two uneven ones with the same answers."""
    maker = maker_of(context)
    if maker is None:
        return []
    ranks = list(range(max(_FEWEST_SAMPLES, maker.num_samples)))
    whole, dealt = _sheets(maker, ranks), _sheets(maker, ranks[:1], ranks[1:])
    meters = [meter for meter in context.built.selection.meters if can_score(context, meter)]
    return [finding for meter in meters for finding in _of_meter(context, meter, whole, dealt)]


def _sheets(maker: Maker, *batches: list[int]) -> list[Sheet]:
    """The samples of these ranks, partly answered wrongly, whichever batch they are in."""

    def labels(rank: int, size: int, category: int) -> list[int]:
        own = maker.choices[category]
        return [own[(rank + place) % len(own)] for place in range(size)]

    def category(rank: int) -> int:
        return rank % len(maker.choices)

    return [maker.sheet(batch, labels, category_of=category, wrong=True) for batch in batches]


def _of_meter(context: Context, meter: Meter, whole: list[Sheet], dealt: list[Sheet]) -> Iterator[Finding]:
    try:
        together, apart = score(context, meter, whole), score(context, meter, dealt)
    except Exception as error:  # noqa: BLE001 - whatever a metric dies of, it would end the first evaluation
        yield _of_failure(context, meter, error)
        return
    differing = [name for name in together if name in apart and not _are_equal(together[name], apart[name])]
    if differing:
        num_samples = sum(len(sheet.batch["sample_index"]) for sheet in whole)
        yield _of_difference(context, meter, {name: (together[name], apart[name]) for name in differing}, num_samples)


def _are_equal(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _of_difference(
    context: Context, meter: Meter, figures: dict[str, tuple[float, float]], num_samples: int
) -> Finding:
    called, path = name_of_metric(context, meter)
    return Finding(
        guard="G16",
        code=CODE,
        severity="error",
        summary=f"'{next(iter(figures))}' of the metric '{called}' depends on how the samples are dealt to batches",
        cause="eval.aggregation",
        alternatives=("eval.protocol", "eval.mode"),
        where=context.place(path),
        measured=f"{num_samples} samples as one batch, and the same answers as batches of 1 and {num_samples - 1}: "
        + ", ".join(f"{name} {one:.6g} and {other:.6g}" for name, (one, other) in list(figures.items())[:3]),
        expected="the same figure for every split: counts summed over all samples, divided once in `compute`",
        action="keep counts, or a row for each sample, in the state, and take no mean in `update`",
        evidence={"figures": {name: list(pair) for name, pair in figures.items()}, "looked_at": "made answers"},
    )


def _of_failure(context: Context, meter: Meter, error: Exception) -> Finding:
    called, path = name_of_metric(context, meter)
    file, line = frame_of(error)
    told = " ".join(f"{type(error).__name__}: {error}".split())[:400]
    return Finding(
        guard="G16",
        code=CODE,
        severity="error",
        summary=f"the metric '{called}' cannot be computed: {type(error).__name__}",
        cause="eval.protocol",
        alternatives=("cfg.contract", "eval.decode"),
        where=Place(file=file, line=line, config_path=path) if file else context.place(path),
        measured=told,
        expected="figures for answers of the form of a training batch",
        action="mend the metric: the first evaluation would end the run",
        evidence={"looked_at": "made answers"},
    )
