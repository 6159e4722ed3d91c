"""Training and evaluation sets that differ in up axis, scale or channels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from sightline.config import RunConfig
from sightline.data.loading.batch_reader import BatchReader
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.doctor.core.sample_statistics import evenly_spaced_keys
from sightline.engine.build import DataSubset, build_transforms
from sightline.numba_kernels import compute_seconds
from sightline.types import Batch, DataInfo, SampleKey

__all__ = ["CloudSample", "compare_sets", "dataset_mismatch", "sample_clouds"]

_MAX_SECONDS = 0.5  # CPU time of this thread, for each set
_MIN_SCALE_RATIO = 5.0  # random scaling reaches 1.5; the next unit is 10 times off
_MIN_CLOUDS = 3
_UNITS = {
    1000.0: "millimetres against metres",
    100.0: "centimetres against metres",
    10.0: "millimetres against centimetres",
}
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


class _Exchange(NamedTuple):
    """Candidate permutation of the input columns, its description and its cause."""

    order: tuple[int, ...]
    description: str
    cause: str


@check("G3", "dataset-mismatch", "preflight", severity="warning")
def dataset_mismatch(context: Context) -> list[Finding]:
    """Evaluated parts of other sets have the up axis, unit and channels of training, as declared and as measured.

    Finds: Training and evaluation sets that differ in up axis, scale or channels.
    """
    data, config = context.built.data, context.config
    others = {id(part.dataset): part for part in (data.selection, data.test) if part.dataset is not data.train.dataset}
    if not others:
        return []
    trained = sample_clouds(data.train, config, is_training=True)
    return [
        finding
        for part in others.values()
        for finding in compare_sets(trained, sample_clouds(part, config), place=context.place)
    ]


def sample_clouds(part: DataSubset, config: RunConfig, *, is_training: bool = False) -> CloudSample:
    """Read up to 256 clouds of a part, evenly spread, in half a second at most; none if the part has no clouds.

    Ragged sets are read cloud by cloud, and their sizes are always those of evaluation: training crops of scenes are
    smaller than the scenes.
    """
    transforms = build_transforms(config.transforms.evaluate, part.dataset.info.facts)
    reader = BatchReader(part.dataset, transforms)
    is_ragged = "offsets" in reader.keys
    clouds: list[np.ndarray] = []
    labels: list[int] = []
    sizes: list[float] = []
    started = compute_seconds()
    for keys in _split_keys(part, config.seed, one_by_one=is_ragged):
        try:
            batch = reader(keys)
            model_batch = part.reader(keys) if is_training and not is_ragged else batch
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
        if compute_seconds() - started > _MAX_SECONDS:
            break
    name = f"{config.data.name}/{part.split}"
    return CloudSample(part.dataset.info, name, tuple(clouds), tuple(labels), tuple(sizes))


def _split_keys(part: DataSubset, seed: int, *, one_by_one: bool) -> Iterator[list[SampleKey]]:
    """Split the keys into reads between two checks of the time limit: one sample each, or a chunk."""
    for keys in evenly_spaced_keys(part, epoch=0, seed=seed):
        yield from ([key] for key in keys) if one_by_one else [keys]


def compare_sets(
    trained: CloudSample, evaluated: CloudSample, *, place: Callable[..., FindingLocation]
) -> list[Finding]:
    """Compare two sets: return differences of their declarations (errors), or else of their clouds (warnings)."""
    sets = _Sets(trained, evaluated, place)
    return list(_declaration_findings(sets)) or [*_scale_findings(sets), *_order_findings(sets)]


class _Sets(NamedTuple):
    """Training and evaluated sample of clouds, and the function that locates a dotted config path."""

    trained: CloudSample
    evaluated: CloudSample
    locate: Callable[..., FindingLocation]

    def finding(self, field: str, summary: str, **fields: Any) -> Finding:
        """Build a finding about a field of the evaluated set."""
        trained, evaluated, locate = self
        looked_at = f"{len(evaluated.clouds)} clouds of {evaluated.name}, {len(trained.clouds)} of {trained.name}"
        location = locate("data", dataset=evaluated.name)
        return dataset_mismatch.finding(location, summary, evidence={"field": field, "looked_at": looked_at}, **fields)


def _declaration_findings(sets: _Sets) -> Iterator[Finding]:
    trained, evaluated, _ = sets
    ours, theirs = trained.info, evaluated.info
    pairs: list[tuple[str, str, Any, Any, str]] = [
        ("points", "the up axis", ours.facts.get("up_axis"), theirs.facts.get("up_axis"), "cfg.axis_swap"),
        ("features", "the features", tuple(ours.features), tuple(theirs.features), "cfg.contract"),
        ("features", "in_channels", ours.facts.get("in_channels"), theirs.facts.get("in_channels"), "cfg.contract"),
    ]
    for name in ("points", *ours.features):
        if name in ours.fields and name in theirs.fields:
            units = (ours.fields[name].unit, theirs.fields[name].unit)
            pairs.append((name, f"the unit of '{name}'", *units, "data.normalisation"))
    for field, quantity, our_value, their_value, cause in pairs:
        if our_value is not None and their_value is not None and our_value != their_value:
            yield sets.finding(
                field,
                f"{quantity} of {evaluated.name} differs from the training data",
                severity="error",
                causes=(cause, "data.layout"),
                measured=f"{quantity}: {_format_value(their_value)} in {evaluated.name}",
                expected=f"{_format_value(our_value)}, as in {trained.name}",
                action="prepare both sets alike (sightline data info DIR shows how each was), or set data alike",
            )
            return


def _scale_findings(sets: _Sets) -> Iterator[Finding]:
    """Find clouds whose sizes differ by a factor of five or more and do not overlap."""
    trained, evaluated, _ = sets
    if min(len(trained.sizes), len(evaluated.sizes)) < _MIN_CLOUDS:
        return
    ours, theirs = np.array(trained.sizes), np.array(evaluated.sizes)
    if not (ours > 0).all() or not (theirs > 0).all():
        return
    ratio = float(np.median(theirs) / np.median(ours))
    is_apart = theirs.min() > ours.max() or theirs.max() < ours.min()
    if not is_apart or max(ratio, 1 / ratio) < _MIN_SCALE_RATIO:
        return
    unit = next((f": {text}?" for factor, text in _UNITS.items() if 0.5 < max(ratio, 1 / ratio) / factor < 2), "")
    yield sets.finding(
        "points",
        f"clouds of {evaluated.name} are {ratio:.3g} times as large as those trained on{unit}",
        causes=("data.normalisation", "data.sampling", "cfg.contract"),
        measured=f"median radius {np.median(theirs):.4g} ({theirs.min():.4g} .. {theirs.max():.4g})",
        expected=f"about {np.median(ours):.4g} ({ours.min():.4g} .. {ours.max():.4g} in {trained.name})",
        action="bring both sets to one unit, or normalise in transforms.train and in transforms.evaluate",
    )


def _order_findings(sets: _Sets) -> Iterator[Finding]:
    """Find exchanged columns that bring nearly every cloud nearer to the training clouds of its class."""
    trained, evaluated, _ = sets
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
    exchanges = list(_list_exchanges(trained.info, ours.shape[1]))
    if _upper_tail(len(plain), len(plain)) * len(exchanges) >= _MAX_CHANCE:
        yield _finding_too_few(sets, len(plain), len(exchanges))
        return
    best: tuple[float, float, int, _Exchange] | None = None
    for exchange in exchanges:
        swapped = _compute_distances(theirs[is_shared][:, list(exchange.order)], expected, spread)
        wins, losses = int((swapped < plain).sum()), int((swapped > plain).sum())
        chance = _upper_tail(wins, wins + losses) * len(exchanges)
        if (
            swapped.mean() < _MAX_RATIO * plain.mean()
            and chance < _MAX_CHANCE
            and (best is None or swapped.mean() < best[0])
        ):
            best = (float(swapped.mean()), chance, wins, exchange)
    if best is not None:
        yield _finding_exchange(sets, best[3], best[2], len(plain), best[0] / float(plain.mean()))


def _finding_too_few(sets: _Sets, num_clouds: int, num_exchanges: int) -> Finding:
    """Build a note: even if all of so few clouds voted for one order, it could be chance."""
    needed = math.floor(math.log2(num_exchanges / _MAX_CHANCE)) + 1
    return sets.finding(
        "points",
        f"too few clouds of {sets.evaluated.name} to decide whether axes or channels are swapped",
        severity="note",
        causes=("cfg.axis_swap", "data.layout"),
        measured=f"{num_clouds} cloud{'' if num_clouds == 1 else 's'} of classes that occur in training",
        expected=f"{needed} or more, so that their agreement is not chance",
        action="look at pictures of both sets: is the same axis up in both?",
    )


def _finding_exchange(sets: _Sets, exchange: _Exchange, wins: int, num_clouds: int, share: float) -> Finding:
    return sets.finding(
        "points" if exchange.cause == "cfg.axis_swap" else "features",
        f"clouds of {sets.evaluated.name} look like those trained on with {exchange.description}",
        causes=(exchange.cause, "data.layout" if exchange.cause != "data.layout" else "cfg.contract"),
        measured=f"then {wins} of {num_clouds} clouds are nearer to the training clouds of their class; their mean "
        f"distance falls to {share:.2g} of what it is",
        expected="no more clouds nearer than farther, if the columns mean the same",
        action="look at pictures of both sets; prepare them with the same columns and the same axis up",
    )


def _list_exchanges(info: DataInfo, num_channels: int) -> Iterator[_Exchange]:
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
            yield _Exchange(tuple(order), f"{description} (normals as they are)", "cfg.axis_swap")
            order[normals : normals + 3] = [normals + axis for axis in axes]
        yield _Exchange(tuple(order), description, "cfg.axis_swap")
    if normals is not None:
        order = list(range(num_channels))
        order[:3], order[normals : normals + 3] = range(normals, normals + 3), range(3)
        yield _Exchange(tuple(order), "points and normals exchanged", "data.layout")
    for one, two in itertools.combinations(range(3, num_channels), 2):
        order = list(range(num_channels))
        order[one], order[two] = two, one
        yield _Exchange(tuple(order), f"channels {one} and {two} exchanged", "data.layout")


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
