"""Pictures of other objects than the clouds that they are paired with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from sightline.data.store.prepared_writer import normalize_to_unit_sphere
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import read_samples
from sightline.engine.build import DataSubset
from sightline.errors import DataError
from sightline.geometry.cameras import Cameras, ring_cameras
from sightline.geometry.rendering import render_cloud
from sightline.optional_members import DataMembers
from sightline.types import SampleKey

__all__ = ["mismatched_image"]

_MOST_SAMPLES = 16
_NEIGHBOURS = (-2, -1, 1, 2)
_FEWEST = 4
"""Of fewer objects, one that looks best like another proves little."""
_AS_GOOD = 0.02
_MOST_STRANGE = 0.75
"""Some clouds of one class look alike, above all where the views are of meshes; of other objects nearly none do."""


@check("G2", "mismatched-image", "preflight", config_path="data")
def mismatched_image(context: Context) -> list[Finding]:
    """The picture of a sample is, bit for bit, one of those that the view store has under the name of its cloud.

    And where the store has its cameras: the cloud drawn anew by two of them covers what its own pictures show better
    than what the pictures of other objects show, for more than a quarter of the clouds.
    """
    part = context.built.data.train
    pictures = DataMembers.pictures.get(part.dataset)
    if pictures is None or "image" not in part.dataset.info.fields or DataMembers.name_of.get(part.dataset) is None:
        return []
    keys = [SampleKey(int(index), 0, context.config.seed) for index in part.evenly_spaced_indices(_MOST_SAMPLES)]
    try:
        samples = read_samples(part.dataset, keys)
    except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
        return []
    foreign = [
        (key.index, whose)
        for key, sample in zip(keys, samples, strict=True)
        if (whose := _whose(part, pictures, key.index, np.asarray(sample["image"]))) != part.sample_name(key.index)
    ]
    if foreign:
        return [_of_foreign(context, pictures, part, foreign, len(keys))]
    strange = _strange_of(part, pictures, keys, samples)
    is_of_others = len(strange) >= max(1, _MOST_STRANGE * len(keys))
    return [_of_strangers(context, pictures, part, strange, len(keys))] if is_of_others else []


class _Strange(NamedTuple):
    """A sample whose cloud the pictures of another object show better: how well its own do, and those."""

    sample: int
    whose: str
    own: float
    best: float


def _strange_of(part: DataSubset, pictures: Any, keys: list[SampleKey], samples: list[Any]) -> list[_Strange]:
    """Samples whose clouds the pictures of another of them show better, by silhouettes of two cameras.

    Clouds are drawn from the directions of the store. Where a silhouette lies in its picture does not count: a cloud is
    centred on its mean, a mesh on its box. None where the store does not record cameras.
    """
    manifest = getattr(pictures.views, "manifest", {})  # a set that renders by itself keeps none
    made_by = manifest.get("cameras")
    if made_by is None or len(keys) < _FEWEST or "points" not in samples[0]:
        return []
    cameras = ring_cameras(
        made_by["count"],
        size_px=pictures.views.size_px,
        up_axis=manifest["up_axis"],
        elevations_deg=made_by["elevations_deg"],
        projection=made_by["projection"],
    )
    chosen = np.unique([0, made_by["count"] // 4])
    names = [part.sample_name(key.index) for key in keys]
    shown = [
        _centred([pictures.views.image(name, int(view), background="black").any(axis=-1) for view in chosen])
        for name in names
    ]
    some = Cameras(cameras.rotations[chosen], cameras.size_px, cameras.scale_px, cameras.distance)
    try:
        drawn = [
            _centred(render_cloud(normalize_to_unit_sphere(np.asarray(sample["points"]), where=name), some) > 0)
            for name, sample in zip(names, samples, strict=True)
        ]
    except (DataError, ValueError):  # a cloud that cannot be drawn is another check's
        return []
    shares = np.array([[_overlap(own, picture) for picture in shown] for own in drawn])
    best = shares.argmax(axis=1)
    return [
        _Strange(key.index, names[best[row]], float(shares[row, row]), float(shares[row, best[row]]))
        for row, key in enumerate(keys)
        if shares[row, row] < shares[row, best[row]] - _AS_GOOD
    ]


def _centred(silhouettes: Iterable[np.ndarray]) -> np.ndarray:
    """The same, each moved so that the box about it lies in the middle of its picture."""
    moved = []
    for shown in silhouettes:
        rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
        ends = zip(shown.shape, (rows, columns), strict=True)
        steps = [(size - 1 - int(seen[0]) - int(seen[-1])) // 2 if len(seen) else 0 for size, seen in ends]
        moved.append(np.roll(shown, steps, axis=(0, 1)))  # what it moves over the edge is empty
    return np.stack(moved)


def _overlap(drawn: np.ndarray, shown: np.ndarray) -> float:
    """What two silhouettes share, of what either covers."""
    return float((drawn & shown).sum() / max(1, (drawn | shown).sum()))


def _whose(part: DataSubset, pictures: Any, index: int, image: np.ndarray) -> str:
    """The name of the object that the picture is of: its own, one that is read next to it, or none that was found."""
    size = len(part.dataset)
    for near in (index, *(index + step for step in _NEIGHBOURS)):
        name = part.sample_name(near % size)
        if name in pictures.views.names and _is_view(pictures, name, image):
            return name
    return ""


def _is_view(pictures: Any, name: str, image: np.ndarray) -> bool:
    views = pictures.views
    number = int(views.counts(views.row_indices([name], set_name="the check"))[0])
    return any(np.array_equal(views.image(name, view, background=pictures.background), image) for view in range(number))


def _of_strangers(context: Context, pictures: Any, part: DataSubset, strange: list[_Strange], num_read: int) -> Finding:
    listed = "; ".join(
        f"{part.sample_name(each.sample)} overlaps {each.own:.0%} with its own pictures, {each.best:.0%} with those of "
        f"{each.whose}"
        for each in strange[:3]
    )
    views = pictures.views
    return mismatched_image.finding(
        context,
        f"pictures under the clouds' names show other objects: {len(strange)} of {num_read} looked at",
        causes=("data.pairing", "data.path"),
        split="train",
        sample=strange[0].sample,
        measured=listed,
        expected=f"clouds that cover what {views.root} shows of them (silhouettes from two of its cameras)",
        action=f"render the set that is read: sightline data render SET --to DIR; these are of "
        f"{views.manifest['source']['path']}",
        evidence={"strange": [[part.sample_name(each.sample), each.whose, each.own, each.best] for each in strange]},
    )


def _of_foreign(
    context: Context, pictures: Any, part: DataSubset, foreign: list[tuple[int, str]], num_read: int
) -> Finding:
    listed = "; ".join(
        f"the picture of {part.sample_name(index)} is {f'of {whose}' if whose else 'none of its own'}"
        for index, whose in foreign[:3]
    )
    return mismatched_image.finding(
        context,
        f"clouds are paired with pictures of other objects: {len(foreign)} of {num_read} looked at",
        causes=("data.pairing", "data.path", "data.ordering"),
        split="train",
        sample=foreign[0][0],
        measured=listed,
        expected=f"one of the views that {pictures.views.root} has under the cloud's own name",
        action="pair clouds and pictures by their names, never by their order",
        evidence={"foreign": [[part.sample_name(index), whose] for index, whose in foreign]},
    )
