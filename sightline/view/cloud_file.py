"""View of a user's cloud file, coloured by its columns and by label files next to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sightline.contract.errors import DataError
from sightline.draw.drawn_rows import guess_surroundings
from sightline.draw.pictures import Axis
from sightline.store.files.array_files import read_npy
from sightline.store.files.cloud_files import is_no_return
from sightline.store.files.column_names import COLOURS
from sightline.store.files.input_files import file_size
from sightline.store.files.ply import read_class_names
from sightline.store.files.scan_files import read_label_ids
from sightline.store.files.scan_reading import read_scan
from sightline.view.stages import ClassColoring, Coloring, RgbColoring, Stage, ViewedSample, height_coloring

_SCANS = (".bin", ".pcd")
_LABELS = frozenset({"label", "labels", "class", "classification", "semantic", "segment", "part", "instance"})


def view_file(path: Path, *, name: str, columns: Sequence[str] | None = None, up_axis: Axis = "z") -> ViewedSample:
    """Read a cloud file (the vertices of a mesh) as `read_scan` does, in its own unit and frame, for viewing.

    Colours are the channels red, green, blue, from 0 to 1, 255 or 65535 by their largest value; labels are
    whole numbers in a channel called label, class, part and the like; any other channel has a colour map. A scan
    (.bin, .pcd) is also coloured by its label file, next to it or in SemanticKITTI's folders, and by labels that
    `predict` wrote. A PLY file that `predict` wrote is coloured by its labels, with their names. Points that are NaN at
    x, y and z have no return and are left out, with their labels; so are points that the file flags as withheld. A
    room, by `guess_surroundings`, is drawn as one.
    Raises DataError naming the file.
    """
    scan = read_scan(path, columns=columns, no_return="nan")
    is_missing = is_no_return(scan)
    is_shown = ~is_missing if scan.is_withheld is None else ~(is_missing | scan.is_withheld)
    cloud = scan.rows(is_shown)
    if not len(cloud.points):
        raise DataError(f"{path}: every point is NaN at x, y and z, or flagged withheld; leave the file out")
    num_left_out = int(is_missing.sum())
    facts = [f"the vertices of a mesh of {len(cloud.faces):,} triangles"] if cloud.faces is not None else []
    facts += [f"{num_left_out:,} points without a return (NaN) left out"] if num_left_out else []
    channels, class_names = dict(cloud.channels), read_class_names(path) if path.suffix.lower() == ".ply" else ()
    if class_names:
        channels = {name: values for name, values in channels.items() if name not in COLOURS}  # those of the labels
    label_colorings = _label_colorings(path, is_shown) if path.suffix.lower() in _SCANS else ()
    colorings = [*label_colorings, *_channel_colorings(channels, class_names), height_coloring(cloud.points, up_axis)]
    if cloud.normals is not None:
        colorings.append(RgbColoring("normals", ((cloud.normals + 1) / 2 * 255).clip(0, 255).round().astype(np.uint8)))
    description, surroundings = ", ".join((*facts, *scan.notes)), guess_surroundings(cloud.points, up_axis)
    shown = Stage("as read", cloud.points, tuple(colorings), description=description, surroundings=surroundings)
    return ViewedSample(name, (shown,), up_axis, {"file": str(path), "channels": sorted(cloud.channels)})


def _label_colorings(path: Path, is_shown: np.ndarray) -> Iterator[Coloring]:
    """Iterate over colourings of a scan by its label files. Raises DataError for a wrong number of labels."""
    num_points, num_shown = len(is_shown), int(is_shown.sum())
    sequence = path.parent.parent
    candidates = {
        "label file": (path.with_suffix(".label"), sequence / "labels" / f"{path.stem}.label"),
        "predicted": (sequence / "predictions" / f"{path.stem}.label", path.with_name(f"{path.stem}.labels.npy")),
    }
    for name, files in candidates.items():
        for file in (candidate for candidate in files if candidate.is_file()):
            if file.suffix == ".label":
                count = num_shown if file_size(file) == 4 * num_shown else num_points
                labels = read_label_ids(file, num_points=count, points_path=path)
            else:
                labels = read_npy(file)
                if labels.shape not in ((num_points,), (num_shown,)):
                    raise DataError(
                        f"{file}: has labels of shape {labels.shape}, but {path.name} has {num_points} points"
                    )
            yield ClassColoring.from_labels(name, labels if len(labels) == num_shown else labels[is_shown], ())
            break


def _channel_colorings(channels: dict[str, np.ndarray], class_names: Sequence[str]) -> Iterator[Coloring]:
    """Iterate over colourings by channels, each used once: colours, then labels of these names, then all others."""
    if set(COLOURS) <= channels.keys():
        yield RgbColoring("colours", _to_uint8(np.stack([channels.pop(name) for name in COLOURS], axis=1)))
    for name in [name for name in channels if name.removeprefix("scalar_") in _LABELS]:
        if _is_integral(channels[name]):
            yield ClassColoring.from_labels(name, channels.pop(name), class_names)
    for name, values in channels.items():
        yield RgbColoring.from_values(name, values)


def _to_uint8(colors: np.ndarray) -> np.ndarray:
    highest = colors.max(initial=0.0)
    full = 1.0 if highest <= 1 else 255.0 if highest <= 255 else 65535.0
    return (colors.clip(0, full) / full * 255).round().astype(np.uint8)


def _is_integral(values: np.ndarray) -> bool:
    return bool((values == np.round(values)).all() and (np.abs(values) < 2**31).all())
