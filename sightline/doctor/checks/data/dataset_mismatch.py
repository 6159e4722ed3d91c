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

__all__ = ["CloudSample", "compare_sets", "dataset_mismatch", "inputs_of"]

_MOST_SECONDS = 0.5  # of this thread's own time, for each set
_OTHER_SCALE = 5.0  # random scaling reaches 1.5; the next unit is 10 times off
_FEWEST = 3
_UNITS = {
    1000.0: "millimetres against metres",
    100.0: "centimetres against metres",
    10.0: "millimetres against centimetres",
}
_CHANCE = 1e-6  # of reporting a swap where there is none: below one in a thousand runs for all candidates
_BETTER = 0.5  # an exchange must halve the mean distance as well: other shapes alone may lie nearer by a little
_LEAST_SPREAD = 0.02  # of the size of a cloud, or of a typical feature: smaller spreads are not a yardstick


class CloudSample(NamedTuple):
    """What is known of a set: its info, its name for messages, and the clouds (N, C) that were read with their classes.

    `sizes` are the clouds' root mean square radii as training or evaluation gives them to the model; `clouds` and
    `labels` are as evaluation would give them, so that no augmentation hides how they lie.
    """

    info: DataInfo
    name: str
    clouds: tuple[np.ndarray, ...] = ()
    labels: tuple[int, ...] = ()
    sizes: tuple[float, ...] = ()


class _Exchange(NamedTuple):
    """Columns of the input in another order, and what that would mean."""

    order: tuple[int, ...]
    what: str
    cause: str


@check("G3", "dataset-mismatch", "preflight", severity="warning")
def dataset_mismatch(context: Context) -> list[Finding]:
    """Every part that is not of the training set has its up axis, unit and channels, as declared and as measured."""
    data, config = context.built.data, context.config
    others = {id(part.dataset): part for part in (data.selection, data.test) if part.dataset is not data.train.dataset}
    if not others:
        return []
    trained = inputs_of(data.train, config, is_training=True)
    return [
        finding
        for part in others.values()
        for finding in compare_sets(trained, inputs_of(part, config), place=context.place)
    ]


def inputs_of(part: DataSubset, config: RunConfig, *, is_training: bool = False) -> CloudSample:
    """Up to 256 clouds of a part, evenly spread over it, half a second at most; none where it holds no clouds.

    Ragged sets are read cloud by cloud, and their sizes are those that evaluation sees whatever trains: training crops
    of scenes are smaller than the scenes.
    """
    transforms = build_transforms(config.transforms.evaluate, part.dataset.info.facts)
    reader = BatchReader(part.dataset, transforms)
    is_ragged = "offsets" in reader.keys
    clouds: list[np.ndarray] = []
    labels: list[int] = []
    sizes: list[float] = []
    started = compute_seconds()
    for keys in _pieces(part, config.seed, one_by_one=is_ragged):
        try:
            batch = reader(keys)
            seen = part.reader(keys) if is_training and not is_ragged else batch
        except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
            break
        found = _clouds(batch)
        if found is None or (given := _clouds(seen)) is None:
            break
        classes = _classes(batch, len(found))
        is_finite = [bool(np.isfinite(cloud).all()) for cloud in found]  # `non-finite-data` reports the others
        clouds += [cloud for cloud, is_whole in zip(found, is_finite, strict=True) if is_whole]
        labels += [label for label, is_whole in zip(classes, is_finite, strict=True) if is_whole]
        sizes += [_size(cloud[:, :3]) for cloud in given if len(cloud) and np.isfinite(cloud[:, :3]).all()]
        if compute_seconds() - started > _MOST_SECONDS:
            break
    name = f"{config.data.name}/{part.split}"
    return CloudSample(part.dataset.info, name, tuple(clouds), tuple(labels), tuple(sizes))


def _pieces(part: DataSubset, seed: int, *, one_by_one: bool) -> Iterator[list[SampleKey]]:
    """What is read before the clock is looked at."""
    for keys in evenly_spaced_keys(part, epoch=0, seed=seed):
        yield from ([key] for key in keys) if one_by_one else [keys]


def compare_sets(
    trained: CloudSample, evaluated: CloudSample, *, place: Callable[..., FindingLocation]
) -> list[Finding]:
    """What differs: what the sets declare themselves (errors), and else what their clouds show (warnings)."""
    sets = _Sets(trained, evaluated, place)
    return list(_declared(sets)) or [*_of_scale(sets), *_of_order(sets)]


class _Sets(NamedTuple):
    """What was trained on, what is evaluated, and the place in a config of a dotted path."""

    trained: CloudSample
    evaluated: CloudSample
    place: Callable[..., FindingLocation]

    def finding(self, field: str, summary: str, **fields: Any) -> Finding:
        """A finding about a field of what is evaluated."""
        trained, evaluated, place = self
        looked_at = f"{len(evaluated.clouds)} clouds of {evaluated.name}, {len(trained.clouds)} of {trained.name}"
        where = place("data", dataset=evaluated.name)
        return dataset_mismatch.finding(where, summary, evidence={"field": field, "looked_at": looked_at}, **fields)


def _declared(sets: _Sets) -> Iterator[Finding]:
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
    for field, what, mine, other, cause in pairs:
        if mine is not None and other is not None and mine != other:
            yield sets.finding(
                field,
                f"{what} of {evaluated.name} is not that of the training data",
                severity="error",
                causes=(cause, "data.layout"),
                measured=f"{what}: {_shown(other)} in {evaluated.name}",
                expected=f"{_shown(mine)}, as in {trained.name}",
                action="prepare both sets alike (sightline data info DIR shows how each was), or set data alike",
            )
            return


def _of_scale(sets: _Sets) -> Iterator[Finding]:
    """Sizes that do not overlap at all and are far apart."""
    trained, evaluated, _ = sets
    if min(len(trained.sizes), len(evaluated.sizes)) < _FEWEST:
        return
    ours, theirs = np.array(trained.sizes), np.array(evaluated.sizes)
    if not (ours > 0).all() or not (theirs > 0).all():
        return
    ratio = float(np.median(theirs) / np.median(ours))
    is_apart = theirs.min() > ours.max() or theirs.max() < ours.min()
    if not is_apart or max(ratio, 1 / ratio) < _OTHER_SCALE:
        return
    unit = next((f": {words}?" for factor, words in _UNITS.items() if 0.5 < max(ratio, 1 / ratio) / factor < 2), "")
    yield sets.finding(
        "points",
        f"clouds of {evaluated.name} are {ratio:.3g} times as large as those trained on{unit}",
        causes=("data.normalisation", "data.sampling", "cfg.contract"),
        measured=f"median radius {np.median(theirs):.4g} ({theirs.min():.4g} .. {theirs.max():.4g})",
        expected=f"about {np.median(ours):.4g} ({ours.min():.4g} .. {ours.max():.4g} in {trained.name})",
        action="bring both sets to one unit, or normalise in transforms.train and in transforms.evaluate",
    )


def _of_order(sets: _Sets) -> Iterator[Finding]:
    """Columns in whose exchanged order nearly every cloud looks more like the training clouds of its class."""
    trained, evaluated, _ = sets
    ours, theirs = _statistics(trained), _statistics(evaluated)
    shared = set(trained.labels) & set(evaluated.labels)
    if ours is None or theirs is None or ours.shape[1] != theirs.shape[1] or not shared:
        return
    labels, known = np.array(evaluated.labels), np.array(trained.labels)
    is_shared = np.isin(labels, list(shared))
    centres = {label: ours[known == label].mean(axis=0) for label in shared}
    expected = np.stack([centres[label] for label in labels[is_shared]])
    spread = _spread(ours, known)
    plain = _distances(theirs[is_shared], expected, spread)
    exchanges = list(_exchanges(trained.info, ours.shape[1]))
    if _upper_tail(len(plain), len(plain)) * len(exchanges) >= _CHANCE:
        yield _of_too_few(sets, len(plain), len(exchanges))
        return
    best: tuple[float, float, int, _Exchange] | None = None
    for exchange in exchanges:
        turned = _distances(theirs[is_shared][:, list(exchange.order)], expected, spread)
        wins, losses = int((turned < plain).sum()), int((turned > plain).sum())
        chance = _upper_tail(wins, wins + losses) * len(exchanges)
        if turned.mean() < _BETTER * plain.mean() and chance < _CHANCE and (best is None or turned.mean() < best[0]):
            best = (float(turned.mean()), chance, wins, exchange)
    if best is not None:
        yield _of_exchange(sets, best[3], best[2], len(plain), best[0] / float(plain.mean()))


def _of_too_few(sets: _Sets, num_clouds: int, num_exchanges: int) -> Finding:
    """Even if every cloud voted for one order, chance could have done it."""
    needed = math.floor(math.log2(num_exchanges / _CHANCE)) + 1
    return sets.finding(
        "points",
        f"too few clouds of {sets.evaluated.name} to decide whether axes or channels are swapped",
        severity="note",
        causes=("cfg.axis_swap", "data.layout"),
        measured=f"{num_clouds} cloud{'' if num_clouds == 1 else 's'} of classes that were trained on",
        expected=f"{needed} or more, so that agreement of all of them is not chance",
        action="look at both sets as pictures: is the same axis up in both?",
    )


def _of_exchange(sets: _Sets, exchange: _Exchange, wins: int, num_clouds: int, share: float) -> Finding:
    return sets.finding(
        "points" if exchange.cause == "cfg.axis_swap" else "features",
        f"clouds of {sets.evaluated.name} look like those trained on with {exchange.what}",
        causes=(exchange.cause, "data.layout" if exchange.cause != "data.layout" else "cfg.contract"),
        measured=f"so {wins} of {num_clouds} clouds lie nearer to the training clouds of their class; their mean "
        f"distance falls to {share:.2g} of what it is",
        expected="as many nearer as farther, or fewer, where the columns mean the same",
        action="look at both sets as pictures; prepare them with the same columns and the same axis up",
    )


def _exchanges(info: DataInfo, num_channels: int) -> Iterator[_Exchange]:
    """Axes in another order, alone and with the normals' axes; points for normals; any two other columns."""
    start, widths = 3, {}
    for name in info.features:
        widths[name] = start
        start += 3 if name == "normals" else _width(info, name, num_channels - start)
    normals = widths.get("normals")
    for axes in itertools.permutations(range(3)):
        if axes == (0, 1, 2):
            continue
        what = "the axes in the order " + ", ".join("xyz"[axis] for axis in axes)
        moved = [*axes, *range(3, num_channels)]
        if normals is not None:
            yield _Exchange(tuple(moved), f"{what} (normals as they are)", "cfg.axis_swap")
            moved[normals : normals + 3] = [normals + axis for axis in axes]
        yield _Exchange(tuple(moved), what, "cfg.axis_swap")
    if normals is not None:
        moved = list(range(num_channels))
        moved[:3], moved[normals : normals + 3] = range(normals, normals + 3), range(3)
        yield _Exchange(tuple(moved), "points and normals exchanged", "data.layout")
    for one, two in itertools.combinations(range(3, num_channels), 2):
        moved = list(range(num_channels))
        moved[one], moved[two] = two, one
        yield _Exchange(tuple(moved), f"channels {one} and {two} exchanged", "data.layout")


def _width(info: DataInfo, name: str, otherwise: int) -> int:
    words = info.fields[name].shape.split() if name in info.fields else []
    return int(words[-1]) if words and words[-1].isdecimal() else otherwise


def _statistics(inputs: CloudSample) -> np.ndarray | None:
    """Mean and spread of each column of each cloud, (clouds, C, 2); coordinates in root mean square radii."""
    widths = {cloud.shape[1] for cloud in inputs.clouds}
    if len(widths) != 1 or not all(np.isfinite(cloud).all() for cloud in inputs.clouds):
        return None
    table = np.stack([np.stack([cloud.mean(axis=0), cloud.std(axis=0)], axis=1) for cloud in inputs.clouds])
    sizes = np.sqrt((table[:, :3, 1] ** 2).sum(axis=1))
    table[:, :3] /= np.where(sizes > 0, sizes, 1.0)[:, None, None]
    return table


def _spread(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How far clouds of one class lie apart in each statistic, (C, 2), at least a share of the columns' usual size."""
    within = np.concatenate(
        [table[labels == label] - table[labels == label].mean(axis=0) for label in np.unique(labels)]
    )
    usual = np.sqrt((table**2).mean(axis=(0, 2)))
    usual[:3] = 1.0
    least = _LEAST_SPREAD * np.where(usual > 0, usual, 1.0)
    return np.maximum(within.std(axis=0), least[:, None])


def _distances(table: np.ndarray, expected: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return (((table - expected) / spread) ** 2).sum(axis=(1, 2))


def _upper_tail(wins: int, trials: int) -> float:
    """The chance of so many wins or more of a fair coin. Source: the sign test (Arbuthnot 1710)."""
    return sum(math.comb(trials, k) for k in range(wins, trials + 1)) / 2**trials


def _clouds(batch: Batch) -> list[np.ndarray] | None:
    """Points and features of each cloud, (N, C) float64, stacked or one after another; None where there are none."""
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


def _classes(batch: Mapping[str, Any], count: int) -> list[int]:
    """The class of each cloud: its label, or its category where labels are of points; 0 for all where it has none."""
    for name in ("label", "category"):
        value = batch.get(name)
        if isinstance(value, Tensor) and value.shape == (count,) and not value.is_floating_point():
            return [int(each) for each in value]
    return [0] * count


def _size(points: np.ndarray) -> float:
    """The root mean square distance of the points (N, 3) from their mean."""
    return float(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value) or "none stated"
