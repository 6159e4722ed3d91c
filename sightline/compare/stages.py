"""Comparison of a batch's data after each transform; the first stage that differs is reported."""

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
    """Record the raw samples and the samples after each transform; field names end in the sample's number."""
    stages: dict[int, tuple[str, dict[str, Any]]] = {}
    for number, key in enumerate(keys):
        for index, (name, sample) in enumerate(reader.sample_stages(key)):
            _, fields = stages.setdefault(index, (name, {}))
            fields |= {f"{field}.{number}": value for field, value in sample.items() if isinstance(value, Tensor)}
    return [stages[index] for index in sorted(stages)]


def compare_stages(recorded: Stages, expected: Stages) -> list[LayerComparison]:
    """Compare stage by stage, up to the first that differs: later stages only propagate the difference.

    The same operations in the same order compute the data: values may differ by ulps of float32.
    """
    rows: list[LayerComparison] = []
    for index in range(max(len(recorded), len(expected))):
        names = [stages[index][0] or RAW if index < len(stages) else "nothing" for stages in (recorded, expected)]
        if names[0] != names[1]:
            note = f"{names[0]} where the reference has {names[1]}"
            return [*rows, _make_row(names[0], "stage", Deviation(float("inf"), 1.0, 1.0, 1, note=note))]
        worst = _find_worst(recorded[index][1], expected[index][1])
        if worst is None:
            continue
        rows.append(_make_row(names[0], *worst))
        if rows[-1].is_guilty:
            break
    return rows


def _find_worst(recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[str, Deviation] | None:
    tensors, expected_tensors = dict(tree_leaves(dict(recorded))), dict(tree_leaves(dict(expected)))
    missing = sorted(tensors.keys() ^ expected_tensors.keys())
    if missing:
        side = "only here" if missing[0] in tensors else "missing here"
        return missing[0], Deviation(float("inf"), 1.0, 1.0, 1, note=side)
    deviations = {name: _compute_deviation(tensors[name], expected_tensors[name]) for name in tensors}
    return max(deviations.items(), key=lambda item: item[1].ratio) if deviations else None


def _compute_deviation(recorded: Tensor, expected: Tensor) -> Deviation:
    if recorded.shape != expected.shape:
        note = f"shape {tuple(recorded.shape)}, the reference's is {tuple(expected.shape)}"
        return Deviation(float("inf"), 1.0, 1.0, expected.numel(), note=note)
    is_real = expected.is_floating_point()
    unit = FORMATS[torch.float32 if is_real else torch.float64].unit_of_largest(expected)
    scale = float(expected.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) if expected.numel() else 0.0
    return Deviation(max_abs_difference(recorded, expected), unit, scale, expected.numel())


def _make_row(stage: str, what: str, deviation: Deviation) -> LayerComparison:
    return LayerComparison(stage, "", "data", what, deviation, "float32")
