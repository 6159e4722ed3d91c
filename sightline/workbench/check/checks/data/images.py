"""Checks of images and views: normalisation, and whether they belong to their samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from sightline.contract.errors import DataError
from sightline.contract.members import DataMembers
from sightline.contract.types import SampleKey
from sightline.engine.build import DataSubset
from sightline.ops.numba_kernels import compute_seconds
from sightline.ops.pinhole import Cameras, ring_cameras
from sightline.ops.rendering import render_cloud
from sightline.store.prepared.prepared_writer import normalize_to_unit_sphere
from sightline.workbench.check.checks.data.projection_coverage import PartImages, images_by_part
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault, Hypothesis, explain
from sightline.workbench.check.core.sample_statistics import describe_sample, read_samples

_MAX_SAMPLES = 16
_NEIGHBOURS = (-2, -1, 1, 2)
_MIN_SAMPLES = 4
"""Number of objects; among fewer, a better match of another object's pictures proves little."""
_MIN_MARGIN = 0.02
_MIN_STRANGE = 0.75
"""Share of clouds that match another object's pictures better: some do within a class, nearly all in a wrong store."""


@check("mismatched-image", "preflight", config_path="data")
def mismatched_image(context: Context) -> Fault | None:
    """A sample's image is, bit for bit, one of the views stored under the name of its cloud.

    Finds: Images that show other objects than the clouds that they are paired with.

    If the store records its cameras: rendered from two of them, more than a quarter of the clouds overlap their own
    pictures better than those of other objects.
    """
    part = context.built.data.train
    pictures = DataMembers.pictures.get(part.dataset)
    if pictures is None or "image" not in part.dataset.info.fields or DataMembers.sample_name.get(part.dataset) is None:
        return None
    keys = [SampleKey(int(index), 0, context.config.seed) for index in part.evenly_spaced_indices(_MAX_SAMPLES)]
    try:
        samples = read_samples(part.dataset, keys)
    except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
        return None
    shown_names = {
        key.index: _find_object_name(part, pictures, key.index, np.asarray(sample["image"]))
        for key, sample in zip(keys, samples, strict=True)
    }
    foreign = [(index, name) for index, name in shown_names.items() if name != part.sample_name(index)]
    if foreign:
        listed = "; ".join(
            f"the picture of {part.sample_name(index)} is {f'of {shown_name}' if shown_name else 'none of its own'}"
            for index, shown_name in foreign[:3]
        )
        return Fault(
            f"clouds are paired with pictures of other objects: {len(foreign)} of {len(keys)} looked at",
            causes=("data.pairing", "data.path", "data.ordering"),
            split="train",
            sample=foreign[0][0],
            measured=listed,
            expected=f"one of the views that {pictures.views.root} has under the cloud's own name",
            action="pair clouds and pictures by their names, never by their order",
            evidence={"foreign": [[part.sample_name(index), shown_name] for index, shown_name in foreign]},
        )
    strange = _find_strange(part, pictures, keys, samples)
    if len(strange) < max(1, _MIN_STRANGE * len(keys)):
        return None
    rows = [[part.sample_name(row.sample), row.best_name, row.own_iou, row.best_iou] for row in strange]
    return Fault(
        f"pictures under the clouds' names show other objects: {len(strange)} of {len(keys)} looked at",
        causes=("data.pairing", "data.path"),
        split="train",
        sample=strange[0].sample,
        measured="; ".join(
            f"{name} overlaps {own:.0%} with its own pictures, {best:.0%} with those of {other}"
            for name, other, own, best in rows[:3]
        ),
        expected=f"clouds whose silhouettes match the pictures of {pictures.views.root} (silhouettes from two of its "
        "cameras)",
        action=f"render the set that is read: sightline data render SET --to DIR; these are of "
        f"{pictures.views.manifest['source']['path']}",
        evidence={"strange": rows},
    )


class _Strange(NamedTuple):
    """Sample whose cloud matches another object's pictures better, with the IoUs of its own and of those."""

    sample: int
    best_name: str
    own_iou: float
    best_iou: float


def _find_strange(part: DataSubset, pictures: Any, keys: list[SampleKey], samples: list[Any]) -> list[_Strange]:
    """Find samples whose silhouettes from two cameras match another sample's pictures better than their own.

    Clouds are rendered from the cameras of the store. Silhouettes are centred before they are compared: a cloud is
    centred on its mean, a mesh on its box. Without recorded cameras the list is empty.
    """
    manifest = getattr(pictures.views, "manifest", {})  # a set that renders by itself has none
    camera_settings = manifest.get("cameras")
    if camera_settings is None or len(keys) < _MIN_SAMPLES or "points" not in samples[0]:
        return []
    cameras = ring_cameras(
        camera_settings["count"],
        size_px=pictures.views.size_px,
        up_axis=manifest["up_axis"],
        elevations_deg=camera_settings["elevations_deg"],
        projection=camera_settings["projection"],
    )
    view_indices = np.unique([0, camera_settings["count"] // 4])
    names = [part.sample_name(key.index) for key in keys]
    picture_masks = [
        _centre_masks([pictures.views.image(name, int(view), background="black").any(axis=-1) for view in view_indices])
        for name in names
    ]
    chosen = Cameras(cameras.rotations[view_indices], cameras.size_px, cameras.scale_px, cameras.distance)
    try:
        cloud_masks = [
            _centre_masks(render_cloud(normalize_to_unit_sphere(np.asarray(sample["points"]), where=name), chosen) > 0)
            for name, sample in zip(names, samples, strict=True)
        ]
    except (DataError, ValueError):  # other checks report a cloud that cannot be rendered
        return []
    ious = np.array([[_compute_iou(cloud, picture) for picture in picture_masks] for cloud in cloud_masks])
    best = ious.argmax(axis=1)
    return [
        _Strange(key.index, names[best[row]], float(ious[row, row]), float(ious[row, best[row]]))
        for row, key in enumerate(keys)
        if ious[row, row] < ious[row, best[row]] - _MIN_MARGIN
    ]


def _centre_masks(silhouettes: Iterable[np.ndarray]) -> np.ndarray:
    """Shift each silhouette so that its bounding box is in the middle of its image."""
    centred = []
    for silhouette in silhouettes:
        rows, columns = np.flatnonzero(silhouette.any(axis=1)), np.flatnonzero(silhouette.any(axis=0))
        ends = zip(silhouette.shape, (rows, columns), strict=True)
        steps = [(size - 1 - int(filled[0]) - int(filled[-1])) // 2 if len(filled) else 0 for size, filled in ends]
        centred.append(np.roll(silhouette, steps, axis=(0, 1)))  # what leaves the image on one side is empty
    return np.stack(centred)


def _compute_iou(drawn: np.ndarray, pictured: np.ndarray) -> float:
    """Compute the IoU of two silhouettes."""
    return float((drawn & pictured).sum() / max(1, (drawn | pictured).sum()))


def _find_object_name(part: DataSubset, pictures: Any, index: int, image: np.ndarray) -> str:
    """Return the name of the object in the image: its own, one that is read next to it, or "" if none matches."""
    size = len(part.dataset)
    for neighbour in (index, *(index + step for step in _NEIGHBOURS)):
        name = part.sample_name(neighbour % size)
        if name in pictures.views.names and _is_view(pictures, name, image):
            return name
    return ""


def _is_view(pictures: Any, name: str, image: np.ndarray) -> bool:
    views = pictures.views
    number = int(views.counts(views.row_indices([name], set_name="the check"))[0])
    return any(np.array_equal(views.image(name, view, background=pictures.background), image) for view in range(number))


_MAX_VIEW_SAMPLES = 64
_MIN_OBJECTS = 24
_CHUNK = 16
_MAX_SECONDS = 0.5  # CPU time of this thread
_NUM_READ_ALONE = 4
_TOLERANCE = 1e-4  # of colours and coordinates about 1; exchanged or newly drawn values differ by far more
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


@check("mismatched-views", "preflight", config_path="transforms.train")
def mismatched_views(context: Context) -> Fault | None:
    """Both clouds of a row resemble the row's object, and differ from each other.

    Finds: Paired views that show different objects, or that are the same.

    Shapes are compared by statistics that do not depend on rotation, translation and scale: if one view is
    significantly nearer to its own object than to others and the other view is not, that one shows something else.
    """
    part = context.built.data.train
    if not {"points", "other_points"} <= part.reader.keys or "offsets" in part.reader.keys:
        return None
    try:
        fault = _judge_equality(part, context.config.seed) or _judge_shapes(_read_objects(context))
        if fault is not None:
            sample = describe_sample(part.dataset, fault.sample or 0)
            fault = replace(fault, split="train", evidence={**fault.evidence, "sample": sample})
    except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
        return None
    return fault


def shape_statistics(points: np.ndarray) -> np.ndarray:
    """Compute 12 statistics of a cloud (P, 3), invariant to rotation, translation and scale: spreads, distances."""
    centred = points - points.mean(axis=0)
    distances = np.linalg.norm(centred, axis=1)
    size = np.sqrt((distances**2).mean())
    if not size > 0:
        return np.zeros(3 + len(_QUANTILES))
    spread = np.linalg.svd(centred, compute_uv=False) / (size * np.sqrt(len(points)))
    return np.concatenate([spread, np.quantile(distances, _QUANTILES) / size])


def _judge_equality(part: DataSubset, seed: int) -> Fault | None:
    """Find two views that are equal in every row: there is nothing to learn from such a pair."""
    batch = part.reader([SampleKey(int(index), 0, seed) for index in part.indices[:_NUM_READ_ALONE]])
    first, second = batch["points"], batch["other_points"]
    if first.shape != second.shape or not torch.allclose(first, second, rtol=_TOLERANCE, atol=_TOLERANCE):
        return None
    return Fault(
        "both views of an object are the same: they were drawn with the same random numbers",
        causes=("data.duplicate_randomness", "data.pairing"),
        sample=int(part.indices[0]),
        measured=f"'points' and 'other_points' are equal in {len(first)} of {len(first)} rows",
        expected="two views that differ: draw each from a stream of its own",
        action="draw the second view from `draws.stream('second')`, or from a generator that goes on",
        evidence={"field": "other_points"},
    )


def _read_objects(context: Context) -> _PairedClouds:
    """Read consecutive objects, so that views shifted by one row still have their object among them."""
    part = context.built.data.train
    objects = _PairedClouds([], [], [], [])
    started = compute_seconds()
    for start in range(0, min(_MAX_VIEW_SAMPLES, len(part.indices)), _CHUNK):
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


def _judge_shapes(paired: _PairedClouds) -> Fault | None:
    if len(paired.keys) < _MIN_OBJECTS or not _are_finite(paired):
        return None
    objects, *views = (np.stack([shape_statistics(cloud) for cloud in clouds]) for clouds in paired[1:])
    likeness = [_compute_likeness(objects, view) for view in views]
    error = _UNIFORM_STD / len(objects) ** 0.5
    best, worst = max(likeness), min(likeness)
    if best < 0.5 + _MIN_SIGMA * error or worst > 0.5 + _MAX_CHANCE_SIGMA * error:
        return None
    index = likeness.index(worst)
    name = ("points", "other_points")[index]
    shifts = explain(
        views[index],
        0,
        (Hypothesis("data.pairing", "rows are shifted", shift) for shift in (-2, -1, 1, 2)),
        likeness=lambda view, shift: _compute_likeness(objects, np.roll(view, shift, axis=0)),
        above=np.nextafter(0.5 + _MIN_SIGMA * error, 0),
    )
    shift = shifts[0].hypothesis.prediction if shifts else None
    detail = "" if shift is None else f"; it resembles the objects {abs(shift)} {'on' if shift > 0 else 'back'}"
    return Fault(
        f"'{name}' does not show the objects of its rows{detail}",
        severity="warning",
        causes=("data.pairing", "data.augment_target_mismatch"),
        sample=paired.keys[0].index,
        measured=f"this view is nearer to its own object than to {worst:.0%} of the others, the other view than to "
        f"{best:.0%} ({len(objects)} objects)",
        expected=f"similar shares for both views, well above {0.5 + _MAX_CHANCE_SIGMA * error:.0%}: chance is 50%",
        action="make both views of one row from one object: see the transform or data set that gives them",
        evidence={"field": name, "shift": shift},
    )


def _compute_likeness(objects: np.ndarray, views: np.ndarray) -> float:
    """Compute the mean share of other objects that are farther from a view than its own; 0.5 is chance."""
    distances = _compute_distances(objects, views)
    own_distances = np.diag(distances)[:, None]
    is_other = ~np.eye(len(objects), dtype=bool)
    is_farther = (distances > own_distances) + 0.5 * (distances == own_distances)
    return float((is_farther * is_other).sum() / is_other.sum())


def _compute_distances(objects: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Compute distances (views, objects) of shape statistics, each in units of its standard deviation."""
    spread = np.maximum(objects.std(axis=0), 1e-6)
    return np.linalg.norm((views[:, None] - objects[None]) / spread, axis=2)


def _are_finite(paired: _PairedClouds) -> bool:
    return all(np.isfinite(cloud).all() for clouds in paired[1:] for cloud in clouds)


def _to_array(points: Any) -> np.ndarray:
    return np.asarray(points, dtype=np.float64)


_CHANNELS = ("range", "x", "y", "z", "remission")
_MAX_MEAN = 3.0
_UNITS = {1000: ": coordinates look like millimetres", 100: ": coordinates look like centimetres"}
"""Ratio of the mean range to that of the sensor, and what it suggests; scans are in metres."""
_MIN_STD, _MAX_STD = 0.02, 10.0
"""Standard deviations of the filled pixels after normalisation; 0 to 255 for 0 to 1 is a factor of 255."""


@check(
    "input-statistics",
    "preflight",
    each=images_by_part,
    severity="warning",
    causes=("data.normalisation", "data.layout", "cfg.override"),
    config_path="data.sensor",
)
def input_statistics(context: Context, images: PartImages) -> Fault | None:
    """Normalised channels have a mean from -3 to 3 and a deviation from 1/50 to 10 over the filled pixels.

    Finds: Range images that `input_mean` and `input_std` do not normalise to mean 0 and standard deviation 1.
    """
    facts = images.part.dataset.info.facts
    is_filled = images.range_image >= 0
    image = torch.cat([batch["image"] for batch in images.batches]).cpu().movedim(1, -1)[is_filled].double()
    if len(image) < 2:
        return None
    mean, std = image.mean(dim=0), image.std(dim=0)
    for channel, name in enumerate(_CHANNELS):
        channel_mean, channel_std = float(mean[channel]), float(std[channel])
        is_constant = channel_std < 1e-6  # files without remissions have zeros
        if abs(channel_mean) <= _MAX_MEAN and (_MIN_STD <= channel_std <= _MAX_STD or is_constant):
            continue
        stated, scale = facts["input_mean"][channel], facts["input_std"][channel]
        order = _find_order(images.part, facts) if name in ("x", "y", "z") else ""
        factor = (facts["input_mean"][0] + float(mean[0]) * facts["input_std"][0]) / facts["input_mean"][0]
        guess = next((text for unit, text in _UNITS.items() if unit / 3 < factor < 3 * unit), "")
        guess = f": coordinates look like {order}" if order else guess
        return Fault(
            f"the scans are unlike those that the sensor's mean and deviation describe, first in {name}{guess}",
            causes=("data.layout", "data.normalisation") if order else (),
            measured=f"{name} {stated + channel_mean * scale:.4g} with a deviation of {channel_std * scale:.4g} in "
            f"{images.num_scans} scans: after normalisation {channel_mean:.3g} and {channel_std:.3g}",
            expected=f"about {stated:g} and {scale:g}, as data.sensor or its preset has them ({', '.join(_CHANNELS)})",
            action="write x, y, z in metres, or correct sensor.remission_max or the order of the five numbers; for "
            "another sensor leave input_mean and input_std out, so that they are measured",
            evidence={"field": "image", "mean": mean.tolist(), "std": std.tolist()},
        )
    return None


def _find_order(part: DataSubset, facts: Mapping[str, Any]) -> str:
    """Find the order of x, y and z in which a scan, before any transform, is as stated; "" without one."""
    stated_mean, stated_std = (torch.tensor(facts[f"input_{name}"][1:4]).double() for name in ("mean", "std"))
    points = torch.as_tensor(read_samples(part.dataset, [SampleKey(int(part.indices[0]), 0, 0)])[0]["points"]).double()
    found_mean, found_std = points.mean(dim=0), points.std(dim=0)
    for order in list(itertools.permutations((0, 1, 2)))[1:]:
        back = [order.index(axis) for axis in range(3)]  # what is found at place i is axis order[i]
        means, stds = (found_mean[back] - stated_mean) / stated_std, found_std[back] / stated_std
        if bool((means.abs() < 1).all() and ((stds > 0.5) & (stds < 2)).all()):
            return ", ".join("xyz"[axis] for axis in order)
    return ""
