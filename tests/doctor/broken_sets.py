"""Runs whose set does not hold what it promises: the code that says so, its cause, and how the run is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sightline.engine.build import TrainingSetup
from tests.doctor.planting import Wrapped, make, with_data
from tests.doctor.segmenting import Edited, Joined, make_rooms


def _take(built: TrainingSetup, *indices: int) -> TrainingSetup:
    """Leave the samples of these indices to the part that chooses the checkpoint."""
    part = dataclasses.replace(built.data.selection, indices=np.array(indices, dtype=np.int64))
    return dataclasses.replace(built, data=dataclasses.replace(built.data, selection=part))


def _drop_label(sample: dict[str, Any], index: int) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if name != "label" or index % 2}


BROKEN: dict[str, tuple[str, str, Callable[[Path], TrainingSetup]]] = {
    "no samples": ("empty-loader", "data.empty_loader", lambda folder: _take(make(folder))),
    "samples that the set has not": ("empty-loader", "data.empty_loader", lambda folder: _take(make(folder), 3, 999)),
    "two classes of one name": (
        "class-names",
        "data.label_mapping",
        lambda folder: with_data(make(folder), lambda d: Wrapped(d, lambda b, k: b, facts={"class_names": ["a"] * 12})),
    ),
    "offsets that do not end at N": (
        "broken-offsets",
        "data.layout",
        lambda folder: make_rooms(folder, lambda d: Joined(d, lambda offsets: offsets.clamp(max=int(offsets[-1]) - 1))),
    ),
    "a cloud without points": (
        "empty-cloud",
        "data.corrupt_sample",
        lambda folder: make_rooms(
            folder,
            lambda d: Edited(d, lambda s, i: {k: v if i != 3 or k == "sample_index" else v[:0] for k, v in s.items()}),
        ),
    ),
    "samples that lack a field": (
        "missing-batch-keys",
        "data.missing_modality",
        lambda folder: make_rooms(folder, lambda d: Edited(d, _drop_label)),
    ),
}
