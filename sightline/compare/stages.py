"""The data of a batch after each transform, in two variants: the first stage that differs is the one to name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.compare.formats import FORMATS
from sightline.compare.layerwise import LayerComparison
from sightline.compare.measure import Deviation, max_abs_difference
from sightline.data.loading.batch_reader import BatchReader
from sightline.pytree import tree_leaves
from sightline.types import SampleKey

__all__ = ["Stages", "compare_stages", "record_stages"]

Stages = list[tuple[str, dict[str, Any]]]
RAW = "(data set)"


def record_stages(reader: BatchReader, keys: Sequence[SampleKey]) -> Stages:
    """The samples as the data set gives them, and after each transform; fields are numbered by sample."""
    stages: dict[int, tuple[str, dict[str, Any]]] = {}
    for number, key in enumerate(keys):
        for place, (name, sample) in enumerate(reader.sample_stages(key)):
            _, fields = stages.setdefault(place, (name, {}))
            fields |= {f"{field}.{number}": value for field, value in sample.items() if isinstance(value, Tensor)}
    return [stages[place] for place in sorted(stages)]


def compare_stages(had: Stages, expected: Stages) -> list[LayerComparison]:
    """A row for each stage up to the first that differs: what follows it only hands the difference on.

    Data is made by the same operations in the same order: values may differ by units in the last place of float32.
    """
    rows: list[LayerComparison] = []
    for place in range(max(len(had), len(expected))):
        names = [stages[place][0] or RAW if place < len(stages) else "nothing" for stages in (had, expected)]
        if names[0] != names[1]:
            note = f"{names[0]} where the other has {names[1]}"
            return [*rows, _row(names[0], "stage", Deviation(float("inf"), 1.0, 1.0, 1, note=note))]
        found = _worst(had[place][1], expected[place][1])
        if found is None:
            continue
        rows.append(_row(names[0], *found))
        if rows[-1].is_guilty:
            break
    return rows


def _worst(had: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[str, Deviation] | None:
    one, other = dict(tree_leaves(dict(had))), dict(tree_leaves(dict(expected)))
    missing = sorted(one.keys() ^ other.keys())
    if missing:
        side = "only here" if missing[0] in one else "missing here"
        return missing[0], Deviation(float("inf"), 1.0, 1.0, 1, note=side)
    found = {name: _deviation(one[name], other[name]) for name in one}
    return max(found.items(), key=lambda item: item[1].ratio) if found else None


def _deviation(had: Tensor, expected: Tensor) -> Deviation:
    if had.shape != expected.shape:
        note = f"shape {tuple(had.shape)} where the other has {tuple(expected.shape)}"
        return Deviation(float("inf"), 1.0, 1.0, expected.numel(), note=note)
    is_real = expected.is_floating_point()
    unit = FORMATS[torch.float32 if is_real else torch.float64].unit_of_largest(expected)
    scale = float(expected.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) if expected.numel() else 0.0
    return Deviation(max_abs_difference(had, expected), unit, scale, expected.numel())


def _row(stage: str, what: str, deviation: Deviation) -> LayerComparison:
    return LayerComparison(stage, "", "data", what, deviation, "float32")
