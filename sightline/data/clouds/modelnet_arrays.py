"""ModelNet in array files: the HDF5 release, or one NPZ archive."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.data.clouds.modelnet_classes import (
    SPLITS,
    ClassSubset,
    SourceContents,
    make_columns,
    map_labels,
    natural_sort_key,
)
from sightline.data.files.array_files import READ_ERRORS, npz_array, npz_header
from sightline.data.files.hdf5_files import open_hdf5
from sightline.data.files.text_tables import read_text
from sightline.data.store.prepared_writer import SampleRow, Shard, assert_extent
from sightline.errors import DataError

__all__ = ["has_npz_keys", "hdf5_contents", "npz_contents"]

_NPZ_KEYS = ("X_train", "X_test", "y_train", "y_test", "name_train", "name_test", "classes")


def hdf5_contents(root: Path, classes: ClassSubset) -> SourceContents:
    """List the shards of `modelnet40_ply_hdf5_2048`, one per file. Raises DataError naming file and key."""
    names_path = root / "shape_names.txt"
    if not names_path.is_file():
        raise DataError(f"{names_path}: is missing, so the labels have no names; unpack the release again")
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
        wanted = {Path(line).name for line in read_text(list_path).split()}
    else:
        numbers = [
            int(digits) for name in existing if (digits := name[len(f"ply_data_{split}") : -len(".h5")]).isdecimal()
        ]
        wanted = {f"ply_data_{split}{number}.h5" for number in range(max(numbers, default=-1) + 1)}
    missing = sorted(wanted - existing, key=natural_sort_key)
    if missing:
        raise DataError(
            f"{root / missing[0]}: is missing, {len(missing)} of {len(wanted)} files are; unpack the release again"
        )
    if not wanted:
        raise DataError(
            f"{root / f'ply_data_{split}0.h5'}: is missing, there is no file of this split; unpack the release again"
        )
    return [root / name for name in sorted(wanted, key=natural_sort_key)]


class _Hdf5Scan(NamedTuple):
    num_points: int
    labels: np.ndarray
    has_normals: bool


def _scan_hdf5(path: Path) -> _Hdf5Scan:
    """Read the number of points, the labels (num_shapes,) int64 and the presence of normals of a file."""
    with open_hdf5(path, what="a ModelNet file") as file:
        data, label = file.array("data"), file.array("label")
        if data.ndim != 3 or data.shape[2] != 3 or data.dtype.kind != "f" or 0 in data.shape:
            raise DataError(f"{path}: 'data' is {data.dtype} {data.shape}, floats (shapes, points, 3) are needed")
        if label.shape not in {(len(data),), (len(data), 1)} or label.dtype.kind not in "iu":
            raise DataError(f"{path}: 'label' is {label.dtype} {label.shape}, integers ({len(data)}, 1) are needed")
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
        with zipfile.ZipFile(path) as archive:
            return {f"{key}.npy" for key in _NPZ_KEYS} <= set(archive.namelist())
    except READ_ERRORS:
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
        wanted = {"U": "text", "iu": "integers", "f": "floats"}[kinds]
        size = f" of length {length}" if length is not None else ""
        raise DataError(f"{path}: {key} is {array.dtype} {array.shape}, {wanted} in {ndim} dimensions{size} are needed")
    return array
