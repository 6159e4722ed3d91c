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
from sightline.engine.build import DataSubset, build_transforms
from sightline.ops.numba_kernels import compute_seconds
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.sample_statistics import evenly_spaced_keys

CODE = "dataset-mismatch"
_MAX_SECONDS, _MIN_CLOUDS, _MIN_RATIO = 0.5, 3, 5.0  # random scaling reaches 1.5, the next unit is 10 times off
_MAX_CHANCE, _MAX_LEFT, _MIN_SPREAD = 1e-6, 0.5, 0.02
"""Probability of agreement on an order of axes by chance; share of distances left by it; least spread in a class."""


class CloudSample(NamedTuple):
    """Data info of a set, its name, and its clouds (N, 3) as evaluation reads them, with their classes.

    `sizes` are the root mean square radii of clouds as training or evaluation passes them to the model.
    """

    info: DataInfo
    name: str
    clouds: tuple[np.ndarray, ...] = ()
    labels: tuple[int, ...] = ()
    sizes: tuple[float, ...] = ()


def sample_clouds(
    part: DataSubset, config: RunConfig, *, is_training: bool = False, most_s: float = _MAX_SECONDS
) -> CloudSample:
    """Read up to 256 clouds of a part, evenly spread, in a bounded time; none if the part has no clouds."""
    reader = BatchReader(part.dataset, build_transforms(config.transforms.evaluate, part.dataset.info.facts))
    clouds: list[np.ndarray] = []
    labels: list[int] = []
    sizes: list[float] = []
    is_ragged, started = "offsets" in reader.keys, compute_seconds()
    chunks = evenly_spaced_keys(part, epoch=0, seed=config.seed) if "points" in reader.keys else iter(())
    for keys in (keys for chunk in chunks for keys in ([[key] for key in chunk] if is_ragged else [chunk])):
        if clouds and compute_seconds() - started > most_s:
            break
        read = [attempt("reading", partial(reader, keys), {})]
        read += [attempt("reading", partial(part.reader, keys), {})] if is_training and not is_ragged else read
        if any(isinstance(each, MissingError) for each in read):
            break  # `first-step` reports it
        batch, passed = read
        found = _split_clouds(batch)
        known = [bool(np.isfinite(cloud).all()) for cloud in found]  # `non-finite-data` reports others
        clouds += itertools.compress(found, known)
        labels += itertools.compress(_read_classes(batch, len(found)), known)
        sizes += [float(cloud.var(axis=0).sum() ** 0.5) for cloud in _split_clouds(passed) if np.isfinite(cloud).all()]
    name = f"{config.data.name}/{part.split}"
    return CloudSample(part.dataset.info, name, tuple(clouds), tuple(labels), tuple(sizes))


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


def _read_classes(batch: Batch, count: int) -> list[int]:
    """Return the class of each cloud: its label, or its category if labels are of points; 0 if it has neither."""
    for name in ("label", "category"):
        value = batch.get(name)
        if isinstance(value, Tensor) and value.shape == (count,) and not value.is_floating_point():
            return [int(number) for number in value]
    return [0] * count


def compare_sets(trained: CloudSample, evaluated: CloudSample) -> list[Finding]:
    """Compare two sets: findings on how they differ, at no place of a config yet."""
    return find_by(dataset_mismatch, cloud_pairs=[(trained, evaluated)])


@measure()
def cloud_pairs(run: Context) -> list[tuple[CloudSample, CloudSample]]:
    """Read clouds of training, and of each evaluated part of another set."""
    data, most_s = run.built.data, run.reading_s
    others = {id(part.dataset): part for part in (data.selection, data.test) if part.dataset is not data.train.dataset}
    if "points" not in data.train.reader.keys or not others:
        raise NotApplicableError("no clouds of another set")
    trained = sample_clouds(data.train, run.config, is_training=True, most_s=most_s)
    return [(trained, sample_clouds(part, run.config, most_s=most_s)) for part in others.values()]


@rule(
    CODE,
    "warning",
    "cfg.axis_swap data.layout data.normalisation cfg.contract",
    holds="one up axis, unit, size and set of channels for training and evaluation",
    do="prepare both sets alike (sightline data info DIR shows how each was), and normalise both or neither",
)
def dataset_mismatch(cloud_pairs: list[tuple[CloudSample, CloudSample]]) -> Iterator[Fault]:
    """Compare the declarations of two sets, then the sizes of clouds, then how they lie."""
    for trained, evaluated in cloud_pairs:
        where = FindingLocation(dataset=evaluated.name, config_path="data")
        found = [*_compare_declared(trained, evaluated)]
        for cause, summary, measured in found or [
            *_compare_sizes(trained, evaluated),
            *_compare_axes(trained, evaluated),
        ]:
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
    if min(len(ours), len(theirs)) < _MIN_CLOUDS or not (ours > 0).all() or not (theirs > 0).all():
        return
    ratio = float(np.median(theirs) / np.median(ours))
    is_apart = theirs.min() > ours.max() or theirs.max() < ours.min()
    if is_apart and max(ratio, 1 / ratio) >= _MIN_RATIO:
        power = math.log10(max(ratio, 1 / ratio))
        unit = ", a factor of units?" if abs(power - round(power)) < 0.3 else ""
        summary = f"clouds of {evaluated.name} are {ratio:.3g} times as large as those trained on{unit}"
        measured = f"median radius {np.median(theirs):.4g} ({theirs.min():.4g} .. {theirs.max():.4g}), in training "
        yield "data.normalisation", summary, f"{measured}{np.median(ours):.4g} ({ours.min():.4g} .. {ours.max():.4g})"


def _compare_axes(trained: CloudSample, evaluated: CloudSample) -> Differences:
    """Find an order of axes that brings nearly every cloud nearer to the training clouds of its class."""
    shared = set(trained.labels) & set(evaluated.labels)
    if not shared or not trained.clouds or not evaluated.clouds:
        return
    ours, theirs = (_compute_statistics(each.clouds) for each in (trained, evaluated))
    labels, trained_labels = np.array(evaluated.labels), np.array(trained.labels)
    theirs, labels = theirs[np.isin(labels, list(shared))], labels[np.isin(labels, list(shared))]
    centres = {label: ours[trained_labels == label].mean(axis=0) for label in set(trained.labels)}
    spread = np.stack([row - centres[label] for row, label in zip(ours, trained.labels, strict=True)]).std(axis=0)
    wanted, spread = np.stack([centres[label] for label in labels]), np.maximum(spread, _MIN_SPREAD)
    plain = (((theirs - wanted) / spread) ** 2).sum(axis=(1, 2))
    found = []
    for order in list(itertools.permutations(range(3)))[1:]:
        moved = (((theirs[:, list(order)] - wanted) / spread) ** 2).sum(axis=(1, 2))
        wins, trials = int((moved < plain).sum()), int((moved != plain).sum())
        chance = 5 * sum(math.comb(trials, k) for k in range(wins, trials + 1)) / 2**trials  # the sign test
        if chance < _MAX_CHANCE and moved.mean() < _MAX_LEFT * plain.mean():
            found.append((float(moved.mean()), order, wins))
    if found:
        left, order, wins = min(found)
        axes = ", ".join("xyz"[axis] for axis in order)
        summary = f"clouds of {evaluated.name} look like those trained on with the axes in the order {axes}"
        measured = (
            f"then {wins} of {len(plain)} are nearer to those of their class, {left / plain.mean():.2g} of the distance"
        )
        yield "cfg.axis_swap", summary, measured


def _compute_statistics(clouds: tuple[np.ndarray, ...]) -> np.ndarray:
    """Compute mean and standard deviation of each cloud's axes (clouds, 3, 2), in root mean square radii."""
    table = np.stack([np.stack([cloud.mean(axis=0), cloud.std(axis=0)], axis=1) for cloud in clouds])
    sizes = np.sqrt((table[..., 1] ** 2).sum(axis=1))
    scaled: np.ndarray = table / np.where(sizes > 0, sizes, 1.0)[:, None, None]
    return scaled
