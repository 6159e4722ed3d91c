"""Rule of training and evaluated clouds: one up axis, unit and channels, as declared and as measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from sightline.config import RunConfig
from sightline.contract.types import Batch, DataInfo
from sightline.doctor.attempts import MissingError, NotApplicableError, attempt
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, Finding, FindingLocation
from sightline.doctor.rules import find_by, rule
from sightline.engine.run_data import DataSubset, build_transforms
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.check.context import Context
from sightline.workbench.check.sample_statistics import count_to_read, evenly_spaced_keys

CODE = "dataset-mismatch"
_MIN_CLOUDS, _MIN_RATIO = 3, 5.0  # random scaling reaches 1.5, the next unit is 10 times off
_MIN_RATIO_OF_FEW = 50.0
"""Ratio of sizes that a cloud or two have by their unit alone: centimetres or millimetres for metres."""


class CloudSample(NamedTuple):
    """Data info of a set, its name, and the root mean square radii of clouds as they are passed to the model."""

    info: DataInfo
    name: str
    sizes: tuple[float, ...] = ()


def sample_clouds(
    part: DataSubset, config: RunConfig, *, is_training: bool = False, is_quick: bool = False
) -> CloudSample:
    """Measure up to 256 clouds of a part, evenly spread, as many as their size determines; none without clouds."""
    reader = BatchReader(part.dataset, build_transforms(config.transforms.evaluate, part.dataset.info.facts))
    is_ragged = "offsets" in reader.keys
    sizes: list[float] = []
    most = 0
    reader = part.reader if is_training and not is_ragged else reader
    chunks = evenly_spaced_keys(part, epoch=0, seed=config.seed) if "points" in reader.keys else iter(())
    for keys in (keys for chunk in chunks for keys in ([[key] for key in chunk] if is_ragged else [chunk])):
        if sizes and len(sizes) >= most:
            break
        batch = attempt("reading", partial(reader, keys), {})
        if isinstance(batch, MissingError):
            break  # `first-step` reports it
        clouds = _split_clouds(batch)
        most = count_to_read(sum(cloud.nbytes for cloud in clouds) // max(1, len(clouds)), is_quick=is_quick)
        sizes += [float(cloud.var(axis=0).sum() ** 0.5) for cloud in clouds if np.isfinite(cloud).all()]
    return CloudSample(part.dataset.info, f"{config.data.name}/{part.split}", tuple(sizes))


def _split_clouds(batch: Batch) -> list[np.ndarray]:
    """Split a batch into clouds (N, 3) float64 of points."""
    points, offsets = batch.get("points"), batch.get("offsets")
    if not isinstance(points, Tensor) or points.ndim not in (2, 3) or points.shape[-1] != 3:
        return []
    rows = points.double().numpy()
    if points.ndim == 3:
        return list(rows)
    if not isinstance(offsets, Tensor) or offsets.ndim != 1 or offsets.is_floating_point():
        return []
    return [rows[start:end] for start, end in itertools.pairwise(offsets.tolist()) if end > start]


def compare_sets(trained: CloudSample, evaluated: CloudSample) -> list[Finding]:
    """Compare two sets: findings on how they differ, at no place of a config yet."""
    return find_by(dataset_mismatch, cloud_pairs=[(trained, evaluated)])


@measure()
def cloud_pairs(run: Context) -> list[tuple[CloudSample, CloudSample]]:
    """Read clouds of training, and of each evaluated part of another set."""
    data, is_quick = run.built.data, run.is_quick
    others = {id(part.dataset): part for part in (data.selection, data.test) if part.dataset is not data.train.dataset}
    if "points" not in data.train.reader.keys or not others:
        raise NotApplicableError("no clouds of another set")
    trained = sample_clouds(data.train, run.config, is_training=True, is_quick=is_quick)
    return [(trained, sample_clouds(part, run.config, is_quick=is_quick)) for part in others.values()]


@rule(
    CODE,
    "warning",
    "cfg.axis_swap data.layout data.normalisation cfg.contract",
    holds="one up axis, unit, size and set of channels for training and evaluation",
    do="prepare both sets alike (sightline data info DIR shows how each was), and normalise both or neither",
    is_statistical=True,
)
def dataset_mismatch(cloud_pairs: list[tuple[CloudSample, CloudSample]]) -> Iterator[Fault]:
    """Compare the declarations of two sets, then the sizes of clouds."""
    for trained, evaluated in cloud_pairs:
        where = FindingLocation(dataset=evaluated.name, config_path="data")
        found = [*_compare_declared(trained, evaluated)]
        for cause, summary, measured in found or _compare_sizes(trained, evaluated):
            severity: Any = "error" if found else None
            yield Fault(summary, measured=measured, causes=[cause], severity=severity, where=where)


Differences = Iterator[tuple[str, str, str]]
"""Causes, summaries and what was measured."""


def _compare_declared(trained: CloudSample, evaluated: CloudSample) -> Differences:
    ours, theirs = trained.info, evaluated.info
    rows: list[tuple[str, str, Any, Any]] = [
        ("cfg.axis_swap", "the up axis", ours.facts.get("up_axis"), theirs.facts.get("up_axis")),
        ("cfg.contract", "the features", tuple(ours.features), tuple(theirs.features)),
        ("cfg.contract", "in_channels", ours.facts.get("in_channels"), theirs.facts.get("in_channels")),
    ]
    for name in ("points", *ours.features):
        if name in ours.fields and name in theirs.fields:
            units = ours.fields[name].unit, theirs.fields[name].unit
            rows.append(("data.normalisation", f"the unit of '{name}'", *units))
    for cause, quantity, own, other in rows:
        if own is not None and other is not None and own != other:
            measured = f"{quantity}: {other} in {evaluated.name}, {own} in {trained.name}"
            yield cause, f"{quantity} of {evaluated.name} differs from the training data", measured
            return


def _compare_sizes(trained: CloudSample, evaluated: CloudSample) -> Differences:
    """Find clouds whose sizes differ by a factor of five or more and do not overlap."""
    ours, theirs = np.array(trained.sizes), np.array(evaluated.sizes)
    if not len(ours) or not len(theirs) or not (ours > 0).all() or not (theirs > 0).all():
        return
    ratio = float(np.median(theirs) / np.median(ours))
    is_few = min(len(ours), len(theirs)) < _MIN_CLOUDS
    is_apart = theirs.min() > ours.max() or theirs.max() < ours.min()
    if is_apart and max(ratio, 1 / ratio) >= (_MIN_RATIO_OF_FEW if is_few else _MIN_RATIO):
        power = math.log10(max(ratio, 1 / ratio))
        unit = ", a factor of units?" if abs(power - round(power)) < 0.3 else ""
        summary = f"clouds of {evaluated.name} are {ratio:.3g} times as large as those trained on{unit}"
        measured = f"median radius {np.median(theirs):.4g} ({theirs.min():.4g} .. {theirs.max():.4g}), in training "
        yield "data.normalisation", summary, f"{measured}{np.median(ours):.4g} ({ours.min():.4g} .. {ours.max():.4g})"
