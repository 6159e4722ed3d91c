"""Training and evaluation sets that differ in up axis, scale or channels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from sightline.config import RunConfig
from sightline.contract.types import Batch, DataInfo
from sightline.doctor.finding import Finding, FindingLocation
from sightline.engine.build import DataSubset, build_transforms
from sightline.ops.numba_kernels import compute_seconds
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault, Hypothesis, explain, is_within_factor
from sightline.workbench.check.core.sample_statistics import evenly_spaced_keys

_MAX_SECONDS = 0.5  # CPU time of this thread, for each set
_MIN_SCALE_RATIO = 5.0  # random scaling reaches 1.5; the next unit is 10 times off
_MIN_CLOUDS = 3
_SIZES_EVERY = 4
_ENOUGH_CLOUDS = 26  # whose agreement on an order of columns is not chance, for up to 67 orders
_QUICK_S = 0.4
_UNITS = (
    Hypothesis("data.normalisation", "millimetres against metres", 1000.0),
    Hypothesis("data.normalisation", "centimetres against metres", 100.0),
    Hypothesis("data.normalisation", "millimetres against centimetres", 10.0),
)
_MAX_CHANCE = 1e-6  # of a false report of a swap: below one in a thousand runs for all candidates
_MAX_RATIO = 0.5  # an exchange must also halve the mean distance: other shapes may be a little nearer
_MIN_SPREAD = 0.02  # of the size of a cloud, or of a typical feature: smaller spreads are raised to it


class CloudSample(NamedTuple):
    """Data info of a set, its name for messages, and the clouds (N, C) that were read, with their classes.

    `sizes` are the clouds' root mean square radii as training or evaluation passes them to the model; `clouds` and
    `labels` are as evaluation would pass them, so that no augmentation hides their orientation.
    """

    info: DataInfo
    name: str
    clouds: tuple[np.ndarray, ...] = ()
    labels: tuple[int, ...] = ()
    sizes: tuple[float, ...] = ()


@check("dataset-mismatch", "preflight", severity="warning")
def dataset_mismatch(context: Context) -> list[Finding]:
    """Evaluated parts of other sets have the up axis, unit and channels of training, as declared and as measured.

    Finds: Training and evaluation sets that differ in up axis, scale or channels.
    """
    data, config = context.built.data, context.config
    others = {id(part.dataset): part for part in (data.selection, data.test) if part.dataset is not data.train.dataset}
    if not others:
        return []
    quick_s = None if context.is_thorough else context.reading_s
    trained = sample_clouds(data.train, config, is_training=True, quick_s=quick_s)
    found = [
        finding
        for part in others.values()
        for finding in compare_sets(trained, sample_clouds(part, config, quick_s=quick_s), place=context.place)
    ]
    if not context.is_thorough:  # that clouds are slow to read is no remark on a run
        context.examination.gaps += [finding.summary for finding in found if finding.severity == "note"]
        found = [finding for finding in found if finding.severity != "note"]
    return found


def sample_clouds(
    part: DataSubset, config: RunConfig, *, is_training: bool = False, quick_s: float | None = None
) -> CloudSample:
    """Read up to 256 clouds of a part, evenly spread, in half a second at most; none if the part has no clouds.

    Ragged sets are read cloud by cloud, and their sizes are always those of evaluation: training crops of scenes are
    smaller than the scenes. With `quick_s`, reading ends after so many seconds, or with 26 clouds if these are read
    within 0.4 s at the speed so far; of the clouds of training, every fourth is passed as training passes it.
    """
    transforms = build_transforms(config.transforms.evaluate, part.dataset.info.facts)
    reader = BatchReader(part.dataset, transforms)
    is_ragged = "offsets" in reader.keys
    clouds: list[np.ndarray] = []
    labels: list[int] = []
    sizes: list[float] = []
    chunks = evenly_spaced_keys(part, epoch=0, seed=config.seed) if "points" in reader.keys else iter(())
    reads = (read for keys in chunks for read in ([[key] for key in keys] if is_ragged else [keys]))
    started = compute_seconds()
    for keys in reads:  # between two checks of the time limit: one sample, or a chunk
        try:
            batch = reader(keys)
            few_keys = keys if quick_s is None else keys[::_SIZES_EVERY]
            model_batch = part.reader(few_keys) if is_training and not is_ragged else batch
        except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
            break
        batch_clouds = _split_clouds(batch)
        if batch_clouds is None or (model_clouds := _split_clouds(model_batch)) is None:
            break
        classes = _read_classes(batch, len(batch_clouds))
        is_finite = [bool(np.isfinite(cloud).all()) for cloud in batch_clouds]  # `non-finite-data` reports others
        clouds += [cloud for cloud, is_whole in zip(batch_clouds, is_finite, strict=True) if is_whole]
        labels += [label for label, is_whole in zip(classes, is_finite, strict=True) if is_whole]
        sizes += [
            _compute_size(cloud[:, :3]) for cloud in model_clouds if len(cloud) and np.isfinite(cloud[:, :3]).all()
        ]
        seconds = compute_seconds() - started
        is_enough = len(clouds) >= _ENOUGH_CLOUDS or seconds * _ENOUGH_CLOUDS > _QUICK_S * len(clouds)
        if seconds > _MAX_SECONDS or (quick_s is not None and seconds > quick_s and is_enough):
            break
    name = f"{config.data.name}/{part.split}"
    return CloudSample(part.dataset.info, name, tuple(clouds), tuple(labels), tuple(sizes))


def compare_sets(
    trained: CloudSample, evaluated: CloudSample, *, place: Callable[..., FindingLocation]
) -> list[Finding]:
    """Compare two sets: return differences of their declarations (errors), or else of their clouds (warnings)."""
    pair = (trained, evaluated)
    faults = list(_declaration_faults(*pair)) or [*_scale_faults(*pair), *_order_faults(*pair)]
    looked_at = f"{len(evaluated.clouds)} clouds of {evaluated.name}, {len(trained.clouds)} of {trained.name}"
    location = place("data", dataset=evaluated.name)
    return [
        dataset_mismatch.build(replace(fault, where=location, evidence={**fault.evidence, "looked_at": looked_at}))
        for fault in faults
    ]


def _declaration_faults(trained: CloudSample, evaluated: CloudSample) -> Iterator[Fault]:
    ours, theirs = trained.info, evaluated.info
    rows: list[tuple[str, str, Any, Any, str]] = [
        ("points", "the up axis", ours.facts.get("up_axis"), theirs.facts.get("up_axis"), "cfg.axis_swap"),
        ("features", "the features", tuple(ours.features), tuple(theirs.features), "cfg.contract"),
        ("features", "in_channels", ours.facts.get("in_channels"), theirs.facts.get("in_channels"), "cfg.contract"),
    ]
    for name in ("points", *ours.features):
        if name in ours.fields and name in theirs.fields:
            units = (ours.fields[name].unit, theirs.fields[name].unit)
            rows.append((name, f"the unit of '{name}'", *units, "data.normalisation"))
    for field, quantity, our_value, their_value, cause in rows:
        if our_value is not None and their_value is not None and our_value != their_value:
            yield Fault(
                f"{quantity} of {evaluated.name} differs from the training data",
                severity="error",
                causes=(cause, "data.layout"),
                measured=f"{quantity}: {_format_value(their_value)} in {evaluated.name}",
                expected=f"{_format_value(our_value)}, as in {trained.name}",
                action="prepare both sets alike (sightline data info DIR shows how each was), or set data alike",
                evidence={"field": field},
            )
            return


def _scale_faults(trained: CloudSample, evaluated: CloudSample) -> Iterator[Fault]:
    """Find clouds whose sizes differ by a factor of five or more and do not overlap."""
    if min(len(trained.sizes), len(evaluated.sizes)) < _MIN_CLOUDS:
        return
    ours, theirs = np.array(trained.sizes), np.array(evaluated.sizes)
    if not (ours > 0).all() or not (theirs > 0).all():
        return
    ratio = float(np.median(theirs) / np.median(ours))
    is_apart = theirs.min() > ours.max() or theirs.max() < ours.min()
    if not is_apart or max(ratio, 1 / ratio) < _MIN_SCALE_RATIO:
        return
    units = explain(max(ratio, 1 / ratio), 1.0, _UNITS, likeness=is_within_factor(2))
    yield Fault(
        f"clouds of {evaluated.name} are {ratio:.3g} times as large as those trained on"
        + (f": {units[0].text}?" if units else ""),
        causes=("data.normalisation", "data.sampling", "cfg.contract"),
        measured=f"median radius {np.median(theirs):.4g} ({theirs.min():.4g} .. {theirs.max():.4g})",
        expected=f"about {np.median(ours):.4g} ({ours.min():.4g} .. {ours.max():.4g} in {trained.name})",
        action="bring both sets to one unit, or normalise in transforms.train and in transforms.evaluate",
        evidence={"field": "points"},
    )


def _order_faults(trained: CloudSample, evaluated: CloudSample) -> Iterator[Fault]:
    """Find exchanged columns that bring nearly every cloud nearer to the training clouds of its class."""
    ours, theirs = _compute_statistics(trained), _compute_statistics(evaluated)
    shared = set(trained.labels) & set(evaluated.labels)
    if ours is None or theirs is None or ours.shape[1] != theirs.shape[1] or not shared:
        return
    labels, trained_labels = np.array(evaluated.labels), np.array(trained.labels)
    is_shared = np.isin(labels, list(shared))
    centres = {label: ours[trained_labels == label].mean(axis=0) for label in shared}
    expected = np.stack([centres[label] for label in labels[is_shared]])
    spread = _compute_spread(ours, trained_labels)
    plain = _compute_distances(theirs[is_shared], expected, spread)
    exchanges = list(_iter_exchanges(trained.info, ours.shape[1]))
    num_clouds = len(plain)
    if _upper_tail(num_clouds, num_clouds) * len(exchanges) >= _MAX_CHANCE:
        needed = math.floor(math.log2(len(exchanges) / _MAX_CHANCE)) + 1
        yield Fault(  # even if all of so few clouds voted for one order, it could be chance
            f"too few clouds of {evaluated.name} to decide whether axes or channels are swapped",
            severity="note",
            causes=("cfg.axis_swap", "data.layout"),
            measured=f"{num_clouds} cloud{'' if num_clouds == 1 else 's'} of classes that occur in training",
            expected=f"{needed} or more, so that their agreement is not chance",
            action="look at pictures of both sets: is the same axis up in both?",
            evidence={"field": "points"},
        )
        return

    def is_chance(swapped: np.ndarray) -> bool:
        wins, losses = int((swapped < plain).sum()), int((swapped > plain).sum())
        return _upper_tail(wins, wins + losses) * len(exchanges) >= _MAX_CHANCE

    swaps = [(exchange, theirs[is_shared][:, list(exchange.prediction)]) for exchange in exchanges]
    distances = [(exchange, _compute_distances(table, expected, spread)) for exchange, table in swaps]
    fitting = explain(
        plain,
        plain,
        (exchange._replace(prediction=swapped) for exchange, swapped in distances if not is_chance(swapped)),
        likeness=lambda plain, swapped: -float(swapped.mean()),
        above=-_MAX_RATIO * float(plain.mean()),
    )
    if fitting:
        best, swapped = fitting[0], fitting[0].hypothesis.prediction
        yield Fault(
            f"clouds of {evaluated.name} look like those trained on with {best.text}",
            causes=(best.cause, "data.layout" if best.cause != "data.layout" else "cfg.contract"),
            measured=f"then {int((swapped < plain).sum())} of {num_clouds} clouds are nearer to the training clouds of "
            f"their class; their mean distance falls to {-best.likeness / float(plain.mean()):.2g} of what it is",
            expected="no more clouds nearer than farther, if the columns mean the same",
            action="look at pictures of both sets; prepare them with the same columns and the same axis up",
            evidence={"field": "points" if best.cause == "cfg.axis_swap" else "features"},
        )


def _iter_exchanges(info: DataInfo, num_channels: int) -> Iterator[Hypothesis]:
    """Yield permutations: of the axes, with and without the normals'; points for normals; any two other columns."""
    start, starts = 3, {}
    for name in info.features:
        starts[name] = start
        start += 3 if name == "normals" else _get_width(info, name, num_channels - start)
    normals = starts.get("normals")
    for axes in itertools.permutations(range(3)):
        if axes == (0, 1, 2):
            continue
        description = "the axes in the order " + ", ".join("xyz"[axis] for axis in axes)
        order = [*axes, *range(3, num_channels)]
        if normals is not None:
            yield Hypothesis("cfg.axis_swap", f"{description} (normals as they are)", tuple(order))
            order[normals : normals + 3] = [normals + axis for axis in axes]
        yield Hypothesis("cfg.axis_swap", description, tuple(order))
    if normals is not None:
        order = list(range(num_channels))
        order[:3], order[normals : normals + 3] = range(normals, normals + 3), range(3)
        yield Hypothesis("data.layout", "points and normals exchanged", tuple(order))
    for one, two in itertools.combinations(range(3, num_channels), 2):
        order = list(range(num_channels))
        order[one], order[two] = two, one
        yield Hypothesis("data.layout", f"channels {one} and {two} exchanged", tuple(order))


def _get_width(info: DataInfo, name: str, default: int) -> int:
    dimensions = info.fields[name].shape.split() if name in info.fields else []
    return int(dimensions[-1]) if dimensions and dimensions[-1].isdecimal() else default


def _compute_statistics(inputs: CloudSample) -> np.ndarray | None:
    """Compute mean and standard deviation of each cloud's columns, (clouds, C, 2); coordinates in RMS radii."""
    widths = {cloud.shape[1] for cloud in inputs.clouds}
    if len(widths) != 1 or not all(np.isfinite(cloud).all() for cloud in inputs.clouds):
        return None
    table = np.stack([np.stack([cloud.mean(axis=0), cloud.std(axis=0)], axis=1) for cloud in inputs.clouds])
    sizes = np.sqrt((table[:, :3, 1] ** 2).sum(axis=1))
    table[:, :3] /= np.where(sizes > 0, sizes, 1.0)[:, None, None]
    return table


def _compute_spread(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the deviation (C, 2) of each statistic within classes, at least 2 % of the column's usual size."""
    within = np.concatenate(
        [table[labels == label] - table[labels == label].mean(axis=0) for label in np.unique(labels)]
    )
    usual = np.sqrt((table**2).mean(axis=(0, 2)))
    usual[:3] = 1.0
    min_spread = _MIN_SPREAD * np.where(usual > 0, usual, 1.0)
    return np.maximum(within.std(axis=0), min_spread[:, None])


def _compute_distances(table: np.ndarray, expected: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return (((table - expected) / spread) ** 2).sum(axis=(1, 2))


def _upper_tail(wins: int, trials: int) -> float:
    """Probability of `wins` or more heads in `trials` of a fair coin. Source: the sign test (Arbuthnot 1710)."""
    return sum(math.comb(trials, k) for k in range(wins, trials + 1)) / 2**trials


def _split_clouds(batch: Batch) -> list[np.ndarray] | None:
    """Split a batch into clouds (N, C) float64 of points and features; None if it has no points."""
    points, features, offsets = batch.get("points"), batch.get("features"), batch.get("offsets")
    if not isinstance(points, Tensor) or points.ndim not in (2, 3) or points.shape[-1] != 3:
        return None
    rows = points.double().numpy()
    if isinstance(features, Tensor) and features.shape[:-1] == points.shape[:-1]:
        rows = np.concatenate([rows, features.double().numpy()], axis=-1)
    if points.ndim == 3:
        return list(rows)
    if not isinstance(offsets, Tensor) or offsets.ndim != 1 or offsets.is_floating_point():
        return None
    return [rows[start:end] for start, end in itertools.pairwise(offsets.tolist()) if end > start]


def _read_classes(batch: Mapping[str, Any], count: int) -> list[int]:
    """Return the class of each cloud: its label, or its category if labels are of points; 0 if it has neither."""
    for name in ("label", "category"):
        value = batch.get(name)
        if isinstance(value, Tensor) and value.shape == (count,) and not value.is_floating_point():
            return [int(number) for number in value]
    return [0] * count


def _compute_size(points: np.ndarray) -> float:
    """Compute the root mean square distance of the points (N, 3) from their mean."""
    return float(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()))


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value) or "none stated"
