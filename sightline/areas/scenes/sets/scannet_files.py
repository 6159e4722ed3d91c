"""Files of ScanNet v2: segments and their groups, the table of labels, folders of arrays, and the lists of ScanNet200.

A room's mesh is cut into segments, a number at every vertex (`.segs.json`); people put segments into groups and gave
each a label in free text (`.aggregation.json`); `scannetv2-labels.combined.tsv` gives each text its numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.areas.scenes.sets.labelled_scenes import IGNORE_INDEX
from sightline.contract.errors import DataError
from sightline.store.files.array_files import check_array, read_npy
from sightline.store.files.cloud_files import PointCloud, read_cloud
from sightline.store.files.column_names import COLOURS
from sightline.store.files.input_files import convert_errors, get_again, parse_json_content, read_file
from sightline.store.files.text_tables import parse_count
from sightline.store.prepared.python_literals import read_literals
from sightline.store.remarks import CountRemark

LABEL_TABLE = "scannetv2-labels.combined.tsv"
CONSTANTS, SPLITS = "scannet200_constants.py", "scannet200_splits.py"
"""Files of ScanNet's code with the classes of ScanNet200, and with the groups of these classes."""
_NUM_CLASSES = 200
_MAX_NORMAL = 1.001
"""Largest component of a normal; converted ones are rounded."""
_LISTS = ("VALID_CLASS_IDS_200", "CLASS_LABELS_200")
_GROUPS = {f"{name.upper()}_CATS_SCANNET_200": name for name in ("head", "common", "tail")}
_ADVICE = "get the file from BenchmarkScripts/ScanNet200 of github.com/ScanNet/ScanNet again"
_JSON_ADVICE = "get the room again"


class Classes(NamedTuple):
    """Classes of a benchmark: names, and the number of each in `column` of the table of labels.

    Converted rooms have their indices in `segment<array>.npy`. `groups` has the group of each class, or nothing.
    `files` are those that the classes were read from.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    column: str
    array: str
    groups: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def classify(self, numbers: np.ndarray) -> np.ndarray:
        """Return the class (N,) uint8 of numbers (N,); 255 for those of no class."""
        classes = np.full(len(numbers), IGNORE_INDEX, np.uint8)
        for index, number in enumerate(self.numbers):
            classes[numbers == number] = index
        return classes


_NYU40 = {
    1: "wall", 2: "floor", 3: "cabinet", 4: "bed", 5: "chair", 6: "sofa", 7: "table", 8: "door", 9: "window",
    10: "bookshelf", 11: "picture", 12: "counter", 14: "desk", 16: "curtain", 24: "refrigerator", 28: "shower curtain",
    33: "toilet", 34: "sink", 36: "bathtub", 39: "other furniture",
}  # fmt: skip
CLASSES = Classes(tuple(_NYU40.values()), tuple(_NYU40), "nyu40id", "20")
"""The twenty classes, by their numbers in NYU40; the others of 0 to 40 are without a class."""
_MIN_KNOWN = 0.5
"""Least share of vertices with labels from 0 to 40: three published rooms have others at up to 149 vertices."""


def read_scannet200(root: Path) -> Classes:
    """Read the 200 classes and their groups from the user's copies of two files of ScanNet's code, which are not run.

    Raises DataError for a missing file, for other lists than 200 different names and ids, and for a class that is not
    in exactly one group.
    """
    constants, splits = root / CONSTANTS, root / SPLITS
    for path in (constants, splits):
        if not path.is_file():
            raise DataError(f"{path}: there is no such file, which lists the classes of ScanNet200; {_ADVICE}")
    ids, names = read_literals(constants, _LISTS, advice=_ADVICE).values()
    for key, values, kind in zip(_LISTS, (ids, names), (int, str), strict=True):
        is_list = isinstance(values, tuple | list) and all(type(value) is kind for value in values)
        if not is_list or len(values) != _NUM_CLASSES or len(set(values)) != _NUM_CLASSES:
            raise DataError(f"{constants}: {key} is not a list of 200 different values; {_ADVICE}")
    members = read_literals(splits, _GROUPS, advice=_ADVICE)
    groups: dict[str, str] = {}
    for key, group in _GROUPS.items():
        for name in members[key] if isinstance(members[key], tuple | list) else [members[key]]:
            if name not in names or name in groups:
                fault = "is in two groups" if name in groups else f"is no class of {CONSTANTS}"
                raise DataError(f"{splits}: {key}: {str(name)[:40]!r} {fault}; {_ADVICE}")
            groups[name] = group
    if missing := [name for name in names if name not in groups]:
        raise DataError(f"{splits}: the class '{missing[0]}' is in no group; {_ADVICE}")
    return Classes(tuple(names), tuple(ids), "id", "200", tuple(groups[name] for name in names), (constants, splits))


def read_label_table(path: Path, column: str) -> dict[str, int]:
    """Read the number of each `raw_category` in a column of the table; of two rows of one text, the first counts.

    Raises DataError for a table without these columns, and for a cell that is no number; an empty one is left out.
    """
    lines = read_file(path).decode("utf-8-sig", "replace").splitlines()
    with convert_errors(path, "does not read as a table"):
        rows = list(csv.reader(lines, delimiter="\t"))
    columns = rows[0] if rows else []
    missing = [name for name in ("raw_category", column) if name not in columns]
    if missing:
        found = ", ".join(columns)[:80] or "nothing"
        raise get_again(f"{path}: has no column '{missing[0]}', it begins with {found}")
    name_at, number_at = columns.index("raw_category"), columns.index(column)
    numbers: dict[str, int] = {}
    seen: set[str] = set()
    for line, row in enumerate(rows[1:], start=2):
        if len(row) <= max(name_at, number_at):
            raise get_again(f"{path}:{line}: has {len(row)} of {len(columns)} columns")
        name, cell = row[name_at], row[number_at].strip()
        number = parse_count(cell)
        if cell and number is None:
            raise get_again(f"{path}:{line}: {column} is {cell[:40]!r}, not a whole number")
        if number is not None and name not in seen:
            numbers[name] = number
        seen.add(name)
    return numbers


class VertexClasses(NamedTuple):
    """Class (N,) uint8 of every vertex, 255 without one, and remarks."""

    label: np.ndarray
    remarks: tuple[str, ...]


def read_vertex_classes(
    groups_path: Path, segments_path: Path, *, num_vertices: int, numbers: Mapping[str, int], classes: Classes
) -> VertexClasses:
    """Read the class of every vertex: that of the last group with its segment, by the label's number.

    Vertices in no group, and in a group whose label has no number or one of no class, are without a class.
    Raises DataError for files in another form, for another number of vertices, and for groups of other segments.
    """
    segments = _read_segments(segments_path)
    if len(segments) != num_vertices:
        raise get_again(f"{segments_path}: has {len(segments)} segment indices for a mesh of {num_vertices} vertices")
    known, at, counts = np.unique(segments, return_inverse=True, return_counts=True)
    group_of = np.full(len(known), -1)
    is_shared, num_foreign, num_listed = np.zeros(len(known), dtype=bool), 0, 0
    labels, members = _read_groups(groups_path)
    for index, listed in enumerate(members):
        place = np.searchsorted(known, listed).clip(max=len(known) - 1)
        is_known = known[place] == listed
        num_foreign, num_listed = num_foreign + int((~is_known).sum()), num_listed + len(listed)
        place = np.unique(place[is_known])
        is_shared[place] |= group_of[place] >= 0
        group_of[place] = index
    if num_foreign and num_foreign == num_listed:
        raise get_again(f"{groups_path}: none of its {num_listed} segments is in {segments_path.name}")
    classes_of_groups = classes.classify(np.array([numbers.get(label, -1) for label in labels], dtype=np.int64))
    label = np.append(classes_of_groups, np.uint8(IGNORE_INDEX))[group_of][at]
    is_unnamed = np.append([name not in numbers for name in labels], False).astype(bool)[group_of]
    counted = (
        (int(counts[is_shared].sum()), num_vertices, "vertices", "are in several groups: the last one counts"),
        (int(counts[is_unnamed].sum()), num_vertices, "vertices", f"have a label that {LABEL_TABLE} lacks: no class"),
        (num_foreign, num_listed, "segments of groups", "are at no vertex"),
    )
    remarks = [CountRemark.make(count, total, what, noun=noun) for count, total, noun, what in counted if count]
    return VertexClasses(label, (*remarks, *_note_unlabelled(label)))


def read_labelled_mesh(path: Path, cloud: PointCloud, *, mesh: str) -> VertexClasses:
    """Read the classes of the vertices of a room, the file `mesh`, from a mesh of the same vertices with labels.

    Raises DataError for other vertices, and for labels that are mostly not from 0 to 40.
    """
    labelled = read_cloud(path, used=("label",))
    label = labelled.channels.get("label")
    is_known = np.zeros(1, dtype=bool) if label is None else np.isin(label, range(41))
    if label is None or not np.array_equal(labelled.points, cloud.points) or is_known.mean() < _MIN_KNOWN:
        raise get_again(f"{path}: does not label the vertices of {mesh} with 0 to 40")
    num_unknown, what = int((~is_known).sum()), "have labels outside of 0 to 40: without a class"
    remarks = (CountRemark.make(num_unknown, len(label), what, noun="vertices"),) if num_unknown else ()
    return VertexClasses(CLASSES.classify(label), remarks)


def _read_segments(path: Path) -> np.ndarray:
    document = parse_json_content(read_file(path), where=str(path), advice=_JSON_ADVICE)
    segments = document.get("segIndices") if isinstance(document, dict) else None
    return _as_integers(segments, where=f"{path}: segIndices")


def _read_groups(path: Path) -> tuple[list[str], list[np.ndarray]]:
    """Read the label of each group, and its segments."""
    document = parse_json_content(read_file(path), where=str(path), advice=_JSON_ADVICE)
    groups = document.get("segGroups") if isinstance(document, dict) else None
    if not isinstance(groups, list):
        raise DataError(f"{path}: has no list segGroups; {_JSON_ADVICE}")
    labels, members = [], []
    for index, group in enumerate(groups):
        label = group.get("label") if isinstance(group, dict) else None
        if not isinstance(label, str):
            raise DataError(f"{path}: segGroups[{index}] has no text 'label'; {_JSON_ADVICE}")
        labels.append(label)
        members.append(_as_integers(group.get("segments"), where=f"{path}: segGroups[{index}].segments"))
    return labels, members


def _as_integers(values: Any, *, where: str) -> np.ndarray:
    """Return a list of whole numbers as (N,) int64. Raises DataError, led by `where`, for anything else."""
    if not isinstance(values, list) or not all(type(value) is int and abs(value) < 2**63 for value in values):
        raise DataError(f"{where} is not a list of whole numbers; {_JSON_ADVICE}")
    return np.array(values, dtype=np.int64)


class ConvertedRoom(NamedTuple):
    """Room of a folder of arrays: its cloud with colours, normals (N, 3) float32 or None, and classes."""

    cloud: PointCloud
    normals: np.ndarray | None
    classes: VertexClasses


def read_converted(files: Sequence[Path], classes: Classes) -> ConvertedRoom:
    """Read `coord`, `color`, `segment20` or `segment200` and, if it is listed, `normal` of a room.

    The classes of segments are those of the benchmark, -1 for none. Raises DataError for arrays in another form, of
    different lengths or not finite, and for a label beyond the classes.
    """
    by_name = {path.stem: path for path in files}
    size = len(points) if (points := read_npy(by_name["coord"])).ndim else 0
    segment = f"segment{classes.array}"
    forms = {"coord": ("f", 3), "color": ("uif", 3), segment: ("i", 1), "normal": ("f", 3)}
    arrays = {}
    for name in [name for name in forms if name in by_name]:
        kinds, width = forms[name]
        array = points if name == "coord" else read_npy(by_name[name])
        shapes: list[tuple[int | None, ...]] = [(size, width), *([(size,)] if width == 1 else [])]
        needed = f"{shapes[-1]} is needed; convert the room again"
        check_array(array, where=str(by_name[name]), kinds=kinds, shapes=shapes, needed=needed)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise get_again(f"{by_name[name]}: row {row} is {array[row].tolist()}")
        arrays[name] = array
    label, normals = arrays[segment].reshape(-1), arrays.get("normal")
    is_wrong = (label < -1) | (label >= len(classes.names))
    if is_wrong.any():
        row = int(is_wrong.argmax())
        raise DataError(
            f"{by_name[segment]}: label {row} is {label[row]}, classes are 0 to {len(classes.names) - 1}, -1 is none; "
            "convert the room again"
        )
    if normals is not None and np.abs(normals).max() > _MAX_NORMAL:
        row = int(np.abs(normals).max(axis=1).argmax())
        raise DataError(f"{by_name['normal']}: row {row} is {normals[row].tolist()}, no normal; convert it again")
    channels = dict(zip(COLOURS, arrays["color"].T.astype(np.float64), strict=True))
    cloud = PointCloud(points.astype(np.float64), channels=channels)
    normals = None if normals is None else normals.astype(np.float32).clip(-1, 1)
    classed = np.where(label < 0, IGNORE_INDEX, label).astype(np.uint8)
    return ConvertedRoom(cloud, normals, VertexClasses(classed, _note_unlabelled(classed)))


def _note_unlabelled(label: np.ndarray) -> tuple[str, ...]:
    return () if (label != IGNORE_INDEX).any() else ("no vertex has a class",)
