"""Two views in one row that are of different objects, or that depend on what is read beside them."""

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

_MOST_SAMPLES = 64
_FEWEST = 24
_CHUNK = 16
_MOST_SECONDS = 0.5  # of this thread's own time
_ALONE = 4
_ROUNDING = 1e-4  # of colours and coordinates about 1; what is exchanged, or drawn anew, differs by far more
_PAIRED = ("points", "other_points", "image")
_QUANTILES = np.linspace(0.1, 0.9, 9)
_SURE = 6.0
_LIKE_CHANCE = 3.0
_OF_UNIFORM = 12**-0.5
"""The standard deviation of a share that is uniform between 0 and 1."""


class _Seen(NamedTuple):
    """Objects as the data set has them and both of their views, (N, P, 3) each, by sample."""

    keys: list[SampleKey]
    raw: list[np.ndarray]
    first: list[np.ndarray]
    second: list[np.ndarray]


@check("G2", "mismatched-views", "preflight", config_path="transforms.train")
def mismatched_views(context: Context) -> list[Finding]:
    """A row read alone has the same numbers as among others, and both of its clouds look like the object it is of.

    Looks are compared by what turning, moving and scaling leave: if one of the views is nearer to its own object than
    to others, beyond doubt, and the other one is not at all, that is of something else.
    """
    part = context.built.data.train
    if not {"points", "other_points"} <= part.reader.keys or "offsets" in part.reader.keys:
        return []
    try:
        found = _of_company(context)
        return [found] if found is not None else _of_looks(context, _read(context))
    except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
        return []


def shape_statistics(points: np.ndarray) -> np.ndarray:
    """What of a cloud (P, 3) turning, moving and scaling it leave: its spread along its own axes, its distances."""
    centred = points - points.mean(axis=0)
    distances = np.linalg.norm(centred, axis=1)
    size = np.sqrt((distances**2).mean())
    if not size > 0:
        return np.zeros(3 + len(_QUANTILES))
    spread = np.linalg.svd(centred, compute_uv=False) / (size * np.sqrt(len(points)))
    return np.concatenate([spread, np.quantile(distances, _QUANTILES) / size])


def _of_company(context: Context) -> Finding | None:
    """A few rows alone and together: whose numbers differ depends on its company."""
    part = context.built.data.train
    keys = [SampleKey(int(index), 0, context.config.seed) for index in part.indices[:_ALONE]]
    together = part.reader(keys)
    for row, key in enumerate(keys):
        alone = part.reader([key])
        for name in _PAIRED:
            if not isinstance(together.get(name), Tensor) or _is_of(alone, together, name, row):
                continue
            whose = next((other for other in range(len(keys)) if _is_of(alone, together, name, other)), None)
            detail = "are other numbers" if whose is None else f"are those of row {whose} of the batch"
            return _of_sample(
                context,
                key,
                f"'{name}' of an object depends on what else is in its batch: rows are exchanged",
                causes=("data.pairing", "data.duplicate_randomness"),
                measured=f"read alone, '{name}' {detail}, where the object stands in row {row}",
                expected="the same numbers alone and in any batch",
                action=f"look for what reorders '{name}': a transform or `collate` that shuffles, a shared generator",
                evidence={"field": name},
            )
    return None


def _is_of(alone: Batch, together: Batch, name: str, row: int) -> bool:
    """Equal up to rounding: a library may add up a larger batch in another order, which exchanges nothing."""
    one, other = alone[name][0].double(), together[name][row].double()
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=_ROUNDING, atol=_ROUNDING))


def _read(context: Context) -> _Seen:
    """Objects in a row: what is shifted by one then still has its own among them."""
    part = context.built.data.train
    seen = _Seen([], [], [], [])
    started = compute_seconds()
    for start in range(0, min(_MOST_SAMPLES, len(part.indices)), _CHUNK):
        chosen = part.indices[start : start + _CHUNK]
        keys = [SampleKey(int(index), 0, context.config.seed) for index in chosen]
        batch = part.reader(keys)
        samples = read_samples(part.dataset, keys)
        seen.keys.extend(keys)
        seen.raw.extend(_cloud(sample["points"]) for sample in samples)
        seen.first.extend(map(_cloud, batch["points"]))
        seen.second.extend(map(_cloud, batch["other_points"]))
        if compute_seconds() - started > _MOST_SECONDS:
            break
    return seen


def _of_looks(context: Context, seen: _Seen) -> list[Finding]:
    if len(seen.keys) < _FEWEST or not _is_finite(seen):
        return []
    objects, first, second = (np.stack([shape_statistics(c) for c in clouds]) for clouds in seen[1:])
    likeness = [_likeness(objects, views) for views in (first, second)]
    error = _OF_UNIFORM / len(objects) ** 0.5
    best, worst = max(likeness), min(likeness)
    if best < 0.5 + _SURE * error or worst > 0.5 + _LIKE_CHANCE * error:
        return []
    name = ("points", "other_points")[likeness.index(worst)]
    shift = _best_shift(objects, (first, second)[likeness.index(worst)], least=0.5 + _SURE * error)
    detail = "" if shift is None else f"; they look like the objects {abs(shift)} {'on' if shift > 0 else 'back'}"
    return [
        _of_sample(
            context,
            seen.keys[0],
            f"'{name}' do not belong to the objects of their rows{detail}",
            severity="warning",
            causes=("data.pairing", "data.augment_target_mismatch"),
            measured=f"they are nearer to their own object than {worst:.0%} of the others are, the other view than "
            f"{best:.0%} ({len(objects)} objects)",
            expected=f"both alike, and well above {0.5 + _LIKE_CHANCE * error:.0%}: chance is 50%",
            action="make both views of one row from one object: see the transform or data set that gives them",
            evidence={"field": name, "shift": shift},
        )
    ]


def _likeness(objects: np.ndarray, views: np.ndarray) -> float:
    """The mean share of other objects that a view is farther from than from its own: a half if looks prove nothing."""
    distances = _distances(objects, views)
    own = np.diag(distances)[:, None]
    others = ~np.eye(len(objects), dtype=bool)
    beaten = (distances > own) + 0.5 * (distances == own)
    return float((beaten * others).sum() / others.sum())


def _best_shift(objects: np.ndarray, views: np.ndarray, *, least: float) -> int | None:
    """By how many rows the views are shifted against the objects, where some shift makes them alike."""
    found = {shift: _likeness(objects, np.roll(views, shift, axis=0)) for shift in (-2, -1, 1, 2)}
    best = max(found, key=lambda shift: found[shift])
    return best if found[best] >= least else None


def _distances(objects: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Of every view (rows) to every object (columns), each statistic in its own spread."""
    spread = np.maximum(objects.std(axis=0), 1e-6)
    return np.linalg.norm((views[:, None] - objects[None]) / spread, axis=2)


def _is_finite(seen: _Seen) -> bool:
    return all(np.isfinite(cloud).all() for clouds in seen[1:] for cloud in clouds)


def _cloud(points: Any) -> np.ndarray:
    return np.asarray(points, dtype=np.float64)


def _of_sample(context: Context, key: SampleKey, summary: str, *, evidence: dict[str, Any], **fields: Any) -> Finding:
    sample = describe_sample(context.built.data.train.dataset, key.index)
    evidence = {**evidence, "sample": sample}
    return mismatched_views.finding(context, summary, split="train", sample=key.index, evidence=evidence, **fields)
