"""The table of the label files of 3D boxes: how a file is recognised, read and written, and what it can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sightline.contract.errors import DataError
from sightline.store.boxes3d.box_table import BoxTable
from sightline.store.boxes3d.json_boxes import (
    find_json_format,
    read_json,
    write_labelcloud,
    write_supervisely,
    write_sustech,
)
from sightline.store.boxes3d.kitti_rows import FLAT_CALIBRATION, is_kitti, read_kitti_rows, write_kitti_rows
from sightline.store.boxes3d.label_rows import LabelFile
from sightline.store.boxes3d.tracklets import FRAME_LIST, is_tracklets, read_tracklets, write_tracklets
from sightline.store.boxes3d.txt_boxes import is_txt, read_txt, write_txt
from sightline.store.files.input_files import open_regular, parse_json_content, read_file

_HEAD_BYTES = 2**16
"""Bytes of a text file by which its format is known: a cloud of text may be large."""
LABEL_SUFFIXES = (".txt", ".csv", ".json", ".xml")


class WrittenFrame(NamedTuple):
    """Frame to be written: its name, the name of its cloud, and its boxes."""

    name: str
    cloud: str
    table: BoxTable

    @property
    def names(self) -> list[str]:
        """Names of the classes of the boxes."""
        return [self.table.class_names[label] for label in self.table.label]


Files = Iterator[tuple[str, bytes]]
"""Paths of files below a folder, and their contents."""


@dataclass(frozen=True)
class WrittenForm:
    """Form in which boxes are written: `write` yields the files of all frames, `clouds` is the folder of their clouds.

    `holds` are the fields of `BoxTable` that it has besides boxes and classes; `joins_blanks` if a name is one word.
    """

    title: str
    clouds: str
    write: Callable[[Sequence[WrittenFrame]], Files]
    holds: frozenset[str] = frozenset()
    joins_blanks: bool = False


def _each(folder: str, suffix: str, make: Callable[[WrittenFrame], bytes]) -> Callable[[Sequence[WrittenFrame]], Files]:
    """Return a writer of one file a frame."""

    def write(frames: Sequence[WrittenFrame]) -> Files:
        yield from ((f"{folder}/{frame.name}{suffix}", make(frame)) for frame in frames)

    return write


def _make_txt(frame: WrittenFrame) -> bytes:
    return write_txt(frame.names, frame.table.boxes, frame.table.score)


def _make_sustech(frame: WrittenFrame) -> bytes:
    return write_sustech(frame.names, frame.table.boxes, frame.table.track)


def _make_labelcloud(frame: WrittenFrame, *, form: str) -> bytes:
    return write_labelcloud(frame.names, frame.table.boxes, cloud=frame.cloud, form=form)


def _make_kitti(frame: WrittenFrame, *, form: str) -> bytes:
    table = frame.table
    return write_kitti_rows(frame.names, table.boxes, table.score, image=table.image, form=form)


def _write_kitti(frames: Sequence[WrittenFrame], *, form: str) -> Files:
    for frame in frames:
        yield f"label_2/{frame.name}.txt", _make_kitti(frame, form=form)
        if form != "labelcloud_kitti_untransformed":
            yield f"calib/{frame.name}.txt", FLAT_CALIBRATION.encode()


def _write_supervisely(frames: Sequence[WrittenFrame]) -> Files:
    for frame in frames:
        content = write_supervisely(frame.names, frame.table.boxes, frame.table.track, frame=frame.name)
        yield f"ds0/ann/{frame.cloud}.json", content


def _write_tracklets(frames: Iterable[WrittenFrame]) -> Files:
    tracks = {frame.name: (frame.names, frame.table.boxes, frame.table.track) for frame in frames}
    content, listed = write_tracklets(tracks)
    yield "tracklet_labels.xml", content
    yield FRAME_LIST, listed


_LABELCLOUD = ("labelcloud_absolute", "labelcloud_relative", "labelcloud_vertices")
_KITTI = ("labelcloud_kitti", "labelcloud_kitti_untransformed")
WRITTEN: Mapping[str, WrittenForm] = {
    "txt": WrittenForm(
        "x y z dx dy dz yaw class", "points", _each("labels", ".txt", _make_txt), frozenset({"score"}), True
    ),
    "sustechpoints": WrittenForm(
        "SUSTechPOINTS", "lidar", _each("label", ".json", _make_sustech), frozenset({"track"})
    ),
    **{
        name: WrittenForm(
            f"labelCloud, {name}", "pointclouds", _each("labels", ".json", partial(_make_labelcloud, form=name))
        )
        for name in _LABELCLOUD
    },
    **{
        name: WrittenForm(
            f"labelCloud, {name}", "velodyne", partial(_write_kitti, form=name), frozenset({"score"}), True
        )
        for name in _KITTI
    },
    "kitti": WrittenForm(
        "KITTI's rows", "velodyne", partial(_write_kitti, form="kitti"), frozenset({"score", "image"}), True
    ),
    "supervisely": WrittenForm("Supervisely, CVAT 3D", "ds0/pointcloud", _write_supervisely, frozenset({"track"})),
    "tracklets": WrittenForm("CVAT 3D, KITTI's tracklets", "velodyne_points/data", _write_tracklets),
}
"""Forms that are written, by name."""


def find_format(path: Path) -> str:
    """Return the format of a file of labels by its content: txt, kitti, a JSON format, tracklets; "" for no labels.

    Raises DataError for a JSON file that does not read.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        return find_json_format(parse_json_content(read_file(path), where=str(path), advice="export the labels again"))
    with open_regular(path) as file:
        content = file.read(_HEAD_BYTES)
    if suffix == ".xml":
        return "tracklets" if is_tracklets(content) else ""
    if suffix not in LABEL_SUFFIXES:
        return ""
    return "kitti" if is_kitti(content) else "txt" if is_txt(content) else ""


def read_labels(path: Path, *, calibration: Path | None = None, format_name: str | None = None) -> LabelFile:
    """Read a file of labels in one of the formats; `format_name` is that of a file without rows, too.

    Raises DataError with the line or entry for what is no box, and for a file of another kind.
    """
    name = format_name or find_format(path)
    if name == "tracklets":
        return read_tracklets(path)
    if path.suffix.lower() == ".json" and name:
        return read_json(path)
    if name == "kitti":
        return read_kitti_rows(path, calibration=calibration)
    if name == "txt":
        return read_txt(path)
    raise DataError(
        f"{path}: is no file of 3D boxes that is read: rows of x y z dx dy dz yaw class, KITTI's rows, SUSTechPOINTS, "
        "labelCloud, Supervisely, or tracklets; convert it to one of them"
    )
