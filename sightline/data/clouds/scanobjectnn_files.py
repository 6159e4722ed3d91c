"""HDF5 files of ScanObjectNN: their names by variant, and their rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from sightline.data.files.hdf5_files import open_hdf5
from sightline.data.files.text_tables import read_text
from sightline.data.store.prepared_set import MANIFEST, summarise_folder
from sightline.data.store.prepared_writer import ColumnSpec, SampleRow, Shard, assert_extent, normalize_to_unit_sphere
from sightline.errors import DataError

__all__ = [
    "SPLITS",
    "Division",
    "VariantName",
    "find_variant_files",
    "make_columns",
    "published_counts",
    "variant_parts",
]

SPLITS = {"train": "training", "test": "test"}
"""Our name of each split, with the word in the release's file names."""
VariantName: TypeAlias = Literal[
    "obj_bg",
    "obj_only",
    "pb_t25",
    "pb_t25_nobg",
    "pb_t25_r",
    "pb_t25_r_nobg",
    "pb_t50_r",
    "pb_t50_r_nobg",
    "pb_t50_rs",
    "pb_t50_rs_nobg",
]
"""Names of the variants as in the paper; `_nobg` is the same variant without background."""
Division: TypeAlias = Literal["main_split", "split1", "split2", "split3", "split4"]
"""Division into training and test: the official one of published figures, or one of four others."""
_INNER_FOLDER = "h5_files"
_NAMES_FILES = ("shape_names_ext.txt", "shape_names.txt")
_BACKGROUND = -1
"""Value in `mask` of a background point."""


def published_counts() -> dict[str, Any]:
    """Read the published facts: classes in the order of their labels, variants, counts, terms of use."""
    return json.loads(Path(__file__).with_name("scanobjectnn.json").read_text(encoding="utf-8"))


def make_columns(num_points: int) -> dict[str, ColumnSpec]:
    """Return the columns of a row: points, object mask (1 object, 0 background) and label."""
    return {
        "points": ColumnSpec((num_points, 3), "float32"),
        "is_object": ColumnSpec((num_points,), "uint8"),
        "label": ColumnSpec((), "int64"),
    }


def find_variant_files(source: Path, variant: VariantName, division: Division) -> dict[str, Path]:
    """Find the file of each split of a variant; `source` is `h5_files` or its parent folder.

    Raises DataError naming the missing file and the contents of the folder.
    """
    root = source.expanduser().resolve()
    if not root.is_dir():
        raise DataError(f"{source}: there is no such folder (looked at {root}); give h5_files of the release")
    if (root / MANIFEST).is_file():
        raise DataError(f"{root}: is prepared already; give h5_files of the release")
    facts = published_counts()["variants"][variant]
    folder_name = division if facts["has_background"] else f"{division}_nobg"
    if not (root / folder_name).is_dir() and (root / _INNER_FOLDER).is_dir():
        root = root / _INNER_FOLDER
    folder = root / folder_name
    if not folder.is_dir():
        raise DataError(
            f"{folder}: is missing, '{variant}' is read from it; {root} holds {summarise_folder(root)}: "
            "give h5_files of the "
            "release, or another variant"
        )
    files = {split: folder / f"{file_word}_{facts['stem']}.h5" for split, file_word in SPLITS.items()}
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: is missing, it is of '{variant}'; {folder} holds {summarise_folder(folder)}: "
            "unpack the release "
            "again, or give another variant"
        )
    _check_class_order(folder)
    return files


def variant_parts(files: dict[str, Path], *, to_sphere: bool) -> tuple[list[Shard], int]:
    """Make one shard per split; return them with the points per object. Raises DataError with file and key."""
    num_classes = len(published_counts()["classes"])
    scans = {split: _scan(path, num_classes) for split, path in files.items()}
    if scans["train"].num_points != scans["test"].num_points:
        raise DataError(
            f"{files['test']}: 'data' has {scans['test'].num_points} points an object, {files['train'].name} has "
            f"{scans['train'].num_points}; do not mix releases in one folder"
        )
    parts = [
        Shard(split, path.name, scans[split].num_objects, (path,), _Rows(path, to_sphere))
        for split, path in files.items()
    ]
    return parts, scans["train"].num_points


def _check_class_order(folder: Path) -> None:
    """Raise DataError if a list of class names in the folder, or up to two above it, has another order than ours."""
    classes = published_counts()["classes"]
    for path in (parent / name for parent in (folder, *folder.parents[:2]) for name in _NAMES_FILES):
        if not path.is_file():
            continue
        listed_names = read_text(path).split()
        if listed_names == classes:
            return
        line = next(
            (i for i, (a, b) in enumerate(zip(listed_names, classes, strict=False)) if a != b),
            min(len(listed_names), len(classes)),
        )
        actual = f"'{listed_names[line]}'" if line < len(listed_names) else "nothing"
        expected = f"'{classes[line]}'" if line < len(classes) else "nothing"
        raise DataError(
            f"{path}:{line + 1}: has {actual} where the release has {expected} (label {line}): labels in another order "
            "would be read as other classes; get the release, or mend the list"
        )


class _Scan(NamedTuple):
    num_objects: int
    num_points: int


def _scan(path: Path, num_classes: int) -> _Scan:
    """Read and check the sizes of a file. Raises DataError for a missing or wrong key, or a label out of range."""
    with open_hdf5(path, what="a file of ScanObjectNN") as file:
        data, label, mask = (file.array(key) for key in ("data", "label", "mask"))
        if data.ndim != 3 or data.shape[2] != 3 or data.dtype.kind != "f" or 0 in data.shape:
            raise DataError(f"{path}: 'data' is {data.dtype} {data.shape}, floats (objects, points, 3) are needed")
        if label.shape not in {(len(data),), (len(data), 1)} or label.dtype.kind not in "iu":
            raise DataError(f"{path}: 'label' is {label.dtype} {label.shape}, integers ({len(data)},) are needed")
        if mask.shape != data.shape[:2] or mask.dtype.kind not in "if":
            raise DataError(
                f"{path}: 'mask' is {mask.dtype} {mask.shape}, signed numbers {data.shape[:2]} are needed, "
                f"{_BACKGROUND} for the background"
            )
        labels = label[...].reshape(-1)
        invalid = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(invalid):
            raise DataError(
                f"{path}: label[{invalid[0]}] is {labels[invalid[0]]}, there are {num_classes} classes (0 to "
                f"{num_classes - 1}); download the file again"
            )
        return _Scan(len(data), data.shape[1])


@dataclass(frozen=True)
class _Rows:
    path: Path
    to_sphere: bool

    def __call__(self) -> Iterator[SampleRow]:
        with open_hdf5(self.path) as file:
            clouds, labels, masks = (file.array(key)[...] for key in ("data", "label", "mask"))
        labels = labels.reshape(-1)

        def row(index: int) -> SampleRow:
            where, cloud = f"{self.path}: object {index}", clouds[index]
            _assert_finite(cloud, where)
            assert_extent(cloud, where=where)
            points = normalize_to_unit_sphere(cloud, where=where) if self.to_sphere else cloud
            values = {"points": points, "is_object": masks[index] != _BACKGROUND, "label": labels[index]}
            return SampleRow(f"{self.path.stem}/{index:05d}", where, values)

        return map(row, range(len(clouds)))


def _assert_finite(points: np.ndarray, where: str) -> None:
    """Raise DataError naming the first coordinate that is not finite."""
    is_finite = np.isfinite(points)
    if not is_finite.all():
        point, axis = np.argwhere(~is_finite)[0]
        raise DataError(f"{where}: data[{point}, {axis}] is {points[point, axis]}; download the file again")
