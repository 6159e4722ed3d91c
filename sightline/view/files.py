"""A cloud file of the user's own as something to look at, coloured by its columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sightline.data.files.array_files import read_npy
from sightline.data.files.cloud_files import is_no_return
from sightline.data.files.input_files import file_size
from sightline.data.files.scan_files import read_label_ids
from sightline.data.scans.scan_reading import PREDICTING, read_scan
from sightline.errors import DataError
from sightline.pictures import Axis
from sightline.view.stages import ClassColoring, Coloring, RgbColoring, Stage, ViewedSample, height_coloring

__all__ = ["view_file"]

_COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
_SCANS = (".bin", ".pcd")
_LABELS = frozenset({"label", "labels", "class", "classification", "semantic", "segment", "part", "instance"})


def view_file(path: Path, *, name: str, columns: Sequence[str] | None = None, up_axis: Axis = "z") -> ViewedSample:
    """The cloud of a file as `read_scan` reads it, in its own unit and frame; of a mesh the vertices.

    Colours are the channels red, green, blue (r, g, b), from 0 to 1, 255 or 65535 by their largest value; labels are
    whole numbers in a channel called label, class, part and the like; any other channel runs along a ramp. Of a scan
    (.bin, .pcd) there are the ids of its label file too, beside it or in SemanticKITTI's folders, and labels that
    `predict` wrote. Points that are NaN at x, y and z have no return and are left out, with their labels.
    Raises DataError naming the file.
    """
    whole = read_scan(path, columns=columns, no_return="nan", advice=PREDICTING)
    is_shown = ~is_no_return(whole)
    cloud = whole.rows(is_shown)
    if not len(cloud.points):
        raise DataError(f"{path}: every point is NaN at x, y and z; leave the file out")
    num_left_out = len(whole.points) - len(cloud.points)
    description = f"the vertices of a mesh of {len(cloud.faces):,} triangles" if cloud.faces is not None else ""
    description = f"{num_left_out:,} points without a return (NaN) left out" if num_left_out else description
    channels = dict(cloud.channels)
    beside = _labels_beside(path, is_shown) if path.suffix.lower() in _SCANS else ()
    colorings = [*beside, *_colorings(channels), height_coloring(cloud.points, up_axis)]
    if cloud.normals is not None:
        colorings.append(RgbColoring("normals", ((cloud.normals + 1) / 2 * 255).clip(0, 255).round().astype(np.uint8)))
    shown = Stage("as read", cloud.points, tuple(colorings), description=description)
    return ViewedSample(name, (shown,), up_axis, {"file": str(path), "channels": sorted(cloud.channels)})


def _labels_beside(path: Path, is_shown: np.ndarray) -> Iterator[Coloring]:
    """What label files say of a scan's points that are shown. Raises DataError for one of another number of points."""
    num_points, num_shown = len(is_shown), int(is_shown.sum())
    around = path.parent.parent
    places = {
        "label file": (path.with_suffix(".label"), around / "labels" / f"{path.stem}.label"),
        "predicted": (around / "predictions" / f"{path.stem}.label", path.with_name(f"{path.stem}.labels.npy")),
    }
    for name, files in places.items():
        for file in (each for each in files if each.is_file()):
            if file.suffix == ".label":
                count = num_shown if file_size(file) == 4 * num_shown else num_points
                labels = read_label_ids(file, num_points=count, points_path=path)
            else:
                labels = read_npy(file)
                if labels.shape not in ((num_points,), (num_shown,)):
                    raise DataError(f"{file}: holds {labels.shape} labels, {path.name} has {num_points} points")
            yield ClassColoring.from_labels(name, labels if len(labels) == num_shown else labels[is_shown], ())
            break


def _colorings(channels: dict[str, np.ndarray]) -> Iterator[Coloring]:
    """Colours first, then labels, then every other channel; each channel in one of them."""
    for names in _COLORS:
        if set(names) <= channels.keys():
            yield RgbColoring("colours", _bytes_of(np.stack([channels.pop(name) for name in names], axis=1)))
            break
    for name in [name for name in channels if name.removeprefix("scalar_") in _LABELS]:
        if _are_whole(channels[name]):
            yield ClassColoring.from_labels(name, channels.pop(name), ())
    for name, values in channels.items():
        yield RgbColoring.from_values(name, values)


def _bytes_of(colors: np.ndarray) -> np.ndarray:
    highest = colors.max(initial=0.0)
    full = 1.0 if highest <= 1 else 255.0 if highest <= 255 else 65535.0
    return (colors.clip(0, full) / full * 255).round().astype(np.uint8)


def _are_whole(values: np.ndarray) -> bool:
    return bool((values == np.round(values)).all() and (np.abs(values) < 2**31).all())
