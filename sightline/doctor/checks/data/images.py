"""Checks of images and views: normalisation, and whether they belong to their samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.data.store.prepared_writer import normalize_to_unit_sphere
from sightline.doctor.checks.data.projection_coverage import PartImages, images_by_part
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import describe_sample, read_samples
from sightline.engine.build import DataSubset
from sightline.errors import DataError
from sightline.geometry.pinhole import Cameras, ring_cameras
from sightline.geometry.rendering import render_cloud
from sightline.numba_kernels import compute_seconds
from sightline.optional_members import DataMembers
from sightline.types import Batch, SampleKey

_MAX_SAMPLES = 16
_NEIGHBOURS = (-2, -1, 1, 2)
_MIN_SAMPLES = 4
"""Number of objects; among fewer, a better match of another object's pictures proves little."""
_MIN_MARGIN = 0.02
_MIN_STRANGE = 0.75
"""Share of clouds that match another object's pictures better: some do within a class, nearly all in a wrong store."""


@check("G2", "mismatched-image", "preflight", config_path="data")
def mismatched_image(context: Context) -> list[Finding]:
    """A sample's image is, bit for bit, one of the views stored under the name of its cloud.

    Finds: Images that show other objects than the clouds that they are paired with.

    If the store records its cameras: rendered from two of them, more than a quarter of the clouds overlap their own
    pictures better than those of other objects.
    """
    part = context.built.data.train
    pictures = DataMembers.pictures.get(part.dataset)
    if pictures is None or "image" not in part.dataset.info.fields or DataMembers.sample_name.get(part.dataset) is None:
        return []
    keys = [SampleKey(int(index), 0, context.config.seed) for index in part.evenly_spaced_indices(_MAX_SAMPLES)]
    try:
        samples = read_samples(part.dataset, keys)
    except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
        return []
    foreign = [
        (key.index, name)
        for key, sample in zip(keys, samples, strict=True)
        if (name := _find_object_name(part, pictures, key.index, np.asarray(sample["image"])))
        != part.sample_name(key.index)
    ]
    if foreign:
        return [_finding_foreign(context, pictures, part, foreign, len(keys))]
    strange = _find_strange(part, pictures, keys, samples)
    is_of_others = len(strange) >= max(1, _MIN_STRANGE * len(keys))
    return [_finding_strange(context, pictures, part, strange, len(keys))] if is_of_others else []


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


def _finding_strange(
    context: Context, pictures: Any, part: DataSubset, strange: list[_Strange], num_read: int
) -> Finding:
    listed = "; ".join(
        f"{part.sample_name(row.sample)} overlaps {row.own_iou:.0%} with its own pictures, {row.best_iou:.0%} with "
        f"those of {row.best_name}"
        for row in strange[:3]
    )
    views = pictures.views
    return mismatched_image.finding(
        context,
        f"pictures under the clouds' names show other objects: {len(strange)} of {num_read} looked at",
        causes=("data.pairing", "data.path"),
        split="train",
        sample=strange[0].sample,
        measured=listed,
        expected=f"clouds whose silhouettes match the pictures of {views.root} (silhouettes from two of its cameras)",
        action=f"render the set that is read: sightline data render SET --to DIR; these are of "
        f"{views.manifest['source']['path']}",
        evidence={
            "strange": [[part.sample_name(row.sample), row.best_name, row.own_iou, row.best_iou] for row in strange]
        },
    )


def _finding_foreign(
    context: Context, pictures: Any, part: DataSubset, foreign: list[tuple[int, str]], num_read: int
) -> Finding:
    listed = "; ".join(
        f"the picture of {part.sample_name(index)} is {f'of {shown_name}' if shown_name else 'none of its own'}"
        for index, shown_name in foreign[:3]
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
        evidence={"foreign": [[part.sample_name(index), shown_name] for index, shown_name in foreign]},
    )


_MAX_VIEW_SAMPLES = 64
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


_CHANNELS = ("range", "x", "y", "z", "remission")
_MAX_MEAN = 3.0
_UNITS = {1000: ": coordinates look like millimetres", 100: ": coordinates look like centimetres"}
"""Ratio of the mean range to that of the sensor, and what it suggests; scans are in metres."""
_MIN_STD, _MAX_STD = 0.02, 10.0
"""Standard deviations of the filled pixels after normalisation; 0 to 255 for 0 to 1 is a factor of 255."""


@check(
    "G3",
    "input-statistics",
    "preflight",
    severity="warning",
    causes=("data.normalisation", "data.layout", "cfg.override"),
    config_path="data.sensor",
)
def input_statistics(context: Context) -> list[Finding]:
    """Normalised channels have a mean from -3 to 3 and a deviation from 1/50 to 10 over the filled pixels.

    Finds: Range images that `input_mean` and `input_std` do not normalise to mean 0 and standard deviation 1.
    """
    return [finding for images in images_by_part(context) if (finding := _finding_part(context, images)) is not None]


def _finding_part(context: Context, images: PartImages) -> Finding | None:
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
        factor = (facts["input_mean"][0] + float(mean[0]) * facts["input_std"][0]) / facts["input_mean"][0]
        guess = next((text for unit, text in _UNITS.items() if unit / 3 < factor < 3 * unit), "")
        return input_statistics.finding(
            context,
            f"the scans are unlike those that the sensor's mean and deviation describe, first in {name}{guess}",
            split=images.part.split,
            measured=f"{name} {stated + channel_mean * scale:.4g} with a deviation of {channel_std * scale:.4g} in "
            f"{images.num_scans} scans: after normalisation {channel_mean:.3g} and {channel_std:.3g}",
            expected=f"about {stated:g} and {scale:g}, as data.sensor or its preset has them ({', '.join(_CHANNELS)})",
            action="write x, y, z in metres, or correct sensor.remission_max or the order of the five numbers; for "
            "another sensor leave input_mean and input_std out, so that they are measured",
            evidence={"field": "image", "mean": mean.tolist(), "std": std.tolist()},
        )
    return None
