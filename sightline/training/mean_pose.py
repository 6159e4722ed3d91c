"""Baseline error of a pose prediction without images: the mean training pose around the reference point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sightline.contract.types import Batch, SampleKey
from sightline.engine.run_data import Data, DataSubset

_MAX_SAMPLES = 1000
_CHUNK_SIZE = 16
_REQUIRED_FIELDS = frozenset({"joints", "visible", "reference"})


def mean_pose_error_mm(part: DataSubset, data: Data) -> float | None:
    """Compute the mean distance in mm of the joints of `part` from the mean pose around their reference points.

    The mean pose is computed on up to 1,000 evenly spaced frames of the training split, the error on as many of `part`.
    None for a data set without joints and reference points.
    """
    if not set(part.dataset.info.fields) >= _REQUIRED_FIELDS:
        return None
    total, count = 0.0, 0.0
    for batch in _read_batches(data.train):
        shown = batch["visible"].double()[..., None]
        total = total + ((batch["joints"].double() - _reference(batch)) * shown).sum(dim=0)
        count = count + shown.sum(dim=0)
    pose = total / torch.as_tensor(count).clamp_min(1)
    errors = [
        (batch["joints"].double() - _reference(batch) - pose).norm(dim=-1)[batch["visible"].bool()]
        for batch in _read_batches(part)
    ]
    return float(torch.cat(errors).mean())


def pose_baselines(part: DataSubset, data: Data) -> dict[str, Any]:
    """Return `yardsticks` for an evaluation's document: the error of the mean pose; empty without joints."""
    error_mm = mean_pose_error_mm(part, data)
    if error_mm is None:
        return {}
    return {"yardsticks": {"mean_error_mm": {"the mean pose of the training part": error_mm}}}


def _reference(batch: Batch) -> Tensor:
    return batch["reference"].double()[:, None]


def _read_batches(part: DataSubset) -> Iterator[Batch]:
    """Iterate over batches of evenly spaced raw samples of a subset."""
    chosen = part.evenly_spaced_indices(_MAX_SAMPLES)
    for start in range(0, len(chosen), _CHUNK_SIZE):
        keys = [SampleKey(int(index), 0, 0) for index in chosen[start : start + _CHUNK_SIZE]]
        get_batch = part.dataset.get_batch
        if get_batch is not None:
            yield get_batch(keys)
            continue
        samples = [part.dataset[key] for key in keys]
        yield {name: torch.stack([torch.as_tensor(sample[name]) for sample in samples]) for name in _REQUIRED_FIELDS}
