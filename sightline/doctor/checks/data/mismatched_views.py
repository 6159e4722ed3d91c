"""Paired views that show different objects, or that depend on the rest of the batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import describe_sample, read_samples
from sightline.numba_kernels import compute_seconds
from sightline.types import Batch, SampleKey

__all__ = ["mismatched_views", "shape_statistics"]

_MAX_SAMPLES = 64
_MIN_OBJECTS = 24
_CHUNK = 16
_MAX_SECONDS = 0.5  # CPU time of this thread
_NUM_READ_ALONE = 4
_TOLERANCE = 1e-4  # of colours and coordinates about 1; exchanged or newly drawn values differ by far more
_PAIRED = ("points", "other_points", "image")
_QUANTILES = np.linspace(0.1, 0.9, 9)
_MIN_SIGMA = 6.0
_MAX_CHANCE_SIGMA = 3.0
_UNIFORM_STD = 12**-0.5
"""Standard deviation of a share that is uniform between 0 and 1."""


class _PairedClouds(NamedTuple):
    """Objects as stored and both of their views, lists of clouds (P, 3), by sample."""

    keys: list[SampleKey]
    raw: list[np.ndarray]
    first: list[np.ndarray]
    second: list[np.ndarray]


@check("G2", "mismatched-views", "preflight", config_path="transforms.train")
def mismatched_views(context: Context) -> list[Finding]:
    """A row read alone equals the same row in a batch, and both of its clouds resemble the row's object.

    Finds: Paired views that show different objects, or that depend on the rest of the batch.

    Shapes are compared by statistics that do not depend on rotation, translation and scale: if one view is
    significantly nearer to its own object than to others and the other view is not, that one shows something else.
    """
    part = context.built.data.train
    if not {"points", "other_points"} <= part.reader.keys or "offsets" in part.reader.keys:
        return []
    try:
        finding = _finding_batch_dependence(context)
        return [finding] if finding is not None else _shape_findings(context, _read_objects(context))
    except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
        return []


def shape_statistics(points: np.ndarray) -> np.ndarray:
    """Compute 12 statistics of a cloud (P, 3), invariant to rotation, translation and scale: spreads, distances."""
    centred = points - points.mean(axis=0)
    distances = np.linalg.norm(centred, axis=1)
    size = np.sqrt((distances**2).mean())
    if not size > 0:
        return np.zeros(3 + len(_QUANTILES))
    spread = np.linalg.svd(centred, compute_uv=False) / (size * np.sqrt(len(points)))
    return np.concatenate([spread, np.quantile(distances, _QUANTILES) / size])


def _finding_batch_dependence(context: Context) -> Finding | None:
    """Find a row whose values read alone differ from those read in a batch."""
    part = context.built.data.train
    keys = [SampleKey(int(index), 0, context.config.seed) for index in part.indices[:_NUM_READ_ALONE]]
    together = part.reader(keys)
    for row, key in enumerate(keys):
        alone = part.reader([key])
        for name in _PAIRED:
            if not isinstance(together.get(name), Tensor) or _is_same_row(alone, together, name, row):
                continue
            match = next((index for index in range(len(keys)) if _is_same_row(alone, together, name, index)), None)
            detail = "has other values" if match is None else f"has the values of row {match} of the batch"
            return _finding_sample(
                context,
                key,
                f"'{name}' of an object depends on what else is in its batch: rows are exchanged",
                causes=("data.pairing", "data.duplicate_randomness"),
                measured=f"read alone, '{name}' {detail}, although the object is in row {row}",
                expected="the same values alone and in any batch",
                action=f"look for what reorders '{name}': a transform or `collate` that shuffles, a shared generator",
                evidence={"field": name},
            )
    return None


def _is_same_row(alone: Batch, together: Batch, name: str, row: int) -> bool:
    """Return True if a row is equal up to rounding: a library may sum a larger batch in another order."""
    single, batched = alone[name][0].double(), together[name][row].double()
    return single.shape == batched.shape and bool(torch.allclose(single, batched, rtol=_TOLERANCE, atol=_TOLERANCE))


def _read_objects(context: Context) -> _PairedClouds:
    """Read consecutive objects, so that views shifted by one row still have their object among them."""
    part = context.built.data.train
    objects = _PairedClouds([], [], [], [])
    started = compute_seconds()
    for start in range(0, min(_MAX_SAMPLES, len(part.indices)), _CHUNK):
        indices = part.indices[start : start + _CHUNK]
        keys = [SampleKey(int(index), 0, context.config.seed) for index in indices]
        batch = part.reader(keys)
        samples = read_samples(part.dataset, keys)
        objects.keys.extend(keys)
        objects.raw.extend(_to_array(sample["points"]) for sample in samples)
        objects.first.extend(map(_to_array, batch["points"]))
        objects.second.extend(map(_to_array, batch["other_points"]))
        if compute_seconds() - started > _MAX_SECONDS:
            break
    return objects


def _shape_findings(context: Context, paired: _PairedClouds) -> list[Finding]:
    if len(paired.keys) < _MIN_OBJECTS or not _are_finite(paired):
        return []
    objects, first, second = (np.stack([shape_statistics(cloud) for cloud in clouds]) for clouds in paired[1:])
    likeness = [_compute_likeness(objects, views) for views in (first, second)]
    error = _UNIFORM_STD / len(objects) ** 0.5
    best, worst = max(likeness), min(likeness)
    if best < 0.5 + _MIN_SIGMA * error or worst > 0.5 + _MAX_CHANCE_SIGMA * error:
        return []
    name = ("points", "other_points")[likeness.index(worst)]
    shift = _find_shift(objects, (first, second)[likeness.index(worst)], min_likeness=0.5 + _MIN_SIGMA * error)
    detail = "" if shift is None else f"; it resembles the objects {abs(shift)} {'on' if shift > 0 else 'back'}"
    return [
        _finding_sample(
            context,
            paired.keys[0],
            f"'{name}' does not show the objects of its rows{detail}",
            severity="warning",
            causes=("data.pairing", "data.augment_target_mismatch"),
            measured=f"this view is nearer to its own object than to {worst:.0%} of the others, the other view than to "
            f"{best:.0%} ({len(objects)} objects)",
            expected=f"similar shares for both views, well above {0.5 + _MAX_CHANCE_SIGMA * error:.0%}: chance is 50%",
            action="make both views of one row from one object: see the transform or data set that gives them",
            evidence={"field": name, "shift": shift},
        )
    ]


def _compute_likeness(objects: np.ndarray, views: np.ndarray) -> float:
    """Compute the mean share of other objects that are farther from a view than its own; 0.5 is chance."""
    distances = _compute_distances(objects, views)
    own_distances = np.diag(distances)[:, None]
    is_other = ~np.eye(len(objects), dtype=bool)
    is_farther = (distances > own_distances) + 0.5 * (distances == own_distances)
    return float((is_farther * is_other).sum() / is_other.sum())


def _find_shift(objects: np.ndarray, views: np.ndarray, *, min_likeness: float) -> int | None:
    """Find the shift, in rows, after which the views resemble the objects; None if no shift does."""
    likeness = {shift: _compute_likeness(objects, np.roll(views, shift, axis=0)) for shift in (-2, -1, 1, 2)}
    best = max(likeness, key=lambda shift: likeness[shift])
    return best if likeness[best] >= min_likeness else None


def _compute_distances(objects: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Compute distances (views, objects) of shape statistics, each in units of its standard deviation."""
    spread = np.maximum(objects.std(axis=0), 1e-6)
    return np.linalg.norm((views[:, None] - objects[None]) / spread, axis=2)


def _are_finite(paired: _PairedClouds) -> bool:
    return all(np.isfinite(cloud).all() for clouds in paired[1:] for cloud in clouds)


def _to_array(points: Any) -> np.ndarray:
    return np.asarray(points, dtype=np.float64)


def _finding_sample(
    context: Context, key: SampleKey, summary: str, *, evidence: dict[str, Any], **fields: Any
) -> Finding:
    sample = describe_sample(context.built.data.train.dataset, key.index)
    evidence = {**evidence, "sample": sample}
    return mismatched_views.finding(context, summary, split="train", sample=key.index, evidence=evidence, **fields)
