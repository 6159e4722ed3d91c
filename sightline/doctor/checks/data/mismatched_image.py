"""Images that show other objects than the clouds that they are paired with."""

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
    if pictures is None or "image" not in part.dataset.info.fields or DataMembers.name_of.get(part.dataset) is None:
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
