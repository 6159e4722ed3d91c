"""Metrics in units: predictions that are all off by a known distance must give this distance."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from sightline.contract.pytree import is_float
from sightline.contract.types import Batch
from sightline.workbench.check.checks.synthetic_predictions import metric_values
from sightline.workbench.check.context import Context, JudgedMetric, check, metrics
from sightline.workbench.check.core.finding import Fault

_UNITS = ("mm", "cm", "m", "px")
_DISTANCE = re.compile(r"(mean|median|max|min|error|distance|epe)[a-z_]*_(mm|cm|m|px)$")
_OFFSET, _TOLERANCE = 10.0, 0.01


@check("G42", "metric-unit", "preflight", each=metrics, causes=("eval.coordinate", "eval.protocol"))
def metric_unit(context: Context, metric: JudgedMetric) -> Fault | None:
    """Errors that a metric names in a unit are 10 if all predictions are 10 of it off.

    Finds: Errors in voxels, cells or metres that are printed as millimetres.
    """
    batch = context.dry_run.batch
    pairs = list(_iter_pairs(batch, metric))
    if not pairs:
        return None
    moved: dict[str, Any] = {}
    for name, target in pairs:
        moved[name] = batch[target].clone()
        moved[name][..., 0] += _OFFSET
    try:
        values = metric_values(metric.meter, [(batch, moved)]).used
    except Exception:  # noqa: BLE001 - `per-batch-metric` reports why a metric fails
        return None
    unit = pairs[0][0].rpartition("_")[2]
    figures = {name: value for name, value in values.items() if _DISTANCE.search(name) and name.endswith(f"_{unit}")}
    wrong = {name: value for name, value in figures.items() if abs(value / _OFFSET - 1) > _TOLERANCE}
    if not wrong or len(wrong) < len(figures):
        return None
    name, value = next(iter(wrong.items()))
    return Fault(
        f"'{name}' of the metric '{metric.name}' is not in {unit}{_explain_ratio(context, value / _OFFSET)}",
        value=value,
        bound=_OFFSET,
        measured=f"{', '.join(f'{n} {v:.4g}' for n, v in wrong.items())} for predictions {_OFFSET:g} {unit} off",
        expected=f"{_OFFSET:g}",
        action=f"compute distances of '{pairs[0][0]}', in {unit}: map voxels, cells or pixels of a crop back first",
        evidence={"field": metric.path, "ratio": value / _OFFSET},
    )


def _iter_pairs(batch: Batch, metric: JudgedMetric) -> Iterator[tuple[str, str]]:
    """Yield a metric's predictions with a unit in their names, and the fields of the batch that they predict.

    Without any, or with another prediction, whose values are not known, there are none.
    """
    names = [name for name in metric.meter.update.names if name not in batch]
    pairs = [(name, name.rpartition("_")[0]) for name in names]
    if all(name.endswith(tuple(f"_{unit}" for unit in _UNITS)) and _is_place(batch, of) for name, of in pairs):
        yield from pairs


def _is_place(batch: Batch, name: str) -> bool:
    value = batch.get(name)
    return is_float(value) and value.shape[-1] in (2, 3)


def _explain_ratio(context: Context, ratio: float) -> str:
    """Explain the ratio of a metric to its unit by the cube and the grid of the run, if they do."""
    cube = context.built.data.facts.get("cube_mm")
    volume = context.dry_run.batch.get("volume")
    if isinstance(cube, int | float) and isinstance(volume, Tensor) and ratio > 0:
        for size in (volume.shape[-1], volume.shape[-1] / 2):
            if abs(ratio * cube / size - 1) < _TOLERANCE:
                return f": it is in {'voxels' if size == volume.shape[-1] else 'cells'} of {cube / size:.3g} mm"
    return ""
