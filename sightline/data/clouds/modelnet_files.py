"""ModelNet in folders of small files: the resampled text release, or the OFF meshes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.data.clouds.mesh_points import NUM_MESH_POINTS, draw_points
from sightline.data.clouds.modelnet_classes import SPLITS, ClassSubset, SourceContents, make_columns, natural_sort_key
from sightline.data.files.off import read_off
from sightline.data.files.text_tables import read_table, read_text
from sightline.data.store.prepared_writer import SampleRow, Shard, normalize_to_unit_sphere
from sightline.errors import DataError

__all__ = ["off_contents", "text_contents"]


def text_contents(root: Path, classes: ClassSubset) -> SourceContents:
    """List the shards of `modelnet40_normal_resampled`, one per split and class, by the lists of the release.

    Raises DataError naming the list, or the first missing file and the number of missing files.
    """
    lists = {split: _read_text_list(root, split, classes) for split in SPLITS}
    wanted = {path: None for by_class in lists.values() for paths in by_class.values() for path in paths}
    existing = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {p.parent for p in wanted}}
    missing = [path for path in wanted if path.name not in existing[path.parent]]
    if missing:
        raise DataError(
            f"{missing[0]}: is listed but missing, {len(missing)} of {len(wanted)} files are; unpack the release again"
        )
    first = next(iter(wanted), None)
    num_points = len(read_table(first, num_columns=6, delimiter=",")) if first else 1
    parts = []
    for split, by_class in lists.items():
        for label, paths in sorted(by_class.items()):
            parts.append(_make_file_shard(split, label, paths, classes, _TextReader(label, num_points)))
    return SourceContents(make_columns(num_points, has_normals=True), tuple(parts))


def _read_text_list(root: Path, split: str, classes: ClassSubset) -> dict[int, list[Path]]:
    """List the files of a split by label, sorted by number, as the list of the release names them."""
    sets = ("modelnet40", "modelnet10") if len(classes.names) < len(classes.known) else ("modelnet40",)
    lists = [root / f"{name}_{split}.txt" for name in sets]
    list_path = next((path for path in lists if path.is_file()), None)
    if list_path is None:
        raise DataError(f"{lists[0]}: is missing, it lists the shapes of the split; unpack the release again")
    by_class: dict[int, list[Path]] = {}
    for number, line in enumerate(read_text(list_path).split("\n"), start=1):
        name = line.strip()
        if not name:
            continue
        if "/" in name:
            raise DataError(f"{list_path}:{number}: '{name[:80]}' is not the name of a shape; download the file again")
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
            parts.append(_make_file_shard(split, label, paths, classes, _MeshReader(label)))
    return SourceContents(make_columns(NUM_MESH_POINTS, has_normals=True), tuple(parts))


@dataclass(frozen=True)
class _TextReader:
    label: int
    num_points: int

    def __call__(self, path: Path) -> dict[str, Any]:
        table = read_table(path, num_columns=6, delimiter=",")
        if len(table) != self.num_points:
            raise DataError(
                f"{path}: {len(table)} points, the first shape of the release has {self.num_points}; download the "
                "file again"
            )
        points = normalize_to_unit_sphere(table[:, :3], where=str(path))
        return {"points": points, "normals": table[:, 3:], "label": self.label}


@dataclass(frozen=True)
class _MeshReader:
    label: int

    def __call__(self, path: Path) -> dict[str, Any]:
        drawn = draw_points(*read_off(path), name=path.stem, where=str(path))
        return {
            "points": normalize_to_unit_sphere(drawn.points, where=str(path)),
            "normals": drawn.normals,
            "label": self.label,
        }


def _make_file_shard(
    split: str, label: int, paths: Sequence[Path], classes: ClassSubset, reader: _TextReader | _MeshReader
) -> Shard:
    """Make the shard of one class of one split."""

    def row(path: Path) -> SampleRow:
        return SampleRow(path.stem, str(path), reader(path))

    title = f"{split}/{classes.names[label]}"
    return Shard(split, title, len(paths), tuple(paths), lambda: map(row, paths))
