"""Files of ModelNet: its classes, and the contents of its four layouts.

The resampled text release and the OFF meshes are folders of small files; the HDF5 release and the NPZ archive are array
files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.areas.clouds.sets.labelled_clouds import check_labelled_clouds
from sightline.contract.errors import DataError
from sightline.contract.schema import suggest
from sightline.store.cloud_preparation import NUM_MESH_POINTS, draw_points
from sightline.store.files.array_files import npz_array, npz_header, npz_names
from sightline.store.files.cloud_files import read_cloud
from sightline.store.files.hdf5_files import open_hdf5
from sightline.store.files.input_files import download_again, natural_sort_key, unpack_again
from sightline.store.files.text_tables import read_table, read_text
from sightline.store.prepared.prepared_writer import (
    ColumnSpec,
    SampleRow,
    Shard,
    assert_extent,
    normalize_to_unit_sphere,
)

SPLITS = ("train", "test")


def published_counts() -> dict[str, Any]:
    """Read the published facts: counts per class, the ten classes, layouts, terms of use."""
    return json.loads(Path(__file__).with_name("modelnet.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class ClassSubset:
    """Classes of a set in the order of their labels, and all classes of ModelNet."""

    names: tuple[str, ...]
    known: tuple[str, ...]

    @classmethod
    def from_set_name(cls, set_name: str) -> ClassSubset:
        """Return the classes of ModelNet10 or ModelNet40."""
        facts = published_counts()
        all_names = tuple(facts["counts_train_test"])
        return cls(tuple(facts["modelnet10"]) if set_name == "modelnet10" else all_names, all_names)

    def label(self, name: str, *, where: str) -> int | None:
        """Return the label of a class, None if the set leaves it out. Raises DataError for an unknown class."""
        if name in self.names:
            return self.names.index(name)
        if name not in self.known:
            raise DataError(f"{where}: '{name}' is not one of ModelNet's 40 classes{suggest(name, self.known)}")
        return None


class SourceContents(NamedTuple):
    """Contents of a recognised source: the columns of a row, and the shards in order."""

    columns: dict[str, ColumnSpec]
    parts: tuple[Shard, ...]


def make_columns(num_points: int, *, has_normals: bool) -> dict[str, ColumnSpec]:
    """Return the columns of a row: points, label, and normals if there are any."""
    names = ("points", "normals") if has_normals else ("points",)
    return {**{name: ColumnSpec((num_points, 3), "float32") for name in names}, "label": ColumnSpec((), "int64")}


def map_labels(
    file_labels: np.ndarray, names: Sequence[str], classes: ClassSubset, *, where: str, names_where: str
) -> np.ndarray:
    """Map the labels of a file (N,) to those of the set, -1 for classes left out. Raises DataError if out of range."""
    invalid = np.flatnonzero((file_labels < 0) | (file_labels >= len(names)))
    if len(invalid):
        raise download_again(
            f"{where}[{invalid[0]}]: is {file_labels[invalid[0]]}, {names_where} names {len(names)} classes (0 to "
            f"{len(names) - 1})"
        )
    new_labels = [classes.label(name, where=names_where) for name in names]
    return np.array([-1 if label is None else label for label in new_labels], dtype=np.int64)[file_labels]


def text_contents(root: Path, classes: ClassSubset) -> SourceContents:
    """List the shards of `modelnet40_normal_resampled`, one per split and class, by the lists of the release.

    Raises DataError naming the list, or the first missing file and the number of missing files.
    """
    lists = {split: _read_text_list(root, split, classes) for split in SPLITS}
    listed = {path: None for by_class in lists.values() for paths in by_class.values() for path in paths}
    existing = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {p.parent for p in listed}}
    missing = [path for path in listed if path.name not in existing[path.parent]]
    if missing:
        raise unpack_again(f"{missing[0]}: is listed but missing, {len(missing)} of {len(listed)} files are")
    first = next(iter(listed), None)
    num_points = len(read_table(first, num_columns=6, delimiter=",")) if first else 1
    parts = []
    for split, by_class in lists.items():
        for label, paths in sorted(by_class.items()):
            parts.append(_make_file_shard(split, label, paths, classes, partial(_read_text_shape, num_points)))
    return SourceContents(make_columns(num_points, has_normals=True), tuple(parts))


def _read_text_list(root: Path, split: str, classes: ClassSubset) -> dict[int, list[Path]]:
    """List the files of a split by label, sorted by number, as the list of the release names them."""
    sets = ("modelnet40", "modelnet10") if len(classes.names) < len(classes.known) else ("modelnet40",)
    lists = [root / f"{name}_{split}.txt" for name in sets]
    list_path = next((path for path in lists if path.is_file()), None)
    if list_path is None:
        raise unpack_again(f"{lists[0]}: is missing, it lists the shapes of the split")
    by_class: dict[int, list[Path]] = {}
    for number, line in enumerate(read_text(list_path).split("\n"), start=1):
        name = line.strip()
        if not name:
            continue
        if "/" in name:
            raise download_again(f"{list_path}:{number}: '{name[:80]}' is not the name of a shape")
        class_name = name.rpartition("_")[0]
        label = classes.label(class_name, where=f"{list_path}:{number}")
        if label is not None:
            by_class.setdefault(label, []).append(root / class_name / f"{name}.txt")
    return {label: sorted(paths, key=lambda path: natural_sort_key(path.name)) for label, paths in by_class.items()}


def off_contents(root: Path, classes: ClassSubset) -> SourceContents:
    """List the shards of a tree of OFF meshes, one per split and class. Raises DataError for an unknown class."""
    parts = []
    folders = sorted(folder for folder in root.iterdir() if any((folder / split).is_dir() for split in SPLITS))
    labels = {folder: classes.label(folder.name, where=str(folder)) for folder in folders}
    for split in SPLITS:
        for folder, label in labels.items():
            if label is None:
                continue
            paths = sorted((folder / split).glob("*.off"), key=lambda path: natural_sort_key(path.name))
            parts.append(_make_file_shard(split, label, paths, classes, _read_mesh))
    return SourceContents(make_columns(NUM_MESH_POINTS, has_normals=True), tuple(parts))


def _read_text_shape(num_points: int, path: Path) -> dict[str, np.ndarray]:
    table = read_table(path, num_columns=6, delimiter=",")
    if len(table) != num_points:
        raise download_again(f"{path}: {len(table)} points, the first shape of the release has {num_points}")
    return {"points": table[:, :3], "normals": table[:, 3:]}


def _read_mesh(path: Path) -> dict[str, np.ndarray]:
    mesh = read_cloud(path)
    if mesh.faces is None:
        raise DataError(f"{path}: has no faces, so no surface; leave the file out")
    drawn = draw_points(mesh.points, mesh.faces, name=path.stem, where=str(path))
    return {"points": drawn.points, "normals": drawn.normals}


def _make_file_shard(
    split: str,
    label: int,
    paths: Sequence[Path],
    classes: ClassSubset,
    read: Callable[[Path], dict[str, np.ndarray]],
) -> Shard:
    """Make the shard of one class of one split; clouds get the radius 1."""

    def row(path: Path) -> SampleRow:
        values = read(path)
        points = normalize_to_unit_sphere(values["points"], where=str(path))
        return SampleRow(path.stem, str(path), {**values, "points": points, "label": label})

    title = f"{split}/{classes.names[label]}"
    return Shard(split, title, len(paths), tuple(paths), lambda: map(row, paths))


_NPZ_KEYS = ("X_train", "X_test", "y_train", "y_test", "name_train", "name_test", "classes")


def hdf5_contents(root: Path, classes: ClassSubset) -> SourceContents:
    """List the shards of `modelnet40_ply_hdf5_2048`, one per file. Raises DataError naming file and key."""
    names_path = root / "shape_names.txt"
    if not names_path.is_file():
        raise unpack_again(f"{names_path}: is missing, so the labels have no names")
    names = read_text(names_path).split()
    files = [(split, path) for split in SPLITS for path in _list_hdf5_files(root, split)]
    scans = [_scan_hdf5(path) for _, path in files]
    has_normals = all(scan.has_normals for scan in scans)
    parts = []
    for (split, path), scan in zip(files, scans, strict=True):
        if scan.num_points != scans[0].num_points:
            raise DataError(
                f"{path}: 'data' has {scan.num_points} points a shape, {files[0][1].name} has {scans[0].num_points}; "
                "do not mix releases in one folder"
            )
        labels = map_labels(scan.labels, names, classes, where=f"{path}: label", names_where=str(names_path))
        parts.append(_make_hdf5_shard(split, path, labels, has_normals=has_normals))
    return SourceContents(make_columns(scans[0].num_points, has_normals=has_normals), tuple(parts))


def _list_hdf5_files(root: Path, split: str) -> list[Path]:
    """List the files of a split by number. Raises DataError for one that is listed or numbered but missing."""
    existing = {path.name for path in root.glob(f"ply_data_{split}*.h5")}
    list_path = root / f"{split}_files.txt"
    if list_path.is_file():
        expected = {Path(line).name for line in read_text(list_path).split()}
    else:
        numbers = [
            int(digits) for name in existing if (digits := name[len(f"ply_data_{split}") : -len(".h5")]).isdecimal()
        ]
        expected = {f"ply_data_{split}{number}.h5" for number in range(max(numbers, default=-1) + 1)}
    missing = sorted(expected - existing, key=natural_sort_key)
    if missing:
        raise unpack_again(f"{root / missing[0]}: is missing, {len(missing)} of {len(expected)} files are")
    if not expected:
        raise unpack_again(f"{root / f'ply_data_{split}0.h5'}: is missing, there is no file of this split")
    return [root / name for name in sorted(expected, key=natural_sort_key)]


class _Hdf5Scan(NamedTuple):
    num_points: int
    labels: np.ndarray
    has_normals: bool


def _scan_hdf5(path: Path) -> _Hdf5Scan:
    """Read the number of points, the labels (num_shapes,) int64 and the presence of normals of a file."""
    with open_hdf5(path, what="a ModelNet file") as file:
        data, label = file.array("data"), file.array("label")
        check_labelled_clouds(data, label, where=str(path))
        normal = file.array("normal") if "normal" in file.names() else None
        has_normals = normal is not None and normal.shape == data.shape and normal.dtype.kind == "f"
        return _Hdf5Scan(data.shape[1], label[...].reshape(-1).astype(np.int64), has_normals)


def _make_hdf5_shard(split: str, path: Path, labels: np.ndarray, *, has_normals: bool) -> Shard:
    """Make the shard of one HDF5 file; rows with the label -1 are left out."""

    def rows() -> Iterator[SampleRow]:
        with open_hdf5(path) as file:
            keys = {"points": "data", **({"normals": "normal"} if has_normals else {})}
            columns = {name: file.array(key)[...] for name, key in keys.items()}

        def row(index: int) -> SampleRow:
            where, values = f"{path}: shape {index}", {name: column[index] for name, column in columns.items()}
            assert_extent(values["points"], where=where)
            return SampleRow(f"{path.stem}/{index:04d}", where, {**values, "label": labels[index]})

        return map(row, np.flatnonzero(labels >= 0).tolist())

    return Shard(split, path.name, int((labels >= 0).sum()), (path, path.with_name("shape_names.txt")), rows)


def has_npz_keys(path: Path) -> bool:
    """Return True if an archive has the entries of a set of labelled clouds; only its directory is read."""
    try:
        return set(_NPZ_KEYS) <= set(npz_names(path))
    except DataError:
        return False


def npz_contents(root: Path, classes: ClassSubset) -> SourceContents:
    """List the shards of an archive, one per split. Raises DataError naming archive and entry."""
    headers = {split: _read_npz_shape(root, f"X_{split}") for split in SPLITS}
    names = _read_npz_array(root, "classes", kinds="U", ndim=1)
    num_points = headers["train"][1]
    parts = []
    for split, shape in headers.items():
        if shape[1] != num_points:
            raise DataError(f"{root}: X_{split} holds {shape[1]} points a shape, X_train {num_points}; they must agree")
        file_labels = _read_npz_array(root, f"y_{split}", kinds="iu", ndim=1, length=shape[0])
        shape_names = _read_npz_array(root, f"name_{split}", kinds="U", ndim=1, length=shape[0])
        labels = map_labels(
            file_labels.astype(np.int64),
            names.tolist(),
            classes,
            where=f"{root}: y_{split}",
            names_where=f"{root}: classes",
        )
        parts.append(_make_npz_shard(split, root, labels, shape_names))
    return SourceContents(make_columns(num_points, has_normals=False), tuple(parts))


def _make_npz_shard(split: str, path: Path, labels: np.ndarray, names: np.ndarray) -> Shard:
    """Make the shard of one split of an archive; rows with the label -1 are left out."""

    def rows() -> Iterator[SampleRow]:
        clouds = _read_npz_array(path, f"X_{split}", kinds="f", ndim=3, length=len(labels))

        def row(index: int) -> SampleRow:
            where = f"{path}: X_{split}[{index}]"
            assert_extent(clouds[index], where=where)
            return SampleRow(str(names[index]), where, {"points": clouds[index], "label": labels[index]})

        return map(row, np.flatnonzero(labels >= 0).tolist())

    return Shard(split, f"{path.name}: X_{split}", int((labels >= 0).sum()), (path,), rows)


def _read_npz_shape(path: Path, key: str) -> tuple[int, int, int]:
    """Read the shape (num_shapes, num_points, 3) of a cloud array from its header."""
    shape, dtype = npz_header(path, key, needed=", ".join(_NPZ_KEYS))
    if len(shape) != 3 or shape[2] != 3 or dtype.kind != "f" or 0 in shape:
        raise DataError(f"{path}: {key} is {dtype} {shape}, floats (shapes, points, 3) are needed")
    return shape[0], shape[1], shape[2]


def _read_npz_array(path: Path, key: str, *, kinds: str, ndim: int, length: int | None = None) -> np.ndarray:
    """Read one entry of the archive; its kind, dimensions and length must match."""
    array = npz_array(path, key, needed=", ".join(_NPZ_KEYS))
    if array.dtype.kind not in kinds or array.ndim != ndim or (length is not None and len(array) != length):
        expected = {"U": "text", "iu": "integers", "f": "floats"}[kinds]
        size = f" of length {length}" if length is not None else ""
        raise DataError(
            f"{path}: {key} is {array.dtype} {array.shape}, {expected} in {ndim} dimensions{size} are needed"
        )
    return array
